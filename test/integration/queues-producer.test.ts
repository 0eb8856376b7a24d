import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type ChunkConsumerOptions, createChunkConsumer } from "../../src/adapters/bullmq/chunk-consumer.ts";
import type { Consumer } from "../../src/adapters/bullmq/job-worker.ts";
import { createProducer, type Producer, type ProducerOptions } from "../../src/adapters/bullmq/producer.ts";
import { createFilePayloadStore, type FilePayloadStore } from "../../src/adapters/file/payload-store.ts";
import { payloadStoreOf } from "../../src/adapters/payload-store.ts";
import { createRedisPayloadStore, type RedisPayloadStore } from "../../src/adapters/redis/payload-store.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { toHex } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { LucidError } from "../../src/core/errors.ts";
import { parseChunkJob } from "../../src/pipeline/parse-job.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const session = servers.sessionId("p");
const clock = createSystemClock();
const LIMITS = { chunkBytesMax: 1024 * 1024, defaultCompression: { algorithm: "zstd", level: 3 } } as const;

let redis: Redis;
let root: string;
let files: FilePayloadStore;
let payloads: RedisPayloadStore;
let prefixes = 0;
let prefix = "";
let queue: Queue;
const closers: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  redis = new Redis(servers.redisUrl, { maxRetriesPerRequest: null });
  root = mkdtempSync(join(tmpdir(), "session-processor-producer-"));
  files = createFilePayloadStore(root);
  payloads = createRedisPayloadStore({
    readBytesMax: 4 * 1024 * 1024,
    url: servers.redisUrl,
    onError: () => undefined,
  });
  await payloads.waitUntilReady(5_000);
});
afterAll(async () => {
  await payloads.close();
  redis.disconnect();
  rmSync(root, { recursive: true, force: true });
});
beforeEach(() => {
  prefixes += 1;
  prefix = `${servers.queuePrefix}${prefixes}`;
  queue = new Queue("session-chunks", { connection: redis, prefix });
});
afterEach(async () => {
  await Promise.all(closers.splice(0).map((close) => close()));
  await queue.close();
});

function producer(over: Partial<ProducerOptions> = {}): Producer {
  const made = createProducer({
    url: servers.redisUrl,
    prefix,
    queueSizeMax: 1000,
    payloadTtlSeconds: 600,
    files,
    clock,
    onError: () => undefined,
    ...over,
  });
  closers.push(() => made.close());
  return made;
}

const succeed: ChunkConsumerOptions["process"] = (task) => {
  if (task.kind === "stub") throw new LucidError("INTERNAL", "no stub is expected");
  const { chunkId, index } = task.job;
  return Promise.resolve({
    chunk_id: chunkId,
    chunk_index: index,
    leaf_hash: "ab".repeat(32),
    stored_bytes: 1,
  });
};

function consume(process: ChunkConsumerOptions["process"]): Consumer {
  const retention = { ageSeconds: 3600, count: 10_000 };
  const consumer = createChunkConsumer({
    redisUrl: servers.redisUrl,
    prefix,
    concurrency: 10,
    lockDurationMs: 15_000,
    stalledIntervalMs: 5_000,
    stalledCountMax: 5,
    retryAttempts: 1,
    retryDelayMs: 10,
    retentionCompleted: retention,
    retentionFailed: retention,
    clock,
    observer: { onError: () => undefined, onOutcome: () => undefined, onStalled: () => undefined },
    limits: LIMITS,
    announce: () => Promise.resolve(),
    process,
    standing: () => Promise.resolve({ kind: "none" }),
  });
  consumer.start();
  closers.push(() => consumer.stop({ deadlineMs: 1_000 }));
  return consumer;
}

async function until(what: string, holds: () => unknown): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`never came: ${what}`);
    await sleep(5);
  }
}

describe("what a producer enqueues", () => {
  test.each(["redis", "file", "inline"] as const)(
    "from %s is what the consumer's parser and stores give back",
    async (store) => {
      const bytes = randomBytes(5000);
      await producer().enqueueChunk({
        sessionId: session,
        index: 3,
        bytes,
        store,
        recordedAt: "2026-01-02T03:04:05Z",
        compression: { algorithm: "lz4" },
        metadata: { a: 1 },
      });
      const [job] = await queue.getJobs(["waiting"]);
      const task = parseChunkJob(job?.data, LIMITS);
      if (task.kind !== "chunk") throw new TypeError("expected a chunk");
      expect(task.job).toMatchObject({
        index: 3,
        declared: { sizeBytes: 5000 },
        compression: { algorithm: "lz4", level: 0 },
        recordedAt: "2026-01-02T03:04:05Z",
        metadata: '{"a":1}',
      });
      const { source, sessionId } = task.job;
      const read =
        source.kind === "inline"
          ? source.bytes
          : await payloadStoreOf({ redis: payloads, file: files }).read(sessionId, source.ref, 5000);
      expect(toHex(blake3(read ?? new Uint8Array()))).toBe(toHex(blake3(bytes)));
      expect(job?.id).toBe(`${session}.3.${toHex(blake3(bytes)).slice(0, 16)}`);
    },
  );

  test("twice is one job; other bytes at the same index are another", async () => {
    const own = producer();
    const bytes = randomBytes(100);
    await own.enqueueChunk({ sessionId: session, index: 0, bytes });
    await producer().enqueueChunk({ sessionId: session, index: 0, bytes });
    await own.enqueueChunk({ sessionId: session, index: 0, bytes: randomBytes(100) });
    expect(await queue.getJobCountByTypes("waiting")).toBe(2);
  });

  // Inline: the dead letter of a refused one has lost its bytes.
  test.each(["redis", "inline"] as const)(
    "again after its job has failed brings that job back: %s",
    async (store) => {
      const own = producer();
      const chunk = { sessionId: session, index: 0, bytes: randomBytes(100), store };
      let refuses = true;
      consume((task, context) =>
        refuses ? Promise.reject(new LucidError("SESSION_SEALED", "constant")) : succeed(task, context),
      );
      await own.enqueueChunk(chunk);
      await until("the failure", async () => (await queue.getJobCountByTypes("failed")) === 1);
      refuses = false;
      await own.enqueueChunk(chunk);
      await until("the success", async () => (await queue.getJobCountByTypes("completed")) === 1);
      expect(await queue.getJobCountByTypes("failed")).toBe(0);
    },
  );

  // The store may have lost the chunk meanwhile: whether it is still there is for a worker to say.
  test.each(["redis", "inline"] as const)(
    "again after its job is done is processed again, with its bytes: %s",
    async (store) => {
      const own = producer();
      const chunk = { sessionId: session, index: 77, bytes: randomBytes(100), store };
      let done = 0;
      consume(async (task, context) => {
        if (task.kind !== "chunk") throw new LucidError("INTERNAL", "no stub is expected");
        const { source, sessionId } = task.job;
        const bytes =
          source.kind === "inline" ? source.bytes : await payloads.read(sessionId, source.ref, 100);
        expect(toHex(bytes ?? new Uint8Array())).toBe(toHex(chunk.bytes));
        // As the pipeline does when it has committed or adopted the chunk.
        if (source.kind === "reference") await payloads.remove(sessionId, source.ref);
        done += 1;
        return succeed(task, context);
      });
      for (const times of [1, 2, 3]) {
        await own.enqueueChunk(chunk);
        await until(
          `time ${times}`,
          async () => (await queue.getJobCountByTypes("completed")) === 1 && done === times,
        );
      }
      expect(await redis.keys(`*${session}*77-*`)).toEqual([]);
      expect(await queue.getJobCounts("waiting", "active", "failed")).toEqual({
        waiting: 0,
        active: 0,
        failed: 0,
      });
    },
  );

  test("again while its job is worked on leaves that job alone", async () => {
    const own = producer();
    const chunk = { sessionId: session, index: 78, bytes: randomBytes(100) };
    const gate = Promise.withResolvers<void>();
    let begun = 0;
    consume(async (task, context) => {
      begun += 1;
      await gate.promise;
      return succeed(task, context);
    });
    await own.enqueueChunk(chunk);
    await until("a worker has it", () => begun === 1);
    await Promise.all([own.enqueueChunk(chunk), producer().enqueueChunk(chunk)]);
    gate.resolve();
    await until("the success", async () => (await queue.getJobCountByTypes("completed")) === 1);
    expect(begun).toBe(1);
    expect(await queue.getJobCounts("waiting", "active")).toEqual({ waiting: 0, active: 0 });
  });

  test("by two producers at once after its job is done is one job", async () => {
    const chunk = { sessionId: session, index: 79, bytes: randomBytes(100) };
    const consumer = consume(succeed);
    const [first, second] = [producer(), producer()];
    await first.enqueueChunk(chunk);
    await until("the success", async () => (await queue.getJobCountByTypes("completed")) === 1);
    await consumer.stop({ deadlineMs: 1_000 });
    await Promise.all([first.enqueueChunk(chunk), second.enqueueChunk(chunk), first.enqueueChunk(chunk)]);
    expect(await queue.getJobCounts("waiting", "completed")).toEqual({ waiting: 1, completed: 0 });
  });

  test("many at once arrive all, in a bounded number of commands", async () => {
    const own = producer();
    const chunks = Array.from({ length: 300 }, (_, index) => ({
      sessionId: session,
      index,
      bytes: randomBytes(50),
    }));
    const added: number[] = [];
    const total = await own.enqueueAll(chunks, ({ index }) => added.push(index));
    expect(total).toEqual({ chunks: 300, bytes: 15_000 });
    expect(new Set(added).size).toBe(300);
    expect(await queue.getJobCountByTypes("waiting")).toBe(300);
    // SET and add for each; what is done about finished jobs and the count of the queue are shared.
    expect(own.commands).toBeLessThan(300 * 2.5);
  });

  test("of a source that fails: what was taken from it is queued and told before the failure is", async () => {
    function* failing() {
      for (const index of [0, 1, 2]) yield { sessionId: session, index, bytes: randomBytes(50) };
      throw new LucidError("CHUNK_CONFLICT", "the session keeps another chunk");
    }
    const added: number[] = [];
    const all = producer().enqueueAll(failing(), ({ index }) => added.push(index));
    await expect(all).rejects.toMatchObject({ code: "CHUNK_CONFLICT" });
    expect(new Set(added)).toEqual(new Set([0, 1, 2]));
    expect(await queue.getJobCountByTypes("waiting")).toBe(3);
  });

  test("of a source that fails while the queue is full: the failure is told, and what waited for room isn't queued", async () => {
    function* failing() {
      for (let index = 0; index < 12; index++) yield { sessionId: session, index, bytes: randomBytes(50) };
      throw new LucidError("CHUNK_CONFLICT", "the session keeps another chunk");
    }
    const own = producer({ queueSizeMax: 8 });
    await expect(own.enqueueAll(failing())).rejects.toMatchObject({ code: "CHUNK_CONFLICT" });
    expect(await queue.getJobCountByTypes("waiting")).toBeLessThan(12);
    // And the producer goes on when there is room.
    await queue.drain();
    await own.enqueueChunk({ sessionId: session, index: 20, bytes: randomBytes(50) });
  });

  test("finalize adds one job a count", async () => {
    const own = producer();
    await own.finalize({ session_id: session, chunk_count: 3 });
    await own.finalize({ session_id: session, chunk_count: 3 });
    await own.finalize({ session_id: session, chunk_count: 4 });
    const control = new Queue("session-control", { connection: redis, prefix });
    const jobs = await control.getJobs(["waiting"]);
    await control.close();
    expect(jobs.map(({ id }) => id ?? "").sort((a, b) => a.localeCompare(b))).toEqual([
      `${session}.finalize.3`,
      `${session}.finalize.4`,
    ]);
  });

  test("finalize again after its job is done adds it anew", async () => {
    const own = producer();
    const control = new Queue("session-control", { connection: redis, prefix });
    const worker = new Worker("session-control", () => Promise.resolve("done"), {
      connection: redis,
      prefix,
    });
    try {
      await own.finalize({ session_id: session, chunk_count: 3 });
      await until("the success", async () => (await control.getJobCountByTypes("completed")) === 1);
      await worker.close();
      await own.finalize({ session_id: session, chunk_count: 3 });
      expect(await control.getJobCounts("waiting", "completed")).toEqual({ waiting: 1, completed: 0 });
    } finally {
      await worker.close();
      await control.close();
    }
  });

  test.each([
    { sessionId: "../x", index: 0 },
    { sessionId: "a", index: -1 },
  ])("%j is refused before anything is written", async (bad) => {
    const own = producer();
    await expect(own.enqueueChunk({ ...bad, bytes: randomBytes(1) })).rejects.toMatchObject({
      code: "JOB_INVALID",
    });
    expect(await queue.getJobCountByTypes("waiting")).toBe(0);
  });
});

describe("back-pressure", () => {
  test("a producer waits at QUEUE_SIZE and goes on when the queue is shorter", async () => {
    const own = producer({ queueSizeMax: 20 });
    const chunks = Array.from({ length: 100 }, (_, index) => ({
      sessionId: session,
      index,
      bytes: randomBytes(10),
    }));
    const all = own.enqueueAll(chunks);
    // Those under way count too, so it may stop a few jobs before that.
    await until("a full queue", async () => (await queue.getJobCountByTypes("waiting")) >= 15);
    await sleep(300);
    // It counts after every second chunk here: an eighth of QUEUE_SIZE.
    expect(await queue.getJobCountByTypes("waiting")).toBeLessThanOrEqual(20 + 2);
    consume(succeed);
    expect((await all).chunks).toBe(100);
  });

  test("a signal ends the wait with SHUTTING_DOWN", async () => {
    const controller = new AbortController();
    const own = producer({ queueSizeMax: 1, signal: controller.signal });
    await own.enqueueChunk({ sessionId: session, index: 0, bytes: randomBytes(1) });
    const waiting = own.enqueueChunk({ sessionId: session, index: 1, bytes: randomBytes(1) });
    setTimeout(() => controller.abort(), 100);
    await expect(waiting).rejects.toMatchObject({ code: "SHUTTING_DOWN" });
  });
});
