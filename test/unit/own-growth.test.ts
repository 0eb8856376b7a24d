import { describe, expect, test } from "vitest";
import type { LeafHash, LeafIndex, SessionId } from "../../src/core/ids.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import type { CommittedLeaf } from "../../src/pipeline/ports.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { PipelineStage } from "../support/pipeline-stage.ts";
import { newSession } from "../support/memory/records.ts";
import { MemorySessionStore } from "../support/memory/session-store.ts";

const clock = new ManualClock();
const A = "sess-a" as SessionId;
const B = "sess-b" as SessionId;

function leaf(index: number): CommittedLeaf {
  const leafHash = new Uint8Array(32).fill(index) as LeafHash;
  return { index: index as LeafIndex, leafHash, originalBytes: 10, storedBytes: 12 };
}

function indices(leaves: readonly CommittedLeaf[]): readonly number[] {
  return leaves.map(({ index }) => index);
}

/** Of a process that has just grown these sessions' trees. */
async function growthOf(...sessions: readonly SessionId[]): Promise<OwnGrowth> {
  const growth = new OwnGrowth(clock);
  for (const session of sessions) growth.keepHead(await recordOfSize(session, 0));
  return growth;
}

async function recordOfSize(id: SessionId, size: number) {
  const record = await new MemorySessionStore().create(newSession(id));
  return { ...record, tree: { ...record.tree, size } as typeof record.tree };
}

describe("OwnGrowth", () => {
  test("gives out own leaves from the tree's size on, up to a gap or the limit", async () => {
    const growth = await growthOf(A, B);
    for (const index of [5, 3, 4, 7]) growth.committed(A, leaf(index));
    growth.committed(B, leaf(6));
    expect(indices(growth.leavesFrom(A, 3, 10))).toEqual([3, 4, 5]);
    expect(indices(growth.leavesFrom(A, 3, 2))).toEqual([3, 4]);
    expect(indices(growth.leavesFrom(A, 2, 10))).toEqual([]);
    expect(indices(growth.leavesFrom(A, 7, 10))).toEqual([7]);
  });

  test("gives out none for a tree that it hasn't grown, or not for a while", async () => {
    const growth = await growthOf(A);
    growth.committed(A, leaf(0));
    growth.committed(B, leaf(0));
    expect(growth.leavesFrom(B, 0, 10)).toEqual([]);
    clock.advance(250);
    expect(indices(growth.leavesFrom(A, 0, 10))).toEqual([0]);
    clock.advance(1);
    expect(growth.leavesFrom(A, 0, 10)).toEqual([]);
    growth.keepHead(await recordOfSize(A, 0));
    expect(indices(growth.leavesFrom(A, 0, 10))).toEqual([0]);
  });

  test("forgets what the tree has, whoever took it in, and keeps what waits for an earlier leaf", async () => {
    const growth = await growthOf(A);
    for (const index of [0, 1, 4]) growth.committed(A, leaf(index));
    growth.reached(await recordOfSize(A, 2), false);
    expect(indices(growth.leavesFrom(A, 0, 10))).toEqual([]);
    expect(indices(growth.leavesFrom(A, 4, 10))).toEqual([4]);
  });

  test("keeps a bounded number of a session's leaves, and takes more again when some have gone", async () => {
    const growth = await growthOf(A);
    for (let index = 0; index < 2_000; index++) growth.committed(A, leaf(index));
    const kept = growth.leavesFrom(A, 0, 10_000).length;
    expect(kept).toBe(1_024);
    growth.reached(await recordOfSize(A, kept), true);
    growth.committed(A, leaf(kept));
    expect(indices(growth.leavesFrom(A, kept, 10))).toEqual([kept]);
  });

  test("keeps a bounded number of all sessions' leaves: those that wait for a lost chunk make room for a busy session's", async () => {
    const gaps = Array.from({ length: 4 }, (_, count) => `sess-gap-${count}` as SessionId);
    const growth = await growthOf(...gaps, A);
    for (const gap of gaps) for (let index = 1; index <= 1_024; index++) growth.committed(gap, leaf(index));
    for (let index = 0; index < 1_000; index++) growth.committed(A, leaf(index));
    expect(growth.leavesFrom(A, 0, 2_000)).toHaveLength(1_000);
    const left = gaps.map((gap) => growth.leavesFrom(gap, 1, 2_000).length);
    expect(left).toEqual([0, 1_024, 1_024, 1_024]);
    // Whose leaves were forgotten can go on.
    growth.committed(gaps[0] as SessionId, leaf(0));
    expect(indices(growth.leavesFrom(gaps[0] as SessionId, 0, 10))).toEqual([0]);
  });

  test("forgets the session that has gone unused for longest", async () => {
    const growth = await growthOf(A);
    const names = Array.from({ length: 1_024 }, (_, count) => `sess-${count}` as SessionId);
    growth.committed(A, leaf(0));
    for (const [count, name] of names.entries()) {
      growth.committed(name, leaf(0));
      growth.keepHead(await recordOfSize(name, 0));
      growth.committed(A, leaf(count + 1));
    }
    const known = names.filter((name) => growth.leavesFrom(name, 0, 1).length === 1);
    expect(known).toEqual(names.slice(1));
    expect(growth.takeHead(names[0] as SessionId)).toBeUndefined();
    expect(growth.leavesFrom(A, 0, 2_000)).toHaveLength(1_024);
  });

  test("tells once that a tree has grown unread", async () => {
    const growth = new OwnGrowth(clock);
    growth.keepHead(await recordOfSize(A, 0));
    growth.reached(await recordOfSize(A, 1), true);
    growth.reached(await recordOfSize(A, 1), false);
    expect(growth.takeUnread(A)).toBe(true);
    expect(growth.takeUnread(A)).toBe(false);
    expect(growth.takeUnread(B)).toBe(false);
  });
});

describe("a worker that is alone at a busy session", () => {
  test("grows the tree without reading head or leaves", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    stage.calls.length = 0;
    for (const index of [1, 2, 3]) await stage.processFirst(stage.chunkJob(index));
    expect(stage.count("sessions.find")).toBe(0);
    expect(stage.count("chunks.contiguousLeaves")).toBe(0);
    expect(stage.count("sessions.replace")).toBe(3);
    expect(await stage.record()).toMatchObject({ tree: { size: 4 } });
  });

  test("looks once after it has grown the tree, and not again and again", async () => {
    const stage = new PipelineStage();
    for (const index of [0, 1, 2, 3]) await stage.processFirst(stage.chunkJob(index));
    stage.calls.length = 0;
    await stage.rest();
    // Under its own head, and then under the one that it reads, because the first proves nothing.
    expect(stage.count("chunks.contiguousLeaves")).toBe(2);
    expect(stage.count("sessions.find")).toBe(1);
    expect(stage.count("sessions.replace")).toBe(0);
  });
});

describe("a session that gets a chunk now and then", () => {
  test("is read each time, and costs no look", async () => {
    const stage = new PipelineStage();
    await stage.processFirst(stage.chunkJob(0));
    await stage.wait(500);
    stage.calls.length = 0;
    for (const index of [1, 2, 3]) {
      await stage.processFirst(stage.chunkJob(index));
      await stage.wait(500);
    }
    expect(stage.count("chunks.contiguousLeaves")).toBe(3);
    expect(stage.count("sessions.find")).toBe(0);
    expect(stage.count("sessions.replace")).toBe(3);
  });
});

describe("a seal by a run that grew the tree unread", () => {
  test("is not looked at again: a sealed session is closed once", async () => {
    const stage = new PipelineStage();
    await stage.processFirst(stage.chunkJob(0));
    await stage.finalize(3);
    for (const index of [1, 2]) await stage.processFirst(stage.chunkJob(index));
    expect(await stage.record()).toMatchObject({ state: "sealed" });
    const finds = stage.count("sessions.find");
    await stage.wait(2_000);
    expect(stage.count("sessions.find") - finds).toBeLessThanOrEqual(1);
  });
});

describe("a leaf of another worker, committed while the tree grew unread", () => {
  /** Leaf 0 is in the tree; the second worker has committed leaf 2 and found leaf 1 missing; the first then grows by leaf 1, unread. */
  async function leftBehind(): Promise<PipelineStage> {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0));
    await stage.process(stage.chunkJob(2), stage.worker(1));
    await stage.processFirst(stage.chunkJob(1));
    expect(await stage.record()).toMatchObject({ tree: { size: 2 } });
    return stage;
  }

  test("gets into the tree a moment later, without a sweep", async () => {
    const stage = await leftBehind();
    await stage.wait(300);
    expect(await stage.record()).toMatchObject({ tree: { size: 3 } });
  });

  test("gets there the second time as well", async () => {
    const stage = await leftBehind();
    await stage.wait(600);
    await stage.process(stage.chunkJob(3));
    await stage.process(stage.chunkJob(5), stage.worker(1));
    await stage.processFirst(stage.chunkJob(4));
    expect(await stage.record()).toMatchObject({ tree: { size: 5 } });
    await stage.wait(600);
    expect(await stage.record()).toMatchObject({ tree: { size: 6 } });
  });

  test("doesn't keep the session from being sealed", async () => {
    const stage = await leftBehind();
    await stage.finalize(3, stage.worker(1));
    expect(await stage.record()).toMatchObject({ state: "sealed", tree: { size: 3 } });
  });

  test("is taken in by the next run, if there is one", async () => {
    const stage = await leftBehind();
    await stage.processFirst(stage.chunkJob(3));
    expect(await stage.record()).toMatchObject({ tree: { size: 4 } });
  });

  test("is left to the sweepers by a worker that dies", async () => {
    const stage = await leftBehind();
    stage.world.crash(stage.worker(0));
    await stage.rest();
    expect(await stage.record()).toMatchObject({ tree: { size: 2 } });
    // Sessions are swept when they are seen for the second time without having moved.
    for (let sweeps = 0; sweeps < 3; sweeps++) {
      await stage.sweep();
      await stage.wait(100_000);
    }
    expect(await stage.record()).toMatchObject({ tree: { size: 3 } });
  });
});
