import { setImmediate as immediate } from "node:timers/promises";
import { afterEach, describe, expect, test, vi } from "vitest";
import { type CoalesceOptions, coalesce } from "../../src/adapters/coalesce.ts";
import { LucidError } from "../../src/core/errors.ts";

/** A server whose commands end when the test says so. */
function pausedServer(options: Partial<CoalesceOptions<number, number>> = {}) {
  const commands: { readonly items: readonly number[]; readonly end: (error?: Error) => void }[] = [];
  const call = coalesce<number, number>({
    lanes: 1,
    itemsMax: 100,
    send: (items) =>
      new Promise((resolve, reject) => {
        commands.push({
          items,
          end: (error) => (error ? reject(error) : resolve(items.map((item) => item * 10))),
        });
      }),
    ...options,
  });
  return { call, commands };
}

/** After the calls so far have been gathered. */
async function nextTurn(): Promise<void> {
  await immediate();
  await immediate();
}

describe("coalesce", () => {
  test("a single call goes out in the same turn of the loop", async () => {
    const { call, commands } = pausedServer();
    const result = call(1);
    await nextTurn();
    expect(commands.map(({ items }) => items)).toEqual([[1]]);
    commands[0]?.end();
    expect(await result).toBe(10);
  });

  test("calls that come while a command is under way go out together as the next", async () => {
    const { call, commands } = pausedServer();
    const results = [call(1)];
    await nextTurn();
    results.push(call(2), call(3), call(4));
    await nextTurn();
    expect(commands).toHaveLength(1);
    commands[0]?.end();
    await nextTurn();
    expect(commands.map(({ items }) => items)).toEqual([[1], [2, 3, 4]]);
    commands[1]?.end();
    expect(await Promise.all(results)).toEqual([10, 20, 30, 40]);
  });

  test("a command takes no more items than itemsMax", async () => {
    const { call, commands } = pausedServer({ itemsMax: 2 });
    const results = [1, 2, 3, 4, 5].map(call);
    for (let at = 0; at < 3; at++) {
      await nextTurn();
      commands[at]?.end();
    }
    await Promise.all(results);
    expect(commands.map(({ items }) => items)).toEqual([[1, 2], [3, 4], [5]]);
  });

  test("a command takes no more bytes than bytesMax, and a larger item goes alone", async () => {
    const { call, commands } = pausedServer({ bytesMax: 10, bytesOf: (item) => item });
    const results = [4, 6, 1, 50, 2].map(call);
    for (let at = 0; at < 4; at++) {
      await nextTurn();
      commands[at]?.end();
    }
    await Promise.all(results);
    expect(commands.map(({ items }) => items)).toEqual([[4, 6], [1], [50], [2]]);
  });

  describe("with a delay between its lanes", () => {
    afterEach(() => {
      vi.useRealTimers();
    });

    /** Real turns of the loop, and timers that the test moves. */
    function slowServer() {
      vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
      return pausedServer({ lanes: 2, laneDelayMs: 50 });
    }

    test("no second command goes out beside one that is answered in time", async () => {
      const { call, commands } = slowServer();
      const results = [call(1)];
      await nextTurn();
      results.push(call(2));
      await vi.advanceTimersByTimeAsync(49);
      await nextTurn();
      expect(commands).toHaveLength(1);
      commands[0]?.end();
      await nextTurn();
      expect(commands.map(({ items }) => items)).toEqual([[1], [2]]);
      commands[1]?.end();
      expect(await Promise.all(results)).toEqual([10, 20]);
      expect(vi.getTimerCount()).toBe(0);
    });

    test("beside one that hangs, the others go as if it weren't there", async () => {
      const { call, commands } = slowServer();
      const results = [call(1)];
      await nextTurn();
      results.push(call(2));
      await vi.advanceTimersByTimeAsync(50);
      await nextTurn();
      expect(commands.map(({ items }) => items)).toEqual([[1], [2]]);
      commands[1]?.end();
      await nextTurn();
      results.push(call(3));
      await nextTurn();
      expect(commands.map(({ items }) => items)).toEqual([[1], [2], [3]]);
      commands[0]?.end();
      commands[2]?.end();
      expect(await Promise.all(results)).toEqual([10, 20, 30]);
      expect(vi.getTimerCount()).toBe(0);
    });
  });

  test("as many commands are under way as there are lanes", async () => {
    const { call, commands } = pausedServer({ lanes: 2, itemsMax: 1 });
    const results = [1, 2, 3].map(call);
    await nextTurn();
    expect(commands).toHaveLength(2);
    commands[1]?.end();
    await nextTurn();
    expect(commands).toHaveLength(3);
    commands[0]?.end();
    commands[2]?.end();
    expect(await Promise.all(results)).toEqual([10, 20, 30]);
  });

  test("an outage fails every call of the command once, and the next call works", async () => {
    const { call, commands } = pausedServer();
    const results = Promise.allSettled([call(1), call(2)]);
    await nextTurn();
    commands[0]?.end(new LucidError("STORE_UNAVAILABLE", "away"));
    expect((await results).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(commands).toHaveLength(1);
    const next = call(3);
    await nextTurn();
    commands[1]?.end();
    expect(await next).toBe(30);
  });

  test("any other failure is narrowed down to the call that causes it", async () => {
    const sent: (readonly number[])[] = [];
    const call = coalesce<number, number>({
      lanes: 1,
      itemsMax: 10,
      send: async (items) => {
        sent.push(items);
        if (items.includes(2)) throw new LucidError("INTERNAL", "bad document");
        return items;
      },
    });
    const outcomes = await Promise.allSettled([1, 2, 3].map(call));
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    expect(sent).toEqual([[1, 2, 3], [1], [2], [3]]);
  });

  test("a send that throws at once, or answers another number of items, rejects its calls", async () => {
    const throwing = coalesce<number, number>({
      lanes: 1,
      itemsMax: 10,
      send: () => {
        throw new Error("at once");
      },
    });
    await expect(throwing(1)).rejects.toThrow("at once");
    const short = coalesce<number, number>({ lanes: 1, itemsMax: 10, send: async () => [] });
    await expect(short(1)).rejects.toThrow("another number of items");
  });
});
