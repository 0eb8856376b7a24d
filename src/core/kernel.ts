import { asBuffer, bytesEqual } from "./bytes.ts";
import {
  type CodecName,
  type CompressionOptions,
  compressChunk,
  decompressChunk,
} from "./compress/compress.ts";
import { blake3, sha256 } from "./digest.ts";
import { type ChunkIdentity, chunkAad } from "./encrypt/aad.ts";
import { keyCommit, plainMac } from "./encrypt/commit.ts";
import { open, saltOf, seal } from "./encrypt/sealed-blob.ts";
import { LucidError } from "./errors.ts";
import type { ChunkId, LeafHash, LeafIndex, SessionId } from "./ids.ts";
import { type HashAlgorithm, treeHasher } from "./merkle/hash.ts";
import { encodeLeaf } from "./merkle/leaf.ts";
import { Scratch } from "./scratch.ts";

// What a CPU thread runs. Pure: the same request gives the same result, salt and nonce are part of it.

export interface SealRequest {
  readonly sessionId: SessionId;
  readonly index: LeafIndex;
  readonly chunkId: ChunkId;
  /** The chunk as recorded. */
  readonly payload: Uint8Array;
  /** 32 bytes each, checked when present. */
  readonly declaredSha256?: Uint8Array | undefined;
  readonly declaredBlake3?: Uint8Array | undefined;
  readonly compression: CompressionOptions;
  readonly hashAlgorithm: HashAlgorithm;
  /** The session's key version, which goes into the AAD. */
  readonly keyVersion: number;
  /** 32 bytes, derived from the session secret and `salt`. */
  readonly key: Uint8Array;
  /** 32 bytes, of the epoch. */
  readonly salt: Uint8Array;
  /** 12 bytes, fresh from the CSPRNG for this call. */
  readonly nonce: Uint8Array;
  /** 32 bytes, of the session secret. */
  readonly plainMacKey: Uint8Array;
}

export const STAGES = ["digest", "compress", "seal", "verify", "hash"] as const;
export type Stage = (typeof STAGES)[number];

export interface SealedChunk {
  /** Alone in its ArrayBuffer, so that it can be transferred. */
  readonly blob: Uint8Array<ArrayBuffer>;
  readonly blobBlake3: Uint8Array;
  readonly plainMac: Uint8Array;
  readonly keyCommit: Uint8Array;
  readonly leafHash: LeafHash;
  readonly codec: CodecName;
  /** 0 when the codec is `none` or has no levels. */
  readonly level: number;
  /** Bytes as recorded; after compression; of the blob. */
  readonly originalLength: number;
  readonly compressedLength: number;
  readonly storedLength: number;
  readonly stageSeconds: Readonly<Record<Stage, number>>;
}

/** What one thread keeps between calls, so that no call allocates megabytes that live for a millisecond. */
export interface KernelScratch {
  readonly encoded: Scratch;
  readonly opened: Scratch;
  readonly decoded: Scratch;
}

export function kernelScratch(): KernelScratch {
  return { encoded: new Scratch(), opened: new Scratch(), decoded: new Scratch() };
}

/**
 * Digest → compress → seal → open again and compare → leaf hash. Throws PAYLOAD_DIGEST_MISMATCH, JOB_INVALID (level),
 * VERIFY_AFTER_SEAL_FAILED. `nowMs` is a monotonic clock; it goes into `stageSeconds` only.
 */
export function sealChunk(
  request: SealRequest,
  nowMs: () => number,
  scratch: KernelScratch = kernelScratch(),
): SealedChunk {
  const started = nowMs();
  const payloadBlake3 = checkedDigest(request);
  const digested = nowMs();
  const compressed = compressChunk(request.payload, request.compression, scratch.encoded);
  const compressedAt = nowMs();
  const identity = { ...request, codec: compressed.codec, originalLength: request.payload.byteLength };
  const blob = seal({ ...request, aad: chunkAad(identity), plaintext: compressed.bytes });
  const sealed = nowMs();
  verifySealed(request.payload, { ...identity, blob }, scratch);
  const verified = nowMs();
  const bound = bindToTree(identity, request, blob, payloadBlake3);
  const hashed = nowMs();
  return {
    blob,
    ...bound,
    codec: compressed.codec,
    level: compressed.codec === "none" ? 0 : request.compression.level,
    originalLength: request.payload.byteLength,
    compressedLength: compressed.bytes.byteLength,
    storedLength: blob.byteLength,
    stageSeconds: {
      digest: (digested - started) / 1000,
      compress: (compressedAt - digested) / 1000,
      seal: (sealed - compressedAt) / 1000,
      verify: (verified - sealed) / 1000,
      hash: (hashed - verified) / 1000,
    },
  };
}

function checkedDigest(request: SealRequest): Uint8Array {
  const digest = blake3(request.payload);
  if (request.declaredBlake3 !== undefined && !bytesEqual(digest, request.declaredBlake3)) {
    throw new LucidError("PAYLOAD_DIGEST_MISMATCH", "payload differs from its declared BLAKE3");
  }
  if (request.declaredSha256 !== undefined && !bytesEqual(sha256(request.payload), request.declaredSha256)) {
    throw new LucidError("PAYLOAD_DIGEST_MISMATCH", "payload differs from its declared SHA-256");
  }
  return digest;
}

interface SealedPlace extends ChunkIdentity {
  readonly key: Uint8Array;
  readonly blob: Uint8Array;
}

/**
 * Opens what was just sealed, decompresses it and compares it with the payload. A flaw of codec or cipher, or memory that
 * lies, shows here, while the payload still exists, and not on the day of a restore. Throws VERIFY_AFTER_SEAL_FAILED.
 */
export function verifySealed(
  payload: Uint8Array,
  place: SealedPlace,
  scratch: KernelScratch = kernelScratch(),
): void {
  let restored: Uint8Array;
  try {
    restored = openAndDecompress(place, scratch);
  } catch (cause) {
    throw new LucidError("VERIFY_AFTER_SEAL_FAILED", "sealed chunk does not open again", { cause });
  }
  // Not constant time on purpose: both sides are ours, and timingSafeEqual takes 25 times as long.
  if (asBuffer(restored).compare(payload) !== 0) {
    throw new LucidError("VERIFY_AFTER_SEAL_FAILED", "sealed chunk opens to other bytes than its payload");
  }
}

function openAndDecompress(place: SealedPlace, scratch: KernelScratch): Uint8Array {
  const encoded = open({ key: place.key, aad: chunkAad(place), blob: place.blob }, scratch.opened);
  return decompressChunk(place.codec, encoded, place.originalLength, scratch.decoded);
}

function bindToTree(
  identity: ChunkIdentity,
  request: SealRequest,
  blob: Uint8Array,
  payloadBlake3: Uint8Array,
): Pick<SealedChunk, "blobBlake3" | "keyCommit" | "plainMac" | "leafHash"> {
  const digests = {
    blobBlake3: blake3(blob),
    keyCommit: keyCommit(request.key, request.salt),
    plainMac: plainMac(request.plainMacKey, payloadBlake3),
  };
  const leaf = encodeLeaf({ ...identity, storedLength: blob.byteLength, ...digests });
  return { ...digests, leafHash: treeHasher(request.hashAlgorithm).leaf(leaf) };
}

/** A stored chunk of format 1 with what its record says about it. */
export interface OpenRequest {
  readonly sessionId: SessionId;
  readonly index: LeafIndex;
  readonly chunkId: ChunkId;
  readonly codec: CodecName;
  readonly originalLength: number;
  readonly keyVersion: number;
  readonly blob: Uint8Array;
  /** Recorded, 32 bytes each. */
  readonly blobBlake3: Uint8Array;
  readonly keyCommit: Uint8Array;
  readonly plainMac: Uint8Array;
  /** 32 bytes, derived from the session secret and the blob's salt. */
  readonly key: Uint8Array;
  readonly plainMacKey: Uint8Array;
}

export interface OpenedChunk {
  /** The chunk as recorded; alone in its ArrayBuffer. */
  readonly payload: Uint8Array<ArrayBuffer>;
}

/**
 * The chunk, after blob digest, key commitment, tag, length and plain mac agreed with the record. Throws BLOB_MALFORMED (other
 * bytes than recorded), BLOB_AUTHENTICATION_FAILED (other key, place or plaintext), DECODE_FAILED, DECODE_LENGTH_MISMATCH.
 */
export function openChunk(request: OpenRequest): OpenedChunk {
  if (!bytesEqual(blake3(request.blob), request.blobBlake3)) {
    throw new LucidError("BLOB_MALFORMED", "blob differs from its recorded BLAKE3");
  }
  if (!bytesEqual(keyCommit(request.key, saltOf(request.blob)), request.keyCommit)) {
    throw new LucidError("BLOB_AUTHENTICATION_FAILED", "key is not the one this chunk commits to");
  }
  const payload = openAndDecompress(request, kernelScratch());
  if (!bytesEqual(plainMac(request.plainMacKey, blake3(payload)), request.plainMac)) {
    throw new LucidError("BLOB_AUTHENTICATION_FAILED", "content differs from its recorded plain mac");
  }
  return { payload: inOwnBuffer(payload) };
}

/** The same bytes alone in an ArrayBuffer that can be transferred; copied only if they aren't already. */
function inOwnBuffer(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const alone = bytes.buffer instanceof ArrayBuffer && bytes.byteLength === bytes.buffer.byteLength;
  return alone ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
}
