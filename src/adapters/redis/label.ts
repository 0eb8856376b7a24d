import { LucidError } from "../../core/errors.ts";
import { closeClient, failFastClient, type RedisTarget, waitUntilReady } from "./client.ts";

const CONNECT_MS = 2_000;

/** For people: program and version of a server that has just answered. Throws QUEUE_UNAVAILABLE within seconds. */
export async function redisLabel({ url }: Pick<RedisTarget, "url">): Promise<string> {
  const client = failFastClient({ url, onError: () => undefined }, "label");
  try {
    if (!(await waitUntilReady(client, CONNECT_MS)))
      throw new LucidError("QUEUE_UNAVAILABLE", "Redis doesn't answer any more");
    // A user may lack the right to ask; that is no reason not to work.
    return labelOf(await client.info("server").catch(() => ""));
  } finally {
    await closeClient(client);
  }
}

/** From the lines of INFO. Valkey gives its own name, and beside its version the one of Redis that it is compatible with. */
export function labelOf(info: string): string {
  const fields = new Map(
    [...info.matchAll(/^(\w+):([\w.-]{1,64})\r?$/gm)].map(([, name, value]) => [name, value]),
  );
  const name = fields.get("server_name") ?? "redis";
  const version = fields.get(`${name}_version`) ?? fields.get("redis_version");
  return `${name === "redis" ? "Redis" : name}${version === undefined ? ", of unknown version" : ` ${version}`}`;
}
