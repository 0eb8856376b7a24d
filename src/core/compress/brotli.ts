import { brotliCompressSync, brotliDecompressSync, constants } from "node:zlib";
import { decodeFailed, lengthMismatch } from "./codec.ts";

/** RFC 7932. The stream has no checksum of its own: digest and authentication tag of the blob stand for it. */
export function brotliCompress(bytes: Uint8Array, quality: number): Uint8Array {
  return brotliCompressSync(bytes, {
    params: {
      [constants.BROTLI_PARAM_QUALITY]: quality,
      [constants.BROTLI_PARAM_SIZE_HINT]: bytes.byteLength,
    },
  });
}

/** What `info: true` makes of the result; node's types say `Buffer` either way. */
interface DecodedWithEngine {
  readonly buffer: Buffer;
  readonly engine: { readonly bytesWritten: number };
}

/** Decodes exactly one stream of exactly `originalLength` bytes. Throws DECODE_FAILED, DECODE_LENGTH_MISMATCH. */
export function brotliDecompress(bytes: Uint8Array, originalLength: number): Uint8Array {
  let decoded: DecodedWithEngine;
  try {
    decoded = brotliDecompressSync(bytes, {
      maxOutputLength: Math.max(1, originalLength),
      info: true,
    }) as unknown as DecodedWithEngine;
  } catch (cause) {
    const overflow = (cause as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE";
    throw overflow
      ? lengthMismatch("brotli", originalLength)
      : decodeFailed("brotli", "stream is damaged", cause);
  }
  // node stops at the end of the stream and says nothing about what follows; the engine counts what it took in.
  if (decoded.engine.bytesWritten !== bytes.byteLength)
    throw decodeFailed("brotli", "bytes follow the stream");
  if (decoded.buffer.byteLength !== originalLength) throw lengthMismatch("brotli", originalLength);
  return decoded.buffer;
}
