import { asBuffer, ByteWriter, fromBase64, utf8 } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import type { SessionId } from "../ids.ts";
import { gcmDecryptInto, gcmEncryptInto, NONCE_BYTES, TAG_BYTES } from "./aes-gcm.ts";

const DOMAIN = utf8("LUCID-SECRET\0");
const FORMAT = 1;
const SECRET_BYTES = 32;
/** Base64 with padding of 32 bytes. */
const SECRET_TEXT_CHARS = 44;
/** nonce(12) ‖ ciphertext(44) ‖ tag(16). */
const WRAPPED_SECRET_BYTES = NONCE_BYTES + SECRET_TEXT_CHARS + TAG_BYTES;

/** `n` bytes from a CSPRNG: core has none of its own, so that a simulation can give it a seeded one. */
export type RandomBytes = (n: number) => Uint8Array;

/** Contract §7: base64 text of 32 random bytes. Its UTF-8 bytes are the password that chunk keys are derived from. */
export function makeSessionSecret(random: RandomBytes): string {
  return asBuffer(random(SECRET_BYTES)).toString("base64");
}

/** Which session's secret it is, and the KEK it is wrapped with. */
export interface WrapPlace {
  /** 32 bytes, of the KEK version that is stored beside the wrapped secret. */
  readonly kek: Uint8Array;
  readonly sessionId: SessionId;
  /** The session's key version, not the KEK's. */
  readonly keyVersion: number;
}

/**
 * `nonce(12) ‖ ciphertext(44) ‖ tag(16)` of the secret's text, AES-256-GCM under the KEK. Random nonces are safe up to 2^32 wraps per
 * KEK, that is sessions and re-wraps. AAD: `"LUCID-SECRET\0" ‖ u8 1 ‖ u16 len ‖ session_id ‖ u32 key_version`, big-endian, so that
 * one session's wrapped secret can't stand in for another's.
 */
export function wrapSecret(secretText: string, place: WrapPlace, random: RandomBytes): Uint8Array {
  const plaintext = utf8(secretText);
  const wrapped = new Uint8Array(NONCE_BYTES + plaintext.byteLength + TAG_BYTES);
  const nonce = random(NONCE_BYTES);
  wrapped.set(nonce, 0);
  gcmEncryptInto(wrapped.subarray(NONCE_BYTES), { key: place.kek, nonce, aad: secretAad(place) }, plaintext);
  return wrapped;
}

/** The secret's text. Throws SECRET_UNWRAP_FAILED for another KEK, session or key version, or changed bytes. */
export function unwrapSecret(wrapped: Uint8Array, place: WrapPlace): string {
  if (wrapped.byteLength !== WRAPPED_SECRET_BYTES) throw unwrapFailed();
  const nonce = wrapped.subarray(0, NONCE_BYTES);
  const gcm = { key: place.kek, nonce, aad: secretAad(place) };
  const plaintext = new Uint8Array(SECRET_TEXT_CHARS);
  if (!gcmDecryptInto(plaintext, gcm, wrapped.subarray(NONCE_BYTES))) throw unwrapFailed();
  const text = asBuffer(plaintext).toString("utf8");
  if (fromBase64(text)?.byteLength !== SECRET_BYTES) throw unwrapFailed();
  return text;
}

function secretAad(place: WrapPlace): Uint8Array {
  return new ByteWriter().bytes(DOMAIN).u8(FORMAT).text16(place.sessionId).u32(place.keyVersion).finish();
}

function unwrapFailed(): LucidError {
  return new LucidError(
    "SECRET_UNWRAP_FAILED",
    "session secret does not unwrap: check that the key ring holds the KEK it was wrapped with",
  );
}
