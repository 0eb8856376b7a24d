import { execFile } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { type Job, Queue } from "bullmq";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type ChunkConsumerOptions, createChunkConsumer } from "../../src/adapters/bullmq/chunk-consumer.ts";
import { createControlConsumer } from "../../src/adapters/bullmq/control-consumer.ts";
import type {
  Consumer,
  ConsumerOptions,
  JobOutcome,
  JobStanding,
} from "../../src/adapters/bullmq/job-worker.ts";
import { createQueueStats } from "../../src/adapters/bullmq/queue-stats.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { type ErrorCode, LucidError } from "../../src/core/errors.ts";
import type { ChunkTask } from "../../src/pipeline/parse-job.ts";
import type { FinalizeJob } from "../../src/pipeline/ports.ts";
import { eventSchema, type LucidEvent } from "../../src/schema/event.ts";
import type { ProcessChunkReturn } from "../../src/schema/job.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const clock = createSystemClock();
const WAIT_MS = 20_000;
const LEAF_HASH = "cd".repeat(32);

let redis: Redis;
let chunkQueue: Queue;
let controlQueue: Queue;
const consumers: Consumer[] = [];
/** Each test has queues of its own: what one leaves behind is nothing to the next. */
let prefixes = 0;
let prefix = "";

beforeAll(() => {
  redis = new Redis(servers.redisUrl, { maxRetriesPerRequest: null });
});
afterEach(async () => {
  await Promise.all(consumers.splice(0).map((consumer) => consumer.stop({ deadlineMs: 2_000 })));
  await Promise.all([chunkQueue.close(), controlQueue.close()]);
});
afterAll(() => {
  redis.disconnect();
});

function openQueues(): void {
  prefixes += 1;
  prefix = `${servers.queuePrefix}${prefixes}`;
  chunkQueue = new Queue("session-chunks", { connection: redis, prefix });
  controlQueue = new Queue("session-control", { connection: redis, prefix });
}

interface Recorded {
  readonly outcomes: JobOutcome[];
  readonly errors: string[];
  readonly stalled: string[];
  readonly events: LucidEvent[];
}

function recorder(): Recorded {
  return { outcomes: [], errors: [], stalled: [], events: [] };
}

function heard(recorded: Recorded, event: LucidEvent): Promise<void> {
  recorded.events.push(eventSchema.parse(event));
  return Promise.resolve();
}

function consumerOptions(recorded: Recorded): ConsumerOptions {
  return {
    redisUrl: servers.redisUrl,
    prefix,
    concurrency: 4,
    lockDurationMs: 2_000,
    stalledIntervalMs: 500,
    stalledCountMax: 2,
    retryAttempts: 3,
    retryDelayMs: 20,
    retentionCompleted: { ageSeconds: 3600, count: 5 },
    retentionFailed: { ageSeconds: 3600, count: 5 },
    clock,
    observer: {
      onError: (where, code) => recorded.errors.push(`${where}: ${code}`),
      onOutcome: (outcome) => recorded.outcomes.push(outcome),
      onStalled: (_queue, jobId) => recorded.stalled.push(jobId),
    },
  };
}

type Process = ChunkConsumerOptions["process"];

function startChunks(
  process: Process,
  recorded: Recorded,
  over: Partial<ChunkConsumerOptions> = {},
): Consumer {
  const consumer = createChunkConsumer({
    ...consumerOptions(recorded),
    limits: { chunkBytesMax: 1024, defaultCompression: { algorithm: "zstd", level: 3 } },
    announce: (event) => heard(recorded, event),
    process,
    standing: () => Promise.resolve({ kind: "none" }),
    ...over,
  });
  consumer.start();
  consumers.push(consumer);
  return consumer;
}

function chunkData(index: number, over: object = {}): object {
  return {
    session_id: "sess-a",
    chunk_id: `sess-a-chunk-${index}`,
    chunk_index: index,
    chunk_data_base64: "aGVsbG8=",
    ...over,
  };
}

function done(task: ChunkTask): ProcessChunkReturn {
  const [chunk_id, chunk_index] =
    task.kind === "stub" ? [task.stub.chunk_id, task.stub.chunk_index] : [task.job.chunkId, task.job.index];
  return { chunk_id, chunk_index, leaf_hash: LEAF_HASH, stored_bytes: 99 };
}

const succeed: Process = (task) => Promise.resolve(done(task));

function fail(code: ErrorCode): Process {
  return () => Promise.reject(new LucidError(code, "constant words"));
}

async function until(what: string, holds: () => unknown): Promise<void> {
  const deadline = performance.now() + WAIT_MS;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`never came: ${what}`);
    await sleep(10);
  }
}

async function state(queue: Queue, job: Job): Promise<string> {
  return queue.getJobState(job.id ?? "");
}

async function untilState(queue: Queue, job: Job, wanted: string): Promise<Job> {
  await until(`${wanted}`, async () => (await state(queue, job)) === wanted);
  const found: Job | undefined = await queue.getJob(job.id ?? "");
  if (found === undefined) throw new Error("the job is gone");
  return found;
}

describe("a chunk job that goes well", () => {
  test("is completed with the small return value, and its bytes don't stay in Redis", async () => {
    openQueues();
    const recorded = recorder();
    const tasks: ChunkTask[] = [];
    startChunks((task) => {
      tasks.push(task);
      return Promise.resolve(done(task));
    }, recorded);
    const job = await untilState(
      chunkQueue,
      await chunkQueue.add("process-chunk", chunkData(7)),
      "completed",
    );
    expect(tasks).toMatchObject([{ kind: "chunk", job: { sessionId: "sess-a", index: 7 } }]);
    expect(job.returnvalue).toEqual({
      chunk_id: "sess-a-chunk-7",
      chunk_index: 7,
      leaf_hash: LEAF_HASH,
      stored_bytes: 99,
    });
    expect(job.data).toEqual({
      committed: true,
      session_id: "sess-a",
      chunk_id: "sess-a-chunk-7",
      chunk_index: 7,
      leaf_hash: LEAF_HASH,
    });
    expect(recorded.outcomes).toMatchObject([
      { outcome: "completed", attempt: 1, sessionId: "sess-a", chunkIndex: 7 },
    ]);
    expect(recorded.events).toEqual([]);
  });

  test("the stub of one that was committed before goes to the handler as such", async () => {
    openQueues();
    const kinds: string[] = [];
    startChunks((task) => {
      kinds.push(task.kind);
      return Promise.resolve(done(task));
    }, recorder());
    const stub = {
      committed: true,
      session_id: "sess-a",
      chunk_id: "c-1",
      chunk_index: 1,
      leaf_hash: LEAF_HASH,
    };
    const job = await untilState(chunkQueue, await chunkQueue.add("process-chunk", stub), "completed");
    expect(kinds).toEqual(["stub"]);
    expect(job.data).toEqual(stub);
  });

  test("no more completed jobs are kept than the retention says, though the producer set none", async () => {
    openQueues();
    startChunks(succeed, recorder());
    await chunkQueue.addBulk(
      Array.from({ length: 40 }, (_, n) => ({
        name: "process-chunk",
        data: chunkData(n),
        opts: { removeOnComplete: false },
      })),
    );
    await until("an idle queue", async () => {
      const counts = await chunkQueue.getJobCounts("waiting", "active");
      return counts["waiting"] === 0 && counts["active"] === 0;
    });
    expect(await chunkQueue.getJobCounts("completed", "failed")).toEqual({ completed: 5, failed: 0 });
  });

  test("the concurrency can be raised and lowered while jobs run", async () => {
    openQueues();
    let now = 0;
    let most = 0;
    const consumer = startChunks(
      async (task) => {
        now += 1;
        most = Math.max(most, now);
        await sleep(10);
        now -= 1;
        return done(task);
      },
      recorder(),
      { concurrency: 1 },
    );
    const add = (from: number) =>
      chunkQueue.addBulk(
        Array.from({ length: 20 }, (_, n) => ({ name: "process-chunk", data: chunkData(from + n) })),
      );
    const isIdle = async () => (await chunkQueue.getJobCountByTypes("waiting", "active")) === 0;
    await add(0);
    await until("idle", isIdle);
    expect(most).toBe(1);
    consumer.setConcurrency(5);
    await add(100);
    await until("idle", isIdle);
    expect(most).toBe(5);
    consumer.setConcurrency(2);
    most = 0;
    await add(200);
    await until("idle", isIdle);
    expect(most).toBe(2);
  });
});

describe("a chunk job that is refused", () => {
  test.each([
    [
      "an invalid field",
      "process-chunk",
      { ...chunkData(1), evil: 1 },
      "JOB_INVALID",
      "chunk.failed.sess-a.1.JOB_INVALID",
    ],
    ["another job name", "other", chunkData(2), "JOB_NAME_UNKNOWN", "chunk.failed.sess-a.2.JOB_NAME_UNKNOWN"],
    [
      "bad base64",
      "process-chunk",
      chunkData(3, { chunk_data_base64: "?" }),
      "PAYLOAD_BASE64_INVALID",
      "chunk.failed.sess-a.3.PAYLOAD_BASE64_INVALID",
    ],
    ["a hostile id", "process-chunk", chunkData(4, { session_id: "../x" }), "JOB_INVALID", undefined],
  ] as const)(
    "%s fails for good at the first try, with its event before",
    async (_name, name, data, code, eventId) => {
      openQueues();
      const recorded = recorder();
      startChunks(succeed, recorded);
      const added = await chunkQueue.add(name, data, { attempts: 5, removeOnFail: false });
      const job = await untilState(chunkQueue, added, "failed");
      expect(job.attemptsMade).toBe(1);
      expect(job.failedReason).toMatch(new RegExp(`^${code}: `));
      expect(job.stacktrace).toEqual([]);
      expect(recorded.events).toMatchObject([
        { type: "chunk.failed", error: { code }, attempts: 1, job_id: added.id },
      ]);
      if (eventId !== undefined) expect(recorded.events[0]?.event_id).toBe(eventId);
      expect(recorded.outcomes).toMatchObject([{ outcome: "failed", error: { code } }]);
    },
  );

  test.each([
    ["chunk_data_base64", chunkData(1), "CHUNK_CONFLICT"],
    ["chunk_data", chunkData(1, { chunk_data_base64: undefined, chunk_data: "aGVsbG8=" }), "SESSION_SEALED"],
    ["bad base64", chunkData(1, { chunk_data_base64: "?" }), "CHUNK_CONFLICT"],
    ["an unknown field beside it", chunkData(1, { evil: 1 }), "CHUNK_CONFLICT"],
    ["foreign fields", chunkData(1, { evil: "aGVsbG8=", metadata: { a: ["aGVsbG8="] } }), "CHUNK_CONFLICT"],
    ["no bytes at all", chunkData(1, { chunk_data_base64: undefined }), "CHUNK_CONFLICT"],
  ] as const)("for ever keeps its ids, and nothing that may hold bytes: %s", async (_name, data, code) => {
    openQueues();
    const recorded = recorder();
    startChunks(fail(code), recorded);
    const job = await untilState(chunkQueue, await chunkQueue.add("process-chunk", data), "failed");
    expect(job.data).toEqual({ session_id: "sess-a", chunk_id: "sess-a-chunk-1", chunk_index: 1 });
    expect(recorded.outcomes).toMatchObject([{ outcome: "failed" }]);
    expect(recorded.errors).toEqual([]);
  });

  test.each([
    ["chunk job", () => chunkQueue, "process-chunk", '"chunk_data_base64":"aGVsbG8="'],
    ["finalize-session job", () => controlQueue, "finalize-session", '"chunk_count":3'],
  ] as const)(
    "a %s that is nested deeper than the stack keeps nothing but its ids",
    async (_name, queueOf, name, field) => {
      openQueues();
      const recorded = recorder();
      startChunks(succeed, recorded);
      const control = createControlConsumer({
        ...consumerOptions(recorded),
        finalize: () => Promise.resolve(),
      });
      control.start();
      consumers.push(control);
      const queue = queueOf();
      const added = await queue.add(name, {}, { delay: 60_000 });
      const nested = `${"[".repeat(20_000)}${"]".repeat(20_000)}`;
      const key = queue.toKey(added.id ?? "");
      await redis.hset(key, "data", `{"session_id":"sess-a",${field},"metadata":{"a":${nested}}}`);
      await added.promote();
      const job = await untilState(queue, added, "failed");
      expect(job.failedReason).toMatch(/^JOB_INVALID: /);
      expect(job.data).toMatchObject({ session_id: "sess-a" });
      const kept = await redis.hget(key, "data");
      expect(kept).not.toContain("aGVsbG8=");
      expect(kept).not.toContain("[");
      expect(recorded.errors).toEqual([]);
    },
  );

  test.each(["SESSION_TOO_LARGE", "SECRET_UNWRAP_FAILED", "TREE_CORRUPT", "THREAD_CRASHED"] as const)(
    "with %s keeps its bytes, and a retry processes them",
    async (code) => {
      openQueues();
      const recorded = recorder();
      let isRepaired = false;
      startChunks((...call) => (isRepaired ? succeed : fail(code))(...call), recorded);
      const added = await chunkQueue.add("process-chunk", chunkData(1));
      const job = await untilState(chunkQueue, added, "failed");
      expect(job.data).toEqual(chunkData(1));
      isRepaired = true;
      await job.retry("failed", { resetAttemptsMade: true });
      await untilState(chunkQueue, added, "completed");
    },
  );

  test("an error that the handler calls unrecoverable fails at the first try", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(fail("CHUNK_CONFLICT"), recorded);
    const job = await untilState(chunkQueue, await chunkQueue.add("process-chunk", chunkData(1)), "failed");
    expect(job.attemptsMade).toBe(1);
    expect(job.failedReason).toBe("CHUNK_CONFLICT: constant words");
    expect(recorded.events).toMatchObject([
      { event_id: "chunk.failed.sess-a.1.CHUNK_CONFLICT", chunk_id: "sess-a-chunk-1" },
    ]);
  });

  test("data that isn't JSON is refused like any other, and the next job is processed", async () => {
    openQueues();
    const recorded = recorder();
    const bad = await chunkQueue.add("process-chunk", chunkData(1));
    const good = await chunkQueue.add("process-chunk", chunkData(2));
    await redis.hset(chunkQueue.toKey(bad.id ?? ""), "data", "{not json");
    startChunks(succeed, recorded);
    await untilState(chunkQueue, good, "completed");
    await until("two outcomes", () => recorded.outcomes.length === 2);
    expect(recorded.outcomes.map(({ error }) => error?.code)).toContain("JOB_INVALID");
    expect(await redis.hget(chunkQueue.toKey(bad.id ?? ""), "data")).toBe("{}");
  });

  const manyKeys = `{${Array.from({ length: 50_000 }, (_, n) => `"plain${n}":1`).join()}}`;
  test.each([
    ["a long chunk", "chunk_data_base64", `"${"plain".repeat(50_000)}"`, "PAYLOAD_TOO_LARGE"],
    ["many keys", "metadata", manyKeys, "JOB_INVALID"],
  ] as const)(
    "data too long to be parsed is refused at the first try, told with its ids, and overwritten: %s",
    async (_name, field, value, code) => {
      openQueues();
      const recorded = recorder();
      const bad = await chunkQueue.add("process-chunk", {});
      const good = await chunkQueue.add("process-chunk", chunkData(2));
      const ids = { session_id: "sess-a", chunk_id: "sess-a-chunk-1", chunk_index: 1 };
      const key = chunkQueue.toKey(bad.id ?? "");
      await redis.hset(key, "data", `${JSON.stringify(ids).slice(0, -1)},"${field}":${value}}`);
      startChunks(succeed, recorded);
      await untilState(chunkQueue, good, "completed");
      const failed = await untilState(chunkQueue, bad, "failed");
      expect(failed.attemptsMade).toBe(1);
      expect(failed.failedReason).toMatch(new RegExp(`^${code}: `));
      expect(failed.data).toEqual(ids);
      expect(recorded.events).toMatchObject([
        { event_id: `chunk.failed.sess-a.1.${code}`, error: { code }, chunk_id: "sess-a-chunk-1" },
      ]);
      expect(recorded.outcomes.filter(({ outcome }) => outcome === "failed")).toMatchObject([
        { error: { code }, sessionId: "sess-a", chunkIndex: 1 },
      ]);
      expect(JSON.stringify(await redis.hgetall(key))).not.toContain("plain");
      expect(recorded.errors).toEqual([]);
    },
  );

  test("a hundred good chunks around ten bad ones are not affected", async () => {
    openQueues();
    const recorded = recorder();
    const seen = new Set<number>();
    startChunks((task) => {
      seen.add(done(task).chunk_index);
      return Promise.resolve(done(task));
    }, recorded);
    const jobs = Array.from({ length: 110 }, (_, n) => ({
      name: "process-chunk",
      data: n % 11 === 5 ? chunkData(n, { chunk_data_base64: "?" }) : chunkData(n),
    }));
    await chunkQueue.addBulk(jobs);
    await until("all outcomes", () => recorded.outcomes.length === 110);
    expect(seen.size).toBe(100);
    expect(new Set(recorded.events.map(({ event_id }) => event_id)).size).toBe(10);
  });
});

describe("a chunk job that may succeed later", () => {
  test("added without any options it is tried RETRY_ATTEMPTS times, then fails with its event", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(fail("PAYLOAD_MISSING"), recorded);
    const job = await untilState(chunkQueue, await chunkQueue.add("process-chunk", chunkData(1)), "failed");
    expect(job.attemptsMade).toBe(3);
    expect(recorded.outcomes.map(({ outcome, attempt }) => `${outcome} ${attempt}`)).toEqual([
      "retried 1",
      "retried 2",
      "failed 3",
    ]);
    expect(recorded.events).toMatchObject([
      { event_id: "chunk.failed.sess-a.1.PAYLOAD_MISSING", attempts: 3 },
    ]);
  });

  test("an attempt that goes well ends it, without an event", async () => {
    openQueues();
    const recorded = recorder();
    let tries = 0;
    startChunks((task, context) => {
      tries += 1;
      return tries < 3 ? fail("THREAD_CRASHED")(task, context) : Promise.resolve(done(task));
    }, recorded);
    await untilState(chunkQueue, await chunkQueue.add("process-chunk", chunkData(1)), "completed");
    expect(tries).toBe(3);
    expect(recorded.events).toEqual([]);
  });

  test("a producer that asks for a thousand attempts gets five", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(fail("THREAD_CRASHED"), recorded, { retryDelayMs: 1 });
    const job = await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1000, backoff: 1 });
    expect((await untilState(chunkQueue, job, "failed")).attemptsMade).toBe(5);
  });

  test("an unforeseen error is retried, and its text stays out of Redis and events", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(() => Promise.reject(new TypeError("plaintext inside")), recorded);
    const added = await chunkQueue.add("process-chunk", chunkData(1));
    const job = await untilState(chunkQueue, added, "failed");
    expect(job.failedReason).toMatch(/^INTERNAL: /);
    const kept = JSON.stringify([await redis.hgetall(chunkQueue.toKey(added.id ?? "")), recorded.events]);
    expect(kept).not.toContain("plaintext inside");
  });
});

describe("a chunk job that is released", () => {
  test("goes back to the waiting ones with no attempt used, and not in a hot loop", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(fail("STORE_UNAVAILABLE"), recorded);
    const job = await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1 });
    await sleep(2_500);
    const found = await chunkQueue.getJob(job.id ?? "");
    expect(found?.attemptsMade).toBe(0);
    expect(recorded.outcomes.length).toBeGreaterThanOrEqual(2);
    expect(recorded.outcomes.length).toBeLessThanOrEqual(4);
    expect(new Set(recorded.outcomes.map(({ outcome }) => outcome))).toEqual(new Set(["released"]));
    expect(recorded.events).toEqual([]);
    expect(await chunkQueue.getJobCounts("failed", "completed")).toEqual({ failed: 0, completed: 0 });
  });

  test("a failure whose event can't be told stays in the queue until it can", async () => {
    openQueues();
    const recorded = recorder();
    let isDown = true;
    startChunks(succeed, recorded, {
      announce: (event) =>
        isDown ? Promise.reject(new LucidError("QUEUE_UNAVAILABLE", "down")) : heard(recorded, event),
    });
    const job = await chunkQueue.add("process-chunk", { ...chunkData(1), evil: 1 });
    await until("a release", () => recorded.outcomes.length > 0);
    expect(recorded.outcomes[0]).toMatchObject({ outcome: "released", error: { code: "QUEUE_UNAVAILABLE" } });
    expect(await state(chunkQueue, job)).not.toBe("failed");
    isDown = false;
    expect((await untilState(chunkQueue, job, "failed")).attemptsMade).toBe(1);
    expect(recorded.events).toHaveLength(1);
  });
});

describe("a chunk job that loses its worker", () => {
  test("too often, becomes a dead letter with an event and a code, and isn't run again", async () => {
    openQueues();
    const recorded = recorder();
    const job = await chunkQueue.add("process-chunk", chunkData(1));
    // As if it had been lost twice already: in the active list, without a lock, and the count at its limit.
    await redis.hset(chunkQueue.toKey(job.id ?? ""), "stc", "2");
    await redis.rpoplpush(chunkQueue.toKey("wait"), chunkQueue.toKey("active"));
    let runs = 0;
    startChunks((task) => {
      runs += 1;
      return Promise.resolve(done(task));
    }, recorded);
    const failed = await untilState(chunkQueue, job, "failed");
    expect(failed.failedReason).toMatch(/^JOB_STALLED_TOO_OFTEN: /);
    // Nothing is known to be wrong with it: its bytes may be the only ones.
    expect(failed.data).toEqual(chunkData(1));
    expect(recorded.events).toMatchObject([{ event_id: "chunk.failed.sess-a.1.JOB_STALLED_TOO_OFTEN" }]);
    expect(recorded.stalled).toEqual([job.id]);
    expect(runs).toBe(0);
  });

  test("once, is run again", async () => {
    openQueues();
    const recorded = recorder();
    const job = await chunkQueue.add("process-chunk", chunkData(1));
    await redis.rpoplpush(chunkQueue.toKey("wait"), chunkQueue.toKey("active"));
    startChunks(succeed, recorded);
    await untilState(chunkQueue, job, "completed");
    expect(recorded.stalled).toEqual([job.id]);
  });

  test("to a freeze, and is put off by it afterwards, stays with the worker that has it now", async () => {
    openQueues();
    const recorded = recorder();
    const { promise: thaw, resolve: thawed } = Promise.withResolvers<void>();
    let deliveries = 0;
    const finished: number[] = [];
    const first: boolean[] = [];
    startChunks(
      async (task, context) => {
        deliveries += 1;
        const delivery = deliveries;
        first.push(context.isFirstDelivery);
        if (delivery === 1) {
          // As if this process were frozen: its lock is gone, and the stalled check gives the job to somebody else.
          await redis.del(chunkQueue.toKey("1:lock"));
          await thaw;
          return fail("ATTEMPT_EXPIRED")(task, context);
        }
        thawed();
        await sleep(300);
        finished.push(delivery);
        return done(task);
      },
      recorded,
      { lockDurationMs: 30_000 },
    );
    const job = await chunkQueue.add("process-chunk", chunkData(1));
    await untilState(chunkQueue, job, "completed");
    expect(finished).toEqual([2]);
    expect(first).toEqual([true, false]);
    expect(recorded.stalled).toEqual([job.id]);
    expect(recorded.errors).toContain("session-chunks put off: JOB_LOCK_LOST");
  });

  test("a job that vanished while it ran leaves the worker running", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(async (task) => {
      await redis.del(chunkQueue.toKey("gone"), chunkQueue.toKey("gone:lock"));
      return done(task);
    }, recorded);
    await chunkQueue.add("process-chunk", chunkData(1), { jobId: "gone" });
    await until("an error", () => recorded.errors.length > 0);
    expect(recorded.errors[0]).toMatch(/^session-chunks worker: /);
    await untilState(chunkQueue, await chunkQueue.add("process-chunk", chunkData(2)), "completed");
  });
});

describe("a chunk job that is about to fail for good", () => {
  const result = done({ kind: "stub", stub: { chunk_id: "sess-a-chunk-1", chunk_index: 1 } } as ChunkTask);

  test.each(["TREE_CORRUPT", "INTERNAL", "CHUNK_CONFLICT"] as const)(
    "with %s is completed if its chunk is committed, with its stub and no event",
    async (code) => {
      openQueues();
      const recorded = recorder();
      const asked: object[] = [];
      startChunks(fail(code), recorded, {
        standing(task) {
          asked.push(task);
          return Promise.resolve({ kind: "done", result });
        },
      });
      const job = await untilState(
        chunkQueue,
        await chunkQueue.add("process-chunk", chunkData(1)),
        "completed",
      );
      expect(asked).toMatchObject([{ kind: "chunk", job: { sessionId: "sess-a", index: 1 } }]);
      expect(job.returnvalue).toEqual(result);
      expect(job.data).toMatchObject({ committed: true, leaf_hash: LEAF_HASH });
      expect(recorded.events).toEqual([]);
      expect(recorded.outcomes.at(-1)).toMatchObject({ outcome: "completed", error: { code } });
    },
  );

  test("because it lost its worker too often is completed if its chunk is committed", async () => {
    openQueues();
    const recorded = recorder();
    const job = await chunkQueue.add("process-chunk", chunkData(1));
    await redis.hset(chunkQueue.toKey(job.id ?? ""), "stc", "2");
    await redis.rpoplpush(chunkQueue.toKey("wait"), chunkQueue.toKey("active"));
    startChunks(succeed, recorded, { standing: () => Promise.resolve({ kind: "done", result }) });
    const completed = await untilState(chunkQueue, job, "completed");
    expect(completed.returnvalue).toEqual(result);
    expect(completed.data).toMatchObject({ committed: true });
    expect(recorded.events).toEqual([]);
  });

  test("is released while the store can't say what became of its chunk", async () => {
    openQueues();
    const recorded = recorder();
    const answers = [
      () => Promise.reject(new LucidError("STORE_UNAVAILABLE", "down")),
      () => Promise.reject(new LucidError("STORE_UNAVAILABLE", "down")),
    ];
    startChunks(fail("TREE_CORRUPT"), recorded, {
      standing: () => answers.shift()?.() ?? Promise.resolve({ kind: "none" }),
    });
    const job = await untilState(
      chunkQueue,
      await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1 }),
      "failed",
    );
    expect(job.attemptsMade).toBe(1);
    expect(recorded.outcomes.map(({ outcome, error }) => `${outcome} ${error?.code}`)).toEqual([
      "released STORE_UNAVAILABLE",
      "released STORE_UNAVAILABLE",
      "failed TREE_CORRUPT",
    ]);
    expect(recorded.events).toHaveLength(1);
  });

  test("is put off while its chunk's fate isn't decided, and ends by what is decided", async () => {
    openQueues();
    const recorded = recorder();
    let standing: JobStanding<ProcessChunkReturn> = { kind: "undecided" };
    startChunks(fail("TREE_CORRUPT"), recorded, { standing: () => Promise.resolve(standing) });
    const added = await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1 });
    for (let round = 0; round < 3; round++) {
      const waiting = await untilState(chunkQueue, added, "delayed");
      expect(recorded.outcomes).toHaveLength(round + 1);
      expect(waiting.attemptsMade).toBe(0);
      await waiting.promote();
      await until("the next delivery", () => recorded.outcomes.length > round + 1);
    }
    expect(new Set(recorded.outcomes.map(({ outcome }) => outcome))).toEqual(new Set(["released"]));
    standing = { kind: "done", result };
    await (await untilState(chunkQueue, added, "delayed")).promote();
    await untilState(chunkQueue, added, "completed");
    expect(recorded.events).toEqual([]);
  });

  test("and stays undecided is put off for longer each time, then is a dead letter with its bytes and no event; retried, it begins anew", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(fail("TREE_CORRUPT"), recorded, { standing: () => Promise.resolve({ kind: "undecided" }) });
    const added = await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1 });
    const pauses: number[] = [];
    for (;;) {
      await until("an end", async () => ["delayed", "failed"].includes(await state(chunkQueue, added)));
      if ((await state(chunkQueue, added)) === "failed") break;
      const waiting: Job = await untilState(chunkQueue, added, "delayed");
      pauses.push(Math.round(waiting.delay / 1_000));
      await waiting.promote();
      await until("the next delivery", () => recorded.outcomes.length > pauses.length);
    }
    expect(pauses).toEqual([1, 2, 4, 8, 16, 32, 60, 60]);
    const failed = await untilState(chunkQueue, added, "failed");
    expect(failed.data).toEqual(chunkData(1));
    expect(failed.attemptsMade).toBe(1);
    expect(failed.failedReason).toBe("TREE_CORRUPT: constant words");
    expect(recorded.events).toEqual([]);
    await failed.retry("failed", { resetAttemptsMade: true });
    expect((await untilState(chunkQueue, added, "delayed")).delay).toBeLessThanOrEqual(1_000);
  });

  test("keeps nobody from their work while it is undecided, however many there are of its kind", async () => {
    openQueues();
    const recorded = recorder();
    const isBad = (task: ChunkTask) => done(task).chunk_index >= 900;
    startChunks((task, context) => (isBad(task) ? fail("TREE_CORRUPT") : succeed)(task, context), recorded, {
      standing: () => Promise.resolve({ kind: "undecided" }),
    });
    const job = (index: number) => ({ name: "process-chunk", data: chunkData(index) });
    await chunkQueue.addBulk(Array.from({ length: 20 }, (_, n) => job(900 + n)));
    await until("a round of all", () => recorded.outcomes.length >= 20);
    const startedMs = performance.now();
    await chunkQueue.addBulk(Array.from({ length: 200 }, (_, n) => job(n)));
    const good = () => recorded.outcomes.filter(({ outcome }) => outcome === "completed").length;
    await until("the good ones", () => good() === 200);
    expect(performance.now() - startedMs).toBeLessThan(3_000);
  });

  test.each(["ATTEMPT_EXPIRED", "CONFIG_INVALID"] as const)(
    "is not, but put off, where %s is its own trouble",
    async (code) => {
      openQueues();
      const recorded = recorder();
      startChunks(fail(code), recorded, { concurrency: 1 });
      const added = await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1 });
      const waiting = await untilState(chunkQueue, added, "delayed");
      expect(waiting.attemptsMade).toBe(0);
      expect(recorded.outcomes).toMatchObject([{ outcome: "released", error: { code } }]);
    },
  );

  test.each([
    ["an unknown field", chunkData(1, { evil: 1 }), true],
    ["bad base64", chunkData(1, { chunk_data_base64: "?" }), true],
    ["data too long to be parsed", chunkData(1, { metadata: { a: "a".repeat(70_000) } }), true],
    ["no chunk id", chunkData(1, { chunk_id: undefined }), false],
    ["a chunk id of a forbidden form", chunkData(1, { chunk_id: "../1" }), false],
  ] as const)(
    "because it can't be parsed asks for the chunk that it names: %s",
    async (_name, data, hasIds) => {
      openQueues();
      const recorded = recorder();
      const asked: object[] = [];
      startChunks(succeed, recorded, {
        standing(task) {
          asked.push(task);
          return Promise.resolve({ kind: "unclear" });
        },
      });
      const job = await untilState(chunkQueue, await chunkQueue.add("process-chunk", data), "failed");
      expect(job.failedReason).toMatch(/^(?:JOB_INVALID|PAYLOAD_BASE64_INVALID): /);
      expect(JSON.stringify(job.data)).not.toContain("aGVsbG8=");
      expect(recorded.outcomes).toMatchObject([{ outcome: "failed", sessionId: "sess-a", chunkIndex: 1 }]);
      const names = { kind: "named", sessionId: "sess-a", chunkId: "sess-a-chunk-1", index: 1 };
      expect(asked).toEqual(hasIds ? [names] : []);
      expect(recorded.events).toHaveLength(hasIds ? 0 : 1);
    },
  );

  test("is a dead letter without an event where nobody can tell whether its chunk is committed", async () => {
    openQueues();
    const recorded = recorder();
    startChunks(fail("SECRET_UNWRAP_FAILED"), recorded, {
      standing: () => Promise.resolve({ kind: "unclear" }),
    });
    await untilState(chunkQueue, await chunkQueue.add("process-chunk", chunkData(1)), "failed");
    expect(recorded.events).toEqual([]);
    expect(recorded.outcomes).toMatchObject([{ outcome: "failed" }]);
  });
});

describe("stopping", () => {
  test("lets a running job finish, fetches nothing more, and takes as long as that job", async () => {
    openQueues();
    const recorded = recorder();
    const { promise: gate, resolve: open } = Promise.withResolvers<void>();
    const consumer = startChunks(
      async (task) => {
        await gate;
        return done(task);
      },
      recorded,
      { concurrency: 1 },
    );
    const first = await chunkQueue.add("process-chunk", chunkData(1));
    const second = await chunkQueue.add("process-chunk", chunkData(2));
    await until("a running job", () => consumer.running === 1);
    const stopped = consumer.stop({ deadlineMs: 10_000 });
    await sleep(100);
    open();
    await stopped;
    expect(await state(chunkQueue, first)).toBe("completed");
    expect(await state(chunkQueue, second)).toBe("waiting");
  });

  test("an idle consumer stops within a second", async () => {
    openQueues();
    const consumer = startChunks(succeed, recorder());
    await until("a connection", () => consumer.connected);
    await sleep(100);
    const startedMs = performance.now();
    await consumer.stop({ deadlineMs: 10_000 });
    expect(performance.now() - startedMs).toBeLessThan(1_000);
  });

  test("aborts at the deadline what still runs, which goes back with no attempt used for another consumer", async () => {
    openQueues();
    const recorded = recorder();
    const consumer = startChunks(
      (_task, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener("abort", () => reject(new LucidError("SHUTTING_DOWN", "stopped")));
        }),
      recorded,
    );
    const job = await chunkQueue.add("process-chunk", chunkData(1));
    await until("a running job", () => consumer.running === 1);
    const startedMs = performance.now();
    await consumer.stop({ deadlineMs: 300 });
    expect(performance.now() - startedMs).toBeLessThan(1_300);
    expect(await state(chunkQueue, job)).toBe("waiting");
    expect((await chunkQueue.getJob(job.id ?? ""))?.attemptsMade).toBe(0);
    expect(recorded.outcomes).toMatchObject([{ outcome: "released", error: { code: "SHUTTING_DOWN" } }]);
    startChunks(succeed, recorded);
    await untilState(chunkQueue, job, "completed");
  });

  test("doesn't wait for a job that is put off, which the next consumer takes with no attempt used", async () => {
    openQueues();
    const recorded = recorder();
    const consumer = startChunks(fail("TREE_CORRUPT"), recorded, {
      standing: () => Promise.resolve({ kind: "undecided" }),
    });
    const job = await chunkQueue.add("process-chunk", chunkData(1), { attempts: 1 });
    await until("a release", () => recorded.outcomes.length > 0);
    const startedMs = performance.now();
    await consumer.stop({ deadlineMs: 10_000 });
    expect(performance.now() - startedMs).toBeLessThan(900);
    expect(await state(chunkQueue, job)).toBe("delayed");
    startChunks(succeed, recorded);
    expect((await untilState(chunkQueue, job, "completed")).attemptsMade).toBe(1);
  });

  test("a second call doesn't wait for anything", async () => {
    openQueues();
    const consumer = startChunks(() => Promise.withResolvers<ProcessChunkReturn>().promise, recorder());
    await chunkQueue.add("process-chunk", chunkData(1));
    await until("a running job", () => consumer.running === 1);
    const startedMs = performance.now();
    const first = consumer.stop({ deadlineMs: 30_000 });
    await consumer.stop({ deadlineMs: 30_000 });
    await first;
    expect(performance.now() - startedMs).toBeLessThan(1_000);
  });

  test("a consumer that was never started stops, too", async () => {
    openQueues();
    const recorded = recorder();
    const consumer = createControlConsumer({
      ...consumerOptions(recorded),
      finalize: () => Promise.resolve(),
    });
    await consumer.stop({ deadlineMs: 1_000 });
    expect(recorded.errors).toEqual([]);
  });
});

describe("session-control", () => {
  function startControl(finalize: (job: FinalizeJob) => Promise<void>, recorded: Recorded): void {
    const consumer = createControlConsumer({ ...consumerOptions(recorded), finalize });
    consumer.start();
    consumers.push(consumer);
  }

  test("a finalize-session job comes parsed to its handler", async () => {
    openQueues();
    const jobs: FinalizeJob[] = [];
    startControl((job) => {
      jobs.push(job);
      return Promise.resolve();
    }, recorder());
    await untilState(
      controlQueue,
      await controlQueue.add("finalize-session", { session_id: "sess-a", chunk_count: 3 }),
      "completed",
    );
    expect(jobs).toEqual([
      { sessionId: "sess-a", chunkCount: 3, details: { manifestType: "session_recording" } },
    ]);
  });

  test("one that is refused stays as a dead letter with its code, and is told to the observer", async () => {
    openQueues();
    const recorded = recorder();
    startControl(() => Promise.reject(new LucidError("FINALIZE_COUNT_CONFLICT", "constant words")), recorded);
    const bad = await controlQueue.add("finalize-session", { session_id: "sess-a" });
    const conflicting = await controlQueue.add("finalize-session", { session_id: "sess-a", chunk_count: 3 });
    expect((await untilState(controlQueue, bad, "failed")).failedReason).toMatch(
      /^JOB_INVALID: chunk_count must/,
    );
    expect((await untilState(controlQueue, conflicting, "failed")).failedReason).toBe(
      "FINALIZE_COUNT_CONFLICT: constant words",
    );
    expect(recorded.outcomes).toMatchObject([
      { queue: "session-control", outcome: "failed", sessionId: "sess-a" },
      { queue: "session-control", outcome: "failed", sessionId: "sess-a" },
    ]);
  });

  test("one whose data is too long to be parsed is refused, and the data is overwritten", async () => {
    openQueues();
    const recorded = recorder();
    startControl(() => Promise.resolve(), recorded);
    const data = { session_id: "sess-a", chunk_count: 3, metadata: { a: "plain".repeat(20_000) } };
    const job = await untilState(controlQueue, await controlQueue.add("finalize-session", data), "failed");
    expect(job.failedReason).toMatch(/^JOB_INVALID: the job's data has more than 65536 characters/);
    expect(job.data).toEqual({ session_id: "sess-a", chunk_count: 3 });
  });
});

describe("queue statistics", () => {
  test("tell the depth of each state and the age of the oldest waiting job", async () => {
    openQueues();
    const stats = createQueueStats({
      url: servers.redisUrl,
      prefix,
      queues: ["session-chunks", "session-control"],
      onError: () => undefined,
    });
    await until("a connection", () => stats.connected);
    await chunkQueue.add("process-chunk", chunkData(1), { timestamp: Date.now() - 60_000 });
    await chunkQueue.add("process-chunk", chunkData(2));
    await chunkQueue.add("process-chunk", chunkData(3), { delay: 60_000 });
    const [chunks, control] = await stats.read();
    expect(chunks?.depth).toEqual({
      waiting: 2,
      prioritized: 0,
      delayed: 1,
      active: 0,
      completed: 0,
      failed: 0,
    });
    expect(chunks?.oldestWaitingSeconds).toBeGreaterThan(59);
    expect(chunks?.oldestWaitingSeconds).toBeLessThan(70);
    expect(control).toMatchObject({ queue: "session-control", oldestWaitingSeconds: 0 });
    await stats.close();
  });
});

test("a process that used a consumer and stopped it ends by itself", async () => {
  openQueues();
  const script = `
    import { createChunkConsumer } from "./src/adapters/bullmq/chunk-consumer.ts";
    import { createSystemClock } from "./src/adapters/system/clock.ts";
    const retention = { ageSeconds: 60, count: 10 };
    const consumer = createChunkConsumer({
      redisUrl: ${JSON.stringify(servers.redisUrl)}, prefix: ${JSON.stringify(prefix)}, concurrency: 2, lockDurationMs: 15000,
      stalledIntervalMs: 5000, stalledCountMax: 5, retryAttempts: 3, retryDelayMs: 10, retentionCompleted: retention,
      retentionFailed: retention, clock: createSystemClock(), limits: { chunkBytesMax: 1024 }, announce: async () => {},
      observer: { onError() {}, onOutcome() {}, onStalled() {} }, process: async () => ({}), standing: async () => ({ kind: "none" }),
    });
    consumer.start();
    setTimeout(async () => {
      await consumer.stop({ deadlineMs: 1000 });
      setImmediate(() => console.log(process.getActiveResourcesInfo().filter((kind) => !/^(Immediate|PipeWrap|TTYWrap)$/.test(kind)).join()));
    }, 300);
  `;
  const run = promisify(execFile);
  const { stdout: output } = await run(process.execPath, ["--input-type=module", "-e", script], {
    timeout: 10_000,
  });
  expect(output.trim()).toBe("");
});
