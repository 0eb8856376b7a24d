import { describe, expect, test } from "vitest";
import type { NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import type { SessionChange } from "../../src/pipeline/ports.ts";
import type { FinalizeDetails } from "../../src/schema/record.ts";
import { bytesOf, newSession, treeHead } from "../support/memory/records.ts";
import { testServers } from "../support/servers.ts";
import { describeStores } from "./stores.ts";

const RACERS = 50;
const hostileText = String.raw`{"$where":"sleep(1e9)","__proto__":{"x":1},"a.b":"\u0000","c":"Ω𝄞"}`;
const details: FinalizeDetails = {
  manifestType: "session_recording",
  ownerAddress: "TOwner",
  startedAt: "2026-01-01T00:00:00Z",
  endedAt: "2026-01-01T01:00:00Z",
  metadata: hostileText,
};
const grow = (size: number): SessionChange => ({
  kind: "grow",
  tree: treeHead(size),
  addedOriginalBytes: 100,
  addedStoredBytes: 60,
});
const sealedAt = new Date("2026-01-02T00:00:00.123Z");

describe("SessionStore", () => {
  describeStores(testServers(), ({ first, second, session }) => {
    test("a session that was never created is not found", async () => {
      expect(await first().sessions.find(session())).toBeUndefined();
    });

    test("a created session is open and empty, and is found with every field", async () => {
      const id = session();
      const created = await first().sessions.create(newSession(id, { hashAlgorithm: "sha256" }));
      expect(created).toEqual({
        id,
        state: "open",
        hashAlgorithm: "sha256",
        version: 0,
        tree: { size: 0, frontier: [], root: undefined },
        totals: { originalBytes: 0, storedBytes: 0 },
        roomCounted: false,
        expectedCount: undefined,
        countConfirmed: false,
        finalize: undefined,
        keys: [{ keyVersion: 1, kekVersion: 1, wrapped: bytesOf(7, 60) }],
        createdAt: newSession(id).createdAt,
        sealedAt: undefined,
        sealedEvent: undefined,
        checkpoint: undefined,
        anchor: undefined,
        anchoredEvent: undefined,
        closed: false,
      });
      expect(plain(await second().sessions.find(id))).toEqual(plain(created));
    });

    test("a second create returns the session that was first", async () => {
      const id = session();
      await first().sessions.create(newSession(id));
      const other = { keyVersion: 1, kekVersion: 9, wrapped: bytesOf(9, 60) };
      const again = await second().sessions.create(newSession(id, { key: other, hashAlgorithm: "sha256" }));
      expect(again.hashAlgorithm).toBe("blake3");
      expect(plain(again.keys)).toEqual(plain([newSession(id).key]));
    });

    test("racing creates all return one and the same key", async () => {
      const id = session();
      const racing = Array.from({ length: RACERS }, (_, racer) => {
        const key = { keyVersion: 1, kekVersion: 1, wrapped: bytesOf(racer, 60) };
        return (racer % 2 === 0 ? first() : second()).sessions.create(newSession(id, { key }));
      });
      const keys = (await Promise.all(racing)).map((record) => record.keys[0]?.wrapped[0]);
      expect(new Set(keys).size).toBe(1);
    });

    test("grow replaces the tree, adds to the totals and raises the version", async () => {
      const id = session();
      const { version } = await first().sessions.create(newSession(id));
      expect(await first().sessions.replace(id, version, grow(3))).toBe("replaced");
      expect(await first().sessions.replace(id, version + 1, grow(5))).toBe("replaced");
      const grown = await second().sessions.find(id);
      expect(grown?.version).toBe(version + 2);
      expect(plain(grown?.tree)).toEqual(plain(treeHead(5)));
      expect(grown?.totals).toEqual({ originalBytes: 200, storedBytes: 120 });
    });

    test("totals and sizes beyond 2^31 and 2^32 stay exact", async () => {
      const id = session();
      await first().sessions.create(newSession(id));
      const large = 3_000_000_001;
      for (const [version, size] of [2 ** 31 - 1, 2 ** 31, 2 ** 32].entries()) {
        const change = { ...grow(size), addedOriginalBytes: large, addedStoredBytes: 2 ** 31 - 1 };
        expect(await first().sessions.replace(id, version, change)).toBe("replaced");
      }
      const record = await first().sessions.find(id);
      expect(record?.tree.size).toBe(2 ** 32);
      expect(record?.totals).toEqual({ originalBytes: 3 * large, storedBytes: 3 * (2 ** 31 - 1) });
    });

    test("replace with another version is a conflict and changes nothing", async () => {
      const id = session();
      await first().sessions.create(newSession(id));
      await first().sessions.replace(id, 0, grow(1));
      const before = await first().sessions.find(id);
      for (const version of [0, 2, -1]) {
        expect(await first().sessions.replace(id, version, grow(9))).toBe("conflict");
      }
      expect(plain(await first().sessions.find(id))).toEqual(plain(before));
    });

    test("replace of an unknown session is a conflict and creates nothing", async () => {
      const id = session();
      expect(await first().sessions.replace(id, 0, grow(1))).toBe("conflict");
      expect(await first().sessions.find(id)).toBeUndefined();
    });

    test("the same replace applied twice has one effect", async () => {
      const id = session();
      await first().sessions.create(newSession(id));
      await first().sessions.replace(id, 0, grow(1));
      expect(await first().sessions.replace(id, 0, grow(1))).toBe("conflict");
      expect((await first().sessions.find(id))?.totals.originalBytes).toBe(100);
    });

    test("of 50 racing replaces of one version one wins", async () => {
      const id = session();
      await first().sessions.create(newSession(id));
      for (let version = 0; version < 3; version++) {
        const racing = Array.from({ length: RACERS }, (_, racer) =>
          (racer % 2 === 0 ? first() : second()).sessions.replace(id, version, grow(racer + 1)),
        );
        const outcomes = await Promise.all(racing);
        expect(outcomes.filter((outcome) => outcome === "replaced")).toHaveLength(1);
        const record = await first().sessions.find(id);
        expect(record?.version).toBe(version + 1);
        expect(record?.tree.size).toBe(outcomes.indexOf("replaced") + 1);
      }
    });

    test("a session's room is counted from when it is said to be, and stays so", async () => {
      const id = session();
      const { sessions } = first();
      await sessions.create(newSession(id));
      expect(await second().sessions.find(id)).toMatchObject({ roomCounted: false });
      expect(await sessions.replace(id, 0, { kind: "count-room" })).toBe("replaced");
      await sessions.replace(id, 1, grow(1));
      expect(await second().sessions.find(id)).toMatchObject({ roomCounted: true, version: 2 });
    });

    test("a count is proposed with its details, confirmed, and withdrawn again", async () => {
      const id = session();
      const { sessions } = first();
      await sessions.create(newSession(id));
      await sessions.replace(id, 0, { kind: "propose-count", count: 2 ** 32, finalize: details });
      expect(await sessions.find(id)).toMatchObject({
        expectedCount: 2 ** 32,
        countConfirmed: false,
        finalize: details,
      });
      await sessions.replace(id, 1, { kind: "confirm-count" });
      expect(await sessions.find(id)).toMatchObject({ expectedCount: 2 ** 32, countConfirmed: true });
      await sessions.replace(id, 2, { kind: "withdraw-count" });
      expect(await sessions.find(id)).toMatchObject({
        expectedCount: undefined,
        countConfirmed: false,
        finalize: undefined,
        version: 3,
      });
    });

    test("details that were not given stay absent", async () => {
      const id = session();
      await first().sessions.create(newSession(id));
      const finalize = { manifestType: "session_data" };
      await first().sessions.replace(id, 0, { kind: "propose-count", count: 1, finalize });
      expect((await first().sessions.find(id))?.finalize).toStrictEqual(finalize);
    });

    test("seal sets state, time and a pending event; the event is then marked sent", async () => {
      const id = session();
      const { sessions } = first();
      await sessions.create(newSession(id));
      await sessions.replace(id, 0, grow(4));
      expect(await sessions.replace(id, 1, { kind: "seal", at: sealedAt })).toBe("replaced");
      const sealed = await sessions.find(id);
      expect(sealed).toMatchObject({ state: "sealed", sealedAt, sealedEvent: "pending", version: 2 });
      expect(sealed?.tree.size).toBe(4);
      expect(await sessions.replace(id, 2, { kind: "sealed-event-sent" })).toBe("replaced");
      expect(await sessions.find(id)).toMatchObject({ state: "sealed", sealedEvent: "sent", version: 3 });
    });

    test("reopening makes the sent events of a session pending, and opens it", async () => {
      const { sessions } = first();
      const id = session();
      await sessions.create(newSession(id));
      const changes = [
        { kind: "seal", at: sealedAt },
        { kind: "sealed-event-sent" },
        { kind: "closed" },
      ] as const;
      for (const [version, change] of changes.entries()) await sessions.replace(id, version, change);
      expect(await second().sessions.reopenEvents(id)).toBe(1);
      expect(await sessions.find(id)).toMatchObject({ sealedEvent: "pending", closed: false });
      expect(await sessions.replace(id, 3, { kind: "closed" })).toBe("conflict");
      expect(await sessions.reopenEvents(session())).toBe(0);
    });

    test("reopening makes a mark that is under way meet a conflict, and leaves open sessions alone", async () => {
      const { sessions } = first();
      const [sealed, open] = [session(), session()];
      for (const id of [sealed, open]) await sessions.create(newSession(id));
      await sessions.replace(sealed, 0, { kind: "seal", at: sealedAt });
      for (const id of [sealed, open]) expect(await second().sessions.reopenEvents(id)).toBe(0);
      expect(await sessions.replace(sealed, 1, { kind: "sealed-event-sent" })).toBe("conflict");
      expect(await sessions.find(sealed)).toMatchObject({ sealedEvent: "pending", version: 2 });
      expect(await sessions.find(open)).toMatchObject({ version: 0 });
    });

    test("those active since then are not closed, or were sealed or anchored since, by id, in pages", async () => {
      const { sessions } = first();
      const prefix = `zy-${session()}`;
      const since = new Date("2030-01-01T00:00:00.000Z");
      const [open, older, sealed] = ["a", "b", "c"].map((letter) => `${prefix}${letter}`) as [
        SessionId,
        SessionId,
        SessionId,
      ];
      for (const id of [sealed, older, open]) await sessions.create(newSession(id));
      await sessions.replace(older, 0, { kind: "seal", at: new Date(since.getTime() - 1) });
      await sessions.replace(older, 1, { kind: "closed" });
      await sessions.replace(sealed, 0, { kind: "seal", at: since });
      await sessions.replace(sealed, 1, { kind: "closed" });
      const after = prefix as SessionId;
      expect((await sessions.activeSince(since, after, 2)).slice(0, 2)).toEqual([open, sealed]);
      expect(await sessions.activeSince(since, after, 1)).toEqual([open]);
      expect(await sessions.activeSince(since, open, 1)).toEqual([sealed]);
      expect(await sessions.activeSince(since, undefined, 0)).toEqual([]);
      const anchored = { kind: "anchored", transaction: "t", block: 1, at: since } as const;
      await sessions.replace(older, 2, anchored);
      expect(await sessions.activeSince(since, open, 1)).toEqual([older]);
    });

    test("many finds at once each get their own session", async () => {
      const ids = Array.from({ length: 20 }, () => session());
      for (const id of ids.slice(0, 10)) await first().sessions.create(newSession(id));
      const found = await Promise.all([...ids, ...ids].map((id) => first().sessions.find(id)));
      expect(found.slice(0, 10).map((record) => record?.id)).toEqual(ids.slice(0, 10));
      expect(found.slice(10, 20).every((record) => record === undefined)).toBe(true);
      expect(found.slice(20, 30).map((record) => record?.id)).toEqual(ids.slice(0, 10));
    });

    test("a checkpoint, and an anchoring from claim to event, are kept with every field", async () => {
      const { sessions } = first();
      const id = session();
      await sessions.create(newSession(id));
      const checkpoint = { size: 3 as TreeSize, root: bytesOf(5, 32) as NodeHash, note: "note\n" };
      const at = new Date("2026-01-02T03:05:00.000Z");
      const changes: readonly SessionChange[] = [
        { kind: "checkpoint", checkpoint },
        { kind: "seal", at: sealedAt },
        { kind: "anchor-claimed", claim: "c1" },
        { kind: "anchor-submitted", anchoringId: "a1" },
        { kind: "anchored", transaction: "t1", block: 7, at },
        { kind: "anchored-event-sent" },
      ];
      for (const [version, change] of changes.entries()) {
        expect(await sessions.replace(id, version, change)).toBe("replaced");
      }
      const found = await second().sessions.find(id);
      expect(found).toMatchObject({
        state: "anchored",
        anchoredEvent: "sent",
        anchor: {
          status: "confirmed",
          claim: "c1",
          anchoringId: "a1",
          transaction: "t1",
          block: 7,
          anchoredAt: at,
        },
      });
      expect(plain(found?.checkpoint)).toEqual(plain(checkpoint));
    });

    test("ids lists all sessions, closed or not, in order and in pages", async () => {
      const { sessions } = first();
      const prefix = `zy-${session()}`;
      const [a, b, c] = ["a", "b", "c"].map((letter) => `${prefix}${letter}`) as [
        SessionId,
        SessionId,
        SessionId,
      ];
      for (const id of [c, a, b]) await sessions.create(newSession(id));
      await sessions.replace(b, 0, { kind: "seal", at: sealedAt });
      await sessions.replace(b, 1, { kind: "closed" });
      const after = prefix as SessionId;
      expect((await second().sessions.ids(after, 3)).slice(0, 3)).toEqual([a, b, c]);
      expect(await second().sessions.ids(after, 2)).toEqual([a, b]);
      expect((await second().sessions.ids(b, 1))[0]).toBe(c);
      expect(await sessions.ids(after, 0)).toEqual([]);
      expect(await sessions.ids("zzzz" as SessionId, 5)).toEqual([]);
      expect(await sessions.ids(undefined, 1)).toHaveLength(1);
    });

    test("newest lists the sessions that were made last, newest first", async () => {
      const { sessions } = first();
      const made = ["c", "a", "b"].map((letter) => `zx-${session()}${letter}` as SessionId);
      for (const id of made) await sessions.create(newSession(id));
      expect(await second().sessions.newest(3)).toEqual(made.toReversed());
      expect(await sessions.newest(1)).toEqual(made.slice(2));
      expect(await sessions.newest(0)).toEqual([]);
    });

    test("unfinished lists sessions that are not closed, by id, in pages", async () => {
      const { sessions } = first();
      const prefix = `zz-${session()}`;
      const [open, pending, closed, open2] = ["a", "b", "c", "d"].map((letter) => `${prefix}${letter}`) as [
        SessionId,
        SessionId,
        SessionId,
        SessionId,
      ];
      for (const id of [open2, closed, pending, open]) await sessions.create(newSession(id));
      for (const id of [pending, closed]) await sessions.replace(id, 0, { kind: "seal", at: sealedAt });
      await sessions.replace(closed, 1, { kind: "closed" });
      const after = "zz" as SessionId;
      expect((await sessions.unfinished(after, 100)).map(({ id }) => id)).toEqual([open, pending, open2]);
      expect((await sessions.unfinished(after, 2)).map(({ id }) => id)).toEqual([open, pending]);
      expect((await sessions.unfinished(pending, 2)).map(({ id }) => id)).toEqual([open2]);
      expect(await sessions.unfinished(open2, 2)).toEqual([]);
      expect(await sessions.unfinished(after, 0)).toEqual([]);
      expect((await sessions.unfinished(undefined, 1)).length).toBe(1);
    });
  });
});

/** A store may return Buffers: they are Uint8Arrays, but their class differs. */
function plain(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (_key, inner: unknown) =>
      inner !== null &&
      typeof inner === "object" &&
      "type" in inner &&
      inner.type === "Buffer" &&
      "data" in inner
        ? inner.data
        : inner instanceof Uint8Array
          ? [...inner]
          : inner,
    ) ?? "null",
  );
}
