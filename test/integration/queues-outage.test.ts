import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as immediate, setTimeout as sleep } from "node:timers/promises";
import { Queue } from "bullmq";
import { Redis } from "ioredis";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { freePort } from "../../deploy/local/free-port.ts";
import { type LocalServer, startLocalRedis } from "../../deploy/local/servers.ts";
import { type ChunkConsumerOptions, createChunkConsumer } from "../../src/adapters/bullmq/chunk-consumer.ts";
import {
  type BullmqEventPublisher,
  createEventPublisher,
} from "../../src/adapters/bullmq/event-publisher.ts";
import type { Consumer, JobOutcome } from "../../src/adapters/bullmq/job-worker.ts";
import { createProducer, type Producer, type ProducerOptions } from "../../src/adapters/bullmq/producer.ts";
import { closeClient, failFastClient, waitingClient } from "../../src/adapters/redis/client.ts";
import { createRedisPayloadStore } from "../../src/adapters/redis/payload-store.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { errorCodeOf, LucidError } from "../../src/core/errors.ts";
import { sessionId } from "../../src/core/ids.ts";
import { createPatience } from "../../src/pipeline/patience.ts";
import { openForgetfulProxy } from "../support/forgetful-proxy.ts";

/* A Redis of this file's own, that is killed and comes back on the same port with its data (AOF). */

const START_MS = 120_000;
const PREFIX = "{outage}";
const clock = createSystemClock();
const patience = createPatience(clock, { report: () => undefined });
const never = new AbortController().signal;

let port: number;
let folder: string;
let server: LocalServer | undefined;
const closers: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "session-processor-outage-"));
  port = await freePort();
  await startRedis();
}, START_MS);

afterEach(async () => {
  await Promise.all(closers.splice(0).map((close) => close()));
  await server?.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function startRedis(): Promise<void> {
  server = await startLocalRedis({ port, dir: folder, say: () => undefined });
}

async function killRedis(): Promise<void> {
  process.kill(server?.pid ?? 0, "SIGKILL");
  await server?.stop();
}

async function signalRedis(signal: NodeJS.Signals): Promise<void> {
  try {
    process.kill(server?.pid ?? 0, signal);
  } catch (thrown) {
    // Gone already, which only SIGCONT may find.
    if (signal !== "SIGCONT") throw thrown;
  }
}

async function limitMemory(bytes: string): Promise<void> {
  await withQueue("session-chunks", (_queue, redis) => redis.config("SET", "maxmemory", bytes));
}

const url = () => `redis://127.0.0.1:${port}`;

async function withQueue<Result>(
  name: string,
  use: (queue: Queue, redis: Redis) => Promise<Result>,
): Promise<Result> {
  const redis = new Redis(url());
  redis.on("error", () => undefined);
  const queue = new Queue(name, { connection: redis, prefix: PREFIX });
  queue.on("error", () => undefined);
  try {
    return await use(queue, redis);
  } finally {
    await queue.close();
    redis.disconnect();
  }
}

const outcomes: JobOutcome[] = [];
const errors: string[] = [];

function publisher(queues: readonly string[] = ["storage-events"]): BullmqEventPublisher {
  const events = createEventPublisher({
    url: url(),
    prefix: PREFIX,
    queues,
    retention: { ageSeconds: 3600, count: 10_000 },
    onError: (where) => errors.push(where),
  });
  closers.push(() => events.close());
  return events;
}

function consume(
  process: ChunkConsumerOptions["process"],
  over: Partial<ChunkConsumerOptions> = {},
): Consumer {
  outcomes.length = 0;
  errors.length = 0;
  const events = publisher();
  const consumer = createChunkConsumer({
    redisUrl: url(),
    prefix: PREFIX,
    concurrency: 4,
    lockDurationMs: 2_000,
    stalledIntervalMs: 500,
    stalledCountMax: 16,
    retryAttempts: 3,
    retryDelayMs: 20,
    retentionCompleted: { ageSeconds: 3600, count: 1000 },
    retentionFailed: { ageSeconds: 3600, count: 1000 },
    clock,
    observer: {
      onError: (where) => errors.push(where),
      onOutcome: (outcome) => outcomes.push(outcome),
      onStalled: () => undefined,
    },
    limits: { chunkBytesMax: 1024, defaultCompression: { algorithm: "zstd", level: 3 } },
    announce: (event) => events.publish(event),
    process,
    standing: () => Promise.resolve({ kind: "none" }),
    ...over,
  });
  consumer.start();
  closers.push(() => consumer.stop({ deadlineMs: 1_000 }));
  return consumer;
}

const seen = new Set<number>();
/** A stub comes where Redis lost the completion, but not the stub, of a job. */
const remember: ChunkConsumerOptions["process"] = async (task) => {
  await sleep(20);
  const [chunk_id, chunk_index] =
    task.kind === "stub" ? [task.stub.chunk_id, task.stub.chunk_index] : [task.job.chunkId, task.job.index];
  seen.add(chunk_index);
  return { chunk_id, chunk_index, leaf_hash: "cd".repeat(32), stored_bytes: 1 };
};

function jobs(from: number, count: number) {
  return Array.from({ length: count }, (_, n) => ({
    name: "process-chunk",
    data: { session_id: "s", chunk_id: `s-chunk-${from + n}`, chunk_data_base64: "aGVsbG8=" },
    opts: { jobId: `s.${from + n}` },
  }));
}

async function until(what: string, holds: () => unknown, timeoutMs = 20_000): Promise<number> {
  const startedMs = performance.now();
  while (!(await holds())) {
    if (performance.now() - startedMs > timeoutMs) throw new Error(`never came: ${what}`);
    await sleep(10);
  }
  return performance.now() - startedMs;
}

test("a busy consumer lives through a killed Redis, goes on within 10 s, and fails no job", async () => {
  seen.clear();
  const consumer = consume(remember);
  await withQueue("session-chunks", (queue) => queue.addBulk(jobs(0, 100)));
  await until("some work", () => seen.size > 10);
  await killRedis();
  await sleep(3_000);
  await startRedis();
  await until("the rest", () => seen.size === 100, 10_000);
  await until("an idle consumer", () => consumer.running === 0);
  await withQueue("session-chunks", async (queue) => {
    await until(
      "an empty queue",
      async () => (await queue.getJobCountByTypes("waiting", "active", "delayed")) === 0,
    );
    expect(await queue.getJobCounts("failed")).toEqual({ failed: 0 });
  });
  expect(outcomes.every(({ outcome }) => outcome === "completed")).toBe(true);
}, 60_000);

test("an idle consumer takes a new job within 10 s of Redis coming back", async () => {
  seen.clear();
  const consumer = consume(remember);
  await until("a connection", () => consumer.connected);
  await sleep(300);
  await killRedis();
  await sleep(7_000);
  await startRedis();
  await withQueue("session-chunks", (queue) => queue.addBulk(jobs(0, 1)));
  expect(await until("the job", () => seen.size === 1, 10_000)).toBeLessThan(10_000);
}, 60_000);

test("a consumer stops although Redis is away: idle within a second or so, busy soon after its deadline", async () => {
  const idle = consume(remember);
  await until("a connection", () => idle.connected);
  const busy = consume(
    (_task, { signal }) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener("abort", () => reject(new LucidError("SHUTTING_DOWN", "stopped")));
      }),
    { concurrency: 1 },
  );
  // Only the second one can hold a job that long.
  await idle.stop({ deadlineMs: 1_000 });
  const idleToo = consume(remember, { prefix: "{elsewhere}" });
  await withQueue("session-chunks", (queue) => queue.addBulk(jobs(0, 1)));
  await until("a running job", () => busy.running === 1);
  await until("a connection", () => idleToo.connected);
  await killRedis();
  await sleep(300);
  let startedMs = performance.now();
  await idleToo.stop({ deadlineMs: 20_000 });
  expect(performance.now() - startedMs).toBeLessThan(2_500);
  startedMs = performance.now();
  await busy.stop({ deadlineMs: 500 });
  expect(performance.now() - startedMs).toBeLessThan(3_500);
}, 60_000);

test("events published through an outage arrive once each, and a caller is told at once that Redis is away", async () => {
  const events = publisher(["storage-events", "audit-events"]);
  await until("a connection", () => events.connected);
  const event = (n: number) => ({
    event_id: `session.gap.s.${n}`,
    type: "session.gap" as const,
    version: 1 as const,
    occurred_at: new Date(0).toISOString(),
    session_id: "s",
    tree_size: n,
    missing: [[n, n] as [number, number]],
  });
  const underWay = Array.from({ length: 200 }, async (_, n) => {
    await sleep(n * 10);
    await patience("events.publish", never, () => events.publish(event(n)));
  });
  await sleep(500);
  await killRedis();
  await sleep(500);
  const startedMs = performance.now();
  const code = await events.publish(event(0)).then(() => "none", errorCodeOf);
  expect(code).toBe("QUEUE_UNAVAILABLE");
  expect(performance.now() - startedMs).toBeLessThan(500);
  await startRedis();
  await Promise.all(underWay);
  for (const name of ["storage-events", "audit-events"]) {
    await withQueue(name, async (queue) => {
      const waiting = await queue.getJobs(["waiting"]);
      expect(new Set(waiting.map(({ id }) => id)).size).toBe(200);
      expect(waiting).toHaveLength(200);
    });
  }
}, 60_000);

test("a publisher and a payload store made while Redis is away work when it comes", async () => {
  await killRedis();
  const events = publisher();
  const payloads = createRedisPayloadStore({
    readBytesMax: 1024 * 1024,
    url: url(),
    onError: () => undefined,
  });
  closers.push(() => payloads.close());
  await sleep(1_500);
  await startRedis();
  await until("connections", () => events.connected && payloads.connected, 5_000);
  await patience("x", never, () =>
    events.publish({
      event_id: "session.gap.s.0",
      type: "session.gap",
      version: 1,
      occurred_at: new Date(0).toISOString(),
      session_id: "s",
      tree_size: 0,
      missing: [[0, 0]],
    }),
  );
  const ref = await payloads.write(sessionId("s"), "p", new Uint8Array([1]), 60);
  expect(await payloads.read(sessionId("s"), ref, 1)).toEqual(new Uint8Array([1]));
}, 60_000);

test("a Redis without memory is back-pressure for producers and no hot loop for consumers, and both go on after it", async () => {
  seen.clear();
  const consumer = consume(async (task, context) => {
    if (task.kind === "chunk" && task.job.source.kind === "reference") await sleep(1);
    return remember(task, context);
  });
  await until("a connection", () => consumer.connected);
  const admin = new Redis(url());
  closers.push(async () => admin.disconnect());
  const producer = createProducer({
    url: url(),
    prefix: PREFIX,
    queueSizeMax: 1000,
    payloadTtlSeconds: 600,
    clock,
    onError: (where) => errors.push(where),
  });
  closers.push(() => producer.close());
  const enqueue = (index: number) =>
    producer.enqueueChunk({ sessionId: "s", index, bytes: new Uint8Array(100).fill(index) });
  await enqueue(0);
  await until("the first", () => seen.has(0));
  await admin.config("SET", "maxmemory", "1");
  const added = Promise.all([1, 2, 3].map(enqueue));
  let isAdded = false;
  void added.then(() => {
    isAdded = true;
  });
  const commands = consumer.commands;
  await sleep(2_000);
  expect(isAdded).toBe(false);
  expect(consumer.commands - commands).toBeLessThan(50);
  await admin.config("SET", "maxmemory", "0");
  await added;
  await until("the others", () => seen.size === 4, 10_000);
  expect(outcomes.every(({ outcome }) => outcome === "completed")).toBe(true);
}, 60_000);

test("a reply that came while the loop was held up is read, and its command isn't sent again", async () => {
  const onError = vi.fn<() => void>();
  const client = waitingClient({ url: url(), onError }, "held up");
  closers.push(() => closeClient(client));
  await client.ping();
  const reply = client.incr("held-up");
  // Leaves with the end of this turn.
  await sleep(20);
  const again = client.incr("held-up");
  await immediate();
  const untilMs = performance.now() + 10_500;
  while (performance.now() < untilMs);
  expect([await reply, await again, await client.get("held-up")]).toEqual([1, 2, "2"]);
  expect(onError).not.toHaveBeenCalled();
});

test("only silence while a reply is due cuts a connection: an idle one stays, and one whose reply takes long", async () => {
  const LIMIT_MS = 10_000;
  const VALUE_BYTES = 1_200_000;
  const proxy = await openForgetfulProxy(port);
  const opened = [waitingClient, failFastClient].map((open) => {
    const client = open(
      { url: `redis://127.0.0.1:${proxy.port}`, onError: (where) => errors.push(where) },
      "t",
    );
    closers.push(() => closeClient(client));
    return client;
  });
  const [slow, idle] = opened;
  errors.length = 0;
  await until("connections", () => opened.every(({ status }) => status === "ready"));
  let closed = 0;
  for (const client of opened) client.on("close", () => (closed += 1));
  await slow?.set("big", Buffer.alloc(VALUE_BYTES));
  await idle?.ping();
  proxy.limit(VALUE_BYTES / 12);
  const startedMs = performance.now();
  expect((await slow?.getBuffer("big"))?.byteLength).toBe(VALUE_BYTES);
  expect(performance.now() - startedMs).toBeGreaterThan(LIMIT_MS + 1_000);
  expect(await idle?.ping()).toBe("PONG");
  expect([closed, errors]).toEqual([0, []]);
}, 60_000);

test("a completion that is sent again, as its reply was lost in silence, fails no job", async () => {
  seen.clear();
  // Whose completion is the one command that follows the work: inline bytes are replaced by a stub before.
  const referring = (index: number) => ({
    session_id: "s",
    chunk_id: `s-chunk-${index}`,
    payload_ref: { store: "redis", key: `lucid:payload:{s}:${index}` },
    size_bytes: 1,
    blake3: "ab".repeat(32),
  });
  const proxy = await openForgetfulProxy(port);
  const consumer = consume(
    async (task, context) => {
      if (seen.size === 0) proxy.forget("replies");
      return remember(task, context);
    },
    { redisUrl: `redis://127.0.0.1:${proxy.port}`, concurrency: 1, lockDurationMs: 15_000 },
  );
  await until("a connection", () => consumer.connected);
  await withQueue("session-chunks", async (queue) => {
    await queue.add("process-chunk", referring(0), { jobId: "s.0" });
    await until("the completion", async () => (await queue.getJobCountByTypes("completed")) === 1);
    await until("the loss is noticed", () => !consumer.connected, 12_000);
    await until("a connection", () => consumer.connected);
    // Behind it over the same connection; then, with the job's end known by a reply, the next one is taken.
    await queue.add("process-chunk", referring(1), { jobId: "s.1" });
    await until("the next job", () => seen.size === 2, 15_000);
    expect(await queue.getJobCounts("failed", "completed")).toMatchObject({ failed: 0 });
    expect(outcomes.map(({ outcome }) => outcome)).toEqual(["completed", "completed"]);
  });
}, 60_000);

describe("a producer that has been connected", () => {
  const told: string[] = [];

  function patientProducer(over: Partial<ProducerOptions> = {}): Producer {
    told.length = 0;
    const producer = createProducer({
      url: url(),
      prefix: PREFIX,
      queueSizeMax: 1000,
      payloadTtlSeconds: 600,
      clock,
      onError: () => undefined,
      onOutage: (reason) => told.push(reason),
      onResumed: () => told.push("resumed"),
      ...over,
    });
    closers.push(() => producer.close());
    return producer;
  }

  /** As a recorder brings them: what isn't taken now can't be had again. */
  async function* recorded(count: number, pauseMs: number) {
    for (let index = 0; index < count; index++) {
      yield { sessionId: "s", index, bytes: new Uint8Array(100).fill(index) };
      await sleep(pauseMs);
    }
  }

  const waiting = () => withQueue("session-chunks", (queue) => queue.getJobCountByTypes("waiting"));

  test.each([
    // Longer than the first connection is waited for.
    ["killed for 12 s", "unavailable", killRedis, startRedis, 12_000],
    ["frozen for 14 s", "unavailable", () => signalRedis("SIGSTOP"), () => signalRedis("SIGCONT"), 14_000],
    ["full for 3 s", "out-of-memory", () => limitMemory("1"), () => limitMemory("0"), 3_000],
  ] as const)("waits for a Redis that is %s, and tells of it once", async (_, reason, begin, end, ms) => {
    const all = patientProducer().enqueueAll(recorded(60, 50));
    await sleep(500);
    await begin();
    await sleep(ms);
    expect(told).toEqual([reason]);
    await end();
    expect((await all).chunks).toBe(60);
    expect(await waiting()).toBe(60);
    expect(told).toEqual([reason, "resumed"]);
  });

  test("doesn't wait for rights that it hasn't got", async () => {
    await withQueue("session-chunks", (_queue, redis) =>
      redis.call("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-set"),
    );
    const producer = patientProducer({ url: `redis://reader:pw@127.0.0.1:${port}` });
    const refused = producer.enqueueChunk({ sessionId: "s", index: 0, bytes: new Uint8Array(1) });
    await expect(refused).rejects.toMatchObject({ code: "QUEUE_UNAVAILABLE" });
  });

  test.each([
    ["killed", killRedis],
    ["frozen", () => signalRedis("SIGSTOP")],
  ] as const)("is ended by its signal alone while Redis is %s", async (_, begin) => {
    const controller = new AbortController();
    const producer = patientProducer({ signal: controller.signal });
    const chunk = { sessionId: "s", index: 0, bytes: new Uint8Array(10) };
    await producer.enqueueChunk(chunk);
    await begin();
    const ended = producer.enqueueChunk({ ...chunk, index: 1 }).then(() => "none", errorCodeOf);
    expect(await Promise.race([ended, sleep(2_000, "waits")])).toBe("waits");
    const startedMs = performance.now();
    controller.abort();
    expect(await ended).toBe("SHUTTING_DOWN");
    expect(performance.now() - startedMs).toBeLessThan(2_000);
    await signalRedis("SIGCONT");
  });
});
