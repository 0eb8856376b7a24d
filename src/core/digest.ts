import { hash } from "node:crypto";
import { blake3 as nativeBlake3 } from "@napi-rs/blake-hash";

/**
 * BLAKE3, 32 bytes, by the native implementation: it reads the view in place, where a portable one would take
 * four times as long as the compression. Tests hold it against @noble/hashes.
 */
export function blake3(bytes: Uint8Array): Uint8Array {
  return nativeBlake3(bytes);
}

/** SHA-256 (FIPS 180-4), 32 bytes. */
export function sha256(bytes: Uint8Array): Uint8Array {
  return hash("sha256", bytes, "buffer");
}
