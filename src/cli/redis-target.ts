import type { RedisTarget } from "../adapters/redis/client.ts";
import type { Config } from "../config.ts";
import type { Output } from "./output.ts";

/** That a command waits for a Redis which isn't there is said, once. What is lost later is for its user to tell. */
export function redisTarget({ redis }: Config, output: Output, patienceSeconds: number): RedisTarget {
  let isExpected = true;
  return {
    url: redis.url.reveal(),
    onError(_where, code) {
      if (!isExpected || code !== "QUEUE_UNAVAILABLE") return;
      isExpected = false;
      output.say(`Redis does not answer (REDIS_URL): waiting for it, for ${patienceSeconds} seconds at most`);
    },
    onReady() {
      isExpected = false;
    },
  };
}
