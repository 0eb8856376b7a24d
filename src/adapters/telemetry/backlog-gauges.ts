import type { Clock } from "../../pipeline/ports.ts";
import type { Metrics } from "../../telemetry/metrics.ts";

export interface BacklogGaugeOptions {
  readonly clock: Pick<Clock, "monotonicMs">;
  /** For how long what a sweep's pass has found says something of now. */
  readonly backlogFreshMs: number;
}

/** Metrics of one backlog: how many, and the age of the oldest. */
export interface BacklogNames {
  readonly count: "outbox_pending_events" | "unanchored_sessions";
  readonly age: "outbox_oldest_event_age_seconds" | "unanchored_oldest_age_seconds";
}

/**
 * What the last whole pass of a sweep has found. Only the end of a pass tells it, and while a server is away none ends: then how many
 * there are is not known and left out, and the oldest, if there was one, grows older. The returned function takes a pass's findings.
 */
export function createBacklogGauges(
  metrics: Metrics,
  { count, age }: BacklogNames,
  { clock, backlogFreshMs }: BacklogGaugeOptions,
): (number: number, oldestSeconds: number) => void {
  let last: { readonly number: number; readonly oldestSeconds: number; readonly atMs: number } | undefined;
  metrics.beforeScrape([count, age], () => {
    const elapsedMs = last === undefined ? Number.POSITIVE_INFINITY : clock.monotonicMs() - last.atMs;
    if (last !== undefined && elapsedMs <= backlogFreshMs) {
      metrics.set(count, {}, last.number);
      metrics.set(age, {}, last.oldestSeconds);
      return;
    }
    metrics.leaveOut(count);
    if (last === undefined || last.number === 0) metrics.leaveOut(age);
    else metrics.set(age, {}, last.oldestSeconds + elapsedMs / 1000);
  });
  return (number, oldestSeconds) => {
    last = { number, oldestSeconds, atMs: clock.monotonicMs() };
  };
}
