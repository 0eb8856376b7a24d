import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { SessionGapEvent } from "../../src/schema/event.ts";
import {
  chunksOf,
  Deployment,
  expectEveryEffectOnce,
  expectNoAttemptUsedUp,
  finalizeAll,
  inTurn,
  type TestSession,
  untilSealed,
} from "../support/deployment.ts";
import { openForgetfulProxy } from "../support/forgetful-proxy.ts";
import { OwnServer } from "../support/own-servers.ts";
import { requireRealMongod, testServers } from "../support/servers.ts";
import { until, type WorkerProcess } from "../support/worker-process.ts";

const servers = testServers();

const SLOW = { LUCID_DEFAULT_COMPRESSION_LEVEL: "17", LOG_LEVEL: "debug", MAX_WORKERS: "4" } as const;
/** The bar: how long after the server is back. */
const REDIS_RESUME_MS_MAX = 10_000;
const MONGODB_RESUME_MS_MAX = 15_000;
const SEAL_MS_MAX = 60_000;
/** Beyond `appendfsync everysec`: what was acknowledged before is on disk. */
const REDIS_SYNC_MS = 1_200;

function loadOf(name: string, chunks = 100): TestSession {
  return { id: name, sizes: Array.from({ length: chunks }, (_, index) => 150_000 + index) };
}

async function underLoad(deployment: Deployment, session: TestSession): Promise<WorkerProcess> {
  const producer = deployment.producer();
  await producer.enqueueAll(inTurn([session]));
  await finalizeAll(producer, [session]);
  // Before the worker starts, so that a kill comes soon after the first commits, with nearly all of the load still there.
  await sleep(REDIS_SYNC_MS);
  const worker = await deployment.readyWorker();
  await worker.untilLine("chunk_committed", 20_000, 3);
  return worker;
}

/** Milliseconds until the worker commits again. */
async function resumedAfter(worker: WorkerProcess, timeoutMs: number): Promise<number> {
  const startMs = performance.now();
  await worker.untilLine("chunk_committed", timeoutMs, worker.linesOf("chunk_committed").length + 1);
  return performance.now() - startMs;
}

/** What an operator sees at LOG_LEVEL=info. */
function operatorLines(worker: WorkerProcess): number {
  return worker.lines.filter(({ level }) => level !== "debug" && level !== "trace").length;
}

describe("Redis", () => {
  test("killed and started again under load: work goes on, no job failed, no attempt used", async () => {
    const DOWN_MS = 5_000;
    const redis = await OwnServer.redis();
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, env: SLOW });
    const session = loadOf(servers.sessionId("redis-restart"), 200);
    const worker = await underLoad(deployment, session);

    redis.kill();
    const before = operatorLines(worker);
    await sleep(DOWN_MS);
    expect(operatorLines(worker) - before).toBeLessThanOrEqual(DOWN_MS / 1000 + 1);
    expect(await worker.get("/health")).toMatchObject({ status: 200 });
    expect(await worker.get("/ready")).toMatchObject({ status: 503 });
    await redis.restart();
    expect(await resumedAfter(worker, REDIS_RESUME_MS_MAX)).toBeLessThan(REDIS_RESUME_MS_MAX);
    // By the first operation that had waited for it, which may be another than the first to get through.
    await worker.untilLine("store_recovered", REDIS_RESUME_MS_MAX);
    const [recovered] = worker.linesOf("store_recovered");
    expect(recovered).toMatchObject({ what: "redis" });
    expect(recovered?.["duration_ms"]).toBeGreaterThan(DOWN_MS - 500);

    const heard = deployment.listen();
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    await expectEveryEffectOnce(deployment, heard, [session]);
    await expectNoAttemptUsedUp(deployment, session.sizes.length);
    expect(worker.hasExited).toBe(false);
  });

  test("emptied under load: what is committed keeps its effects and events, the rest is a gap", async () => {
    const redis = await OwnServer.redis();
    const env = { ...SLOW, GAP_ALERT_SECONDS: "1" };
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, env });
    const session = loadOf(servers.sessionId("emptied"), 60);
    const heard = deployment.listen();
    const worker = await underLoad(deployment, session);
    await worker.untilLine("chunk_committed", 20_000, 15);

    await deployment.redis().flushall();
    const gap = await until(
      "the gap is told",
      () => heard.all.find((event): event is SessionGapEvent => event.type === "session.gap"),
      20_000,
    );
    const missing = gap.missing.flatMap(([first, last]) =>
      Array.from({ length: last - first + 1 }, (_, offset) => first + offset),
    );
    expect(missing.length).toBeGreaterThan(10);
    expect(missing.at(-1)).toBe(session.sizes.length - 1);
    const committed = session.sizes.map((_, index) => index).filter((index) => !missing.includes(index));
    expect(committed.length).toBeGreaterThan(10);
    await until(
      "every committed chunk is announced",
      () => committed.every((index) => heard.has(`chunk.completed.${session.id}.${index}`)),
      10_000,
    );

    // All of them: those that are there are adopted, without a second effect.
    await deployment.producer().enqueueAll(chunksOf(session));
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    await expectEveryEffectOnce(deployment, heard, [session]);
  });
});

describe("Redis that is frozen, killed, or out of memory", () => {
  test("is told as what it is, at most once a second, and nothing as unforeseen", async () => {
    const redis = await OwnServer.redis();
    const env = { ...SLOW, LOCK_DURATION: "5", STALLED_INTERVAL: "2" };
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, env });
    const session = loadOf(servers.sessionId("trouble"), 400);
    const worker = await underLoad(deployment, session);
    const trouble = async (what: string, seconds: number, begin: () => unknown, end: () => unknown) => {
      const before = operatorLines(worker);
      await begin();
      await sleep(seconds * 1000);
      expect(operatorLines(worker) - before, what).toBeLessThanOrEqual(seconds + 1);
      expect(await worker.get("/health"), what).toMatchObject({ status: 200 });
      await end();
      await resumedAfter(worker, 30_000);
    };
    await trouble(
      "frozen",
      12,
      () => redis.freeze(),
      () => redis.thaw(),
    );
    await trouble(
      "killed",
      6,
      () => redis.kill(),
      () => redis.restart(),
    );
    const admin = deployment.redis();
    await trouble(
      "full",
      8,
      () => admin.config("SET", "maxmemory", "1"),
      () => admin.config("SET", "maxmemory", "0"),
    );
    const codes = worker.lines.map(({ err }) => (err as { code?: string } | undefined)?.code);
    expect(codes).toContain("QUEUE_UNAVAILABLE");
    expect(codes).not.toContain("INTERNAL");
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    expect(await deployment.queue("session-chunks").getJobCountByTypes("failed")).toBe(0);
  });
});

describe("Redis that is out of memory while jobs wait", () => {
  // /health says that a worker is to be killed if it picks up nothing for 30 s; that one can't.
  const FULL_MS = 33_000;

  test("/ready says so and what to do, /health stays, and both are well again by themselves", async () => {
    const redis = await OwnServer.redis();
    const deployment = new Deployment({ ...servers, redisUrl: redis.url });
    const session = loadOf(servers.sessionId("full"), 5);
    const admin = deployment.redis();
    const producer = deployment.producer();
    await producer.enqueueAll(inTurn([session]));
    await finalizeAll(producer, [session]);
    await admin.config("SET", "maxmemory", "1");
    const worker = deployment.startWorker();
    await worker.untilLine("not_ready", 20_000);
    expect(worker.linesOf("not_ready")).toMatchObject([
      { what: "redis", reason: expect.stringContaining("out of memory") },
    ]);
    const fullMs = performance.now();
    const before = operatorLines(worker);
    for (let ms = 0; ms < FULL_MS; ms = performance.now() - fullMs) {
      await sleep(1_000);
      const [health, ready] = await Promise.all([worker.get("/health"), worker.get("/ready")]);
      expect([ms, health.status, ready.status]).toEqual([ms, 200, 503]);
      expect(ready.body).toMatch(/out of memory.+maxmemory/);
    }
    expect(await worker.get("/metrics")).toMatchObject({
      body: expect.stringMatching(/^lucid_ready 0$/m),
    });
    expect(operatorLines(worker) - before).toBeLessThanOrEqual(FULL_MS / 1000 + 1);
    await admin.config("SET", "maxmemory", "0");
    await worker.untilReady();
    expect(await worker.get("/ready")).toMatchObject({ status: 200 });
    await untilSealed(deployment, [session], SEAL_MS_MAX);
  });
});

/** A NAT or a load balancer that has forgotten a connection tells neither side: only silence does. */
describe("connections to Redis that go silent, where new ones work", () => {
  const FORGOTTEN_MS_MAX = 20_000;

  test("under load: the worker consumes again by itself, says so in /ready, and fails no job", async () => {
    const redis = await OwnServer.redis();
    const proxy = await openForgetfulProxy(Number(new URL(redis.url).port));
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, env: SLOW });
    const session = loadOf(servers.sessionId("forgotten"), 200);
    const producer = deployment.producer();
    await producer.enqueueAll(inTurn([session]));
    await finalizeAll(producer, [session]);
    const worker = await deployment.readyWorker({ REDIS_URL: `redis://127.0.0.1:${proxy.port}` });
    await worker.untilLine("chunk_committed", 20_000, 3);

    proxy.forget();
    const silentMs = performance.now();
    const before = operatorLines(worker);
    const committed = worker.linesOf("chunk_committed").length;
    const resumed = until(
      "jobs are taken again",
      // What was taken before may be committed long after: those at work, and as many that were fetched.
      () => worker.linesOf("chunk_committed").length >= committed + 2 * 4 + 1,
      FORGOTTEN_MS_MAX,
    );
    await sleep(3_000);
    expect(await worker.get("/health")).toMatchObject({ status: 200 });
    expect(await worker.get("/ready")).toMatchObject({ status: 503 });
    await resumed;
    const seconds = (performance.now() - silentMs) / 1000;
    expect(operatorLines(worker) - before).toBeLessThanOrEqual(seconds + 1);
    await until("ready", async () => (await worker.get("/ready")).status === 200, FORGOTTEN_MS_MAX);

    // Locks were lost meanwhile; that follows, and is no trouble of its own.
    expect(worker.linesOf("queue_error")).toEqual([]);

    const heard = deployment.listen();
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    await expectEveryEffectOnce(deployment, heard, [session]);
    expect(await deployment.queue("session-chunks").getJobCountByTypes("failed")).toBe(0);
    expect((await worker.terminate()).code).toBe(0);
  });

  test("an idle worker takes a new job, and a worker stops in time whose connections are silent", async () => {
    const redis = await OwnServer.redis();
    const proxy = await openForgetfulProxy(Number(new URL(redis.url).port));
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, env: SLOW });
    const session = loadOf(servers.sessionId("forgotten-idle"), 1);
    const worker = await deployment.readyWorker({ REDIS_URL: `redis://127.0.0.1:${proxy.port}` });
    proxy.forget();
    await deployment.producer().enqueueAll(inTurn([session]));
    await worker.untilLine("chunk_committed", FORGOTTEN_MS_MAX);
    expect(await worker.get("/health")).toMatchObject({ status: 200 });

    proxy.forget();
    const { code, afterSignalMs } = await worker.terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(30_000);
  });
});

describe("Redis, emptied while nobody consumes", () => {
  test("events that were marked sent and not consumed are heard afterwards", async () => {
    const redis = await OwnServer.redis();
    // Its own: a worker of another test would announce this one's events to another Redis.
    const mongodb = await OwnServer.mongodb();
    const env = { LOG_LEVEL: "debug", SWEEP_INTERVAL: "1", EVENT_PENDING_SECONDS: "1" };
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, mongodbUrl: mongodb.url, env });
    const session = loadOf(servers.sessionId("unheard"), 30);
    const worker = await deployment.readyWorker();
    const producer = deployment.producer();
    await producer.enqueueAll(inTurn([session]));
    await finalizeAll(producer, [session]);
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    const { chunks } = await deployment.stores();
    await until(
      "all are marked sent",
      async () => (await chunks.withPendingEvent(undefined, 1)).length === 0,
      20_000,
    );

    await deployment.redis().flushall();
    await worker.untilLine("redis_lost_data", 20_000);
    const heard = deployment.listen();
    await until(
      "every event is heard",
      () =>
        heard.has(`session.sealed.${session.id}`) &&
        session.sizes.every((_, index) => heard.has(`chunk.completed.${session.id}.${index}`)),
      30_000,
    );
    await expectEveryEffectOnce(deployment, heard, [session]);
  });
});

describe("MongoDB", () => {
  test("frozen for 8 s under load: no job failed, no attempt used, work goes on", async () => {
    const DOWN_MS = 8_000;
    const mongodb = await OwnServer.mongodb();
    const deployment = new Deployment({ ...servers, mongodbUrl: mongodb.url, env: SLOW });
    const session = loadOf(servers.sessionId("mongodb-frozen"));
    const worker = await underLoad(deployment, session);

    mongodb.freeze();
    const before = operatorLines(worker);
    await sleep(DOWN_MS);
    expect(operatorLines(worker) - before).toBeLessThanOrEqual(DOWN_MS / 1000 + 1);
    expect(await worker.get("/health")).toMatchObject({ status: 200 });
    expect(await worker.get("/ready")).toMatchObject({ status: 503 });
    mongodb.thaw();
    expect(await resumedAfter(worker, MONGODB_RESUME_MS_MAX)).toBeLessThan(MONGODB_RESUME_MS_MAX);

    const heard = deployment.listen();
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    await expectEveryEffectOnce(deployment, heard, [session]);
    await expectNoAttemptUsedUp(deployment, session.sizes.length);
  });

  test("killed and started again under load: work goes on, nothing acknowledged is lost", async (ctx) => {
    requireRealMongod(ctx);
    const mongodb = await OwnServer.mongodb();
    const deployment = new Deployment({ ...servers, mongodbUrl: mongodb.url, env: SLOW });
    const session = loadOf(servers.sessionId("mongodb-killed"));
    const worker = await underLoad(deployment, session);
    mongodb.kill();
    await sleep(2_000);
    await mongodb.restart();
    expect(await resumedAfter(worker, MONGODB_RESUME_MS_MAX)).toBeLessThan(MONGODB_RESUME_MS_MAX);
    const heard = deployment.listen();
    await untilSealed(deployment, [session], SEAL_MS_MAX);
    await expectEveryEffectOnce(deployment, heard, [session]);
    await expectNoAttemptUsedUp(deployment, session.sizes.length);
  });
});
