import { bytesEqual } from "../core/bytes.ts";
import type { SessionId } from "../core/ids.ts";
import type { HashAlgorithm, SessionRecord } from "../schema/record.ts";
import type { Patience } from "./patience.ts";
import type { Clock, Observer, SessionStore } from "./ports.ts";
import type { SessionKeys } from "./session-keys.ts";

/** How long an open session's record may be reused before the commit path reads it again. */
const OPEN_RECORD_AGE_MAX_MS = 1_000;
const SESSIONS_CACHED_MAX = 1_024;

interface CachedRecord {
  readonly record: SessionRecord;
  readonly readMs: number;
}

/**
 * Session records for the early checks of a chunk (sealed? too large? which key?). They may be a second old:
 * what decides is read again after the commit (integrate.ts), so a stale record costs work, never correctness.
 */
export class SessionDirectory {
  readonly #store: SessionStore;
  readonly #keys: SessionKeys;
  readonly #clock: Clock;
  readonly #observer: Observer;
  readonly #patience: Patience;
  readonly #hashAlgorithm: HashAlgorithm;
  readonly #cache = new Map<SessionId, CachedRecord>();

  constructor(options: {
    readonly store: SessionStore;
    readonly keys: SessionKeys;
    readonly clock: Clock;
    readonly observer: Observer;
    readonly patience: Patience;
    /** For sessions that begin here; a session keeps the one it began with. */
    readonly hashAlgorithm: HashAlgorithm;
  }) {
    this.#store = options.store;
    this.#keys = options.keys;
    this.#clock = options.clock;
    this.#observer = options.observer;
    this.#patience = options.patience;
    this.#hashAlgorithm = options.hashAlgorithm;
  }

  async find(session: SessionId, signal: AbortSignal): Promise<SessionRecord | undefined> {
    const cached = this.#cache.get(session);
    if (cached !== undefined && this.#isFresh(cached)) return cached.record;
    const record = await this.#patience("sessions.find", signal, () => this.#store.find(session));
    if (record !== undefined) this.remember(record);
    return record;
  }

  async findOrCreate(session: SessionId, signal: AbortSignal): Promise<SessionRecord> {
    const found = await this.find(session, signal);
    if (found !== undefined) return found;
    const key = this.#keys.newSecret(session);
    const created = await this.#patience("sessions.create", signal, () =>
      this.#store.create({
        id: session,
        hashAlgorithm: this.#hashAlgorithm,
        key,
        createdAt: this.#clock.now(),
      }),
    );
    // Several chunks may be the first ones at the same time: only one of them opens the session, with its secret.
    const isOurs = created.keys.some(({ wrapped }) => bytesEqual(wrapped, key.wrapped));
    if (isOurs) this.#observer.report({ kind: "session-created", sessionId: session });
    this.remember(created);
    return created;
  }

  /** Takes over what somebody has just read or written; an older version never replaces a newer one. */
  remember(record: SessionRecord): void {
    const cached = this.#cache.get(record.id);
    if (cached !== undefined && cached.record.version > record.version) return;
    this.#cache.delete(record.id);
    this.#cache.set(record.id, { record, readMs: this.#clock.monotonicMs() });
    if (this.#cache.size > SESSIONS_CACHED_MAX) {
      const oldest = this.#cache.keys().next();
      if (oldest.done !== true) this.#cache.delete(oldest.value);
    }
  }

  #isFresh(cached: CachedRecord): boolean {
    // A seal is final, so a sealed record can't go stale in what is asked of it here.
    if (cached.record.state !== "open") return true;
    return this.#clock.monotonicMs() - cached.readMs <= OPEN_RECORD_AGE_MAX_MS;
  }
}
