import { describe, expect, test } from "vitest";
import type { SessionId } from "../../src/core/ids.ts";
import { OnePerSession } from "../../src/pipeline/integrate.ts";
import type { SessionRecord } from "../../src/schema/record.ts";

const A = "sess-a" as SessionId;
const B = "sess-b" as SessionId;

/** Runs that end when they are told to; `begun` lists them in order. */
function heldRuns() {
  const begun: { readonly session: SessionId; readonly end: () => void; readonly fail: () => void }[] = [];
  const turns = new OnePerSession((session) => {
    const { promise, resolve, reject } = Promise.withResolvers<SessionRecord>();
    const record = { id: session, version: begun.length } as SessionRecord;
    begun.push({ session, end: () => resolve(record), fail: () => reject(new Error("failed")) });
    return promise;
  });
  return { turns, begun };
}

async function settle(): Promise<void> {
  await new Promise<void>((resolve) => {
    setImmediate(resolve);
  });
}

describe("OnePerSession", () => {
  test("calls that come one right after another share the run that follows them", async () => {
    const { turns, begun } = heldRuns();
    const calls = [turns.request(A), turns.request(A), turns.request(A)];
    await settle();
    expect(begun).toHaveLength(1);
    begun[0]?.end();
    expect((await Promise.all(calls)).map(({ version }) => version)).toEqual([0, 0, 0]);
    await settle();
    expect(begun).toHaveLength(1);
  });

  test("calls during a run share the next one, which begins after that run has ended", async () => {
    const { turns, begun } = heldRuns();
    const first = turns.request(A);
    await settle();
    const late = [turns.request(A), turns.request(A)];
    await settle();
    expect(begun).toHaveLength(1);
    begun[0]?.end();
    expect((await first).version).toBe(0);
    await settle();
    expect(begun).toHaveLength(2);
    begun[1]?.end();
    expect((await Promise.all(late)).map(({ version }) => version)).toEqual([1, 1]);
  });

  test("a failed run fails its own callers and not those of the next", async () => {
    const { turns, begun } = heldRuns();
    const first = turns.request(A);
    await settle();
    const late = turns.request(A);
    begun[0]?.fail();
    await expect(first).rejects.toThrow("failed");
    await settle();
    begun[1]?.end();
    expect((await late).version).toBe(1);
  });

  test("sessions don't wait for one another", async () => {
    const { turns, begun } = heldRuns();
    void turns.request(A);
    void turns.request(B);
    await settle();
    expect(begun.map(({ session }) => session)).toEqual([A, B]);
  });
});
