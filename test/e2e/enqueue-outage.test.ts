import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Queue } from "bullmq";
import { Redis } from "ioredis";
import { expect, onTestFinished, test } from "vitest";
import { OwnServer } from "../support/own-servers.ts";
import { bareEnvironment, until } from "../support/worker-process.ts";

const PROGRAM = fileURLToPath(new URL("../../src/cli/session-processor.ts", import.meta.url));
const CHUNK = "12345678";
/** The producer's limit for a first connection. */
const FIRST_CONNECTION_MS = 10_000;

/** `recorder | session-processor enqueue sess-1 -`, with the recorder in the test's hand. */
function startEnqueue(redis: OwnServer) {
  const args = ["enqueue", "sess-1", "-", "--chunk-size", String(CHUNK.length)];
  const env = { ...bareEnvironment(), REDIS_URL: redis.url };
  const child = spawn(process.execPath, [PROGRAM, ...args], { env });
  onTestFinished(() => void child.kill("SIGKILL"));
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (text: string) => {
      output[name] += text;
    });
  }
  const exited = once(child, "close").then(([code]) => code as number | null);
  return { child, output, exited, record: () => child.stdin.write(CHUNK) };
}

async function queuedIds(redis: OwnServer): Promise<readonly string[]> {
  const client = new Redis(redis.url, { maxRetriesPerRequest: null });
  client.on("error", () => undefined);
  const queue = new Queue("session-chunks", { connection: client, prefix: "{lucid}" });
  const jobs = await queue.getJobs(["waiting"]);
  await queue.close();
  client.disconnect();
  return jobs.map(({ id }) => id ?? "");
}

test("a recorder's stream is queued whole, although Redis is killed for longer than a first connection may take", async () => {
  const redis = await OwnServer.redis();
  const { child, output, exited, record } = startEnqueue(redis);
  for (let index = 0; index < 5; index++) record();
  await until("chunks are queued", async () => (await queuedIds(redis)).length === 5, 10_000, 100);
  // What Redis has acknowledged is on its disk by then (everysec).
  await sleep(1_500);
  redis.kill();
  for (let index = 5; index < 10; index++) record();
  await sleep(FIRST_CONNECTION_MS + 2_000);
  await redis.restart();
  await until("it goes on", () => output.stderr.includes("going on"), 10_000);
  record();
  child.stdin.end();
  expect(await exited).toBe(0);
  expect(output.stdout).toMatch(/^queued 11 chunks, 88 B;/);
  const waits =
    "Redis does not answer, or refuses for now: waiting for it, for as long as that takes; Ctrl-C ends this";
  expect(output.stderr.split("\n").slice(1)).toEqual([waits, "Redis is back: going on", ""]);
  expect(await queuedIds(redis)).toHaveLength(11);
});

test("interrupted while it waits, it says with which index to go on", async () => {
  const redis = await OwnServer.redis();
  const { child, output, exited, record } = startEnqueue(redis);
  for (let index = 0; index < 3; index++) record();
  await until("chunks are queued", async () => (await queuedIds(redis)).length === 3, 10_000, 100);
  redis.freeze();
  record();
  await sleep(1_000);
  const interruptedMs = performance.now();
  child.kill("SIGINT");
  expect(await exited).toBe(130);
  expect(performance.now() - interruptedMs).toBeLessThan(4_000);
  expect(output.stderr).toContain(
    "3 chunks had been queued, all below index 3; to go on, leave out the first 24 bytes of that input and send the rest: " +
      "npx session-processor enqueue sess-1 - --first-index 3 --chunk-size 8",
  );
});
