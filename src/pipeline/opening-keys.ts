import { toHex } from "../core/bytes.ts";
import type { KeyRing } from "../core/encrypt/kek.ts";
import { plainMacKey } from "../core/encrypt/commit.ts";
import { saltOf } from "../core/encrypt/sealed-blob.ts";
import { unwrapSecret } from "../core/encrypt/session-secret.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { KernelThreads } from "./ports.ts";

/** Derived keys that are kept; each epoch of each process has its own. */
const KEYS_CACHED_MAX = 64;

export interface OpeningKey {
  /** 32 bytes each. */
  readonly key: Uint8Array;
  readonly plainMacKey: Uint8Array;
}

/** What opens a session's blobs: its secrets by key version and the derived keys by salt, each made once. */
export class OpeningKeys {
  readonly #threads: KernelThreads;
  readonly #keyRing: KeyRing;
  readonly #session: SessionRecord;
  readonly #secrets = new Map<number, { readonly text: string; readonly plainMacKey: Uint8Array }>();
  readonly #derived = new Map<string, Promise<Uint8Array>>();

  constructor(threads: KernelThreads, keyRing: KeyRing, session: SessionRecord) {
    this.#threads = threads;
    this.#keyRing = keyRing;
    this.#session = session;
  }

  /** For one blob, by its salt. Throws SECRET_UNWRAP_FAILED, KEK_UNKNOWN, BLOB_MALFORMED. */
  async forBlob(keyVersion: number, blob: Uint8Array): Promise<OpeningKey> {
    const secret = this.#secret(keyVersion);
    const salt = saltOf(blob);
    const cacheKey = `${keyVersion}:${toHex(salt)}`;
    let key = this.#derived.get(cacheKey);
    if (key === undefined) {
      // A copy: the blob's memory moves to a CPU thread.
      key = this.#threads.deriveKey(secret.text, new Uint8Array(salt));
      key.catch(() => this.#derived.delete(cacheKey));
      this.#derived.set(cacheKey, key);
      const oldest = this.#derived.keys().next();
      if (this.#derived.size > KEYS_CACHED_MAX && oldest.done !== true) this.#derived.delete(oldest.value);
    }
    return { key: await key, plainMacKey: secret.plainMacKey };
  }

  #secret(keyVersion: number): { readonly text: string; readonly plainMacKey: Uint8Array } {
    const known = this.#secrets.get(keyVersion);
    if (known !== undefined) return known;
    const wrapped = this.#session.keys.find((key) => key.keyVersion === keyVersion);
    if (wrapped === undefined) {
      throw new LucidError(
        "SECRET_UNWRAP_FAILED",
        "the session's secret of that key version is gone (shredded?)",
      );
    }
    const kek = this.#keyRing.kek(wrapped.kekVersion);
    const text = unwrapSecret(wrapped.wrapped, { kek, sessionId: this.#session.id, keyVersion });
    const secret = { text, plainMacKey: plainMacKey(text) };
    this.#secrets.set(keyVersion, secret);
    return secret;
  }
}
