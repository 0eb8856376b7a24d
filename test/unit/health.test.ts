import { expect, test } from "vitest";
import { loadConfig } from "../../src/config.ts";
import { createHealth, type HealthParts } from "../../src/health.ts";
import { createMetrics } from "../../src/telemetry/metrics.ts";

const CONSUMER = { commands: 0, deliveries: 0, running: 0 } as HealthParts["consumers"]["chunks"];

function healthOver(threads: { isUp: boolean; isStarting: boolean }, ping: () => Promise<void>) {
  const { config } = loadConfig({ env: {}, needs: [], cwd: "/nonexistent", programDir: "/nonexistent" });
  const metrics = createMetrics({ version: "1.2.3", queues: ["session-chunks"] });
  const health = createHealth({
    config,
    metrics,
    mongo: { ping, commands: 0 },
    redis: { commands: 0 },
    events: { commands: 0 },
    threads: {
      ping: async () => threads.isUp,
      queued: 0,
      busy: 0,
      get isStarting() {
        return threads.isStarting;
      },
    },
    stats: { read: async () => [], checkWrites: async () => {} },
    consumers: { chunks: CONSUMER, control: CONSUMER },
    manifestDirectory: undefined,
    neighbours: { checks: async () => [] },
  });
  health.setReady(true);
  return { health, metrics };
}

test("threads that start are not told as trouble, also by a look at /ready that began before they were up", async () => {
  const threads = { isUp: false, isStarting: true };
  const slow = Promise.withResolvers<void>();
  const pings = [slow.promise, Promise.resolve()];
  const { health, metrics } = healthOver(threads, () => pings.shift() ?? Promise.resolve());
  const early = health.sources.ready();
  await Promise.resolve();
  threads.isUp = true;
  threads.isStarting = false;
  expect(await health.failing()).toEqual([]);
  slow.resolve();
  expect(await early).toContainEqual({
    name: "cpu_threads",
    ok: false,
    required: true,
    detail: "the CPU threads are starting",
  });
  metrics.close();
});

test("a thread that doesn't answer later on is trouble, which is being mended", async () => {
  const { health, metrics } = healthOver({ isUp: false, isStarting: false }, async () => {});
  expect(await health.failing()).toMatchObject([
    { name: "cpu_threads", detail: "a CPU thread does not answer, and is being replaced" },
  ]);
  metrics.close();
});
