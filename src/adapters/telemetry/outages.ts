import type { Clock } from "../../pipeline/ports.ts";

/** Whoever waits for a server says so more often than this; after a longer silence it is another outage. */
const SILENCE_MS_MAX = 60_000;

interface Outage {
  readonly sinceMs: number;
  readonly noticedMs: number;
}

/**
 * Many operations wait for one server, and each knows of its own time only: this is for how long the server was away, from the first
 * that met the outage to the first that got through.
 */
export class Outages {
  readonly #clock: Pick<Clock, "monotonicMs">;
  readonly #current = new Map<string, Outage>();

  constructor(clock: Pick<Clock, "monotonicMs">) {
    this.#clock = clock;
  }

  /** By an operation that began `seconds` ago and has not got through since. */
  noticed(what: string, seconds: number): void {
    const noticedMs = this.#clock.monotonicMs();
    const last = this.#current.get(what);
    // What waited may have given up, with nobody to tell that the server is back.
    const isNew = last === undefined || noticedMs - last.noticedMs > SILENCE_MS_MAX;
    this.#current.set(what, { sinceMs: isNew ? noticedMs - seconds * 1000 : last.sinceMs, noticedMs });
  }

  /** For how long it was away, in milliseconds; `undefined` for all but the first to get through. */
  ended(what: string): number | undefined {
    const outage = this.#current.get(what);
    this.#current.delete(what);
    return outage === undefined ? undefined : this.#clock.monotonicMs() - outage.sinceMs;
  }
}
