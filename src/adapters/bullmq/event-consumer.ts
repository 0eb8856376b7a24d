import { type Job, Worker } from "bullmq";
import { eventSchema, type LucidEvent } from "../../schema/event.ts";
import { closeClient, type RedisTarget, waitingClient } from "../redis/client.ts";

export interface EventConsumerOptions extends RedisTarget {
  readonly prefix: string;
  /** One of EVENT_QUEUES. */
  readonly queue: string;
  /** Events handled at the same time. */
  readonly concurrency: number;
  /** Called at least once per event; `event_id` is the key to drop repeats by. What it throws is retried. */
  readonly onEvent: (event: LucidEvent) => void | Promise<void>;
}

export interface EventConsumer {
  close(): Promise<void>;
}

/** A subscriber as the storage service is one: what the demo, the bench and the tests listen with. */
export function createEventConsumer(options: EventConsumerOptions): EventConsumer {
  const client = waitingClient(options, options.queue);
  const worker = new Worker(
    options.queue,
    async (job: Job<unknown>) => {
      await options.onEvent(eventSchema.parse(job.data));
    },
    { connection: client, prefix: options.prefix, concurrency: options.concurrency },
  );
  worker.on("error", () => options.onError(options.queue, "QUEUE_UNAVAILABLE"));
  return {
    async close() {
      await worker.close();
      await closeClient(client);
    },
  };
}
