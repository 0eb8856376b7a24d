import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { canonicalChunkId, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import { textbookRoot } from "../../src/core/merkle/textbook.ts";
import type { ChunkJob } from "../../src/pipeline/ports.ts";
import { PipelineWorld } from "../support/pipeline-world.ts";

const SESSION = "sess-order" as SessionId;
const RUNS = 60;
const CHUNKS_MAX = 12;
const NEVER = new AbortController().signal;

/** Which chunk, by which worker, and when. */
interface Delivery {
  readonly index: number;
  readonly worker: number;
  readonly atMs: number;
}

function jobOf(index: number): ChunkJob {
  const leaf = index as LeafIndex;
  return {
    sessionId: SESSION,
    chunkId: canonicalChunkId(SESSION, leaf),
    index: leaf,
    source: { kind: "inline", bytes: new Uint8Array(blake3(Buffer.from(`chunk ${index}`))) },
    declared: {},
    compression: { algorithm: "none", level: 0 },
  };
}

/** Runs the deliveries to their ends, then finalize-session, in a world whose delays are those of `seed`. */
async function deliver(
  seed: number,
  workers: number,
  chunks: number,
  deliveries: readonly Delivery[],
): Promise<PipelineWorld> {
  const world = new PipelineWorld(seed, workers, { fault: () => undefined });
  const done: Promise<unknown>[] = [];
  const state = { waiting: deliveries.length + 1 };
  const start = (worker: number, atMs: number, work: (at: number) => Promise<unknown>): void => {
    world.time.after(atMs, () => {
      done.push(
        work(worker % world.workers.length).finally(() => {
          state.waiting -= 1;
        }),
      );
    });
  };
  for (const { index, worker, atMs } of deliveries) {
    start(worker, atMs, async (at) => world.workers[at]?.pipeline.processChunk(jobOf(index), NEVER));
  }
  start(seed, seed % 400, async (at) =>
    world.workers[at]?.pipeline.finalizeSession(
      { sessionId: SESSION, chunkCount: chunks, details: { manifestType: "session_recording" } },
      NEVER,
    ),
  );
  while (state.waiting > 0) if (!(await world.time.step())) await turn();
  await Promise.all(done);
  return world;
}

const deliveries = fc.integer({ min: 1, max: CHUNKS_MAX }).chain((chunks) =>
  fc.record({
    chunks: fc.constant(chunks),
    workers: fc.integer({ min: 1, max: 4 }),
    seed: fc.integer({ min: 1, max: 2 ** 31 }),
    each: fc.array(fc.record({ worker: fc.nat(3), atMs: fc.nat(300) }), {
      minLength: chunks,
      maxLength: chunks,
    }),
    repeats: fc.array(fc.record({ index: fc.nat(chunks - 1), worker: fc.nat(3), atMs: fc.nat(600) }), {
      maxLength: 6,
    }),
  }),
);

test("any order of arrival, any repeats and any split over workers give one sealed root", async () => {
  await fc.assert(
    fc.asyncProperty(deliveries, async ({ chunks, workers, seed, each, repeats }) => {
      const all = [...each.map((delivery, index) => ({ index, ...delivery })), ...repeats];
      const world = await deliver(seed, workers, chunks, all);
      const session = await world.stores.sessions.find(SESSION);
      const leaves = await world.stores.chunks.contiguousLeaves(SESSION, 0 as LeafIndex, CHUNKS_MAX + 1);
      expect(session).toMatchObject({ state: "sealed", countConfirmed: true, tree: { size: chunks } });
      expect(leaves).toHaveLength(chunks);
      const expected = textbookRoot(
        leaves.map(({ leafHash }) => leafHash),
        "blake3",
      );
      expect(toHex(session?.tree.root ?? new Uint8Array())).toBe(toHex(expected));
    }),
    { numRuns: RUNS },
  );
});
