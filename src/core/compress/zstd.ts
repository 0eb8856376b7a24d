import zstd from "zstd-napi/binding.js";
import { decodeFailed, lengthMismatch } from "./codec.ts";
import type { Scratch } from "../scratch.ts";

// The binding rather than the package's Compressor and Decompressor: those allocate a new output for each call,
// and their `decompress` allocates whatever size the frame claims.

/** RFC 8878 §3.1.1. */
const MAGIC = 0xfd2fb528;
const MAGIC_BYTES = 4;
const CHECKSUM_BYTES = 4;
const BLOCK_HEADER_BYTES = 3;
const CHECKSUM_FLAG = 0x04;
const SINGLE_SEGMENT_FLAG = 0x20;
const RESERVED_BIT = 0x08;
const DICTIONARY_ID_MASK = 0x03;
const BLOCK_RLE = 1;
const BLOCK_RESERVED = 3;

// One of each per thread: a context is a megabyte of tables. Each call is a whole frame, so no state passes on.
let compressor: { readonly context: zstd.CCtx; level: number } | undefined;
let decompressor: zstd.DCtx | undefined;

function compressorFor(level: number): zstd.CCtx {
  if (compressor === undefined) {
    const context = new zstd.CCtx();
    context.setParameter(zstd.CParameter.checksumFlag, 1);
    context.setParameter(zstd.CParameter.contentSizeFlag, 1);
    compressor = { context, level: Number.NaN };
  }
  if (compressor.level !== level) {
    compressor.context.setParameter(zstd.CParameter.compressionLevel, level);
    compressor.level = level;
  }
  return compressor.context;
}

/** One frame with content size and checksum, in `scratch`. */
export function zstdCompress(bytes: Uint8Array, level: number, scratch: Scratch): Uint8Array {
  const target = scratch.take(zstd.compressBound(bytes.byteLength));
  return target.subarray(0, compressorFor(level).compress2(target, bytes));
}

/**
 * Decodes exactly one frame of exactly `originalLength` bytes into `scratch`. The frame is walked first, because the
 * decoder itself would skip skippable frames and go on into a second one. Throws DECODE_FAILED, DECODE_LENGTH_MISMATCH.
 */
export function zstdDecompress(bytes: Uint8Array, originalLength: number, scratch: Scratch): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const header = readFrameHeader(view);
  if (header.contentSize !== originalLength) throw lengthMismatch("zstd", originalLength);
  if (endOfBlocks(view, header.length) + CHECKSUM_BYTES !== bytes.byteLength) {
    throw decodeFailed("zstd", "frame does not end where its bytes end");
  }
  const target = scratch.take(originalLength);
  decompressor ??= new zstd.DCtx();
  let length: number;
  try {
    length = decompressor.decompress(target, bytes);
  } catch (cause) {
    throw decodeFailed("zstd", "frame is damaged", cause);
  }
  if (length !== originalLength) throw lengthMismatch("zstd", originalLength);
  return target;
}

/** RFC 8878 §3.1.1.1. Refuses what this program never writes: no checksum, no content size, a dictionary. */
function readFrameHeader(view: DataView): { readonly length: number; readonly contentSize: number } {
  const descriptorAt = MAGIC_BYTES;
  if (view.byteLength <= descriptorAt || view.getUint32(0, true) !== MAGIC) {
    throw decodeFailed("zstd", "not a Zstandard frame");
  }
  const descriptor = view.getUint8(descriptorAt);
  if ((descriptor & (RESERVED_BIT | DICTIONARY_ID_MASK)) !== 0 || (descriptor & CHECKSUM_FLAG) === 0) {
    throw decodeFailed("zstd", "frame has a dictionary, a reserved bit, or no checksum");
  }
  const singleSegment = (descriptor & SINGLE_SEGMENT_FLAG) !== 0;
  const sizeFlag = descriptor >>> 6;
  if (sizeFlag === 0 && !singleSegment) throw decodeFailed("zstd", "frame does not say its content size");
  const sizeAt = descriptorAt + 1 + (singleSegment ? 0 : 1);
  const length = sizeAt + 2 ** sizeFlag;
  if (length > view.byteLength) throw decodeFailed("zstd", "frame header is cut off");
  return { length, contentSize: readContentSize(view, sizeAt, sizeFlag) };
}

function readContentSize(view: DataView, at: number, sizeFlag: number): number {
  switch (sizeFlag) {
    case 0:
      return view.getUint8(at);
    case 1:
      return view.getUint16(at, true) + 256;
    case 2:
      return view.getUint32(at, true);
    default:
      return Number(view.getBigUint64(at, true));
  }
}

/** RFC 8878 §3.1.1.2: the offset after the last block. */
function endOfBlocks(view: DataView, start: number): number {
  let at = start;
  // Each turn goes at least three bytes forward, so the loop is bounded by the input.
  for (;;) {
    if (at + BLOCK_HEADER_BYTES > view.byteLength) throw decodeFailed("zstd", "frame is cut off");
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    const type = (header >>> 1) & 3;
    if (type === BLOCK_RESERVED) throw decodeFailed("zstd", "block of the reserved type");
    at += BLOCK_HEADER_BYTES + (type === BLOCK_RLE ? 1 : header >>> 3);
    if ((header & 1) === 1) return at;
  }
}
