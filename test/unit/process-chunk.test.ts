import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { blake3, sha256 } from "../../src/core/digest.ts";
import type { ChunkId, LeafIndex } from "../../src/core/ids.ts";
import { createPipeline } from "../../src/pipeline/pipeline.ts";
import type { CommittedStub } from "../../src/schema/job.ts";
import type { ChunkRecord } from "../../src/schema/record.ts";
import { MemoryManifestFiles, MemoryManifestStore } from "../support/memory/manifest-store.ts";
import { type CallName, PipelineStage, WorkerDied } from "../support/pipeline-stage.ts";
import type { Fault } from "../support/pipeline-world.ts";

const NEVER = new AbortController().signal;

function code(value: string): object {
  return expect.objectContaining({ code: value });
}

/** The one effect that a chunk of a session of one has, however it came about. */
async function expectOneEffect(stage: PipelineStage): Promise<void> {
  const chunk = stage.committed(0);
  expect(chunk).toMatchObject({ eventState: "sent", index: 0 });
  expect(await stage.blobIds()).toEqual([chunk?.blobId]);
  expect(await stage.record()).toMatchObject({ state: "sealed", tree: { size: 1 }, sealedEvent: "sent" });
  expect(stage.events().map(({ event_id }) => event_id)).toEqual([
    "chunk.completed.sess-1.0",
    "session.sealed.sess-1",
  ]);
}

describe("a chunk", () => {
  test("is committed, in the tree, announced, and its payload is gone", async () => {
    const stage = new PipelineStage();
    await stage.sweep();
    const job = stage.referenceJob(0);
    const chunk = await stage.process(job);
    await stage.rest();
    expect(stage.committed(0)).toEqual({ ...chunk, eventState: "sent" });
    expect(await stage.record()).toMatchObject({ state: "open", tree: { size: 1 } });
    expect(stage.events()).toMatchObject([
      { event_id: "chunk.completed.sess-1.0", blob: { id: chunk.blobId } },
    ]);
    if (job.source.kind !== "reference") throw new Error("a reference");
    expect(await stage.world.stores.payloads.read(stage.session, job.source.ref, 100)).toBeUndefined();
  });

  test("writes the blob before the document, and the document before the event", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const at = (call: CallName): number => stage.calls.indexOf(call);
    expect(at("blobs.insert")).toBeLessThan(at("chunks.insert"));
    expect(at("chunks.insert")).toBeLessThan(at("sessions.replace"));
    expect(at("sessions.replace")).toBeLessThan(at("events.publish"));
  });
});

describe("a session's first chunks", () => {
  test("open it once, however many come at the same time, at however many workers", async () => {
    const stage = new PipelineStage(2);
    const first = [0, 1, 2, 3].map((index) => stage.process(stage.chunkJob(index), stage.worker(index % 2)));
    await Promise.all(first);
    expect(stage.reports.filter(({ kind }) => kind === "session-created")).toHaveLength(1);
  });

  test("open it also if the reply to that is lost", async () => {
    const stage = new PipelineStage();
    stage.fail("sessions.create", "reply-lost");
    await stage.process(stage.chunkJob(0));
    expect(stage.reports.filter(({ kind }) => kind === "session-created")).toHaveLength(1);
  });
});

describe("each write of the path, whatever becomes of it, has one effect", () => {
  const writes: readonly CallName[] = [
    "sessions.create",
    "blobs.insert",
    "chunks.insert",
    "sessions.replace",
    "events.publish",
    "chunks.markSent",
    "payloads.remove",
  ];
  const faults: readonly Fault[] = [
    "refused",
    "reply-lost",
    "ghost",
    "freeze",
    "crash-before",
    "crash-after",
  ];
  const deliveries = ["handed out for the first time", "handed out again"] as const;
  const table = writes.flatMap((write) =>
    faults.flatMap((fault) => deliveries.map((delivery) => [write, fault, delivery] as const)),
  );
  test.for(table)("%s: %s, %s", async ([write, fault, delivery]) => {
    const stage = new PipelineStage(1, { orphanBlobMs: 100_000 });
    const job = stage.referenceJob(0);
    stage.fail(write, fault);
    let wasKilled = false;
    const begun = delivery === "handed out again" ? stage.process(job) : stage.processFirst(job);
    await begun.catch((thrown: unknown) => {
      wasKilled = thrown instanceof WorkerDied;
      if (!wasKilled) throw thrown;
    });
    await stage.rest();
    // The queue gives a dead worker's job to another. What nobody waits for may have killed it after the job's end.
    if (wasKilled) await stage.process(job);
    await stage.finalize(1);
    await stage.rest();
    // Twice each, and far enough apart for what is pending, and for what is an orphan.
    for (let sweeps = 0; sweeps < 4; sweeps++) {
      await stage.sweep();
      await stage.wait(100_000);
    }
    await stage.rest();
    await expectOneEffect(stage);
  });
});

describe("admission", () => {
  test("a new session is not made for a chunk with a wrong digest", async () => {
    for (const declared of [
      { blake3: blake3(Buffer.from("other")) },
      { sha256: sha256(Buffer.from("other")) },
    ]) {
      const stage = new PipelineStage();
      await expect(stage.process(stage.chunkJob(0, { declared }))).rejects.toEqual(
        code("PAYLOAD_DIGEST_MISMATCH"),
      );
      expect(await stage.record()).toBeUndefined();
      expect(await stage.blobIds()).toEqual([]);
    }
  });

  test("right digests of both kinds are accepted", async () => {
    const stage = new PipelineStage();
    const bytes = Buffer.from("chunk 0");
    const declared = { blake3: blake3(bytes), sha256: sha256(bytes) };
    expect(await stage.process(stage.chunkJob(0, { declared }))).toMatchObject({ originalBytes: 7 });
  });

  test("a wrong digest in a known session writes nothing", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const declared = { sha256: sha256(Buffer.from("other")) };
    await expect(stage.process(stage.chunkJob(1, { declared }))).rejects.toEqual(
      code("PAYLOAD_DIGEST_MISMATCH"),
    );
    expect(stage.committed(1)).toBeUndefined();
    expect(await stage.blobIds()).toHaveLength(1);
  });

  test("a session takes what MAX_SESSION_SIZE has room for and not a byte more", async () => {
    const stage = new PipelineStage(1, { sessionBytesMax: 10 });
    await expect(stage.process(stage.chunkJob(0, { text: "elevenbytes" }))).rejects.toEqual(
      code("SESSION_TOO_LARGE"),
    );
    expect(await stage.record()).toBeUndefined();
    await stage.process(stage.chunkJob(0, { text: "seven b" }));
    await expect(stage.process(stage.chunkJob(1, { text: "four" }))).rejects.toEqual(
      code("SESSION_TOO_LARGE"),
    );
    expect(await stage.process(stage.chunkJob(1, { text: "3 b" }))).toMatchObject({ index: 1 });
    expect(await stage.record()).toMatchObject({ totals: { originalBytes: 10 } });
  });

  test("a chunk beyond a confirmed count is refused before anything is written", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    await stage.finalize(2);
    await expect(stage.process(stage.chunkJob(2))).rejects.toEqual(code("CHUNK_BEYOND_END"));
    expect(stage.count("blobs.insert")).toBe(1);
    expect(await stage.process(stage.chunkJob(1))).toMatchObject({ index: 1 });
  });

  test("a chunk of a sealed session is refused before anything is written", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    await stage.finalize(1);
    await expect(stage.process(stage.chunkJob(1))).rejects.toEqual(code("SESSION_SEALED"));
    expect(stage.count("blobs.insert")).toBe(1);
  });

  test("a payload of another length than declared is refused", async () => {
    const stage = new PipelineStage();
    const job = stage.referenceJob(0);
    const declared = { ...job.declared, sizeBytes: 3 };
    await expect(stage.process({ ...job, declared })).rejects.toEqual(code("PAYLOAD_SIZE_MISMATCH"));
    expect(await stage.record()).toBeUndefined();
  });
});

describe("an old look at the session costs work and no more", () => {
  test("a chunk that was let in by a session sealed meanwhile is taken back, and nobody hears of it", async () => {
    const stage = new PipelineStage(2);
    const [stale, other] = [stage.worker(0), stage.worker(1)];
    await stage.process(stage.chunkJob(0), stale);
    await stage.finalize(1, other);
    await expect(stage.process(stage.chunkJob(1), stale)).rejects.toEqual(code("SESSION_SEALED"));
    await stage.rest();
    expect(stage.count("chunks.withdraw")).toBe(1);
    expect(stage.committed(1)).toBeUndefined();
    expect(await stage.blobIds()).toEqual([stage.committed(0)?.blobId]);
    expect(stage.events("chunk.completed")).toHaveLength(1);
  });

  test("the same under a count that is confirmed and not reached", async () => {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0), stage.worker(0));
    await stage.finalize(2, stage.worker(1));
    await expect(stage.process(stage.chunkJob(5), stage.worker(0))).rejects.toEqual(code("CHUNK_BEYOND_END"));
    expect(stage.committed(5)).toBeUndefined();
    expect(await stage.process(stage.chunkJob(1), stage.worker(0))).toMatchObject({ index: 1 });
    expect(await stage.record()).toMatchObject({ state: "sealed", tree: { size: 2 } });
  });

  test("a worker that dies before it takes its chunk back leaves that to the sweepers", async () => {
    const stage = new PipelineStage(2);
    await stage.process(stage.chunkJob(0), stage.worker(0));
    await stage.finalize(1, stage.worker(1));
    stage.fail("chunks.withdraw", "crash-before");
    await expect(stage.process(stage.chunkJob(1), stage.worker(0))).rejects.toThrow(WorkerDied);
    expect(stage.committed(1)).toBeDefined();
    await stage.sweep();
    await stage.wait(3_000);
    await stage.sweep();
    expect(stage.committed(1)).toBeUndefined();
    expect(stage.events("chunk.completed")).toHaveLength(1);
  });
});

/** Of a job at the index of a chunk that was made of something else. */
const OTHER_INPUTS = [
  ["other bytes", { text: "forged" }],
  ["another chunk id", { chunkId: "sess-1-chunk-000099" as ChunkId }],
] as const;

describe("a repeat", () => {
  test("returns the first one's chunk and writes nothing more", async () => {
    const stage = new PipelineStage(2);
    await stage.sweep();
    const first = await stage.process(stage.chunkJob(0), stage.worker(0));
    await stage.rest();
    const again = await stage.process(stage.chunkJob(0), stage.worker(1));
    expect(again).toEqual({ ...first, eventState: "sent" });
    expect(stage.count("chunks.insert")).toBe(1);
    expect(stage.count("events.publish")).toBe(1);
  });

  test("two at the same time have one effect, and the loser's blob is removed", async () => {
    const stage = new PipelineStage(2);
    const both = [0, 1].map((at) => stage.worker(at).pipeline.processChunk(stage.chunkJob(0), NEVER));
    const [left, right] = await stage.run(Promise.all(both));
    await stage.rest();
    expect(stage.count("chunks.insert")).toBe(2);
    expect(left?.blobId).toBe(right?.blobId);
    expect(await stage.blobIds()).toEqual([left?.blobId]);
    expect(stage.events("chunk.completed")).toHaveLength(1);
  });

  test.for(OTHER_INPUTS)("with %s is a conflict; the first stays", async ([, change]) => {
    const stage = new PipelineStage();
    await stage.sweep();
    const first = await stage.process(stage.chunkJob(0));
    await stage.rest();
    await expect(stage.process(stage.chunkJob(0, change))).rejects.toEqual(code("CHUNK_CONFLICT"));
    expect(stage.committed(0)).toEqual({ ...first, eventState: "sent" });
    expect(await stage.blobIds()).toEqual([first.blobId]);
  });

  test("of another delivery that committed and removed the payload is adopted", async () => {
    const stage = new PipelineStage();
    const job = stage.referenceJob(0);
    let first: ChunkRecord | undefined;
    stage.once("chunks.find", async () => {
      // Between this worker's look and its read of the payload, another one does it all.
      first = await otherDoes(stage, job);
    });
    expect((await stage.process(job)).blobId).toBe(first?.blobId);
  });

  test("of a lost payload that nobody committed is PAYLOAD_MISSING, and makes no session", async () => {
    const stage = new PipelineStage();
    const job = stage.referenceJob(0);
    if (job.source.kind === "reference")
      await stage.world.stores.payloads.remove(stage.session, job.source.ref);
    await expect(stage.process(job)).rejects.toEqual(code("PAYLOAD_MISSING"));
    expect(await stage.record()).toBeUndefined();
  });

  test("is adopted also when the session was sealed with it between the first look and admission", async () => {
    const stage = new PipelineStage();
    const job = stage.chunkJob(0);
    let first: ChunkRecord | undefined;
    stage.once("chunks.find", async () => {
      first = await otherDoes(stage, job);
      const { sessions } = stage.world.stores;
      const version = (await sessions.find(stage.session))?.version ?? 0;
      await sessions.replace(stage.session, version, {
        kind: "propose-count",
        count: 1,
        finalize: { manifestType: "session_recording" },
      });
      await sessions.replace(stage.session, version + 1, { kind: "confirm-count" });
      await sessions.replace(stage.session, version + 2, { kind: "seal", at: new Date(0) });
    });
    expect((await stage.process(job)).blobId).toBe(first?.blobId);
  });

  test("is adopted also when the session has become full with it", async () => {
    const stage = new PipelineStage(1, { sessionBytesMax: 10 });
    const job = stage.chunkJob(0);
    stage.once("chunks.find", async () => void (await otherDoes(stage, job)));
    expect(await stage.process(job)).toMatchObject({ index: 0 });
  });
});

describe("a job that is handed out for the first time", () => {
  test("is not looked up, unless its session is unknown too", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const looks = stage.count("chunks.find");
    await stage.processFirst(stage.chunkJob(1));
    expect(stage.count("chunks.find")).toBe(looks);
    expect(stage.committed(1)).toMatchObject({ index: 1 });
  });

  test("adopts a chunk that another job has committed, and leaves no blob of its own", async () => {
    const stage = new PipelineStage(2);
    await stage.sweep();
    const first = await stage.processFirst(stage.chunkJob(0), stage.worker(0));
    await stage.rest();
    const again = await stage.processFirst(stage.chunkJob(0), stage.worker(1));
    expect(again).toEqual({ ...first, eventState: "sent" });
    expect(await stage.blobIds()).toEqual([first.blobId]);
    expect(stage.count("events.publish")).toBe(1);
    expect(await stage.record()).toMatchObject({ tree: { size: 1 } });
  });

  test.for(OTHER_INPUTS)(
    "with %s is a conflict; the first stays, and no blob is left",
    async ([, change]) => {
      const stage = new PipelineStage();
      const first = await stage.processFirst(stage.chunkJob(0));
      await expect(stage.processFirst(stage.chunkJob(0, change))).rejects.toEqual(code("CHUNK_CONFLICT"));
      await stage.rest();
      expect(stage.committed(0)).toMatchObject({ blobId: first.blobId, leafHash: first.leafHash });
      expect(await stage.blobIds()).toEqual([first.blobId]);
    },
  );

  test("of a committed chunk whose session has lost its document makes no new session", async () => {
    const stage = new PipelineStage(2);
    await stage.processFirst(stage.chunkJob(0), stage.worker(0));
    await stage.rest();
    stage.world.stores.sessions.lose(stage.session);
    await expect(stage.processFirst(stage.chunkJob(0), stage.worker(1))).rejects.toEqual(
      code("SESSION_UNKNOWN"),
    );
    expect(await stage.record()).toBeUndefined();
    expect(await stage.blobIds()).toHaveLength(1);
  });

  test("adopts a chunk of a session that is sealed by now", async () => {
    const stage = new PipelineStage();
    const first = await stage.processFirst(stage.chunkJob(0));
    await stage.finalize(1);
    expect(await stage.processFirst(stage.chunkJob(0))).toMatchObject({ blobId: first.blobId });
    expect(stage.count("blobs.insert")).toBe(1);
  });
});

/** Another process does the whole job while the stage's own worker stands still: same stores, no faults, no time. */
async function otherDoes(
  stage: PipelineStage,
  job: ReturnType<PipelineStage["chunkJob"]>,
): Promise<ChunkRecord> {
  const { stores, threads, random, options, serviceState } = stage.world;
  let nowMs = 0;
  const pipeline = createPipeline(
    {
      ...stores,
      serviceState,
      threads,
      random: (length) => random.bytes(length),
      manifests: new MemoryManifestStore(),
      files: new MemoryManifestFiles(),
      clock: {
        now: () => new Date(0),
        monotonicMs: () => nowMs,
        sleep: async (ms) => {
          nowMs += ms;
        },
      },
      observer: { report: () => undefined },
    },
    options,
    NEVER,
  );
  const chunk = await pipeline.processChunk(job, NEVER);
  await pipeline.settled();
  return chunk;
}

describe("a chunk id that the session has at another index", () => {
  test("is refused for good, and its blob goes with the orphans", async () => {
    const stage = new PipelineStage();
    const { chunkId } = await stage.process(stage.chunkJob(0));
    await expect(stage.process(stage.chunkJob(1, { chunkId }))).rejects.toEqual(code("CHUNK_ID_CONFLICT"));
    expect(stage.committed(1)).toBeUndefined();
    await stage.sweep();
    await stage.wait(stage.world.options.orphanBlobMs);
    await stage.sweep();
    expect(await stage.blobIds()).toEqual([stage.committed(0)?.blobId]);
  });

  test("keeps its blob, because an insert that was given up may still arrive", async () => {
    const stage = new PipelineStage();
    const { chunks, blobs } = stage.world.stores;
    const first = await stage.process(stage.chunkJob(0));
    // Index 5 has the chunk id of index 1, until it is taken back for lying beyond the end.
    const { chunkId } = stage.chunkJob(1);
    const inTheWay: ChunkRecord = { ...first, index: 5 as LeafIndex, chunkId, blobId: "sess-1:5:aa" };
    await chunks.insert(inTheWay);
    stage.fail("chunks.insert", "ghost");
    await expect(stage.process(stage.chunkJob(1))).rejects.toEqual(code("CHUNK_ID_CONFLICT"));
    await chunks.withdraw(inTheWay, inTheWay.blobId);
    await stage.rest();
    const late = stage.committed(1);
    expect(late).toBeDefined();
    expect(await blobs.read(late?.blobId ?? "")).toHaveLength(late?.storedBytes ?? 0);
  });
});

describe("an attempt that has become too old", () => {
  test("doesn't commit: its blob may be gone", async () => {
    const stage = new PipelineStage();
    const tooLongMs = stage.world.options.orphanBlobMs / 2 + 1;
    stage.once("blobs.insert", () => {
      stage.worker().frozenUntilMs = stage.world.time.nowMs + tooLongMs;
    });
    await expect(stage.process(stage.chunkJob(0))).rejects.toEqual(code("ATTEMPT_EXPIRED"));
    expect(stage.committed(0)).toBeUndefined();
    expect(await stage.process(stage.chunkJob(0))).toMatchObject({ index: 0 });
  });

  test("commits while it is just young enough", async () => {
    const stage = new PipelineStage();
    stage.once("blobs.insert", () => {
      stage.worker().frozenUntilMs = stage.world.time.nowMs + stage.world.options.orphanBlobMs / 2 - 1_000;
    });
    expect(await stage.process(stage.chunkJob(0))).toMatchObject({ index: 0 });
  });

  test("that was frozen after its last look at the clock writes its blob again", async () => {
    const stage = new PipelineStage();
    const { blobs } = stage.world.stores;
    stage.once("chunks.insert", async () => {
      // The insert got through after the sweeper had been: as if the process had stood still just before sending it.
      stage.worker().frozenUntilMs = stage.world.time.nowMs + stage.world.options.orphanBlobMs;
      await blobs.remove([stage.committed(0)?.blobId ?? ""]);
    });
    const chunk = await stage.process(stage.chunkJob(0));
    expect(toHex(blake3((await blobs.read(chunk.blobId)) ?? new Uint8Array()))).toBe(toHex(chunk.blobBlake3));
  });
});

describe("a job that must end", () => {
  test("is released while it waits for a server, and done at its next delivery", async () => {
    const stage = new PipelineStage();
    const stop = new AbortController();
    stage.fail("blobs.insert", "refused");
    stage.once("sessions.create", () => void stage.world.time.after(40, () => stop.abort()));
    await expect(stage.process(stage.chunkJob(0), stage.worker(), stop.signal)).rejects.toEqual(
      code("SHUTTING_DOWN"),
    );
    expect(await stage.process(stage.chunkJob(0))).toMatchObject({ index: 0 });
  });

  test("fails as retryable when its CPU thread crashes, with nothing written but the session", async () => {
    const stage = new PipelineStage();
    stage.fail("threads.seal", "refused");
    await expect(stage.process(stage.chunkJob(0))).rejects.toEqual(code("THREAD_CRASHED"));
    expect(stage.count("blobs.insert")).toBe(0);
    expect(await stage.process(stage.chunkJob(0))).toMatchObject({ index: 0 });
  });
});

describe("the stub of a committed inline job", () => {
  const stubOf = ({ sessionId, chunkId, index, leafHash }: ChunkRecord): CommittedStub => ({
    committed: true,
    session_id: sessionId,
    chunk_id: chunkId,
    chunk_index: index,
    leaf_hash: toHex(leafHash),
  });

  test("finishes what its first delivery left undone", async () => {
    const stage = new PipelineStage();
    stage.fail("events.publish", "crash-before");
    await expect(stage.process(stage.chunkJob(0))).rejects.toThrow(WorkerDied);
    await stage.rest();
    const chunk = stage.committed(0) as ChunkRecord;
    await stage.run(stage.worker().pipeline.finishStub(stubOf(chunk), NEVER));
    expect(stage.events("chunk.completed")).toHaveLength(1);
  });

  test("is not believed: without such a chunk it is a missing payload", async () => {
    const stage = new PipelineStage();
    const chunk = await stage.process(stage.chunkJob(0));
    const forged = [
      { ...stubOf(chunk), chunk_index: 1 },
      { ...stubOf(chunk), leaf_hash: "00".repeat(32) },
    ];
    for (const stub of forged) {
      await expect(stage.run(stage.worker().pipeline.finishStub(stub, NEVER))).rejects.toEqual(
        code("PAYLOAD_MISSING"),
      );
    }
  });
});
