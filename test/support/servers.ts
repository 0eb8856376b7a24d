import { randomBytes } from "node:crypto";
import { Redis } from "ioredis";
import { MongoClient } from "mongodb";
import { afterAll, inject, type TestContext } from "vitest";
import { withDatabase } from "../../deploy/local/trial.ts";

export interface ProvidedServer {
  readonly url: string;
  /** For people: program and version. */
  readonly label: string;
  /** True when it isn't the real thing, and what it can't do must be skipped with a reason. */
  readonly standIn: boolean;
}

export interface ProvidedServers {
  readonly redis: ProvidedServer;
  readonly mongodb: ProvidedServer;
}

declare module "vitest" {
  interface ProvidedContext {
    servers: ProvidedServers;
  }
}

export interface TestServers extends ProvidedServers {
  /** This file's own database, made on first use, dropped at the end of the file. */
  readonly database: string;
  /** `MONGODB_URL` with that database in its path. */
  readonly mongodbUrl: string;
  readonly redisUrl: string;
  /** This file's own `QUEUE_PREFIX`, `{t-<random>}`; every key below it is deleted at the end of the file. */
  readonly queuePrefix: string;
  /** A session id of this file's own, so that its claim checks (`lucid:payload:{<session_id>}:…`) are deleted too. */
  sessionId(name: string): string;
}

const RANDOM_BYTES = 6;
const SCAN_COUNT = 1_000;

/** The servers of the run, with names that no other test file uses. Call it once, at the top of a file. */
export function testServers(): TestServers {
  const { redis, mongodb } = inject("servers");
  const own = `t-${randomBytes(RANDOM_BYTES).toString("hex")}`;
  const servers: TestServers = {
    redis,
    mongodb,
    database: own,
    mongodbUrl: withDatabase(mongodb.url, own),
    redisUrl: redis.url,
    queuePrefix: `{${own}}`,
    sessionId: (name) => `${own}-${name}`,
  };
  // Hooks run last in, first out: this one after the file has closed its own connections.
  afterAll(async () => {
    await dropDatabase(servers);
    await deleteKeys(redis.url, [`{${own}}*`, `lucid:payload:{${own}-*`]);
  });
  return servers;
}

/** Skips the running test, with the reason in the report, where only a stand-in of MongoDB is at hand. */
export function requireRealMongod(ctx: TestContext): void {
  const { mongodb } = inject("servers");
  ctx.skip(mongodb.standIn, `needs a real mongod; this run uses ${mongodb.label}`);
}

async function dropDatabase({ mongodbUrl, database }: TestServers): Promise<void> {
  const client = new MongoClient(mongodbUrl);
  try {
    await client.db(database).dropDatabase();
  } finally {
    await client.close();
  }
}

async function deleteKeys(url: string, patterns: readonly string[]): Promise<void> {
  const client = new Redis(url, { maxRetriesPerRequest: 1 });
  // A failed command rejects, and that is what fails the hook.
  client.on("error", () => undefined);
  try {
    for (const pattern of patterns) await deleteMatching(client, pattern);
  } finally {
    client.disconnect();
  }
}

async function deleteMatching(client: Redis, pattern: string): Promise<void> {
  let cursor = "0";
  do {
    const [next, keys] = await client.scan(cursor, "MATCH", pattern, "COUNT", SCAN_COUNT);
    if (keys.length > 0) await client.unlink(...keys);
    cursor = next;
  } while (cursor !== "0");
}
