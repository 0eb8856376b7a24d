import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import type { CpuThreads, RunOptions } from "../../src/adapters/threads/cpu-threads.ts";
import { GatheredSeals } from "../../src/adapters/threads/gathered-seals.ts";
import type { SealedChunk, SealRequest } from "../../src/core/kernel.ts";
import type { ThreadTask } from "../../src/schema/thread.ts";

type Run = CpuThreads["run"];

const request = (index: number) => ({ index }) as unknown as SealRequest;
const chunkOf = ({ index }: SealRequest) => ({ index }) as unknown as SealedChunk;

/** Threads that take `ms` for a group, and seem to be held up by its first chunk from the beginning. */
function lagging(ms: number) {
  const groups: number[] = [];
  const run = async (task: ThreadTask, { onHeldUp }: RunOptions) => {
    if (task.kind !== "seal-many") throw new Error(`not expected: ${task.kind}`);
    const { requests } = task.request;
    groups.push(requests.length);
    onHeldUp?.(0);
    await sleep(ms);
    return { outcomes: requests.map((each) => ({ state: "sealed", chunk: chunkOf(each as SealRequest) })) };
  };
  return { groups, pool: { run: run as unknown as Run } };
}

test("chunks of a thread that only lags are sent again a few times, and settled by the first answer", async () => {
  const { groups, pool } = lagging(20);
  const seals = new GatheredSeals(pool, { threads: 2, timeoutMs: 1_000 });
  const sealed = await Promise.all(Array.from({ length: 50 }, (_, index) => seals.seal(request(index))));
  expect(sealed.map((chunk) => (chunk as unknown as { index: number }).index)).toEqual(
    Array.from({ length: 50 }, (_, index) => index),
  );
  await sleep(100);
  expect(groups[0]).toBe(50);
  expect(groups.length).toBeLessThanOrEqual(5);
  expect(groups.reduce((sum, count) => sum + count, 0)).toBeLessThanOrEqual(4 * 50);
});
