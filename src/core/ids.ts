import { LucidError } from "./errors.ts";

declare const brand: unique symbol;
type Brand<Base, Name extends string> = Base & { readonly [brand]: Name };

/** `^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`: safe as a file name, a Redis key part and a MongoDB `_id` part. */
export type SessionId = Brand<string, "SessionId">;
/** Same alphabet as a session id; canonical form `{session_id}-chunk-{index:06d}`. */
export type ChunkId = Brand<string, "ChunkId">;
/** 0 … 2^32-1; equal to the chunk index, dense. */
export type LeafIndex = Brand<number, "LeafIndex">;
/** Number of leaves, 0 … 2^32. */
export type TreeSize = Brand<number, "TreeSize">;
/** 32 bytes, H(0x00 ‖ leaf). */
export type LeafHash = Brand<Uint8Array, "LeafHash">;
/** 32 bytes, H(0x01 ‖ left ‖ right), or a leaf hash that stands as a node. */
export type NodeHash = Brand<Uint8Array, "NodeHash">;

export const ID_PATTERN: RegExp = /^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$/;
export const LEAF_INDEX_MAX = 0xffff_ffff;
export const HASH_BYTES = 32;

export function isId(text: unknown): text is string {
  return typeof text === "string" && ID_PATTERN.test(text);
}

export function sessionId(text: string): SessionId {
  if (!isId(text))
    throw new LucidError("JOB_INVALID", "session_id must match ^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$");
  return text as SessionId;
}

export function chunkId(text: string): ChunkId {
  if (!isId(text))
    throw new LucidError("JOB_INVALID", "chunk_id must match ^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$");
  return text as ChunkId;
}

export function leafIndex(value: number): LeafIndex {
  if (!Number.isInteger(value) || value < 0 || value > LEAF_INDEX_MAX) {
    throw new LucidError("JOB_INVALID", "chunk_index must be an integer from 0 to 4294967295");
  }
  return value as LeafIndex;
}

export function treeSize(value: number): TreeSize {
  if (!Number.isInteger(value) || value < 0 || value > LEAF_INDEX_MAX + 1) {
    throw new LucidError("PROOF_INVALID", "tree size must be an integer from 0 to 4294967296");
  }
  return value as TreeSize;
}

/** `{session_id}-chunk-{index:06d}`; the session id is cut so that the whole stays an id of 100 characters. */
export function canonicalChunkId(session: SessionId, index: LeafIndex): ChunkId {
  const suffix = `-chunk-${String(index).padStart(6, "0")}`;
  return `${session.slice(0, 100 - suffix.length)}${suffix}` as ChunkId;
}
