import { type ErrorCode, isOutage, LucidError } from "../core/errors.ts";
import type { Clock, Observer } from "./ports.ts";

/** First and longest pause between two tries while a server is away. */
const PAUSE_FIRST_MS = 50;
const PAUSE_MAX_MS = 1_000;

export interface Patience {
  /**
   * Runs `operation` until the server answers. Only STORE_UNAVAILABLE and QUEUE_UNAVAILABLE are waited out, for
   * as long as it takes: a server that is down is no fault of the job. Ends with SHUTTING_DOWN when the signal fires.
   * `operation` must be safe to apply twice: an unavailable server may have applied it before it went away.
   */
  <Result>(name: string, signal: AbortSignal, operation: () => Promise<Result>): Promise<Result>;
}

export function createPatience(clock: Clock, observer: Observer): Patience {
  return async (name, signal, operation) => {
    const startedMs = clock.monotonicMs();
    let pauseMs = PAUSE_FIRST_MS;
    let outage: ErrorCode | undefined;
    for (;;) {
      if (signal.aborted) throw new LucidError("SHUTTING_DOWN", `stopped while waiting for ${name}`);
      try {
        const result = await operation();
        if (outage !== undefined) {
          observer.report({
            kind: "resumed",
            operation: name,
            code: outage,
            seconds: elapsed(clock, startedMs),
          });
        }
        return result;
      } catch (thrown) {
        if (!isOutage(thrown)) throw thrown;
        outage = thrown.code;
        observer.report({
          kind: "waiting",
          operation: name,
          code: outage,
          seconds: elapsed(clock, startedMs),
        });
      }
      await clock.sleep(pauseMs, signal);
      pauseMs = Math.min(pauseMs * 2, PAUSE_MAX_MS);
    }
  };
}

function elapsed(clock: Clock, sinceMs: number): number {
  return (clock.monotonicMs() - sinceMs) / 1000;
}
