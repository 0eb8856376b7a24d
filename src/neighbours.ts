import { createEventConsumer } from "./adapters/bullmq/event-consumer.ts";
import { createAnchoringClient } from "./adapters/http/anchoring-client.ts";
import { configuredNeighbours, createNeighbourChecks } from "./adapters/http/neighbours.ts";
import type { Check } from "./adapters/http/sidecar.ts";
import { createStorageClient } from "./adapters/http/storage-client.ts";
import type { Config } from "./config.ts";
import type { ErrorCode } from "./core/errors.ts";
import type { AnchoringEngine } from "./pipeline/anchoring-engine.ts";
import { deliverChunk } from "./pipeline/deliver-chunk.ts";
import type { BlobStore, Clock } from "./pipeline/ports.ts";

/** The event queue of the built-in consumer that STORAGE_DELIVERY=http turns on. */
const QUEUE_STORAGE_DELIVERY = "storage-delivery";
const DELIVERIES_AT_A_TIME = 4;

/** EVENT_QUEUES, and the built-in consumer's queue where it is on. */
export function eventQueuesOf({ queues, services }: Config): readonly string[] {
  return services.delivery === "http" ? [...queues.events, QUEUE_STORAGE_DELIVERY] : queues.events;
}

/** The services of contract §10 that are configured; those that aren't are not used. */
export interface Neighbours {
  readonly engine: AnchoringEngine | undefined;
  /** Optional lines of /ready. */
  checks(): Promise<readonly Check[]>;
  /** Begins to forward chunks, where storage is told over HTTP. */
  start(): void;
  close(): Promise<void>;
}

export function createNeighbours(
  config: Config,
  blobs: BlobStore,
  clock: Clock,
  onError: (where: string, code: ErrorCode) => void,
): Neighbours {
  const { services } = config;
  const options = {
    timeoutMs: services.timeoutMs,
    connectTimeoutMs: services.connectTimeoutMs,
    attempts: services.attempts,
    retryDelayMs: services.retryDelayMs,
    bearerToken: services.bearerToken,
    clock,
  };
  const health = createNeighbourChecks(configuredNeighbours(services), { clock });
  const engine =
    services.blockchainUrl === undefined
      ? undefined
      : createAnchoringClient({ ...options, url: services.blockchainUrl });
  const storage =
    services.delivery === "http" && services.storageUrl !== undefined
      ? createStorageClient({ ...options, url: services.storageUrl })
      : undefined;
  const closing = new AbortController();
  let delivery: ReturnType<typeof createEventConsumer> | undefined;
  return {
    engine,
    checks: () => health.checks(),
    start() {
      if (storage === undefined) return;
      delivery = createEventConsumer({
        url: config.redis.url.reveal(),
        onError,
        prefix: config.queues.prefix,
        queue: QUEUE_STORAGE_DELIVERY,
        concurrency: DELIVERIES_AT_A_TIME,
        // A storage service that is away is waited for: its outage is no fault of the events.
        isOutage: (code) => code === "SERVICE_UNAVAILABLE" || code === "STORE_UNAVAILABLE",
        onEvent: (event) => deliverChunk({ blobs, storage }, event, closing.signal),
      });
    },
    async close() {
      closing.abort();
      engine?.close();
      storage?.close();
      await Promise.all([delivery?.close(), health.close()]);
    },
  };
}
