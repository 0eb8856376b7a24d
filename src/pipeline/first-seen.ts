import type { Clock } from "./ports.ts";

/**
 * How long something has been seen in one state, by the monotonic clock of this process. Wall-clock times in
 * documents come from other machines and step; a sweep that trusted them could act an hour early or late.
 */
export class FirstSeen {
  readonly #since = new Map<string, { readonly state: string; readonly atMs: number }>();
  readonly #clock: Clock;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Milliseconds since `key` was first seen in `state`; 0 the first time. */
  ageMs(key: string, state = ""): number {
    const now = this.#clock.monotonicMs();
    const seen = this.#since.get(key);
    if (seen?.state === state) return now - seen.atMs;
    this.#since.set(key, { state, atMs: now });
    return 0;
  }

  /** Forgets whatever is not among `keys`: it has left the state that was watched. */
  keepOnly(keys: ReadonlySet<string>): void {
    for (const key of this.#since.keys()) if (!keys.has(key)) this.#since.delete(key);
  }

  forget(key: string): void {
    this.#since.delete(key);
  }
}
