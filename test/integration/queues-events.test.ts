import { setTimeout as sleep } from "node:timers/promises";
import { Queue } from "bullmq";
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

test("an event is a job in every subscriber's queue: named by its type, under its id, with bounded retention", async () => {
  await events.publish(event(1));
  for (const queue of queues) {
    const job = await queue.getJob("chunk.failed.sess-a.1.CHUNK_CONFLICT");
    expect(job?.name).toBe("chunk.failed");
    expect(eventSchema.parse(job?.data)).toMatchObject({ chunk_index: 1, error: { code: "CHUNK_CONFLICT" } });
    expect(job?.opts).toMatchObject({
      attempts: 18,
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
