import type { Clock } from "../../src/pipeline/ports.ts";

/** A clock that stands until it is moved. Who sleeps on it wakes at once, that much later. */
export class ManualClock implements Clock {
  #monotonicMs = 0;
  #wallMs = Date.parse("2026-01-02T03:04:05.678Z");

  now(): Date {
    return new Date(this.#wallMs);
  }

  monotonicMs(): number {
    return this.#monotonicMs;
  }

  async sleep(ms: number): Promise<void> {
    this.advance(ms);
  }

  advance(ms: number): void {
    this.#monotonicMs += ms;
    this.#wallMs += ms;
  }

  /** What an NTP correction does: the wall clock steps, the monotonic one doesn't. */
  stepWall(ms: number): void {
    this.#wallMs += ms;
  }
}
