import { asBuffer, ByteWriter, fromBase64, utf8 } from "../bytes.ts";
import { gcmDecryptInto, gcmEncryptInto, NONCE_BYTES, TAG_BYTES } from "./aes-gcm.ts";
import type { RandomBytes } from "./session-secret.ts";

const DOMAIN = utf8("LUCID-KEK-CHECK\0");
const FORMAT = 1;
const NOTHING = new Uint8Array(0);

/**
 * What tells, beside a database, which KEK its session secrets are wrapped with: the base64 text of `nonce(12) ‖ tag(16)`, AES-256-GCM of
 * nothing under the KEK. AAD: `"LUCID-KEK-CHECK\0" ‖ u8 1 ‖ u32 kek_version`, big-endian, so that neither a wrapped secret nor the check of
 * another version can stand in for it.
 *
 * Whoever can read it can test guesses of the key offline, at one HKDF and one GCM each. Beside wrapped secrets, which allow the same at the
 * same cost, that is nothing new; in a database without any (new, or all shredded) it is the one thing to test a guess with, and the entropy
 * of the key text is what protects it. The random nonce makes it differ between databases with one key, so it neither
 * shows that a key is used twice nor can be looked up in a table made beforehand, as a plain digest of the key could. It counts as
 * one use of the KEK's 2^32 random nonces.
 */
export function makeKekCheck(kek: Uint8Array, version: number, random: RandomBytes): string {
  const check = new Uint8Array(NONCE_BYTES + TAG_BYTES);
  const nonce = random(NONCE_BYTES);
  check.set(nonce, 0);
  gcmEncryptInto(check.subarray(NONCE_BYTES), { key: kek, nonce, aad: aadOf(version) }, NOTHING);
  return asBuffer(check).toString("base64");
}

/** True only for the KEK and version that the check was made with. */
export function isKekOf(check: string, kek: Uint8Array, version: number): boolean {
  const bytes = fromBase64(check);
  if (bytes?.byteLength !== NONCE_BYTES + TAG_BYTES) return false;
  const gcm = { key: kek, nonce: bytes.subarray(0, NONCE_BYTES), aad: aadOf(version) };
  return gcmDecryptInto(new Uint8Array(0), gcm, bytes.subarray(NONCE_BYTES));
}

function aadOf(version: number): Uint8Array {
  return new ByteWriter().bytes(DOMAIN).u8(FORMAT).u32(version).finish();
}
