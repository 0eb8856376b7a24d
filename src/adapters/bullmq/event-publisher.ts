import { type JobsOptions, Queue } from "bullmq";
import type { EventPublisher } from "../../pipeline/ports.ts";
import type { LucidEvent } from "../../schema/event.ts";
import { coalesce } from "../coalesce.ts";
import { closeClient, failFastClient, type RedisTarget } from "../redis/client.ts";
import { asRedisError, throwRedisError } from "../redis/errors.ts";
import { keepJobs, type Retention } from "./retrying-worker.ts";

/** Events of one round trip; an event is below 2 KiB. */
const BATCH_COUNT_MAX = 256;
/**
 * Tries of a consumer that fails, each after twice the time: over a day and more. Until then the event waits in the queue's
 * delayed set, where nothing is trimmed; as a dead letter it would give way to the next ones.
 */
const CONSUMER_ATTEMPTS = 18;
const CONSUMER_RETRY_DELAY_MS = 1_000;
const CONSUMER_RETRY_JITTER = 0.5;

export interface EventPublisherOptions extends RedisTarget {
  readonly prefix: string;
  /** EVENT_QUEUES, one per subscriber. */
  readonly queues: readonly string[];
  /** How long consumed and failed events are kept; while one is, adding its id again does nothing. */
  readonly retention: Retention;
}

export interface BullmqEventPublisher extends EventPublisher {
  readonly commands: number;
  readonly connected: boolean;
  close(): Promise<void>;
}

/**
 * Events as jobs under their own id. Fails fast with QUEUE_UNAVAILABLE: whether the events are in some of the queues is
 * not known then, and asking again is harmless.
 */
export function createEventPublisher(options: EventPublisherOptions): BullmqEventPublisher {
  const client = failFastClient(options, "events");
  const queues = options.queues.map((name) => openQueue(name, client, options));
  const toJob = (event: LucidEvent): EventJob => ({
    name: event.type,
    data: event,
    opts: eventOptions(event.event_id, options.retention),
  });

  const add = coalesce<LucidEvent, void>({
    send: async (events) => {
      const jobs = events.map(toJob);
      await Promise.all(queues.map((queue) => addAll(queue, jobs))).catch(throwRedisError);
      return events.map(() => undefined);
    },
    itemsMax: BATCH_COUNT_MAX,
    lanes: 1,
  });

  async function publish(event: LucidEvent): Promise<void> {
    // BullMQ waits for the first connection however long that takes.
    if (client.status !== "ready") throw asRedisError(new Error("Connection is closed"));
    try {
      await add(event);
    } catch (thrown) {
      throw asRedisError(thrown);
    }
  }

  let epoch = 0;
  client.on("close", () => {
    epoch += 1;
  });
  const markerKey = markerKeyOf(options.prefix);

  return {
    publish,

    get epoch() {
      return epoch;
    },

    async marker() {
      return (await client.get(markerKey).catch(throwRedisError)) ?? undefined;
    },

    async claimMarker(candidate) {
      await client.setnx(markerKey, candidate).catch(throwRedisError);
      return (await client.get(markerKey).catch(throwRedisError)) ?? candidate;
    },

    get commands() {
      return client.commands;
    },
    get connected() {
      return client.status === "ready";
    },

    async close() {
      // The queues don't own the connection; closing them takes off their listeners.
      await Promise.allSettled(queues.map((queue) => queue.close()));
      await closeClient(client);
    },
  };
}

/** By which it is known whether Redis has lost its data. Under the queues' prefix, so that whoever removes the queues removes it too. */
export function markerKeyOf(prefix: string): string {
  return `${prefix}:lucid-marker`;
}

function openQueue(
  name: string,
  client: ReturnType<typeof failFastClient>,
  options: EventPublisherOptions,
): Queue {
  // Without its version check: an INFO that fails in the first second would make the queue useless for good.
  const queue = new Queue(name, { connection: client, prefix: options.prefix, skipVersionCheck: true });
  // The client's own listener reports; this one keeps BullMQ from throwing.
  queue.on("error", () => undefined);
  return queue;
}

interface EventJob {
  readonly name: string;
  readonly data: LucidEvent;
  readonly opts: JobsOptions;
}

/** One alone goes without ioredis' pipeline, which defines all of BullMQ's scripts anew each time. */
async function addAll(queue: Queue, jobs: readonly EventJob[]): Promise<void> {
  const [first, ...others] = jobs;
  if (first !== undefined && others.length === 0) await queue.add(first.name, first.data, first.opts);
  else await queue.addBulk([...jobs]);
}

function eventOptions(eventId: string, retention: Retention): JobsOptions {
  return {
    jobId: eventId,
    attempts: CONSUMER_ATTEMPTS,
    backoff: { type: "exponential", delay: CONSUMER_RETRY_DELAY_MS, jitter: CONSUMER_RETRY_JITTER },
    removeOnComplete: keepJobs(retention),
    removeOnFail: keepJobs(retention),
    stackTraceLimit: 1,
  };
}
