import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createFilePayloadStore } from "../../src/adapters/file/payload-store.ts";
import { createRedisPayloadStore, type RedisPayloadStore } from "../../src/adapters/redis/payload-store.ts";
import type { SessionId } from "../../src/core/ids.ts";
import type { PayloadStore } from "../../src/pipeline/ports.ts";
import type { PayloadRef } from "../../src/schema/job.ts";
import { MemoryPayloadStore } from "../support/memory/payload-store.ts";
import { bytesOf } from "../support/memory/records.ts";
import { testServers } from "../support/servers.ts";

const TTL_SECONDS = 60;
const servers = testServers();

interface Place {
  readonly store: () => PayloadStore;
  readonly refTo: (session: SessionId, name: string) => PayloadRef;
  /** The producer's side. */
  readonly put: (session: SessionId, name: string, bytes: Uint8Array) => Promise<unknown>;
}

const inRedis = (session: SessionId, name: string): PayloadRef => ({
  store: "redis",
  key: `lucid:payload:{${session}}:${name}`,
});
const inFile = (_session: SessionId, name: string): PayloadRef => ({ store: "file", name });

/** Each test has a session of its own: payloads of others must not be seen. */
function suite({ store, refTo, put }: Place): void {
  let count = 0;
  const session = () => servers.sessionId(`${(count += 1)}`) as SessionId;

  test("an absent payload is undefined", async () => {
    const id = session();
    expect(await store().read(id, refTo(id, "a"), 100)).toBeUndefined();
  });

  test.each([1, 4_096, 1_048_576])("a payload of %i bytes comes back as it is", async (length) => {
    const id = session();
    await put(id, "a", bytesOf(length % 251, length));
    const read = await store().read(id, refTo(id, "a"), length);
    expect(read).toBeInstanceOf(Uint8Array);
    expect(Buffer.compare(read ?? new Uint8Array(), bytesOf(length % 251, length))).toBe(0);
  });

  test("of a payload that is too large one byte more than allowed is read", async () => {
    const id = session();
    await put(id, "a", bytesOf(1, 1_000));
    expect((await store().read(id, refTo(id, "a"), 100))?.byteLength).toBe(101);
    expect((await store().read(id, refTo(id, "a"), 999))?.byteLength).toBe(1_000);
    expect((await store().read(id, refTo(id, "a"), 5_000))?.byteLength).toBe(1_000);
  });

  test("an empty payload reads as absent", async () => {
    const id = session();
    await put(id, "a", new Uint8Array());
    expect(await store().read(id, refTo(id, "a"), 100)).toBeUndefined();
  });

  test("reading leaves a payload where it is, removing takes it away, also twice", async () => {
    const id = session();
    await put(id, "a", bytesOf(1));
    await put(id, "b", bytesOf(2));
    await store().read(id, refTo(id, "a"), 100);
    expect(await store().read(id, refTo(id, "a"), 100)).toBeDefined();
    await store().remove(id, refTo(id, "a"));
    await store().remove(id, refTo(id, "a"));
    expect(await store().read(id, refTo(id, "a"), 100)).toBeUndefined();
    expect((await store().read(id, refTo(id, "b"), 100))?.[0]).toBe(2);
  });

  test("one name in two sessions is two payloads", async () => {
    const [one, two] = [session(), session()];
    await put(one, "same", bytesOf(1));
    await put(two, "same", bytesOf(2));
    expect((await store().read(one, refTo(one, "same"), 100))?.[0]).toBe(1);
    await store().remove(two, refTo(two, "same"));
    expect((await store().read(one, refTo(one, "same"), 100))?.[0]).toBe(1);
  });

  test.each(["", ".", "..", "../a", "a/b", "a\u0000", "a b", "x".repeat(101)])(
    "the name %j is refused for reading and removing",
    async (name) => {
      const id = session();
      const refused = { code: "PAYLOAD_REF_FORBIDDEN" };
      await expect(store().read(id, refTo(id, name), 100)).rejects.toMatchObject(refused);
      await expect(store().remove(id, refTo(id, name))).rejects.toMatchObject(refused);
    },
  );
}

/** Only a Redis reference can name another session. */
function refusesOtherSessions({ store, put }: Place): void {
  test("a key outside of the session's own prefix is refused and keeps its payload", async () => {
    const [own, other] = [servers.sessionId("own") as SessionId, servers.sessionId("other") as SessionId];
    await put(other, "a", bytesOf(1));
    for (const key of [inRedis(other, "a"), inRedis("" as SessionId, "a")].flatMap((ref) =>
      ref.store === "redis" ? [ref.key, ` ${ref.key}`, ref.key.toUpperCase()] : [],
    )) {
      const refused = { code: "PAYLOAD_REF_FORBIDDEN" };
      await expect(store().read(own, { store: "redis", key }, 100)).rejects.toMatchObject(refused);
      await expect(store().remove(own, { store: "redis", key })).rejects.toMatchObject(refused);
    }
    expect(await store().read(other, inRedis(other, "a"), 100)).toBeDefined();
  });
}

describe("PayloadStore", () => {
  describe("in memory, as Redis", () => {
    const memory = new MemoryPayloadStore();
    const place: Place = {
      store: () => memory,
      refTo: inRedis,
      put: async (session, name, bytes) => memory.put(session, inRedis(session, name), bytes),
    };
    suite(place);
    refusesOtherSessions(place);
  });

  describe("in memory, as files", () => {
    const memory = new MemoryPayloadStore();
    suite({
      store: () => memory,
      refTo: inFile,
      put: async (session, name, bytes) => memory.put(session, inFile(session, name), bytes),
    });
  });

  describe("over Redis", () => {
    let redis: RedisPayloadStore;
    beforeAll(async () => {
      redis = createRedisPayloadStore({
        readBytesMax: 1_048_576,
        url: servers.redisUrl,
        onError: () => undefined,
      });
      // It fails fast while it connects; the pipeline's patience asks again, and so do we.
      const session = servers.sessionId("first") as SessionId;
      await vi.waitFor(() => redis.read(session, inRedis(session, "a"), 1));
    });
    afterAll(() => redis.close());
    const place: Place = {
      store: () => redis,
      refTo: inRedis,
      put: (session, name, bytes) => redis.write(session, name, bytes, TTL_SECONDS),
    };
    suite(place);
    refusesOtherSessions(place);
  });

  describe("over files", () => {
    let root = "";
    beforeAll(async () => {
      root = await mkdtemp(join(tmpdir(), "payloads-"));
    });
    afterAll(() => rm(root, { recursive: true }));
    suite({
      store: () => createFilePayloadStore(root),
      refTo: inFile,
      put: (session, name, bytes) => createFilePayloadStore(root).write(session, name, bytes),
    });
  });
});
