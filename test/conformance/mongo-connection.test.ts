import { createServer, connect, type AddressInfo, type Server, type Socket } from "node:net";
import { MongoClient } from "mongodb";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { errorCodeOf } from "../../src/core/errors.ts";
import type { LeafIndex, SessionId } from "../../src/core/ids.ts";
import { bytesOf, chunk, newSession, tile, treeHead } from "../support/memory/records.ts";
import { withDatabase } from "../../deploy/local/trial.ts";
import { requireRealMongod, testServers } from "../support/servers.ts";
import { mongoStores, type Stores } from "./stores.ts";

const NOW = new Date("2026-01-02T03:04:05.678Z");

const servers = testServers();
const CLOSED_PORT_URL = "mongodb://127.0.0.1:1/lucid";

describe("MongoConnection", () => {
  const sent: string[] = [];
  let connection: MongoConnection;
  let stores: Stores;

  beforeAll(async () => {
    connection = await connectMongo({
      url: servers.mongodbUrl,
      appName: "connection-test",
      onCommand: (name) => sent.push(name),
    });
    await ensureIndexes(connection);
    stores = mongoStores(connection);
  });
  afterAll(() => connection.close());

  /** Commands that `work` costs, by our count and by the driver's. */
  async function commandsOf(work: () => Promise<unknown>): Promise<{ ours: number; driver: number }> {
    const [ours, driver] = [connection.commands, sent.length];
    await work();
    return { ours: connection.commands - ours, driver: sent.length - driver };
  }

  test("it answers a ping and says what the server is", async () => {
    await expect(connection.ping()).resolves.toBeUndefined();
    const { text, standIn } = await connection.serverLabel();
    expect(standIn).toBe(servers.mongodb.standIn);
    expect(text).toMatch(standIn ? /stand-in/ : /^MongoDB \d/);
  });

  test("a document of a newer version is left to newer workers and keeps no sweep from the others", async () => {
    const [older, newer] = ["format-1" as SessionId, "format-0-is-first" as SessionId];
    for (const id of [newer, older]) {
      await stores.sessions.create(newSession(id));
      await stores.chunks.insert(chunk(id, 0));
    }
    const client = new MongoClient(servers.mongodbUrl);
    try {
      for (const collection of ["sessions", "chunks"]) {
        const _id = collection === "sessions" ? newer : `${newer}:0`;
        await client
          .db()
          .collection<{ _id: string }>(collection)
          .updateOne({ _id }, { $set: { format: 99 } });
      }
      const unfinished = await stores.sessions.unfinished(undefined, 10_000);
      const pending = await stores.chunks.withPendingEvent(undefined, 10_000);
      for (const page of [unfinished, pending]) {
        const listed = (id: SessionId) => page.find(({ sessionId }) => sessionId === id);
        expect(listed(older)?.read()).toBeDefined();
        expect(() => listed(newer)?.read()).toThrow("a format this version doesn't know");
      }
      // Two gathered reads: the one that is refused is the other one's.
      const [found, refused] = await Promise.allSettled([older, newer].map((id) => stores.sessions.find(id)));
      expect(found).toMatchObject({ value: { id: older } });
      expect(refused).toMatchObject({ reason: { code: "DOCUMENT_UNREADABLE" } });
    } finally {
      await client.db().collection<{ _id: string }>("sessions").deleteOne({ _id: newer });
      await client
        .db()
        .collection<{ _id: string }>("chunks")
        .deleteOne({ _id: `${newer}:0` });
      await client.close();
    }
  });

  test("its count of commands is the driver's", async () => {
    const id = "counted" as SessionId;
    const { ours, driver } = await commandsOf(async () => {
      await stores.sessions.create(newSession(id));
      for (let index = 0; index < 80; index++) await stores.chunks.insert(chunk(id, index));
      await stores.chunks.contiguousLeaves(id, 0 as LeafIndex, 1_000);
      await stores.chunks.beyond(id, 0, 1_000);
      await stores.chunks.withPendingEvent(undefined, 50);
      await stores.blobs.insert(`${id}:0:a`, { sessionId: id, index: 0 as LeafIndex }, bytesOf(1, 300_000));
      await stores.blobs.page(undefined, 10);
      await stores.sessions.unfinished(undefined, 10);
      await connection.ping();
    });
    expect(ours).toBe(driver);
    expect(ours).toBeGreaterThan(80);
  });

  test("fifty calls at once cost a few commands", async () => {
    const id = "gathered" as SessionId;
    const indexes = Array.from({ length: 50 }, (_, index) => index as LeafIndex);
    const blobs = await commandsOf(() =>
      Promise.all(
        indexes.map((index) =>
          stores.blobs.insert(`${id}:${index}:a`, { sessionId: id, index }, bytesOf(1, 4_096)),
        ),
      ),
    );
    expect(blobs.driver).toBeLessThanOrEqual(2);
    const inserts = await commandsOf(() =>
      Promise.all(indexes.map((index) => stores.chunks.insert(chunk(id, index)))),
    );
    expect(inserts.driver).toBeLessThanOrEqual(2);
    const finds = await commandsOf(() => Promise.all(indexes.map((index) => stores.chunks.find(id, index))));
    expect(finds.driver).toBe(1);
    const marks = await commandsOf(() =>
      Promise.all(indexes.map((index) => stores.chunks.markSent([{ sessionId: id, index }], NOW))),
    );
    expect(marks.driver).toBe(1);
  });

  test("one document that can't be stored fails its own caller only", async () => {
    const id = "oversized" as SessionId;
    const outcomes = await Promise.allSettled([
      stores.chunks.insert(chunk(id, 0)),
      stores.chunks.insert(chunk(id, 1, { metadata: "x".repeat(18 * 1024 * 1024) })),
      stores.chunks.insert(chunk(id, 2)),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    expect(outcomes[1]).toMatchObject({ reason: { code: "INTERNAL" } });
    expect(await stores.chunks.find(id, 2 as LeafIndex)).toBeDefined();
  });

  test("making the indexes again, also by several workers at once, changes nothing", async () => {
    const database = `${servers.database}-fresh`;
    const url = withDatabase(servers.mongodbUrl, database);
    const workers = await Promise.all(
      [1, 2, 3].map((worker) => connectMongo({ url, appName: `worker-${worker}` })),
    );
    try {
      await Promise.all(workers.map((worker) => ensureIndexes(worker)));
      await Promise.all(workers.map((worker) => ensureIndexes(worker)));
      const indexes = await workers[0]?.db.collection("chunks").indexes();
      expect(indexes?.map(({ name }) => name).sort()).toEqual([
        "_id_",
        "pending_event_by_id",
        "session_chunk_id",
        "session_chunk_index",
      ]);
      await workers[0]?.db.dropDatabase();
    } finally {
      await Promise.all(workers.map((worker) => worker.close()));
    }
  });

  test("chunk_blobs is not compressed by the server", async (ctx) => {
    requireRealMongod(ctx);
    const [found] = await connection.db.listCollections({ name: "chunk_blobs" }).toArray();
    expect(JSON.stringify(found)).toContain("block_compressor=none");
  });

  test("documents have the names of the contract and bytes of subtype 0", async () => {
    const id = "named" as SessionId;
    await stores.sessions.create(newSession(id));
    await stores.chunks.insert(chunk(id, 7));
    await stores.blobs.insert(`${id}:7:a1`, { sessionId: id, index: 7 as LeafIndex }, bytesOf(1));
    await stores.tiles.write(id, [{ level: 1, n: 2, width: 1, hashes: bytesOf(1) }]);
    const client = new MongoClient(servers.mongodbUrl);
    try {
      const raw = async (collection: string, _id: string) =>
        client.db().collection<{ _id: string }>(collection).findOne({ _id });
      expect(await raw("sessions", id)).toMatchObject({
        format: 1,
        state: "open",
        tree: { size: 0, frontier: [], root: null, version: 0 },
        keys: [{ key_version: 1, kek_version: 1, wrapped: { sub_type: 0 } }],
        anchor: null,
      });
      expect(await raw("chunks", `${id}:7`)).toMatchObject({
        format: 1,
        session_id: id,
        chunk_index: 7,
        leaf_hash: { sub_type: 0 },
        event: { state: "pending" },
      });
      expect(await raw("chunk_blobs", `${id}:7:a1`)).toMatchObject({
        session_id: id,
        bytes: { sub_type: 0 },
      });
      expect(await raw("merkle_tiles", `${id}:1:2`)).toMatchObject({ session_id: id, width: 1 });
    } finally {
      await client.close();
    }
  });

  test("a server that is not there is STORE_UNAVAILABLE within seconds", async () => {
    await expect(connectMongo({ url: CLOSED_PORT_URL, appName: "t" })).rejects.toMatchObject({
      code: "STORE_UNAVAILABLE",
    });
  });

  test.each(["http://127.0.0.1", "mongodb://", "mongodb://127.0.0.1:99999/", "mongodb://h/?unknownOption=1"])(
    "the address %s is CONFIG_INVALID",
    async (url) => {
      await expect(connectMongo({ url, appName: "t" })).rejects.toMatchObject({ code: "CONFIG_INVALID" });
    },
  );

  test("an address without a database means lucid", async () => {
    const url = servers.mongodbUrl.replace(/\/[^/?]+(\?|$)/, "/$1");
    const other = await connectMongo({ url, appName: "t" });
    expect(other.db.databaseName).toBe("lucid");
    await other.close();
  });

  describe("when a write is applied and its reply is lost", () => {
    let relay: Relay;
    let other: MongoConnection;
    let lossy: Stores;

    beforeAll(async () => {
      relay = await startRelay(servers.mongodbUrl);
      other = await connectMongo({ url: relay.url, appName: "lossy" });
      lossy = mongoStores(other);
    });
    afterAll(async () => {
      await other.close();
      await relay.close();
    });

    /** The error of the lost call, then the answer to the same call again. */
    async function loseReply<Result>(call: () => Promise<Result>): Promise<readonly [string, Result]> {
      await vi.waitFor(() => other.ping());
      relay.dropReplies();
      const lost = await call().then(
        () => "no error",
        (thrown: unknown) => errorCodeOf(thrown),
      );
      relay.restore();
      await vi.waitFor(() => other.ping());
      return [lost, await call()];
    }

    test("a chunk's second insert is index-taken", async () => {
      const again = await loseReply(() => lossy.chunks.insert(chunk("lost" as SessionId, 0)));
      expect(again).toEqual(["STORE_UNAVAILABLE", "index-taken"]);
    });

    test("a session's second create returns the first", async () => {
      const session = newSession("lost" as SessionId);
      const [lost, record] = await loseReply(() => lossy.sessions.create(session));
      expect(lost).toBe("STORE_UNAVAILABLE");
      expect(record.version).toBe(0);
    });

    test("a session's second replace is a conflict, and the change is there once", async () => {
      const id = "lost-grow" as SessionId;
      await vi.waitFor(() => lossy.sessions.create(newSession(id)));
      const change = { kind: "grow", tree: treeHead(1), addedOriginalBytes: 7, addedStoredBytes: 5 } as const;
      const again = await loseReply(() => lossy.sessions.replace(id, 0, change));
      expect(again).toEqual(["STORE_UNAVAILABLE", "conflict"]);
      expect(await lossy.sessions.find(id)).toMatchObject({ version: 1, totals: { originalBytes: 7 } });
    });

    test.each([4_096, 300_000])("a blob of %i bytes is there after its second insert", async (length) => {
      const id = "lost-blob" as SessionId;
      const owner = { sessionId: id, index: length as LeafIndex };
      const blobId = `${id}:${length}:a`;
      const again = await loseReply(() => lossy.blobs.insert(blobId, owner, bytesOf(1, length)));
      expect(again).toEqual(["STORE_UNAVAILABLE", undefined]);
      expect((await lossy.blobs.read(blobId))?.byteLength).toBe(length);
    });

    test("tiles and sent marks may be written again", async () => {
      const id = "lost-tile" as SessionId;
      const tiles = [tile(1, 0, 4)];
      await vi.waitFor(() => lossy.chunks.insert(chunk(id, 0)));
      expect(await loseReply(() => lossy.tiles.write(id, tiles))).toEqual(["STORE_UNAVAILABLE", undefined]);
      expect((await lossy.tiles.read(id, 1, 0))?.byteLength).toBe(4 * 32);
      const key = { sessionId: id, index: 0 as LeafIndex };
      expect(await loseReply(() => lossy.chunks.markSent([key], NOW))).toEqual([
        "STORE_UNAVAILABLE",
        undefined,
      ]);
      expect((await lossy.chunks.find(id, key.index))?.eventState).toBe("sent");
    });
  });

  test("calls after close are STORE_UNAVAILABLE", async () => {
    const other = await connectMongo({ url: servers.mongodbUrl, appName: "t" });
    const closed = mongoStores(other);
    await other.close();
    await expect(closed.sessions.find("s" as SessionId)).rejects.toMatchObject({ code: "STORE_UNAVAILABLE" });
    await expect(other.ping()).rejects.toMatchObject({ code: "STORE_UNAVAILABLE" });
  });
});

interface Relay {
  readonly url: string;
  /** From now on each command gets through, and its connection ends instead of the reply. */
  dropReplies(): void;
  restore(): void;
  close(): Promise<void>;
}

async function startRelay(mongodbUrl: string): Promise<Relay> {
  const { hostname, port } = new URL(mongodbUrl);
  const sockets = new Set<Socket>();
  let dropping = false;
  const server: Server = createServer((near) => {
    const far = connect(Number(port), hostname);
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on("error", () => undefined);
      socket.on("close", () => {
        sockets.delete(socket);
        near.destroy();
        far.destroy();
      });
    }
    near.on("data", (bytes) => far.write(bytes));
    far.on("data", (bytes) => {
      if (dropping) near.destroy();
      else near.write(bytes);
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port: nearPort } = server.address() as AddressInfo;
  const url = new URL(mongodbUrl);
  url.host = `127.0.0.1:${nearPort}`;
  return {
    url: url.href,
    dropReplies: () => {
      dropping = true;
    },
    restore: () => {
      dropping = false;
    },
    close: () =>
      new Promise<void>((resolve) => {
        for (const socket of sockets) socket.destroy();
        server.close(() => resolve());
      }),
  };
}
