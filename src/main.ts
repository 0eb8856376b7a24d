import type { KeyObject } from "node:crypto";
import { setFlagsFromString } from "node:v8";
import { createEventPublisher } from "./adapters/bullmq/event-publisher.ts";
import { createChunkConsumer } from "./adapters/bullmq/chunk-consumer.ts";
import { createControlConsumer } from "./adapters/bullmq/control-consumer.ts";
import type { Consumer, JobObserver } from "./adapters/bullmq/job-worker.ts";
import { createQueueStats } from "./adapters/bullmq/queue-stats.ts";
import { errnoOf } from "./adapters/file/errno.ts";
import { createManifestFiles, makeDefaultManifestFolder } from "./adapters/file/manifest-files.ts";
import { loadSigningKey } from "./adapters/file/signing-key.ts";
import { createFilePayloadStore } from "./adapters/file/payload-store.ts";
import { startSidecar, type Sidecar, type SidecarSources } from "./adapters/http/sidecar.ts";
import { MongoBlobStore } from "./adapters/mongo/blob-store.ts";
import { MongoChunkStore } from "./adapters/mongo/chunk-store.ts";
import { connectMongo, type MongoConnection } from "./adapters/mongo/connection.ts";
import { ensureIndexes } from "./adapters/mongo/indexes.ts";
import { MongoManifestStore } from "./adapters/mongo/manifest-store.ts";
import { MongoServiceStateStore } from "./adapters/mongo/service-state-store.ts";
import { MongoSessionStore } from "./adapters/mongo/session-store.ts";
import { MongoTileStore } from "./adapters/mongo/tile-store.ts";
import { payloadStoreOf } from "./adapters/payload-store.ts";
import { checkRedis } from "./adapters/redis/client.ts";
import { redisLabel } from "./adapters/redis/label.ts";
import { createRedisPayloadStore } from "./adapters/redis/payload-store.ts";
import { createSystemClock } from "./adapters/system/clock.ts";
import { onStopSignals } from "./adapters/system/stop-signals.ts";
import { unlessAborted } from "./adapters/system/unless-aborted.ts";
import { systemRandomBytes } from "./adapters/system/random.ts";
import { CpuThreads } from "./adapters/threads/cpu-threads.ts";
import { chunkHandlersOf } from "./chunk-handlers.ts";
import { type Config, type LoadedConfig, loadProcessConfig, reloadable, restartRequired } from "./config.ts";
import type { KeyRing } from "./core/encrypt/kek.ts";
import { asLucidError, type ErrorCode, errorCodeOf, isOutage, LucidError } from "./core/errors.ts";
import { createHealth, type Health, type Probes, startProbes } from "./health.ts";
import { keyRingOf } from "./key-ring.ts";
import { createNeighbours, eventQueuesOf } from "./neighbours.ts";
import { checkKeyRing } from "./pipeline/check-key-ring.ts";
import { createPipeline, type Pipeline } from "./pipeline/pipeline.ts";
import type { Clock } from "./pipeline/ports.ts";
import { QUEUE_CHUNKS, QUEUE_CONTROL } from "./schema/job.ts";
import { createJobObserver } from "./adapters/telemetry/job-observer.ts";
import { Outages } from "./adapters/telemetry/outages.ts";
import { createLog, type Log } from "./telemetry/log.ts";
import { SERVICE, VERSION } from "./version.ts";
import { createMetrics, type Metrics } from "./telemetry/metrics.ts";
import { createObserver } from "./adapters/telemetry/pipeline-observer.ts";

/** finalize-session is rare and waits for the tree more than it works. */
const CONTROL_CONCURRENCY = 4;
const CONNECT_PAUSE_FIRST_MS = 200;
const CONNECT_PAUSE_MAX_MS = 2_000;
/** The clients connect by themselves, again and again; this is how often that is said. */
const REDIS_CONNECT_MS_MAX = 2_000;
const START_POLL_MS = 10;
/** A look at /ready's checks, one of which writes to a disk. */
const READY_POLL_MS = 1_000;
/** How often a process with a wrong key says so, and looks whether the key is still wrong. */
const KEY_RING_CHECK_INTERVAL_MS = 10_000;
/** Sweeps of replicas that started together must not stay together. */
const SWEEP_JITTER = 0.2;
/** What a sweep has found is told as it is for this many pauses between sweeps, and for a minute at least. */
const BACKLOG_FRESH_SWEEPS = 3;
const BACKLOG_FRESH_MS_MIN = 60_000;
/** How far garbage may take a heap beyond what was alive in it at the last collection (decision 12). */
const HEAP_GROWTH_PERCENT = 40;
/** After the deadline of the jobs, for connections to close; then the process ends as it is. */
const CLOSE_GRACE_MS = 4_000;

/**
 * The service from start to end: validate → sidecar → MongoDB → indexes → key → Redis → threads → queues → sweeps → ready, and back in order on
 * SIGTERM or SIGINT. Resolves with the exit code.
 */
export async function runService(loaded: LoadedConfig): Promise<number> {
  const { config } = loaded;
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`);
  const log = createLog({ level: config.log.level, service: SERVICE, version: VERSION });
  const queues = [QUEUE_CHUNKS, QUEUE_CONTROL, ...eventQueuesOf(config)];
  const metrics = createMetrics({ version: VERSION, queues });
  const clock = createSystemClock();
  const stop = new StopRequest(log);
  const reload = new ReloadRequest(loaded, log);
  let sidecar: Sidecar | undefined;
  log.event("service_starting", { threads: config.kernel.threads, concurrency: config.queues.concurrency });
  for (const warning of loaded.warnings) log.event("config_warning", { warning });
  try {
    const keyRing = keyRingOf(config);
    const signingKey = await signingKeyOf(config, log);
    if (signingKey !== undefined && loaded.sources.LUCID_MANIFEST_PATH === "default") {
      await makeDefaultManifestFolder(config.paths.manifests);
    }
    // Before the servers are waited for: whoever watches /health must not take the patience for a hang, and kill it.
    const probes = startProbes(metrics);
    sidecar = await openSidecar(config, probes.sources, metrics, log);
    const waiting = { clock, log, metrics, stop: stop.signal };
    const mongo = await patiently("mongodb", () => openMongo(config, log), waiting);
    const fits = mongo !== undefined && (await untilKeyRingFits(mongo, { config, keyRing, probes }, waiting));
    const redis = await patiently("redis", () => lookForRedis(config, log), waiting);
    if (mongo === undefined || !fits || redis === undefined) {
      await mongo?.close();
      return 0;
    }
    const { port } = sidecar;
    const service = createService({ config, keyRing, signingKey, mongo, log, metrics, clock, probes, port });
    reload.use((jobs) => service.setConcurrency(jobs));
    await service.start(waiting);
    await service.stop(await stop.requested);
    return 0;
  } finally {
    await sidecar?.close();
    reload.release();
    stop.release();
    metrics.close();
    log.flush();
  }
}

interface Parts {
  readonly config: Config;
  readonly keyRing: KeyRing;
  /** Without one sessions get no manifest, no checkpoint and no anchor. */
  readonly signingKey: KeyObject | undefined;
  readonly mongo: MongoConnection;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly probes: Probes;
  /** The sidecar's. */
  readonly port: number;
}

interface Service {
  /** Resolves when it is ready, or when the process is told to stop before that. */
  start(waiting: Waiting): Promise<void>;
  setConcurrency(jobs: number): void;
  /** Never rejects; bounded by the shutdown deadline and CLOSE_GRACE_MS. */
  stop(reason: string): Promise<void>;
}

function createService(parts: Parts): Service {
  const { config, mongo, log, metrics, clock, probes, port } = parts;
  const startedMs = clock.monotonicMs();
  /** Fires when whatever still waits for a server must give up. */
  const stopped = new AbortController();
  /** Fires first: no new sweeps. */
  const draining = new AbortController();

  const outages = new Outages(log, clock);
  const jobObserver = createJobObserver(log, metrics, outages);
  const adapters = createAdapters(parts, jobObserver, outages);
  const { threads, events, redisPayloads, stats } = adapters;
  const blobs = new MongoBlobStore(mongo);
  const neighbours = createNeighbours(config, blobs, clock, (where, code) =>
    jobObserver.onError(where, code),
  );
  const pipeline = createPipeline(
    {
      sessions: new MongoSessionStore(mongo),
      chunks: new MongoChunkStore(mongo),
      blobs,
      tiles: new MongoTileStore(mongo),
      manifests: new MongoManifestStore(mongo),
      serviceState: new MongoServiceStateStore(mongo, config.queues.prefix),
      files: createManifestFiles(config.paths.manifests),
      payloads: adapters.payloads,
      events,
      threads,
      clock,
      random: systemRandomBytes,
      observer: createObserver(log, metrics, outages, { clock, backlogFreshMs: backlogFreshMs(config) }),
    },
    {
      keyRing: parts.keyRing,
      hashAlgorithm: config.merkle.hashAlgorithm,
      chunkBytesMax: config.limits.chunkBytesMax,
      sessionBytesMax: config.limits.sessionBytesMax,
      compressionThresholdBytes: config.compression.thresholdBytes,
      epochAgeMaxMs: config.encryption.keyRotationIntervalMs,
      eventPendingMs: config.sweep.eventPendingMs,
      eventRetentionMs: config.queues.eventRetention.ageSeconds * 1000,
      gapAlertMs: config.sweep.gapAlertMs,
      orphanBlobMs: config.sweep.orphanBlobMs,
      checkpointIntervalMs: config.merkle.checkpointIntervalMs,
      closing: { signingKey: parts.signingKey, engine: neighbours.engine },
    },
    stopped.signal,
  );
  const consumers = createConsumers(parts, pipeline, jobObserver);
  const manifestDirectory = parts.signingKey === undefined ? undefined : config.paths.manifests;
  const health = createHealth({
    config,
    mongo,
    threads,
    stats,
    consumers,
    redis: redisPayloads,
    events,
    metrics,
    manifestDirectory,
    neighbours,
  });
  probes.use(health.sources);
  /** Of all sweeps; there is none before the start has come so far. */
  let sweeping: Promise<void> | undefined;

  return {
    async start(waiting) {
      // Redis has answered a moment ago, but these are connections of their own: the first job and the first sweep would
      // take them for an outage.
      const connect = () => untilConnected([events, redisPayloads, stats], waiting);
      if ((await patiently("redis", connect, waiting)) === undefined) return;
      // Threads that don't come up at all are for /health and /ready to show.
      while (threads.isStarting && !waiting.stop.aborted) await clock.sleep(START_POLL_MS, waiting.stop);
      if (waiting.stop.aborted) return;
      for (const consumer of Object.values(consumers)) consumer.start();
      neighbours.start();
      sweeping = sweepForever(pipeline, config, clock, log, metrics, draining.signal);
      health.setReady(true);
      if (!(await untilReady(health, port, waiting))) return;
      log.event("ready", { port, duration_ms: Math.round(clock.monotonicMs() - startedMs) });
    },
    setConcurrency: (jobs) => consumers.chunks.setConcurrency(jobs),
    async stop(reason) {
      const stoppingMs = clock.monotonicMs();
      const { deadlineMs } = config.shutdown;
      health.setReady(false);
      log.event("stopping", { reason });
      draining.abort();
      const giveUp = setTimeout(() => stopped.abort(), deadlineMs);
      const close = async (): Promise<void> => {
        await Promise.all(Object.values(consumers).map((consumer) => consumer.stop({ deadlineMs })));
        await neighbours.close();
        await sweeping;
        await pipeline.settled();
        stopped.abort();
        await Promise.all([threads.close(), events.close(), redisPayloads.close(), stats.close()]);
        await mongo.close();
      };
      const closed = await endsWithin(close(), deadlineMs + CLOSE_GRACE_MS);
      clearTimeout(giveUp);
      const duration_ms = Math.round(clock.monotonicMs() - stoppingMs);
      if (closed) log.event("stopped", { duration_ms });
      else log.event("stop_deadline_passed", { what: "closing", duration_ms });
    },
  };
}

function createAdapters({ config, log, metrics }: Parts, observer: JobObserver, outages: Outages) {
  const target = {
    url: config.redis.url.reveal(),
    onError: (where: string, code: ErrorCode) => observer.onError(where, code),
    onReady: () => outages.reconnected("redis"),
  };
  const { prefix, eventRetention } = config.queues;
  const eventQueues = eventQueuesOf(config);
  const threads = new CpuThreads({
    threads: config.kernel.threads,
    timeoutMs: config.kernel.workerTimeoutMs,
    log: (event) => {
      if (event.kind !== "thread-replaced") return;
      const reason = event.error.code === "THREAD_TIMEOUT" ? "timeout" : "crashed";
      metrics.count("cpu_threads_replaced_total", { reason });
      log.event("thread_replaced", { reason, err: event.error });
    },
  });
  const redisPayloads = createRedisPayloadStore({
    ...target,
    readBytesMax: config.limits.chunkBytesMax,
  });
  return {
    threads,
    redisPayloads,
    payloads: payloadStoreOf({ redis: redisPayloads, file: createFilePayloadStore(config.paths.payloads) }),
    events: createEventPublisher({ ...target, prefix, queues: eventQueues, retention: eventRetention }),
    stats: createQueueStats({ ...target, prefix, queues: [QUEUE_CHUNKS, QUEUE_CONTROL, ...eventQueues] }),
  };
}

function createConsumers(
  { config, clock }: Parts,
  pipeline: Pipeline,
  observer: JobObserver,
): { readonly chunks: Consumer; readonly control: Consumer } {
  const { queues } = config;
  const common = {
    redisUrl: config.redis.url.reveal(),
    prefix: queues.prefix,
    retryAttempts: queues.retryAttempts,
    retryDelayMs: queues.retryDelayMs,
    retentionCompleted: queues.jobRetention,
    retentionFailed: queues.failedRetention,
    lockDurationMs: queues.lockDurationMs,
    stalledIntervalMs: queues.stalledIntervalMs,
    stalledCountMax: queues.stalledCountMax,
    clock,
    observer,
  };
  const chunks = createChunkConsumer({
    ...common,
    concurrency: queues.concurrency,
    limits: { chunkBytesMax: config.limits.chunkBytesMax, defaultCompression: config.compression },
    ...chunkHandlersOf(pipeline),
  });
  const control = createControlConsumer({
    ...common,
    concurrency: CONTROL_CONCURRENCY,
    async finalize(job, { signal }) {
      await pipeline.finalizeSession(job, signal);
    },
  });
  return { chunks, control };
}

async function signingKeyOf({ manifest }: Config, log: Log): Promise<KeyObject | undefined> {
  if (manifest.signingKeyFile !== undefined)
    return (await loadSigningKey(manifest.signingKeyFile)).privateKey;
  const warning = "no MANIFEST_SIGNING_KEY_FILE: sessions are sealed without manifest, checkpoint and anchor";
  log.event("config_warning", { warning });
  return undefined;
}

/** Throws CONFIG_INVALID when the address can't be had: that is for the operator to change. */
async function openSidecar(
  { http }: Config,
  sources: SidecarSources,
  metrics: Metrics,
  log: Log,
): Promise<Sidecar> {
  try {
    return await startSidecar(sources, {
      ...http,
      service: SERVICE,
      version: VERSION,
      metricsContentType: metrics.contentType,
      onError: (err) => log.event("sidecar_error", { err }),
    });
  } catch (cause) {
    const why = LISTEN_TROUBLE[errnoOf(cause) ?? ""] ?? "choose others";
    const address = `SESSION_PROCESSOR_PORT ${http.port} of HTTP_BIND ${http.bind}`;
    throw new LucidError("CONFIG_INVALID", `can't listen on ${address}: ${why}`, { cause });
  }
}

const LISTEN_TROUBLE: Readonly<Record<string, string>> = {
  EADDRINUSE: "another program, perhaps another worker, has that port; end it, or choose another port",
  EADDRNOTAVAIL: "this machine has no such address; choose one that it has, or 0.0.0.0 for all",
  EACCES: "this user may not have that port; choose one from 1024 on",
};

async function openMongo(config: Config, log: Log): Promise<MongoConnection> {
  const mongo = await connectMongo({
    url: config.mongodb.url.reveal(),
    appName: SERVICE,
    onDeaf: () => log.event("mongodb_client_renewed", {}),
  });
  try {
    for (const warning of await ensureIndexes(mongo)) log.event("config_warning", { warning });
    const { text, standIn } = await mongo.serverLabel();
    log.event(standIn ? "connected_stand_in" : "connected", { what: text });
    return mongo;
  } catch (thrown) {
    await mongo.close();
    throw thrown;
  }
}

async function lookForRedis({ redis }: Config, log: Log): Promise<true> {
  const url = redis.url.reveal();
  try {
    await checkRedis(url);
    log.event("connected", { what: await redisLabel({ url }) });
    return true;
  } catch (thrown) {
    if (!isOutage(thrown)) throw thrown;
    const message =
      "Redis doesn't answer, or refuses for now: check that it runs and has loaded, and REDIS_URL";
    throw new LucidError(thrown.code, message, { cause: thrown.cause });
  }
}

interface Waiting {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly stop: AbortSignal;
}

/** Tries until the server is there, saying what it waits for; `undefined` when the process is told to stop meanwhile. */
async function patiently<Connected>(
  what: "mongodb" | "redis",
  connect: () => Promise<Connected>,
  { clock, log, metrics, stop }: Waiting,
): Promise<Connected | undefined> {
  const startedMs = clock.monotonicMs();
  let pauseMs = CONNECT_PAUSE_FIRST_MS;
  for (let attempt = 1; !stop.aborted; attempt++) {
    try {
      const connected = await connect();
      metrics.set("dependency_up", { dependency: what }, 1);
      return connected;
    } catch (err) {
      if (!isOutage(err)) throw err;
      metrics.set("dependency_up", { dependency: what }, 0);
      const duration_ms = Math.round(clock.monotonicMs() - startedMs);
      log.event("waiting_for", { what, attempt, duration_ms, err });
    }
    await clock.sleep(pauseMs, stop);
    pauseMs = Math.min(pauseMs * 2, CONNECT_PAUSE_MAX_MS);
  }
  return undefined;
}

/** `undefined` when the process is told to stop meanwhile. @throws LucidError QUEUE_UNAVAILABLE after REDIS_CONNECT_MS_MAX */
async function untilConnected(
  clients: readonly { readonly connected: boolean }[],
  { clock, stop }: Waiting,
): Promise<true | undefined> {
  const givesUpMs = clock.monotonicMs() + REDIS_CONNECT_MS_MAX;
  while (!clients.every(({ connected }) => connected)) {
    if (stop.aborted) return undefined;
    if (clock.monotonicMs() > givesUpMs)
      throw new LucidError("QUEUE_UNAVAILABLE", "Redis answers, but not on every connection");
    await clock.sleep(START_POLL_MS, stop);
  }
  return true;
}

/**
 * Jobs are taken by now. What else /ready asks, such as the folder for manifests, is for somebody to put right: each of it is said once, and
 * the log says `ready` when /ready does. False when the process is told to stop meanwhile.
 */
async function untilReady(
  health: Pick<Health, "failing">,
  port: number,
  { clock, log, stop }: Waiting,
): Promise<boolean> {
  const told = new Set<string>();
  while (!stop.aborted) {
    // Its checks may take seconds, and a stop doesn't wait for them.
    const failing = await unlessAborted(health.failing(), stop, () => undefined);
    if (failing === undefined) return false;
    if (failing.length === 0) return true;
    for (const { name, detail } of failing) {
      if (!told.has(name)) log.event("not_ready", { what: name, reason: detail, port });
      told.add(name);
    }
    await clock.sleep(READY_POLL_MS, stop);
  }
  return false;
}

/**
 * A process with another key than its database's would make dead letters of every job that the others could do: it takes none, and
 * says so until somebody ends it, or it is the database that is put right. False when the process is told to stop meanwhile.
 */
async function untilKeyRingFits(
  mongo: MongoConnection,
  { config, keyRing, probes }: Pick<Parts, "config" | "keyRing" | "probes">,
  waiting: Waiting,
): Promise<boolean> {
  const { clock, log, metrics, stop } = waiting;
  const ports = {
    serviceState: new MongoServiceStateStore(mongo, config.queues.prefix),
    sessions: new MongoSessionStore(mongo),
    random: systemRandomBytes,
  };
  const check = () =>
    checkKeyRing(ports, keyRing).then(
      ({ unopened }) => {
        if (unopened > 0)
          log.event("key_ring_partial", { count: unopened, kek_version: keyRing.activeVersion });
        return "fits" as const;
      },
      (thrown: unknown) => {
        if (errorCodeOf(thrown) !== "KEK_MISMATCH") throw thrown;
        return asLucidError(thrown);
      },
    );
  while (!stop.aborted) {
    const verdict = await patiently("mongodb", check, waiting);
    if (verdict === undefined) return false;
    const isMismatch = verdict !== "fits";
    metrics.set("key_ring_mismatch", {}, isMismatch ? 1 : 0);
    probes.blockedBy(isMismatch ? { name: "key_ring", detail: verdict.message } : undefined);
    if (!isMismatch) return true;
    log.event("key_ring_mismatch", { err: verdict, kek_version: keyRing.activeVersion });
    await clock.sleep(KEY_RING_CHECK_INTERVAL_MS, stop);
  }
  return false;
}

function backlogFreshMs({ sweep }: Config): number {
  return Math.max(BACKLOG_FRESH_SWEEPS * sweep.intervalMs, BACKLOG_FRESH_MS_MIN);
}

async function sweepForever(
  pipeline: Pipeline,
  config: Config,
  clock: Clock,
  log: Log,
  metrics: Metrics,
  signal: AbortSignal,
): Promise<void> {
  const sweeps = {
    events: () => pipeline.sweeper.sweepPendingEvents(signal),
    sessions: () => pipeline.sweeper.sweepSessions(signal),
    blobs: () => pipeline.sweeper.sweepOrphanBlobs(signal),
  };
  // Each in a loop of its own: one that waits for a slow neighbour keeps none of the others. The first at once: what a
  // crash or a Redis that was emptied has left behind doesn't wait.
  const loop = async (sweep: keyof typeof sweeps): Promise<void> => {
    while (!signal.aborted) {
      try {
        await sweeps[sweep]();
        metrics.count("sweeps_total", { sweep, outcome: "done" });
      } catch (err) {
        if (signal.aborted) return;
        metrics.count("sweeps_total", { sweep, outcome: "failed" });
        log.event("sweep_failed", { what: sweep, err });
      }
      const jitter = 1 + SWEEP_JITTER * (2 * Math.random() - 1);
      await clock.sleep(config.sweep.intervalMs * jitter, signal);
    }
  };
  await Promise.all((Object.keys(sweeps) as (keyof typeof sweeps)[]).map(loop));
}

/** SIGHUP: takes over what can change while the service runs. From the first line on, or it would end the process. */
class ReloadRequest {
  readonly #before: LoadedConfig;
  readonly #log: Log;
  readonly #onSignal = (): void => this.#reload();
  #concurrency: number | undefined;
  #setConcurrency: ((jobs: number) => void) | undefined;

  constructor(before: LoadedConfig, log: Log) {
    this.#before = before;
    this.#log = log;
    process.on("SIGHUP", this.#onSignal);
  }

  /** What came while the service was starting holds for it too. */
  use(setConcurrency: (jobs: number) => void): void {
    this.#setConcurrency = setConcurrency;
    if (this.#concurrency !== undefined) setConcurrency(this.#concurrency);
  }

  release(): void {
    process.off("SIGHUP", this.#onSignal);
  }

  #reload(): void {
    const log = this.#log;
    try {
      const after = loadProcessConfig();
      const { concurrency, logLevel } = reloadable(after.config);
      this.#concurrency = concurrency;
      this.#setConcurrency?.(concurrency);
      log.setLevel(logLevel);
      log.event("config_reloaded", { concurrency });
      const settings = restartRequired(this.#before, after);
      if (settings.length > 0) log.event("restart_required", { settings });
    } catch (err) {
      log.event("config_reload_refused", { err });
    }
  }
}

/** The first SIGTERM or SIGINT asks for an orderly end; the second ends the process at once. */
class StopRequest {
  readonly requested: Promise<string>;
  readonly signal: AbortSignal;
  readonly release: () => void;

  constructor(log: Log) {
    const request = Promise.withResolvers<string>();
    const controller = new AbortController();
    this.requested = request.promise;
    this.signal = controller.signal;
    this.release = onStopSignals({
      first: (signal) => {
        controller.abort();
        request.resolve(signal);
      },
      again: (signal) => {
        log.event("stop_forced", { signal });
        process.exit(1);
      },
    });
  }
}

async function endsWithin(work: Promise<void>, limitMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(resolve, limitMs, false);
  });
  try {
    return await Promise.race([work.then(() => true), late]);
  } finally {
    clearTimeout(timer);
  }
}
