import { describe, expect, test } from "vitest";
import { PipelineStage, WorkerDied } from "../support/pipeline-stage.ts";

const NEVER = new AbortController().signal;

function code(value: string): object {
  return expect.objectContaining({ code: value });
}

describe("finalize-session", () => {
  test("before any chunk makes the session, and the last chunk seals it", async () => {
    const stage = new PipelineStage();
    expect(await stage.finalize(2)).toMatchObject({ state: "open", expectedCount: 2, countConfirmed: true });
    await stage.process(stage.chunkJob(1));
    expect(await stage.record()).toMatchObject({ state: "open" });
    await stage.process(stage.chunkJob(0));
    expect(await stage.record()).toMatchObject({ state: "sealed", tree: { size: 2 } });
    expect(stage.events("session.sealed")).toMatchObject([{ tree_size: 2, original_bytes: 14 }]);
  });

  test("after the last chunk seals the session itself", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    expect(await stage.finalize(1)).toMatchObject({ state: "sealed", tree: { size: 1 } });
  });

  test("again with the same count is harmless, before and after the seal", async () => {
    const stage = new PipelineStage();
    await stage.finalize(1);
    expect(await stage.finalize(1)).toMatchObject({ expectedCount: 1 });
    await stage.process(stage.chunkJob(0));
    const sealed = await stage.record();
    expect(await stage.finalize(1)).toMatchObject({ state: "sealed", sealedAt: sealed?.sealedAt });
    expect(stage.events("session.sealed")).toHaveLength(1);
  });

  test("with another count than the confirmed one is a conflict; the first stays", async () => {
    const stage = new PipelineStage();
    await stage.finalize(2);
    await expect(stage.finalize(3)).rejects.toEqual(code("FINALIZE_COUNT_CONFLICT"));
    expect(await stage.record()).toMatchObject({ expectedCount: 2, countConfirmed: true });
  });

  test("with a count below the tree's size is refused, and nothing is proposed", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    await stage.process(stage.chunkJob(1));
    await expect(stage.finalize(1)).rejects.toEqual(code("FINALIZE_COUNT_BELOW_CHUNKS"));
    expect(await stage.record()).toMatchObject({ expectedCount: undefined, state: "open" });
  });

  test("with a count that leaves out a committed chunk beyond a gap is refused, and taken back", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    await stage.process(stage.chunkJob(3));
    await expect(stage.finalize(2)).rejects.toEqual(code("FINALIZE_COUNT_BELOW_CHUNKS"));
    expect(await stage.record()).toMatchObject({ expectedCount: undefined, countConfirmed: false });
    expect(await stage.finalize(4)).toMatchObject({ expectedCount: 4, countConfirmed: true });
  });

  test("isn't refused for a rival's count that committed chunks are about to refute", async () => {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0));
    await stage.process(stage.chunkJob(3));
    // The rival has proposed 2 and dies before it settles that.
    stage.fail("sessions.replace", "crash-after");
    await expect(stage.finalize(2)).rejects.toThrow(WorkerDied);
    expect(await stage.record()).toMatchObject({ expectedCount: 2, countConfirmed: false });
    expect(await stage.finalize(4)).toMatchObject({ expectedCount: 4, countConfirmed: true });
  });

  test("is refused for a rival's count that turns out right", async () => {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0));
    stage.fail("sessions.replace", "crash-after");
    await expect(stage.finalize(2)).rejects.toThrow(WorkerDied);
    await expect(stage.finalize(3)).rejects.toEqual(code("FINALIZE_COUNT_CONFLICT"));
    expect(await stage.record()).toMatchObject({ expectedCount: 2, countConfirmed: true });
  });

  test("that died after proposing is settled by the next chunk", async () => {
    const stage = new PipelineStage();
    stage.fail("sessions.replace", "crash-after");
    await expect(stage.finalize(1)).rejects.toThrow(WorkerDied);
    await stage.rest();
    await stage.process(stage.chunkJob(0));
    expect(await stage.record()).toMatchObject({ state: "sealed" });
  });

  test("that died after proposing is settled by the sweeper", async () => {
    const stage = new PipelineStage();
    stage.fail("sessions.replace", "crash-after");
    await expect(stage.finalize(3)).rejects.toThrow(WorkerDied);
    await stage.rest();
    await stage.sweep();
    expect(await stage.record()).toMatchObject({ expectedCount: 3, countConfirmed: true });
  });

  test.for(["sessions.create", "sessions.replace"] as const)(
    "%s with a lost reply has one effect",
    async (call) => {
      const stage = new PipelineStage();
      stage.fail(call, "reply-lost");
      expect(await stage.finalize(1)).toMatchObject({ expectedCount: 1, countConfirmed: true });
      await stage.process(stage.chunkJob(0));
      expect(await stage.record()).toMatchObject({ state: "sealed" });
    },
  );
});

describe("a chunk beyond the count, committed while it is being settled", () => {
  test("after the look: the count is confirmed and the chunk is taken back unheard", async () => {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0), stage.worker(0));
    // Let in by a record that knows of no count yet.
    const late = stage.chunkJob(2);
    let outcome: Promise<unknown> | undefined;
    stage.once("chunks.beyond", () => {
      outcome = stage.worker(0).pipeline.processChunk(late, NEVER);
      outcome.catch(() => undefined);
    });
    await stage.finalize(2, stage.worker(1));
    await expect(stage.run(outcome ?? Promise.resolve())).rejects.toEqual(code("CHUNK_BEYOND_END"));
    expect(stage.events("chunk.completed")).toHaveLength(1);
    expect(stage.committed(2)).toBeUndefined();
  });

  test("before the look: the chunk stays, and the count is refused", async () => {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0), stage.worker(0));
    let outcome: Promise<unknown> | undefined;
    // After the proposal the finalizing worker stands still for as long as the chunk takes.
    stage.once("sessions.replace", () => {
      stage.worker(1).frozenUntilMs = stage.world.time.nowMs + 500;
      outcome = stage.worker(0).pipeline.processChunk(stage.chunkJob(2), NEVER);
      outcome.catch(() => undefined);
    });
    await expect(stage.finalize(2, stage.worker(1))).rejects.toEqual(code("FINALIZE_COUNT_BELOW_CHUNKS"));
    expect(await stage.run(outcome ?? Promise.resolve())).toMatchObject({ index: 2 });
    expect(stage.events("chunk.completed")).toHaveLength(2);
  });
});
