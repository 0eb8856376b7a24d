import type { KeyRing } from "../core/encrypt/kek.ts";
import { NONCE_BYTES } from "../core/encrypt/aes-gcm.ts";
import { plainMacKey } from "../core/encrypt/commit.ts";
import { SALT_BYTES } from "../core/encrypt/sealed-blob.ts";
import { makeSessionSecret, unwrapSecret, wrapSecret } from "../core/encrypt/session-secret.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { SessionRecord, WrappedSecret } from "../schema/record.ts";
import type { Clock, KernelThreads, Observer, RandomBytes } from "./ports.ts";

/** An epoch ends at whichever comes first (contract §7); its age limit is KEY_ROTATION_INTERVAL. */
const EPOCH_CHUNKS_MAX = 2 ** 20;
const EPOCH_BYTES_MAX = 64 * 2 ** 30;
/** Sessions whose keys stay derived; one that is pushed out starts a new epoch when it comes back. */
const SESSIONS_CACHED_MAX = 1_024;
const FIRST_KEY_VERSION = 1;

export interface SealingMaterial {
  readonly keyVersion: number;
  readonly kekVersion: number;
  /** 32 bytes, derived from the session secret and `salt`. */
  readonly key: Uint8Array;
  readonly salt: Uint8Array;
  /**
   * 12 random bytes. With at most 2^20 chunks under one key the chance of a repeat is below 2^-56
   * (NIST SP 800-38D §8.3 allows 2^32 invocations for 2^-32).
   */
  readonly nonce: Uint8Array;
  readonly plainMacKey: Uint8Array;
}

interface Epoch {
  readonly salt: Uint8Array;
  readonly key: Promise<Uint8Array>;
  readonly startedMs: number;
  chunks: number;
  bytes: number;
}

interface OpenedSecret {
  readonly keyVersion: number;
  readonly kekVersion: number;
  readonly text: string;
  readonly plainMacKey: Uint8Array;
  epoch: Epoch | undefined;
}

export interface SessionKeysOptions {
  readonly keyRing: KeyRing;
  readonly threads: KernelThreads;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly observer: Observer;
  readonly epochAgeMaxMs: number;
}

/**
 * Opens session secrets and hands out key material. A salt, and so a derived key, belongs to one process, one
 * session key version and one epoch: two processes never share one, so their random nonces can't meet.
 */
export class SessionKeys {
  readonly #options: SessionKeysOptions;
  /** Insertion order is the order of last use. */
  readonly #opened = new Map<string, OpenedSecret>();

  constructor(options: SessionKeysOptions) {
    this.#options = options;
  }

  /** A new wrapped secret for a session that has none. */
  newSecret(session: SessionId): WrappedSecret {
    const { keyRing, random } = this.#options;
    const kekVersion = keyRing.activeVersion;
    const place = { kek: keyRing.kek(kekVersion), sessionId: session, keyVersion: FIRST_KEY_VERSION };
    const wrapped = wrapSecret(makeSessionSecret(random), place, random);
    return { keyVersion: FIRST_KEY_VERSION, kekVersion, wrapped };
  }

  /** Material to seal one chunk of `bytes` under the session's newest key version. */
  async forSealing(session: SessionRecord, bytes: number): Promise<SealingMaterial> {
    const secret = this.#open(session, newestKey(session));
    const epoch = this.#currentEpoch(session.id, secret);
    epoch.chunks += 1;
    epoch.bytes += bytes;
    return {
      keyVersion: secret.keyVersion,
      kekVersion: secret.kekVersion,
      key: await epoch.key,
      salt: epoch.salt,
      nonce: this.#options.random(NONCE_BYTES),
      plainMacKey: secret.plainMacKey,
    };
  }

  /** The key of `plain_mac` under a given key version of the session. */
  plainMacKey(session: SessionRecord, keyVersion: number): Uint8Array {
    const key = session.keys.find((candidate) => candidate.keyVersion === keyVersion);
    if (key === undefined) {
      throw new LucidError(
        "SECRET_UNWRAP_FAILED",
        "the session has no key of the version its chunk names; run fsck",
      );
    }
    return this.#open(session, key).plainMacKey;
  }

  #open(session: SessionRecord, key: WrappedSecret): OpenedSecret {
    const cacheKey = `${session.id}:${key.keyVersion}`;
    const cached = this.#opened.get(cacheKey);
    if (cached !== undefined) {
      this.#opened.delete(cacheKey);
      this.#opened.set(cacheKey, cached);
      return cached;
    }
    const kek = this.#options.keyRing.kek(key.kekVersion);
    const text = unwrapSecret(key.wrapped, { kek, sessionId: session.id, keyVersion: key.keyVersion });
    const opened: OpenedSecret = {
      keyVersion: key.keyVersion,
      kekVersion: key.kekVersion,
      text,
      plainMacKey: plainMacKey(text),
      epoch: undefined,
    };
    this.#opened.set(cacheKey, opened);
    this.#forgetLeastRecent();
    return opened;
  }

  #currentEpoch(session: SessionId, secret: OpenedSecret): Epoch {
    const { clock, observer, random, threads, epochAgeMaxMs } = this.#options;
    const current = secret.epoch;
    if (current !== undefined && !isOver(current, clock.monotonicMs(), epochAgeMaxMs)) return current;
    const salt = random(SALT_BYTES);
    const key = threads.deriveKey(secret.text, salt);
    const epoch: Epoch = { salt, key, startedMs: clock.monotonicMs(), chunks: 0, bytes: 0 };
    // A derivation that failed must not stay: the next chunk starts a new epoch.
    key.catch(() => {
      if (secret.epoch === epoch) secret.epoch = undefined;
    });
    secret.epoch = epoch;
    observer.report({ kind: "epoch-started", sessionId: session, keyVersion: secret.keyVersion });
    return epoch;
  }

  #forgetLeastRecent(): void {
    if (this.#opened.size <= SESSIONS_CACHED_MAX) return;
    const oldest = this.#opened.keys().next();
    if (oldest.done !== true) this.#opened.delete(oldest.value);
  }
}

function isOver(epoch: Epoch, nowMs: number, ageMaxMs: number): boolean {
  return (
    epoch.chunks >= EPOCH_CHUNKS_MAX || epoch.bytes >= EPOCH_BYTES_MAX || nowMs - epoch.startedMs >= ageMaxMs
  );
}

function newestKey(session: SessionRecord): WrappedSecret {
  const newest = session.keys.reduce<WrappedSecret | undefined>(
    (best, key) => (best === undefined || key.keyVersion > best.keyVersion ? key : best),
    undefined,
  );
  if (newest === undefined) {
    throw new LucidError(
      "SECRET_UNWRAP_FAILED",
      "the session's secret has been shredded: it takes no more chunks",
    );
  }
  return newest;
}
