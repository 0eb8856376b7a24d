import { createHmac, hkdfSync } from "node:crypto";
import { utf8 } from "../bytes.ts";

const COMMIT_LABEL = utf8("lucid-commit-v1");
const PLAIN_MAC_INFO = utf8("lucid-plain-mac-v1");
const NO_SALT = new Uint8Array(0);
const MAC_BYTES = 32;

/**
 * HMAC-SHA256(derived key, "lucid-commit-v1" ‖ salt), 32 bytes, part of the leaf. AES-GCM doesn't commit to its key: one blob
 * can be made to open under two keys. With this in the signed tree only one key is the right one.
 */
export function keyCommit(key: Uint8Array, salt: Uint8Array): Uint8Array {
  return createHmac("sha256", key).update(COMMIT_LABEL).update(salt).digest();
}

/** HKDF-SHA256(UTF-8 of the session secret, no salt, info "lucid-plain-mac-v1"), 32 bytes. One per session and key version. */
export function plainMacKey(sessionSecretText: string): Uint8Array {
  return new Uint8Array(hkdfSync("sha256", utf8(sessionSecretText), NO_SALT, PLAIN_MAC_INFO, MAC_BYTES));
}

/**
 * HMAC-SHA256(plain mac key, BLAKE3(plaintext)), 32 bytes. It answers "same input?" for a repeated job; keyed, because a
 * bare digest in the tree would let anyone confirm a guessed plaintext.
 */
export function plainMac(macKey: Uint8Array, plaintextBlake3: Uint8Array): Uint8Array {
  return createHmac("sha256", macKey).update(plaintextBlake3).digest();
}
