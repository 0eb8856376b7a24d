import { setTimeout as sleep } from "node:timers/promises";
import { type Job, Queue } from "bullmq";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createEventConsumer, type EventConsumer } from "../../src/adapters/bullmq/event-consumer.ts";
import {
  type BullmqEventPublisher,
  createEventPublisher,
} from "../../src/adapters/bullmq/event-publisher.ts";
import { createStorageClient, type StorageClient } from "../../src/adapters/http/storage-client.ts";
import { sha256 } from "../../src/core/digest.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { deliverChunk } from "../../src/pipeline/deliver-chunk.ts";
import { chunkCompletedEvent } from "../../src/pipeline/event-messages.ts";
import type { LucidEvent } from "../../src/schema/event.ts";
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

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await sleep(5);
}

describe("events that storage doesn't take, though it takes others", () => {
  const BAD = "sess-bad";
  let prefix = "";
  let own: Queue;
  let listener: EventConsumer;
  let taken: LucidEvent[];
  let tries: number;

  beforeEach(() => {
    prefix = `${servers.queuePrefix}${Math.random().toString(36).slice(2)}`;
    own = new Queue(QUEUE, { connection: redis, prefix });
    taken = [];
    tries = 0;
  });
  afterEach(async () => {
    await listener.close();
    await own.close();
  });

  function listen(): void {
    listener = createEventConsumer({
      ...target,
      prefix,
      queue: QUEUE,
      concurrency: 2,
      isOutage: (code) => code === "SERVICE_UNAVAILABLE",
      onEvent(event) {
        if (event.session_id === BAD) {
          tries += 1;
          throw new LucidError("SERVICE_UNAVAILABLE", "500");
        }
        taken.push(event);
        return event.session_id === "sess-ignored" ? "ignored" : undefined;
      },
    });
  }

  function add(session: string, index: number, attempts = 5): Promise<Job> {
    const event = chunkCompletedEvent(chunkRecord(session as SessionId, index));
    return own.add(event.type, event, { jobId: event.event_id, attempts });
  }

  async function untilDelayed(job: Job): Promise<Job> {
    await until(async () => (await own.getJobState(job.id ?? "")) === "delayed");
    return (await own.getJob(job.id ?? "")) as Job;
  }

  test("keep none of the others from arriving, and use up no attempt", async () => {
    const bad = await Promise.all([0, 1, 2, 3].map((index) => add(BAD, index)));
    await Promise.all(Array.from({ length: 50 }, (_none, index) => add("sess-good", index)));
    listen();
    const startedMs = performance.now();
    await until(() => taken.length >= 50);
    expect(performance.now() - startedMs).toBeLessThan(8_000);
    for (const job of bad) expect((await untilDelayed(job)).attemptsMade).toBe(0);
  }, 20_000);

  test("come again after longer and longer pauses, and after eight of them an attempt counts as failed", async () => {
    listen();
    const bad = await add(BAD, 0, 1);
    const pauses: number[] = [];
    for (;;) {
      await add("sess-good", tries);
      await until(() => taken.length >= tries);
      await until(async () => ["delayed", "failed"].includes(await own.getJobState(bad.id ?? "")));
      if ((await own.getJobState(bad.id ?? "")) === "failed") break;
      const waiting = await untilDelayed(bad);
      pauses.push(Math.round(waiting.delay / 1_000));
      // Another is taken while it is away.
      const before = taken.length;
      await add("sess-good", 100 + tries);
      await until(() => taken.length > before);
      const triesBefore = tries;
      await waiting.promote();
      await until(() => tries > triesBefore);
    }
    expect(pauses.slice(0, 3)).toEqual([2, 4, 8]);
    expect(pauses.length).toBeGreaterThanOrEqual(8);
    expect(pauses.length).toBeLessThanOrEqual(9);
    expect(Math.max(...pauses)).toBe(60);
    const failed = (await own.getJob(bad.id ?? "")) as Job;
    expect(failed.failedReason).toBe("SERVICE_UNAVAILABLE: 500");
    expect(failed.attemptsMade).toBe(1);
  }, 30_000);

  test("are waited for without end where nothing else is taken either", async () => {
    listen();
    const bad = await add(BAD, 0, 1);
    for (let round = 0; round < 10; round++) {
      const waiting = await untilDelayed(bad);
      expect(waiting.attemptsMade).toBe(0);
      // One that isn't for storage says nothing of it.
      await add("sess-ignored", round);
      await until(() => taken.length > round);
      const triesBefore = tries;
      await waiting.promote();
      await until(() => tries > triesBefore);
    }
    expect((await untilDelayed(bad)).attemptsMade).toBe(0);
  }, 40_000);
});
