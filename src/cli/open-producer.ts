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

/** Of a producer that waits people are told, and when it goes on. */
export function openProducer(
  config: Config,
  output: Output,
  options: Pick<ProducerOptions, "files"> & { readonly signal: AbortSignal },
): Producer {
  const { queues } = config;
  return createProducer({
    ...redisTarget(config, output, CONNECT_TIMEOUT_MS / 1_000),
    ...options,
    onOutage(reason) {
      const what = reason === "out-of-memory" ? "has no memory left" : "does not answer, or refuses for now";
      output.say(`Redis ${what}: waiting for it, for as long as that takes; Ctrl-C ends this`);
    },
    onResumed() {
      output.say("Redis is back: going on");
    },
    prefix: queues.prefix,
    queueSizeMax: queues.backPressureJobs,
    payloadTtlSeconds: queues.payloadTtlSeconds,
    clock: createSystemClock(),
  });
}
