import { mkdir } from "node:fs/promises";
import type { ManifestFiles } from "../../pipeline/ports.ts";
import { writeAtomically } from "./atomic-files.ts";

/** LUCID_MANIFEST_PATH as the pipeline sees it. */
export function createManifestFiles(directory: string): ManifestFiles {
  return { write: (name, content) => writeAtomically(directory, name, content) };
}

/**
 * Makes the folder that is used when nobody names one. One that was named is to be there: where it is missing, so may be the disk
 * that it is on. If it can't be made, /ready says so, as for any other that can't be written.
 */
export async function makeDefaultManifestFolder(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true }).catch(() => undefined);
}
