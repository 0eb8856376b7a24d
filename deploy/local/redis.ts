import { connect } from "node:net";
import { LucidError } from "../../src/core/errors.ts";
import { installDebianPackage } from "./debian-package.ts";
import { startContainer } from "./docker.ts";
import { onFreePort } from "./free-port.ts";
import { GuardedProcess } from "./guarded-process.ts";
import { type LocalServerOptions, type Placement, surroundingsOf, wantsOwnProcess } from "./placement.ts";
import { findOnPath, isAtLeast, run } from "./programs.ts";
import { type LocalServer, PassedOver, type Source, type Surroundings, startFirst } from "./source.ts";

const IMAGE = "redis:7.2-alpine";
const PROGRAMS = ["redis-server", "valkey-server"];
/** BullMQ's minimum. */
const VERSION_MIN = [6, 2];
const READY_DEADLINE_MS = 15_000;
const PROBE_DEADLINE_MS = 1_000;
const GIVEN_DEADLINE_MS = 5_000;
const REMEDY = "Install redis-server or valkey-server (6.2 or newer), or set REDIS_URL.";

export interface LocalRedisOptions extends LocalServerOptions {
  /** Default: true. The append-only file, synced once a second, as in production. */
  readonly appendonly?: boolean;
}

export function startRedisIn(placement: Placement, options: LocalRedisOptions): Promise<LocalServer> {
  const around = surroundingsOf(options);
  const start = (origin: string) => startFromPath(origin, placement, options, around);
  return startFirst(
    "Redis",
    [
      { name: "that of REDIS_URL", start: () => useGiven(options, around) },
      { name: "the one on PATH", start: () => start("PATH") },
      { name: "Docker", start: () => startDocker(options, around) },
      {
        name: "the Debian package",
        start: () => installAndStart(() => start("installed with apt-get"), around),
      },
    ],
    REMEDY,
    around,
  );
}

async function useGiven(options: LocalRedisOptions, { env }: Surroundings): Promise<LocalServer> {
  const url = env["REDIS_URL"];
  if (url === undefined || url === "") throw new PassedOver("REDIS_URL is not set");
  if (wantsOwnProcess(options)) throw new PassedOver("REDIS_URL names no process of ours");
  const version = await versionOfGiven(url);
  return { url, label: `redis ${version} (REDIS_URL)`, standIn: false, stop: async () => {} };
}

/** Whoever names a server wants that one: if it doesn't answer, another one would be the wrong answer. */
async function versionOfGiven(url: string): Promise<string> {
  const { Redis } = await import("ioredis");
  const client = new Redis(url, {
    lazyConnect: true,
    connectTimeout: GIVEN_DEADLINE_MS,
    commandTimeout: GIVEN_DEADLINE_MS,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
  });
  client.on("error", () => {}); // The rejected call says the same.
  try {
    await client.connect();
    return /redis_version:(\S+)/.exec(await client.info("server"))?.[1] ?? "of unknown version";
  } catch (cause) {
    const message = "the Redis of REDIS_URL does not answer; start it, correct the URL, or unset it";
    throw new LucidError("LOCAL_SERVER_UNAVAILABLE", message, { cause });
  } finally {
    client.disconnect();
  }
}

async function startDocker(options: LocalRedisOptions, around: Surroundings): Promise<LocalServer> {
  if (wantsOwnProcess(options)) throw new PassedOver("Docker gives no process of ours");
  return startContainer(
    {
      image: IMAGE,
      port: 6379,
      command: ["redis-server", ...durabilityArgs(options)],
      urlOf: (host, port) => `redis://${host}:${port}`,
    },
    around,
  );
}

async function installAndStart(start: Source["start"], around: Surroundings): Promise<LocalServer> {
  // What is there and would not start is not mended by installing it again.
  if (findOnPath(PROGRAMS, around.env) !== undefined)
    throw new PassedOver("the installed one was tried already");
  await installDebianPackage(["redis-server"], around);
  return start();
}

async function startFromPath(
  origin: string,
  placement: Placement,
  options: LocalRedisOptions,
  around: Surroundings,
): Promise<LocalServer> {
  const program = findOnPath(PROGRAMS, around.env);
  if (program === undefined) throw new PassedOver("no redis-server or valkey-server on PATH");
  const { stdout } = await run(program, ["--version"], { env: around.env, deadlineMs: GIVEN_DEADLINE_MS });
  const [, family = "redis", version = "0"] = /^(\w+).* v=([\d.]+)/.exec(stdout) ?? [];
  const name = `${family.toLowerCase()}-server`;
  if (!isAtLeast(version, VERSION_MIN)) throw new PassedOver(`${name} ${version} on PATH is older than 6.2`);

  return onFreePort(options.port, async (port) => {
    const { dir } = placement;
    const args = ["--bind", "127.0.0.1", "--port", `${port}`, "--dir", dir, ...durabilityArgs(options)];
    const logFile = ["--logfile", `${dir}/${name}.log`];
    const command = { ...placement, name, program, args: [...args, ...logFile], env: around.env };
    const server = new GuardedProcess(command);
    const pid = await server.untilReady((own) => serves(port, own), READY_DEADLINE_MS, around.signal);
    return {
      url: `redis://127.0.0.1:${port}`,
      label: `${name} ${version} (${origin})`,
      standIn: false,
      pid,
      stop: () => server.stop(),
    };
  });
}

/** What the service asks of its Redis (facts of operation): never evict, lose at most a second, refuse strangers. */
function durabilityArgs({ appendonly = true }: LocalRedisOptions): string[] {
  return [
    ["--appendonly", appendonly ? "yes" : "no"],
    ["--appendfsync", "everysec"],
    ["--save", ""],
    ["--maxmemory-policy", "noeviction"],
  ].flat();
}

/**
 * Does process `pid` serve on `port`, with its data loaded? The process id matters: when two programs choose the same
 * free port, the one that came too late would otherwise take the other's server for its own.
 */
function serves(port: number, pid: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    let received = "";
    const socket = connect(port, "127.0.0.1");
    socket.setTimeout(PROBE_DEADLINE_MS, () => socket.destroy());
    socket.on("connect", () => socket.write("INFO\r\n"));
    socket.on("data", (bytes) => {
      received += bytes.toString("latin1");
      // "loading" comes after "process_id", in the section on persistence.
      if (/\bloading:\d\r\n/.test(received)) socket.destroy();
    });
    socket.on("error", () => {}); // Not listening yet; "close" follows.
    socket.on("close", () => {
      const ready = received.includes(`process_id:${pid}\r\n`) && /\bloading:0\r\n/.test(received);
      resolve(ready ? pid : undefined);
    });
  });
}
