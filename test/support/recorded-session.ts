import { createPrivateKey, type KeyObject } from "node:crypto";
import { toHex, utf8 } from "../../src/core/bytes.ts";
import { canonicalJson } from "../../src/core/canonical-json.ts";
import { blake3 } from "../../src/core/digest.ts";
import { plainMacKey } from "../../src/core/encrypt/commit.ts";
import { deriveKey } from "../../src/core/encrypt/derive.ts";
import { type KeyRing, singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { makeSessionSecret, wrapSecret } from "../../src/core/encrypt/session-secret.ts";
import { canonicalChunkId, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import { openChunk, sealChunk } from "../../src/core/kernel.ts";
import { type ManifestFileNames, manifestFileNames } from "../../src/core/manifest/names.ts";
import { ed25519PublicKey } from "../../src/core/merkle/checkpoint.ts";
import type { HashAlgorithm } from "../../src/core/merkle/hash.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import type { Patience } from "../../src/pipeline/patience.ts";
import type { Clock, KernelThreads, Observer } from "../../src/pipeline/ports.ts";
import type { ManifestFolder } from "../../src/pipeline/verify-session.ts";
import { writeManifest } from "../../src/pipeline/write-manifest.ts";
import type { ChunkRecord, SessionRecord } from "../../src/schema/record.ts";
import type { Stores } from "../conformance/stores.ts";
import { MemoryBlobStore } from "./memory/blob-store.ts";
import { MemoryChunkStore } from "./memory/chunk-store.ts";
import { MemoryManifestFiles, MemoryManifestStore } from "./memory/manifest-store.ts";
import { MemorySessionStore } from "./memory/session-store.ts";
import { MemoryTileStore } from "./memory/tile-store.ts";

/** RFC 8410 §10.3: the key of the vectors too. */
export const SIGNING_KEY: KeyObject = createPrivateKey({
  key: Buffer.from("MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC", "base64"),
  format: "der",
  type: "pkcs8",
});
export const PINNED_KEY: Uint8Array = ed25519PublicKey(SIGNING_KEY);
export const KEK_TEXT = "q7Zr2vXw9LkT4mBn8sPd1fGh6jYc3aUe5iOo0RtN=";
export const KEY_RING: KeyRing = singleKeyRing(KEK_TEXT);

export const NEVER: AbortSignal = new AbortController().signal;
const AT = new Date("2026-01-02T03:04:05.678Z");
const THRESHOLD_BYTES = 64;

export const silent: Observer = { report: () => undefined };
export const impatient: Patience = (_name, _signal, operation) => operation();
const clock: Clock = { now: () => AT, monotonicMs: () => 0, sleep: async () => undefined };

/** The kernel on this thread. */
export const kernelHere: KernelThreads = {
  seal: async (request) => sealChunk(request, () => 0),
  open: async (request) => openChunk(request),
  deriveKey: async (password, salt) => deriveKey(password, salt),
};

/** Bytes that look random and are the same in every run: BLAKE3 of a counter. */
function seededRandom(seed: number): (length: number) => Uint8Array {
  let counter = 0;
  return (length) => blake3(utf8(`${seed}:${counter++}`)).slice(0, length);
}

export interface RecordedSession {
  readonly id: SessionId;
  readonly stores: {
    readonly sessions: MemorySessionStore;
    readonly chunks: MemoryChunkStore;
    readonly blobs: MemoryBlobStore;
    readonly tiles: MemoryTileStore;
  };
  readonly record: SessionRecord;
  readonly chunks: readonly ChunkRecord[];
  readonly blobs: readonly Uint8Array[];
  readonly payloads: readonly Uint8Array[];
  /** The session secret's text. */
  readonly secret: string;
  readonly names: ManifestFileNames;
  /** By name: manifest, chunks file, checkpoint, anchor file. */
  readonly files: ReadonlyMap<string, Uint8Array>;
}

export interface RecordOptions {
  readonly id?: string;
  readonly hashAlgorithm?: HashAlgorithm;
  readonly seed?: number;
  readonly codecs?: readonly ("zstd" | "lz4" | "brotli" | "none")[];
  readonly signingKey?: KeyObject;
}

/** A sealed and anchored session, made by the code that makes real ones, over the memory stores. */
export async function recordSession(
  payloads: readonly Uint8Array[],
  options: RecordOptions = {},
): Promise<RecordedSession> {
  const { hashAlgorithm = "blake3", seed = 1, codecs = ["zstd", "lz4", "brotli", "none"] } = options;
  const id = (options.id ?? "sess-1") as SessionId;
  const random = seededRandom(seed);
  const chunks = new MemoryChunkStore();
  const stores = {
    sessions: new MemorySessionStore(),
    chunks,
    blobs: new MemoryBlobStore(chunks),
    tiles: new MemoryTileStore(),
  };
  const secret = makeSessionSecret(random);
  const wrapped = wrapSecret(secret, { kek: KEY_RING.kek(1), sessionId: id, keyVersion: 1 }, random);
  const key = { keyVersion: 1, kekVersion: 1, wrapped };
  await stores.sessions.create({ id, hashAlgorithm, key, createdAt: AT });

  const salt = random(32);
  const material = { key: deriveKey(secret, salt), salt, plainMacKey: plainMacKey(secret), keyVersion: 1 };
  const records: ChunkRecord[] = [];
  const blobs: Uint8Array[] = [];
  for (const [at, payload] of payloads.entries()) {
    const index = at as LeafIndex;
    const algorithm = codecs[at % codecs.length] ?? "none";
    const level = algorithm === "zstd" ? 3 : algorithm === "brotli" ? 4 : 0;
    const sealed = sealChunk(
      {
        ...material,
        sessionId: id,
        index,
        chunkId: canonicalChunkId(id, index),
        payload,
        nonce: random(12),
        hashAlgorithm,
        compression: { algorithm, level, thresholdBytes: THRESHOLD_BYTES },
      },
      () => 0,
    );
    const record: ChunkRecord = {
      sessionId: id,
      chunkId: canonicalChunkId(id, index),
      index,
      blobId: `${id}:${index}:a1`,
      blobBlake3: sealed.blobBlake3,
      originalBytes: sealed.originalLength,
      compressedBytes: sealed.compressedLength,
      storedBytes: sealed.storedLength,
      codec: sealed.codec,
      level: sealed.level,
      encryptionFormat: 1,
      keyVersion: 1,
      kekVersion: 1,
      keyCommit: sealed.keyCommit,
      plainMac: sealed.plainMac,
      hashAlgorithm,
      leafHash: sealed.leafHash,
      ...(at % 2 === 0 ? { recordedAt: "2026-01-02T03:00:00Z" } : {}),
      committedAt: AT,
      eventId: `chunk.completed.${id}.${index}`,
      eventState: "sent",
    };
    records.push(record);
    blobs.push(sealed.blob);
    await stores.blobs.insert(record.blobId, record, sealed.blob);
    await stores.chunks.insert(record);
  }
  const { record, names, files } = await sealAndWrite(stores, id, options.signingKey ?? SIGNING_KEY);
  return { id, stores, record, chunks: records, blobs, payloads, secret, names, files };
}

async function sealAndWrite(stores: RecordedSession["stores"], id: SessionId, signingKey: KeyObject) {
  const ports = {
    ...stores,
    observer: silent,
    patience: impatient,
    growth: new OwnGrowth(createSystemClock()),
  };
  const grown = await integrate(ports, id, NEVER);
  const { size } = grown.tree;
  const finalize = { manifestType: "session_recording", ownerAddress: "Zoë €", metadata: '{"a":[1,2.5]}' };
  let { version } = grown;
  for (const change of [
    { kind: "propose-count", count: size, finalize },
    { kind: "confirm-count" },
    { kind: "seal", at: AT },
  ] as const) {
    await stores.sessions.replace(id, version++, change);
  }
  const sealed = await stores.sessions.find(id);
  if (sealed === undefined) throw new Error("the session was created above");
  const manifestFiles = new MemoryManifestFiles();
  const manifests = new MemoryManifestStore();
  await writeManifest({ ...ports, manifests, files: manifestFiles, signingKey, clock }, sealed, NEVER);
  const names = manifestFileNames(id, "session_recording");
  await manifestFiles.write(names.anchor, anchorFile(sealed));
  const record = await stores.sessions.find(id);
  if (record === undefined) throw new Error("the session was created above");
  return { record, names, files: manifestFiles.files };
}

/** As anchor-session.ts writes it. */
function anchorFile({ id, tree, hashAlgorithm }: SessionRecord): Uint8Array {
  const content = {
    session_id: id,
    tree_size: tree.size,
    root_hash: toHex(tree.root ?? new Uint8Array(0)),
    hash_algorithm: hashAlgorithm,
    anchoring_id: "anc-1",
    transaction: "0xfeed",
    block: 812,
    anchored_at: AT.toISOString(),
  };
  return utf8(canonicalJson("anchor", content, { bytesMax: 16_384, depthMax: 4 }));
}

/** The session as it is in MongoDB while it is open: chunks, blobs, tiles, head, and its signed checkpoint. */
export async function copyToStores(
  session: RecordedSession,
  stores: Pick<Stores, "sessions" | "chunks" | "blobs" | "tiles">,
): Promise<void> {
  const { record, chunks, blobs, id } = session;
  const [key] = record.keys;
  if (key === undefined || record.checkpoint === undefined) throw new Error("a recorded session has both");
  await stores.sessions.create({ id, hashAlgorithm: record.hashAlgorithm, key, createdAt: record.createdAt });
  for (const [at, chunk] of chunks.entries()) {
    await stores.blobs.insert(chunk.blobId, chunk, blobs[at] ?? new Uint8Array(0));
    await stores.chunks.insert(chunk);
  }
  const grown = await integrate(
    { ...stores, observer: silent, patience: impatient, growth: new OwnGrowth(createSystemClock()) },
    id,
    NEVER,
  );
  await stores.sessions.replace(id, grown.version, { kind: "checkpoint", checkpoint: record.checkpoint });
}

/** After copyToStores, which leaves it open. */
export async function sealInStores(
  { id, record }: RecordedSession,
  { sessions }: Pick<Stores, "sessions">,
): Promise<void> {
  const { finalize, sealedAt } = record;
  if (finalize === undefined || sealedAt === undefined) throw new Error("a recorded session has both");
  for (const change of [
    { kind: "propose-count", count: record.tree.size, finalize },
    { kind: "confirm-count" },
    { kind: "seal", at: sealedAt },
  ] as const) {
    const version = (await sessions.find(id))?.version ?? 0;
    await sessions.replace(id, version, change);
  }
}

/** The session's files as a folder, with some of them replaced, or removed by `undefined`. */
export function folderWith(
  files: ReadonlyMap<string, Uint8Array>,
  changes: Readonly<Record<string, Uint8Array | undefined>> = {},
): ManifestFolder {
  const find = (name: string): Uint8Array | undefined =>
    Object.hasOwn(changes, name) ? changes[name] : files.get(name);
  return {
    read: async (name, bytesMax) => find(name)?.subarray(0, bytesMax + 1),
    stream(name) {
      const bytes = find(name);
      return bytes === undefined ? undefined : blocksOf(bytes);
    },
  };
}

const BLOCK_BYTES = 700;

/** Odd blocks, so that lines are cut. */
async function* blocksOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += BLOCK_BYTES) yield bytes.subarray(at, at + BLOCK_BYTES);
}

/** Compressible text of `length` bytes, another for each index. */
export function samplePayload(index: number, length: number): Uint8Array {
  return utf8(`{"event":${index},"at":"2026-01-02T03:04:05Z","text":"lorem ipsum"}\n`.repeat(length)).slice(
    0,
    length,
  );
}
