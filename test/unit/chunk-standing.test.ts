import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import type { ChunkId, LeafHash, LeafIndex } from "../../src/core/ids.ts";
import type { NamedChunk } from "../../src/pipeline/chunk-standing.ts";
import type { ChunkTask } from "../../src/pipeline/parse-job.ts";
import type { ChunkJob } from "../../src/pipeline/ports.ts";
import { PipelineStage } from "../support/pipeline-stage.ts";

const NEVER = new AbortController().signal;

function kindOf(stage: PipelineStage, task: ChunkTask | NamedChunk): Promise<string> {
  return stage.run(stage.worker().pipeline.chunkStanding(task, NEVER)).then((standing) => standing.kind);
}
const kindOfJob = (stage: PipelineStage, job: ChunkJob) => kindOf(stage, { kind: "chunk", job });

function named(stage: PipelineStage, index: number, change: Partial<NamedChunk> = {}): NamedChunk {
  const { sessionId, chunkId } = stage.chunkJob(index);
  return { kind: "named", sessionId, chunkId, index: index as LeafIndex, ...change };
}

function stubOf(stage: PipelineStage, index: number, leafHash = stage.committed(index)?.leafHash): ChunkTask {
  const { sessionId, chunkId } = stage.chunkJob(index);
  const stub = { committed: true, session_id: sessionId, chunk_id: chunkId, chunk_index: index } as const;
  return { kind: "stub", stub: { ...stub, leaf_hash: toHex(leafHash ?? new Uint8Array(32)) } };
}

describe("what the store has of a job's chunk", () => {
  test("is the chunk that it committed, inline, by reference or as a stub", async () => {
    const stage = new PipelineStage();
    const byReference = stage.referenceJob(1);
    const chunk = await stage.process(stage.chunkJob(0));
    await stage.process(byReference);
    const task: ChunkTask = { kind: "chunk", job: stage.chunkJob(0) };
    const standing = await stage.run(stage.worker().pipeline.chunkStanding(task, NEVER));
    expect(standing).toMatchObject({ kind: "committed", chunk: { blobId: chunk.blobId } });
    expect(await kindOfJob(stage, byReference)).toBe("committed");
    expect(await kindOf(stage, stubOf(stage, 0))).toBe("committed");
    await stage.finalize(2);
    expect(await stage.record()).toMatchObject({ state: "sealed" });
    expect(await kindOfJob(stage, stage.chunkJob(0))).toBe("committed");
  });

  test("is the chunk also where the tree can't take it in", async () => {
    const stage = new PipelineStage();
    const { chunks, sessions } = stage.world.stores;
    const first = await stage.process(stage.chunkJob(0));
    const record = await sessions.find(stage.session);
    if (record === undefined) throw new Error("no session");
    await chunks.insert({ ...first, index: 1 as LeafIndex, chunkId: stage.chunkJob(1).chunkId });
    // A head that no frontier of its size leads to.
    const tree = { ...record.tree, frontier: [new Uint8Array(32), new Uint8Array(32)] as LeafHash[] };
    const change = { kind: "grow", tree, addedOriginalBytes: 0, addedStoredBytes: 0 } as never;
    await sessions.replace(stage.session, record.version, change);
    const job = stage.chunkJob(1, { text: "chunk 0" });
    await expect(stage.process(job)).rejects.toMatchObject({ code: "TREE_CORRUPT" });
    expect(await kindOfJob(stage, job)).toBe("committed");
  });

  test("is nothing without a chunk, or where another one stands", async () => {
    const stage = new PipelineStage();
    expect(await kindOfJob(stage, stage.chunkJob(0))).toBe("none");
    await stage.process(stage.chunkJob(0));
    expect(await kindOfJob(stage, stage.chunkJob(1))).toBe("none");
    expect(await kindOfJob(stage, stage.chunkJob(0, { text: "other bytes" }))).toBe("none");
    expect(await kindOfJob(stage, stage.chunkJob(0, { chunkId: "other-0" as ChunkId }))).toBe("none");
    expect(await kindOf(stage, stubOf(stage, 0, new Uint8Array(32) as LeafHash))).toBe("none");
  });

  test("is nothing where the chunk is beyond the end and will be withdrawn, and undecided before that is settled", async () => {
    const stage = new PipelineStage();
    const { chunks, sessions } = stage.world.stores;
    const first = await stage.process(stage.chunkJob(0));
    const job = stage.chunkJob(1, { text: "chunk 0" });
    await chunks.insert({ ...first, index: 1 as LeafIndex, chunkId: job.chunkId });
    const version = async () => (await stage.record())?.version ?? 0;
    const finalize = { manifestType: "session_recording" } as const;
    await sessions.replace(stage.session, await version(), { kind: "propose-count", count: 1, finalize });
    expect(await kindOfJob(stage, job)).toBe("undecided");
    expect(await kindOfJob(stage, stage.chunkJob(0))).toBe("committed");
    await sessions.replace(stage.session, await version(), { kind: "confirm-count" });
    expect(await kindOfJob(stage, job)).toBe("none");
    expect(await kindOfJob(stage, stage.chunkJob(0))).toBe("committed");
  });

  test("is nothing of the job where its bytes aren't those that it declares, though they are the chunk's", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const wrong = stage.chunkJob(0, { declared: { blake3: new Uint8Array(32) } });
    await expect(stage.process(wrong)).rejects.toMatchObject({ code: "PAYLOAD_DIGEST_MISMATCH" });
    expect(await kindOfJob(stage, wrong)).toBe("none");
  });

  test("is unclear for a job of which only the ids are known, where that chunk is committed and stays", async () => {
    const stage = new PipelineStage();
    const { chunks, sessions } = stage.world.stores;
    const first = await stage.process(stage.chunkJob(0));
    expect(await kindOf(stage, named(stage, 0))).toBe("unclear");
    expect(await kindOf(stage, named(stage, 0, { chunkId: "other-0" as ChunkId }))).toBe("none");
    expect(await kindOf(stage, named(stage, 1))).toBe("none");
    await chunks.insert({ ...first, index: 1 as LeafIndex, chunkId: stage.chunkJob(1).chunkId });
    const version = async () => (await stage.record())?.version ?? 0;
    const finalize = { manifestType: "session_recording" } as const;
    await sessions.replace(stage.session, await version(), { kind: "propose-count", count: 1, finalize });
    expect(await kindOf(stage, named(stage, 1))).toBe("undecided");
    await sessions.replace(stage.session, await version(), { kind: "confirm-count" });
    expect(await kindOf(stage, named(stage, 1))).toBe("none");
    expect(await kindOf(stage, named(stage, 0))).toBe("unclear");
  });

  test("is unclear where the session's secret doesn't open", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const keyRing = singleKeyRing("another key, of which nothing here was made 8Qz");
    const stranger = new PipelineStage(1, { keyRing });
    await stranger.world.stores.chunks.insert(stage.committed(0) as never);
    const record = await stage.record();
    await stranger.world.stores.sessions.create({ ...record, key: record?.keys[0] } as never);
    expect(await kindOfJob(stranger, stranger.chunkJob(0))).toBe("unclear");
  });

  test("is asked for until the store answers", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    stage.fail("chunks.find", "refused");
    stage.fail("sessions.find", "refused");
    expect(await kindOfJob(stage, stage.chunkJob(0))).toBe("committed");
  });
});
