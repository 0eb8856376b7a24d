import { type Job, Worker } from "bullmq";
import { asLucidError, type ErrorCode } from "../../core/errors.ts";
import { eventSchema, type LucidEvent } from "../../schema/event.ts";
import { closeClient, type RedisTarget, waitingClient } from "../redis/client.ts";
import { createSystemClock } from "../system/clock.ts";
import { failAttempt, failForGood, released } from "./verdicts.ts";

const OUTAGE_PAUSE_MS = 2_000;

export interface EventConsumerOptions extends RedisTarget {
  readonly prefix: string;
  /** One of EVENT_QUEUES. */
  readonly queue: string;
  /** Events handled at the same time. */
  readonly concurrency: number;
  /** Errors of `onEvent` that use up none of the event's attempts: it goes back and comes again after a pause. */
  readonly isOutage?: (code: ErrorCode) => boolean;
  /** Called at least once per event; `event_id` is the key to drop repeats by. What it throws is retried. */
  readonly onEvent: (event: LucidEvent) => void | Promise<void>;
}

export interface EventConsumer {
  close(): Promise<void>;
}

/** A subscriber as the storage service is one: what the demo, the bench and the tests listen with. */
export function createEventConsumer(options: EventConsumerOptions): EventConsumer {
  const client = waitingClient(options, options.queue);
  const clock = createSystemClock();
  const closing = new AbortController();
  const worker = new Worker(
    options.queue,
    async (job: Job<unknown>, token) => {
      try {
        await options.onEvent(eventSchema.parse(job.data));
      } catch (thrown) {
        const error = asLucidError(thrown);
        if (error.disposition === "unrecoverable") throw failForGood(error);
        if (!(options.isOutage?.(error.code) ?? false)) throw failAttempt(error);
        await clock.sleep(OUTAGE_PAUSE_MS, closing.signal);
        await job.moveToWait(token);
        throw released();
      }
    },
    { connection: client, prefix: options.prefix, concurrency: options.concurrency },
  );
  worker.on("error", () => options.onError(options.queue, "QUEUE_UNAVAILABLE"));
  return {
    async close() {
      closing.abort();
      await worker.close();
      await closeClient(client);
    },
  };
}
