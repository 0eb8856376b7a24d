import {
  CONNECT_TIMEOUT_MS,
  createProducer,
  type Producer,
  type ProducerOptions,
} from "../adapters/bullmq/producer.ts";
import { createSystemClock } from "../adapters/system/clock.ts";
import type { Config } from "../config.ts";
import type { Output } from "./output.ts";
import { redisTarget } from "./redis-target.ts";

export function openProducer(
  config: Config,
  output: Output,
  options: Pick<ProducerOptions, "files"> & { readonly signal: AbortSignal },
): Producer {
  const { queues } = config;
  return createProducer({
    ...redisTarget(config, output, CONNECT_TIMEOUT_MS / 1_000),
    ...options,
    prefix: queues.prefix,
    queueSizeMax: queues.backPressureJobs,
    payloadTtlSeconds: queues.payloadTtlSeconds,
    clock: createSystemClock(),
  });
}
