import { createPublicKey, type KeyObject } from "node:crypto";
import { asBuffer, fromBase64, fromHex, toHex } from "../bytes.ts";
import { sha256 } from "../digest.ts";
import { ed25519PublicKey, formatVerifierKey, parseVerifierKey, verifierKey } from "../merkle/checkpoint.ts";

/** RFC 8032: an Ed25519 public key. */
export const PUBLIC_KEY_BYTES = 32;
const KEY_ID_HEX_DIGITS = 16;
const KEY_TEXT_CHARS_MAX = 1_024;
const PEM_PATTERN = /^-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----$/;
/** The name in the vkey that `keys generate` prints; a checkpoint's own key name is its origin. */
const VERIFIER_KEY_NAME = "lucid";

/** The same key in each form that `parsePublicKey` reads. */
export interface PublicKeyForms {
  readonly base64: string;
  /** SubjectPublicKeyInfo, RFC 8410. */
  readonly pem: string;
  /** C2SP signed-note: `lucid+<key id>+<base64>`. */
  readonly vkey: string;
}

/** First 16 hex digits of SHA-256 of the 32 bytes: to find the pinned key by, not to trust it by. */
export function keyIdOf(publicKey: Uint8Array): string {
  return toHex(sha256(publicKey)).slice(0, KEY_ID_HEX_DIGITS);
}

export function publicKeyForms(publicKey: Uint8Array): PublicKeyForms {
  return {
    base64: asBuffer(publicKey).toString("base64"),
    pem: publicKeyObject(publicKey).export({ format: "pem", type: "spki" }),
    vkey: formatVerifierKey(verifierKey(VERIFIER_KEY_NAME, publicKey)),
  };
}

/**
 * The 32 bytes of a key given as base64, hex, SPKI PEM or C2SP vkey, with white space around it; `undefined` for anything else.
 * Also for a private key, from which Node would quietly take the public one: somebody has mixed up two files.
 */
export function parsePublicKey(text: string): Uint8Array | undefined {
  if (text.length > KEY_TEXT_CHARS_MAX) return undefined;
  const trimmed = text.trim();
  // The forms have different lengths and alphabets: no text is two of them.
  const raw = fromHex(trimmed) ?? fromBase64(trimmed);
  if (raw?.byteLength === PUBLIC_KEY_BYTES) return new Uint8Array(raw);
  return PEM_PATTERN.test(trimmed) ? parsePem(trimmed) : parseVerifierKey(trimmed)?.publicKey;
}

function parsePem(pem: string): Uint8Array | undefined {
  try {
    return ed25519PublicKey(createPublicKey(pem));
  } catch {
    return undefined;
  }
}

/** The key object of 32 bytes. */
export function publicKeyObject(publicKey: Uint8Array): KeyObject {
  const x = asBuffer(publicKey).toString("base64url");
  return createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
}
