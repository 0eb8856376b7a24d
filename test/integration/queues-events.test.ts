import { setTimeout as sleep } from "node:timers/promises";
import { Queue, UnrecoverableError, Worker } from "bullmq";
import { Redis } from "ioredis";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  type BullmqEventPublisher,
  createEventPublisher,
} from "../../src/adapters/bullmq/event-publisher.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { chunkFailedEvent } from "../../src/pipeline/event-messages.ts";
import { eventSchema, type LucidEvent } from "../../src/schema/event.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const prefix = servers.queuePrefix;
const SUBSCRIBERS = ["storage-events", "audit-events"];

let redis: Redis;
let queues: readonly Queue[];
let events: BullmqEventPublisher;

beforeAll(async () => {
  redis = new Redis(servers.redisUrl, { maxRetriesPerRequest: null });
  queues = SUBSCRIBERS.map((name) => new Queue(name, { connection: redis, prefix }));
  events = createEventPublisher({
    url: servers.redisUrl,
    prefix,
    queues: SUBSCRIBERS,
    retention: { ageSeconds: 3600, count: 500 },
    onError: () => undefined,
  });
  while (!events.connected) await sleep(5);
  // The first use of a script loads it.
  await events.publish(event(9999));
});
afterAll(async () => {
  await events.close();
  await Promise.all(queues.map((queue) => queue.close()));
  redis.disconnect();
});

function event(index: number): LucidEvent {
  const failed = {
    jobId: "1",
    sessionId: "sess-a",
    chunkId: `c-${index}`,
    chunkIndex: index,
    code: "CHUNK_CONFLICT",
    message: "constant words",
    attempts: 1,
  } as const;
  return chunkFailedEvent(failed, createSystemClock().now());
}

/** Consumes `queue` until `wanted` holds. */
async function consumeUntil(
  queue: Queue,
  consume: (data: LucidEvent) => void,
  holds: () => Promise<boolean>,
): Promise<void> {
  const worker = new Worker<LucidEvent>(
    queue.name,
    (job) => {
      consume(job.data);
      return Promise.resolve();
    },
    { connection: redis, prefix },
  );
  worker.on("error", () => undefined);
  const deadline = performance.now() + 20_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error("never came");
    await sleep(10);
  }
  await worker.close();
}

test("an event is a job in every subscriber's queue: named by its type, under its id, with bounded retention", async () => {
  await events.publish(event(1));
  for (const queue of queues) {
    const job = await queue.getJob("chunk.failed.sess-a.1.CHUNK_CONFLICT");
    expect(job?.name).toBe("chunk.failed");
    expect(eventSchema.parse(job?.data)).toMatchObject({ chunk_index: 1, error: { code: "CHUNK_CONFLICT" } });
    expect(job?.opts).toMatchObject({
      attempts: 5,
      removeOnComplete: { age: 3600, count: 500 },
      removeOnFail: { age: 3600, count: 500 },
    });
  }
});

test("the same id again changes nothing", async () => {
  await events.publish(event(2));
  const before = await queues[0]?.getJobCountByTypes("waiting");
  await Promise.all([events.publish(event(2)), events.publish(event(2))]);
  expect(await queues[0]?.getJobCountByTypes("waiting")).toBe(before);
});

test("events published at the same time share their round trip: one command for each event and queue", async () => {
  const before = events.commands;
  await Promise.all(Array.from({ length: 100 }, (_, n) => events.publish(event(1000 + n))));
  expect(events.commands - before).toBe(100 * SUBSCRIBERS.length);
});

test("retryFailed brings back an event whose consumer failed so long ago, and publish doesn't", async () => {
  const [queue] = queues;
  if (queue === undefined) throw new Error("no queue");
  const id = "chunk.failed.sess-a.3.CHUNK_CONFLICT";
  await events.publish(event(3));
  const isIn = (state: string) => async () => (await queue.getJobState(id)) === state;
  await consumeUntil(
    queue,
    ({ event_id }) => {
      if (event_id === id) throw new UnrecoverableError("refused");
    },
    isIn("failed"),
  );
  await events.publish(event(3));
  expect(await queue.getJobState(id)).toBe("failed");
  await events.retryFailed(60_000);
  expect(await queue.getJobState(id)).toBe("failed");
  await events.retryFailed(0);
  const seen: string[] = [];
  await consumeUntil(queue, ({ event_id }) => seen.push(event_id), isIn("completed"));
  expect(seen).toContain(id);
});

test("a closed publisher refuses instead of waiting", async () => {
  const own = createEventPublisher({
    url: servers.redisUrl,
    prefix,
    queues: SUBSCRIBERS,
    retention: { ageSeconds: 1, count: 1 },
    onError: () => undefined,
  });
  await own.close();
  await expect(own.publish(event(5))).rejects.toMatchObject({ code: "QUEUE_UNAVAILABLE" });
});
