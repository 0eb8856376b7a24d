import {
  canonicalChunkId,
  type LeafHash,
  type LeafIndex,
  type NodeHash,
  type SessionId,
  type TreeSize,
} from "../../../src/core/ids.ts";
import type { NewSession, TileRecord } from "../../../src/pipeline/ports.ts";
import type { ChunkRecord, TreeHead } from "../../../src/schema/record.ts";

/** Well-formed records for tests of the stores; what the bytes mean doesn't matter to a store. */

const HASH_BYTES = 32;
const COMMITTED_AT = new Date("2026-01-02T03:04:05.678Z");

export function bytesOf(fill: number, length: number = HASH_BYTES): Uint8Array {
  return new Uint8Array(length).fill(fill);
}

export function newSession(id: SessionId, change: Partial<NewSession> = {}): NewSession {
  return {
    id,
    hashAlgorithm: "blake3",
    key: { keyVersion: 1, kekVersion: 1, wrapped: bytesOf(7, 60) },
    createdAt: new Date("2026-01-02T03:04:05.006Z"),
    ...change,
  };
}

export function chunk(session: SessionId, index: number, change: Partial<ChunkRecord> = {}): ChunkRecord {
  const leaf = index as LeafIndex;
  return {
    sessionId: session,
    chunkId: canonicalChunkId(session, leaf),
    index: leaf,
    blobId: `${session}:${index}:a1`,
    blobBlake3: bytesOf(1),
    originalBytes: 1_048_576,
    compressedBytes: 400_000,
    storedBytes: 400_060,
    codec: "zstd",
    level: 3,
    encryptionFormat: 1,
    keyVersion: 1,
    kekVersion: 1,
    keyCommit: bytesOf(2),
    plainMac: bytesOf(3),
    hashAlgorithm: "blake3",
    leafHash: bytesOf(index % 256) as LeafHash,
    committedAt: COMMITTED_AT,
    eventId: `${session}.chunk.${index}`,
    eventState: "pending",
    ...change,
  };
}

export function treeHead(size: number, fill = size % 256): TreeHead {
  return {
    size: size as TreeSize,
    frontier: [bytesOf(fill) as NodeHash, bytesOf(fill + 1) as NodeHash],
    root: bytesOf(fill + 2) as NodeHash,
  };
}

export function tile(level: number, n: number, width: number, fill = width % 256): TileRecord {
  return { level, n, width, hashes: bytesOf(fill, width * HASH_BYTES) };
}
