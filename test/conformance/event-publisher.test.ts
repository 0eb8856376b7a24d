import { Queue, UnrecoverableError, Worker } from "bullmq";
import { Redis } from "ioredis";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { createEventPublisher } from "../../src/adapters/bullmq/event-publisher.ts";
import type { EventPublisher } from "../../src/pipeline/ports.ts";
import type { ChunkCompletedEvent, LucidEvent } from "../../src/schema/event.ts";
import { MemoryEventPublisher } from "../support/memory/event-publisher.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const RETENTION = { ageSeconds: 3_600, count: 1_000 };

/** A publisher with the consumers' side of its two queues. */
interface Subscribers {
  readonly publisher: EventPublisher;
  /** What a consumer would get, in any order. */
  waiting(queue: string): Promise<readonly LucidEvent[]>;
  /** Takes the only waiting event and fails it for good. */
  failOnly(queue: string, eventId: string): Promise<void>;
  /** As FLUSHALL does. */
  removeMarker(): Promise<void>;
  breakConnection(): Promise<void>;
  close(): Promise<void>;
}

function completed(eventId: string, change: Partial<ChunkCompletedEvent> = {}): LucidEvent {
  return {
    event_id: eventId,
    type: "chunk.completed",
    version: 1,
    occurred_at: "2026-01-02T03:04:05.678Z",
    session_id: "sess-1",
    chunk_id: "sess-1-chunk-000000",
    chunk_index: 0,
    original_bytes: 2 ** 40,
    stored_bytes: 10,
    compression: { algorithm: "zstd", level: 3, ratio: 2.5 },
    encryption: { format: 1, key_version: 1, kek_version: 1 },
    blob: { collection: "chunk_blobs", id: "sess-1:0:a", blake3: "ab".repeat(32) },
    leaf_hash: "cd".repeat(32),
    hash_algorithm: "blake3",
    ...change,
  };
}

function suite(open: (queues: readonly string[]) => Promise<Subscribers>): void {
  let count = 0;
  let queues: readonly [string, string] = ["", ""];
  let subscribers: Subscribers;

  beforeEach(async () => {
    count += 1;
    queues = [`events-${count}`, `others-${count}`];
    subscribers = await open(queues);
  });
  afterEach(() => subscribers.close());

  test("an event goes to every queue as it is", async () => {
    await subscribers.publisher.publish(completed("e.1"));
    for (const queue of queues) expect(await subscribers.waiting(queue)).toEqual([completed("e.1")]);
  });

  test("events published at once all arrive", async () => {
    const ids = Array.from({ length: 40 }, (_, at) => `e.${String(at).padStart(2, "0")}`);
    await Promise.all(ids.map((id) => subscribers.publisher.publish(completed(id))));
    const arrived = (await subscribers.waiting(queues[1])).map(({ event_id }) => event_id);
    expect(arrived.toSorted((left, right) => left.localeCompare(right))).toEqual(ids);
  });

  test("an id that is there already stays as it is, once", async () => {
    await subscribers.publisher.publish(completed("e.1"));
    await subscribers.publisher.publish(completed("e.1", { stored_bytes: 99 }));
    expect(await subscribers.waiting(queues[0])).toEqual([completed("e.1")]);
  });

  test("publish leaves an event that failed at its consumer", async () => {
    const [failing, other] = queues;
    await subscribers.publisher.publish(completed("e.1"));
    await subscribers.failOnly(failing, "e.1");
    await subscribers.publisher.publish(completed("e.1"));
    expect(await subscribers.waiting(failing)).toEqual([]);
    expect(await subscribers.waiting(other)).toEqual([completed("e.1")]);
  });

  test("of two candidates for the marker the first stays, until Redis is emptied", async () => {
    const { publisher } = subscribers;
    await subscribers.removeMarker();
    expect(await publisher.marker()).toBeUndefined();
    expect(await publisher.claimMarker("first")).toBe("first");
    expect(await publisher.claimMarker("second")).toBe("first");
    expect(await publisher.marker()).toBe("first");
    await subscribers.removeMarker();
    expect(await publisher.marker()).toBeUndefined();
  });

  test("the epoch rises when the connection is lost, and stays as it is otherwise", async () => {
    const { publisher } = subscribers;
    const before = publisher.epoch;
    await publisher.publish(completed("e.1"));
    expect(publisher.epoch).toBe(before);
    await subscribers.breakConnection();
    expect(publisher.epoch).toBeGreaterThan(before);
  });
}

describe("EventPublisher", () => {
  describe("in memory", () => {
    suite(async (queues) => {
      const publisher = new MemoryEventPublisher(queues);
      return {
        publisher,
        waiting: async (queue) => publisher.waiting(queue),
        failOnly: async (queue, eventId) => publisher.fail(queue, eventId),
        removeMarker: async () => publisher.empty(),
        breakConnection: async () => {
          publisher.epoch += 1;
        },
        close: async () => undefined,
      };
    });
  });

  describe("over BullMQ", () => {
    suite(async (queues) => {
      const publisher = createEventPublisher({
        url: servers.redisUrl,
        onError: () => undefined,
        prefix: servers.queuePrefix,
        queues,
        retention: RETENTION,
      });
      await vi.waitUntil(() => publisher.connected);
      const connection = new Redis(servers.redisUrl, { maxRetriesPerRequest: null });
      const options = { connection, prefix: servers.queuePrefix };
      const consumers = new Map(queues.map((name) => [name, new Queue<LucidEvent>(name, options)]));
      return {
        publisher,
        waiting: async (queue) =>
          ((await consumers.get(queue)?.getJobs(["waiting"])) ?? []).map(({ data }) => data),
        failOnly: async (queue, eventId) => {
          const worker = new Worker(queue, null, { ...options, autorun: false });
          const job = await worker.getNextJob("token");
          if (job?.id !== eventId) throw new Error(`${eventId} is not the only waiting event`);
          await job?.moveToFailed(new UnrecoverableError("refused"), "token", false);
          await worker.close();
        },
        removeMarker: async () => void (await connection.del(`${servers.queuePrefix}:lucid-marker`)),
        breakConnection: () => publisher.close(),
        close: async () => {
          await publisher.close();
          for (const queue of consumers.values()) await queue.close();
          connection.disconnect();
        },
      };
    });
  });
});
