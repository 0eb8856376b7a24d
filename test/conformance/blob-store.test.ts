import { randomBytes } from "node:crypto";
import { describe, expect, test } from "vitest";
import type { LeafIndex, SessionId } from "../../src/core/ids.ts";
import { bytesOf, chunk } from "../support/memory/records.ts";
import { testServers } from "../support/servers.ts";
import { describeStores } from "./stores.ts";

const MIB = 1024 * 1024;
const owner = (sessionId: SessionId, index = 0) => ({ sessionId, index: index as LeafIndex });

describe("BlobStore", () => {
  describeStores(testServers(), ({ first, second, session }) => {
    test("an absent blob is not found", async () => {
      expect(await first().blobs.read(`${session()}:0:a`)).toBeUndefined();
    });

    test.each([1, 16, 17, 4_096, 128 * 1024, 128 * 1024 + 1, MIB + 60, 5 * MIB])(
      "a blob of %i bytes comes back as it is",
      async (length) => {
        const id = `${session()}:0:a`;
        const blob = new Uint8Array(randomBytes(length));
        await first().blobs.insert(id, owner(id.split(":")[0] as SessionId), blob);
        const read = await second().blobs.read(id);
        expect(read).toBeInstanceOf(Uint8Array);
        expect(read?.byteLength).toBe(length);
        // Also that the caller still has its bytes: an attempt that was frozen inserts them again.
        expect(blob.byteLength).toBe(length);
        expect(Buffer.compare(read ?? new Uint8Array(), blob)).toBe(0);
      },
    );

    test("a view into a larger buffer is stored as that view only", async () => {
      const sessionId = session();
      const whole = new Uint8Array(randomBytes(1_000));
      const view = whole.subarray(100, 300);
      await first().blobs.insert(`${sessionId}:0:a`, owner(sessionId), view);
      expect([...((await first().blobs.read(`${sessionId}:0:a`)) ?? [])]).toEqual([...view]);
    });

    test("the same id again succeeds and the bytes stay", async () => {
      const sessionId = session();
      const id = `${sessionId}:0:a`;
      await first().blobs.insert(id, owner(sessionId), bytesOf(1, 100));
      await first().blobs.insert(id, owner(sessionId), bytesOf(1, 100));
      await second().blobs.insert(id, owner(sessionId), bytesOf(2, 100));
      expect([...((await first().blobs.read(id)) ?? [])]).toEqual([...bytesOf(1, 100)]);
    });

    test("many inserts at once all arrive, also beside one that is there already", async () => {
      const sessionId = session();
      await first().blobs.insert(`${sessionId}:3:a`, owner(sessionId, 3), bytesOf(3, 4_096));
      const indexes = Array.from({ length: 60 }, (_, index) => index);
      await Promise.all(
        indexes.map((index) =>
          first().blobs.insert(`${sessionId}:${index}:a`, owner(sessionId, index), bytesOf(index, 4_096)),
        ),
      );
      const read = await Promise.all(indexes.map((index) => second().blobs.read(`${sessionId}:${index}:a`)));
      expect(read.map((blob) => blob?.[4_095])).toEqual(indexes);
    });

    test("an id that does not name its owner is refused and not stored", async () => {
      const sessionId = session();
      for (const id of [`${sessionId}:1:a`, `${sessionId}x:0:a`, "a", `${sessionId}:0`]) {
        await expect(first().blobs.insert(id, owner(sessionId), bytesOf(1))).rejects.toThrow(
          "a blob id must be",
        );
        expect(await first().blobs.read(id)).toBeUndefined();
      }
    });

    test("removed blobs are gone, others stay, and removing again is harmless", async () => {
      const sessionId = session();
      const ids = ["a", "b", "c"].map((attempt) => `${sessionId}:0:${attempt}`);
      for (const id of ids) await first().blobs.insert(id, owner(sessionId), bytesOf(1));
      await first().blobs.remove(ids.slice(0, 2));
      await first().blobs.remove(ids.slice(0, 2));
      await first().blobs.remove([]);
      const left = await Promise.all(ids.map((id) => second().blobs.read(id)));
      expect(left.map((blob) => blob !== undefined)).toEqual([false, false, true]);
    });

    test("existing names those ids that are stored, and no others", async () => {
      const sessionId = session();
      const ids = Array.from({ length: 1_200 }, (_, index) => `${sessionId}:${index}:a`);
      for (const index of [0, 7, 1_199]) {
        await first().blobs.insert(`${sessionId}:${index}:a`, owner(sessionId, index), bytesOf(1));
      }
      const present = await second().blobs.existing([...ids, `${sessionId}:0:b`, "no such form"]);
      expect([...present].toSorted()).toEqual([0, 1_199, 7].map((index) => `${sessionId}:${index}:a`));
      expect((await first().blobs.existing([])).size).toBe(0);
    });

    test("pages list the ids in order with owner and committed blob", async () => {
      const sessionId = `zzz-${session()}` as SessionId;
      await first().chunks.insert(chunk(sessionId, 0, { blobId: `${sessionId}:0:b` }));
      for (const id of [`${sessionId}:7:a`, `${sessionId}:0:b`, `${sessionId}:0:a`]) {
        await first().blobs.insert(id, owner(sessionId, Number(id.split(":")[1])), bytesOf(1));
      }
      const entries = [
        { id: `${sessionId}:0:a`, owner: owner(sessionId, 0), committedBlobId: `${sessionId}:0:b` },
        { id: `${sessionId}:0:b`, owner: owner(sessionId, 0), committedBlobId: `${sessionId}:0:b` },
        { id: `${sessionId}:7:a`, owner: owner(sessionId, 7), committedBlobId: undefined },
      ];
      expect(await second().blobs.page(sessionId, 10)).toEqual(entries);
      expect(await second().blobs.page(sessionId, 2)).toEqual(entries.slice(0, 2));
      expect(await second().blobs.page(entries[1]?.id, 2)).toEqual(entries.slice(2));
      expect(await second().blobs.page(entries[2]?.id, 2)).toEqual([]);
      expect(await second().blobs.page(sessionId, 0)).toEqual([]);
    });

    test("the first page starts at the lowest id", async () => {
      const sessionId = `0-${session()}` as SessionId;
      await first().blobs.insert(`${sessionId}:0:a`, owner(sessionId), bytesOf(1));
      expect((await first().blobs.page(undefined, 1)).map(({ id }) => id)).toEqual([`${sessionId}:0:a`]);
    });
  });
});
