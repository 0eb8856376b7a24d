import { type Job, Worker } from "bullmq";
import { asLucidError, type ErrorCode } from "../../core/errors.ts";
import { eventSchema, type LucidEvent } from "../../schema/event.ts";
import { closeClient, type RedisTarget, waitingClient } from "../redis/client.ts";
import { createSystemClock } from "../system/clock.ts";
import { countOf, pauseAfter } from "./put-off.ts";
import { failAttempt, failForGood, isLostLock, released } from "./verdicts.ts";

/** While nothing is taken: the pause in the event's own place keeps all the events from going round and round. */
const OUTAGE_PAUSE_MS = 500;
/** An event that is put off stays away for this long, doubled each time in a row. */
const PUT_OFF = { firstMs: 2_000, maxMs: 60_000 };
/** Times in a row that an event is put off while others are taken, before that counts as a failed attempt. */
const PUT_OFF_COUNTED_MAX = 8;

export interface EventConsumerOptions extends RedisTarget {
  readonly prefix: string;
  /** One of EVENT_QUEUES. */
  readonly queue: string;
  /** Events handled at the same time. */
  readonly concurrency: number;
  /**
   * Errors of `onEvent` that use up none of the event's attempts: it is put off, behind the others. Where others are taken
   * meanwhile it is no outage but the event's own trouble, and after eight times in a row a failed attempt.
   */
  readonly isOutage?: (code: ErrorCode) => boolean;
  /**
   * Called at least once per event; `event_id` is the key to drop repeats by. What it throws is retried. Only
   * "ignored" means anything, if it resolves to it: that nobody was asked to take the event.
   */
  readonly onEvent: (event: LucidEvent) => unknown;
}

export interface EventConsumer {
  close(): Promise<void>;
}

/** A subscriber as the storage service is one: what the demo, the bench and the tests listen with. */
export function createEventConsumer(options: EventConsumerOptions): EventConsumer {
  const client = waitingClient(options, options.queue);
  const clock = createSystemClock();
  const closing = new AbortController();
  /** When `onEvent` last took one. */
  let takenMs = Number.NEGATIVE_INFINITY;

  /** Back to the queue with no attempt used; false where the event itself must be what is wrong. */
  async function putOff(job: Job<unknown>, token: string, startedMs: number): Promise<boolean> {
    const times = countOf(job, "put_off");
    const counted = countOf(job, "put_off_alone");
    // Was another taken since this one was put off last?
    const isOwnTrouble = takenMs > startedMs - pauseAfter(Math.max(times - 1, 0), PUT_OFF);
    if (isOwnTrouble && counted >= PUT_OFF_COUNTED_MAX) {
      await job.updateProgress({ put_off: 0 });
      return false;
    }
    await job.updateProgress({ put_off: times + 1, put_off_alone: counted + (isOwnTrouble ? 1 : 0) });
    const isOutage = takenMs < clock.monotonicMs() - OUTAGE_PAUSE_MS;
    if (isOutage) await clock.sleep(OUTAGE_PAUSE_MS, closing.signal);
    await job.moveToDelayed(Date.now() + pauseAfter(times, PUT_OFF), token);
    return true;
  }

  const worker = new Worker(
    options.queue,
    async (job: Job<unknown>, token = "") => {
      const startedMs = clock.monotonicMs();
      try {
        const handled = await options.onEvent(eventSchema.parse(job.data));
        if (handled !== "ignored") takenMs = clock.monotonicMs();
      } catch (thrown) {
        const error = asLucidError(thrown);
        if (error.disposition === "unrecoverable") throw failForGood(error);
        if (!(options.isOutage?.(error.code) ?? false)) throw failAttempt(error);
        const isReleased = await putOff(job, token, startedMs).catch(() => {
          // Redis is away, or the lock was lost: either way the stalled check gives the event back.
          options.onError(options.queue, "QUEUE_UNAVAILABLE");
          return true;
        });
        throw isReleased ? released() : failAttempt(error);
      }
    },
    { connection: client, prefix: options.prefix, concurrency: options.concurrency },
  );
  worker.on("error", (thrown) =>
    options.onError(options.queue, isLostLock(thrown) ? "JOB_LOCK_LOST" : "QUEUE_UNAVAILABLE"),
  );
  return {
    async close() {
      closing.abort();
      await worker.close();
      await closeClient(client);
    },
  };
}
