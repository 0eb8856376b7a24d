import { setTimeout as sleep } from "node:timers/promises";
import { Queue } from "bullmq";
import { Redis } from "ioredis";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createEventConsumer, type EventConsumer } from "../../src/adapters/bullmq/event-consumer.ts";
import {
  type BullmqEventPublisher,
  createEventPublisher,
} from "../../src/adapters/bullmq/event-publisher.ts";
import { createStorageClient, type StorageClient } from "../../src/adapters/http/storage-client.ts";
import { sha256 } from "../../src/core/digest.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { deliverChunk } from "../../src/pipeline/deliver-chunk.ts";
import { chunkCompletedEvent } from "../../src/pipeline/event-messages.ts";
import { clientOptions, type FakeService, json, startFakeService, text } from "../support/fake-service.ts";
import { MemoryBlobStore } from "../support/memory/blob-store.ts";
import { MemoryChunkStore } from "../support/memory/chunk-store.ts";
import { chunk as chunkRecord } from "../support/memory/records.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const QUEUE = "storage-delivery";
const SESSION = servers.sessionId("delivery") as SessionId;
const BLOB = Uint8Array.from({ length: 1_000 }, (_none, at) => at % 251);
const target = { url: servers.redisUrl, prefix: servers.queuePrefix, onError: () => undefined };

let fake: FakeService;
let storage: StorageClient;
let events: BullmqEventPublisher;
let consumer: EventConsumer;
let redis: Redis;
let queue: Queue;
const blobs = new MemoryBlobStore(new MemoryChunkStore());

beforeAll(async () => {
  fake = await startFakeService();
  storage = createStorageClient({ ...clientOptions(fake.url), attempts: 1 });
  events = createEventPublisher({
    ...target,
    queues: [QUEUE],
    retention: { ageSeconds: 3_600, count: 500 },
  });
  while (!events.connected) await sleep(5);
  redis = new Redis(servers.redisUrl, { maxRetriesPerRequest: null });
  queue = new Queue(QUEUE, { connection: redis, prefix: servers.queuePrefix });
  consumer = createEventConsumer({
    ...target,
    queue: QUEUE,
    concurrency: 2,
    isOutage: (code) => code === "SERVICE_UNAVAILABLE",
    onEvent: (event) => deliverChunk({ blobs, storage }, event, new AbortController().signal),
  });
});
afterAll(async () => {
  await consumer.close();
  await events.close();
  await queue.close();
  redis.disconnect();
  storage.close();
  await fake.close();
});

async function announce(index: number): Promise<string> {
  const chunk = chunkRecord(SESSION, index);
  await blobs.insert(chunk.blobId, chunk, BLOB);
  await events.publish(chunkCompletedEvent(chunk));
  return chunk.eventId;
}

async function endOf(eventId: string): Promise<string> {
  for (;;) {
    const state = await queue.getJobState(eventId);
    if (state === "completed" || state === "failed") return state;
    await sleep(20);
  }
}

test("a chunk's sealed bytes arrive at storage under its digest, and nothing else of it does", async () => {
  fake.answer(json(201, {}));
  expect(await endOf(await announce(0))).toBe("completed");
  const { chunk_data, chunk_metadata } = JSON.parse(fake.requests.at(-1)?.body ?? "") as {
    chunk_data: string;
    chunk_metadata: Record<string, unknown>;
  };
  expect(Buffer.from(chunk_data, "base64")).toEqual(Buffer.from(BLOB));
  expect(chunk_metadata).toMatchObject({
    chunk_index: 0,
    hash_sha256: Buffer.from(sha256(BLOB)).toString("hex"),
  });
  expect(Object.keys(chunk_metadata)).not.toContain("plain_mac");
});

test("a storage service that is away for longer than its events have attempts gets them all the same", async () => {
  const away = Array.from({ length: 3 }, () => text(503, "down"));
  fake.answer(...away, json(201, {}));
  const eventId = await announce(1);
  expect(await endOf(eventId)).toBe("completed");
  expect((await queue.getJob(eventId))?.attemptsMade).toBe(1);
}, 30_000);

test("what storage refuses is a dead letter with its code at the first try", async () => {
  fake.answer(json(422, { error: "no" }));
  const before = fake.requests.length;
  const eventId = await announce(2);
  expect(await endOf(eventId)).toBe("failed");
  expect((await queue.getJob(eventId))?.failedReason).toMatch(/^SERVICE_REJECTED: /);
  expect(fake.requests.length).toBe(before + 1);
});
