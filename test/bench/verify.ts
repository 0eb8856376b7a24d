import { availableParallelism } from "node:os";
import { CpuThreads } from "../../src/adapters/threads/cpu-threads.ts";
import { LineThreads } from "../../src/adapters/threads/line-threads.ts";
import { canonicalChunkId, type LeafHash, leafIndex, type SessionId } from "../../src/core/ids.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { encodeLeaf } from "../../src/core/merkle/leaf.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import { OpeningKeys } from "../../src/pipeline/opening-keys.ts";
import { type ManifestFolder, openingBlobCheck, verifySession } from "../../src/pipeline/verify-session.ts";
import { writeManifest } from "../../src/pipeline/write-manifest.ts";
import type { ChunkRecord } from "../../src/schema/record.ts";
import { MemoryChunkStore } from "../support/memory/chunk-store.ts";
import { MemoryManifestFiles, MemoryManifestStore } from "../support/memory/manifest-store.ts";
import { MemorySessionStore } from "../support/memory/session-store.ts";
import { MemoryTileStore } from "../support/memory/tile-store.ts";
import {
  impatient,
  KEY_RING,
  NEVER,
  PINNED_KEY,
  recordSession,
  SIGNING_KEY,
  silent,
} from "../support/recorded-session.ts";
import { sampleChunk } from "./sample-data.ts";

export interface VerifyFigures {
  /** Without data: signature, checkpoint, every line of the chunks file, the root. */
  readonly verify_chunks_per_s: number;
  /** Heap and buffers that writing the manifest of a long session took at its highest, MiB. */
  readonly sealing_memory_mb: number;
  /** `verify --data` against opening the same blobs and nothing else, both in all CPU threads: rates. */
  readonly verify_data_over_open: number;
}

const DATA_CHUNKS = 96;
const CHUNK_BYTES = 1_048_576;
const ROUNDS = 5;

export async function measureVerify(chunks: number): Promise<VerifyFigures> {
  const long = await writeLongManifest(chunks);
  const seconds: number[] = [];
  const threads = new LineThreads(availableParallelism());
  for (let round = 0; round < ROUNDS; round++) {
    const startedMs = performance.now();
    // As the command does it for a session of this length.
    const verdict = await verifySession(long.manifest, long.folder, {
      pinnedKeys: [PINNED_KEY],
      checkLines: (request) => threads.check(request),
    });
    seconds.push((performance.now() - startedMs) / 1000);
    if (!verdict.ok) throw new Error(`refused: ${verdict.refusal.reason}`);
  }
  await threads.close();
  return {
    verify_chunks_per_s: chunks / median(seconds),
    sealing_memory_mb: long.memoryMb,
    verify_data_over_open: await measureData(),
  };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

function folderOf(files: ReadonlyMap<string, Uint8Array>): ManifestFolder {
  return {
    read: async (name) => files.get(name),
    async *stream(name) {
      const bytes = files.get(name);
      if (bytes === undefined) return;
      for (let at = 0; at < bytes.byteLength; at += CHUNK_BYTES) {
        yield bytes.subarray(at, at + CHUNK_BYTES);
      }
    },
  };
}

/** A session with many chunks that were never sealed: their documents are all that a manifest is made of. */
async function writeLongManifest(count: number) {
  const id = "sess-long" as SessionId;
  const chunks = new MemoryChunkStore();
  const sessions = new MemorySessionStore();
  const tiles = new MemoryTileStore();
  const at = new Date(1_700_000_000_000);
  const wrapped = new Uint8Array(72);
  await sessions.create({
    id,
    hashAlgorithm: "blake3",
    key: { keyVersion: 1, kekVersion: 1, wrapped },
    createdAt: at,
  });
  for (let index = 0; index < count; index++) await chunks.insert(documentOf(id, index, at));
  const ports = {
    sessions,
    chunks,
    tiles,
    observer: silent,
    patience: impatient,
    growth: new OwnGrowth(createSystemClock()),
  };
  const { version } = await integrate(ports, id, NEVER);
  const finalize = { manifestType: "session_recording" };
  await sessions.replace(id, version, { kind: "propose-count", count, finalize });
  await sessions.replace(id, version + 1, { kind: "confirm-count" });
  await sessions.replace(id, version + 2, { kind: "seal", at });
  const session = await sessions.find(id);
  if (session === undefined) throw new Error("the session was created above");
  const memory = new MemoryPeak();
  const discarded = {
    write: async (_name: string, content: Uint8Array | AsyncIterable<Uint8Array>) => drain(content),
  };
  const clock = { now: () => at, monotonicMs: () => performance.now(), sleep: async () => undefined };
  const manifestPorts = { ...ports, signingKey: SIGNING_KEY, clock };
  await writeManifest(
    { ...manifestPorts, manifests: new MemoryManifestStore(), files: discarded },
    session,
    NEVER,
  );
  const memoryMb = memory.stop();
  const files = new MemoryManifestFiles();
  const current = (await sessions.find(id)) ?? session;
  const { text } = await writeManifest(
    { ...manifestPorts, manifests: new MemoryManifestStore(), files },
    current,
    NEVER,
  );
  return { manifest: new TextEncoder().encode(text), folder: folderOf(files.files), memoryMb };
}

async function drain(content: Uint8Array | AsyncIterable<Uint8Array>): Promise<"written"> {
  if (!(content instanceof Uint8Array)) for await (const _part of content);
  return "written";
}

class MemoryPeak {
  readonly #base: number;
  readonly #timer: NodeJS.Timeout;
  #peak = 0;

  constructor() {
    globalThis.gc?.();
    this.#base = MemoryPeak.#now();
    this.#timer = setInterval(() => this.#look(), 5);
  }

  stop(): number {
    this.#look();
    clearInterval(this.#timer);
    return Math.max(0, this.#peak - this.#base) / 2 ** 20;
  }

  #look(): void {
    this.#peak = Math.max(this.#peak, MemoryPeak.#now());
  }

  static #now(): number {
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  }
}

function documentOf(session: SessionId, index: number, at: Date): ChunkRecord {
  const digest = (label: number): Uint8Array => {
    const bytes = Buffer.alloc(32, label);
    bytes.writeUInt32BE(index);
    return bytes;
  };
  const leaf = {
    sessionId: session,
    index: leafIndex(index),
    chunkId: canonicalChunkId(session, leafIndex(index)),
    codec: "zstd" as const,
    blobBlake3: digest(1),
    keyCommit: digest(2),
    plainMac: digest(3),
  };
  const sizes = { originalLength: CHUNK_BYTES, storedLength: 262_204 };
  const leafHash: LeafHash = treeHasher("blake3").leaf(encodeLeaf({ ...leaf, ...sizes }));
  return {
    ...leaf,
    blobId: `${session}:${index}:a1`,
    originalBytes: sizes.originalLength,
    compressedBytes: 262_144,
    storedBytes: sizes.storedLength,
    level: 3,
    encryptionFormat: 1,
    keyVersion: 1,
    kekVersion: 1,
    hashAlgorithm: "blake3",
    leafHash,
    committedAt: at,
    eventId: `chunk.completed.${session}.${index}`,
    eventState: "sent",
  };
}

/** Rates of verifying with data and of opening alone, in turns; the median of the ratios. */
async function measureData(): Promise<number> {
  const payloads = Array.from({ length: DATA_CHUNKS }, (_, index) =>
    sampleChunk("events", CHUNK_BYTES, index),
  );
  const recorded = await recordSession(payloads, { codecs: ["zstd"] });
  const threads = new CpuThreads({ threads: availableParallelism(), timeoutMs: 30_000 });
  const manifest = recorded.files.get(recorded.names.manifest) ?? new Uint8Array(0);
  // Opening takes the blob's memory over: each time a copy, on both sides.
  const read = async ({ index }: { readonly index: number }) => new Uint8Array(recorded.blobs[index] ?? []);
  const ports = { threads, keyRing: KEY_RING, session: recorded.record, signal: NEVER };
  const verifyAll = async (): Promise<void> => {
    const verdict = await verifySession(manifest, folderOf(recorded.files), {
      pinnedKeys: [PINNED_KEY],
      checkBlob: openingBlobCheck(read, ports),
    });
    if (!verdict.ok) throw new Error(`refused: ${verdict.refusal.reason}`);
  };
  const openAll = async (): Promise<void> => {
    const keys = new OpeningKeys(threads, KEY_RING, recorded.record);
    let next = 0;
    const run = async (): Promise<void> => {
      for (let chunk = recorded.chunks[next++]; chunk !== undefined; chunk = recorded.chunks[next++]) {
        const blob = await read(chunk);
        const { key, plainMacKey } = await keys.forBlob(chunk.keyVersion, blob);
        await threads.open({ ...chunk, originalLength: chunk.originalBytes, blob, key, plainMacKey }, NEVER);
      }
    };
    await Promise.all(Array.from({ length: 8 }, run));
  };
  try {
    const ratios: number[] = [];
    for (let round = 0; round <= ROUNDS; round++) {
      const openMs = await timeMs(openAll);
      const verifyMs = await timeMs(verifyAll);
      // The first round compiles.
      if (round > 0) ratios.push(openMs / verifyMs);
    }
    return median(ratios);
  } finally {
    await threads.close();
  }
}

async function timeMs(work: () => Promise<void>): Promise<number> {
  const startedMs = performance.now();
  await work();
  return performance.now() - startedMs;
}
