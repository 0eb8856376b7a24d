import { afterEach, describe, expect, test } from "vitest";
import { createObserver } from "../../src/adapters/telemetry/pipeline-observer.ts";
import { createLog } from "../../src/telemetry/log.ts";
import { createMetrics, type Metrics, METRIC_PREFIX } from "../../src/telemetry/metrics.ts";
import { ManualClock } from "../support/manual-clock.ts";

const FRESH_MS = 60_000;
const opened: Metrics[] = [];
afterEach(() => {
  for (const metrics of opened.splice(0)) metrics.close();
});

function observed() {
  const destination = { write: () => undefined };
  const log = createLog({ level: "fatal", service: "session-processor", version: "1.2.3", destination });
  const metrics = createMetrics({ version: "1.2.3", queues: ["session-chunks"] });
  opened.push(metrics);
  const clock = new ManualClock();
  const observer = createObserver(log, metrics, { clock, backlogFreshMs: FRESH_MS });
  const value = async (name: string): Promise<number | undefined> => {
    const prefix = `${METRIC_PREFIX}${name} `;
    const line = (await metrics.text()).split("\n").find((one) => one.startsWith(prefix));
    return line === undefined ? undefined : Number(line.slice(prefix.length));
  };
  return { observer, clock, value };
}

describe.each([
  ["outbox_pending_events", "outbox_oldest_event_age_seconds", "outbox"],
  ["unanchored_sessions", "unanchored_oldest_age_seconds", "unanchored"],
] as const)("%s and %s", (count, age, kind) => {
  const found = (number: number, oldestSeconds: number) =>
    kind === "outbox"
      ? ({ kind, pending: number, oldestSeconds } as const)
      : ({ kind, sessions: number, oldestSeconds } as const);

  test("are absent before the first pass has ended", async () => {
    const { value } = observed();
    expect(await value(count)).toBeUndefined();
    expect(await value(age)).toBeUndefined();
  });

  test("are those of the last pass while passes end", async () => {
    const { observer, clock, value } = observed();
    observer.report(found(3, 40));
    clock.advance(FRESH_MS);
    expect(await value(count)).toBe(3);
    expect(await value(age)).toBe(40);
  });

  test("don't stand still when none ends: the number is left out, and the oldest grows older", async () => {
    const { observer, clock, value } = observed();
    observer.report(found(3, 40));
    clock.advance(FRESH_MS + 30_000);
    expect(await value(count)).toBeUndefined();
    expect(await value(age)).toBe(130);
    observer.report(found(1, 10));
    expect(await value(count)).toBe(1);
    expect(await value(age)).toBe(10);
  });

  test("are both left out when the last pass that ended found none", async () => {
    const { observer, clock, value } = observed();
    observer.report(found(0, 0));
    expect(await value(age)).toBe(0);
    clock.advance(FRESH_MS + 1);
    expect(await value(count)).toBeUndefined();
    expect(await value(age)).toBeUndefined();
  });
});
