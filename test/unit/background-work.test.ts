import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { LucidError } from "../../src/core/errors.ts";
import { BackgroundWork } from "../../src/pipeline/relay-events.ts";

test("background work has settled when what it has added has, too", async () => {
  const background = new BackgroundWork();
  const ended: string[] = [];
  const failed = (code: string) => void ended.push(code);
  const later = async (): Promise<void> => {
    await sleep(5);
    throw new LucidError("STORE_UNAVAILABLE", "any");
  };
  const first = async (): Promise<void> => {
    await sleep(1);
    ended.push("first");
    background.add(later(), failed);
  };
  background.add(first(), failed);
  await background.settled();
  expect(ended).toEqual(["first", "STORE_UNAVAILABLE"]);
  await background.settled();
});
