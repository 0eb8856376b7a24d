import { asBuffer } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import {
  type ChunkId,
  HASH_BYTES,
  ID_PATTERN,
  isId,
  LEAF_INDEX_MAX,
  type LeafIndex,
  type SessionId,
} from "../ids.ts";

export type LeafCodec = "none" | "zstd" | "lz4" | "brotli";

/** Position = codec byte of contract §7: none 0, zstd 1, lz4 2, brotli 3. */
const CODEC_OF_BYTE: readonly LeafCodec[] = ["none", "zstd", "lz4", "brotli"];
const BYTE_OF_CODEC: Readonly<Record<LeafCodec, number>> = { none: 0, zstd: 1, lz4: 2, brotli: 3 };

/** What one leaf commits to: which chunk this is, how it was made, and which stored bytes and key it has. */
export interface Leaf {
  readonly sessionId: SessionId;
  readonly index: LeafIndex;
  readonly chunkId: ChunkId;
  readonly codec: LeafCodec;
  /** Bytes of the chunk as recorded. */
  readonly originalLength: number;
  /** Bytes of the sealed blob: salt ‖ nonce ‖ ciphertext ‖ tag. */
  readonly storedLength: number;
  /** BLAKE3 of the sealed blob, 32 bytes, whatever the tree's hash function. */
  readonly blobBlake3: Uint8Array;
  /** Contract §7, 32 bytes: binds the blob to one derived key, which AES-GCM alone does not. */
  readonly keyCommit: Uint8Array;
  /** Contract §7, 32 bytes: a keyed digest of the plaintext. */
  readonly plainMac: Uint8Array;
}

const LEAF_MAGIC = Buffer.from("LUCID-LEAF\0", "latin1");
const LEAF_VERSION = 1;
/** Magic, version, two u16 lengths, index, codec, two u64 lengths, three digests: all but the two ids. */
const FIXED_BYTES = LEAF_MAGIC.byteLength + 1 + 2 + 8 + 2 + 1 + 8 + 8 + 3 * HASH_BYTES;

function writeU64(target: Buffer, value: number, offset: number): number {
  target.writeUInt32BE(Math.floor(value / 2 ** 32), offset);
  return target.writeUInt32BE(value % 2 ** 32, offset + 4);
}

/** Ids are ASCII by their pattern, so that characters are bytes. */
function writeId(target: Buffer, id: string, offset: number): number {
  const start = target.writeUInt16BE(id.length, offset);
  return start + target.write(id, start, "latin1");
}

function requireEncodable(leaf: Leaf): void {
  const lengths = [leaf.originalLength, leaf.storedLength];
  const digests = [leaf.blobBlake3, leaf.keyCommit, leaf.plainMac];
  const sound =
    isId(leaf.sessionId) &&
    isId(leaf.chunkId) &&
    Object.hasOwn(BYTE_OF_CODEC, leaf.codec) &&
    Number.isInteger(leaf.index) &&
    leaf.index >= 0 &&
    leaf.index <= LEAF_INDEX_MAX &&
    lengths.every((length) => Number.isSafeInteger(length) && length >= 0) &&
    digests.every((digest) => digest.byteLength === HASH_BYTES);
  if (!sound) throw new LucidError("INTERNAL", "a leaf has a field outside the limits of contract §8");
}

/**
 * Contract §8, big-endian: `"LUCID-LEAF\0" ‖ u8 1 ‖ u16 len ‖ session_id ‖ u64 index ‖ u16 len ‖ chunk_id ‖ u8 codec ‖
 * u64 original_len ‖ u64 stored_len ‖ blake3(blob) ‖ key_commit ‖ plain_mac`. Throws INTERNAL for a field that the
 * format can't hold.
 */
export function encodeLeaf(leaf: Leaf): Uint8Array {
  requireEncodable(leaf);
  // From Node's pool, eight times as fast as memory of its own: leaves are hashed and dropped, not sent to a thread.
  const bytes = Buffer.allocUnsafe(FIXED_BYTES + leaf.sessionId.length + leaf.chunkId.length);
  let offset = LEAF_MAGIC.copy(bytes);
  offset = bytes.writeUInt8(LEAF_VERSION, offset);
  offset = writeId(bytes, leaf.sessionId, offset);
  offset = writeU64(bytes, leaf.index, offset);
  offset = writeId(bytes, leaf.chunkId, offset);
  offset = bytes.writeUInt8(BYTE_OF_CODEC[leaf.codec], offset);
  offset = writeU64(bytes, leaf.originalLength, offset);
  offset = writeU64(bytes, leaf.storedLength, offset);
  bytes.set(leaf.blobBlake3, offset);
  bytes.set(leaf.keyCommit, offset + HASH_BYTES);
  bytes.set(leaf.plainMac, offset + 2 * HASH_BYTES);
  return bytes;
}

/** Reads fields in order; every read is checked against the end, and nothing may be left over. */
class LeafReader {
  readonly #bytes: Buffer;
  #offset = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = asBuffer(bytes);
  }

  take(length: number): Buffer {
    const end = this.#offset + length;
    if (end > this.#bytes.byteLength) throw malformed("it is cut short");
    const part = this.#bytes.subarray(this.#offset, end);
    this.#offset = end;
    return part;
  }

  u8(): number {
    return this.take(1).readUInt8();
  }

  u64(): number {
    const value = Number(this.take(8).readBigUInt64BE());
    if (!Number.isSafeInteger(value)) throw malformed("a number is above 2^53 - 1");
    return value;
  }

  id(): string {
    const text = this.take(this.take(2).readUInt16BE()).toString("latin1");
    if (!ID_PATTERN.test(text)) throw malformed("an id is not of the id pattern");
    return text;
  }

  /** A copy: the caller's buffer may be reused. */
  digest(): Uint8Array {
    return new Uint8Array(this.take(HASH_BYTES));
  }

  requireEnd(): void {
    if (this.#offset !== this.#bytes.byteLength) throw malformed("bytes follow its end");
  }
}

function malformed(what: string): LucidError {
  return new LucidError("PROOF_INVALID", `not a leaf of contract §8: ${what}`);
}

function readCodec(reader: LeafReader): LeafCodec {
  const codec = CODEC_OF_BYTE[reader.u8()];
  if (codec === undefined) throw malformed("unknown codec");
  return codec;
}

function readIndex(reader: LeafReader): LeafIndex {
  const index = reader.u64();
  if (index > LEAF_INDEX_MAX) throw malformed("the index is above 2^32 - 1");
  return index as LeafIndex;
}

/** The inverse of encodeLeaf and nothing more: every accepted input is its own re-encoding. Throws PROOF_INVALID. */
export function decodeLeaf(bytes: Uint8Array): Leaf {
  const reader = new LeafReader(bytes);
  if (!reader.take(LEAF_MAGIC.byteLength).equals(LEAF_MAGIC))
    throw malformed("it doesn't begin with LUCID-LEAF");
  if (reader.u8() !== LEAF_VERSION) throw malformed("unknown version");
  // Properties of a literal are evaluated in order, which is the order of the fields.
  const leaf: Leaf = {
    sessionId: reader.id() as SessionId,
    index: readIndex(reader),
    chunkId: reader.id() as ChunkId,
    codec: readCodec(reader),
    originalLength: reader.u64(),
    storedLength: reader.u64(),
    blobBlake3: reader.digest(),
    keyCommit: reader.digest(),
    plainMac: reader.digest(),
  };
  reader.requireEnd();
  return leaf;
}
