import { pbkdf2Sync } from "node:crypto";
import type { Redis } from "ioredis";
import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { saltOf } from "../../src/core/encrypt/sealed-blob.ts";
import { unwrapSecret } from "../../src/core/encrypt/session-secret.ts";
import { sessionId } from "../../src/core/ids.ts";
import { Deployment, untilSealed } from "../support/deployment.ts";
import { testServers } from "../support/servers.ts";
import { until } from "../support/worker-process.ts";

const servers = testServers();

const MARKER = "plaintext0marker";
const PBKDF2_ITERATIONS = 100_000;

describe("what a worker leaves behind outside of MongoDB", () => {
  test("at LOG_LEVEL=trace, in its output and in Redis: no plaintext, key, session secret or derived key", async () => {
    const deployment = new Deployment({ ...servers, env: { LOG_LEVEL: "trace", RETRY_DELAY: "0.2" } });
    const id = servers.sessionId("secrets");
    const heard = deployment.listen();
    const worker = await deployment.readyWorker();
    const producer = deployment.producer();
    const bytes = new Uint8Array(Buffer.from(`${MARKER} `.repeat(200)));
    await producer.enqueueChunk({ sessionId: id, index: 0, bytes, store: "inline" });
    await producer.enqueueChunk({ sessionId: id, index: 1, bytes, store: "redis" });
    // One that fails, and one that is retried: errors are where such things leak.
    const chunks = deployment.queue("session-chunks");
    const refused = { session_id: id, chunk_id: "x-9", chunk_index: 9, chunk_data: `${MARKER}!` };
    await chunks.add("process-chunk", refused, { jobId: "refused" });
    const retried = await addBeforeItsPayload(deployment, id, bytes);
    await producer.finalize({ session_id: id, chunk_count: 3, metadata: { note: "of an owner" } });
    await untilSealed(deployment, [{ id, sizes: [] }], 20_000);
    await until("all is told", () => heard.all.length >= 5, 10_000);
    // A Python producer sets no attempts: the worker's own policy holds.
    expect((await chunks.getJob(retried))?.attemptsMade).toBe(2);

    const inline = await until(
      "the inline job is completed",
      async () => (await chunks.getCompleted()).find(({ data }) => (data as Stub).chunk_index === 0),
      10_000,
    );
    expect(Object.keys(inline.data as object).sort()).toEqual(
      ["chunk_id", "chunk_index", "committed", "leaf_hash", "session_id"].sort(),
    );
    // The refused job is a dead letter without its bytes, for its sender to look at.
    const { chunk_data: _bytes, ...kept } = refused;
    expect((await chunks.getJob("refused"))?.data).toEqual(kept);
    const redis = await everythingIn(deployment.redis(), [id, await prefixOf(deployment)]);
    expect(redis).toContain(id);
    for (const [what, secret] of await secretsOf(deployment, id)) {
      expect(worker.output.includes(secret), `${what} in the output`).toBe(false);
      expect(redis.includes(secret), `${what} in Redis`).toBe(false);
      expect(JSON.stringify(heard.all).includes(secret), `${what} in an event`).toBe(false);
    }
    expect((await worker.terminate()).code).toBe(0);
  });
});

interface Stub {
  readonly chunk_index: number;
}

/** A claim check without its payload at first, from a producer that sets no options at all. */
async function addBeforeItsPayload(deployment: Deployment, id: string, bytes: Uint8Array): Promise<string> {
  const chunks = deployment.queue("session-chunks");
  const key = `lucid:payload:{${id}}:late`;
  const data = {
    session_id: id,
    chunk_id: `${id}_chunk_2`,
    payload_ref: { store: "redis", key },
    size_bytes: bytes.byteLength,
    blake3: toHex(blake3(bytes)),
  };
  await chunks.add("process-chunk", data, { jobId: "late-payload" });
  await until(
    "the first attempt has failed",
    async () => ((await chunks.getJob("late-payload"))?.attemptsMade ?? 0) > 0,
    5_000,
    5,
  );
  await deployment.redis().set(key, Buffer.from(bytes));
  return "late-payload";
}

async function prefixOf(deployment: Deployment): Promise<string> {
  return deployment.queue("session-chunks").opts.prefix ?? "";
}

async function secretsOf(
  deployment: Deployment,
  id: string,
): Promise<readonly (readonly [string, string])[]> {
  const stores = await deployment.stores();
  const record = await stores.sessions.find(sessionId(id));
  const chunk = (await stores.chunks.beyond(sessionId(id), 0, 1))[0];
  const blob = chunk === undefined ? undefined : await stores.blobs.read(chunk.blobId);
  const key = record?.keys[0];
  if (record === undefined || key === undefined || blob === undefined) throw new Error("nothing was stored");
  const kek = singleKeyRing(deployment.encryptionKey).kek(key.kekVersion);
  const secret = unwrapSecret(key.wrapped, { kek, sessionId: record.id, keyVersion: key.keyVersion });
  const derived = pbkdf2Sync(secret, saltOf(blob), PBKDF2_ITERATIONS, 32, "sha256");
  return [
    ["plaintext", MARKER],
    ["plaintext in base64", Buffer.from(`${MARKER} `).toString("base64").slice(0, 16)],
    ["the encryption key", deployment.encryptionKey],
    ["the KEK", toHex(kek)],
    ["the session secret", secret],
    ["the derived key", derived.toString("hex")],
    ["the derived key in base64", derived.toString("base64")],
  ];
}

/** Every value under these names, whatever its type, as one text. */
async function everythingIn(redis: Redis, names: readonly string[]): Promise<string> {
  const found: string[] = [];
  let cursor = "0";
  do {
    const [next, keys] = await redis.scan(cursor, "COUNT", 1_000);
    cursor = next;
    for (const key of keys.filter((one) => names.some((name) => one.includes(name)))) {
      found.push(key, JSON.stringify(await valueOf(redis, key)));
    }
  } while (cursor !== "0");
  return found.join("\n");
}

async function valueOf(redis: Redis, key: string): Promise<unknown> {
  switch (await redis.type(key)) {
    case "string":
      return redis.get(key);
    case "hash":
      return redis.hgetall(key);
    case "list":
      return redis.lrange(key, 0, -1);
    case "set":
      return redis.smembers(key);
    case "zset":
      return redis.zrange(key, "0", "-1");
    case "stream":
      return redis.xrange(key, "-", "+");
    default:
      return undefined;
  }
}
