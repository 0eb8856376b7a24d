import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Redis } from "ioredis";
import { MongoClient } from "mongodb";
import { afterEach, describe, expect, test } from "vitest";
import { freePort } from "../../deploy/local/free-port.ts";
import {
  type LocalServer,
  startLocalMongodb,
  startLocalRedis,
  startLocalServers,
} from "../../deploy/local/servers.ts";

/** The first start on a machine may fetch or install a server. */
const START_MS = 300_000;
const GONE_DEADLINE_MS = 15_000;
const SERVICES = fileURLToPath(new URL("../../deploy/local/services.ts", import.meta.url));

const { REDIS_URL: _redis, MONGODB_URL: _mongodb, ...env } = process.env;
const nothingInstalled = { PATH: "/nonexistent", DOCKER_HOST: "unix:///nonexistent/docker.sock" };

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

function stopAfterwards<T extends { stop(): Promise<void> }>(server: T): T {
  undo.push(() => server.stop());
  return server;
}

function folderForTest(): string {
  const folder = mkdtempSync(join(tmpdir(), "session-processor-test-"));
  undo.push(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function redisCall<T>(
  { url }: Pick<LocalServer, "url">,
  call: (client: Redis) => Promise<T>,
): Promise<T> {
  const client = new Redis(url, { retryStrategy: () => null, maxRetriesPerRequest: 0 });
  client.on("error", () => {});
  try {
    return await call(client);
  } finally {
    client.disconnect();
  }
}

async function mongoCall<T>(
  { url }: Pick<LocalServer, "url">,
  call: (client: MongoClient) => Promise<T>,
): Promise<T> {
  const client = new MongoClient(url, { serverSelectionTimeoutMS: 5_000 });
  try {
    return await call(client);
  } finally {
    await client.close();
  }
}

function isRunning(pid: number | undefined): boolean {
  if (pid === undefined) return false;
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function until(fact: () => boolean): Promise<boolean> {
  const givesUpAt = performance.now() + GONE_DEADLINE_MS;
  while (!fact() && performance.now() < givesUpAt) await sleep(20);
  return fact();
}

interface Services {
  readonly process: ChildProcess;
  readonly redis: { readonly url: string; readonly pid?: number };
  readonly mongodb: { readonly url: string; readonly pid?: number };
  readonly folder: string;
}

async function startServices(...flags: readonly string[]): Promise<Services> {
  // A group of its own, to which a test sends what a terminal sends for Ctrl-C.
  const child = spawn(process.execPath, [SERVICES, "--json", ...flags], {
    env,
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
  });
  undo.push(() => child.kill("SIGKILL"));
  const [line] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
  return { process: child, ...(JSON.parse(line) as Omit<Services, "process">) };
}

describe("npm run services", () => {
  test.each([
    ["--help", 0],
    ["--nope", 2],
    ["--folder=", 2],
  ])("with %s prints its usage and exits with %i", (flag, status) => {
    const child = spawnSync(process.execPath, [SERVICES, flag], { encoding: "utf8" });
    expect(child.status).toBe(status);
    expect(status === 0 ? child.stdout : child.stderr).toContain("Usage: npm run services");
    expect(child.stderr).not.toContain("    at ");
  });
});

describe("a folder that somebody names", () => {
  const refusedStart = (folder: string, more: NodeJS.ProcessEnv = {}) =>
    spawnSync(process.execPath, [SERVICES, "--folder", folder], {
      encoding: "utf8",
      env: { ...env, ...more },
    });

  test.each(["REDIS_URL", "MONGODB_URL"])(
    "is there after a start that failed for the server of %s, with all that was in it",
    async (name) => {
      const folder = folderForTest();
      mkdirSync(join(folder, "redis"));
      const files = ["notes.txt", "redis/appendonly.mine"].map((file) => join(folder, file));
      for (const file of files) writeFileSync(file, "mine");
      const scheme = name === "REDIS_URL" ? "redis" : "mongodb";
      const { status, stderr } = refusedStart(folder, {
        [name]: `${scheme}://127.0.0.1:${await freePort()}`,
      });
      expect({ status, stderr }).toEqual({
        status: 1,
        stderr: expect.stringContaining(`of ${name} does not`),
      });
      expect(files.map((file) => readFileSync(file, "utf8"))).toEqual(["mine", "mine"]);
    },
    START_MS,
  );

  test(
    "is refused while another run uses it, which goes on with its data; and is free after that run was killed",
    async () => {
      const folder = folderForTest();
      const first = await startServices("--folder", folder);
      await redisCall(first.redis, (client) => client.set("key", "value"));
      const before = readdirSync(folder, { recursive: true });
      const { status, stderr } = refusedStart(folder);
      expect({ status, stderr }).toEqual({
        status: 1,
        stderr: expect.stringContaining(
          `${folder} is in use by process ${first.process.pid} (npm run services)`,
        ),
      });
      expect(readdirSync(folder, { recursive: true })).toEqual(before);
      expect(await redisCall(first.redis, (client) => client.get("key"))).toBe("value");

      const ended = once(first.process, "exit");
      first.process.kill("SIGKILL");
      await ended;
      const second = await startServices("--folder", folder);
      expect([first.redis.pid, first.mongodb.pid].map(isRunning)).toEqual([false, false]);
      expect(await redisCall(second.redis, (client) => client.get("key"))).toBe("value");
      const endedToo = once(second.process, "exit");
      second.process.kill("SIGTERM");
      expect(await endedToo).toEqual([0, null]);
      expect(readdirSync(folder).toSorted()).toEqual(["mongodb", "redis"]);
    },
    START_MS,
  );

  test("that can't be one is said, without a stack", () => {
    const file = join(folderForTest(), "file");
    writeFileSync(file, "mine");
    const { status, stderr } = refusedStart(file);
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringContaining(`${file} is no folder`),
    });
    expect(stderr).not.toContain("    at ");
    expect(readFileSync(file, "utf8")).toBe("mine");
  });
});

describe("npm run services, one of whose servers ends", () => {
  test.each(["redis", "mongodb"] as const)(
    "says in one line that %s is gone, ends the other and exits with 1",
    async (name) => {
      const services = await startServices();
      const lines: string[] = [];
      createInterface({ input: services.process.stderr as Readable }).on("line", (line) => lines.push(line));
      process.kill(services[name].pid ?? Number.NaN, "SIGKILL");
      expect(await once(services.process, "exit")).toEqual([1, null]);
      const said = lines.filter((one) => one.includes("has ended"));
      expect(said).toEqual([
        expect.stringMatching(name === "redis" ? /^Redis \(.*\) has/ : /^MongoDB \(.*\) has/),
      ]);
      expect([services.redis.pid, services.mongodb.pid].map(isRunning)).toEqual([false, false]);
      expect(existsSync(services.folder)).toBe(false);
    },
    START_MS,
  );
});

describe("both servers", () => {
  test(
    "answer, and are gone with their folder after stop",
    async () => {
      const lines: string[] = [];
      const servers = stopAfterwards(await startLocalServers({ say: (line) => lines.push(line), env }));

      expect(await redisCall(servers.redis, (client) => client.ping())).toBe("PONG");
      const found = await mongoCall(servers.mongodb, async (client) => {
        const things = client.db().collection<{ _id: string; size: number }>("things");
        await things.insertOne({ _id: "one", size: 1 });
        return [client.db().databaseName, await things.findOne({ _id: "one" })];
      });
      expect(found).toEqual(["lucid", { _id: "one", size: 1 }]);
      expect(lines).toContainEqual(
        expect.stringContaining(`Redis: ${servers.redis.label}; passed over: REDIS_URL`),
      );
      expect(lines).toContainEqual(
        expect.stringContaining(`MongoDB: ${servers.mongodb.label}; passed over: MONGODB_URL`),
      );
      expect(servers.mongodb.label.includes("stand-in")).toBe(servers.mongodb.standIn);

      await servers.stop();
      await servers.stop();
      expect([servers.redis.pid, servers.mongodb.pid].map(isRunning)).toEqual([false, false]);
      expect(existsSync(servers.folder)).toBe(false);
    },
    START_MS,
  );

  test(
    "and their folder are gone soon after the process that started them is killed",
    async () => {
      const services = await startServices();
      services.process.kill("SIGKILL");
      expect(await until(() => !isRunning(services.redis.pid) && !isRunning(services.mongodb.pid))).toBe(
        true,
      );
      expect(await until(() => !existsSync(services.folder))).toBe(true);
    },
    START_MS,
  );

  test(
    "outlive a terminal's Ctrl-C until their process ends them itself",
    async () => {
      const services = await startServices();
      // Held still, it can't end anything: what the servers don't get through it, they don't get at all.
      services.process.kill("SIGSTOP");
      process.kill(-(services.process.pid ?? Number.NaN), "SIGINT");
      expect(await redisCall(services.redis, (client) => client.ping())).toBe("PONG");
      services.process.kill("SIGCONT");

      expect(await once(services.process, "exit")).toEqual([0, null]);
      expect([services.redis.pid, services.mongodb.pid].map(isRunning)).toEqual([false, false]);
      expect(existsSync(services.folder)).toBe(false);
    },
    START_MS,
  );

  test(
    "leave their data behind in a folder that was named",
    async () => {
      const folder = join(folderForTest(), "new");
      const servers = stopAfterwards(await startLocalServers({ say: () => {}, env, folder }));
      await servers.stop();
      expect(existsSync(servers.folder)).toBe(true);
      expect(isRunning(servers.redis.pid)).toBe(false);
    },
    START_MS,
  );

  test("are not started when the start is called off", async () => {
    const calledOff = new AbortController();
    const start = startLocalServers({ say: () => {}, env, signal: calledOff.signal });
    calledOff.abort(new Error("called off"));
    await expect(start).rejects.toThrow("called off");
  });
});

describe("a given server", () => {
  test(
    "is used and never stopped",
    async () => {
      const given = stopAfterwards(await startLocalRedis({ say: () => {}, env }));
      const used = await startLocalRedis({ say: () => {}, env: { ...env, REDIS_URL: given.url } });
      expect(used.url).toBe(given.url);
      expect(used.label).toContain("REDIS_URL");
      await used.stop();
      expect(await redisCall(given, (client) => client.ping())).toBe("PONG");
    },
    START_MS,
  );

  test(
    "that is the stand-in is still called one",
    async () => {
      const given = stopAfterwards(await startLocalMongodb({ say: () => {}, env }));
      const used = await startLocalMongodb({ say: () => {}, env: { ...env, MONGODB_URL: given.url } });
      expect([used.url, used.standIn]).toEqual([given.url, given.standIn]);
    },
    START_MS,
  );

  test("that does not answer is an error, not a reason to take another", async () => {
    const redisUrl = `redis://user:hunter2@127.0.0.1:${await freePort()}`;
    const start = startLocalRedis({ say: () => {}, env: { ...env, REDIS_URL: redisUrl } });
    await expect(start).rejects.toMatchObject({
      code: "LOCAL_SERVER_UNAVAILABLE",
      message: expect.not.stringContaining("hunter2"),
    });
  });
});

describe("Redis", () => {
  test("never evicts, writes its append-only file, and listens on loopback only", async () => {
    const redis = stopAfterwards(await startLocalRedis({ say: () => {}, env, dir: folderForTest() }));
    const settings = ["maxmemory-policy", "appendonly", "appendfsync", "save", "bind", "protected-mode"];
    const found = await redisCall(redis, (client) =>
      Promise.all(settings.map((name) => client.config("GET", name))),
    );
    expect(Object.fromEntries(found as [string, string][])).toEqual({
      "maxmemory-policy": "noeviction",
      appendonly: "yes",
      appendfsync: "everysec",
      save: "",
      bind: "127.0.0.1",
      "protected-mode": "yes",
    });
  });

  test("killed and started again on its port and folder has its data", async () => {
    const dir = folderForTest();
    const first = stopAfterwards(await startLocalRedis({ say: () => {}, env, dir }));
    await redisCall(first, (client) => client.set("key", "value"));
    process.kill(first.pid ?? Number.NaN, "SIGKILL");
    expect(await until(() => !isRunning(first.pid))).toBe(true);

    const port = Number(new URL(first.url).port);
    const second = stopAfterwards(await startLocalRedis({ say: () => {}, env, dir, port }));
    expect(second.url).toBe(first.url);
    expect(await redisCall(second, (client) => client.get("key"))).toBe("value");
  });

  test("started many times at once gets as many ports", async () => {
    const starts = Array.from({ length: 4 }, () => startLocalRedis({ say: () => {}, env }));
    const servers = (await Promise.all(starts)).map(stopAfterwards);
    expect(new Set(servers.map(({ url }) => url)).size).toBe(servers.length);
  });

  test("asked for a port that is taken is an error that says so", async () => {
    const holder = createServer((socket) => socket.destroy()).listen(0, "127.0.0.1");
    await once(holder, "listening");
    undo.push(() => holder.close());
    const port = (holder.address() as { port: number }).port;
    const start = startLocalRedis({ say: () => {}, env, port });
    await expect(start).rejects.toThrow(/in use/i);
  });

  test("does not keep the process that started it from ending, and ends with it", async () => {
    const script = `
      import { startLocalRedis } from ${JSON.stringify(new URL("../../deploy/local/servers.ts", import.meta.url).href)};
      console.log((await startLocalRedis({ say: () => {} })).pid);`;
    const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
      env,
      stdio: ["ignore", "pipe", "inherit"],
    });
    undo.push(() => child.kill("SIGKILL"));
    const printed = once(child.stdout, "data");
    expect(await once(child, "exit")).toEqual([0, null]);
    const pid = Number(String(await printed));
    expect(await until(() => !isRunning(pid))).toBe(true);
  });

  test("that can't be had is an error that says what to install", async () => {
    const start = startLocalRedis({ say: () => {}, env: nothingInstalled });
    await expect(start).rejects.toMatchObject({
      code: "LOCAL_SERVER_UNAVAILABLE",
      message: expect.stringMatching(
        /no redis-server .* on PATH; no Docker engine answers; .*Install redis-server/,
      ),
    });
  });

  test("does not wait for a Docker engine that never answers", async () => {
    const path = join(folderForTest(), "docker.sock");
    const silent = createServer((socket) => undo.push(() => socket.destroy())).listen(path);
    await once(silent, "listening");
    undo.push(() => silent.close());
    const start = startLocalRedis({
      say: () => {},
      env: { ...nothingInstalled, DOCKER_HOST: `unix://${path}` },
    });
    await expect(start).rejects.toThrow("no Docker engine answers");
  });
});

describe("MongoDB", () => {
  test(
    "stopped and started again on its port and folder has its data",
    async () => {
      const dir = folderForTest();
      const first = stopAfterwards(await startLocalMongodb({ say: () => {}, env, dir }));
      await mongoCall(first, (client) => client.db().collection("things").insertOne({ size: 2 }));
      await first.stop();

      const port = Number(new URL(first.url).port);
      const second = stopAfterwards(await startLocalMongodb({ say: () => {}, env, dir, port }));
      expect(second.url).toBe(first.url);
      expect(await mongoCall(second, (client) => client.db().collection("things").countDocuments())).toBe(1);
    },
    START_MS,
  );
});
