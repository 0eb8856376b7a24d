import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { testServers } from "../support/servers.ts";
import { bareEnvironment, until } from "../support/worker-process.ts";

const servers = testServers();
const REPOSITORY = fileURLToPath(new URL("../..", import.meta.url));
const ENDS_MS = 10_000;

test("a SIGTERM to npm ends the program that its script runs, and not only a shell", async () => {
  const npm = spawn("npm", ["run", "--silent", "services", "--", "--json"], {
    cwd: REPOSITORY,
    env: { ...bareEnvironment(), REDIS_URL: servers.redisUrl, MONGODB_URL: servers.mongodbUrl },
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
  npm.kill("SIGTERM");
  expect((await closed)[0]).toBe(0);
});

function endGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // All of it has ended.
  }
}
