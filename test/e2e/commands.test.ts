import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { generateSigningKey } from "../../src/adapters/file/signing-key.ts";
import { sessionId } from "../../src/core/ids.ts";
import { Deployment, payloadOf, untilSealed } from "../support/deployment.ts";
import { testServers } from "../support/servers.ts";
import { type ProgramResult, runProgram, until } from "../support/worker-process.ts";

const servers = testServers();
const DOOR = fileURLToPath(new URL("../../src/cli/bin.js", import.meta.url));

const EXIT_FAILURE = 1;
const EXIT_USAGE = 2;

/** The one JSON object that a command with --json prints. */
function resultOf({ code, stdout, stderr }: ProgramResult): unknown {
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return JSON.parse(stdout);
}

function failureOf({ code, stdout, stderr }: ProgramResult, exitCode: number): unknown {
  expect({ code, stdout }).toEqual({ code: exitCode, stdout: "" });
  return (JSON.parse(stderr) as { error: unknown }).error;
}

describe("the commands", () => {
  test("take a file through the worker and back, bit for bit", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], stdin: string | Uint8Array = "") =>
      runProgram(args, { env: deployment.env, cwd: deployment.folder, stdin });
    const id = servers.sessionId("commands");
    const content = payloadOf(id, 0, 250_001);
    const input = join(deployment.folder, "input");
    writeFileSync(input, content);

    const enqueued = resultOf(await run(["enqueue", id, input, "--chunk-size", "100000", "--json"]));
    expect(enqueued).toEqual({
      session_id: id,
      chunks: 3,
      bytes: content.byteLength,
      chunk_count: 3,
      finalized: false,
      session_checked: true,
      committed_before: 0,
    });
    const more = ["enqueue", id, "-", "--first-index", "3", "--store", "inline", "--algorithm", "brotli"];
    expect(resultOf(await run([...more, "--json"], "from standard input"))).toMatchObject({
      chunks: 1,
      chunk_count: 4,
    });
    const waiting = resultOf(await run(["status", "--json"])) as { queues: { queue: string }[] };
    expect(waiting.queues).toContainEqual(
      expect.objectContaining({ queue: "session-chunks", waiting: 4, failed: 0 }),
    );
    expect(resultOf(await run(["finalize", id, "--chunks", "4", "--json"]))).toEqual({
      session_id: id,
      chunk_count: 4,
      session_checked: true,
      session_exists: false,
      queued: true,
    });

    await deployment.readyWorker();
    await untilSealed(deployment, [{ id, sizes: [] }], 20_000);
    const status = resultOf(await run(["status", id, "--json"])) as { root_hash: string };
    expect(status).toMatchObject({ session_id: id, state: "sealed", tree_size: 4, missing: [] });
    expect(status.root_hash).toMatch(/^[0-9a-f]{64}$/);

    const output = join(deployment.folder, "output");
    expect(resultOf(await run(["restore", id, "-o", output, "--json"]))).toMatchObject({
      chunks: 4,
      bytes: content.byteLength + 19,
      partial: false,
      missing: [],
    });
    const expected = Buffer.concat([content, Buffer.from("from standard input")]);
    expect(Buffer.compare(readFileSync(output), expected)).toBe(0);
    const last = await run(["restore", id, "--from", "3"]);
    expect(last).toMatchObject({ code: 0, stdout: "from standard input" });

    // What can only become a dead letter isn't queued.
    const doomed: readonly (readonly [string, readonly string[]])[] = [
      ["SESSION_SEALED", ["enqueue", id, input, "--first-index", "4"]],
      ["SESSION_SEALED", ["enqueue", id, input, "--chunk-size", "10000"]],
      ["CHUNK_CONFLICT", ["enqueue", id, input, "--chunk-size", "250001"]],
      ["FINALIZE_COUNT_CONFLICT", ["enqueue", id, input, "--chunk-size", "100000", "--finalize"]],
      ["FINALIZE_COUNT_CONFLICT", ["finalize", id, "--chunks", "5"]],
    ];
    for (const [code, args] of doomed) {
      expect(failureOf(await run([...args, "--json"]), EXIT_FAILURE), args.join(" ")).toMatchObject({ code });
    }
    const repeated = await run(["enqueue", id, input, "--chunk-size", "100000", "--json"]);
    expect(resultOf(repeated)).toMatchObject({ chunks: 3 });
    const again = await run(["finalize", id, "--chunks", "4"]);
    expect(again.stdout).toBe(
      `${id} is sealed already, with its 4 chunks, and stays as it is: nothing was queued\n`,
    );
    const last4th = ["enqueue", id, "-", "--first-index", "3", "--finalize"];
    const queuedAgain = await run(last4th, "from standard input");
    expect(queuedAgain).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("is sealed already, with 4 chunks, and stays as it is") as unknown,
    });
    const withoutDatabase = await runProgram(["finalize", id, "--chunks", "5"], {
      env: { ...deployment.env, MONGODB_URL: "" },
      cwd: deployment.folder,
    });
    expect(withoutDatabase).toMatchObject({
      code: 0,
      stderr: expect.stringContaining("MONGODB_URL is not set: not checked") as unknown,
    });
    const failed = async (): Promise<boolean> => {
      const { queues } = resultOf(await run(["status", "--json"])) as { queues: { failed_codes: object }[] };
      return queues.some((queue) => "FINALIZE_COUNT_CONFLICT" in queue.failed_codes);
    };
    await until("status shows the code of the dead letter", failed, 30_000, 500);
    expect((await run(["status"])).stdout).toMatch(/1 failed \(FINALIZE_COUNT_CONFLICT 1\)/);
  });

  test("other chunks under an open session are told to who sends them, and become no dead letters", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], stdin = "") =>
      runProgram(args, { env: deployment.env, cwd: deployment.folder, stdin });
    const id = servers.sessionId("open");
    const send = (text: string) => run(["enqueue", id, "-", "--chunk-size", "4", "--json"], text);
    await deployment.readyWorker();
    expect(resultOf(await send("aaaabbbbcc"))).toMatchObject({ chunks: 3 });
    const inTree = async (): Promise<boolean> =>
      (JSON.parse((await run(["status", id, "--json"])).stdout || "{}") as { tree_size?: number })
        .tree_size === 3;
    await until("all chunks are in the tree", inTree, 20_000, 200);
    expect(failureOf(await send("aaaabbbbcccc"), EXIT_FAILURE)).toMatchObject({ code: "CHUNK_CONFLICT" });
    const refused = await run(["enqueue", id, "-", "--chunk-size", "4"], "aaaabbbbcccc");
    expect(refused.stderr).toMatch(
      /^2 chunks had been queued; sending the same again does no harm\nerror: .+ \[CHUNK_CONFLICT\]\n$/,
    );
    expect(resultOf(await send("aaaabbbbcc"))).toMatchObject({ chunks: 3 });
    expect(resultOf(await send("aaaa"))).toMatchObject({ chunks: 1 });
    const shorter = await run(["enqueue", id, "-", "--chunk-size", "4"], "aaaa");
    expect(shorter.stdout).toContain(`finalize ${id} --chunks 3`);
    const tooHigh = await run(["finalize", id, "--chunks", "5"]);
    expect(tooHigh.stdout).toContain("waits for them: 3 are in its tree now, and the count is final");
    const { queues } = resultOf(await run(["status", "--json"])) as { queues: { failed: number }[] };
    expect(queues.map(({ failed }) => failed)).toEqual(queues.map(() => 0));
  });

  test("who sends under an open session hears what is committed already, and the count of all that is there", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], stdin = "", env = deployment.env) =>
      runProgram(args, { env, cwd: deployment.folder, stdin });
    const id = servers.sessionId("gap");
    const send = (text: string, first: number, ...more: readonly string[]) =>
      run(["enqueue", id, "-", "--chunk-size", "4", "--first-index", String(first), ...more], text);
    await deployment.readyWorker();
    expect((await send("ccccddddeeee", 2)).stdout).toMatch(new RegExp(`finalize ${id} --chunks 5\\n$`));
    const committed = async (count: number): Promise<boolean> => {
      const { chunks } = await deployment.stores();
      return (await chunks.beyond(sessionId(id), 0, 10)).length === count;
    };
    await until("three are committed", () => committed(3), 20_000, 100);

    const inFront = await send("aaaa", 0);
    expect(inFront.stdout).toBe(
      `queued 1 chunk, 4 B; next: npx session-processor finalize ${id} --chunks 5\n`,
    );
    await until("the first is committed", () => committed(4), 20_000, 100);
    const other = await send("bbbbXXXXdddd", 1);
    expect(other.stdout).toContain(
      "queued 3 chunks, 12 B; 2 of them were committed already and stay: any with other bytes fails with CHUNK_CONFLICT " +
        "(npx session-processor status); next: ",
    );
    expect(other.stdout).toContain(`finalize ${id} --chunks 5\n`);
    expect(resultOf(await send("aaaa", 0, "--json"))).toMatchObject({ committed_before: 1, chunk_count: 1 });
    const conflict = async (): Promise<boolean> =>
      (await run(["status"])).stdout.includes("1 failed (CHUNK_CONFLICT 1)");
    await until("status shows the one that failed", conflict, 20_000, 300);

    const unchecked = await run(["enqueue", id, "-", "--json"], "aaaa", {
      ...deployment.env,
      MONGODB_URL: "",
    });
    expect(resultOf(unchecked)).toMatchObject({ session_checked: false, committed_before: null });
    const told = await run(["enqueue", id, "-"], "aaaa", { ...deployment.env, MONGODB_URL: "" });
    expect(told.stdout).toContain(
      `finalize ${id} --chunks COUNT, with the number of all its chunks: 1, if there is none beyond these; ` +
        "the session could not be looked at\n",
    );
  });

  test("sending again brings back a session that the database lost, while its jobs are still kept as done", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], stdin: string | Uint8Array = "") =>
      runProgram(args, { env: deployment.env, cwd: deployment.folder, stdin });
    const id = servers.sessionId("lost");
    const send = () => run(["enqueue", id, "-", "--chunk-size", "4", "--finalize", "--json"], "aaaabbbbcccc");
    const before = await deployment.readyWorker();
    expect(resultOf(await send())).toMatchObject({ chunks: 3 });
    await untilSealed(deployment, [{ id, sizes: [] }], 20_000);
    await before.terminate();

    const db = await deployment.db();
    for (const name of ["sessions", "chunks", "chunk_blobs", "merkle_tiles"]) {
      const ofSession = new RegExp(`^${id}(?::|$)`);
      await db.collection<{ _id: string }>(name).deleteMany({ _id: ofSession });
    }
    expect(await run(["status", id])).toMatchObject({ code: EXIT_FAILURE });
    await deployment.readyWorker();
    expect(resultOf(await send())).toMatchObject({ chunks: 3 });
    await untilSealed(deployment, [{ id, sizes: [] }], 20_000);
    expect(await run(["restore", id])).toMatchObject({ code: 0, stdout: "aaaabbbbcccc" });
  });

  test("finalize cuts no session short: it wants the count that was sent, and says what is there", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], stdin = "") =>
      runProgram(args, { env: deployment.env, cwd: deployment.folder, stdin });
    const id = servers.sessionId("count");
    const withoutCount = async (): Promise<string> => {
      const failure = failureOf(await run(["finalize", id, "--json"]), EXIT_USAGE);
      expect(failure).toMatchObject({ code: "CONFIG_INVALID" });
      return (failure as { message: string }).message;
    };
    const wanted = "give the number of chunks that were sent with --chunks, which is final";
    expect(await withoutCount()).toBe(`${wanted}; ${id} is not in the database yet`);
    await deployment.readyWorker();
    resultOf(await run(["enqueue", id, "-", "--chunk-size", "4", "--json"], "aaaabbbbcc"));
    const inTree = async () => (await run(["status", id])).stdout.includes("3 (not finalized)");
    await until("all chunks are in the tree", inTree, 20_000, 200);
    expect(await withoutCount()).toBe(
      `${wanted}; the tree of ${id} has 3 chunks now, and more may be queued`,
    );
    expect(await deployment.queue("session-control").getJobs()).toEqual([]);

    const elsewhere = { env: { ...deployment.env, MONGODB_URL: "" }, cwd: deployment.folder };
    const unknown = await runProgram(["finalize", id], elsewhere);
    expect(unknown).toMatchObject({ code: EXIT_USAGE, stderr: `error: ${wanted} [CONFIG_INVALID]\n` });
    expect(resultOf(await runProgram(["finalize", id, "--chunks", "3", "--json"], elsewhere))).toMatchObject({
      session_checked: false,
      session_exists: null,
    });
    const typo = await run(["finalize", `${id}-typo`, "--chunks", "3"]);
    expect(typo).toMatchObject({ code: 0, stderr: "" });
    expect(typo.stdout).toContain(
      `${id}-typo is not in the database yet: if its chunks aren't queued either, check the id`,
    );
    expect((await run(["finalize", "--help"])).stdout).toContain("A count is final");
  });

  test("restore gives an unsealed session out only to who asks for a part", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], stdin: string | Uint8Array = "") =>
      runProgram(args, { env: deployment.env, cwd: deployment.folder, stdin });
    const id = servers.sessionId("partial");
    resultOf(await run(["enqueue", id, "-", "--chunk-size", "4", "--json"], "aaaabbbbcccc"));
    resultOf(
      await run(["enqueue", id, "-", "--chunk-size", "4", "--first-index", "5", "--json"], "ffffgggg"),
    );
    await deployment.readyWorker();
    const arrived = async (): Promise<boolean> => {
      const { stdout } = await run(["status", id, "--json"]);
      if (stdout === "") return false;
      const { tree_size, waiting_for_gap } = JSON.parse(stdout) as Record<string, unknown>;
      return tree_size === 3 && waiting_for_gap === 2;
    };
    await until("all chunks are committed", arrived, 20_000, 300);

    expect((await run(["enqueue", `${id}-one`, "-"], "x")).stdout).toMatch(/^queued 1 chunk, 1 B;/);

    const refused = await run(["restore", id]);
    expect(refused).toMatchObject({ code: EXIT_USAGE, stdout: "" });
    expect(refused.stderr).toBe(
      `error: ${id} is not sealed: its tree has 3 chunks; missing: chunks 3–4; 2 wait behind the tree; ` +
        "nobody has said how many there are (finalize); " +
        "--partial restores the 3 chunks in the tree, --from and --to some of them [CONFIG_INVALID]\n",
    );
    expect(await run(["restore", id, "-o", "whole"])).toMatchObject({ code: EXIT_USAGE });
    expect(await run(["restore", id, "--from", "1", "--to", "2"])).toMatchObject({
      code: 0,
      stdout: "bbbbcccc",
    });
    const partial = await run(["restore", id, "--partial"]);
    expect(partial).toMatchObject({ code: 0, stdout: "aaaabbbbcccc" });
    expect(partial.stderr).toMatch(
      /^warning: \S+ is not sealed: its tree has 3 chunks; missing: chunks 3–4;/,
    );
    expect(resultOf(await run(["restore", id, "--partial", "-o", "part", "--json"]))).toMatchObject({
      chunks: 3,
      state: "open",
      partial: true,
      expected_count: null,
      missing: [[3, 4]],
      waiting_for_gap: 2,
    });
    expect((await run(["restore", id, "--from", "2", "--to", "1"])).stderr).toContain(
      "--from 2 comes after --to 1",
    );
    expect((await run(["restore", id, "--from", "3"])).stderr).toContain("the tree has 3 chunks");
  });

  test("fail with 1, or 2 for wrong usage, and a code on stderr, as an object with --json, and print no result", async () => {
    const deployment = new Deployment(servers);
    const run = (args: readonly string[], env: NodeJS.ProcessEnv = {}) =>
      runProgram(args, { env: { ...deployment.env, ...env }, cwd: deployment.folder });
    const empty = join(deployment.folder, "empty");
    writeFileSync(empty, "");
    const cases: readonly (readonly [string, readonly string[], NodeJS.ProcessEnv?])[] = [
      ["SESSION_UNKNOWN", ["status", "sess-nobody"]],
      ["JOB_INVALID", ["enqueue", "sess-1", empty, "--algorithm", "brotli", "--level", "12"]],
      ["JOB_INVALID", ["finalize", "sess-1", "--chunks", "1", "--started-at", "noon"]],
      ["PAYLOAD_EMPTY", ["enqueue", "sess-1", empty]],
      ["CONFIG_INVALID", ["enqueue", "sess-1", empty, "--chunk-size", "9999999"]],
      ["CONFIG_INVALID", ["restore", "sess-1"]],
      ["CONFIG_INVALID", ["demo", "no-such-file"]],
      ["CONFIG_INVALID", ["status"], { REDIS_URL: "nonsense" }],
      ["QUEUE_UNAVAILABLE", ["status"], { REDIS_URL: "redis://127.0.0.1:1" }],
      ["STORE_UNAVAILABLE", ["status", "sess-1"], { MONGODB_URL: "mongodb://127.0.0.1:1/x" }],
    ];
    const failing = cases.map(async ([code, args, env]) => {
      const result = await run([...args, "--json"], env);
      const exitCode = code === "CONFIG_INVALID" || code === "JOB_INVALID" ? EXIT_USAGE : EXIT_FAILURE;
      expect(failureOf(result, exitCode), args.join(" ")).toMatchObject({
        code,
        message: expect.any(String),
      });
      expect(result.stderr).not.toContain("    at ");
    });
    await Promise.all(failing);
    const plain = await run(["status", "sess-nobody"]);
    expect(plain).toMatchObject({ code: EXIT_FAILURE, stdout: "" });
    expect(plain.stderr).toMatch(
      /^error: .+ if its chunks are still queued, .+ npx session-processor status shows the queues \[SESSION_UNKNOWN\]\n$/,
    );
  });

  test("say what they wait for while Redis doesn't answer, once, and with --json nothing but the error", async () => {
    const deployment = new Deployment(servers);
    const file = join(deployment.folder, "recording");
    writeFileSync(file, "recorded");
    const env = { ...deployment.env, REDIS_URL: "redis://127.0.0.1:1" };
    const commands = [["enqueue", "sess-1", file], ["finalize", "sess-1", "--chunks", "1"], ["status"]];
    const waiting = commands.map(async (args) => {
      const run = (more: readonly string[]) =>
        runProgram([...args, ...more], { env, cwd: deployment.folder });
      const [{ code, stdout, stderr }, json] = await Promise.all([run([]), run(["--json"])]);
      expect({ code, stdout }, args.join(" ")).toEqual({ code: EXIT_FAILURE, stdout: "" });
      expect(stderr, args.join(" ")).toMatch(
        /^Redis does not answer \(REDIS_URL\): waiting for it, for \d+ seconds at most\nerror: .+ \[QUEUE_UNAVAILABLE\]\n$/,
      );
      expect(failureOf(json, EXIT_FAILURE)).toMatchObject({ code: "QUEUE_UNAVAILABLE" });
    });
    await Promise.all(waiting);
  });

  test("answer wrong usage with 2 and a pointer to --help, and --help with 0", async () => {
    const run = (args: readonly string[]) => runProgram(args, { env: { PATH: process.env["PATH"] } });
    const wrong = [
      [],
      ["no-such-command"],
      ["enqueue"],
      ["enqueue", "s", "f", "--no-such-option"],
      ["enqueue", "s", "f", "--first-index", "minus"],
      ["finalize", "s", "--type", "no-such-type"],
      ["finalize", "s", "--chunks", "0"],
      ["enqueue", "s", "f", "--chunk-size", "0"],
      ["status", "no such id"],
    ];
    const refusing = wrong.map(async (args) => {
      const { code, stdout, stderr } = await run(args);
      expect({ code, stdout }, args.join(" ")).toEqual({ code: EXIT_USAGE, stdout: "" });
      expect(stderr, args.join(" ")).toContain("--help");
    });
    await Promise.all(refusing);
    expect((await run(["status", "bad:id"])).stderr).toMatch(
      /^error: 'bad:id' is no valid session: it must be 1 to 100 /,
    );
    expect((await run(["restore", "s", "--from", "x"])).stderr).toMatch(
      /^error: 'x' is not valid for --from <index>: it must be a whole number/,
    );
    const help = await run(["--help"]);
    expect(help.code).toBe(0);
    for (const name of ["run", "demo", "enqueue", "finalize", "status", "restore", "config"])
      expect(help.stdout).toMatch(new RegExp(`^ +${name}\\b`, "m"));
  });

  test("are refused with one line by a Node.js that is too old", async () => {
    const old =
      "Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.19.0' } })";
    const child = spawnSync(process.execPath, ["--import", `data:text/javascript,${old}`, DOOR, "status"], {
      encoding: "utf8",
    });
    expect(child).toMatchObject({ status: 1, stdout: "" });
    expect(child.stderr).toMatch(
      /^error: this needs Node\.js 24 or newer[^\n]*: start it with a newer one; [^\n]+ not after npm ci --omit=dev\n$/,
    );
    const now = spawnSync(process.execPath, [DOOR, "--version"], { encoding: "utf8" });
    expect(now.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test("config prints every setting and its source, and no secret", async () => {
    const deployment = new Deployment({ ...servers, env: { JWT_SECRET_KEY: "token0marker" } });
    const result = await runProgram(["config", "--json"], { env: deployment.env, cwd: deployment.folder });
    const { settings } = resultOf(result) as { settings: Record<string, unknown> };
    expect(settings).toMatchObject({
      MAX_WORKERS: { value: "10", source: "default", secret: false },
      CPU_THREADS: { value: "1", source: "environment" },
      ENCRYPTION_KEY: { secret: true },
    });
    expect(result.stdout).not.toContain(deployment.encryptionKey);
    expect(result.stdout).not.toContain("token0marker");
    expect(JSON.parse(result.stdout)).toMatchObject({ run_would_refuse: null });

    const { PATH } = process.env;
    const bare = await runProgram(["config"], { env: { PATH }, cwd: deployment.folder });
    expect(bare).toMatchObject({ code: EXIT_FAILURE, stderr: "" });
    expect(bare.stdout).toMatch(/^MONGODB_URL +\(required, not set\)$/m);
    const run = await runProgram(["run"], { env: { PATH }, cwd: deployment.folder });
    const reason = run.stderr.replace(/^error: (the configuration has .+) \[CONFIG_INVALID\]:$/m, "$1:");
    expect(bare.stdout.endsWith(`run would refuse: ${reason}`)).toBe(true);

    const noKeyFile = { ...deployment.env, ENCRYPTION_KEY: "", ENCRYPTION_KEY_FILE: "no-such-file" };
    for (const unusable of [{ ...deployment.env, MAX_WORKERS: "none" }, noKeyFile]) {
      const refused = await runProgram(["config"], { env: unusable, cwd: deployment.folder });
      expect(refused).toMatchObject({ code: EXIT_USAGE, stdout: "" });
      expect(refused.stderr).toMatch(/^error: the configuration has 1 problem \[CONFIG_INVALID\]:\n {2}- /);
    }
    const { stdout: help } = await runProgram(["config", "--help"], { env: { PATH } });
    for (const code of [0, 1, 2]) expect(help).toMatch(new RegExp(`^ {2}${code} {2}\\w`, "m"));

    const MANIFEST_SIGNING_KEY_FILE = join(deployment.folder, "signing-key.pem");
    writeFileSync(MANIFEST_SIGNING_KEY_FILE, generateSigningKey().privatePem, { mode: 0o644 });
    const env = { ...deployment.env, MANIFEST_SIGNING_KEY_FILE };
    const open = await runProgram(["config", "--json"], { env, cwd: deployment.folder });
    expect(open).toMatchObject({ code: EXIT_FAILURE, stderr: "" });
    const { run_would_refuse: refusal } = JSON.parse(open.stdout) as { readonly run_would_refuse: string };
    expect(refusal).toContain(`${MANIFEST_SIGNING_KEY_FILE} is open to others; chmod 0600 it`);
    const refused = await runProgram(["run"], { env, cwd: deployment.folder });
    expect(refused).toMatchObject({
      code: EXIT_FAILURE,
      stderr: `error: ${refusal} [SIGNING_KEY_UNUSABLE]\n`,
    });
  });
});
