import { Queue } from "bullmq";
import { type ErrorCode, isErrorCode } from "../../core/errors.ts";
import { closeClient, failFastClient, type RedisTarget } from "../redis/client.ts";
import { markerKeyOf } from "./event-publisher.ts";
import { asRedisError, throwRedisError } from "../redis/errors.ts";

export const JOB_STATES = ["waiting", "prioritized", "delayed", "active", "completed", "failed"] as const;
export type JobState = (typeof JOB_STATES)[number];

export interface QueueStats {
  readonly queue: string;
  readonly depth: Readonly<Record<JobState, number>>;
  /** Since the job at the head of the waiting ones was added, by the wall clocks of its producer and us; 0 if none waits. */
  readonly oldestWaitingSeconds: number;
}

export interface QueueFailures {
  readonly queue: string;
  /** Dead letters that were looked at. */
  readonly lookedAt: number;
  readonly codes: readonly (readonly [code: ErrorCode | "OTHER", count: number])[];
}

/** As many as a queue keeps by default. */
const FAILED_LOOKED_AT_MAX = 1_000;

export interface QueueStatsReader {
  /** Three commands a queue, of constant cost however long it is. Throws QUEUE_UNAVAILABLE, within 10 s. */
  read(): Promise<readonly QueueStats[]>;
  /** Of each queue: its dead letters by error code, of the newest FAILED_LOOKED_AT_MAX; most frequent first. Throws as `read`. */
  failures(): Promise<readonly QueueFailures[]>;
  /** Whether Redis takes writes at this moment, by one that changes nothing. Throws as `read`, with Redis' reply as the cause. */
  checkWrites(): Promise<void>;
  readonly connected: boolean;
  close(): Promise<void>;
}

export interface QueueStatsOptions extends RedisTarget {
  readonly prefix: string;
  readonly queues: readonly string[];
}

export function createQueueStats(options: QueueStatsOptions): QueueStatsReader {
  const client = failFastClient(options, "queue stats");
  const queues = options.queues.map((name) => {
    const queue = new Queue(name, {
      connection: client,
      prefix: options.prefix,
      skipVersionCheck: true,
      skipMetasUpdate: true,
    });
    queue.on("error", () => undefined);
    return queue;
  });

  /** The head of the list that jobs are taken from. */
  async function oldestWaitingSeconds(queue: Queue): Promise<number> {
    const jobId = await client.lindex(queue.toKey("wait"), -1);
    if (!jobId) return 0;
    const addedMs = Number(await client.hget(queue.toKey(jobId), "timestamp"));
    return Number.isFinite(addedMs) && addedMs > 0 ? Math.max(0, (Date.now() - addedMs) / 1000) : 0;
  }

  async function readOne(queue: Queue): Promise<QueueStats> {
    const [counts, seconds] = await Promise.all([
      queue.getJobCounts(...JOB_STATES),
      oldestWaitingSeconds(queue),
    ]);
    const depth = Object.fromEntries(JOB_STATES.map((state) => [state, counts[state] ?? 0]));
    return { queue: queue.name, depth: depth as Record<JobState, number>, oldestWaitingSeconds: seconds };
  }

  /** The reasons alone: a dead letter's data may hold the bytes of a chunk. */
  async function failuresOf(queue: Queue): Promise<QueueFailures> {
    const ids = await client.zrevrange(queue.toKey("failed"), 0, FAILED_LOOKED_AT_MAX - 1);
    const reasons = await Promise.all(ids.map((id) => client.hget(queue.toKey(id), "failedReason")));
    const counts = new Map<ErrorCode | "OTHER", number>();
    for (const code of reasons.map(codeOfReason)) counts.set(code, (counts.get(code) ?? 0) + 1);
    const codes = [...counts].toSorted((left, right) => right[1] - left[1] || (left[0] < right[0] ? -1 : 1));
    return { queue: queue.name, lookedAt: ids.length, codes };
  }

  async function ofEach<Result>(ask: (queue: Queue) => Promise<Result>): Promise<readonly Result[]> {
    if (client.status !== "ready") throw asRedisError(new Error("Connection is closed"));
    try {
      return await Promise.all(queues.map(ask));
    } catch (thrown) {
      throw asRedisError(thrown);
    }
  }

  return {
    async checkWrites() {
      if (client.status !== "ready") throw asRedisError(new Error("Connection is closed"));
      // No bytes, of a key that may be there or not: nothing is made or changed, yet all that keeps Redis from writing refuses it.
      await client.setrange(markerKeyOf(options.prefix), 0, "").catch(throwRedisError);
    },
    read: () => ofEach(readOne),
    failures: () => ofEach(failuresOf),
    get connected() {
      return client.status === "ready";
    },
    async close() {
      await Promise.allSettled(queues.map((queue) => queue.close()));
      await closeClient(client);
    },
  };
}

/** Our verdicts begin with the code (verdicts.ts); BullMQ's own, and those of another program's worker, don't. */
function codeOfReason(reason: string | null): ErrorCode | "OTHER" {
  const code = reason?.split(":", 1)[0] ?? "";
  return isErrorCode(code) ? code : "OTHER";
}
