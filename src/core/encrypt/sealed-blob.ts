import { LucidError } from "../errors.ts";
import { Scratch } from "../scratch.ts";
import { gcmDecryptInto, gcmEncryptInto, KEY_BYTES, NONCE_BYTES, TAG_BYTES } from "./aes-gcm.ts";

export const SALT_BYTES = 32;
const CIPHERTEXT_AT: number = SALT_BYTES + NONCE_BYTES;
/** What sealing adds to the plaintext's length. */
export const BLOB_OVERHEAD_BYTES: number = CIPHERTEXT_AT + TAG_BYTES;

export interface SealInput {
  /** 32 bytes, derived from the session secret and `salt` (derive.ts). */
  readonly key: Uint8Array;
  /** 32 bytes, of one epoch of one process; stored, so that a reader can derive the key. */
  readonly salt: Uint8Array;
  /** 12 bytes from the CSPRNG. An epoch ends at 2^20 chunks, where random nonces collide with odds below 2^-56. */
  readonly nonce: Uint8Array;
  readonly aad: Uint8Array;
  readonly plaintext: Uint8Array;
}

/** Contract §7: `salt(32) ‖ nonce(12) ‖ ciphertext ‖ tag(16)`, alone in an ArrayBuffer of its own, so it can be transferred. */
export function seal(input: SealInput): Uint8Array<ArrayBuffer> {
  requireLength("key", input.key, KEY_BYTES);
  requireLength("salt", input.salt, SALT_BYTES);
  requireLength("nonce", input.nonce, NONCE_BYTES);
  const blob = Buffer.allocUnsafeSlow(BLOB_OVERHEAD_BYTES + input.plaintext.byteLength);
  blob.set(input.salt, 0);
  blob.set(input.nonce, SALT_BYTES);
  gcmEncryptInto(blob.subarray(CIPHERTEXT_AT), input, input.plaintext);
  return blob;
}

export interface OpenInput {
  readonly key: Uint8Array;
  readonly aad: Uint8Array;
  readonly blob: Uint8Array;
}

/**
 * The plaintext, only after its tag was verified. Throws BLOB_MALFORMED when too short, BLOB_AUTHENTICATION_FAILED for
 * another key, another AAD (a blob of another chunk) or changed bytes. Given a `scratch`, the plaintext lies in it and lasts until its next use.
 */
export function open(input: OpenInput, scratch: Scratch = new Scratch()): Uint8Array {
  requireLength("key", input.key, KEY_BYTES);
  requireBlob(input.blob);
  const nonce = input.blob.subarray(SALT_BYTES, CIPHERTEXT_AT);
  const plaintext = scratch.take(input.blob.byteLength - BLOB_OVERHEAD_BYTES);
  const gcm = { key: input.key, nonce, aad: input.aad };
  if (!gcmDecryptInto(plaintext, gcm, input.blob.subarray(CIPHERTEXT_AT))) {
    throw new LucidError(
      "BLOB_AUTHENTICATION_FAILED",
      "blob does not open: it was changed, belongs to another chunk, or the key is another one",
    );
  }
  return plaintext;
}

/** The first 32 bytes, a view. Throws BLOB_MALFORMED when too short to be a blob. */
export function saltOf(blob: Uint8Array): Uint8Array {
  requireBlob(blob);
  return blob.subarray(0, SALT_BYTES);
}

function requireBlob(blob: Uint8Array): void {
  if (blob.byteLength < BLOB_OVERHEAD_BYTES) {
    throw new LucidError("BLOB_MALFORMED", `blob is shorter than ${BLOB_OVERHEAD_BYTES} bytes`);
  }
}

/** A wrong length here is a fault of this program, not of the input. */
function requireLength(name: string, bytes: Uint8Array, byteLength: number): void {
  if (bytes.byteLength !== byteLength) throw new RangeError(`${name} must be ${byteLength} bytes`);
}
