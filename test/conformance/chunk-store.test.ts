import { describe, expect, test } from "vitest";
import { LEAF_INDEX_MAX, type ChunkId, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import type { ChunkStore } from "../../src/pipeline/ports.ts";
import type { ChunkRecord } from "../../src/schema/record.ts";
import { bytesOf, chunk } from "../support/memory/records.ts";
import { testServers } from "../support/servers.ts";
import { describeStores } from "./stores.ts";

const NOW = new Date("2026-01-02T03:04:05.678Z");

const RACERS = 50;
const at = (index: number) => index as LeafIndex;

describe("ChunkStore", () => {
  describeStores(testServers(), ({ first, second, session }) => {
    test("an absent chunk is not found", async () => {
      expect(await first().chunks.find(session(), at(0))).toBeUndefined();
    });

    test("an inserted chunk is found with every field", async () => {
      const id = session();
      const full = chunk(id, 0, {
        recordedAt: "2026-01-01T00:00:00Z",
        metadata: String.raw`{"$where":"1","__proto__":{"x":1},"a.b":"\u0000"}`,
        originalBytes: 5_000_000_000,
      });
      expect(await first().chunks.insert(full)).toBe("inserted");
      expectSameChunk(await second().chunks.find(id, at(0)), full);
    });

    test("optional fields that were not given stay absent", async () => {
      const id = session();
      await first().chunks.insert(chunk(id, 0));
      const found = await first().chunks.find(id, at(0));
      expect(found).not.toHaveProperty("metadata");
      expect(found).not.toHaveProperty("recordedAt");
    });

    test.each(["", "\u0000", "$ne", "{$gt:''}", "Ω𝄞\u202e", `{"k":"${"x".repeat(16_000)}"}`])(
      "metadata text comes back as it is: %j",
      async (metadata) => {
        const id = session();
        await first().chunks.insert(chunk(id, 0, { metadata }));
        expect((await first().chunks.find(id, at(0)))?.metadata).toBe(metadata);
      },
    );

    test("a chunk again, and another chunk of its index, are index-taken; the first stays", async () => {
      const id = session();
      const original = chunk(id, 4);
      await first().chunks.insert(original);
      const other = chunk(id, 4, { chunkId: "other" as ChunkId, blobId: `${id}:4:b2`, plainMac: bytesOf(9) });
      expect(await first().chunks.insert(original)).toBe("index-taken");
      expect(await second().chunks.insert(other)).toBe("index-taken");
      expectSameChunk(await first().chunks.find(id, at(4)), original);
    });

    test("a chunk id at a second index of its session is id-taken and nothing is stored", async () => {
      const id = session();
      await first().chunks.insert(chunk(id, 0));
      const moved = chunk(id, 1, { chunkId: chunk(id, 0).chunkId });
      expect(await first().chunks.insert(moved)).toBe("id-taken");
      expect(await first().chunks.find(id, at(1))).toBeUndefined();
    });

    test("one chunk id in two sessions is no conflict", async () => {
      const chunkId = "same" as ChunkId;
      expect(await first().chunks.insert(chunk(session(), 0, { chunkId }))).toBe("inserted");
      expect(await first().chunks.insert(chunk(session(), 0, { chunkId }))).toBe("inserted");
    });

    test("index-taken wins when a chunk's index and its id both are taken", async () => {
      const id = session();
      await first().chunks.insert(chunk(id, 0));
      await first().chunks.insert(chunk(id, 1));
      const both = chunk(id, 1, { chunkId: chunk(id, 0).chunkId });
      expect(await first().chunks.insert(both)).toBe("index-taken");
    });

    test("of 50 racing inserts of one index one is inserted", async () => {
      const id = session();
      const racing = Array.from({ length: RACERS }, (_, racer) =>
        (racer % 2 === 0 ? first() : second()).chunks.insert(
          chunk(id, 0, { blobId: `${id}:0:r${racer}`, chunkId: `c${racer}` as ChunkId }),
        ),
      );
      const outcomes = await Promise.all(racing);
      expect(outcomes.filter((outcome) => outcome === "inserted")).toHaveLength(1);
      expect(outcomes.filter((outcome) => outcome === "index-taken")).toHaveLength(RACERS - 1);
      const winner = outcomes.indexOf("inserted");
      expect((await first().chunks.find(id, at(0)))?.blobId).toBe(`${id}:0:r${winner}`);
    });

    test("of racing inserts of one chunk id at different indexes one is inserted", async () => {
      const id = session();
      const racing = Array.from({ length: 20 }, (_, racer) =>
        (racer % 2 === 0 ? first() : second()).chunks.insert(chunk(id, racer, { chunkId: "one" as ChunkId })),
      );
      const outcomes = await Promise.all(racing);
      expect(outcomes.filter((outcome) => outcome === "inserted")).toHaveLength(1);
      expect(outcomes.filter((outcome) => outcome === "id-taken")).toHaveLength(19);
    });

    test("inserts at the same time each get their own outcome", async () => {
      const id = session();
      await first().chunks.insert(chunk(id, 0));
      const outcomes = await Promise.all([
        first().chunks.insert(chunk(id, 1)),
        first().chunks.insert(chunk(id, 0)),
        first().chunks.insert(chunk(id, 2, { chunkId: chunk(id, 0).chunkId })),
        first().chunks.insert(chunk(id, 3)),
      ]);
      expect(outcomes).toEqual(["inserted", "index-taken", "id-taken", "inserted"]);
    });

    test("contiguous leaves come in order and end before the first absent one", async () => {
      const id = session();
      await insertAll(
        first().chunks,
        [3, 1, 0, 2, 5, 6].map((index) => chunk(id, index)),
      );
      const indexes = async (from: number, limit: number) =>
        (await first().chunks.contiguousLeaves(id, at(from), limit)).map(({ index }) => index);
      expect(await indexes(0, 100)).toEqual([0, 1, 2, 3]);
      expect(await indexes(2, 100)).toEqual([2, 3]);
      expect(await indexes(0, 3)).toEqual([0, 1, 2]);
      expect(await indexes(4, 100)).toEqual([]);
      expect(await indexes(5, 100)).toEqual([5, 6]);
      expect(await indexes(0, 0)).toEqual([]);
      expect(await first().chunks.contiguousLeaves(session(), at(0), 100)).toEqual([]);
    });

    test("a leaf carries its hash and its lengths", async () => {
      const id = session();
      await first().chunks.insert(chunk(id, 0, { originalBytes: 2 ** 32 + 1, storedBytes: 77 }));
      const [leaf] = await first().chunks.contiguousLeaves(id, at(0), 1);
      expect(leaf).toMatchObject({ index: 0, originalBytes: 2 ** 32 + 1, storedBytes: 77 });
      expect([...(leaf?.leafHash ?? [])]).toEqual([...chunk(id, 0).leafHash]);
    });

    test("contiguous leaves of several hundred chunks are all there", async () => {
      const id = session();
      await insertAll(
        first().chunks,
        Array.from({ length: 700 }, (_, index) => chunk(id, index)),
      );
      const leaves = await second().chunks.contiguousLeaves(id, at(0), 1_000);
      expect(leaves.map(({ index }) => index)).toEqual(Array.from({ length: 700 }, (_, index) => index));
      expect(await second().chunks.contiguousLeaves(id, at(10), 600)).toHaveLength(600);
    });

    test("the last possible index ends the contiguous leaves", async () => {
      const id = session();
      await insertAll(first().chunks, [chunk(id, LEAF_INDEX_MAX - 1), chunk(id, LEAF_INDEX_MAX)]);
      const leaves = await first().chunks.contiguousLeaves(id, at(LEAF_INDEX_MAX - 1), 100);
      expect(leaves.map(({ index }) => index)).toEqual([LEAF_INDEX_MAX - 1, LEAF_INDEX_MAX]);
      expect((await first().chunks.find(id, at(LEAF_INDEX_MAX)))?.index).toBe(LEAF_INDEX_MAX);
    });

    test("beyond lists chunks from an index on, lowest first, within the limit and the session", async () => {
      const id = session();
      await insertAll(
        first().chunks,
        [10, 2, LEAF_INDEX_MAX, 7].map((index) => chunk(id, index)),
      );
      await first().chunks.insert(chunk(session(), 8));
      const indexes = async (from: number, limit: number) =>
        (await first().chunks.beyond(id, from, limit)).map(({ index }) => index);
      expect(await indexes(3, 10)).toEqual([7, 10, LEAF_INDEX_MAX]);
      expect(await indexes(7, 2)).toEqual([7, 10]);
      expect(await indexes(2 ** 32, 10)).toEqual([]);
      expect(await indexes(0, 0)).toEqual([]);
    });

    test("original bytes are summed from an index on, of the session's own chunks, also above 2^32", async () => {
      const id = session();
      await insertAll(first().chunks, [
        chunk(id, 2, { originalBytes: 1 }),
        chunk(id, 7, { originalBytes: 2 ** 31 }),
        chunk(id, 8, { originalBytes: 2 ** 31 + 1 }),
        chunk(id, LEAF_INDEX_MAX, { originalBytes: 2 ** 40 }),
        chunk(session(), 8, { originalBytes: 5 }),
      ]);
      const bytesFrom = (from: number) => second().chunks.originalBytesFrom(id, from);
      expect(await bytesFrom(0)).toBe(2 ** 40 + 2 ** 32 + 2);
      expect(await bytesFrom(7)).toBe(2 ** 40 + 2 ** 32 + 1);
      expect(await bytesFrom(9)).toBe(2 ** 40);
      expect(await bytesFrom(2 ** 32)).toBe(0);
      expect(await first().chunks.originalBytesFrom(session(), 0)).toBe(0);
    });

    test("marking events sent takes exactly these chunks out of the pending ones, also twice", async () => {
      const id = session();
      await insertAll(
        first().chunks,
        [0, 1, 2].map((index) => chunk(id, index)),
      );
      const pending = async () =>
        (await first().chunks.withPendingEvent(undefined, 10_000))
          .filter(({ sessionId }) => sessionId === id)
          .map((listed) => listed.read().index)
          .sort((left, right) => left - right);
      expect(await pending()).toEqual([0, 1, 2]);
      const keys = [
        { sessionId: id, index: at(0) },
        { sessionId: id, index: at(2) },
      ];
      await first().chunks.markSent(keys, NOW);
      await second().chunks.markSent(keys, NOW);
      expect(await pending()).toEqual([1]);
      expect((await first().chunks.find(id, at(0)))?.eventState).toBe("sent");
      expect((await first().chunks.find(id, at(1)))?.eventState).toBe("pending");
    });

    test("reopening makes exactly the sent events of a session's chunks that were marked since then pending again", async () => {
      const [id, other] = [session(), session()];
      const since = new Date("2030-01-01T00:00:00.000Z");
      const before = new Date(since.getTime() - 1);
      await insertAll(first().chunks, [chunk(id, 0), chunk(id, 1), chunk(id, 2), chunk(other, 0)]);
      await first().chunks.markSent([{ sessionId: id, index: at(0) }], before);
      await first().chunks.markSent([{ sessionId: id, index: at(1) }], since);
      await first().chunks.markSent([{ sessionId: other, index: at(0) }], since);
      expect(await second().chunks.reopenEvents(id, since)).toBe(1);
      expect((await first().chunks.find(other, at(0)))?.eventState).toBe("sent");
      const states = await Promise.all(
        [0, 1, 2].map(async (index) => (await first().chunks.find(id, at(index)))?.eventState),
      );
      expect(states).toEqual(["sent", "pending", "pending"]);
      expect(await first().chunks.reopenEvents(id, since)).toBe(0);
    });

    test("marking no chunk, or an absent one, is harmless", async () => {
      const id = session();
      await first().chunks.markSent([], NOW);
      await first().chunks.markSent([{ sessionId: id, index: at(0) }], NOW);
      expect(await first().chunks.find(id, at(0))).toBeUndefined();
    });

    test("pending events come in pages, by document id", async () => {
      const prefix = `zz-${session()}`;
      const [one, two] = [`${prefix}a`, `${prefix}b`] as [SessionId, SessionId];
      const { chunks } = first();
      await insertAll(chunks, [chunk(two, 0), chunk(one, 1), chunk(one, 0)]);
      const page = async (after: string, limit: number) =>
        (await chunks.withPendingEvent(after, limit)).map(({ id, sessionId }) => ({ id, sessionId }));
      const all = [
        { id: `${one}:0`, sessionId: one },
        { id: `${one}:1`, sessionId: one },
        { id: `${two}:0`, sessionId: two },
      ];
      expect(await page(prefix, 10)).toEqual(all);
      expect(await page(prefix, 2)).toEqual(all.slice(0, 2));
      expect(await page(`${one}:1`, 2)).toEqual(all.slice(2));
      expect(await page(prefix, 0)).toEqual([]);
      expect(await chunks.withPendingEvent(undefined, 1)).toHaveLength(1);
    });

    test("withdraw removes a chunk, frees its index and its id, and is harmless when repeated", async () => {
      const id = session();
      const key = { sessionId: id, index: at(0) };
      await first().chunks.insert(chunk(id, 0));
      await first().chunks.withdraw(key, chunk(id, 0).blobId);
      await first().chunks.withdraw(key, chunk(id, 0).blobId);
      expect(await first().chunks.find(id, at(0))).toBeUndefined();
      expect(await first().chunks.insert(chunk(id, 1, { chunkId: chunk(id, 0).chunkId }))).toBe("inserted");
    });

    test("withdraw leaves a chunk whose blob is another one", async () => {
      const id = session();
      await first().chunks.insert(chunk(id, 0));
      await first().chunks.withdraw({ sessionId: id, index: at(0) }, `${id}:0:other`);
      expect(await first().chunks.find(id, at(0))).toBeDefined();
    });
  });
});

async function insertAll(store: ChunkStore, chunks: readonly ChunkRecord[]): Promise<void> {
  await Promise.all(chunks.map((record) => store.insert(record)));
}

/** Bytes as lists, because a store may return Buffers. */
function expectSameChunk(found: ChunkRecord | undefined, wanted: ChunkRecord): void {
  const comparable = (record: ChunkRecord | undefined) =>
    Object.fromEntries(
      Object.entries(record ?? {}).map(([name, value]) => [
        name,
        value instanceof Uint8Array ? [...value] : value,
      ]),
    );
  expect(comparable(found)).toEqual(comparable(wanted));
}
