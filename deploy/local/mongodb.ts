import { LucidError } from "../../src/core/errors.ts";
import { startContainer } from "./docker.ts";
import { findDownloadedMongod } from "./downloaded-mongod.ts";
import { onFreePort } from "./free-port.ts";
import { GuardedProcess } from "./guarded-process.ts";
import { STAND_IN_LABEL, type StandInOptions, startStandIn } from "./mongo-standin.ts";
import { type Placement, surroundingsOf, wantsOwnProcess } from "./placement.ts";
import { findOnPath, isAtLeast, lastLine, run } from "./programs.ts";
import { type LocalServer, PassedOver, type Surroundings, startFirst } from "./source.ts";

const IMAGE = "mongo:7";
const DATABASE = "lucid";
/** The driver's minimum. */
const VERSION_MIN = [4, 4];
const READY_DEADLINE_MS = 60_000;
const VERSION_DEADLINE_MS = 10_000;
const GIVEN_DEADLINE_MS = 5_000;
const REMEDY = "Install mongod (MongoDB 4.4 or newer), Docker, or Java 17 with Maven, or set MONGODB_URL.";

export type LocalMongodbOptions = StandInOptions;

export function startMongodbIn(placement: Placement, options: LocalMongodbOptions): Promise<LocalServer> {
  const around = surroundingsOf(options);
  const start = (program: string, origin: string) =>
    startProgram(program, origin, placement, options, around);
  return startFirst(
    "MongoDB",
    [
      { name: "that of MONGODB_URL", start: () => useGiven(options, around) },
      { name: "the mongod on PATH", start: async () => start(mongodOnPath(around.env), "PATH") },
      { name: "Docker", start: () => startDocker(options, around) },
      {
        name: "a mongod that is downloaded",
        start: async () => start(await findDownloadedMongod(around), "downloaded"),
      },
      {
        name: "mongo-java-server, a stand-in",
        start: () => startStandIn(DATABASE, placement, options, around),
      },
    ],
    REMEDY,
    around,
  );
}

async function useGiven(options: LocalMongodbOptions, { env }: Surroundings): Promise<LocalServer> {
  const url = env["MONGODB_URL"];
  if (url === undefined || url === "") throw new PassedOver("MONGODB_URL is not set");
  if (wantsOwnProcess(options)) throw new PassedOver("MONGODB_URL names no process of ours");
  const { version, gitVersion } = await buildInfoOf(url);
  // Every build of MongoDB names its commit; the stand-in, which `npm run services` may have given, has none.
  const standIn = gitVersion === undefined;
  const label = standIn ? `${STAND_IN_LABEL} (MONGODB_URL)` : `mongod ${version} (MONGODB_URL)`;
  return { url, label, standIn, stop: async () => {} };
}

async function buildInfoOf(url: string): Promise<{ version?: string; gitVersion?: string }> {
  const { MongoClient } = await import("mongodb");
  const deadlines = { serverSelectionTimeoutMS: GIVEN_DEADLINE_MS, connectTimeoutMS: GIVEN_DEADLINE_MS };
  let client: InstanceType<typeof MongoClient> | undefined;
  try {
    client = new MongoClient(url, deadlines);
    return await client.db().command({ buildInfo: 1 });
  } catch (cause) {
    const message = "the MongoDB of MONGODB_URL does not answer; start it, correct the URL, or unset it";
    throw new LucidError("LOCAL_SERVER_UNAVAILABLE", message, { cause });
  } finally {
    await client?.close();
  }
}

async function startDocker(options: LocalMongodbOptions, around: Surroundings): Promise<LocalServer> {
  if (wantsOwnProcess(options)) throw new PassedOver("Docker gives no process of ours");
  const urlOf = (host: string, port: number) => `mongodb://${host}:${port}/${DATABASE}`;
  return startContainer({ image: IMAGE, port: 27017, urlOf }, around);
}

function mongodOnPath(env: NodeJS.ProcessEnv): string {
  const program = findOnPath(["mongod"], env);
  if (program === undefined) throw new PassedOver("no mongod on PATH");
  return program;
}

async function startProgram(
  program: string,
  origin: string,
  placement: Placement,
  options: LocalMongodbOptions,
  around: Surroundings,
): Promise<LocalServer> {
  const { env, signal } = around;
  const asked = await run(program, ["--version"], { env, deadlineMs: VERSION_DEADLINE_MS, signal });
  const version = /db version v([\d.]+)/.exec(asked.stdout)?.[1];
  // A build for another processor or C library is the usual reason.
  if (version === undefined)
    throw new PassedOver(`mongod (${origin}) does not run: ${lastLine(asked.stderr)}`);
  if (!isAtLeast(version, VERSION_MIN))
    throw new PassedOver(`mongod ${version} (${origin}) is older than 4.4`);

  return onFreePort(options.port, async (port) => {
    const args = ["--bind_ip", "127.0.0.1", "--port", `${port}`, "--dbpath", placement.dir, "--nounixsocket"];
    const logArgs = ["--logpath", `${placement.dir}/mongod.log`, "--logappend"];
    const command = { ...placement, name: "mongod", program, args: [...args, ...logArgs], env };
    const server = new GuardedProcess(command);
    const pid = await server.untilReady((own) => serves(port, own), READY_DEADLINE_MS, signal);
    return {
      url: `mongodb://127.0.0.1:${port}/${DATABASE}`,
      label: `mongod ${version} (${origin})`,
      standIn: false,
      pid,
      stop: () => server.stop(),
    };
  });
}

/** Does process `pid` serve on `port`? Another program's mongod may have taken the port first. */
async function serves(port: number, pid: number): Promise<number | undefined> {
  const { MongoClient } = await import("mongodb");
  const client = new MongoClient(`mongodb://127.0.0.1:${port}`, {
    directConnection: true,
    serverSelectionTimeoutMS: 200,
  });
  try {
    const status = await client.db("admin").command({ serverStatus: 1 });
    return Number(status["pid"]) === pid ? pid : undefined;
  } catch {
    return undefined;
  } finally {
    await client.close();
  }
}
