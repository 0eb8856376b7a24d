import { expect, test } from "vitest";
import { LucidError } from "../../src/core/errors.ts";
import { createPatience } from "../../src/pipeline/patience.ts";
import type { Clock, PipelineEvent } from "../../src/pipeline/ports.ts";

/** A clock that sleeps at once, and says for how long. */
function clockOf(sleeps: number[], onSleep: () => void = () => undefined): Clock {
  let nowMs = 0;
  return {
    now: () => new Date(0),
    monotonicMs: () => nowMs,
    async sleep(ms) {
      sleeps.push(ms);
      nowMs += ms;
      onSleep();
    },
  };
}

function outages(count: number, code: "STORE_UNAVAILABLE" | "QUEUE_UNAVAILABLE"): () => Promise<string> {
  let left = count;
  return async () => {
    if (left === 0) return "done";
    left -= 1;
    throw new LucidError(code, "away");
  };
}

const NEVER = new AbortController().signal;

test.for(["STORE_UNAVAILABLE", "QUEUE_UNAVAILABLE"] as const)(
  "%s is waited out, with growing pauses up to a second",
  async (code) => {
    const sleeps: number[] = [];
    const reports: PipelineEvent[] = [];
    const patience = createPatience(clockOf(sleeps), { report: (event) => reports.push(event) });
    expect(await patience("chunks.find", NEVER, outages(8, code))).toBe("done");
    expect(sleeps).toEqual([50, 100, 200, 400, 800, 1_000, 1_000, 1_000]);
    expect(reports.filter(({ kind }) => kind === "waiting")).toHaveLength(8);
    expect(reports.at(-1)).toEqual({ kind: "resumed", operation: "chunks.find", code, seconds: 4.55 });
  },
);

test("an operation that succeeds at once is not reported", async () => {
  const reports: PipelineEvent[] = [];
  const patience = createPatience(clockOf([]), { report: (event) => reports.push(event) });
  expect(await patience("chunks.find", NEVER, async () => 7)).toBe(7);
  expect(reports).toEqual([]);
});

test("any other error is passed on at once", async () => {
  const sleeps: number[] = [];
  const patience = createPatience(clockOf(sleeps), { report: () => undefined });
  const broken = new LucidError("TREE_CORRUPT", "broken");
  for (const thrown of [broken, new TypeError("unforeseen")]) {
    await expect(patience("x", NEVER, () => Promise.reject(thrown))).rejects.toBe(thrown);
  }
  expect(sleeps).toEqual([]);
});

test("an abort ends the waiting with SHUTTING_DOWN, after the pause that it cuts short", async () => {
  const stop = new AbortController();
  let tries = 0;
  const patience = createPatience(
    clockOf([], () => stop.abort()),
    { report: () => undefined },
  );
  const operation = async (): Promise<never> => {
    tries += 1;
    throw new LucidError("STORE_UNAVAILABLE", "away");
  };
  await expect(patience("x", stop.signal, operation)).rejects.toMatchObject({ code: "SHUTTING_DOWN" });
  expect(tries).toBe(1);
});

test("nothing is begun after an abort", async () => {
  const stop = AbortSignal.abort();
  let tries = 0;
  const patience = createPatience(clockOf([]), { report: () => undefined });
  await expect(patience("x", stop, async () => (tries += 1))).rejects.toMatchObject({
    code: "SHUTTING_DOWN",
  });
  expect(tries).toBe(0);
});
