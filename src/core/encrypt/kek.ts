import { hkdfSync } from "node:crypto";
import { utf8 } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import { KEY_BYTES } from "./aes-gcm.ts";

const KEK_INFO = utf8("lucid-kek-v1");
const NO_SALT = new Uint8Array(0);
const KEY_TEXT_CHARS_MIN = 32;
const DISTINCT_CHARS_MIN = 8;
const FIRST_VERSION = 1;

/** The key encryption keys that session secrets are wrapped with, by version. */
export interface KeyRing {
  /** Wraps new secrets. */
  readonly activeVersion: number;
  /** 32 bytes. Throws KEK_UNKNOWN for a version that the ring doesn't hold. */
  kek(version: number): Uint8Array;
}

/** The 32 bytes of a KEK: HKDF-SHA256(UTF-8 of the key text, no salt, info "lucid-kek-v1"). */
export function kekFromText(text: string): Uint8Array {
  return new Uint8Array(hkdfSync("sha256", utf8(text), NO_SALT, KEK_INFO, KEY_BYTES));
}

/** The ring of ENCRYPTION_KEY: one KEK, version 1. The text has passed `keyWeakness`. */
export function singleKeyRing(text: string): KeyRing {
  const key = kekFromText(text);
  return {
    activeVersion: FIRST_VERSION,
    kek(version) {
      if (version === FIRST_VERSION) return key;
      throw new LucidError(
        "KEK_UNKNOWN",
        `key ring has no KEK of version ${version}; add it to the key ring`,
      );
    },
  };
}

/**
 * Words of the examples that people copy, searched in the text without case and punctuation. Long enough that a random
 * text doesn't hold one by chance: one is enough.
 */
const PLACEHOLDER_PHRASES = [
  "changeme",
  "changethis",
  "replaceme",
  "replacethis",
  "replacewith",
  "yourencryptionkey",
  "yoursecret",
  "encryptionkey",
  "insertkey",
  "placeholder",
  "password",
  "passphrase",
  "notsecure",
  "insecure",
  "donotuse",
  "xxxxxxxx",
] as const;

/** Short enough to stand in a random text or a good passphrase: only where they make up much of it. */
const PLACEHOLDER_WORDS = [
  "example",
  "secret",
  "default",
  "dummy",
  "sample",
  "qwerty",
  "letmein",
  "foobar",
  "deadbeef",
  "lorem",
  "ipsum",
  "admin",
  "test",
  "todo",
  "your",
  "key",
] as const;
const PLACEHOLDER_WORDS_SHARE_MAX = 0.3;

const SEQUENCE_RUN_MAX = 8;

/**
 * Why a key text is not fit to be a KEK, or `undefined`. It finds what people leave in or type in a hurry; it can't prove
 * that a text is random. The answer never quotes the text.
 */
export function keyWeakness(text: string): string | undefined {
  if (text.length < KEY_TEXT_CHARS_MIN) return `shorter than ${KEY_TEXT_CHARS_MIN} characters`;
  if (text.trim() !== text) return "begins or ends with white space";
  if (new Set(text).size === 1) return "one repeated character";
  if (isRepetition(text)) return "a short text repeated";
  if (new Set(text).size < DISTINCT_CHARS_MIN) return `fewer than ${DISTINCT_CHARS_MIN} distinct characters`;
  if (isMostlySequence(text)) return "a sequence of neighbouring characters";
  if (isPlaceholder(text)) return "a placeholder from an example";
  return undefined;
}

/** True when the text is one unit of at most half its length, repeated; the last repeat may be cut. */
function isRepetition(text: string): boolean {
  for (let unit = 1; unit <= text.length / 2; unit += 1) {
    if (text.slice(unit) === text.slice(0, -unit)) return true;
  }
  return false;
}

/** More than half of the characters lie in runs that count up, down or stand still, like 01234567 or aaaaaaaa. */
function isMostlySequence(text: string): boolean {
  let inRuns = 0;
  let runLength = 1;
  let step = Number.NaN;
  const close = (): void => {
    if (runLength >= SEQUENCE_RUN_MAX) inRuns += runLength;
  };
  for (let at = 1; at < text.length; at += 1) {
    const difference = text.charCodeAt(at) - text.charCodeAt(at - 1);
    if (difference === step) {
      runLength += 1;
      continue;
    }
    close();
    const neighbours = Math.abs(difference) <= 1;
    step = neighbours ? difference : Number.NaN;
    runLength = neighbours ? 2 : 1;
  }
  close();
  return inRuns > text.length / 2;
}

function isPlaceholder(text: string): boolean {
  const letters = text.toLowerCase().replaceAll(/[^a-z0-9]/g, "");
  if (PLACEHOLDER_PHRASES.some((phrase) => letters.includes(phrase))) return true;
  const rest = PLACEHOLDER_WORDS.reduce((left, word) => left.replaceAll(word, " "), letters);
  const wordChars = letters.length - rest.replaceAll(" ", "").length;
  return wordChars > letters.length * PLACEHOLDER_WORDS_SHARE_MAX;
}
