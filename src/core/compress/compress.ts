import { brotliCompress, brotliDecompress } from "./brotli.ts";
import { type CodecName, decodeFailed, lengthMismatch, levelFor } from "./codec.ts";
import { lz4Compress, lz4Decompress } from "./lz4.ts";
import { Scratch } from "../scratch.ts";
import { zstdCompress, zstdDecompress } from "./zstd.ts";

export { type CodecName, levelFor, levelRange } from "./codec.ts";

/** Above this no recorded length is believed. Chunks are far smaller; it bounds what a forged record can allocate. */
export const ORIGINAL_BYTES_MAX: number = 2 ** 30;

export interface CompressionOptions {
  readonly algorithm: CodecName;
  readonly level: number;
  /** Below this many bytes the chunk is stored as it is. */
  readonly thresholdBytes: number;
}

export interface CompressedChunk {
  readonly codec: CodecName;
  /** The input itself when `codec` is `none`. */
  readonly bytes: Uint8Array;
}

/**
 * Contract §6. Below the threshold, or when the result would not be smaller, the codec is `none`.
 * Throws JOB_INVALID for a level that the codec doesn't have. Given a `scratch`, the result lies in it and lasts until
 * its next use; without, the result is the caller's own.
 */
export function compressChunk(
  bytes: Uint8Array,
  options: CompressionOptions,
  scratch?: Scratch,
): CompressedChunk {
  const level = levelFor(options.algorithm, options.level);
  const stored: CompressedChunk = { codec: "none", bytes };
  if (options.algorithm === "none" || bytes.byteLength < options.thresholdBytes) return stored;
  const encoded = encode(bytes, options.algorithm, level, scratch ?? new Scratch());
  if (encoded.byteLength >= bytes.byteLength) return stored;
  return { codec: options.algorithm, bytes: scratch === undefined ? new Uint8Array(encoded) : encoded };
}

function encode(
  bytes: Uint8Array,
  algorithm: Exclude<CodecName, "none">,
  level: number,
  scratch: Scratch,
): Uint8Array {
  switch (algorithm) {
    case "zstd":
      return zstdCompress(bytes, level, scratch);
    case "lz4":
      return lz4Compress(bytes, scratch);
    case "brotli":
      return brotliCompress(bytes, level);
  }
}

/**
 * The `originalLength` bytes that were compressed; no input makes it allocate more than that and a constant. Throws
 * DECODE_FAILED for damaged, truncated or trailing bytes, DECODE_LENGTH_MISMATCH for another length. Given a `scratch`,
 * the result may lie in it and lasts until its next use.
 */
export function decompressChunk(
  codec: CodecName,
  bytes: Uint8Array,
  originalLength: number,
  scratch: Scratch = new Scratch(),
): Uint8Array {
  if (!Number.isInteger(originalLength) || originalLength < 0 || originalLength > ORIGINAL_BYTES_MAX) {
    throw decodeFailed(codec, `recorded length is not an integer from 0 to ${ORIGINAL_BYTES_MAX}`);
  }
  switch (codec) {
    case "none":
      if (bytes.byteLength !== originalLength) throw lengthMismatch(codec, originalLength);
      return bytes;
    case "zstd":
      return zstdDecompress(bytes, originalLength, scratch);
    case "lz4":
      return lz4Decompress(bytes, originalLength, scratch);
    case "brotli":
      return brotliDecompress(bytes, originalLength);
  }
}
