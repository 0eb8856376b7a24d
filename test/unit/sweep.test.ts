import { describe, expect, test } from "vitest";
import { LucidError } from "../../src/core/errors.ts";
import type { LeafIndex, SessionId } from "../../src/core/ids.ts";
import type { Listed } from "../../src/pipeline/ports.ts";
import { missingRanges } from "../../src/pipeline/sweep.ts";
import { chunk } from "../support/memory/records.ts";
import { PipelineStage, WorkerDied } from "../support/pipeline-stage.ts";

const HOUR_MS = 3_600_000;
/** An event is marked `sent` only after it has been in Redis for 2.5 s; replies take their time too. */
const MARK_DELAY_MS = 3_000;
/** About when the world begins. */
const NOW = new Date("2026-01-02T03:04:05.678Z");

/** A committed chunk that nobody has announced: its worker died right after the commit. */
async function stageWithPendingChunk(): Promise<PipelineStage> {
  const stage = new PipelineStage();
  stage.fail("chunks.insert", "crash-after");
  await expect(stage.process(stage.chunkJob(0))).rejects.toThrow(WorkerDied);
  await stage.rest();
  return stage;
}

function unreadable(id: string, session: string): Listed<never> {
  const read = (): never => {
    throw new LucidError("DOCUMENT_UNREADABLE", "a document has a format this version doesn't know");
  };
  return { id, sessionId: session as SessionId, read };
}

/** A blob without a document: its worker died right before the commit. */
async function stageWithOrphan(): Promise<PipelineStage> {
  const stage = new PipelineStage();
  stage.fail("chunks.insert", "crash-before");
  await expect(stage.process(stage.chunkJob(0))).rejects.toThrow(WorkerDied);
  await stage.rest();
  return stage;
}

describe("the sweep of pending events", () => {
  test("announces what has been pending for eventPendingMs, and not before", async () => {
    const stage = await stageWithPendingChunk();
    const { eventPendingMs } = stage.world.options;
    await stage.sweep();
    await stage.wait(eventPendingMs - 100);
    await stage.sweep();
    expect(stage.events()).toEqual([]);
    await stage.wait(200);
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "sent" });
    expect(await stage.record()).toMatchObject({ tree: { size: 1 } });
  });

  test("an event whose connection broke before Redis had it on disk stays pending, and is announced again", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    stage.world.stores.events.epoch += 1;
    stage.world.stores.events.lose("storage-events");
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "pending" });
    await stage.sweep();
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "sent" });
  });

  test("a Redis that was emptied after the mark gets its events again; one that is as it was doesn't", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    await stage.wait(MARK_DELAY_MS);
    await stage.sweep();
    expect(stage.committed(0)).toMatchObject({ eventState: "sent" });
    stage.world.stores.events.empty();
    await stage.sweep();
    expect(stage.committed(0)).toMatchObject({ eventState: "pending" });
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
    expect(stage.reports.filter(({ kind }) => kind === "redis-lost-data")).toHaveLength(1);
  });

  test("a Redis that was emptied before the mark leaves the event pending, also when a sweep came between the two", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    stage.world.stores.events.empty();
    // It finds nothing marked `sent`, and gives the empty Redis a marker.
    await stage.sweep();
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "pending" });
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "sent" });
  });

  test("a mark that comes after Redis was emptied and swept is taken back", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    const { events, serviceState } = { ...stage.world.stores, serviceState: stage.world.serviceState };
    // Between the look at the marker and the mark: as a worker that was frozen there.
    stage.once("chunks.markSent", async () => {
      events.empty();
      const known = await serviceState.redis();
      const marker = await events.claimMarker("another");
      await serviceState.replaceRedis(known?.marker, { marker, isSettled: false });
    });
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "pending" });
    await stage.sweep();
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
  });

  test("a Redis that is emptied again while its loss is repaired is repaired again", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    await stage.wait(MARK_DELAY_MS);
    stage.world.stores.events.empty();
    stage.once("chunks.reopenEvents", () => stage.world.stores.events.empty());
    await stage.sweep();
    await stage.sweep();
    expect(stage.reports.filter(({ kind }) => kind === "redis-lost-data")).toHaveLength(2);
    expect((await stage.world.serviceState.redis())?.marker).toBe(await stage.world.stores.events.marker());
  });

  test("a mark that comes after all of that, from a worker that died, is found by a second look", async () => {
    const stage = new PipelineStage(2);
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    stage.fail("chunks.markSent", "crash-before");
    await stage.wait(MARK_DELAY_MS);
    stage.world.stores.events.empty();
    await stage.sweep();
    // Now the dead one's command arrives.
    await stage.world.stores.chunks.markSent([{ sessionId: stage.session, index: 0 as LeafIndex }], NOW);
    await stage.sweep();
    await stage.wait(2 * stage.world.options.eventPendingMs);
    await stage.sweep();
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
    expect(await stage.world.serviceState.redis()).toMatchObject({ isSettled: true });
    const losses = (): number => stage.reports.filter(({ kind }) => kind === "redis-lost-data").length;
    expect(losses()).toBe(2);
    await stage.wait(HOUR_MS);
    await stage.sweep();
    expect(losses()).toBe(2);
  });

  test("a worker that stood still over its first look takes no loss for a new installation", async () => {
    const stage = new PipelineStage(2);
    const [late, other] = [stage.worker(0), stage.worker(1)];
    const { events } = stage.world.stores;
    stage.once("events.marker", async () => {
      // It has seen that nothing is known of Redis. Meanwhile another one starts, works, and Redis is emptied.
      const known = await stage.world.serviceState.redis();
      const marker = await events.claimMarker("first");
      await stage.world.serviceState.replaceRedis(known?.marker, { marker, isSettled: true });
      const key = stage.world.wrappedKey(stage.session);
      const id = stage.session;
      await stage.world.stores.sessions.create({ id, hashAlgorithm: "blake3", key, createdAt: NOW });
      await stage.world.stores.chunks.insert(chunk(id, 0, { committedAt: NOW }));
      await stage.world.stores.chunks.markSent([{ sessionId: id, index: 0 as LeafIndex }], NOW);
      events.empty();
    });
    await stage.sweep(late);
    await stage.sweep(other);
    expect(stage.committed(0)).toMatchObject({ eventState: "pending" });
  });

  test("leaves alone what is sent", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    await stage.rest();
    await stage.sweep();
    await stage.wait(HOUR_MS);
    await stage.sweep();
    expect(stage.count("events.publish")).toBe(1);
  });

  test("an event that was told long after its commit is told again after a loss", async () => {
    const stage = await stageWithPendingChunk();
    await stage.sweep();
    await stage.wait(25 * HOUR_MS);
    await stage.sweep();
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(0)).toMatchObject({ eventState: "sent" });
    stage.world.stores.events.empty();
    await stage.sweep();
    await stage.sweep();
    expect(stage.events()).toMatchObject([{ event_id: "chunk.completed.sess-1.0" }]);
  });

  test("a session that can't be read keeps no other from its marks", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    await stage.finalize(1);
    await stage.wait(100);
    const { sessions } = stage.world.stores;
    const find = sessions.find.bind(sessions);
    let refusals = 2;
    sessions.find = async (id) => {
      // The mark's look at the session.
      if (stage.committed(0)?.eventState === "sent" && refusals-- > 0)
        throw new LucidError("DOCUMENT_UNREADABLE", "a newer version's");
      return find(id);
    };
    await stage.wait(MARK_DELAY_MS);
    expect(stage.reports).toContainEqual({ kind: "mark-lost", code: "DOCUMENT_UNREADABLE" });
    expect(stage.committed(0)).toMatchObject({ eventState: "sent" });
    for (let sweeps = 0; sweeps < 3; sweeps++) {
      await stage.sweep();
      await stage.wait(MARK_DELAY_MS);
    }
    expect(await stage.record()).toMatchObject({ sealedEvent: "sent", closed: true });
  });

  test("the event of a seal is marked like that of a chunk: one that Redis lost in its last second is told again", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    await stage.process(stage.chunkJob(0));
    await stage.finalize(1);
    // Closing, which looks at the event too, is over by then.
    await stage.wait(100);
    expect(await stage.record()).toMatchObject({ state: "sealed", sealedEvent: "pending" });
    stage.world.stores.events.epoch += 1;
    stage.world.stores.events.lose("storage-events");
    await stage.wait(MARK_DELAY_MS);
    expect(await stage.record()).toMatchObject({ sealedEvent: "pending", closed: false });
    await stage.sweep();
    expect(stage.events("session.sealed")).toHaveLength(1);
    await stage.wait(MARK_DELAY_MS);
    await stage.sweep();
    await stage.rest();
    expect(await stage.record()).toMatchObject({ sealedEvent: "sent", closed: true });
  });

  test("what is long overdue, such as all that Redis has lost, goes out at once, page by page", async () => {
    const stage = await stageWithPendingChunk();
    const others = 2_500;
    const id = "sess-2" as SessionId;
    const committedAt = new Date("2026-01-01T00:00:00.000Z");
    for (let at = 0; at < others; at++) {
      const eventId = `chunk.completed.${id}.${at}`;
      await stage.world.stores.chunks.insert(chunk(id, at, { committedAt, eventId }));
    }
    const key = stage.world.wrappedKey(id);
    await stage.world.stores.sessions.create({ id, hashAlgorithm: "blake3", key, createdAt: committedAt });
    await stage.sweep();
    const published = stage.events("chunk.completed").filter(({ event_id }) => event_id.includes("sess-2"));
    expect(published).toHaveLength(others);
    expect(stage.reports).toContainEqual({ kind: "events-swept", count: others });
    expect(stage.reports.find(({ kind }) => kind === "outbox")).toMatchObject({ pending: others + 1 });
  });

  test("thousands of events of a session that can't go on keep none of another one's back, and are told of once", async () => {
    const stage = await stageWithPendingChunk();
    const { chunks } = stage.world.stores;
    // Its document is gone, and its id sorts first.
    for (let at = 0; at < 2_100; at++) {
      await chunks.insert(chunk("sess-0" as SessionId, at, { eventId: `chunk.completed.sess-0.${at}` }));
    }
    await stage.sweep();
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events("chunk.completed")).toMatchObject([{ session_id: "sess-1" }]);
    // Once in each of the two passes, not once an event.
    const stuck = stage.reports.filter(({ kind }) => kind === "session-stuck");
    expect(stuck.length).toBeLessThanOrEqual(2);
    expect(stuck[0]).toMatchObject({ sessionId: "sess-0", code: "SESSION_UNKNOWN" });
    expect(stage.reports.findLast(({ kind }) => kind === "outbox")).toMatchObject({ pending: 2_101 });
  });

  test("a chunk's document that can't be read is reported, and holds nothing else up", async () => {
    const stage = await stageWithPendingChunk();
    const { chunks } = stage.world.stores;
    const list = chunks.withPendingEvent.bind(chunks);
    chunks.withPendingEvent = async (after, limit) => [
      unreadable("sess-0:0", "sess-0"),
      ...(await list(after, limit)),
      unreadable("sess-1:7", "sess-1"),
    ];
    await stage.sweep();
    await stage.wait(stage.world.options.eventPendingMs);
    await stage.sweep();
    expect(stage.events("chunk.completed")).toMatchObject([{ session_id: "sess-1" }]);
    for (const sessionId of ["sess-0", "sess-1"]) {
      expect(stage.reports).toContainEqual({ kind: "session-stuck", sessionId, code: "DOCUMENT_UNREADABLE" });
    }
  });
});

describe("the sweep of sessions", () => {
  test("grows a tree that nobody grew, seals and closes", async () => {
    const stage = await stageWithPendingChunk();
    const { chunks, sessions } = stage.world.stores;
    await sessions.replace(stage.session, 0, {
      kind: "propose-count",
      count: 1,
      finalize: { manifestType: "session_recording" },
    });
    await chunks.markSent([{ sessionId: stage.session, index: 0 as LeafIndex }], NOW);
    await stage.sweep();
    await stage.rest();
    await stage.sweep();
    expect(await stage.record()).toMatchObject({ state: "sealed", sealedEvent: "sent", closed: true });
  });

  test("a session's document that can't be read is reported, and holds no other session up", async () => {
    const stage = await stageWithPendingChunk();
    const { sessions } = stage.world.stores;
    const list = sessions.unfinished.bind(sessions);
    sessions.unfinished = async (after, limit) => [
      unreadable("sess-0", "sess-0"),
      ...(await list(after, limit)),
    ];
    await stage.sweep();
    expect(await stage.record()).toMatchObject({ tree: { size: 1 } });
    expect(stage.reports).toContainEqual({
      kind: "session-stuck",
      sessionId: "sess-0",
      code: "DOCUMENT_UNREADABLE",
    });
  });

  test("tells of a gap after gapAlertMs, once for each first missing index", async () => {
    const stage = new PipelineStage();
    const { gapAlertMs } = stage.world.options;
    await stage.process(stage.chunkJob(0));
    await stage.process(stage.chunkJob(3));
    await stage.sweep();
    await stage.wait(gapAlertMs - 100);
    await stage.sweep();
    expect(stage.events("session.gap")).toEqual([]);
    await stage.wait(200);
    await stage.sweep();
    await stage.sweep();
    expect(stage.events("session.gap")).toMatchObject([
      { event_id: "session.gap.sess-1.1", tree_size: 1, missing: [[1, 2]] },
    ]);
    // Filled up to another index, it is a new gap with an age of its own.
    await stage.process(stage.chunkJob(1));
    await stage.sweep();
    expect(stage.events("session.gap")).toHaveLength(1);
    await stage.wait(gapAlertMs);
    await stage.sweep();
    expect(stage.events("session.gap")[1]).toMatchObject({ missing: [[2, 2]] });
  });

  test("tells of chunks missing at an announced end", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    await stage.finalize(3);
    await stage.sweep();
    await stage.wait(stage.world.options.gapAlertMs);
    await stage.sweep();
    expect(stage.events("session.gap")).toMatchObject([{ missing: [[1, 2]] }]);
  });
});

describe("the sweep of blobs", () => {
  test("removes a blob without a document after orphanBlobMs, and not before", async () => {
    const stage = await stageWithOrphan();
    const { orphanBlobMs } = stage.world.options;
    await stage.sweep();
    await stage.wait(orphanBlobMs - 100);
    await stage.sweep();
    expect(await stage.blobIds()).toHaveLength(1);
    await stage.wait(200);
    await stage.sweep();
    expect(await stage.blobIds()).toEqual([]);
    expect(stage.reports).toContainEqual({ kind: "blobs-swept", removed: 1 });
  });

  test("never removes the blob of a committed chunk", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    for (let sweeps = 0; sweeps < 3; sweeps++) {
      await stage.sweep();
      await stage.wait(HOUR_MS);
    }
    expect(await stage.blobIds()).toEqual([stage.committed(0)?.blobId]);
  });

  test("spares every blob at the index of a leaf whose document is gone", async () => {
    const stage = new PipelineStage();
    const kept = await stage.process(stage.chunkJob(0));
    await stage.rest();
    const { chunks, blobs } = stage.world.stores;
    await blobs.insert("sess-1:1:aa", { sessionId: stage.session, index: 1 as LeafIndex }, new Uint8Array(1));
    await chunks.withdraw(kept, kept.blobId);
    await stage.sweep();
    await stage.wait(stage.world.options.orphanBlobMs);
    await stage.sweep();
    expect(await stage.blobIds()).toEqual([kept.blobId]);
  });

  test("counts the age of a blob anew when it was gone for a whole sweep", async () => {
    const stage = await stageWithOrphan();
    const { blobs } = stage.world.stores;
    const [id] = await stage.blobIds();
    const owner = { sessionId: stage.session, index: 0 as LeafIndex };
    await stage.sweep();
    await blobs.remove([id ?? ""]);
    await stage.sweep();
    await stage.wait(stage.world.options.orphanBlobMs);
    // An insert that was given up, and arrives now.
    await blobs.insert(id ?? "", owner, new Uint8Array(3));
    await stage.sweep();
    expect(await stage.blobIds()).toEqual([id]);
    await stage.wait(stage.world.options.orphanBlobMs);
    await stage.sweep();
    expect(await stage.blobIds()).toEqual([]);
  });

  test("goes past a page that is shorter than asked for: the store passes over foreign ids", async () => {
    const stage = new PipelineStage();
    const { blobs } = stage.world.stores;
    for (const index of [0, 1, 2, 3]) {
      const owner = { sessionId: stage.session, index: index as LeafIndex };
      await blobs.insert(`sess-1:${index}:aa`, owner, new Uint8Array(1));
    }
    const page = blobs.page.bind(blobs);
    blobs.page = (after) => page(after, 2);
    await stage.sweep();
    await stage.wait(stage.world.options.orphanBlobMs);
    await stage.sweep();
    expect(await stage.blobIds()).toEqual([]);
  });
});

test.for([HOUR_MS, -HOUR_MS])(
  "a wall clock that steps by %d ms makes nothing older or younger",
  async (stepMs) => {
    const stage = await stageWithOrphan();
    await stage.process(stage.chunkJob(1));
    stage.fail("chunks.insert", "crash-after");
    await expect(stage.process(stage.chunkJob(2))).rejects.toThrow(WorkerDied);
    await stage.rest();
    await stage.sweep();
    stage.worker().wallSkewMs = stepMs;
    await stage.sweep();
    // Forward, an event that is on its way may be added a second time, under its id.
    if (stepMs < 0) expect(stage.count("events.publish")).toBe(1);
    expect(stage.events("chunk.completed").length).toBeLessThanOrEqual(2);
    expect(stage.events("session.gap")).toEqual([]);
    expect(await stage.blobIds()).toHaveLength(3);
    // All three are due by now, whatever the wall clock says.
    await stage.wait(stage.world.options.orphanBlobMs);
    await stage.sweep();
    await stage.wait(MARK_DELAY_MS);
    expect(stage.committed(2)).toMatchObject({ eventState: "sent" });
    expect(stage.events("session.gap")).toMatchObject([{ missing: [[0, 0]] }]);
    expect(await stage.blobIds()).toHaveLength(2);
  },
);

test("a session that can't go on doesn't keep the others from being swept", async () => {
  const stage = await stageWithPendingChunk();
  const { chunks } = stage.world.stores;
  // A chunk whose session's document is gone; its id sorts first, and it was committed first.
  await chunks.insert(chunk("sess-0" as typeof stage.session, 0));
  await stage.sweep();
  await stage.wait(stage.world.options.eventPendingMs);
  await stage.sweep();
  expect(stage.events("chunk.completed")).toMatchObject([{ session_id: "sess-1" }]);
  expect(stage.reports).toContainEqual({
    kind: "session-stuck",
    sessionId: "sess-0",
    code: "SESSION_UNKNOWN",
  });
});

describe("missingRanges", () => {
  const later = (...indexes: readonly number[]) => indexes.map((index) => chunk("sess-1" as never, index));

  test("names what is absent before the last known chunk, lowest first", () => {
    expect(missingRanges(2, later(4, 5, 8), undefined)).toEqual([
      [2, 3],
      [6, 7],
    ]);
  });

  test("names the tail up to an announced count", () => {
    expect(missingRanges(2, later(4), 7)).toEqual([
      [2, 3],
      [5, 6],
    ]);
    expect(missingRanges(2, [], 3)).toEqual([[2, 2]]);
  });

  test("is empty where nothing is missing", () => {
    expect(missingRanges(3, [], undefined)).toEqual([]);
    expect(missingRanges(3, [], 3)).toEqual([]);
    expect(missingRanges(3, later(3, 4), 5)).toEqual([]);
  });

  test("names at most 100 ranges", () => {
    const everySecond = later(...Array.from({ length: 150 }, (_, at) => 2 * at + 1));
    expect(missingRanges(0, everySecond, 1_000)).toHaveLength(100);
  });

  test("says nothing about what follows a full window", () => {
    const window = later(...Array.from({ length: 1_000 }, (_, at) => at + 1));
    expect(missingRanges(0, window, 5_000)).toEqual([[0, 0]]);
  });
});
