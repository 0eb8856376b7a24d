import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, onTestFinished, test } from "vitest";
import { dropTrial } from "../../deploy/local/trial.ts";
import { ownFolder } from "../support/own-servers.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment, type ProgramResult, runProgram, until } from "../support/worker-process.ts";

const PROGRAM = fileURLToPath(new URL("../../src/cli/session-processor.ts", import.meta.url));
const GONE_MS = 20_000;
const EXIT_INTERRUPTED = 130;
const PASSED_ON_AFTER_MS = 10;
const IS_LINUX = process.platform === "linux";

/** Processes that work in this folder or have it on their command line. */
function processesIn(folder: string): readonly string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => {
      try {
        const command = readFileSync(`/proc/${pid}/cmdline`, "utf8");
        return command.includes(folder) || readlinkSync(`/proc/${pid}/cwd`).startsWith(folder);
      } catch {
        // Gone in the meantime, or somebody else's.
        return false;
      }
    });
}

const servers = testServers();

/** On the servers of the run, with a file of one chunk. */
function runDemo(folder: string, env: NodeJS.ProcessEnv): Promise<ProgramResult> {
  const file = join(folder, "small");
  writeFileSync(file, "a small file\n");
  const urls = { REDIS_URL: servers.redisUrl, MONGODB_URL: servers.mongodbUrl };
  return runProgram(["demo", file], { env: { ...bareEnvironment(), ...urls, ...env } });
}

function signalGroup(demo: ChildProcess, signal: NodeJS.Signals): void {
  if (demo.pid !== undefined) process.kill(-demo.pid, signal);
}

describe("demo", () => {
  test("--json proves a small file and prints one object with the agreed keys", async () => {
    const folder = ownFolder();
    const file = join(folder, "small");
    writeFileSync(file, "a small file\n".repeat(200_000));
    const env = { ...bareEnvironment(), TMPDIR: folder };
    const { code, stdout, stderr } = await runProgram(["demo", file, "--json"], { env });
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const report = JSON.parse(stdout) as Record<string, unknown>;
    expect(report).toMatchObject({ chunks: 3, bytes: 2_600_000, events: 4, restored_identical: true });
    expect(report["verified"]).toBe(true);
    expect(report["file"]).toBe(file);
    expect(report["python_verifier"]).toMatch(/^verified$|^skipped: ./);
    expect(report["root_hash"]).toMatch(/^[0-9a-f]{64}$/);
    for (const key of ["stored_bytes", "seconds", "mb_per_s"]) expect(report[key]).toBeGreaterThan(0);
    for (const key of ["redis", "mongodb"]) expect(report[key]).toMatch(/\d+\.\d+/);
    expect(readdirSync(folder).filter((name) => name.startsWith("session-processor"))).toEqual([]);
    if (IS_LINUX) expect(processesIn(folder)).toEqual([]);
  });

  test("ends with the commands of an auditor, as one would type them", async () => {
    const folder = ownFolder();
    const { code, stderr } = await runDemo(folder, { TMPDIR: folder });
    expect(code).toBe(0);
    const commands = stderr.split("\n").filter((line) => line.startsWith("audit: "));
    expect(commands[0]).toMatch(
      /^audit: npx session-processor verify \S+_manifest\.json --key [\w+/]{43}= --data$/,
    );
    expect(commands[1]).toMatch(
      /^audit: npx session-processor proof sess-demo-[0-9a-f]{12} 0 -o \S+\.json --force$/,
    );
    expect(commands[2]).toMatch(/^audit: .*python3 \S*verify\.py proof \S+ --key |is skipped: ./);
  });

  test("says which file, and with --keep keeps the worker's log and commands that can be repeated", async () => {
    const folder = ownFolder();
    const file = join(folder, "small");
    writeFileSync(file, "a small file\n");
    const urls = { REDIS_URL: servers.redisUrl, MONGODB_URL: servers.mongodbUrl };
    const env = { ...bareEnvironment(), ...urls, TMPDIR: folder };
    const { code, stdout, stderr } = await runProgram(["demo", file, "--keep"], { env });
    expect(code).toBe(0);
    expect(stderr).toMatch(new RegExp(`^file: ${file}, 13 B$`, "m"));
    expect(stdout).toMatch(new RegExp(`^file +${file}$`, "m"));
    const kept = /^kept: (\S+) /m.exec(stderr)?.[1] ?? "";
    const lines = readFileSync(join(kept, "worker", "worker.log"), "utf8")
      .trimEnd()
      .split("\n");
    expect(lines.map((line) => (JSON.parse(line) as { event: string }).event)).toContain("session_sealed");
    const settings = readFileSync(join(kept, "demo.env"), "utf8").matchAll(/^export (\w+)='([^']*)'$/gm);
    const own = Object.fromEntries([...settings].map(([, name, value]) => [name, value]));
    const prove = /^audit: npx session-processor (proof .+)$/m.exec(stderr)?.[1] ?? "";
    try {
      expect(await runProgram(prove.split(" "), { env: { ...env, ...own } })).toMatchObject({ code: 0 });
      const checked = await runProgram(["fsck", "--data", "--json"], { env: { ...env, ...own } });
      expect(checked.code).toBe(0);
      expect(JSON.parse(checked.stdout)).toMatchObject({ findings: [] });
    } finally {
      await dropTrial({
        mongodbUrl: own["MONGODB_URL"] ?? "",
        redisUrl: servers.redisUrl,
        queuePrefix: own["QUEUE_PREFIX"] ?? "",
      });
    }
  });

  test("without Python says in one line why the Python verifier is skipped", async () => {
    const folder = ownFolder();
    const { code, stdout, stderr } = await runDemo(folder, { PATH: join(folder, "nothing") });
    expect(code).toBe(0);
    expect(stderr).toContain(
      "audit: the Python verifier (deploy/verify) is skipped: there is no python3 on PATH\n",
    );
    expect(stdout).toMatch(/^by Python +skipped: there is no python3 on PATH$/m);
  });

  test("fails when the Python verifier refuses what our own accepts", async () => {
    const folder = ownFolder();
    const python = `#!/bin/sh\ncase "$1" in -c) exit 0;; esac\necho '{"verified": false, "reason": "planted"}'\nexit 1\n`;
    writeFileSync(join(folder, "python3"), python, { mode: 0o755 });
    const { code, stdout, stderr } = await runDemo(folder, { PATH: `${folder}:${process.env["PATH"]}` });
    expect(code).toBe(1);
    expect(stderr).toContain("REFUSED: planted");
    expect(stdout).toMatch(/^by Python +REFUSED/m);
  });

  test("interrupted while its servers start ends with 130 and leaves no process, and a folder only with --keep", async () => {
    const [plain, keeping] = await Promise.all([
      interruptedDemo([], /Redis: /),
      interruptedDemo(["--keep"], /Redis: /),
    ]);
    expect(plain).toMatchObject({ left: [] });
    expect(keeping.left).toEqual([/^kept: (\S+) /m.exec(keeping.said)?.[1]]);
  });

  test.each([
    ["fails", "redis://127.0.0.1:1", 1, "LOCAL_SERVER_UNAVAILABLE"],
    ["is interrupted", "", EXIT_INTERRUPTED, "SHUTTING_DOWN"],
  ])(
    "--keep --json that %s says in its error object where its folder is",
    async (_, redisUrl, code, error) => {
      const folder = ownFolder();
      const env = { ...bareEnvironment(), TMPDIR: folder, REDIS_URL: redisUrl };
      const demo = spawn(process.execPath, [PROGRAM, "demo", "--keep", "--json"], {
        env,
        stdio: ["ignore", "ignore", "pipe"],
      });
      onTestFinished(() => void demo.kill("SIGKILL"));
      const closed = once(demo, "close");
      let said = "";
      demo.stderr.setEncoding("utf8").on("data", (text: string) => {
        said += text;
      });
      const kept = await until("there is a folder", () => readdirSync(folder)[0], 60_000);
      if (redisUrl === "") demo.kill("SIGINT");
      expect((await closed)[0]).toBe(code);
      expect(JSON.parse(said)).toEqual({
        error: { code: error, message: expect.any(String), kept: join(folder, kept) },
      });
      expect(readdirSync(folder)).toEqual([kept]);
    },
  );

  test("interrupted in the middle of the work does too, and with --keep says where its folder is", async () => {
    const working = /worker: process \d+/;
    const [plain, keeping] = await Promise.all([
      interruptedDemo([], working),
      interruptedDemo(["--keep"], working),
    ]);
    expect(plain).toMatchObject({ left: [] });
    const kept = /^kept: (\S+) /m.exec(keeping.said)?.[1] ?? "";
    expect(keeping.left).toEqual([kept]);
    expect(readFileSync(join(kept, "demo.env"), "utf8")).toContain("ENCRYPTION_KEY=");
  });
});

/**
 * What a terminal sends for Ctrl-C, to the whole foreground group, and what npm passes on to the demo besides; what the demo has
 * said, and the folders that it left.
 */
async function interruptedDemo(
  flags: readonly string[],
  moment: RegExp,
): Promise<{ readonly said: string; readonly left: readonly string[] }> {
  const folder = ownFolder();
  const demo = spawn(process.execPath, [PROGRAM, "demo", ...flags], {
    env: { ...bareEnvironment(), TMPDIR: folder },
    detached: true,
    stdio: ["ignore", "ignore", "pipe"],
  });
  onTestFinished(() => {
    if (demo.exitCode === null && demo.signalCode === null) signalGroup(demo, "SIGKILL");
  });
  const closed = once(demo, "close");
  let said = "";
  demo.stderr.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  await until(`the demo says ${moment}`, () => moment.test(said), 60_000);
  signalGroup(demo, "SIGINT");
  await sleep(PASSED_ON_AFTER_MS);
  demo.kill("SIGINT");
  const [code] = (await closed) as [number | null];
  expect(code).toBe(EXIT_INTERRUPTED);
  expect(said).toContain("interrupted");
  expect(said).not.toContain("    at ");
  if (IS_LINUX) await until("its processes are gone", () => processesIn(folder).length === 0, GONE_MS);
  const left = readdirSync(folder).filter((name) => name.startsWith("session-processor"));
  return { said, left: left.map((name) => join(folder, name)) };
}
