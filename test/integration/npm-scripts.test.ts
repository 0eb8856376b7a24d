import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { ownFolder } from "../support/own-servers.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment, until } from "../support/worker-process.ts";

const servers = testServers();
const REPOSITORY = fileURLToPath(new URL("../..", import.meta.url));
const ENDS_MS = 10_000;

test.each([
  // As a supervisor does, and as one that signals the whole group does: then npm passes it on besides.
  ["npm", (pid: number) => pid],
  ["npm's group", (pid: number) => -pid],
])(
  "a SIGTERM to %s ends the program that its script runs in order, and not only a shell",
  async (_, target) => {
    const folder = ownFolder();
    const npm = spawn("npm", ["run", "--silent", "services", "--", "--json", "--folder", folder], {
      cwd: REPOSITORY,
      // With a Redis of its own, the end takes a moment, in which a second signal may come.
      env: { ...bareEnvironment(), MONGODB_URL: servers.mongodbUrl },
      stdio: ["ignore", "pipe", "pipe"],
      // Of its own group, so that nothing of it can outlive the test.
      detached: true,
    });
    const { pid } = npm;
    if (pid === undefined) throw new Error("npm did not start");
    onTestFinished(() => endGroup(pid));
    let said = "";
    npm.stderr.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    npm.stdout.resume();
    await until("the program runs", () => said.includes("until Ctrl-C"), 20_000);
    // The pipes close when the last process that holds them has ended, whoever its parent is by then.
    const closed = once(npm, "close", { signal: AbortSignal.timeout(ENDS_MS) });
    process.kill(target(pid), "SIGTERM");
    await closed;
    // In order: it has given its folder back.
    expect(readdirSync(folder)).toEqual(["redis"]);
  },
);

function endGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // All of it has ended.
  }
}
