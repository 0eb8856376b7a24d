import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { MongoServiceStateStore } from "../../src/adapters/mongo/service-state-store.ts";
import type { ServiceStateStore } from "../../src/pipeline/ports.ts";
import { MemoryServiceStateStore } from "../support/memory/service-state-store.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
const RACERS = 20;

function suite(store: () => ServiceStateStore): void {
  test("knows no Redis and no check value at first", async () => {
    expect(await store().redis()).toBeUndefined();
    expect(await store().kekChecks()).toEqual(new Map());
  });

  test("replaces what is known of Redis only for who knows it", async () => {
    const [one, two] = [
      { marker: "one", isSettled: true },
      { marker: "two", isSettled: false },
    ];
    const racers = Array.from({ length: RACERS }, () => store().replaceRedis(undefined, one));
    expect((await Promise.all(racers)).filter((outcome) => outcome === "replaced")).toHaveLength(1);
    expect(await store().redis()).toEqual(one);
    expect(await store().replaceRedis("other", two)).toBe("conflict");
    expect(await store().replaceRedis(undefined, two)).toBe("conflict");
    expect(await store().redis()).toEqual(one);
    expect(await store().replaceRedis("one", two)).toBe("replaced");
    expect(await store().redis()).toEqual(two);
  });

  test("keeps the first check value of each KEK version, also of many that are claimed at once", async () => {
    const racers = Array.from({ length: RACERS }, (_, n) => store().claimKekCheck(1, `check-${n}`));
    await Promise.all(racers);
    const first = (await store().kekChecks()).get(1) ?? "none";
    expect(first).toMatch(/^check-/);
    await store().claimKekCheck(1, "late");
    expect(await store().kekChecks()).toEqual(new Map([[1, first]]));
    await store().claimKekCheck(12, "twelfth version");
    expect(await store().kekChecks()).toEqual(
      new Map([
        [1, first],
        [12, "twelfth version"],
      ]),
    );
    expect((await store().redis())?.marker).toBe("two");
  });

  test("replaces a check value for who decides so, and sets one that isn't there", async () => {
    await store().replaceKekCheck(12, "another");
    await store().replaceKekCheck(13, "new");
    const checks = await store().kekChecks();
    expect([checks.get(12), checks.get(13)]).toEqual(["another", "new"]);
    await store().claimKekCheck(13, "late");
    expect((await store().kekChecks()).get(13)).toBe("new");
  });
}

describe("in memory", () => {
  const store = new MemoryServiceStateStore();
  suite(() => store);
});

describe("over MongoDB", () => {
  let connection: MongoConnection;
  beforeAll(async () => {
    connection = await connectMongo({ url: servers.mongodbUrl, appName: "conformance" });
  });
  afterAll(() => connection.close());
  const store = (prefix = "{a}") => new MongoServiceStateStore(connection, prefix);
  suite(store);

  test("two installations on one database have a marker each, and one key", async () => {
    expect(await store("{b}").redis()).toBeUndefined();
    expect((await store("{b}").kekChecks()).get(13)).toBe("new");
  });
});
