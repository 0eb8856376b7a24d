import { toHex } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import {
  type ChunkId,
  HASH_BYTES,
  LEAF_INDEX_MAX,
  type LeafHash,
  type LeafIndex,
  type SessionId,
} from "../ids.ts";
import type { TreeHasher } from "../merkle/hash.ts";
import { encodeLeaf, type LeafCodec } from "../merkle/leaf.ts";

/**
 * One chunk as the chunks file shows it: what the leaf hash is computed from, and what opens the blob for somebody
 * who has the session secret. A `ChunkRecord` is one. The KEK version is left out, because rotating a KEK must not
 * change a manifest.
 */
export interface ManifestChunk {
  readonly index: LeafIndex;
  readonly chunkId: ChunkId;
  readonly codec: LeafCodec;
  readonly level: number;
  readonly originalBytes: number;
  readonly storedBytes: number;
  readonly blobId: string;
  /** 32 bytes each. */
  readonly blobBlake3: Uint8Array;
  readonly keyCommit: Uint8Array;
  readonly plainMac: Uint8Array;
  readonly leafHash: LeafHash;
  readonly encryptionFormat: 1;
  readonly keyVersion: number;
  /** ISO 8601, as the producer wrote it. */
  readonly recordedAt?: string;
}

/** The line feed included; a line of the grammar below has at most 944. */
export const CHUNK_LINE_CHARS_MAX = 1_024;

const KEY_VERSION_MAX = 0xffff_ffff;
const LEVEL_MIN = -131_072;
const LEVEL_MAX = 22;

/**
 * The grammar of a line. Every field has one spelling and none needs an escape, so this is RFC 8785 of the object: keys
 * in order, no white space, shortest numbers. One match replaces JSON.parse, type checks and canonicalizing again,
 * which cost five times as much; tests hold it against `canonicalize`.
 */
const LINE = new RegExp(
  [
    '^{"blob_blake3":"([0-9a-f]{64})"',
    '"blob_id":"([A-Za-z0-9][A-Za-z0-9_:.-]{0,255})"',
    '"chunk_id":"([A-Za-z0-9][A-Za-z0-9_-]{0,99})"',
    '"chunk_index":(0|[1-9][0-9]{0,9})',
    '"codec":"(brotli|lz4|none|zstd)"',
    '"encryption_format":1',
    '"key_commit":"([0-9a-f]{64})"',
    '"key_version":([1-9][0-9]{0,9})',
    '"leaf_hash":"([0-9a-f]{64})"',
    '"level":(0|-?[1-9][0-9]{0,5})',
    '"original_bytes":([1-9][0-9]{0,15})',
    '"plain_mac":"([0-9a-f]{64})"(?:,"recorded_at":"([0-9][0-9T:.Z+-]{15,63})")?',
    '"stored_bytes":([1-9][0-9]{0,15})}\n$',
  ].join(","),
);

/**
 * One line of the chunks file: RFC 8785 of the chunk and a line feed. Throws MANIFEST_INVALID for a chunk whose line
 * `parseChunkLine` would refuse: what we sign must be readable.
 */
export function chunkLine(chunk: ManifestChunk): string {
  const recorded = chunk.recordedAt === undefined ? "" : `,"recorded_at":"${chunk.recordedAt}"`;
  const line =
    `{"blob_blake3":"${toHex(chunk.blobBlake3)}","blob_id":"${chunk.blobId}","chunk_id":"${chunk.chunkId}",` +
    `"chunk_index":${chunk.index},"codec":"${chunk.codec}","encryption_format":${chunk.encryptionFormat},` +
    `"key_commit":"${toHex(chunk.keyCommit)}","key_version":${chunk.keyVersion},` +
    `"leaf_hash":"${toHex(chunk.leafHash)}","level":${chunk.level},"original_bytes":${chunk.originalBytes},` +
    `"plain_mac":"${toHex(chunk.plainMac)}"${recorded},"stored_bytes":${chunk.storedBytes}}\n`;
  if (!LINE.test(line) || !inRange(chunk)) {
    throw new LucidError(
      "MANIFEST_INVALID",
      "a chunk record has a field that the chunks file can't hold; run fsck",
    );
  }
  return line;
}

/**
 * Strict inverse of chunkLine: the canonical characters and nothing else. Form and ranges only; whether the leaf hash is
 * that of the fields is ChunksTally's question. Throws MANIFEST_INVALID, and only that, for any text.
 */
export function parseChunkLine(line: string): ManifestChunk {
  const match = line.length > CHUNK_LINE_CHARS_MAX ? null : LINE.exec(line);
  if (match === null) throw malformed();
  const digests = decodeDigests(text(match[1]) + text(match[6]) + text(match[8]) + text(match[11]));
  const chunk: ManifestChunk & { recordedAt?: string } = {
    blobBlake3: digests.subarray(0, HASH_BYTES),
    blobId: text(match[2]),
    chunkId: text(match[3]) as ChunkId,
    index: Number(match[4]) as LeafIndex,
    codec: text(match[5]) as LeafCodec,
    encryptionFormat: 1,
    keyCommit: digests.subarray(HASH_BYTES, 2 * HASH_BYTES),
    keyVersion: Number(match[7]),
    leafHash: digests.subarray(2 * HASH_BYTES, 3 * HASH_BYTES) as LeafHash,
    level: Number(match[9]),
    originalBytes: Number(match[10]),
    plainMac: digests.subarray(3 * HASH_BYTES),
    storedBytes: Number(match[13]),
  };
  if (!inRange(chunk)) throw malformed();
  if (match[12] !== undefined) chunk.recordedAt = match[12];
  return chunk;
}

/** Contract §8: the hash of the leaf that this chunk's fields make in the tree of `session`. */
export function leafHashOf(session: SessionId, chunk: ManifestChunk, hasher: TreeHasher): LeafHash {
  const leaf = encodeLeaf({
    sessionId: session,
    index: chunk.index,
    chunkId: chunk.chunkId,
    codec: chunk.codec,
    originalLength: chunk.originalBytes,
    storedLength: chunk.storedBytes,
    blobBlake3: chunk.blobBlake3,
    keyCommit: chunk.keyCommit,
    plainMac: chunk.plainMac,
  });
  return hasher.leaf(leaf);
}

/** The numbers' upper ends, which the grammar gives by digits only. Digits beyond 2^53 would be rounded. */
function inRange(chunk: ManifestChunk): boolean {
  return (
    chunk.index <= LEAF_INDEX_MAX &&
    chunk.keyVersion <= KEY_VERSION_MAX &&
    chunk.level >= LEVEL_MIN &&
    chunk.level <= LEVEL_MAX &&
    Number.isSafeInteger(chunk.originalBytes) &&
    Number.isSafeInteger(chunk.storedBytes)
  );
}

function text(part: string | undefined): string {
  if (part === undefined) throw malformed();
  return part;
}

/**
 * All four in one call, which saves a third. The result lies in Node's 8 KiB pool: whoever keeps a digest or posts it to
 * a thread copies it first.
 */
function decodeDigests(hex: string): Uint8Array {
  return Buffer.from(hex, "hex");
}

function malformed(): LucidError {
  return new LucidError("MANIFEST_INVALID", "a line of the chunks file is not in its canonical form");
}
