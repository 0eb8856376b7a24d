import { setImmediate } from "node:timers/promises";
import { expect, test } from "vitest";
import { coalesce } from "../../src/adapters/coalesce.ts";

/** Batches that are answered by hand. */
function heldBatches() {
  const batches: {
    readonly items: readonly number[];
    readonly answer: () => void;
    readonly fail: (why: Error) => void;
  }[] = [];
  const send = (items: readonly number[]) =>
    new Promise<readonly string[]>((resolve, reject) => {
      batches.push({ items, answer: () => resolve(items.map((item) => `r${item}`)), fail: reject });
    });
  return { batches, send };
}

/** A few turns of the event loop: more than any hand-over takes. */
async function turns(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await setImmediate();
}

test("calls of one turn go out together, and each gets its own result", async () => {
  const { batches, send } = heldBatches();
  const call = coalesce({ send, itemsMax: 100, lanes: 1 });
  const results = Promise.all([call(1), call(2), call(3)]);
  await turns();
  expect(batches.map(({ items }) => items)).toEqual([[1, 2, 3]]);
  batches[0]?.answer();
  expect(await results).toEqual(["r1", "r2", "r3"]);
});

test("what comes while a batch is under way is the next batch", async () => {
  const { batches, send } = heldBatches();
  const call = coalesce({ send, itemsMax: 100, lanes: 1 });
  const first = call(1);
  await turns();
  const later = Promise.all([call(2), call(3)]);
  await turns();
  expect(batches).toHaveLength(1);
  batches[0]?.answer();
  await first;
  await turns();
  expect(batches[1]?.items).toEqual([2, 3]);
  batches[1]?.answer();
  expect(await later).toEqual(["r2", "r3"]);
});

test("two lanes have two batches under way, and no third", async () => {
  const { batches, send } = heldBatches();
  const call = coalesce({ send, itemsMax: 1, lanes: 2 });
  const all = Promise.all([1, 2, 3].map(call));
  await turns();
  expect(batches).toHaveLength(2);
  batches[1]?.answer();
  await turns();
  expect(batches.map(({ items }) => items)).toEqual([[1], [2], [3]]);
  for (const { answer } of batches) answer();
  expect(await all).toEqual(["r1", "r2", "r3"]);
});

test("a batch ends at its number of items and at its bytes, and an item above the bytes goes alone", async () => {
  const { batches, send } = heldBatches();
  const call = coalesce({ send, itemsMax: 3, bytesMax: 10, bytesOf: (item: number) => item, lanes: 9 });
  const all = Promise.all([1, 1, 1, 1, 6, 5, 50, 2].map(call));
  await turns();
  expect(batches.map(({ items }) => items)).toEqual([[1, 1, 1], [1, 6], [5], [50], [2]]);
  for (const { answer } of batches) answer();
  expect(await all).toHaveLength(8);
});

test("a batch that fails fails its own callers, and the next one goes out", async () => {
  const { batches, send } = heldBatches();
  const call = coalesce({ send, itemsMax: 2, lanes: 1 });
  const outcomes = Promise.allSettled([call(1), call(2), call(3)]);
  await turns();
  batches[0]?.fail(new Error("down"));
  await turns();
  batches[1]?.answer();
  expect((await outcomes).map(({ status }) => status)).toEqual(["rejected", "rejected", "fulfilled"]);
});

test("an answer of the wrong length fails everybody instead of mixing results up", async () => {
  const call = coalesce<number, number>({ send: () => Promise.resolve([1]), itemsMax: 9, lanes: 1 });
  const outcomes = await Promise.allSettled([call(1), call(2)]);
  expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
});
