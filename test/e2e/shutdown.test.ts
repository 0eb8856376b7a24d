import { generateKeyPairSync } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Job } from "bullmq";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import {
  Deployment,
  expectEveryEffectOnce,
  expectNoAttemptUsedUp,
  finalizeAll,
  inTurn,
  type TestSession,
  untilSealed,
} from "../support/deployment.ts";
import { silence, startFakeService } from "../support/fake-service.ts";
import { OwnServer, ownFolder } from "../support/own-servers.ts";
import { testServers } from "../support/servers.ts";
import { until, type WorkerProcess } from "../support/worker-process.ts";

const servers = testServers();

/** Slow chunks and short locks: there is a rest to finish, and it is not waited for longer than needed. */
const SLOW = {
  LUCID_DEFAULT_COMPRESSION_LEVEL: "17",
  LOG_LEVEL: "debug",
  LOCK_DURATION: "3",
  STALLED_INTERVAL: "1",
} as const;
const FETCH_STOP_MS_MAX = 1_000;
const SEAL_MS_MAX = 30_000;
/** LOCK_DURATION, two looks for silent workers, and the work itself. */
const STALLED_MS_MAX = 40_000;
/** What an orchestrator allows. */
const EXIT_MS_MAX = 30_000;
const ANOTHER_PRESS_MS = 600;
/** Redis syncs its file once a second: what was added before that survives its kill. */
const REDIS_SYNC_MS = 1_200;

function loadOf(name: string): TestSession {
  return { id: name, sizes: Array.from({ length: 60 }, (_, index) => 150_000 + index) };
}

async function underLoad(deployment: Deployment, worker: WorkerProcess, session: TestSession): Promise<void> {
  const producer = deployment.producer();
  await producer.enqueueAll(inTurn([session]));
  await finalizeAll(producer, [session]);
  await worker.untilLine("chunk_committed", 20_000, 3);
}

async function expectFinishedByAnother(deployment: Deployment, session: TestSession): Promise<void> {
  const heard = deployment.listen();
  const next = await deployment.readyWorker();
  await untilSealed(deployment, [session], SEAL_MS_MAX);
  await expectEveryEffectOnce(deployment, heard, [session]);
  // A committed chunk whose completion Redis didn't hear of: its job is active until its lock has run out.
  const queue = deployment.queue("session-chunks");
  const isIdle = async () => (await queue.getActiveCount()) === 0;
  await until("the jobs that were left behind are done", isIdle, STALLED_MS_MAX);
  expect((await next.terminate()).code).toBe(0);
}

describe("SIGTERM under load", () => {
  test("ends with 0, fetches nothing more, fails no job, uses up no attempt, leaves the rest", async () => {
    const deployment = new Deployment({ ...servers, env: SLOW });
    const session = loadOf(servers.sessionId("sigterm"));
    const worker = await deployment.readyWorker();
    await underLoad(deployment, worker, session);

    const signalledAt = Date.now();
    const { code, afterSignalMs } = await worker.terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(EXIT_MS_MAX);
    expect(worker.linesOf("stopped")).toHaveLength(1);
    const queue = deployment.queue("session-chunks");
    const counts = await queue.getJobCounts("failed", "active", "waiting", "completed");
    expect(counts).toMatchObject({ failed: 0, active: 0 });
    expect(counts["waiting"]).toBeGreaterThan(10);
    const taken = (await queue.getJobs(["completed", "waiting"])) as Job[];
    const late = taken.filter(({ processedOn = 0 }) => processedOn > signalledAt + FETCH_STOP_MS_MAX);
    expect(late.map(({ id }) => id)).toEqual([]);

    await expectFinishedByAnother(deployment, session);
    await expectNoAttemptUsedUp(deployment, session.sizes.length);
  });

  test("and while Redis is gone: ends with 0 in time, and another worker finishes", async () => {
    const redis = await OwnServer.redis();
    const env = { ...SLOW, SHUTDOWN_DEADLINE: "3" };
    const deployment = new Deployment({ ...servers, redisUrl: redis.url, env });
    const session = loadOf(servers.sessionId("no-redis"));
    const worker = await deployment.readyWorker();
    await underLoad(deployment, worker, session);
    await sleep(REDIS_SYNC_MS);

    redis.kill();
    await sleep(100);
    const { code, afterSignalMs } = await worker.terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(10_000);
    await redis.restart();
    await expectFinishedByAnother(deployment, session);
    await expectNoAttemptUsedUp(deployment, session.sizes.length);
  });

  test("and while MongoDB is gone: ends with 0 in time; a second signal ends another at once", async () => {
    const mongodb = await OwnServer.mongodb();
    const env = { ...SLOW, SHUTDOWN_DEADLINE: "3" };
    const deployment = new Deployment({ ...servers, mongodbUrl: mongodb.url, env });
    const session = loadOf(servers.sessionId("no-mongodb"));
    const impatient = await deployment.readyWorker();
    const worker = await deployment.readyWorker();
    const pressed = await deployment.readyWorker();
    await underLoad(deployment, worker, session);
    await impatient.untilLine("chunk_committed", 20_000, 1);

    mongodb.freeze();
    // Ctrl-C, from the terminal and from npm; and half a second later once more.
    pressed.signal("SIGINT");
    await pressed.untilLine("stopping", 2_000);
    pressed.signal("SIGINT");
    await sleep(ANOTHER_PRESS_MS);
    expect(pressed.hasExited).toBe(false);
    pressed.signal("SIGINT");
    const ended = await pressed.exited;
    expect(ended.code).toBe(1);
    expect(ended.afterSignalMs).toBeLessThan(1_000);
    impatient.signal("SIGTERM");
    await impatient.untilLine("stopping", 2_000);
    const forced = await impatient.terminate();
    expect(forced.code).toBe(1);
    expect(forced.afterSignalMs).toBeLessThan(1_000);
    const { code, afterSignalMs } = await worker.terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(10_000);
    mongodb.thaw();
    await expectFinishedByAnother(deployment, session);
    await expectNoAttemptUsedUp(deployment, session.sizes.length);
  });
});

describe("SIGTERM while a sweep waits", () => {
  test("for an engine that never answers: the other sweeps went on, all have ended, and the end is 0", async () => {
    const engine = await startFakeService();
    onTestFinished(() => engine.close());
    engine.answer(silence);
    const signingKey = join(ownFolder(), "signing.pem");
    const { privateKey } = generateKeyPairSync("ed25519");
    writeFileSync(signingKey, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });
    const env = {
      MANIFEST_SIGNING_KEY_FILE: signingKey,
      LUCID_MANIFEST_PATH: ownFolder(),
      BLOCKCHAIN_ENGINE_URL: engine.url,
    };
    const deployment = new Deployment({ ...servers, env });
    const session = { id: servers.sessionId("hanging-engine"), sizes: [10] };
    const worker = await deployment.readyWorker();
    const producer = deployment.producer();
    await producer.enqueueAll(inTurn([session]));
    await finalizeAll(producer, [session]);
    const isAsked = () => engine.requests.some(({ method }) => method === "POST");
    await until("the engine is asked", isAsked, SEAL_MS_MAX);

    const sweeps = (sweep: string) => worker.metric(`lucid_sweeps_total{sweep="${sweep}",outcome="done"}`);
    const before = {
      events: await sweeps("events"),
      blobs: await sweeps("blobs"),
      sessions: await sweeps("sessions"),
    };
    await until(
      "the other sweeps go on",
      async () => (await sweeps("events")) > before.events + 1 && (await sweeps("blobs")) > before.blobs + 1,
      10_000,
    );
    expect(await sweeps("sessions")).toBeLessThanOrEqual(before.sessions + 1);

    const { code, afterSignalMs } = await worker.terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(5_000);
    expect(worker.linesOf("stopped")).toHaveLength(1);
  });
});
