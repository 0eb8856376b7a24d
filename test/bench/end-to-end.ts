import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Redis } from "ioredis";
import { GuardedProcess } from "../../deploy/local/guarded-process.ts";
import type { LocalServers } from "../../deploy/local/servers.ts";
import { dropTrial, type Trial, trialOn } from "../../deploy/local/trial.ts";
import { type LocalWorker, NODE_FLAGS, startLocalWorker } from "../../deploy/local/worker.ts";
import { createEventConsumer, type EventConsumer } from "../../src/adapters/bullmq/event-consumer.ts";
import { createProducer, type Producer } from "../../src/adapters/bullmq/producer.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import type { LucidEvent } from "../../src/schema/event.ts";
import { OutsideLoad, processCpuSeconds, rssBytes, rssPeakBytes } from "./machine.ts";
import { type DataKind, sampleChunk } from "./sample-data.ts";

/** Chunks of a run that are not counted: connections, compilation and the first key derivation are in them. */
const WARM_UP_SHARE = 0.25;
const SAMPLES = 64;
const RSS_INTERVAL_MS = 50;
const RUN_TIMEOUT_MS = 300_000;
const RIVAL = fileURLToPath(new URL("rival-worker.ts", import.meta.url));
/** The worker's own default. */
const RIVAL_JOBS = 10;
const RIVAL_READY_MS = 20_000;
const RIVAL_POLL_MS = 200;
const NO_BACK_PRESSURE = 1_000_000;

export interface Load {
  readonly kind: DataKind;
  readonly chunkBytes: number;
  readonly chunks: number;
  /** Jobs at a time, of the worker or of its rival; absent: the worker's default. */
  readonly jobs?: number;
  /** Chunk counts at which the worker's memory is noted. */
  readonly memoryAt?: readonly number[];
}

export interface Throughput {
  readonly mbPerS: number;
  readonly chunksPerS: number;
  readonly workerCpuMsPerChunk: number;
  readonly mongoCommandsPerChunk: number;
  readonly redisCommandsPerChunk: number;
  /** All of it, from the ready worker to session.sealed at a subscriber: with JIT, key derivation and the last marks. */
  readonly mbPerSToSeal: number;
  /** Calls that the server counted for the worker's own GETRANGE, which nobody else sends: 1 a chunk. */
  readonly redisServerReadsPerChunk: number;
  /** All calls that the server counted: the subscriber's too, and those inside of BullMQ's scripts. */
  readonly redisServerCallsPerChunk: number;
  /** Cores that other programs used meanwhile; absent where the system doesn't say. */
  readonly outsideCores?: number;
  readonly rssMbPeak: number;
  /** Highest between the mark before and this one, by chunk count. */
  readonly rssMbAt: Readonly<Record<string, number>>;
}

/** All jobs wait in the queue before the worker starts: the worker is what is measured, not the producer. */
export async function measureThroughput(servers: LocalServers, load: Load): Promise<Throughput> {
  const trial = await trialOn(servers, "bench");
  const session = `sess-bench-${randomBytes(4).toString("hex")}`;
  const producer = producerOf(trial);
  try {
    await producer.enqueueAll(chunksOf(session, load));
    await producer.finalize({ session_id: session, chunk_count: load.chunks });
    return await runWorker(trial, servers, load);
  } finally {
    await producer.close();
    await dropTrial(trial);
  }
}

async function runWorker(trial: Trial, servers: LocalServers, load: Load): Promise<Throughput> {
  const warmUp = Math.floor(load.chunks * WARM_UP_SHARE);
  const watch = new EventWatch(trial);
  const worker = await startLocalWorker({ dir: servers.folder, env: { ...trial.env, ...jobsOf(load) } });
  const readyMs = performance.now();
  const memory = new MemoryWatch(worker);
  const server = new Redis(trial.redisUrl);
  try {
    const rssMbAt = marksOf(load.memoryAt ?? [], watch, memory);
    const sealed = watch.untilSealed();
    await watch.until(warmUp);
    const [before, served] = [await readMetrics(worker), await callsServed(server)];
    const outside = new OutsideLoad([process.pid, worker.pid, servers.redis.pid, servers.mongodb.pid]);
    const startedMs = performance.now();
    await watch.until(load.chunks);
    const seconds = (performance.now() - startedMs) / 1000;
    const outsideCores = outside.cores();
    const [after, servedAfter] = [await readMetrics(worker), await callsServed(server)];
    const counted = after.chunks - before.chunks;
    await sealed;
    return {
      ...ratesOf(load, counted, seconds, after.cpuSeconds - before.cpuSeconds),
      mbPerSToSeal: (load.chunks * load.chunkBytes) / 1e3 / (performance.now() - readyMs),
      mongoCommandsPerChunk: (after.mongoCommands - before.mongoCommands) / counted,
      redisCommandsPerChunk: (after.redisCommands - before.redisCommands) / counted,
      redisServerReadsPerChunk: (servedAfter.reads - served.reads) / counted,
      redisServerCallsPerChunk: (servedAfter.all - served.all) / counted,
      ...(outsideCores === undefined ? {} : { outsideCores }),
      rssMbAt: await rssMbAt,
      rssMbPeak: memory.stop(),
    };
  } finally {
    memory.stop();
    server.disconnect();
    await watch.close();
    await worker.stop();
  }
}

export type RivalThroughput = Pick<
  Throughput,
  "mbPerS" | "chunksPerS" | "workerCpuMsPerChunk" | "outsideCores"
>;

/** The same load, measured in the same way, for rival-worker.ts in the worker's place. */
export async function measureRival(servers: LocalServers, load: Load): Promise<RivalThroughput> {
  const trial = await trialOn(servers, "bench");
  const producer = producerOf(trial);
  const watch = new EventWatch(trial);
  try {
    await producer.enqueueAll(chunksOf(`sess-rival-${randomBytes(4).toString("hex")}`, load));
    const rival = new GuardedProcess({
      name: "rival",
      program: process.execPath,
      args: [...NODE_FLAGS, RIVAL],
      dir: join(servers.folder, "rival"),
      env: {
        ...trial.env,
        CPU_THREADS: String(trial.threads),
        MAX_WORKERS: String(RIVAL_JOBS),
        ...jobsOf(load),
      },
    });
    try {
      return await unlessEnded(rival, runRival(rival, watch, servers, load));
    } finally {
      await rival.stop();
    }
  } finally {
    await watch.close();
    await producer.close();
    await dropTrial(trial);
  }
}

async function runRival(
  rival: GuardedProcess,
  watch: EventWatch,
  servers: LocalServers,
  load: Load,
): Promise<RivalThroughput> {
  const isReady = async (pid: number) => (rival.valueAfter("rival ready") === undefined ? undefined : pid);
  const pid = await rival.untilReady(isReady, RIVAL_READY_MS, undefined);
  await watch.until(Math.floor(load.chunks * WARM_UP_SHARE));
  const done = watch.count;
  const outside = new OutsideLoad([process.pid, pid, servers.redis.pid, servers.mongodb.pid]);
  const [startedMs, cpuBefore] = [performance.now(), processCpuSeconds(pid)];
  await watch.until(load.chunks);
  const seconds = (performance.now() - startedMs) / 1000;
  const outsideCores = outside.cores();
  return {
    ...ratesOf(load, load.chunks - done, seconds, processCpuSeconds(pid) - cpuBefore),
    ...(outsideCores === undefined ? {} : { outsideCores }),
  };
}

function jobsOf({ jobs }: Load): { readonly MAX_WORKERS?: string } {
  return jobs === undefined ? {} : { MAX_WORKERS: String(jobs) };
}

function ratesOf({ chunkBytes }: Load, counted: number, seconds: number, cpuSeconds: number) {
  return {
    mbPerS: (counted * chunkBytes) / 1e6 / seconds,
    chunksPerS: counted / seconds,
    workerCpuMsPerChunk: (cpuSeconds * 1000) / counted,
  };
}

/** The rival ends itself at the first job that fails; the events would be waited for in vain. */
async function unlessEnded<Result>(rival: GuardedProcess, work: Promise<Result>): Promise<Result> {
  const { promise: ended, reject } = Promise.withResolvers<never>();
  const poll = setInterval(() => {
    const how = rival.valueAfter("guard ended ");
    if (how !== undefined) reject(new Error(`the rival ended (${how}); why is in rival.log`));
  }, RIVAL_POLL_MS);
  try {
    return await Promise.race([work, ended]);
  } finally {
    clearInterval(poll);
  }
}

async function marksOf(
  counts: readonly number[],
  watch: EventWatch,
  memory: MemoryWatch,
): Promise<Readonly<Record<string, number>>> {
  const marks: Record<string, number> = {};
  for (const count of counts) {
    await watch.until(count);
    marks[count] = memory.peakSinceLastMark();
  }
  return marks;
}

/** INFO commandstats: the second opinion on what the worker says that it sends. */
async function callsServed(server: Redis): Promise<{ readonly all: number; readonly reads: number }> {
  const lines = [...(await server.info("commandstats")).matchAll(/^cmdstat_([^:]+):calls=(\d+)/gm)];
  const all = lines.reduce((sum, [, , calls]) => sum + Number(calls), 0);
  const reads = Number(lines.find(([, name]) => name === "getrange")?.[2] ?? 0);
  return { all, reads };
}

export interface LatencyMs {
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
}

/** From the producer's call to the event at a subscriber, with chunks coming at a steady rate. */
export async function measureLatency(
  servers: LocalServers,
  load: Load,
  chunksPerS: number,
): Promise<LatencyMs> {
  const trial = await trialOn(servers, "bench");
  const session = `sess-bench-${randomBytes(4).toString("hex")}`;
  const sentMs = new Map<number, number>();
  const latenciesMs: number[] = [];
  const watch = new EventWatch(trial, (event) => {
    if (event.type !== "chunk.completed") return;
    const sent = sentMs.get(event.chunk_index);
    if (sent !== undefined) latenciesMs.push(performance.now() - sent);
  });
  const worker = await startLocalWorker({ dir: servers.folder, env: trial.env });
  const producer = producerOf(trial);
  try {
    const samples = samplesOf(load);
    const send = (index: number): Promise<unknown> =>
      producer.enqueueChunk({ sessionId: session, index, bytes: samples[index % samples.length]! });
    const warmUp = Math.floor(load.chunks * WARM_UP_SHARE);
    for (let index = 0; index < warmUp; index++) await send(index);
    await watch.until(warmUp);
    const under: Promise<unknown>[] = [];
    const startedMs = performance.now();
    for (let index = warmUp; index < load.chunks; index++) {
      const dueMs = startedMs + ((index - warmUp) * 1000) / chunksPerS;
      const waitMs = dueMs - performance.now();
      if (waitMs > 0) await sleep(waitMs);
      // When it was due, not when it was sent: a producer that falls behind must not make the worker look quick.
      sentMs.set(index, Math.max(dueMs, startedMs));
      under.push(send(index));
    }
    await Promise.all(under);
    await watch.until(load.chunks);
    const counted = latenciesMs.toSorted((a, b) => a - b);
    return { p50: quantile(counted, 0.5), p95: quantile(counted, 0.95), p99: quantile(counted, 0.99) };
  } finally {
    await producer.close();
    await watch.close();
    await worker.stop();
    await dropTrial(trial);
  }
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

function producerOf(trial: Trial): Producer {
  return createProducer({
    url: trial.redisUrl,
    prefix: trial.queuePrefix,
    queueSizeMax: NO_BACK_PRESSURE,
    payloadTtlSeconds: 3_600,
    clock: createSystemClock(),
    onError: () => undefined,
  });
}

function samplesOf({ kind, chunkBytes, chunks }: Load): readonly Uint8Array[] {
  return Array.from({ length: Math.min(SAMPLES, chunks) }, (_, index) =>
    sampleChunk(kind, chunkBytes, index),
  );
}

function* chunksOf(sessionId: string, load: Load) {
  const samples = samplesOf(load);
  for (let index = 0; index < load.chunks; index++) {
    yield { sessionId, index, bytes: samples[index % samples.length] ?? new Uint8Array(load.chunkBytes) };
  }
}

/** Counts chunk.completed events, each id once. */
class EventWatch {
  readonly #seen = new Set<string>();
  readonly #waiting = new Set<{ readonly count: number; readonly resolve: () => void }>();
  readonly #consumer: EventConsumer;
  readonly #sealed = Promise.withResolvers<void>();

  constructor(trial: Trial, onEvent: (event: LucidEvent) => void = () => undefined) {
    this.#consumer = createEventConsumer({
      url: trial.redisUrl,
      prefix: trial.queuePrefix,
      queue: trial.eventQueue,
      concurrency: 32,
      onError: () => undefined,
      onEvent: (event) => {
        onEvent(event);
        if (event.type === "chunk.failed") throw new Error(`a chunk failed: ${event.error.code}`);
        if (event.type === "chunk.completed") this.#hear(event.event_id);
        if (event.type === "session.sealed") this.#sealed.resolve();
      },
    });
  }

  /** Chunks that have been heard of. */
  get count(): number {
    return this.#seen.size;
  }

  async until(count: number): Promise<void> {
    if (this.#seen.size >= count) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiting = { count, resolve };
    const late = setTimeout(
      () => reject(new Error(`only ${this.#seen.size} of ${count} chunks were done in time`)),
      RUN_TIMEOUT_MS,
    ).unref();
    this.#waiting.add(waiting);
    await promise;
    clearTimeout(late);
  }

  async untilSealed(): Promise<void> {
    const late = setTimeout(
      () => this.#sealed.reject(new Error("the session was not sealed in time")),
      RUN_TIMEOUT_MS,
    ).unref();
    await this.#sealed.promise;
    clearTimeout(late);
  }

  close(): Promise<void> {
    return this.#consumer.close();
  }

  #hear(id: string): void {
    this.#seen.add(id);
    for (const waiting of this.#waiting) {
      if (this.#seen.size < waiting.count) continue;
      this.#waiting.delete(waiting);
      waiting.resolve();
    }
  }
}

interface WorkerMetrics {
  readonly chunks: number;
  readonly cpuSeconds: number;
  readonly mongoCommands: number;
  readonly redisCommands: number;
}

/** As a Prometheus would read them. */
async function readMetrics({ port }: LocalWorker): Promise<WorkerMetrics> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
  const sum = (name: string): number =>
    text
      .split("\n")
      .filter((line) => line.startsWith(name) && "{, ".includes(line.charAt(name.length)))
      .reduce((total, line) => total + Number(line.slice(line.lastIndexOf(" "))), 0);
  return {
    chunks: sum('lucid_chunks_total{outcome="committed"'),
    cpuSeconds: sum("lucid_process_cpu_seconds_total"),
    mongoCommands: sum("lucid_mongodb_commands_total"),
    redisCommands: sum("lucid_redis_commands_total"),
  };
}

/** The worker's resident memory, sampled for the marks; the peak is the operating system's own. Not a number without /proc. */
class MemoryWatch {
  readonly #pid: number;
  readonly #timer: NodeJS.Timeout;
  #peakBytes = Number.NaN;
  #peakSinceMark = Number.NaN;

  constructor({ pid }: LocalWorker) {
    this.#pid = pid;
    this.#timer = setInterval(() => this.#sample(), RSS_INTERVAL_MS);
  }

  /** MiB. */
  peakSinceLastMark(): number {
    this.#sample();
    const peak = this.#peakSinceMark;
    this.#peakSinceMark = Number.NaN;
    return peak / 2 ** 20;
  }

  /** MiB, of the worker's whole life. */
  stop(): number {
    clearInterval(this.#timer);
    this.#peakBytes = rssPeakBytes(this.#pid) ?? this.#peakBytes;
    return this.#peakBytes / 2 ** 20;
  }

  #sample(): void {
    const bytes = rssBytes(this.#pid) ?? Number.NaN;
    this.#peakSinceMark = Math.max(bytes, Number.isNaN(this.#peakSinceMark) ? 0 : this.#peakSinceMark);
  }
}
