import { createCipheriv, createDecipheriv, type CipherGCM, type DecipherGCM } from "node:crypto";
import { release } from "../scratch.ts";

const ALGORITHM = "aes-256-gcm";
export const KEY_BYTES = 32;
export const NONCE_BYTES = 12;
export const TAG_BYTES = 16;

/**
 * node:crypto returns each output in a new buffer. In pieces of this size, given back at once, their memory is reused from the
 * processor's cache; in one piece a megabyte takes half as long again, for page faults.
 */
const PIECE_BYTES = 64 * 1024;

export interface GcmInput {
  /** 32 bytes. */
  readonly key: Uint8Array;
  /** 12 bytes, never used twice with the same key. */
  readonly nonce: Uint8Array;
  readonly aad: Uint8Array;
}

/** Writes ciphertext ‖ tag to `target`, which has room for exactly that. NIST SP 800-38D, 96-bit nonce, 128-bit tag. */
export function gcmEncryptInto(target: Uint8Array, input: GcmInput, plaintext: Uint8Array): void {
  const cipher = createCipheriv(ALGORITHM, input.key, input.nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(input.aad);
  updateInto(target, cipher, plaintext);
  // GCM is a stream mode: final() adds no ciphertext, only the tag becomes known.
  cipher.final();
  target.set(cipher.getAuthTag(), plaintext.byteLength);
}

/**
 * Decrypts ciphertext ‖ tag, at least a tag long, into `target` of the ciphertext's length. False if the tag is wrong, and then
 * `target` is zeros: what `update()` hands out before the tag is checked never reaches a caller.
 */
export function gcmDecryptInto(target: Uint8Array, input: GcmInput, sealed: Uint8Array): boolean {
  const tagAt = sealed.byteLength - TAG_BYTES;
  // Without authTagLength node accepts a tag cut down to 4 bytes.
  const decipher = createDecipheriv(ALGORITHM, input.key, input.nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(input.aad);
  decipher.setAuthTag(sealed.subarray(tagAt));
  updateInto(target, decipher, sealed.subarray(0, tagAt));
  try {
    decipher.final();
    return true;
  } catch {
    target.fill(0);
    return false;
  }
}

function updateInto(target: Uint8Array, cipher: CipherGCM | DecipherGCM, source: Uint8Array): void {
  for (let at = 0; at < source.byteLength; at += PIECE_BYTES) {
    const piece = cipher.update(source.subarray(at, at + PIECE_BYTES));
    target.set(piece, at);
    release(piece);
  }
}
