import type { Clock } from "../../pipeline/ports.ts";
import type { Log } from "../../telemetry/log.ts";

/** Whoever waits for a server says so more often than this; after a longer silence it is another outage. */
const SILENCE_MS_MAX = 60_000;

interface Outage {
  readonly sinceMs: number;
  readonly noticedMs: number;
  /** By an operation, which will get through, or give up. */
  readonly isWaitedOut: boolean;
}

/**
 * Many operations and connections wait for one server, and each knows of its own time only: this tells for how long the server was
 * away, from the first that met the outage to the first that got through.
 */
export class Outages {
  readonly #log: Log;
  readonly #clock: Pick<Clock, "monotonicMs">;
  readonly #current = new Map<string, Outage>();

  constructor(log: Log, clock: Pick<Clock, "monotonicMs">) {
    this.#log = log;
    this.#clock = clock;
  }

  /** By an operation that began `seconds` ago and has not got through since. */
  noticed(what: string, seconds: number): void {
    this.#notice(what, seconds, true);
  }

  /** A connection was lost just now, or refused. */
  disconnected(what: string): void {
    this.#notice(what, 0, false);
  }

  /** A connection is there again. Where operations wait, theirs is the word: a server may answer and refuse all that it is told. */
  reconnected(what: string): void {
    if (this.#current.get(what)?.isWaitedOut !== true) this.ended(what);
  }

  /** Somebody got through; the first one is told. */
  ended(what: string, stage?: string): void {
    const outage = this.#current.get(what);
    if (outage === undefined) return;
    this.#current.delete(what);
    const nowMs = this.#clock.monotonicMs();
    // Whoever noticed it gave up since, or waited for something else: when it ended isn't known.
    if (nowMs - outage.noticedMs > SILENCE_MS_MAX) return;
    const duration_ms = Math.round(nowMs - outage.sinceMs);
    this.#log.event("store_recovered", { what, stage, duration_ms });
  }

  #notice(what: string, seconds: number, isWaitedOut: boolean): void {
    const noticedMs = this.#clock.monotonicMs();
    const last = this.#current.get(what);
    // What waited may have given up, with nobody to tell that the server is back.
    const same = last !== undefined && noticedMs - last.noticedMs <= SILENCE_MS_MAX ? last : undefined;
    this.#current.set(what, {
      sinceMs: same?.sinceMs ?? noticedMs - seconds * 1000,
      noticedMs,
      isWaitedOut: isWaitedOut || same?.isWaitedOut === true,
    });
  }
}
