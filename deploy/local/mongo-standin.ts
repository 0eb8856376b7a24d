import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { totalmem } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { installDebianPackage } from "./debian-package.ts";
import { GuardedProcess } from "./guarded-process.ts";
import type { LocalServerOptions, Placement } from "./placement.ts";
import { cacheFolder, findOnPath, isAtLeast, lastLine, run } from "./programs.ts";
import { type LocalServer, PassedOver, type Surroundings } from "./source.ts";

/** As in mongo-standin/pom.xml; a test holds the two together. */
export const STAND_IN_VERSION = "1.47.0";
export const STAND_IN_LABEL = `mongo-java-server ${STAND_IN_VERSION} (stand-in: fine for trying and testing, not for keeping data)`;

const SOURCES = fileURLToPath(new URL("mongo-standin/", import.meta.url));
const JAVA_VERSION_MIN = [17];
const JAVA_PACKAGES = ["openjdk-17-jre-headless", "openjdk-21-jre-headless"];
const JAVA_DEADLINE_MS = 10_000;
const FETCH_DEADLINE_MS = 180_000;
const READY_DEADLINE_MS = 60_000;
/** Room for about 2.5 GB of blobs; the heap grows to it only as they come. */
const HEAP_MAX_MB = 4_096;

export interface StandInOptions extends LocalServerOptions {
  /** Upper limit of the stand-in's heap. Default: 4096 MB, or three fifths of a smaller machine's memory. */
  readonly heapMaxMb?: number;
}

/**
 * Starts mongo-java-server: in memory, or on an H2 file when the data is to be kept.
 * @throws PassedOver without Java 17 or the library, and no way to get them
 */
export async function startStandIn(
  database: string,
  placement: Placement,
  options: StandInOptions,
  around: Surroundings,
): Promise<LocalServer> {
  const java = await findOrInstallJava(around);
  const library = await findOrFetchLibrary(around);
  const heapMaxMb = options.heapMaxMb ?? Math.min(HEAP_MAX_MB, Math.floor((totalmem() / 2 ** 20) * 0.6));
  const javaArgs = [
    "-XX:+UseSerialGC",
    // It mostly lives for seconds or minutes, in which the optimizing compiler takes more time than it saves: a fifth of the
    // machine's, in the first 500 chunks of 1 MiB.
    "-XX:TieredStopAtLevel=1",
    `-Xmx${heapMaxMb}m`,
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
  ];
  const launcherArgs = [
    "-cp",
    join(library, "*"),
    join(SOURCES, "Launcher.java"),
    "--port",
    `${options.port ?? 0}`,
  ];
  const isKept = placement.removal === undefined;
  const fileArgs = isKept ? ["--file", join(placement.dir, "mongo-java-server.h2")] : [];
  const server = new GuardedProcess({
    ...placement,
    name: "mongo-java-server",
    program: java,
    args: [...javaArgs, ...launcherArgs, ...fileArgs],
    env: around.env,
  });
  const [pid, port] = await server.untilReady(
    async (own) => {
      const listening = server.valueAfter("listening ");
      return listening === undefined ? undefined : ([own, listening] as const);
    },
    READY_DEADLINE_MS,
    around.signal,
  );
  return {
    url: `mongodb://127.0.0.1:${port}/${database}`,
    label: STAND_IN_LABEL,
    standIn: true,
    pid,
    stop: () => server.stop(),
  };
}

async function findOrInstallJava(around: Surroundings): Promise<string> {
  const found = await findJava(around);
  if (found !== undefined) return found;
  await orPassedOver("no Java 17 or newer", () => installDebianPackage(JAVA_PACKAGES, around));
  const installed = await findJava(around);
  if (installed === undefined) throw new PassedOver("the Java that was installed is not on PATH");
  return installed;
}

/** JAVA_HOME first: Maven goes by it too. */
async function findJava({ env, signal }: Surroundings): Promise<string | undefined> {
  const home = env["JAVA_HOME"] ?? "";
  const candidates = [
    home === "" ? undefined : findOnPath(["java"], { PATH: join(home, "bin") }),
    findOnPath(["java"], env),
  ];
  for (const java of candidates) {
    if (java === undefined) continue;
    const { stderr } = await run(java, ["-version"], { env, deadlineMs: JAVA_DEADLINE_MS, signal });
    const version = /version "([\d.]+)/.exec(stderr)?.[1];
    if (version !== undefined && isAtLeast(version, JAVA_VERSION_MIN)) return java;
  }
  return undefined;
}

/** The folder with the jars, in this user's cache; there once it is complete. */
async function findOrFetchLibrary(around: Surroundings): Promise<string> {
  const library = join(cacheFolder(around.env), `mongo-java-server-${STAND_IN_VERSION}`);
  if (existsSync(library)) return library;
  const maven = await findOrInstallMaven(around);
  around.say(`fetching mongo-java-server ${STAND_IN_VERSION} (6 MB), once`);
  await mkdir(dirname(library), { recursive: true });
  const partial = await mkdtemp(`${library}.partial-`);
  try {
    await fetchJars(maven, partial, around);
    await publish(partial, library);
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  return library;
}

async function findOrInstallMaven(around: Surroundings): Promise<string> {
  const found = findOnPath(["mvn"], around.env);
  if (found !== undefined) return found;
  await orPassedOver("no Maven", () => installDebianPackage(["maven"], around));
  const installed = findOnPath(["mvn"], around.env);
  if (installed === undefined) throw new PassedOver("the Maven that was installed is not on PATH");
  return installed;
}

async function fetchJars(maven: string, folder: string, { env, signal }: Surroundings): Promise<void> {
  const goal = ["dependency:copy-dependencies", `-DoutputDirectory=${folder}`];
  const args = ["-q", "-B", "-ntp", "-Dstyle.color=never", "-f", join(SOURCES, "pom.xml"), ...goal];
  const result = await run(maven, args, { env, deadlineMs: FETCH_DEADLINE_MS, signal });
  signal?.throwIfAborted();
  const jars = await readdir(folder);
  if (result.code === 0 && jars.some((jar) => jar.startsWith("mongo-java-server-core-"))) return;
  const complaint = /\[ERROR\] (.{1,120})/.exec(result.stdout)?.[1] ?? lastLine(result.stderr);
  throw new PassedOver(`Maven could not fetch mongo-java-server (${complaint})`);
}

/** Renaming is atomic, so a folder by the final name is complete. Another process may have been faster: same content. */
async function publish(partial: string, library: string): Promise<void> {
  try {
    await rename(partial, library);
  } catch (error) {
    if (!existsSync(library)) throw error;
  }
}

/** Says what is missing before why it could not be installed. */
async function orPassedOver(missing: string, install: () => Promise<void>): Promise<void> {
  try {
    await install();
  } catch (error) {
    if (error instanceof PassedOver)
      throw new PassedOver(`${missing} for mongo-java-server, and ${error.message}`);
    throw error;
  }
}
