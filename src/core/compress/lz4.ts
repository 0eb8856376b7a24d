import { compressSync, uncompressSync } from "lz4-napi";
import { asBuffer } from "../bytes.ts";
import { decodeFailed, lengthMismatch } from "./codec.ts";
import { release, type Scratch } from "../scratch.ts";
import { xxh32 } from "./xxh32.ts";

// The LZ4 frame around the library's block codec (github.com/lz4/lz4, doc/lz4_Frame_format.md). The library's own frame
// decoder has no output cap, returns 0 bytes for some truncated frames, and is five times slower.

const MAGIC = 0x184d2204;
/** Version 01, independent blocks, content size, content checksum. */
const FLAGS_WRITTEN = 0x6c;
/** What a frame must have, and may have beside that: version 01, independent blocks, content checksum. */
const FLAGS_REQUIRED = 0x64;
const FLAG_CONTENT_SIZE = 0x08;
/** Block maximum 4 MiB. */
const BLOCK_DESCRIPTOR_WRITTEN = 0x70;
const BLOCK_BYTES_MAX = 4 << 20;
const BLOCK_UNCOMPRESSED = 0x8000_0000;
const MAGIC_BYTES = 4;
const CONTENT_SIZE_BYTES = 8;
const HEADER_BYTES_WRITTEN = MAGIC_BYTES + 2 + CONTENT_SIZE_BYTES + 1;
const WORD_BYTES = 4;
/** The library puts the decoded size, u32 little-endian, before a block. */
const BLOCK_PREFIX_BYTES = 4;

/** One frame with content size and checksum, in `scratch`. */
export function lz4Compress(bytes: Uint8Array, scratch: Scratch): Uint8Array {
  const blockCount = Math.ceil(bytes.byteLength / BLOCK_BYTES_MAX);
  const bound = HEADER_BYTES_WRITTEN + bytes.byteLength + (blockCount + 2) * WORD_BYTES;
  const frame = asBuffer(scratch.take(bound));
  let at = writeHeader(frame, bytes.byteLength);
  for (let from = 0; from < bytes.byteLength; from += BLOCK_BYTES_MAX) {
    at = writeBlock(frame, at, bytes.subarray(from, from + BLOCK_BYTES_MAX));
  }
  at = frame.writeUInt32LE(0, at);
  at = frame.writeUInt32LE(xxh32(bytes), at);
  return frame.subarray(0, at);
}

function writeHeader(frame: Buffer, contentSize: number): number {
  let at = frame.writeUInt32LE(MAGIC, 0);
  at = frame.writeUInt8(FLAGS_WRITTEN, at);
  at = frame.writeUInt8(BLOCK_DESCRIPTOR_WRITTEN, at);
  at = frame.writeBigUInt64LE(BigInt(contentSize), at);
  return frame.writeUInt8(headerChecksum(frame.subarray(MAGIC_BYTES, at)), at);
}

function writeBlock(frame: Buffer, start: number, content: Uint8Array): number {
  const prefixed = compressSync(asBuffer(content));
  const block = prefixed.subarray(BLOCK_PREFIX_BYTES);
  const smaller = block.byteLength < content.byteLength;
  const data = smaller ? block : content;
  const at = frame.writeUInt32LE((data.byteLength | (smaller ? 0 : BLOCK_UNCOMPRESSED)) >>> 0, start);
  frame.set(data, at);
  const end = at + data.byteLength;
  release(prefixed);
  return end;
}

function headerChecksum(descriptor: Uint8Array): number {
  return (xxh32(descriptor) >>> 8) & 0xff;
}

/**
 * Decodes exactly one frame of exactly `originalLength` bytes into `scratch`. No block is given more room than is left,
 * so a bomb fails at the block that would overflow. Throws DECODE_FAILED, DECODE_LENGTH_MISMATCH.
 */
export function lz4Decompress(bytes: Uint8Array, originalLength: number, scratch: Scratch): Uint8Array {
  const frame = asBuffer(bytes);
  const header = readHeader(frame, originalLength);
  const target = scratch.take(originalLength);
  let at = header.length;
  let filled = 0;
  // Each turn goes at least four bytes forward, so the loop is bounded by the input.
  for (;;) {
    const word = readWord(frame, at);
    at += WORD_BYTES;
    if (word === 0) break;
    const room = target.subarray(filled, filled + header.blockBytesMax);
    const length = word % BLOCK_UNCOMPRESSED;
    if (length > frame.byteLength - at) throw decodeFailed("lz4", "frame is cut off");
    const data = frame.subarray(at, at + length);
    filled += word >= BLOCK_UNCOMPRESSED ? copyBlock(data, room) : decodeBlock(data, room);
    at += length;
  }
  if (filled !== originalLength) throw lengthMismatch("lz4", originalLength);
  if (readWord(frame, at) !== xxh32(target)) throw decodeFailed("lz4", "content checksum differs");
  if (at + WORD_BYTES !== frame.byteLength)
    throw decodeFailed("lz4", "frame does not end where its bytes end");
  return target;
}

/** Refuses what this program never writes: linked blocks, block checksums, a dictionary, no content checksum. */
function readHeader(
  frame: Buffer,
  originalLength: number,
): { readonly length: number; readonly blockBytesMax: number } {
  if (readWord(frame, 0) !== MAGIC) throw decodeFailed("lz4", "not an LZ4 frame");
  const flags = frame[MAGIC_BYTES] ?? 0;
  const blockDescriptor = frame[MAGIC_BYTES + 1] ?? 0;
  if ((flags & ~FLAG_CONTENT_SIZE) !== FLAGS_REQUIRED) {
    throw decodeFailed("lz4", "frame has no content checksum, or an option that is not used here");
  }
  const sizeCode = blockDescriptor >>> 4;
  if ((blockDescriptor & 0x0f) !== 0 || sizeCode < 4 || sizeCode > 7) {
    throw decodeFailed("lz4", "frame has an unknown block size");
  }
  const hasSize = (flags & FLAG_CONTENT_SIZE) !== 0;
  const checksumAt = MAGIC_BYTES + 2 + (hasSize ? CONTENT_SIZE_BYTES : 0);
  if (frame[checksumAt] !== headerChecksum(frame.subarray(MAGIC_BYTES, checksumAt))) {
    throw decodeFailed("lz4", "frame header is damaged or cut off");
  }
  if (hasSize && frame.readBigUInt64LE(MAGIC_BYTES + 2) !== BigInt(originalLength)) {
    throw lengthMismatch("lz4", originalLength);
  }
  return { length: checksumAt + 1, blockBytesMax: 1 << (2 * sizeCode + 8) };
}

function readWord(frame: Buffer, at: number): number {
  if (at + WORD_BYTES > frame.byteLength) throw decodeFailed("lz4", "frame is cut off");
  return frame.readUInt32LE(at);
}

function copyBlock(data: Uint8Array, room: Uint8Array): number {
  if (data.byteLength > room.byteLength) throw decodeFailed("lz4", "block is larger than the room for it");
  room.set(data);
  return data.byteLength;
}

function decodeBlock(data: Uint8Array, room: Uint8Array): number {
  if (data.byteLength > room.byteLength) throw decodeFailed("lz4", "block is larger than the room for it");
  const prefixed = Buffer.allocUnsafe(BLOCK_PREFIX_BYTES + data.byteLength);
  // The library allocates this size and fails if the block holds more: the cap.
  prefixed.writeUInt32LE(room.byteLength, 0);
  prefixed.set(data, BLOCK_PREFIX_BYTES);
  let content: Uint8Array;
  try {
    content = uncompressSync(prefixed);
  } catch (cause) {
    throw decodeFailed("lz4", "block is damaged, or holds more than the room for it", cause);
  }
  if (content.byteLength > room.byteLength) throw decodeFailed("lz4", "block is larger than the room for it");
  room.set(content);
  const length = content.byteLength;
  release(prefixed);
  release(content);
  return length;
}
