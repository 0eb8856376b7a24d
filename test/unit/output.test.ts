import { afterEach, describe, expect, test, vi } from "vitest";
import { createOutput, type Output, printFailure } from "../../src/cli/output.ts";
import { LucidError } from "../../src/core/errors.ts";

const isTerminal = process.stderr.isTTY;
afterEach(() => {
  process.stderr.isTTY = isTerminal;
  vi.restoreAllMocks();
});

/** What goes to stderr while `work` runs. */
function said(terminal: boolean, json: boolean, work: (output: Output) => void): string {
  process.stderr.isTTY = terminal;
  const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  work(createOutput(json, new AbortController().signal));
  return write.mock.calls.map(([text]) => String(text)).join("");
}

function progress(output: Output): void {
  const bar = output.progress("restore", 10, "chunks");
  bar.update(5);
  bar.stop();
}

describe("what a command says besides its result", () => {
  test.each([
    [true, false, "a line\n"],
    [true, true, "a line\n"],
    [false, false, "a line\n"],
    [false, true, ""],
  ])("on a terminal %s, with --json %s: %j", (terminal, json, expected) => {
    expect(said(terminal, json, (output) => output.say("a line"))).toBe(expected);
  });

  test("is above the bar that is there, and not in it", () => {
    const all = said(true, false, (output) => {
      const bar = output.progress("restore", 10, "chunks");
      output.say("a line");
      bar.stop();
      output.say("another");
    });
    expect(all).toContain("\r\x1b[Ka line\n");
    expect(all).not.toContain("\r\x1b[Kanother");
  });

  test.each([false, true])("its progress bar is on a terminal and nowhere else, with --json %s", (json) => {
    expect(said(true, json, progress)).toContain("0/10 chunks");
    vi.restoreAllMocks();
    expect(said(false, json, progress)).toBe("");
  });
});

test.each([
  ["no such session", "error: no such session [CONFIG_INVALID]\n"],
  ["it has 2 problems:\n  - a\n  - b", "error: it has 2 problems [CONFIG_INVALID]:\n  - a\n  - b\n"],
  ["nothing is there\n  - a", "error: nothing is there [CONFIG_INVALID]\n  - a\n"],
])("a failure's code belongs to its headline: %j", (message, expected) => {
  const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  printFailure(new LucidError("CONFIG_INVALID", message), false);
  expect(write.mock.calls.map(([text]) => String(text)).join("")).toBe(expected);
});
