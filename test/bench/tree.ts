import { randomBytes } from "node:crypto";
import { withDatabase } from "../../deploy/local/trial.ts";
import { MongoChunkStore } from "../../src/adapters/mongo/chunk-store.ts";
import { connectMongo } from "../../src/adapters/mongo/connection.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { MongoSessionStore } from "../../src/adapters/mongo/session-store.ts";
import { MongoTileStore } from "../../src/adapters/mongo/tile-store.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { type LeafHash, leafIndex, type SessionId, treeSize } from "../../src/core/ids.ts";
import { emptyFrontier, type Frontier, rootOf } from "../../src/core/merkle/frontier.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { applyAppend, planAppend, tileKey } from "../../src/core/merkle/tiles.ts";
import { createPatience } from "../../src/pipeline/patience.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import type { TileRecord, TileStore } from "../../src/pipeline/ports.ts";
import { proveConsistency, proveInclusion } from "../../src/pipeline/prove.ts";
import type { ChunkRecord } from "../../src/schema/record.ts";
import { measureVerify, type VerifyFigures } from "./verify.ts";

export interface TreeFigures extends VerifyFigures {
  /** One leaf's way into the tree (read head, read leaf, tiles, compare-and-swap) at 10^6 against 10^3 leaves. */
  readonly append_cost_1e6_over_1e3: number;
  readonly proof_ms_1e6: number;
  /** Tiles that one proof read, at most: inclusion in the head or at an earlier size, consistency of two sizes. */
  readonly proof_tile_reads_1e6: number;
}

const APPENDS = 200;
const PROOFS = 100;
const BATCH_LEAVES = 256;

export async function measureTree(
  mongodbUrl: string,
  { full }: { readonly full: boolean },
): Promise<TreeFigures> {
  const mongo = await connectMongo({ url: withDatabase(mongodbUrl, "lucid_bench_tree"), appName: "bench" });
  try {
    await ensureIndexes(mongo);
    const tiles = new MongoTileStore(mongo);
    const stores = {
      sessions: new MongoSessionStore(mongo),
      chunks: new MongoChunkStore(mongo),
      tiles,
      patience: createPatience(createSystemClock(), { report: () => undefined }),
      observer: { report: () => undefined },
    };
    const large = await makeSession(stores, "sess-large", 1_000_000);
    const small = await makeSession(stores, "sess-small", 1_000);
    // In turns, so that a machine that slows down slows both.
    const ratios: number[] = [];
    for (let round = 0; round < 5; round++) {
      const atSmall = await appendMs(stores, small, APPENDS / 5);
      const atLarge = await appendMs(stores, large, APPENDS / 5);
      ratios.push(atLarge / atSmall);
    }
    const proof = await measureProofs(stores, large);
    return {
      append_cost_1e6_over_1e3: median(ratios),
      proof_ms_1e6: proof.ms,
      proof_tile_reads_1e6: proof.tileReadsMax,
      ...(await measureVerify(full ? 100_000 : 20_000)),
    };
  } finally {
    await mongo.db.dropDatabase();
    await mongo.close();
  }
}

interface Stores {
  readonly sessions: MongoSessionStore;
  readonly chunks: MongoChunkStore;
  readonly tiles: TileStore;
  readonly patience: ReturnType<typeof createPatience>;
  readonly observer: { report(): void };
}

interface Made {
  readonly id: SessionId;
  size: number;
}

/** A session of `size` leaves as the pipeline would have left it: tiles and head; chunk documents of the last tile only. */
async function makeSession(stores: Stores, name: string, size: number): Promise<Made> {
  const id = name as SessionId;
  const hasher = treeHasher("blake3");
  const record = await stores.sessions.create({
    id,
    hashAlgorithm: "blake3",
    key: { keyVersion: 1, kekVersion: 1, wrapped: new Uint8Array(72) },
    createdAt: new Date(),
  });
  let frontier: Frontier = emptyFrontier();
  const written = new Map<string, TileRecord>();
  for (let next = 0; next < size; ) {
    const leaves = Math.min(BATCH_LEAVES, size - next);
    const plan = planAppend(treeSize(next), leaves);
    const hashes = Array.from({ length: leaves }, (_, at) => leafHashOf(next + at));
    const appended = applyAppend(
      frontier,
      { from: plan.leavesNeededFrom, hashes },
      (level, n) => written.get(tileKey(level, n))?.hashes,
      hasher,
    );
    for (const tile of appended.tileWrites) written.set(tileKey(tile.level, tile.n), tile);
    frontier = appended.frontier;
    next += leaves;
  }
  const all = [...written.values()];
  for (let at = 0; at < all.length; at += 256) await stores.tiles.write(id, all.slice(at, at + 256));
  for (let index = size - (size % 256); index < size; index++) await stores.chunks.insert(chunkOf(id, index));
  await stores.sessions.replace(id, record.version, {
    kind: "grow",
    tree: { size: treeSize(size), frontier: frontier.hashes, root: rootOf(frontier, hasher) },
    addedOriginalBytes: 0,
    addedStoredBytes: 0,
  });
  return { id, size };
}

async function appendMs(stores: Stores, session: Made, appends: number): Promise<number> {
  const signal = new AbortController().signal;
  let ms = 0;
  for (let index = 0; index < appends; index++) {
    await stores.chunks.insert(chunkOf(session.id, session.size));
    const startedMs = performance.now();
    const record = await integrate(
      { ...stores, growth: new OwnGrowth(createSystemClock()) },
      session.id,
      signal,
    );
    ms += performance.now() - startedMs;
    session.size += 1;
    if (record.tree.size !== session.size) throw new Error("the leaf did not get into the tree");
  }
  return ms / appends;
}

async function measureProofs(stores: Stores, session: Made): Promise<{ ms: number; tileReadsMax: number }> {
  let reads = 0;
  let tileReadsMax = 0;
  const counting: TileStore = {
    read(id, level, n) {
      reads += 1;
      return stores.tiles.read(id, level, n);
    },
    write: (id, tiles) => stores.tiles.write(id, tiles),
  };
  const times: number[] = [];
  for (let proof = 0; proof < PROOFS; proof++) {
    const index = leafIndex(Math.floor((proof * (session.size - 1)) / (PROOFS - 1)));
    const startedMs = performance.now();
    const readsOf = async (made: Promise<unknown>): Promise<void> => {
      await made;
      tileReadsMax = Math.max(tileReadsMax, reads);
      reads = 0;
    };
    const counted = { ...stores, tiles: counting };
    await readsOf(proveInclusion(counted, session.id, index));
    times.push(performance.now() - startedMs);
    const size = Math.floor((index + 1 + session.size) / 2);
    await readsOf(proveInclusion(counted, session.id, index, size));
    await readsOf(proveConsistency(counted, session.id, index + 1));
    await readsOf(proveConsistency(counted, session.id, index + 1, size));
  }
  return { ms: median(times), tileReadsMax };
}

function leafHashOf(index: number): LeafHash {
  const hash = Buffer.alloc(32, 0x5a);
  hash.writeUInt32BE(index);
  return hash as Uint8Array as LeafHash;
}

function chunkOf(session: SessionId, index: number): ChunkRecord {
  const bytes = new Uint8Array(32);
  return {
    sessionId: session,
    chunkId: `${session}-chunk-${index}` as ChunkRecord["chunkId"],
    index: leafIndex(index),
    blobId: `${session}:${index}:${randomBytes(4).toString("hex")}`,
    blobBlake3: bytes,
    originalBytes: 1,
    compressedBytes: 1,
    storedBytes: 61,
    codec: "none",
    level: 0,
    encryptionFormat: 1,
    keyVersion: 1,
    kekVersion: 1,
    keyCommit: bytes,
    plainMac: bytes,
    hashAlgorithm: "blake3",
    leafHash: leafHashOf(index),
    committedAt: new Date(),
    eventId: `chunk.completed.${session}.${index}`,
    eventState: "sent",
  };
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}
