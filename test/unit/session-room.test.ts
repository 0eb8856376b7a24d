import { describe, expect, test } from "vitest";
import { LEAF_INDEX_MAX } from "../../src/core/ids.ts";
import { PipelineStage } from "../support/pipeline-stage.ts";

/** Chunks of this many bytes at most, and room for ten of the largest. */
const CHUNK_BYTES_MAX = 16;
const SESSION_BYTES_MAX = 160;
const LARGEST = "x".repeat(CHUNK_BYTES_MAX);

function stageOf(workers = 1): PipelineStage {
  return new PipelineStage(workers, { chunkBytesMax: CHUNK_BYTES_MAX, sessionBytesMax: SESSION_BYTES_MAX });
}

const tooLarge = expect.objectContaining({ code: "SESSION_TOO_LARGE" });
const largest = (stage: PipelineStage, index: number) => stage.chunkJob(index, { text: LARGEST });

async function committedBytes(stage: PipelineStage): Promise<number> {
  return stage.world.stores.chunks.originalBytesFrom(stage.session, 0);
}

describe("MAX_SESSION_SIZE", () => {
  test("counts chunks that wait for an earlier one", async () => {
    const stage = stageOf();
    for (let index = 1; index <= 10; index++) await stage.process(largest(stage, index));
    for (const index of [11, 0, 500]) {
      await expect(stage.process(largest(stage, index))).rejects.toEqual(tooLarge);
    }
    expect(await committedBytes(stage)).toBe(SESSION_BYTES_MAX);
    expect(stage.committed(0)).toBeUndefined();
  });

  test("counts a chunk far ahead for the chunks near the tree, also at another worker that knows the session", async () => {
    const stage = stageOf(2);
    const [near, far] = [stage.worker(0), stage.worker(1)];
    await stage.process(largest(stage, 0), near);
    for (let index = 1_000; index < 1_009; index++) await stage.process(largest(stage, index), far);
    // The last that it has heard of the session is that there is room; its next chunk in the tree tells it more.
    await stage.process(largest(stage, 1), near);
    await expect(stage.process(largest(stage, 2), near)).rejects.toEqual(tooLarge);
    expect(await committedBytes(stage)).toBe(SESSION_BYTES_MAX + CHUNK_BYTES_MAX);
  });

  test("is checked also for the chunk that begins its session", async () => {
    const stage = stageOf();
    await stage.process(largest(stage, LEAF_INDEX_MAX));
    for (let index = 0; index < 9; index++) await stage.process(largest(stage, index));
    await expect(stage.process(largest(stage, 9))).rejects.toEqual(tooLarge);
    expect(await committedBytes(stage)).toBe(SESSION_BYTES_MAX);
  });

  test("takes small chunks up to the last byte, in any order, however large they might have been", async () => {
    const stage = stageOf();
    const indexes = Array.from({ length: SESSION_BYTES_MAX }, (_, index) => SESSION_BYTES_MAX - 1 - index);
    for (const index of indexes) await stage.process(stage.chunkJob(index, { text: "b" }));
    const record = await stage.record();
    expect(record).toMatchObject({
      totals: { originalBytes: SESSION_BYTES_MAX },
      tree: { size: SESSION_BYTES_MAX },
    });
    await expect(stage.process(stage.chunkJob(SESSION_BYTES_MAX, { text: "b" }))).rejects.toEqual(tooLarge);
  });

  test("doesn't refuse a chunk that is among the counted ones", async () => {
    const stage = stageOf();
    for (let index = 1; index <= 10; index++) await stage.process(largest(stage, index));
    expect(await stage.process(largest(stage, 10))).toMatchObject({ index: 10 });
  });

  test("costs nothing while the index vouches for the room", async () => {
    const stage = stageOf();
    for (let index = 0; index < 9; index++) await stage.process(largest(stage, index));
    expect(stage.count("chunks.originalBytesFrom")).toBe(0);
    expect(await stage.record()).toMatchObject({ roomCounted: false });
  });

  test("costs two sums at most for all chunks that come at one time", async () => {
    const stage = stageOf();
    await stage.process(stage.chunkJob(1_000, { text: "b" }));
    const before = stage.count("chunks.originalBytesFrom");
    await stage.run(
      Promise.all([0, 1, 2, 3, 4].map((index) => stage.process(stage.chunkJob(index, { text: "b" })))),
    );
    expect(stage.count("chunks.originalBytesFrom") - before).toBeLessThanOrEqual(2);
  });

  test("of chunks at the same time lets too many in, but none once they are committed", async () => {
    const stage = stageOf();
    for (let index = 1; index <= 9; index++) await stage.process(largest(stage, index));
    const racing = [10, 11, 12].map((index) => stage.process(largest(stage, index)));
    const outcomes = await stage.run(Promise.allSettled(racing));
    expect(outcomes.filter(({ status }) => status === "fulfilled").length).toBeGreaterThan(0);
    await expect(stage.process(largest(stage, 13))).rejects.toEqual(tooLarge);
  });

  test.each(["refused", "reply-lost", "ghost"] as const)(
    "is counted whatever becomes of the write that says so: %s",
    async (fault) => {
      const stage = stageOf();
      await stage.process(largest(stage, 0));
      stage.fail("sessions.replace", fault);
      await stage.process(largest(stage, 1_000));
      expect(await stage.record()).toMatchObject({ roomCounted: true });
      expect(stage.committed(1_000)).toBeDefined();
    },
  );
});
