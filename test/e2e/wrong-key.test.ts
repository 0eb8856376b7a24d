import { expect, test } from "vitest";
import { freePort } from "../../deploy/local/free-port.ts";
import { Deployment, finalizeAll, inTurn, type TestSession, untilSealed } from "../support/deployment.ts";
import { testServers } from "../support/servers.ts";
import { until } from "../support/worker-process.ts";

const servers = testServers();
const WRONG_KEY = "d5Yt0pMZ3kQm8sVx2bHc7nRw4jLf9gTa";
const CHUNKS = 60;

test("a worker with another key takes no job, says so everywhere, and works once it has the right one", async () => {
  const deployment = new Deployment(servers);
  const right = await deployment.readyWorker();
  const port = await freePort();
  const env = { ENCRYPTION_KEY: WRONG_KEY, SESSION_PROCESSOR_PORT: String(port) };
  const wrong = deployment.startWorker(env);
  await wrong.untilLine("key_ring_mismatch", 20_000);
  const [line] = wrong.linesOf("key_ring_mismatch");
  expect(line).toMatchObject({ level: "error", err: { code: "KEK_MISMATCH" } });
  expect(JSON.stringify(line)).toContain("ENCRYPTION_KEY");

  const session = { id: servers.sessionId("beside"), sizes: Array.from({ length: CHUNKS }, () => 20_000) };
  const producer = deployment.producer();
  await producer.enqueueAll(inTurn([session]));
  await finalizeAll(producer, [session]);
  await untilSealed(deployment, [session], 20_000);
  const queue = deployment.queue("session-chunks");
  expect(await queue.getFailedCount()).toBe(0);
  expect(wrong.linesOf("ready")).toEqual([]);
  expect(wrong.linesOf("key_ring_mismatch").length).toBeLessThan(5);

  const readiness = await wrong.get("/ready", port);
  expect(readiness.status).toBe(503);
  expect(readiness.body).toContain("key_ring");
  expect(readiness.body).toContain("ENCRYPTION_KEY");
  expect((await wrong.get("/health", port)).status).toBe(200);
  expect((await wrong.get("/metrics", port)).body).toMatch(/^lucid_key_ring_mismatch 1$/m);
  expect(wrong.output).not.toContain(WRONG_KEY);
  const { code, afterSignalMs } = await wrong.terminate();
  expect(code).toBe(0);
  expect(afterSignalMs).toBeLessThan(5_000);

  const restarted = await deployment.readyWorker({ SESSION_PROCESSOR_PORT: String(port) });
  expect(await restarted.metric("lucid_key_ring_mismatch")).toBe(0);
  await Promise.all([right.terminate(), restarted.terminate()]);
});

test("a session whose wrapped secret is damaged fails alone, and the worker stays ready", async () => {
  const deployment = new Deployment(servers);
  const heard = deployment.listen();
  const producer = deployment.producer();
  const sessions: readonly TestSession[] = ["damaged", "whole"].map((name) => ({
    id: servers.sessionId(name),
    sizes: Array.from({ length: CHUNKS }, () => 2_000),
  }));
  const first = await deployment.readyWorker();
  await producer.enqueueAll(inTurn(sessions, 0, 1));
  const { sessions: store } = await deployment.stores();
  const sizes = async () =>
    (await Promise.all(sessions.map(({ id }) => store.find(id as never)))).map((one) => one?.tree.size);
  await until("the first chunks", async () => (await sizes()).join() === "1,1", 10_000);
  await first.terminate();
  const [damaged, whole] = sessions as readonly [TestSession, TestSession];
  const db = await deployment.db();
  const documents = db.collection<{ _id: string }>("sessions");
  const found = (await documents.findOne({ _id: damaged.id })) as unknown as {
    keys: { wrapped: { buffer: Uint8Array } }[];
  };
  const keys = found.keys.map((key) => ({ ...key, wrapped: Buffer.from(key.wrapped.buffer).reverse() }));
  await documents.updateOne({ _id: damaged.id }, { $set: { keys } });

  const worker = await deployment.readyWorker();
  await producer.enqueueAll(inTurn(sessions, 1));
  await finalizeAll(producer, [whole]);
  await untilSealed(deployment, [whole], 20_000);
  const queue = deployment.queue("session-chunks");
  await until("the others have failed", async () => (await queue.getFailedCount()) === CHUNKS - 1, 20_000);
  const failures = heard.all.filter(({ type }) => type === "chunk.failed");
  expect(new Set(failures.map(({ session_id: id }) => id))).toEqual(new Set([damaged.id]));
  expect(await worker.metric('lucid_job_failures_total{code="SECRET_UNWRAP_FAILED"}')).toBe(CHUNKS - 1);
  expect((await worker.get("/ready")).status).toBe(200);
  await worker.terminate();
});
