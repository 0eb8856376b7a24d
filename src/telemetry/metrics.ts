import { monitorEventLoopDelay } from "node:perf_hooks";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { ERROR_DISPOSITIONS, type ErrorCode, OUTAGE_CODES } from "../core/errors.ts";

/*
 * Metrics for Prometheus: one prefix, base units, `_total` for counters, and labels from closed sets only, so that the
 * number of time series is known when the process starts. Ids belong into the log.
 */

export const METRIC_PREFIX = "lucid_";

const CODES = Object.keys(ERROR_DISPOSITIONS) as readonly ErrorCode[];
/** A job's attempt fails with these and is repeated. */
const RETRIED_CODES = [
  "PAYLOAD_MISSING",
  "VERIFY_AFTER_SEAL_FAILED",
  "THREAD_CRASHED",
  "THREAD_TIMEOUT",
  "KEK_UNKNOWN",
  "INTERNAL",
] as const satisfies readonly ErrorCode[];
/** A job fails for good with these, or with one of the above once its attempts are used up. */
const REFUSED_CODES = [
  "JOB_INVALID",
  "JOB_NAME_UNKNOWN",
  "JOB_STALLED_TOO_OFTEN",
  "PAYLOAD_BASE64_INVALID",
  "PAYLOAD_EMPTY",
  "PAYLOAD_TOO_LARGE",
  "PAYLOAD_SIZE_MISMATCH",
  "PAYLOAD_DIGEST_MISMATCH",
  "PAYLOAD_REF_FORBIDDEN",
  "CHUNK_CONFLICT",
  "CHUNK_ID_CONFLICT",
  "CHUNK_BEYOND_END",
  "SESSION_SEALED",
  "SESSION_TOO_LARGE",
  "SESSION_UNKNOWN",
  "FINALIZE_COUNT_CONFLICT",
  "FINALIZE_COUNT_BELOW_CHUNKS",
  "TREE_CORRUPT",
  "SECRET_UNWRAP_FAILED",
] as const satisfies readonly ErrorCode[];
/** What a manifest, and with it a session, can wait for. */
const CLOSING_CODES = [
  "SESSION_UNKNOWN",
  "TREE_CORRUPT",
  "MANIFEST_INVALID",
  "MANIFEST_DIRECTORY_UNUSABLE",
  "INTERNAL",
] as const satisfies readonly ErrorCode[];
const ENGINE_CODES = [
  "SERVICE_UNAVAILABLE",
  "SERVICE_ANSWER_INVALID",
  "SERVICE_REJECTED",
] as const satisfies readonly ErrorCode[];
const CODECS = ["zstd", "lz4", "brotli", "none"] as const;
/** Contract §3; a test holds them together with the schema. */
const EVENT_TYPES = [
  "chunk.completed",
  "chunk.failed",
  "session.sealed",
  "session.anchored",
  "session.gap",
] as const;
/** The queues' names are configuration: closed for one process, given to createMetrics. */
const QUEUES: readonly string[] = [];

/** 0.1 ms (a digest) … 30 s (WORKER_TIMEOUT). */
const SECONDS_BUCKETS = [
  0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
];
const RATIO_BUCKETS = [1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16, 32, 64, 128];

type Labels = Readonly<Record<string, readonly string[]>>;

interface MetricDeclaration {
  readonly kind: "counter" | "gauge" | "histogram";
  readonly help: string;
  /** Every value that a label may have. */
  readonly labels: Labels;
  /**
   * Of a counter: the combinations that are known to occur, which start at 0; absent: all. Any other within `labels` makes its
   * series when it comes: a count that nobody expected is better than one that is refused.
   */
  readonly expected?: readonly Labels[];
  readonly buckets?: readonly number[];
}

/** Every metric, without the prefix. To add one, add an entry. */
export const METRICS = {
  // Chunks.
  stage_seconds: {
    kind: "histogram",
    help: "Time that one stage of one chunk took.",
    labels: {
      stage: ["read", "digest", "compress", "seal", "verify", "hash", "store", "integrate", "relay"],
    },
    buckets: SECONDS_BUCKETS,
  },
  chunk_seconds: {
    kind: "histogram",
    help: "Time from taking a chunk job to its commit.",
    labels: {},
    buckets: SECONDS_BUCKETS,
  },
  chunks_total: {
    kind: "counter",
    help: "Chunks by outcome and codec; a chunk that failed before its codec was chosen counts as none.",
    labels: { outcome: ["committed", "adopted", "failed"], codec: CODECS },
    expected: [
      { outcome: ["committed", "adopted"], codec: CODECS },
      { outcome: ["failed"], codec: ["none"] },
    ],
  },
  chunk_original_bytes_total: {
    kind: "counter",
    help: "Bytes of committed chunks as they came in.",
    labels: {},
  },
  chunk_stored_bytes_total: {
    kind: "counter",
    help: "Bytes of committed chunks as they were stored.",
    labels: {},
  },
  compression_ratio: {
    kind: "histogram",
    help: "Original over compressed size of a chunk.",
    labels: { codec: CODECS },
    buckets: RATIO_BUCKETS,
  },
  // Jobs.
  job_retries_total: {
    kind: "counter",
    help: "Attempts that failed and will be repeated, by error code.",
    labels: { code: CODES },
    expected: [{ code: RETRIED_CODES }],
  },
  job_failures_total: {
    kind: "counter",
    help: "Jobs that failed for good, by error code.",
    labels: { code: CODES },
    expected: [{ code: REFUSED_CODES }, { code: RETRIED_CODES }],
  },
  jobs_stalled_total: {
    kind: "counter",
    help: "Jobs taken over from a worker that went silent.",
    labels: { queue: QUEUES },
  },
  queue_jobs: {
    kind: "gauge",
    help: "Jobs in a queue by state.",
    labels: {
      queue: QUEUES,
      state: ["waiting", "prioritized", "active", "delayed", "completed", "failed"],
    },
  },
  queue_oldest_job_age_seconds: {
    kind: "gauge",
    help: "Age of the job that waits longest; 0 when none waits.",
    labels: { queue: QUEUES },
  },
  // Tree, sessions, events.
  tree_conflicts_total: {
    kind: "counter",
    help: "Compare-and-swaps of a tree head that another worker won.",
    labels: {},
  },
  sessions_sealed_total: { kind: "counter", help: "Sessions sealed by this process.", labels: {} },
  session_gaps_total: {
    kind: "counter",
    help: "Gaps reported, by each sweep: a chunk missing before later ones, or before the announced end.",
    labels: {},
  },
  sessions_stuck_total: {
    kind: "counter",
    help: "Times a sweep found a session that can't go on by itself, by error code.",
    labels: { code: CODES },
    expected: [{ code: CLOSING_CODES }],
  },
  redis_data_losses_total: {
    kind: "counter",
    help: "Times that Redis was found emptied or replaced, and its events were announced again.",
    labels: {},
  },
  manifests_written_total: { kind: "counter", help: "Manifests written by this process.", labels: {} },
  manifest_failures_total: {
    kind: "counter",
    help: "Manifests that could not be written and will be tried again, by error code.",
    labels: { code: CODES },
    expected: [{ code: CLOSING_CODES }],
  },
  checkpoints_signed_total: { kind: "counter", help: "Checkpoints signed by this process.", labels: {} },
  sessions_anchored_total: {
    kind: "counter",
    help: "Sessions whose anchoring this process saw confirmed.",
    labels: {},
  },
  anchor_delays_total: {
    kind: "counter",
    help: "Calls of the anchoring engine that failed and will be repeated, by error code.",
    labels: { code: CODES },
    expected: [{ code: ENGINE_CODES }],
  },
  unanchored_sessions: {
    kind: "gauge",
    help: "Sealed sessions that wait for their anchor, at the last sweep.",
    labels: {},
  },
  unanchored_oldest_age_seconds: {
    kind: "gauge",
    help: "For how long this process has seen the oldest of them wait; it goes on while no sweep ends.",
    labels: {},
  },
  events_relayed_total: {
    kind: "counter",
    help: "Events added to the event queues, by type and by who added them.",
    labels: { type: EVENT_TYPES, by: ["worker", "sweeper"] },
    expected: [
      { type: EVENT_TYPES, by: ["worker"] },
      { type: ["chunk.completed"], by: ["sweeper"] },
    ],
  },
  outbox_pending_events: {
    kind: "gauge",
    help: "Events that are pending for longer than they should, at the last sweep.",
    labels: {},
  },
  outbox_oldest_event_age_seconds: {
    kind: "gauge",
    help: "Age of the oldest of them; it goes on while no sweep ends.",
    labels: {},
  },
  sweeps_total: {
    kind: "counter",
    help: "Sweeps by kind and outcome.",
    labels: { sweep: ["events", "blobs", "sessions"], outcome: ["done", "failed"] },
  },
  orphan_blobs_removed_total: {
    kind: "counter",
    help: "Blobs without a chunk document that were removed.",
    labels: {},
  },
  // CPU threads.
  cpu_threads: { kind: "gauge", help: "CPU threads by state.", labels: { state: ["busy", "idle"] } },
  cpu_queue_jobs: { kind: "gauge", help: "Chunks that wait for a CPU thread.", labels: {} },
  cpu_threads_replaced_total: {
    kind: "counter",
    help: "CPU threads replaced, by reason.",
    labels: { reason: ["crashed", "timeout"] },
  },
  // What the work costs the servers.
  mongodb_commands_total: {
    kind: "counter",
    help: "Commands sent to MongoDB, without the driver's own.",
    labels: {},
  },
  redis_commands_total: {
    kind: "counter",
    help: "Commands sent to Redis by consumers, event publisher and payload reader.",
    labels: {},
  },
  // The process.
  ready: {
    kind: "gauge",
    help: "1 while the process is ready: what /ready answers, at the time of the scrape.",
    labels: {},
  },
  key_ring_mismatch: {
    kind: "gauge",
    help: "1 while the process waits because ENCRYPTION_KEY is not the key of its database.",
    labels: {},
  },
  dependency_up: {
    kind: "gauge",
    help: "1 while a dependency answers, as /ready sees it.",
    labels: { dependency: ["mongodb", "redis"] },
  },
  dependency_waits_total: {
    kind: "counter",
    help: "Waits for a dependency that did not answer, by error code.",
    labels: { code: CODES },
    expected: [{ code: OUTAGE_CODES }],
  },
  event_loop_lag_max_seconds: {
    kind: "gauge",
    help: "Longest delay of the event loop since the last scrape.",
    labels: {},
  },
  event_loop_lag_p99_seconds: {
    kind: "gauge",
    help: "99th percentile of the event loop's delay since the last scrape.",
    labels: {},
  },
  metric_samples_refused_total: {
    kind: "counter",
    help: "Samples with an undeclared label or an impossible value; more than 0 is a bug.",
    labels: {},
  },
  scrape_failures_total: {
    kind: "counter",
    help: "Values that could not be collected for a scrape; they are missing from it.",
    labels: {},
  },
} as const satisfies Record<string, MetricDeclaration>;

export type MetricName = keyof typeof METRICS;
type OfKind<Kind extends MetricDeclaration["kind"]> = {
  [Name in MetricName]: (typeof METRICS)[Name]["kind"] extends Kind ? Name : never;
}[MetricName];

/** One declared value for each declared label, and nothing else. */
export type LabelsOf<Name extends MetricName> = keyof (typeof METRICS)[Name]["labels"] extends never
  ? Readonly<Record<string, never>>
  : {
      readonly [Label in keyof (typeof METRICS)[Name]["labels"]]: ElementOf<
        (typeof METRICS)[Name]["labels"][Label]
      >;
    };

type ElementOf<Values> = Values extends readonly (infer Value extends string)[] ? Value : never;

export interface Metrics {
  /** Adds to a counter. */
  count<Name extends OfKind<"counter">>(name: Name, labels: LabelsOf<Name>, by?: number): void;
  /** Adds one sample to a histogram. */
  observe<Name extends OfKind<"histogram">>(name: Name, labels: LabelsOf<Name>, value: number): void;
  set<Name extends OfKind<"gauge">>(name: Name, labels: LabelsOf<Name>, value: number): void;
  /** Until it is set again: no value is better than an old one. */
  leaveOut(name: OfKind<"gauge">): void;
  /**
   * Calls `collect` before each scrape, for values that are looked up rather than counted. If it fails or takes longer
   * than COLLECT_TIMEOUT_MS, `gauges` are left out of that scrape.
   */
  beforeScrape(gauges: readonly OfKind<"gauge">[], collect: () => void | Promise<void>): void;
  /** The exposition in `contentType`. */
  text(): Promise<string>;
  readonly contentType: string;
  /** Stops measuring the event loop. */
  close(): void;
}

export interface MetricsOptions {
  readonly version: string;
  /** Every value that the label `queue` may have. */
  readonly queues: readonly string[];
}

/** Longer than any check of the sidecar, so that a server that hangs is a 0 and not a gap; shorter than its answer may take. */
const COLLECT_TIMEOUT_MS = 1750;

type LabelValues = Readonly<Record<string, string>>;
type AnyMetric = Counter | Gauge | Histogram;

/** A registry of its own with every metric of METRICS, the process's default metrics and the build's. */
export function createMetrics(options: MetricsOptions): Metrics {
  const registry = new Registry();
  collectDefaults(registry);
  registerBuildInfo(registry, options.version);
  const metrics = new Map<MetricName, AnyMetric>();
  for (const name of Object.keys(METRICS) as MetricName[])
    metrics.set(name, register(name, registry, options));
  const lag = measureEventLoop();
  const collectors: (() => Promise<void>)[] = [];

  /** A bug in a label must not fail the chunk that it describes: refused, counted, and visible. */
  function accepts(name: MetricName, labels: LabelValues, value: number): boolean {
    if (isDeclared(name, labels, options) && Number.isFinite(value) && value >= 0) return true;
    (metrics.get("metric_samples_refused_total") as Counter).inc();
    return false;
  }

  const api: Metrics = {
    count(name, labels: LabelValues, by = 1) {
      if (accepts(name, labels, by)) (metrics.get(name) as Counter).inc(labels, by);
    },
    observe(name, labels: LabelValues, value) {
      if (accepts(name, labels, value)) (metrics.get(name) as Histogram).observe(labels, value);
    },
    set(name, labels: LabelValues, value) {
      if (accepts(name, labels, value)) (metrics.get(name) as Gauge).set(labels, value);
    },
    leaveOut(name) {
      leaveOut(metrics.get(name) as Gauge, name);
    },
    beforeScrape(gauges, collect) {
      collectors.push(async () => {
        try {
          await withTimeout(collect, COLLECT_TIMEOUT_MS);
        } catch {
          api.count("scrape_failures_total", {});
          for (const name of gauges) api.leaveOut(name);
        }
      });
    },
    async text() {
      await Promise.all(collectors.map((collect) => collect()));
      const { maxSeconds, p99Seconds } = lag.read();
      api.set("event_loop_lag_max_seconds", {}, maxSeconds);
      api.set("event_loop_lag_p99_seconds", {}, p99Seconds);
      return registry.metrics();
    },
    contentType: registry.contentType,
    close() {
      lag.stop();
      registry.clear();
    },
  };
  return api;
}

function register(name: MetricName, registry: Registry, options: MetricsOptions): AnyMetric {
  const { kind, help, labels, buckets, expected = [labels] }: MetricDeclaration = METRICS[name];
  const common = {
    name: `${METRIC_PREFIX}${name}`,
    help,
    labelNames: Object.keys(labels),
    registers: [registry],
  };
  if (kind === "histogram") return new Histogram({ ...common, buckets: [...(buckets ?? [])] });
  if (kind === "gauge") return new Gauge(common);
  const counter = new Counter(common);
  // From 0: a rate over a series that begins at 1 misses its first event.
  for (const some of expected)
    for (const combination of combinations(some, options)) counter.inc(combination, 0);
  return counter;
}

/** `reset` makes a gauge without labels 0, which is a value; `remove` wants labels where there are some. */
function leaveOut(gauge: Gauge, name: MetricName): void {
  if (Object.keys(METRICS[name].labels).length === 0) gauge.remove();
  else gauge.reset();
}

function declaredValues(values: readonly string[], options: MetricsOptions): readonly string[] {
  return values === QUEUES ? options.queues : values;
}

function isDeclared(name: MetricName, given: LabelValues, options: MetricsOptions): boolean {
  const labels: Labels = METRICS[name].labels;
  const names = Object.keys(labels);
  return (
    names.length === Object.keys(given).length &&
    names.every((label) => declaredValues(labels[label] ?? [], options).includes(given[label] ?? ""))
  );
}

function combinations(labels: Labels, options: MetricsOptions): readonly Record<string, string>[] {
  return Object.entries(labels).reduce<readonly Record<string, string>[]>(
    (all, [label, values]) =>
      all.flatMap((one) => declaredValues(values, options).map((value) => ({ ...one, [label]: value }))),
    [{}],
  );
}

/** The defaults' own event-loop metrics are left out: ours measure the same, and one name is enough. */
function collectDefaults(registry: Registry): void {
  collectDefaultMetrics({ register: registry, prefix: METRIC_PREFIX });
  for (const { name } of registry.getMetricsAsArray()) {
    if (name.includes("eventloop")) registry.removeSingleMetric(name);
  }
}

function registerBuildInfo(registry: Registry, version: string): void {
  const info = new Gauge({
    name: `${METRIC_PREFIX}build_info`,
    help: "Always 1; its labels say which build runs.",
    labelNames: ["version", "node_version", "arch"],
    registers: [registry],
  });
  info.set({ version, node_version: process.version, arch: process.arch }, 1);
}

const LAG_RESOLUTION_MS = 10;
const NANOSECONDS = 1e9;

interface EventLoopLag {
  /** Since the last read. */
  read(): { readonly maxSeconds: number; readonly p99Seconds: number };
  stop(): void;
}

function measureEventLoop(): EventLoopLag {
  const histogram = monitorEventLoopDelay({ resolution: LAG_RESOLUTION_MS });
  histogram.enable();
  // The histogram counts the time between two ticks of its own timer; an idle loop shows the timer's period.
  const lagSeconds = (nanoseconds: number): number =>
    Math.max(0, nanoseconds / NANOSECONDS - LAG_RESOLUTION_MS / 1000);
  return {
    read() {
      const empty = histogram.count === 0;
      const lag = empty
        ? { maxSeconds: 0, p99Seconds: 0 }
        : { maxSeconds: lagSeconds(histogram.max), p99Seconds: lagSeconds(histogram.percentile(99)) };
      histogram.reset();
      return lag;
    },
    stop: () => void histogram.disable(),
  };
}

async function withTimeout(work: () => void | Promise<void>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("too slow")), timeoutMs);
  });
  try {
    await Promise.race([Promise.resolve().then(work), timeout]);
  } finally {
    clearTimeout(timer);
  }
}
