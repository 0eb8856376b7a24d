import { getEventListeners } from "node:events";
import { expect, test } from "vitest";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { systemRandomBytes } from "../../src/adapters/system/random.ts";

const clock = createSystemClock();

test("a sleep that ends by itself leaves no listener behind", async () => {
  const { signal } = new AbortController();
  await clock.sleep(1, signal);
  expect(getEventListeners(signal, "abort")).toHaveLength(0);
});

test("a signal ends a sleep at once, without an error, a timer or a listener", async () => {
  const controller = new AbortController();
  const sleep = clock.sleep(3_600_000, controller.signal);
  controller.abort();
  await sleep;
  expect(getEventListeners(controller.signal, "abort")).toHaveLength(0);
});

test("a signal that has fired before makes a sleep end at once", async () => {
  await clock.sleep(3_600_000, AbortSignal.abort());
  expect.assertions(0);
});

test("the monotonic clock doesn't step back", () => {
  const first = clock.monotonicMs();
  expect(clock.monotonicMs()).toBeGreaterThanOrEqual(first);
});

test("random bytes have the asked length and differ", () => {
  expect(systemRandomBytes(12).byteLength).toBe(12);
  expect(Buffer.from(systemRandomBytes(16)).equals(systemRandomBytes(16))).toBe(false);
});
