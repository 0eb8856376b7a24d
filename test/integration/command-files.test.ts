import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { openStores } from "../../src/cli/open-stores.ts";
import { writeOutputFile } from "../../src/cli/files.ts";
import { asBuffer, utf8 } from "../../src/core/bytes.ts";
import { REPOSITORY } from "../support/planted-tree.ts";
import {
  copyToStores,
  KEK_TEXT,
  PINNED_KEY,
  type RecordedSession,
  recordSession,
  sealInStores,
} from "../support/recorded-session.ts";
import { seededRandom } from "../support/seeded-random.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment, until } from "../support/worker-process.ts";

const servers = testServers();
const CLI = join(REPOSITORY, "src/cli/session-processor.ts");
const KEY = asBuffer(PINNED_KEY).toString("base64");
const IS_LINUX = process.platform === "linux";
const EXIT_INTERRUPTED = 130;
const CHUNKS = 20;
const CHUNK_BYTES = 65_536;
/** A command that hangs fails its test by this, and not the whole run. */
const COMMAND_MS = 30_000;

const home = mkdtempSync(join(tmpdir(), "command-files-"));
const audited = join(home, "audited");
let session: RecordedSession;
let content: Buffer;
let folder: string;

beforeAll(async () => {
  const random = seededRandom(1);
  const payloads = Array.from({ length: CHUNKS }, () => random.bytes(CHUNK_BYTES));
  content = Buffer.concat(payloads);
  session = await recordSession(payloads, { id: servers.sessionId("files"), codecs: ["none"] });
  const stores = await openStores(servers.mongodbUrl);
  await copyToStores(session, stores);
  await sealInStores(session, stores);
  await stores.close();
  mkdirSync(join(audited, "blobs"), { recursive: true });
  for (const [name, bytes] of session.files) writeFileSync(join(audited, name), bytes);
  for (const [index, blob] of session.blobs.entries())
    writeFileSync(join(audited, "blobs", `${index}.blob`), blob);
});
afterAll(() => rmSync(home, { recursive: true, force: true }));
beforeEach(() => {
  folder = mkdtempSync(join(home, "test-"));
});

interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function env(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  return {
    ...bareEnvironment(),
    MONGODB_URL: servers.mongodbUrl,
    REDIS_URL: servers.redisUrl,
    QUEUE_PREFIX: servers.queuePrefix,
    ENCRYPTION_KEY: KEK_TEXT,
    CPU_THREADS: "1",
    LUCID_MANIFEST_PATH: join(folder, "no-manifests"),
    ...more,
  };
}

/** `redirect` is the shell's, such as `> /dev/full`. */
function start(args: readonly string[], more: NodeJS.ProcessEnv = {}, redirect = ""): ChildProcess {
  const words = [process.execPath, CLI, ...args];
  const command = ["-c", `exec "$0" "$@" ${redirect}`, ...words];
  const child = spawn("/bin/sh", command, { cwd: folder, env: env(more), stdio: ["ignore", "pipe", "pipe"] });
  onTestFinished(() => {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
  });
  return child;
}

async function resultOf(child: ChildProcess): Promise<Ran> {
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name]?.setEncoding("latin1").on("data", (text: string) => {
      output[name] += text;
    });
  }
  const late = setTimeout(() => child.kill("SIGKILL"), COMMAND_MS);
  const [code] = (await once(child, "close")) as [number | null];
  clearTimeout(late);
  return { code, ...output };
}

function run(args: readonly string[], more: NodeJS.ProcessEnv = {}, redirect = ""): Promise<Ran> {
  return resultOf(start(args, more, redirect));
}

function fifo(path: string): void {
  expect(spawnSync("mkfifo", [path]).status).toBe(0);
}

const oneLine = (words: RegExp): RegExp => new RegExp(`^error: [^\\n]*${words.source}[^\\n]*\\n$`);

describe("-o", () => {
  test("restores into a new file of any name that only its owner reads", async () => {
    const name = `ü ${"x".repeat(250)}`;
    expect(await run(["restore", session.id, "-o", name])).toMatchObject({ code: 0, stderr: "" });
    expect(readFileSync(join(folder, name)).equals(content)).toBe(true);
    expect(statSync(join(folder, name)).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual([name]);
  });

  test.each([
    ["a directory", "dir", /dir is a directory/],
    ["a folder that isn't there", "nowhere/out", /nowhere\/out can't be written: its folder doesn't exist/],
    ["a file", "file", /file exists and stays as it is/],
    ["a link, also a dangling one", "link", /link exists and stays as it is/],
    ["a FIFO", "fifo", /fifo exists and stays as it is/],
  ])("refuses %s before anything is read, and leaves it alone", async (_, name, words) => {
    mkdirSync(join(folder, "dir"));
    writeFileSync(join(folder, "file"), "mine");
    symlinkSync("nothing", join(folder, "link"));
    fifo(join(folder, "fifo"));
    const before = readdirSync(folder);
    for (const command of [
      ["restore", session.id],
      ["proof", session.id, "0"],
      ["keys", "generate", "--signing"],
    ]) {
      const away = { MONGODB_URL: "mongodb://127.0.0.1:1/x" };
      const result = await run([...command, "-o", name], away);
      expect(result, command.join(" ")).toMatchObject({ code: 2, stdout: "" });
      expect(result.stderr, command.join(" ")).toMatch(oneLine(words));
    }
    expect(readdirSync(folder)).toEqual(before);
    expect(readFileSync(join(folder, "file"), "utf8")).toBe("mine");
  });

  test("replaces a file with --force, and nothing but a file", async () => {
    writeFileSync(join(folder, "file"), "mine");
    expect((await run(["restore", session.id, "-o", "file", "--force"])).code).toBe(0);
    expect(readFileSync(join(folder, "file")).equals(content)).toBe(true);
    expect((await run(["proof", session.id, "0", "-o", "file", "--force"])).code).toBe(0);
    expect(readFileSync(join(folder, "file"), "utf8")).toContain('"leaf_index":0');
    mkdirSync(join(folder, "dir"));
    fifo(join(folder, "fifo"));
    for (const name of ["dir", "fifo"]) {
      expect((await run(["restore", session.id, "-o", name, "--force"])).code).toBe(2);
    }
    expect(readdirSync(folder)).toEqual(["dir", "fifo", "file"]);
  });

  test("leaves no plaintext behind when the last step fails", async () => {
    const target = join(folder, "target");
    const blocks = async function* (): AsyncGenerator<Uint8Array> {
      yield utf8("plaintext");
      mkdirSync(target);
      writeFileSync(join(target, "occupied"), "");
    };
    for (const force of [true, false]) {
      await expect(writeOutputFile(target, blocks(), { force })).rejects.toMatchObject({
        code: "CONFIG_INVALID",
      });
      expect(readdirSync(folder)).toEqual(["target"]);
      rmSync(target, { recursive: true });
    }
  });

  test("passes on what the content fails with, and leaves nothing", async () => {
    const failure = new Error("the blob is gone");
    const blocks = async function* (): AsyncGenerator<Uint8Array> {
      yield utf8("plaintext");
      throw failure;
    };
    await expect(writeOutputFile(join(folder, "x"), blocks(), {})).rejects.toBe(failure);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("on a full disk says so, and leaves nothing", async (context) => {
    const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]).status === 0;
    context.skip(!mounted, "mounting a tmpfs is not permitted here");
    try {
      const result = await run(["restore", session.id, "-o", join(folder, "out")]);
      expect(result).toMatchObject({ code: 1, stdout: "" });
      expect(result.stderr).toMatch(
        oneLine(/\/out could not be written to its end: the file system is full/),
      );
      expect(readdirSync(folder)).toEqual([]);
    } finally {
      spawnSync("umount", [folder]);
    }
  });
});

describe("the first SIGTERM or SIGINT", () => {
  /** A way to MongoDB that is blocked once so many bytes have come through. */
  async function blockedAfter(
    bytesMax: number,
  ): Promise<{ readonly url: string; readonly blocked: () => boolean }> {
    const [, host = "", port = ""] = /\/\/(?:[^@/]*@)?([^:/,]+):(\d+)/.exec(servers.mongodbUrl) ?? [];
    let passed = 0;
    const server = createServer((client) => {
      const upstream = connect(Number(port), host);
      client.pipe(upstream);
      upstream.on("data", (bytes: Buffer) => {
        passed += bytes.byteLength;
        if (passed > bytesMax) upstream.pause();
        else client.write(bytes);
      });
      for (const socket of [client, upstream]) {
        socket.on("error", () => undefined);
        socket.on("close", () => {
          client.destroy();
          upstream.destroy();
        });
        onTestFinished(() => void socket.destroy());
      }
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const own = (server.address() as AddressInfo).port;
    return {
      url: servers.mongodbUrl.replace(`${host}:${port}`, `127.0.0.1:${own}`),
      blocked: () => passed > bytesMax,
    };
  }

  test.each(["SIGTERM", "SIGINT"] as const)(
    "ends a restore whose database hangs, %s, and leaves no part of the file",
    async (signal) => {
      const way = await blockedAfter((CHUNKS * CHUNK_BYTES) / 2);
      const child = start(["restore", session.id, "-o", "out"], { MONGODB_URL: way.url });
      const ended = resultOf(child);
      await until("the way is blocked", way.blocked, COMMAND_MS);
      await until("a part is written", () => readdirSync(folder).length > 0, COMMAND_MS);
      const sentMs = performance.now();
      child.kill(signal);
      expect(await ended).toMatchObject({ code: EXIT_INTERRUPTED, stdout: "", stderr: "interrupted\n" });
      expect(performance.now() - sentMs).toBeLessThan(10_000);
      expect(readdirSync(folder)).toEqual([]);
    },
  );

  test("ends a restore into a pipe that nobody reads", async () => {
    const child = start(["restore", session.id]);
    const closed = once(child, "close");
    let said = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    await once(child.stdout ?? child, "readable");
    child.kill("SIGTERM");
    const [code] = (await once(child, "exit")) as [number | null];
    expect(code).toBe(EXIT_INTERRUPTED);
    child.stdout?.destroy();
    await closed;
    expect(said).toBe("interrupted\n");
  });
});

describe.skipIf(!existsSync("/dev/full"))("a result that can't be written", () => {
  test.each([
    [1, ["restore", "SESSION"]],
    [1, ["status"]],
    [1, ["status", "SESSION", "--json"]],
    [1, ["proof", "SESSION", "3"]],
    [1, ["config"]],
    [1, ["verify", "MANIFEST", "--key", KEY]],
    [8, ["fsck", "SESSION"]],
  ])("exits with %i and one line: %j on a full device", async (code, args) => {
    const names: Record<string, string> = {
      SESSION: session.id,
      MANIFEST: join(audited, session.names.manifest),
    };
    const result = await run(
      args.map((arg) => names[arg] ?? arg),
      {},
      "> /dev/full",
    );
    expect(result.code).toBe(code);
    const said = args.includes("--json")
      ? /^\{"error":\{"code":"OUTPUT_FAILED",.*\n$/
      : oneLine(/\[OUTPUT_FAILED\]/);
    expect(result.stderr).toMatch(said);
  });

  test("is the same when its reader has gone", async () => {
    const child = start(["restore", session.id]);
    child.stdout?.destroy();
    expect(await resultOf(child)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(oneLine(/its reader has gone \[OUTPUT_FAILED\]/)) as unknown,
    });
  });

  test("a stderr that can't be written hinders nothing", async () => {
    const { code, stdout } = await run(["restore", session.id], {}, "2> /dev/full");
    expect(code).toBe(0);
    expect(Buffer.from(stdout, "latin1").equals(content)).toBe(true);
  });
});

describe.skipIf(!IS_LINUX)("a FIFO in a stranger's folder", () => {
  const verify = (more: readonly string[] = []): Promise<Ran> =>
    run(["verify", join(audited, session.names.manifest), "--key", KEY, "--json", ...more], {
      MONGODB_URL: "",
    });

  /** Until the end of the test. */
  function fifoInsteadOf(path: string): void {
    renameSync(path, `${path}.kept`);
    fifo(path);
    onTestFinished(() => {
      unlinkSync(path);
      renameSync(`${path}.kept`, path);
    });
  }

  test("for the manifest is wrong usage", async () => {
    fifo(join(folder, "m.json"));
    const result = await run(["verify", "m.json", "--key", KEY]);
    expect(result).toMatchObject({ code: 2, stdout: "" });
    expect(result.stderr).toMatch(oneLine(/m\.json is not a regular file/));
  });

  test.each([
    ["chunks", "chunks file", "MANIFEST_INVALID"],
    ["checkpoint", "checkpoint", "MANIFEST_INVALID"],
    ["anchor", "anchor file", "MANIFEST_INVALID"],
  ] as const)("for the %s file is refused", async (name, part, code) => {
    fifoInsteadOf(join(audited, session.names[name]));
    const { code: exit, stdout } = await verify();
    expect({ exit, ...(JSON.parse(stdout) as object) }).toMatchObject({
      exit: 1,
      verified: false,
      part,
      code,
      reason: expect.stringContaining("is not a regular file") as unknown,
    });
  });

  test("for a blob is refused, and named", async () => {
    fifoInsteadOf(join(audited, "blobs", "7.blob"));
    const { code, stdout } = await verify(["--blobs", join(audited, "blobs")]);
    expect({ code, ...(JSON.parse(stdout) as object) }).toMatchObject({
      verified: false,
      part: "blob",
      place: "chunk 7",
      code: "BLOB_MALFORMED",
    });
  });

  test("for a proof, checkpoint, manifest or key of verify-proof is wrong usage", async () => {
    fifo(join(folder, "fifo"));
    await run(["proof", session.id, "3", "-o", "p.json"]);
    for (const args of [
      ["fifo", "--key", KEY],
      ["p.json", "--key", KEY, "--checkpoint", "fifo"],
      ["p.json", "--key", KEY, "--manifest", "fifo"],
      ["p.json", "--key", "fifo"],
      ["p.json", "--keys", "fifo"],
    ]) {
      const result = await run(["verify-proof", ...args]);
      expect(result, args.join(" ")).toMatchObject({ code: 2, stdout: "" });
      expect(result.stderr).toMatch(oneLine(/fifo is not a regular file/));
    }
  });
});
