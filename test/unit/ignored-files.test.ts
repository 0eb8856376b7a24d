import { spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { REPOSITORY } from "../support/planted-tree.ts";

const git = (args: readonly string[]) => spawnSync("git", args, { cwd: REPOSITORY, encoding: "utf8" });
const isCheckout = git(["rev-parse", "--is-inside-work-tree"]).status === 0;

describe.skipIf(!isCheckout)("git", () => {
  test.each([
    "kek",
    "manifest-signing-key.pem",
    "signing-key.pem",
    "data/manifests/sess-42_recording_manifest.json",
    "data/payloads/sess-42/0-aa",
    "audit/session-secret",
    "audit.partial/session-secret",
    "recording.bin",
  ])("leaves out %s, which the README's commands write", (path) => {
    expect(git(["check-ignore", "--no-index", "--quiet", path]).status).toBe(0);
  });

  test("leaves out nothing that is here to stay", () => {
    expect(git(["ls-files", "--cached", "--ignored", "--exclude-standard"]).stdout).toBe("");
  });
});
