/**
 * node fetch-mongod.ts probe|download FOLDER: finds a mongod in FOLDER, or says whether it can be downloaded, or
 * downloads it. The last line of standard output is a MongodFetch as JSON.
 */
import { DryMongoBinary, MongoBinary } from "mongodb-memory-server-core";
import { MongoBinaryDownloadUrl } from "mongodb-memory-server-core/lib/util/MongoBinaryDownloadUrl.js";
import type { MongodFetch } from "./downloaded-mongod.ts";

const ANSWER_DEADLINE_MS = 3_000;

const [task, downloadDir = ""] = process.argv.slice(2);
const wanted = await DryMongoBinary.generateOptions({ downloadDir });

console.log(`\n${JSON.stringify(await fetchMongod())}`);

async function fetchMongod(): Promise<MongodFetch> {
  try {
    const path = await DryMongoBinary.locateBinary(wanted);
    if (path !== undefined) return { state: "found", path };
    if (task === "download") return { state: "found", path: await MongoBinary.getPath(wanted) };
  } catch (error) {
    return { state: "unavailable", reason: error instanceof Error ? error.message : "unknown" };
  }
  return probe();
}

async function probe(): Promise<MongodFetch> {
  const { platform, arch, version, os } = wanted;
  let url: string;
  try {
    url = await new MongoBinaryDownloadUrl({ platform, arch, version, os }).getDownloadUrl();
  } catch {
    return { state: "unavailable", reason: `there is no mongod ${version} to download for this system` };
  }
  try {
    const signal = AbortSignal.timeout(ANSWER_DEADLINE_MS);
    const { ok } = await fetch(url, { method: "HEAD", signal });
    if (ok) return { state: "reachable", version };
  } catch {
    // No network, or a network that doesn't lead there.
  }
  return { state: "unavailable", reason: "mongod's download can't be reached" };
}
