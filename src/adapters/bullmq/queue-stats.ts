import { Queue } from "bullmq";
import { closeClient, failFastClient, type RedisTarget } from "../redis/client.ts";
import { asRedisError } from "../redis/errors.ts";

export const JOB_STATES = ["waiting", "prioritized", "delayed", "active", "completed", "failed"] as const;
export type JobState = (typeof JOB_STATES)[number];

export interface QueueStats {
  readonly queue: string;
  readonly depth: Readonly<Record<JobState, number>>;
  /** Since the job at the head of the waiting ones was added, by the wall clocks of its producer and us; 0 if none waits. */
  readonly oldestWaitingSeconds: number;
}

export interface QueueStatsReader {
  /** Three commands a queue, of constant cost however long it is. Throws QUEUE_UNAVAILABLE, within 10 s. */
  read(): Promise<readonly QueueStats[]>;
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

  return {
    async read() {
      if (client.status !== "ready") throw asRedisError(new Error("Connection is closed"));
      try {
        return await Promise.all(queues.map(readOne));
      } catch (thrown) {
        throw asRedisError(thrown);
      }
    },
    get connected() {
      return client.status === "ready";
    },
    async close() {
      await Promise.allSettled(queues.map((queue) => queue.close()));
      await closeClient(client);
    },
  };
}
