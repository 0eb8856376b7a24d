import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder, lastLine, run } from "./programs.ts";
import { PassedOver, type Surroundings } from "./source.ts";

/** Finding out whether the download can be reached at all: a few seconds also on a network that swallows packets. */
const PROBE_DEADLINE_MS = 8_000;
const DOWNLOAD_DEADLINE_MS = 600_000;

/** What fetch-mongod.ts prints. */
export type MongodFetch =
  | { readonly state: "found"; readonly path: string }
  | { readonly state: "reachable"; readonly version: string }
  | { readonly state: "unavailable"; readonly reason: string };

/**
 * The path of a mongod that mongodb-memory-server-core has downloaded into this user's cache, now or earlier.
 * @throws PassedOver when there is none and the download can't be reached, or there is no build for this system
 */
export async function findDownloadedMongod(around: Surroundings): Promise<string> {
  const folder = join(cacheFolder(around.env), "mongod");
  const probe = await fetchMongod("probe", folder, PROBE_DEADLINE_MS, around);
  if (probe.state === "found") return probe.path;
  if (probe.state === "unavailable") throw new PassedOver(probe.reason);
  around.say(`downloading mongod ${probe.version}, once`);
  const fetched = await fetchMongod("download", folder, DOWNLOAD_DEADLINE_MS, around);
  if (fetched.state !== "found") throw new PassedOver("the download of mongod did not succeed");
  return fetched.path;
}

/** In a process of its own: the library writes its progress to standard output, which belongs to our caller. */
async function fetchMongod(
  task: "probe" | "download",
  folder: string,
  deadlineMs: number,
  { env, signal }: Surroundings,
): Promise<MongodFetch> {
  const script = fileURLToPath(new URL("fetch-mongod.ts", import.meta.url));
  const result = await run(process.execPath, [script, task, folder], {
    env: { ...env, NODE_OPTIONS: "", NODE_USE_ENV_PROXY: "1" },
    deadlineMs,
    signal,
  });
  if (result.code !== 0) return { state: "unavailable", reason: "mongod's download does not answer in time" };
  return JSON.parse(lastLine(result.stdout)) as MongodFetch;
}
