import { describe, expect, test } from "vitest";
import { createJobObserver } from "../../src/adapters/telemetry/job-observer.ts";
import { Outages } from "../../src/adapters/telemetry/outages.ts";
import { LucidError } from "../../src/core/errors.ts";
import { createLog } from "../../src/telemetry/log.ts";
import { createMetrics } from "../../src/telemetry/metrics.ts";
import { ManualClock } from "../support/manual-clock.ts";

function observed() {
  const written: string[] = [];
  const log = createLog({
    level: "trace",
    service: "session-processor",
    version: "1.2.3",
    destination: { write: (line: string) => void written.push(line) },
  });
  const metrics = createMetrics({ version: "1.2.3", queues: ["session-chunks", "session-control"] });
  const lines = () => written.map((line) => JSON.parse(line) as Record<string, unknown>);
  const clock = new ManualClock();
  const outages = new Outages(log, clock);
  return { observer: createJobObserver(log, metrics, outages), metrics, outages, clock, lines };
}

const OUTCOME = { queue: "session-chunks", jobId: "7", attempt: 1, seconds: 0.1 } as const;
const INVALID = new LucidError("JOB_INVALID", "chunk_index must be an integer from 0 to 4294967295");

describe("the line of a job that didn't go well", () => {
  test.each([
    ["chunk_failed", { ...OUTCOME, outcome: "failed" }],
    ["job_failed", { ...OUTCOME, outcome: "failed", queue: "session-control" }],
    ["job_retry", { ...OUTCOME, outcome: "retried" }],
    ["job_released", { ...OUTCOME, outcome: "released" }],
    ["chunk_kept", { ...OUTCOME, outcome: "completed" }],
  ] as const)("%s has the error's own words, which name the field", (event, outcome) => {
    const { observer, metrics, lines } = observed();
    observer.onOutcome({ ...outcome, error: INVALID });
    metrics.close();
    expect(lines()).toMatchObject([{ event, err: { code: "JOB_INVALID", message: INVALID.message } }]);
  });

  test("has the frames of an unforeseen error, and not its text", () => {
    const { observer, metrics, lines } = observed();
    const error = new LucidError("INTERNAL", "unforeseen TypeError", { cause: new TypeError("plaintext") });
    observer.onOutcome({ ...OUTCOME, outcome: "failed", error });
    metrics.close();
    expect(lines()).toMatchObject([
      { err: { cause: { name: "TypeError" }, frames: expect.arrayContaining([expect.any(String)]) } },
    ]);
    expect(JSON.stringify(lines())).not.toContain("plaintext");
  });

  test("is absent for one that went well", () => {
    const { observer, metrics, lines } = observed();
    observer.onOutcome({ ...OUTCOME, outcome: "completed" });
    metrics.close();
    expect(lines()).toEqual([]);
  });
});

describe("Redis that was away while nothing waited for it", () => {
  test("is told with its time when a connection is there again, and a first connection is not", () => {
    const { observer, metrics, outages, clock, lines } = observed();
    outages.reconnected("redis");
    observer.onError("session-chunks", "QUEUE_UNAVAILABLE");
    clock.advance(7_000);
    outages.reconnected("redis");
    outages.reconnected("redis");
    metrics.close();
    expect(lines()).toMatchObject([
      { event: "store_unavailable", what: "redis" },
      { event: "store_recovered", what: "redis", duration_ms: 7_000 },
    ]);
  });

  test("is not told while operations wait: it may answer and refuse everything", () => {
    const { observer, metrics, outages, clock, lines } = observed();
    observer.onError("session-chunks", "QUEUE_UNAVAILABLE");
    outages.noticed("redis", 0);
    clock.advance(3_000);
    outages.reconnected("redis");
    outages.noticed("redis", 3);
    clock.advance(5_000);
    outages.ended("redis", "events.publish");
    metrics.close();
    expect(lines()).toMatchObject([
      { event: "store_unavailable", what: "redis" },
      { event: "store_recovered", what: "redis", stage: "events.publish", duration_ms: 8_000 },
    ]);
  });
});
