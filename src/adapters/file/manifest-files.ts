import type { ManifestFiles } from "../../pipeline/ports.ts";
import { writeAtomically } from "./atomic-files.ts";

/** LUCID_MANIFEST_PATH as the pipeline sees it. */
export function createManifestFiles(directory: string): ManifestFiles {
  return { write: (name, content) => writeAtomically(directory, name, content) };
}
