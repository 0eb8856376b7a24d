import { Timestamp } from "mongodb";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { MongoBlobStore } from "../../src/adapters/mongo/blob-store.ts";
import { MongoChunkStore } from "../../src/adapters/mongo/chunk-store.ts";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { MongoManifestStore } from "../../src/adapters/mongo/manifest-store.ts";
import { MongoServiceStateStore } from "../../src/adapters/mongo/service-state-store.ts";
import { MongoSessionStore } from "../../src/adapters/mongo/session-store.ts";
import { MongoTileStore } from "../../src/adapters/mongo/tile-store.ts";
import type { LeafIndex, SessionId } from "../../src/core/ids.ts";
import { type FakeReplicaSet, startFakeReplicaSet } from "../support/fake-replica-set.ts";
import { chunk } from "../support/memory/records.ts";

const NOW = new Date("2026-01-02T03:04:05.678Z");

const id = "sess-1" as SessionId;
const at = (index: number) => index as LeafIndex;
const timeOf = (seconds: number) => new Timestamp({ t: seconds, i: 1 });

describe("over a replica set", () => {
  let fake: FakeReplicaSet;
  let connection: MongoConnection;

  beforeEach(async () => {
    fake = await startFakeReplicaSet();
    connection = await connectMongo({ url: fake.url, appName: "t" });
  });
  afterEach(async () => {
    await connection.close();
    await fake.close();
  });

  const reads: readonly (readonly [string, (on: MongoConnection) => Promise<unknown>])[] = [
    ["sessions.find", (on) => new MongoSessionStore(on).find(id)],
    ["sessions.unfinished", (on) => new MongoSessionStore(on).unfinished(undefined, 10)],
    ["sessions.ids", (on) => new MongoSessionStore(on).ids(undefined, 10)],
    ["chunks.find", (on) => new MongoChunkStore(on).find(id, at(0))],
    ["chunks.contiguousLeaves", (on) => new MongoChunkStore(on).contiguousLeaves(id, at(0), 10)],
    ["chunks.beyond", (on) => new MongoChunkStore(on).beyond(id, 3, 1)],
    ["chunks.originalBytesFrom", (on) => new MongoChunkStore(on).originalBytesFrom(id, 3)],
    ["chunks.withPendingEvent", (on) => new MongoChunkStore(on).withPendingEvent(undefined, 10)],
    ["blobs.read", (on) => new MongoBlobStore(on).read(`${id}:0:a`)],
    ["blobs.page", (on) => new MongoBlobStore(on).page(undefined, 10)],
    ["blobs.existing", (on) => new MongoBlobStore(on).existing([`${id}:0:a`])],
    ["tiles.read", (on) => new MongoTileStore(on).read(id, 0, 0)],
    ["manifests.find", (on) => new MongoManifestStore(on).find("m")],
    ["state.redisMarker", (on) => new MongoServiceStateStore(on, "{p}").redis()],
  ];

  test.each(reads)("%s sees at least what this process has written last", async (_name, read) => {
    const chunks = new MongoChunkStore(connection);
    fake.tellTime(1_000);
    await chunks.insert(chunk(id, 0));
    // An answer that overtakes another: the later time stays.
    fake.tellTime(900);
    await chunks.markSent([{ sessionId: id, index: at(0) }], NOW);
    await read(connection);
    expect(fake.commands.at(-1)).toMatchObject({
      readConcern: { level: "majority", afterClusterTime: timeOf(1_000) },
    });
  });

  test("a read sees at least what the reads before it have seen, also before the first write", async () => {
    const chunks = new MongoChunkStore(connection);
    fake.tellTime(2_000);
    await chunks.beyond(id, 3, 1);
    expect(fake.commands.at(-1)?.["readConcern"]).toEqual({
      level: "majority",
      afterClusterTime: timeOf(10),
    });
    await chunks.beyond(id, 3, 1);
    expect(fake.commands.at(-1)?.["readConcern"]).toEqual({
      level: "majority",
      afterClusterTime: timeOf(2_000),
    });
  });

  test("a connection that is new hears the time that others have told", async () => {
    const chunks = new MongoChunkStore(connection);
    const blobs = new MongoBlobStore(connection);
    fake.tellTime(2_000);
    await chunks.insert(chunk(id, 0));
    const reads = Array.from({ length: 8 }, (_, index) => blobs.read(`${id}:${index}:a`));
    await Promise.all([...reads, chunks.insert(chunk(id, 1))]);
    expect(fake.connections()).toBeGreaterThan(2);
    const told = fake.commands.slice(-9).map((command) => command["$clusterTime"].clusterTime);
    expect(told).toEqual(told.map(() => timeOf(2_000)));
  });

  test("reads and writes cost one command each", async () => {
    fake.tellTime(1_000);
    const chunks = new MongoChunkStore(connection);
    await chunks.insert(chunk(id, 0));
    for (let count = 0; count < 5; count++) await chunks.beyond(id, count, 1);
    expect(fake.commands.map((command) => Object.keys(command)[0])).toEqual([
      "insert",
      "find",
      "find",
      "find",
      "find",
      "find",
    ]);
    // Sessions are reused, not made for each read.
    const sessions = fake.commands.map((command) => JSON.stringify(command["lsid"]));
    expect(new Set(sessions).size).toBeLessThanOrEqual(2);
  });

  test.each([
    "readConcernLevel=local",
    "readConcernLevel=available",
    "readPreference=secondaryPreferred",
    "w=1&journal=false",
  ])("the address's %s weakens nothing", async (options) => {
    const weak = await connectMongo({ url: `${fake.url}&${options}`, appName: "t" });
    try {
      await new MongoChunkStore(weak).insert(chunk(id, 0));
      await new MongoChunkStore(weak).beyond(id, 3, 1);
      const [insert, find] = fake.commands.slice(-2);
      expect(insert).toMatchObject({ writeConcern: { w: "majority", j: true } });
      expect(find).toMatchObject({ readConcern: { level: "majority" } });
      expect(find?.["$readPreference"]).toBeUndefined();
    } finally {
      await weak.close();
    }
  });

  test.each(["promoteLongs=false", "promoteValues=false", "useBigInt64=true"])(
    "the address's %s changes no number",
    async (options) => {
      const odd = await connectMongo({ url: `${fake.url}&${options}`, appName: "t" });
      try {
        expect(odd.db.bsonOptions).toMatchObject({
          promoteLongs: true,
          promoteValues: true,
          useBigInt64: false,
        });
      } finally {
        await odd.close();
      }
    },
  );
});
