import { describe, expect, test } from "vitest";
import { chunkHandlersOf } from "../../src/chunk-handlers.ts";
import { toHex } from "../../src/core/bytes.ts";
import { PipelineStage } from "../support/pipeline-stage.ts";

const { signal } = new AbortController();

function handed(isFirstDelivery: boolean) {
  return { jobId: "7", attempt: 1, isFirstDelivery, signal };
}

describe("what the queue of chunks asks of the pipeline", () => {
  test.each([
    ["for the first time is not looked for before it is stored", true],
    ["again is looked for first", false],
  ])("a chunk whose job is handed out %s", async (_, isFirst) => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const looks = stage.count("chunks.find");
    const { process } = chunkHandlersOf(stage.worker().pipeline);
    const job = stage.chunkJob(1);
    const result = await stage.run(process({ kind: "chunk", job }, handed(isFirst)));
    expect(stage.count("chunks.find") - looks).toBe(isFirst ? 0 : 1);
    const chunk = stage.committed(1);
    expect(result).toEqual({
      chunk_id: job.chunkId,
      chunk_index: 1,
      leaf_hash: toHex(chunk?.leafHash ?? new Uint8Array()),
      stored_bytes: chunk?.storedBytes,
    });
  });

  test("a job that is about to fail is done with the chunk that is committed", async () => {
    const stage = new PipelineStage();
    const { process, standing } = chunkHandlersOf(stage.worker().pipeline);
    const task = { kind: "chunk", job: stage.chunkJob(0) } as const;
    expect(await stage.run(standing(task, handed(false)))).toEqual({ kind: "none" });
    const result = await stage.run(process(task, handed(true)));
    expect(await stage.run(standing(task, handed(false)))).toEqual({ kind: "done", result });
  });
});
