import { InvalidArgumentError } from "commander";
import { describe, expect, test } from "vitest";
import { parseChunkCount, parseCount, parseCountFromOne, parseIndex } from "../../src/cli/arguments.ts";

function refusal(parse: (text: string) => number, text: string): string {
  try {
    parse(text);
  } catch (thrown) {
    if (thrown instanceof InvalidArgumentError) return thrown.message;
    throw thrown;
  }
  throw new Error(`${text} was taken`);
}

describe("a number is taken from one end of its range to the other, and what is refused is told that range", () => {
  test.each([
    ["a count of chunks", parseChunkCount, [1, 4_294_967_296], "must be a whole number from 1 to 4294967296"],
    ["a chunk index", parseIndex, [0, 4_294_967_295], "must be a whole number from 0 to 4294967295"],
    ["a count", parseCount, [0, 99_999_999_999], "must be a whole number, 0 or more"],
    ["a count from one", parseCountFromOne, [1, 99_999_999_999], "must be a whole number, 1 or more"],
  ] as const)("%s", (_, parse, [low, high], message) => {
    expect(parse(String(low))).toBe(low);
    expect(parse(String(high))).toBe(high);
    const wrong = ["", "1.5", "1M", "-1", "+1", "0x1", " 1", "1e3", "9".repeat(40)];
    if (low === 1) wrong.push("0");
    if (message.includes(" to ")) wrong.push(String(high + 1));
    for (const text of wrong) expect(refusal(parse, text), text).toBe(message);
  });
});
