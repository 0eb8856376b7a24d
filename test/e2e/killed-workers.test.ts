import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import {
  Deployment,
  expectEveryEffectOnce,
  finalizeAll,
  inTurn,
  payloadOf,
  type TestSession,
  untilSealed,
} from "../support/deployment.ts";
import { testServers } from "../support/servers.ts";
import { until } from "../support/worker-process.ts";

const servers = testServers();

const KILLS = 10;
const RESUME_MS_MAX = 20_000;
const CHUNKS_PER_ROUND = 10;

test("after ten kills of a worker in mid-run, beside another one, every chunk is there once", async () => {
  const deployment = new Deployment(servers);
  const heard = deployment.listen();
  const producer = deployment.producer();
  const sessions: readonly TestSession[] = [2_000, 20_000, 1_048_576].map((bytes, position) => ({
    id: servers.sessionId(`killed-${position}`),
    sizes: Array.from({ length: KILLS * CHUNKS_PER_ROUND }, (_, index) => bytes - index),
  }));
  // With production's lock times: what is promised is how long a dead worker's jobs stay with it.
  const beside = await deployment.readyWorker({ LOG_LEVEL: "debug" });

  for (let round = 0; round < KILLS; round++) {
    const victim = await deployment.readyWorker({ LOG_LEVEL: "debug" });
    const from = round * CHUNKS_PER_ROUND;
    const adding = producer.enqueueAll(inTurn(sessions, from, from + CHUNKS_PER_ROUND));
    // A commit has just been made, and others are under way; the pauses move the blow from commit to event to mark.
    await victim.untilLine("chunk_committed", RESUME_MS_MAX, 1 + (round % 3));
    await sleep(round * 2);
    await victim.kill();
    await adding;
  }
  const killedMs = performance.now();
  await finalizeAll(producer, sessions);
  const last = await deployment.readyWorker();
  await untilSealed(deployment, sessions, RESUME_MS_MAX);
  expect(performance.now() - killedMs).toBeLessThan(RESUME_MS_MAX);

  await expectEveryEffectOnce(deployment, heard, sessions);
  expect(await deployment.queue("session-chunks").getFailedCount()).toBe(0);
  // The kills hit jobs in the middle of them, or nothing was tested.
  const stalls = [beside, last].map((one) => one.metric('lucid_jobs_stalled_total{queue="session-chunks"}'));
  const takenOver = (await Promise.all(stalls)).reduce((sum, count) => sum + count, 0);
  expect(takenOver).toBeGreaterThan(KILLS / 2);
  expect(beside.hasExited).toBe(false);
});

test("a worker frozen beyond its locks and thawed adds nothing to what another did meanwhile", async () => {
  const deployment = new Deployment({
    ...servers,
    env: { LOCK_DURATION: "1.5", STALLED_INTERVAL: "0.5", LOG_LEVEL: "debug" },
  });
  const heard = deployment.listen();
  const session = { id: servers.sessionId("frozen"), sizes: Array.from({ length: 150 }, () => 300_000) };
  const frozen = await deployment.readyWorker();
  const producer = deployment.producer();
  // Not waited for: the worker must have jobs in hand when it freezes.
  const enqueued = producer.enqueueAll(inTurn([session]));
  await frozen.untilLine("chunk_committed", 10_000, 3);
  frozen.signal("SIGSTOP");
  await enqueued;
  const other = await deployment.readyWorker();
  await finalizeAll(producer, [session]);
  await untilSealed(deployment, [session], RESUME_MS_MAX);
  expect(other.linesOf("job_stalled").length).toBeGreaterThan(0);

  frozen.signal("SIGCONT");
  await sleep(1_500);
  await expectEveryEffectOnce(deployment, heard, [session]);
  expect(await deployment.queue("session-chunks").getFailedCount()).toBe(0);
  expect(await frozen.get("/health")).toMatchObject({ status: 200 });
  expect((await frozen.terminate()).code).toBe(0);
});

test("a job that lost its worker too often, but after its commit, is completed and never told as failed", async () => {
  const deployment = new Deployment({ ...servers, env: { MAX_STALLED_COUNT: "1" } });
  const heard = deployment.listen();
  const queue = deployment.queue("session-chunks");
  const redis = deployment.redis();
  const session = { id: servers.sessionId("stalled"), sizes: [3_000] };
  const data = {
    session_id: session.id,
    chunk_id: `${session.id}-chunk-000000`,
    chunk_index: 0,
    chunk_data_base64: Buffer.from(payloadOf(session.id, 0, 3_000)).toString("base64"),
  };
  const first = await deployment.readyWorker();
  await queue.add("process-chunk", data, { jobId: "first" });
  await until("the commit", async () => (await queue.getJobState("first")) === "completed", 10_000);
  await first.terminate();

  // The same job once more, as a dead worker leaves it behind for the last time it may.
  const lost = [
    { id: "lost", data },
    { id: "lost-other", data: { ...data, chunk_data_base64: "b3RoZXI=" } },
  ];
  for (const job of lost) {
    await queue.add("process-chunk", job.data, { jobId: job.id });
    await redis.hset(queue.toKey(job.id), "stc", "1");
    await redis.rpoplpush(queue.toKey("wait"), queue.toKey("active"));
  }
  const worker = await deployment.readyWorker();
  const isOver = async () => (await queue.getFailedCount()) + (await queue.getCompletedCount()) === 3;
  await until("both have ended", isOver, 20_000);
  expect(await queue.getJobState("lost")).toBe("completed");
  expect(await redis.hget(queue.toKey("lost"), "data")).not.toContain("chunk_data_base64");
  expect(worker.linesOf("chunk_kept")).toMatchObject([
    { job_id: "lost", err: { code: "JOB_STALLED_TOO_OFTEN" } },
  ]);
  expect(await queue.getJobState("lost-other")).toBe("failed");
  await finalizeAll(deployment.producer(), [session]);
  await untilSealed(deployment, [session], RESUME_MS_MAX);
  const failures = heard.all.filter(({ type }) => type === "chunk.failed");
  expect(failures).toMatchObject([{ job_id: "lost-other" }]);
  await worker.terminate();
});
