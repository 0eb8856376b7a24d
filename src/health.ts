import type { Consumer } from "./adapters/bullmq/job-worker.ts";
import type { QueueStats, QueueStatsReader } from "./adapters/bullmq/queue-stats.ts";
import { probeDirectory } from "./adapters/file/atomic-files.ts";
import { boundedCheck, type Check, type SidecarSources } from "./adapters/http/sidecar.ts";
import { isForbidden, isOutOfMemory, isRefusal } from "./adapters/redis/errors.ts";
import type { MongoConnection } from "./adapters/mongo/connection.ts";
import type { CpuThreads } from "./adapters/threads/cpu-threads.ts";
import type { Config } from "./config.ts";
import { QUEUE_CHUNKS } from "./schema/job.ts";
import type { Metrics } from "./telemetry/metrics.ts";

/** Jobs that wait while the worker has room and takes none for this long mean that it has stopped fetching. */
const PICKUP_STALL_MS = 30_000;

export interface HealthParts {
  readonly config: Config;
  readonly mongo: Pick<MongoConnection, "ping" | "commands">;
  readonly redis: { readonly commands: number };
  readonly events: { readonly commands: number };
  readonly threads: Pick<CpuThreads, "ping" | "queued" | "busy" | "isStarting">;
  readonly stats: Pick<QueueStatsReader, "read" | "checkWrites">;
  readonly consumers: { readonly chunks: Consumer; readonly control: Consumer };
  readonly metrics: Metrics;
  /** Absent where no manifests are written. */
  readonly manifestDirectory: string | undefined;
  /** Listed in /ready, not required. */
  readonly neighbours: { checks(): Promise<readonly Check[]> };
}

export interface Health {
  readonly sources: SidecarSources;
  setReady(ready: boolean): void;
  /** The checks for which /ready answers 503 at this moment; none: 200. */
  failing(): Promise<readonly Check[]>;
}

/** Where the sidecar gets its answers; it is there before the parts are that it looks at. */
export interface Probes {
  readonly sources: SidecarSources;
  /** What keeps the start from going on, in words fit for anyone; `undefined`: nothing but servers that are away. */
  blockedBy(check: { readonly name: string; readonly detail: string } | undefined): void;
  use(sources: SidecarSources): void;
}

/** Until `use`: alive, and not ready. */
export function startProbes(metrics: Metrics): Probes {
  let current: SidecarSources | undefined;
  let blocker: Check | undefined;
  metrics.set("ready", {}, 0);
  return {
    use(sources) {
      current = sources;
    },
    blockedBy(check) {
      blocker = check === undefined ? undefined : { ...check, ok: false, required: true };
    },
    sources: {
      health: async () => current?.health() ?? [await eventLoopCheck()],
      ready: async () => current?.ready() ?? [blocker ?? (await startingCheck())],
      metrics: () => current?.metrics() ?? metrics.text(),
    },
  };
}

/** What /health, /ready and /metrics look at (contract §12). */
export function createHealth(parts: HealthParts): Health {
  const { config, mongo, redis, events, threads, stats, consumers, metrics } = parts;
  const checkWrites = joined(() => stats.checkWrites());
  const pickup = new PickupWatch(consumers.chunks, () => performance.now());
  let ready = false;
  // A server that hangs has one question of each kind to answer, however many ask.
  const readQueues = joined(() => stats.read());
  const checkParts = joined(() => Promise.all(partChecks()));

  metrics.beforeScrape(["queue_jobs", "queue_oldest_job_age_seconds"], async () => {
    for (const queue of await readQueues()) setQueueGauges(metrics, queue);
  });
  metrics.beforeScrape(["cpu_threads", "cpu_queue_jobs"], () => {
    metrics.set("cpu_threads", { state: "busy" }, threads.busy);
    metrics.set("cpu_threads", { state: "idle" }, config.kernel.threads - threads.busy);
    metrics.set("cpu_queue_jobs", {}, threads.queued);
  });
  const mongoCommands = new CommandCount(() => mongo.commands);
  const redisCommands = new CommandCount(
    () => consumers.chunks.commands + consumers.control.commands + events.commands + redis.commands,
  );
  metrics.beforeScrape([], () => {
    metrics.count("mongodb_commands_total", {}, mongoCommands.added());
    metrics.count("redis_commands_total", {}, redisCommands.added());
  });
  // All that /ready asks, each with its own limit below that of a scrape: no server that is away takes a sample with it.
  metrics.beforeScrape(["ready", "dependency_up"], async () => {
    const checks = await requiredChecks();
    metrics.set("ready", {}, checks.every(({ ok }) => ok) ? 1 : 0);
    for (const { name, ok } of checks)
      if (isDependency(name)) metrics.set("dependency_up", { dependency: name }, ok ? 1 : 0);
  });

  function partChecks(): readonly Promise<Check>[] {
    return [
      boundedCheck("mongodb", true, async () => {
        await mongo.ping();
        return "answers";
      }),
      redisCheck(readQueues, checkWrites),
      boundedCheck("key_ring", true, async () => "fits the database"),
      threadsCheck(threads, () => answers(threads)),
      ...(parts.manifestDirectory === undefined ? [] : [manifestCheck(parts.manifestDirectory)]),
    ];
  }

  /** Whether it serves is asked last: an answer that began before a stop must not outlive it. */
  async function requiredChecks(look = checkParts): Promise<readonly Check[]> {
    const checks = await look();
    return [
      await boundedCheck("service", true, () => isServing(ready), { failure: "starting or stopping" }),
      ...checks,
    ];
  }

  return {
    setReady(isReady) {
      ready = isReady;
    },
    // A look of its own: one that somebody else began may have seen threads that were about to start.
    failing: async () => (await requiredChecks(() => Promise.all(partChecks()))).filter(({ ok }) => !ok),
    sources: {
      health: () =>
        Promise.all([
          eventLoopCheck(),
          threadsCheck(threads, async () => (threads.isStarting ? "start" : answers(threads))),
          pickupCheck(pickup, readQueues, checkWrites),
        ]),
      ready: async () => {
        const [required, optional] = await Promise.all([requiredChecks(), parts.neighbours.checks()]);
        return [...required, ...optional];
      },
      metrics: () => metrics.text(),
    },
  };
}

function startingCheck(): Promise<Check> {
  const failure = "starting: waits for mongodb or redis";
  return boundedCheck("service", true, () => isServing(false), { failure });
}

/** That this runs at all says that the event loop turns. */
function eventLoopCheck(): Promise<Check> {
  return boundedCheck("event_loop", true, async () => "turns");
}

function manifestCheck(directory: string): Promise<Check> {
  const failure = "can't be written; check that LUCID_MANIFEST_PATH exists, is mounted and has room";
  return boundedCheck("manifest_directory", true, () => probeDirectory(directory).then(() => "writable"), {
    failure,
  });
}

function threadsCheck(
  { isStarting }: Pick<CpuThreads, "isStarting">,
  probe: () => Promise<string>,
): Promise<Check> {
  const failure = isStarting
    ? "the CPU threads are starting"
    : "a CPU thread does not answer, and is being replaced";
  return boundedCheck("cpu_threads", true, probe, { failure });
}

async function answers(threads: Pick<CpuThreads, "ping">): Promise<string> {
  if (!(await threads.ping())) throw new Error("no answer");
  return "answer";
}

async function isServing(ready: boolean): Promise<string> {
  if (!ready) throw new Error("not serving");
  return "serving";
}

const OUT_OF_MEMORY =
  "is out of memory and refuses writes: see that events are consumed, or give it more (redis-cli config set maxmemory); work goes on by itself";
const REFUSES_WRITES = "refuses writes: a replica, a disk that is full? see its log, and redis-cli info";

/** Reads alone say little: a Redis without memory answers them all, and no job can be taken and nothing published. */
async function redisCheck(
  readQueues: () => Promise<unknown>,
  checkWrites: () => Promise<void>,
): Promise<Check> {
  let refusal: string | undefined;
  const check = await boundedCheck("redis", true, async () => {
    await readQueues();
    try {
      await checkWrites();
    } catch (thrown) {
      // Rights to this one command say nothing of those that BullMQ needs.
      if (isForbidden(thrown)) return "answers";
      if (isRefusal(thrown)) refusal = isOutOfMemory(thrown) ? OUT_OF_MEMORY : REFUSES_WRITES;
      throw thrown;
    }
    return "answers and takes writes";
  });
  return refusal === undefined ? check : { ...check, detail: refusal };
}

/**
 * With Redis away, hanging or refusing writes, nobody can say whether jobs wait, or take one: that is for /ready to show, not a reason to kill
 * the process.
 */
async function pickupCheck(
  pickup: PickupWatch,
  readQueues: () => Promise<readonly QueueStats[]>,
  checkWrites: () => Promise<void>,
): Promise<Check> {
  const name = "jobs";
  let stalledMs: number | undefined;
  await boundedCheck(name, true, async () => {
    const forget = (thrown: unknown): never => {
      pickup.forget();
      throw thrown;
    };
    const queues = await readQueues().catch(forget);
    await checkWrites().catch((thrown: unknown) => (isForbidden(thrown) ? undefined : forget(thrown)));
    stalledMs = pickup.observe(queues.find(({ queue }) => queue === QUEUE_CHUNKS)?.depth.waiting ?? 0);
    return "known";
  });
  if (stalledMs === undefined)
    return { name, ok: true, required: true, detail: "unknown: redis does not answer, or refuses writes" };
  const ok = stalledMs < PICKUP_STALL_MS;
  return { name, ok, required: true, detail: ok ? "picked up" : "jobs wait and none is picked up" };
}

function isDependency(name: string): name is "mongodb" | "redis" {
  return name === "mongodb" || name === "redis";
}

/** Whoever calls while `work` is under way shares its result. */
function joined<Result>(work: () => Promise<Result>): () => Promise<Result> {
  let underWay: Promise<Result> | undefined;
  return () => {
    underWay ??= work().finally(() => {
      underWay = undefined;
    });
    return underWay;
  };
}

/** What has been added to a running total since the last look. */
class CommandCount {
  readonly #total: () => number;
  #told = 0;

  constructor(total: () => number) {
    this.#total = total;
  }

  added(): number {
    const total = this.#total();
    const added = total - this.#told;
    this.#told = total;
    return added;
  }
}

/** For how long jobs have been waiting while no delivery was taken and none was running. */
class PickupWatch {
  readonly #consumer: Pick<Consumer, "deliveries" | "running">;
  readonly #nowMs: () => number;
  #deliveries = 0;
  #sinceMs: number | undefined;

  constructor(consumer: Pick<Consumer, "deliveries" | "running">, nowMs: () => number) {
    this.#consumer = consumer;
    this.#nowMs = nowMs;
  }

  /** What was seen before says nothing any more: the watch begins anew. */
  forget(): void {
    this.#sinceMs = undefined;
  }

  observe(waiting: number): number {
    const { deliveries, running } = this.#consumer;
    const isMoving = deliveries !== this.#deliveries || running > 0 || waiting === 0;
    this.#deliveries = deliveries;
    if (isMoving) this.#sinceMs = undefined;
    else this.#sinceMs ??= this.#nowMs();
    return this.#sinceMs === undefined ? 0 : this.#nowMs() - this.#sinceMs;
  }
}

function setQueueGauges(metrics: Metrics, { queue, depth, oldestWaitingSeconds }: QueueStats): void {
  for (const [state, jobs] of Object.entries(depth) as [keyof typeof depth, number][]) {
    metrics.set("queue_jobs", { queue, state }, jobs);
  }
  metrics.set("queue_oldest_job_age_seconds", { queue }, oldestWaitingSeconds);
}
