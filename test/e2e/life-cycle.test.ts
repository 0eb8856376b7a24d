import { once } from "node:events";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { freePort } from "../../deploy/local/free-port.ts";
import { generateSigningKey } from "../../src/adapters/file/signing-key.ts";
import {
  Deployment,
  expectEveryEffectOnce,
  finalizeAll,
  inTurn,
  untilSealed,
} from "../support/deployment.ts";
import { OwnServer, ownFolder } from "../support/own-servers.ts";
import { testServers } from "../support/servers.ts";
import {
  bareEnvironment,
  type HttpAnswer,
  runProgram,
  until,
  type WorkerProcess,
} from "../support/worker-process.ts";

const servers = testServers();

/** The bar's "≤ 1 log line/s", and one line more for where a second begins. */
function linesAllowed(milliseconds: number): number {
  return Math.ceil(milliseconds / 1000) + 1;
}

describe("a worker with a signing key", () => {
  function signing(): { readonly deployment: Deployment; readonly MANIFEST_SIGNING_KEY_FILE: string } {
    const deployment = new Deployment(servers);
    const MANIFEST_SIGNING_KEY_FILE = join(deployment.folder, "signing-key.pem");
    writeFileSync(MANIFEST_SIGNING_KEY_FILE, generateSigningKey().privatePem, { mode: 0o600 });
    return { deployment, MANIFEST_SIGNING_KEY_FILE };
  }

  test("makes the folder for manifests if none is named, and is ready", async () => {
    const { deployment, MANIFEST_SIGNING_KEY_FILE } = signing();
    await deployment.readyWorker({ MANIFEST_SIGNING_KEY_FILE, LUCID_MANIFEST_PATH: undefined });
    expect(existsSync(join(deployment.folder, "data", "manifests"))).toBe(true);
  });

  test("doesn't make a folder that is named: it isn't ready, and says why, before that is there", async () => {
    const { deployment, MANIFEST_SIGNING_KEY_FILE } = signing();
    const manifests = join(deployment.folder, "disk", "manifests");
    const worker = deployment.startWorker({ MANIFEST_SIGNING_KEY_FILE, LUCID_MANIFEST_PATH: manifests });
    await worker.untilLine("not_ready", 20_000);
    expect(worker.linesOf("not_ready")).toMatchObject([
      {
        level: "warn",
        what: "manifest_directory",
        reason: expect.stringContaining("check that LUCID_MANIFEST_PATH exists") as unknown,
      },
    ]);
    expect(await worker.get("/ready")).toMatchObject({ status: 503 });
    expect(worker.linesOf("ready")).toEqual([]);
    expect(existsSync(manifests)).toBe(false);
    mkdirSync(manifests, { recursive: true });
    await worker.untilReady();
    expect(await worker.get("/ready")).toMatchObject({ status: 200 });
  });
});

describe("a worker that starts before its servers", () => {
  const WATCHED_MS = 4_000;

  test("is healthy and not ready, says at most once a second what it waits for, and then works", async () => {
    const [redisPort, mongoPort, httpPort] = [await freePort(), await freePort(), await freePort()];
    const deployment = new Deployment({
      redisUrl: `redis://127.0.0.1:${redisPort}`,
      mongodbUrl: `mongodb://127.0.0.1:${mongoPort}/lucid`,
      queuePrefix: "{early}",
    });
    const worker = deployment.startWorker({ SESSION_PROCESSOR_PORT: String(httpPort) });
    await worker.untilLine("waiting_for", 20_000);
    const before = worker.lines.length;
    await sleep(WATCHED_MS);
    expect(worker.lines.length - before).toBeLessThanOrEqual(linesAllowed(WATCHED_MS));
    expect(worker.linesOf("waiting_for")).toContainEqual(
      expect.objectContaining({
        what: "mongodb",
        level: "warn",
        err: expect.objectContaining({
          message: expect.stringContaining("MONGODB_URL") as unknown,
        }) as unknown,
      }),
    );
    expect(await worker.get("/health", httpPort)).toMatchObject({ status: 200 });
    const ready = await worker.get("/ready", httpPort);
    expect(ready.status).toBe(503);
    expect(ready.body).toContain("starting");
    const { body: metrics } = await worker.get("/metrics", httpPort);
    expect(metrics).toContain("lucid_ready 0");
    expect(metrics).toContain('lucid_dependency_up{dependency="mongodb"} 0');

    // MongoDB first: then it is Redis that it waits for.
    await OwnServer.mongodb(mongoPort);
    await until(
      "it waits for Redis",
      () => worker.linesOf("waiting_for").some(({ what }) => what === "redis"),
      20_000,
    );
    const beforeRedis = worker.lines.length;
    await sleep(WATCHED_MS);
    expect(worker.lines.length - beforeRedis).toBeLessThanOrEqual(linesAllowed(WATCHED_MS));
    expect(worker.linesOf("ready")).toEqual([]);
    expect(await worker.get("/health", httpPort)).toMatchObject({ status: 200 });
    expect(await worker.get("/ready", httpPort)).toMatchObject({ status: 503 });

    expect(worker.linesOf("waiting_for").at(-1)).toMatchObject({
      err: { message: expect.stringContaining("REDIS_URL") as unknown },
    });

    await OwnServer.redis(redisPort);
    await worker.untilReady();
    expect(await worker.get("/ready")).toMatchObject({ status: 200 });
    const [mongo, redis] = worker.lines.filter(({ event }) => event.startsWith("connected"));
    expect(mongo).toMatchObject(
      servers.mongodb.standIn
        ? { event: "connected_stand_in", level: "warn" }
        : { event: "connected", level: "info", what: expect.stringMatching(/\d+\.\d+/) as unknown },
    );
    expect(redis).toMatchObject({
      event: "connected",
      what: expect.stringMatching(/^\w+ \d+\.\d+/) as unknown,
    });
    const session = { id: "sess-early", sizes: [10, 5_000] };
    const heard = deployment.listen();
    const producer = deployment.producer();
    await producer.enqueueAll(inTurn([session]));
    await finalizeAll(producer, [session]);
    await untilSealed(deployment, [session], 10_000);
    await expectEveryEffectOnce(deployment, heard, [session]);
    expect(await worker.terminate()).toMatchObject({ code: 0 });
  });

  test("ends with 0 when it is told to while it waits, and a SIGHUP does not end it", async () => {
    const deployment = new Deployment({
      ...servers,
      mongodbUrl: `mongodb://127.0.0.1:${await freePort()}/lucid`,
    });
    const worker = deployment.startWorker();
    await worker.untilLine("waiting_for", 20_000);
    worker.signal("SIGHUP");
    await sleep(200);
    expect(worker.hasExited).toBe(false);
    const { code, afterSignalMs } = await worker.terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(6_000);
  });
});

describe("a worker that starts beside its servers", () => {
  const WATCHED_MS = 1_000;

  test("is healthy all along, ready when it says so, and has nothing to complain of", async () => {
    const deployment = new Deployment({ ...servers, env: { LOG_LEVEL: "debug" } });
    const port = await freePort();
    const worker = deployment.startWorker({ SESSION_PROCESSOR_PORT: String(port) });
    const answers: (HttpAnswer & { readonly early: boolean })[] = [];
    while (worker.linesOf("ready").length === 0) {
      await sleep(5);
      const early = worker.linesOf("ready").length === 0;
      // Refused until the sidecar is there.
      const both = await Promise.all([worker.get("/health", port), worker.get("/ready", port)]).catch(
        () => [],
      );
      const [health, ready] = both;
      if (health !== undefined) answers.push({ ...health, early });
      if (ready?.status === 200) expect(ready.body).toContain('"name":"cpu_threads","ok":true');
    }
    expect(answers.filter(({ early }) => early).length).toBeGreaterThan(3);
    expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
    expect(await worker.get("/ready")).toMatchObject({ status: 200 });
    await sleep(WATCHED_MS);
    expect(worker.linesOf("store_unavailable")).toEqual([]);
    expect(worker.lines.filter(({ level }) => level === "error" || level === "fatal")).toEqual([]);
    expect(await worker.terminate()).toMatchObject({ code: 0 });
  });

  test("is not ready before Redis takes all of its connections, and can be told to stop meanwhile", async () => {
    const door = await Door.to(Number(new URL(servers.redisUrl).port));
    const deployment = new Deployment({ ...servers, redisUrl: `redis://127.0.0.1:${door.port}` });
    const start = async (): Promise<WorkerProcess> => {
      door.letIn(1);
      const worker = deployment.startWorker({ SESSION_PROCESSOR_PORT: String(await freePort()) });
      await worker.untilLine("waiting_for", 20_000);
      expect(worker.linesOf("waiting_for").at(-1)).toMatchObject({ what: "redis" });
      return worker;
    };

    const { code, afterSignalMs } = await (await start()).terminate();
    expect(code).toBe(0);
    expect(afterSignalMs).toBeLessThan(6_000);

    const worker = await start();
    expect(worker.linesOf("ready")).toEqual([]);
    door.letIn(Number.POSITIVE_INFINITY);
    await worker.untilReady();
    expect(await worker.get("/ready")).toMatchObject({ status: 200 });
    // Of the connections that were cut, and not of a sweep that came too early.
    const stages = worker.linesOf("store_unavailable").map(({ stage }) => stage);
    expect(stages).not.toContain("events.marker");
  });
});

/** Stands before a server and lets so many connections in as it is told; the rest is cut. */
class Door {
  readonly #server: Server;
  #left = 0;

  private constructor(port: number) {
    const open = new Set<Socket>();
    this.#server = createServer((inside) => {
      if (this.#left <= 0) return void inside.destroy();
      this.#left -= 1;
      const outside = connect(port, "127.0.0.1");
      for (const [from, to] of [
        [inside, outside],
        [outside, inside],
      ] as const) {
        open.add(from);
        from.on("error", () => undefined).on("close", () => to.destroy());
        from.pipe(to);
      }
    });
    onTestFinished(() => {
      for (const socket of open) socket.destroy();
      this.#server.close();
    });
  }

  static async to(port: number): Promise<Door> {
    const door = new Door(port);
    door.#server.listen(0, "127.0.0.1");
    await once(door.#server, "listening");
    return door;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  letIn(connections: number): void {
    this.#left = connections;
  }
}

describe("a worker that may not start", () => {
  const start = (env: NodeJS.ProcessEnv) =>
    runProgram(["run"], { env: { ...bareEnvironment(), ...env }, cwd: ownFolder() });
  const urls = { REDIS_URL: "redis://127.0.0.1:1", MONGODB_URL: "mongodb://127.0.0.1:1/lucid" };

  test.each([
    ["none", undefined],
    ["a short one", "kurz-Qx7"],
    ["a placeholder", "change-me-change-me-change-me-0001"],
    ["a repeated one", "Qx7Qx7Qx7Qx7Qx7Qx7Qx7Qx7Qx7Qx7Qx7Qx7"],
  ])("exits with 1 and names ENCRYPTION_KEY, never its value: %s", async (_, key) => {
    const env = key === undefined ? urls : { ...urls, ENCRYPTION_KEY: key };
    const { code, stdout, stderr } = await start(env);
    expect(code).toBe(1);
    expect(stderr).toContain("ENCRYPTION_KEY");
    expect(stderr).toContain("[CONFIG_INVALID]");
    if (key !== undefined) expect(stdout + stderr).not.toContain(key);
  });

  test("names every mistake of its configuration at once, with the values that are no secrets", async () => {
    const secret = "hunter2-hunter2";
    const file = join(ownFolder(), "key");
    writeFileSync(file, secret, { mode: 0o600 });
    const { code, stdout, stderr } = await start({
      REDIS_URL: `http://user:${secret}@127.0.0.1`,
      MAX_WORKERS: "ten",
      LOG_LEVEL: "loud",
      QUEUE_SIZE: "0",
      ENCRYPTION_KEY_FILE: file,
    });
    expect(code).toBe(1);
    for (const name of [
      "MONGODB_URL",
      "REDIS_URL",
      "MAX_WORKERS",
      "LOG_LEVEL",
      "QUEUE_SIZE",
      "ENCRYPTION_KEY",
    ])
      expect(stderr).toContain(name);
    for (const value of ['"ten"', '"loud"', '"0"']) expect(stderr).toContain(value);
    expect(stdout + stderr).not.toContain(secret);
  });

  test("exits with 1 and one clear line when its port is taken", async () => {
    const deployment = new Deployment(servers);
    const first = await deployment.readyWorker();
    const second = deployment.startWorker({ SESSION_PROCESSOR_PORT: String(first.port) });
    expect(await second.exited).toMatchObject({ code: 1 });
    expect(second.output).toContain(`SESSION_PROCESSOR_PORT ${first.port}`);
    expect(second.output).toContain("another program, perhaps another worker, has that port");
    expect(second.output).not.toContain("    at ");
  });
});
