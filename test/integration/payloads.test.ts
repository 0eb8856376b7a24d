import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createFilePayloadStore, type FilePayloadStore } from "../../src/adapters/file/payload-store.ts";
import { payloadStoreOf } from "../../src/adapters/payload-store.ts";
import { createRedisPayloadStore, type RedisPayloadStore } from "../../src/adapters/redis/payload-store.ts";
import { valueClient } from "../../src/adapters/redis/client.ts";
import { type ErrorCode, errorCodeOf } from "../../src/core/errors.ts";
import { type SessionId, sessionId } from "../../src/core/ids.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const session = sessionId(servers.sessionId("a"));
const other = sessionId(servers.sessionId("b"));
const TTL_SECONDS = 60;
const READ_BYTES_MAX = 3 * 1024 * 1024;

async function codeOf(call: Promise<unknown>): Promise<ErrorCode> {
  try {
    await call;
  } catch (thrown) {
    return errorCodeOf(thrown);
  }
  throw new Error("it succeeded");
}

function digest(bytes: Uint8Array | undefined): string {
  return createHash("sha256")
    .update(bytes ?? new Uint8Array())
    .digest("hex");
}

/** Passes bytes on between a client and Redis, until it is told to stop in the middle. */
class CuttingProxy {
  readonly url: string;
  readonly #server: Server;
  #left = Number.POSITIVE_INFINITY;

  private constructor(server: Server) {
    this.#server = server;
    this.url = `redis://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  static async to(redisUrl: string): Promise<CuttingProxy> {
    const { hostname, port } = new URL(redisUrl);
    const server = createServer((client) => {
      const redis = connect(Number(port), hostname);
      client.pipe(redis);
      redis.on("data", (bytes: Buffer) => {
        client.write(bytes.subarray(0, Math.min(bytes.byteLength, proxy.#left)));
        proxy.#left -= bytes.byteLength;
        if (proxy.#left > 0) return;
        proxy.#left = Number.POSITIVE_INFINITY;
        redis.destroy();
        client.end();
      });
      client.on("close", () => redis.destroy());
      for (const socket of [client, redis]) socket.on("error", () => undefined);
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    const proxy = new CuttingProxy(server);
    return proxy;
  }

  cutAfter(byteLength: number): void {
    this.#left = byteLength;
  }

  async close(): Promise<void> {
    await once(this.#server.close(), "close");
  }
}

describe("payloads in Redis", () => {
  let store: RedisPayloadStore;
  let redis: Redis;
  const errors: string[] = [];

  beforeAll(async () => {
    redis = new Redis(servers.redisUrl);
    store = createRedisPayloadStore({
      readBytesMax: READ_BYTES_MAX,
      url: servers.redisUrl,
      onError: (where) => errors.push(where),
    });
    await store.waitUntilReady(5_000);
  });
  afterAll(async () => {
    await store.close();
    redis.disconnect();
  });

  test("values of all sizes, asked for at once and again and again, come back each as it was", async () => {
    const sizes = [1, 5_000, 65_530, 262_100, 262_150, 300_000, READ_BYTES_MAX - 1, READ_BYTES_MAX];
    const values = await Promise.all(
      sizes.map(async (size) => {
        const bytes = randomBytes(size);
        return {
          size,
          ref: await store.write(session, `m-${size}`, bytes, TTL_SECONDS),
          digest: digest(bytes),
        };
      }),
    );
    for (let round = 0; round < 5; round++) {
      const shuffled = [...values, ...values].toSorted(
        (a, b) => ((a.size * (round + 7)) % 13) - ((b.size * 3) % 11),
      );
      const read = await Promise.all(
        shuffled.map(async ({ size, ref }) => digest(await store.read(session, ref, size))),
      );
      expect(read).toEqual(shuffled.map((value) => value.digest));
    }
  });

  test("a connection over plain TCP reads into a ring; one that the URL leads elsewhere goes where it leads", async () => {
    const usesRing = (url: string): boolean => {
      const client = valueClient({ url, onError: () => undefined }, "test", 1_000);
      client.cut();
      return client.options.Connector !== undefined;
    };
    expect(usesRing(servers.redisUrl)).toBe(true);
    expect(usesRing(`${servers.redisUrl}?family=4`)).toBe(true);
    expect(usesRing(`${servers.redisUrl}?path=/nowhere/redis.sock`)).toBe(false);
    expect(usesRing(`${servers.redisUrl}?tls=true`)).toBe(false);
    expect(usesRing(servers.redisUrl.replace("redis:", "rediss:"))).toBe(false);
  });

  test("after a connection that was cut in the middle of a value the next one comes back as it is", async () => {
    const bytes = randomBytes(READ_BYTES_MAX);
    const ref = await store.write(session, "cut", bytes, TTL_SECONDS);
    const proxy = await CuttingProxy.to(servers.redisUrl);
    const reader = createRedisPayloadStore({
      readBytesMax: READ_BYTES_MAX,
      url: proxy.url,
      onError: () => undefined,
    });
    for (const afterBytes of [1_000_000, 300_001, 2_999_999]) {
      expect(await reader.waitUntilReady(5_000)).toBe(true);
      expect(digest(await reader.read(session, ref, READ_BYTES_MAX))).toBe(digest(bytes));
      proxy.cutAfter(afterBytes);
      expect(await codeOf(reader.read(session, ref, READ_BYTES_MAX))).toBe("QUEUE_UNAVAILABLE");
    }
    expect(await reader.waitUntilReady(5_000)).toBe(true);
    expect(digest(await reader.read(session, ref, READ_BYTES_MAX))).toBe(digest(bytes));
    await reader.close();
    await proxy.close();
  });

  test("a payload that may be larger than the store was made for isn't asked for", async () => {
    const ref = await store.write(session, "large", randomBytes(10), TTL_SECONDS);
    expect(await codeOf(store.read(session, ref, READ_BYTES_MAX + 1))).toBe("INTERNAL");
    const writer = createRedisPayloadStore({ url: servers.redisUrl, onError: () => undefined });
    await writer.waitUntilReady(5_000);
    expect(await codeOf(writer.read(session, ref, 1))).toBe("INTERNAL");
    await writer.close();
  });

  test.each([1, 100, 4096, 65_536, 1024 * 1024, 3 * 1024 * 1024])(
    "%i bytes come back in a buffer of their own, whole and transferable",
    async (size) => {
      const bytes = randomBytes(size);
      const ref = await store.write(session, `p-${size}`, bytes, TTL_SECONDS);
      const read = await store.read(session, ref, size);
      expect(digest(read)).toBe(digest(bytes));
      expect(read?.byteOffset).toBe(0);
      expect(read?.buffer.byteLength).toBe(size);
      const moved = structuredClone(read?.buffer, {
        transfer: read === undefined ? [] : [read.buffer as ArrayBuffer],
      });
      expect(moved?.byteLength).toBe(size);
    },
  );

  test("no more than one byte above the limit is read of a longer value", async () => {
    const ref = await store.write(session, "long", randomBytes(5000), TTL_SECONDS);
    expect((await store.read(session, ref, 1000))?.byteLength).toBe(1001);
  });

  test("one read is one command", async () => {
    const ref = await store.write(session, "one", randomBytes(10), TTL_SECONDS);
    const before = store.commands;
    await store.read(session, ref, 10);
    expect(store.commands - before).toBe(1);
  });

  test("a written payload lives under the session's hash tag, with a time to live", async () => {
    const ref = await store.write(session, "ttl", randomBytes(10), TTL_SECONDS);
    expect(ref).toEqual({ store: "redis", key: `lucid:payload:{${session}}:ttl` });
    const ttl = await redis.ttl(`lucid:payload:{${session}}:ttl`);
    expect(ttl).toBeGreaterThan(TTL_SECONDS - 10);
    expect(ttl).toBeLessThanOrEqual(TTL_SECONDS);
  });

  test("absent reads as undefined, and removing it again is harmless", async () => {
    const ref = await store.write(session, "gone", randomBytes(10), TTL_SECONDS);
    await store.remove(session, ref);
    await store.remove(session, ref);
    expect(await store.read(session, ref, 10)).toBeUndefined();
  });

  test("a hundred removals of two sessions are one command a session", async () => {
    const refs = await Promise.all(
      Array.from({ length: 100 }, async (_, n) => {
        const owner: SessionId = n % 2 === 0 ? session : other;
        return { owner, ref: await store.write(owner, `batch-${n}`, randomBytes(10), TTL_SECONDS) };
      }),
    );
    const before = store.commands;
    await Promise.all(refs.map(({ owner, ref }) => store.remove(owner, ref)));
    expect(store.commands - before).toBe(2);
    const left = await Promise.all(refs.map(({ owner, ref }) => store.read(owner, ref, 10)));
    expect(left.every((bytes) => bytes === undefined)).toBe(true);
  });

  test("a key of another session, or of anything else, is neither read nor removed", async () => {
    const foreign = await store.write(other, "foreign", randomBytes(10), TTL_SECONDS);
    for (const ref of [foreign, { store: "redis", key: `${servers.queuePrefix}:x:meta` } as const]) {
      expect(await codeOf(store.read(session, ref, 10))).toBe("PAYLOAD_REF_FORBIDDEN");
      expect(await codeOf(store.remove(session, ref))).toBe("PAYLOAD_REF_FORBIDDEN");
    }
    expect(await store.read(other, foreign, 10)).toBeDefined();
  });

  test("a key that holds a list is a missing payload", async () => {
    const key = `lucid:payload:{${session}}:list`;
    await redis.rpush(key, "x");
    expect(await codeOf(store.read(session, { store: "redis", key }, 10))).toBe("PAYLOAD_MISSING");
  });

  test("without a server every call fails at once with QUEUE_UNAVAILABLE, and closing ends", async () => {
    const unreachable = createRedisPayloadStore({
      readBytesMax: READ_BYTES_MAX,
      url: "redis://127.0.0.1:1",
      onError: (where) => errors.push(where),
    });
    const ref = { store: "redis", key: `lucid:payload:{${session}}:x` } as const;
    const startedMs = performance.now();
    expect(await codeOf(unreachable.read(session, ref, 10))).toBe("QUEUE_UNAVAILABLE");
    expect(await codeOf(unreachable.remove(session, ref))).toBe("QUEUE_UNAVAILABLE");
    expect(await codeOf(unreachable.write(session, "x", randomBytes(1), 60))).toBe("QUEUE_UNAVAILABLE");
    expect(await unreachable.waitUntilReady(300)).toBe(false);
    await unreachable.close();
    expect(performance.now() - startedMs).toBeLessThan(3_000);
    expect(errors).toContain("payloads");
  });
});

describe("payloads in files", () => {
  let root: string;
  let store: FilePayloadStore;
  const ref = (name: string) => ({ store: "file", name }) as const;

  beforeAll(() => {
    root = mkdtempSync(join(tmpdir(), "session-processor-payloads-"));
    store = createFilePayloadStore(root);
  });
  afterAll(() => {
    rmSync(root, { recursive: true, force: true });
  });

  test.each([1, 4096, 1024 * 1024])("%i bytes come back, whole and in memory of their own", async (size) => {
    const bytes = randomBytes(size);
    await store.write(session, `p-${size}`, bytes);
    const read = await store.read(session, ref(`p-${size}`), size);
    expect(digest(read)).toBe(digest(bytes));
    expect(read?.buffer.byteLength).toBe(size);
  });

  test("no more than one byte above the limit is read, and an empty file reads as undefined", async () => {
    await store.write(session, "long", randomBytes(5000));
    expect((await store.read(session, ref("long"), 1000))?.byteLength).toBe(1001);
    await store.write(session, "empty", new Uint8Array());
    expect(await store.read(session, ref("empty"), 1000)).toBeUndefined();
  });

  test("removing the last payload removes the session's folder, and not before", async () => {
    await store.write(other, "one", randomBytes(1));
    await store.write(other, "two", randomBytes(1));
    await store.remove(other, ref("one"));
    expect(readdirSync(join(root, other))).toEqual(["two"]);
    await store.remove(other, ref("two"));
    expect(existsSync(join(root, other))).toBe(false);
    await store.remove(other, ref("two"));
    expect(await store.read(other, ref("two"), 1)).toBeUndefined();
  });

  test("writing while the folder is being removed ends with the file in place", async () => {
    const names = Array.from({ length: 50 }, (_, n) => `race-${n}`);
    await Promise.all(
      names.map(async (name) => {
        await store.write(other, name, randomBytes(10));
        expect((await store.read(other, ref(name), 10))?.byteLength).toBe(10);
        await store.remove(other, ref(name));
      }),
    );
    expect(existsSync(join(root, other))).toBe(false);
  });

  test("a symbolic link is followed neither as file nor as folder", async () => {
    const outside = mkdtempSync(join(tmpdir(), "session-processor-outside-"));
    writeFileSync(join(outside, "secret"), "secret");
    mkdirSync(join(root, session), { recursive: true });
    symlinkSync(join(outside, "secret"), join(root, session, "link"));
    symlinkSync(outside, join(root, "linked-session"));
    expect(await codeOf(store.read(session, ref("link"), 10))).toBe("PAYLOAD_REF_FORBIDDEN");
    expect(await codeOf(store.read(sessionId("linked-session"), ref("secret"), 10))).toBe(
      "PAYLOAD_REF_FORBIDDEN",
    );
    expect(await codeOf(store.remove(sessionId("linked-session"), ref("secret")))).toBe(
      "PAYLOAD_REF_FORBIDDEN",
    );
    expect(existsSync(join(outside, "secret"))).toBe(true);
    rmSync(outside, { recursive: true, force: true });
  });

  test("a FIFO and a folder are refused, without waiting", async () => {
    mkdirSync(join(root, session, "folder"), { recursive: true });
    execFileSync("mkfifo", [join(root, session, "fifo")]);
    expect(await codeOf(store.read(session, ref("fifo"), 10))).toBe("PAYLOAD_REF_FORBIDDEN");
    expect(await codeOf(store.read(session, ref("folder"), 10))).toBe("PAYLOAD_REF_FORBIDDEN");
  });

  test.each(["../a", "/etc/passwd", ".hidden", "a/b", ""])("the name %j is refused", async (name) => {
    expect(await codeOf(store.read(session, ref(name), 10))).toBe("PAYLOAD_REF_FORBIDDEN");
    expect(await codeOf(store.remove(session, ref(name)))).toBe("PAYLOAD_REF_FORBIDDEN");
  });

  test("each reference goes to the store it names", async () => {
    const refuses = {
      read: () => Promise.reject(new Error("redis")),
      remove: () => Promise.reject(new Error("redis")),
    };
    const both = payloadStoreOf({ redis: refuses, file: store });
    await store.write(session, "named", randomBytes(3));
    expect((await both.read(session, ref("named"), 3))?.byteLength).toBe(3);
    await expect(both.read(session, { store: "redis", key: "x" }, 3)).rejects.toThrow("redis");
  });

  test("a root that can't be used is an outage, not the job's fault", async () => {
    writeFileSync(join(root, "a-file"), "");
    const broken = createFilePayloadStore(join(root, "a-file"));
    expect(await codeOf(broken.write(session, "x", randomBytes(1)))).toBe("STORE_UNAVAILABLE");
  });
});
