import { EventEmitter } from "node:events";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { onStopSignals } from "../../src/adapters/system/stop-signals.ts";

const said: string[] = [];
const source = new EventEmitter();

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["performance"] });
  said.length = 0;
});
afterEach(() => {
  source.removeAllListeners();
  vi.useRealTimers();
});

function listen(): () => void {
  return onStopSignals(
    {
      first: (signal) => void said.push(`first ${signal}`),
      again: (signal) => void said.push(`again ${signal}`),
    },
    source,
  );
}

/** Signals and milliseconds between them. */
function send(...steps: readonly (string | number)[]): void {
  for (const step of steps) {
    if (typeof step === "number") vi.advanceTimersByTime(step);
    else source.emit(step, step);
  }
}

test.each([
  [["SIGINT"], ["first SIGINT"]],
  [["SIGTERM"], ["first SIGTERM"]],
  // What a terminal sends for Ctrl-C, and what npm passes on to its child.
  [["SIGINT", 3, "SIGINT"], ["first SIGINT"]],
  [["SIGINT", 3, "SIGINT", 496, "SIGINT"], ["first SIGINT"]],
  [
    ["SIGINT", 3, "SIGINT", 497, "SIGINT"],
    ["first SIGINT", "again SIGINT"],
  ],
  [
    ["SIGINT", 600, "SIGINT"],
    ["first SIGINT", "again SIGINT"],
  ],
  // No key of a terminal sends SIGTERM: whoever sends it twice means it.
  [
    ["SIGTERM", "SIGTERM"],
    ["first SIGTERM", "again SIGTERM"],
  ],
  [
    ["SIGTERM", 600, "SIGTERM"],
    ["first SIGTERM", "again SIGTERM"],
  ],
  [
    ["SIGINT", 1, "SIGTERM"],
    ["first SIGINT", "again SIGTERM"],
  ],
  [
    ["SIGTERM", 1, "SIGINT"],
    ["first SIGTERM", "again SIGINT"],
  ],
])("%j is %j", (steps, heard) => {
  listen();
  send(...steps);
  expect(said).toEqual(heard);
});

test("nothing is heard once it is released", () => {
  listen()();
  send("SIGINT", "SIGTERM");
  expect(said).toEqual([]);
});
