import { afterEach, describe, expect, test } from "vitest";
import { createObserver } from "../../src/adapters/telemetry/pipeline-observer.ts";
import { Outages } from "../../src/adapters/telemetry/outages.ts";
import { createLog } from "../../src/telemetry/log.ts";
import { createMetrics, type Metrics, METRIC_PREFIX } from "../../src/telemetry/metrics.ts";
import { ManualClock } from "../support/manual-clock.ts";

const FRESH_MS = 60_000;
const opened: Metrics[] = [];
afterEach(() => {
  for (const metrics of opened.splice(0)) metrics.close();
});

function observed() {
  const written: string[] = [];
  const destination = { write: (line: string) => void written.push(line) };
  const log = createLog({ level: "info", service: "session-processor", version: "1.2.3", destination });
  const metrics = createMetrics({ version: "1.2.3", queues: ["session-chunks"] });
  opened.push(metrics);
  const clock = new ManualClock();
  const observer = createObserver(log, metrics, new Outages(log, clock), { clock, backlogFreshMs: FRESH_MS });
  const value = async (name: string): Promise<number | undefined> => {
    const prefix = `${METRIC_PREFIX}${name} `;
    const line = (await metrics.text()).split("\n").find((one) => one.startsWith(prefix));
    return line === undefined ? undefined : Number(line.slice(prefix.length));
  };
  const linesOf = (event: string) =>
    written
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter((line) => line["event"] === event);
  return { observer, clock, value, linesOf };
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

describe("a server that is back", () => {
  const away = (operation: string, seconds: number) =>
    ({ kind: "waiting", code: "QUEUE_UNAVAILABLE", operation, seconds }) as const;
  const back = (operation: string, seconds: number) =>
    ({ kind: "resumed", code: "QUEUE_UNAVAILABLE", operation, seconds }) as const;

  test("is told once, with how long it was away, and not how long the first one through has waited", () => {
    const { observer, clock, linesOf } = observed();
    clock.advance(100_000);
    observer.report(away("events.publish", 0.5));
    clock.advance(6_000);
    observer.report(away("events.publish", 6.5));
    observer.report(away("events.mark", 0));
    clock.advance(1_500);
    observer.report(back("events.mark", 1.5));
    observer.report(back("events.publish", 8));
    expect(linesOf("store_recovered")).toMatchObject([
      { what: "redis", stage: "events.mark", duration_ms: 8_000 },
    ]);
  });

  test("is not told of an outage that nobody has met for long", () => {
    const { observer, clock, linesOf } = observed();
    observer.report(away("events.publish", 0));
    clock.advance(86_400_000);
    observer.report(back("events.publish", 86_400));
    observer.report(away("events.mark", 0));
    clock.advance(2_000);
    observer.report(back("events.mark", 2));
    expect(linesOf("store_recovered")).toMatchObject([{ duration_ms: 2_000 }]);
  });

  test("after an outage that nobody waited out has the time of its own outage", () => {
    const { observer, clock, linesOf } = observed();
    observer.report(away("events.publish", 0));
    clock.advance(3_600_000);
    observer.report(away("events.mark", 0));
    clock.advance(2_000);
    observer.report(back("events.mark", 2));
    expect(linesOf("store_recovered")).toMatchObject([{ duration_ms: 2_000 }]);
  });
});
