import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { ERROR_DISPOSITIONS, type ErrorCode } from "../../src/core/errors.ts";
import { EVENT_TYPES } from "../../src/schema/event.ts";
import { createMetrics, METRIC_PREFIX, METRICS, type Metrics } from "../../src/telemetry/metrics.ts";

const open: Metrics[] = [];
afterEach(() => {
  for (const metrics of open.splice(0)) metrics.close();
});

function make(): Metrics {
  const metrics = createMetrics({ version: "1.2.3", queues: ["session-chunks", "storage-events"] });
  open.push(metrics);
  return metrics;
}

/** The value of one series, or undefined when the scrape doesn't have it. */
async function value(metrics: Metrics, series: string): Promise<number | undefined> {
  const line = (await metrics.text()).split("\n").find((one) => one.startsWith(`${METRIC_PREFIX}${series} `));
  return line === undefined ? undefined : Number(line.slice(line.lastIndexOf(" ")));
}

describe("declared metrics", () => {
  test("follow the naming rules: snake case, base units, _total for counters only", () => {
    for (const [name, { kind }] of Object.entries(METRICS)) {
      expect(name).toMatch(/^[a-z][a-z0-9]*(_[a-z0-9]+)*$/);
      expect(name.endsWith("_total"), name).toBe(kind === "counter");
      expect(name).not.toMatch(/(_ms|_millis|milliseconds|_kb|_mb|percent|minutes|_count|_sum|_bucket)(_|$)/);
    }
  });

  test("have labels from closed sets only, and none that is an id", () => {
    for (const [name, { labels }] of Object.entries(METRICS)) {
      for (const [label, values] of Object.entries(labels as Record<string, readonly string[]>)) {
        expect(label).not.toMatch(/id$|session|chunk|job|key|host|url|path|message/);
        expect(label, name).toMatch(/^[a-z_]+$/);
        expect(new Set(values).size).toBe(values.length);
        expect(label === "queue" || values.length > 0, `${name} ${label}`).toBe(true);
      }
    }
  });

  test("appear with help and type, and every name in the scrape has the one prefix", async () => {
    const metrics = make();
    const text = await metrics.text();
    for (const [name, { kind, help }] of Object.entries(METRICS)) {
      expect(text).toContain(`# HELP ${METRIC_PREFIX}${name} ${help}`);
      expect(text).toContain(`# TYPE ${METRIC_PREFIX}${name} ${kind}`);
    }
    for (const line of text.split("\n")) if (line !== "") expect(line).toMatch(/^(# (HELP|TYPE) )?lucid_/);
    expect(metrics.contentType).toContain("text/plain");
  });

  test("know every event type of the contract", () => {
    expect(METRICS.events_relayed_total.labels.type).toEqual(EVENT_TYPES);
  });

  test("have counters that start at 0 for what can occur", async () => {
    const metrics = make();
    expect(await value(metrics, 'chunks_total{outcome="committed",codec="lz4"}')).toBe(0);
    expect(await value(metrics, 'job_failures_total{code="CHUNK_CONFLICT"}')).toBe(0);
    expect(await value(metrics, 'jobs_stalled_total{queue="storage-events"}')).toBe(0);
  });
});

describe("error codes as labels", () => {
  type Labels = Readonly<Record<string, readonly string[]>>;
  type CodeMetric = { readonly labels: Labels; readonly expected?: readonly Labels[] };

  /** Dispositions of the codes that start at 0. */
  const dispositionsOf = (name: keyof typeof METRICS): readonly string[] => {
    const { expected = [] }: CodeMetric = METRICS[name];
    const codes = expected.flatMap(({ code }) => (code ?? []) as readonly ErrorCode[]);
    return [...new Set(codes.map((code) => ERROR_DISPOSITIONS[code]))].sort();
  };

  test("start at 0 only where they can occur: what the table of dispositions rules out isn't there", () => {
    expect(dispositionsOf("job_retries_total")).toEqual(["retryable"]);
    expect(dispositionsOf("job_failures_total")).toEqual(["retryable", "unrecoverable"]);
    expect(dispositionsOf("dependency_waits_total")).toEqual(["released"]);
    for (const [name, metric] of Object.entries(METRICS)) {
      const { labels, expected }: CodeMetric = metric;
      if ("code" in labels) expect(expected, name).toBeDefined();
    }
  });

  test("that can't occur are in no scrape", async () => {
    const text = await make().text();
    for (const series of [
      'job_retries_total{code="CHUNK_CONFLICT"}',
      'job_failures_total{code="CONFIG_INVALID"}',
      'job_failures_total{code="STORE_UNAVAILABLE"}',
      'job_failures_total{code="SERVICE_REJECTED"}',
      'dependency_waits_total{code="JOB_INVALID"}',
      'anchor_delays_total{code="TREE_CORRUPT"}',
      'chunks_total{outcome="failed",codec="zstd"}',
      'events_relayed_total{type="chunk.failed",by="sweeper"}',
    ])
      expect(text, series).not.toContain(`${METRIC_PREFIX}${series}`);
  });

  test("that nobody expected are counted all the same", async () => {
    const metrics = make();
    metrics.count("job_failures_total", { code: "BLOB_MALFORMED" });
    expect(await value(metrics, 'job_failures_total{code="BLOB_MALFORMED"}')).toBe(1);
    expect(await value(metrics, "metric_samples_refused_total")).toBe(0);
  });
});

describe("samples", () => {
  test("count, observe and set", async () => {
    const metrics = make();
    metrics.count("chunks_total", { outcome: "committed", codec: "zstd" });
    metrics.count("chunks_total", { outcome: "committed", codec: "zstd" }, 2);
    metrics.observe("stage_seconds", { stage: "seal" }, 0.02);
    metrics.set("queue_jobs", { queue: "session-chunks", state: "waiting" }, 4);
    expect(await value(metrics, 'chunks_total{outcome="committed",codec="zstd"}')).toBe(3);
    expect(await value(metrics, 'stage_seconds_count{stage="seal"}')).toBe(1);
    expect(await value(metrics, 'queue_jobs{queue="session-chunks",state="waiting"}')).toBe(4);
  });

  test("with an undeclared label, a missing one or an impossible value are refused and counted, and nothing throws", async () => {
    const metrics = make();
    // @ts-expect-error: no such stage
    metrics.observe("stage_seconds", { stage: "sess-123" }, 1);
    // @ts-expect-error: a label that is not declared
    metrics.count("tree_conflicts_total", { session_id: "sess-123" });
    // @ts-expect-error: the label is missing
    metrics.count("job_failures_total", {});
    // @ts-expect-error: a gauge is not counted
    metrics.count("ready", {}, Number.NaN);
    metrics.set("queue_jobs", { queue: "undeclared-queue", state: "waiting" }, 1);
    metrics.observe("chunk_seconds", {}, -1);
    metrics.observe("chunk_seconds", {}, Number.NaN);
    expect(await value(metrics, "metric_samples_refused_total")).toBe(7);
    const text = await metrics.text();
    expect(text).not.toMatch(/sess-123|undeclared-queue/);
    expect(await value(metrics, "chunk_seconds_count")).toBe(0);
  });

  test("don't make more series than are declared", async () => {
    const metrics = make();
    const before = (await metrics.text()).split("\n").length;
    for (let i = 0; i < 100; i++) metrics.count("job_retries_total", { code: `CODE_${i}` as "INTERNAL" });
    expect((await metrics.text()).split("\n")).toHaveLength(before);
  });
});

describe("a scrape", () => {
  test("asks for looked-up values first", async () => {
    const metrics = make();
    metrics.beforeScrape(["cpu_queue_jobs"], () => metrics.set("cpu_queue_jobs", {}, 9));
    expect(await value(metrics, "cpu_queue_jobs")).toBe(9);
  });

  test("leaves out values that can't be looked up, counts that, and has them again afterwards", async () => {
    const metrics = make();
    let up = true;
    metrics.beforeScrape(["cpu_queue_jobs", "queue_jobs"], async () => {
      if (!up) throw new Error("redis is down");
      metrics.set("cpu_queue_jobs", {}, 9);
      metrics.set("queue_jobs", { queue: "session-chunks", state: "active" }, 1);
    });
    await metrics.text();
    up = false;
    expect(await value(metrics, "cpu_queue_jobs")).toBeUndefined();
    expect(await value(metrics, 'queue_jobs{queue="session-chunks",state="active"}')).toBeUndefined();
    expect(await value(metrics, "scrape_failures_total")).toBeGreaterThanOrEqual(2);
    up = true;
    expect(await value(metrics, "cpu_queue_jobs")).toBe(9);
  });

  test("is not held up by a lookup that hangs", async () => {
    const metrics = make();
    metrics.beforeScrape(["cpu_queue_jobs"], () => new Promise(() => {}));
    expect(await value(metrics, "scrape_failures_total")).toBe(1);
  });

  test("shows a blocked event loop once", async () => {
    const metrics = make();
    await sleep(30);
    const end = performance.now() + 120;
    while (performance.now() < end);
    await sleep(30);
    expect(await value(metrics, "event_loop_lag_max_seconds")).toBeGreaterThan(0.08);
    expect(await value(metrics, "event_loop_lag_max_seconds")).toBeLessThan(0.08);
  });

  test("says which build runs, and measures the event loop under one name only", async () => {
    const text = await make().text();
    expect(text).toContain(`lucid_build_info{version="1.2.3",node_version="${process.version}"`);
    expect(text).toContain("lucid_process_resident_memory_bytes");
    expect(text).not.toContain("eventloop");
  });
});
