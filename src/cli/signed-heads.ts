import { existsSync } from "node:fs";
import { join } from "node:path";
import { manifestFileNames } from "../core/manifest/names.ts";
import { sealedSession } from "../schema/manifest.ts";
import type { SessionRecord } from "../schema/record.ts";
import { counted, shellWord } from "./output.ts";

/** A proof leads to the root of a tree, which only something signed vouches for. */
export interface SignedHead {
  readonly size: number;
  /** Options of verify-proof that name a file which is there. */
  readonly options: string | undefined;
  /** What to look for where none is. */
  readonly wanted: string;
}

export function signedHead(session: SessionRecord, size: number, directory: string): SignedHead {
  const { state, tree, closed, checkpoint } = session;
  const isWhole = state !== "open" && size === tree.size;
  if (isWhole && (checkpoint !== undefined || !closed)) {
    const { manifest } = manifestFileNames(session.id, sealedSession(session).manifestType);
    const path = join(directory, manifest);
    const options = existsSync(path) ? `--manifest ${shellWord(path)}` : undefined;
    return { size, options, wanted: `the manifest ${manifest}, which is not (yet) in ${directory}` };
  }
  return { size, options: undefined, wanted: wantedHead(session, size, isWhole) };
}

function wantedHead({ state, checkpoint }: SessionRecord, size: number, isWhole: boolean): string {
  if (isWhole) return "nothing: the session was sealed without a signing key";
  if (checkpoint === undefined && state === "open")
    return "nothing yet: a worker with a signing key signs the tree when it is sealed, or each CHECKPOINT_INTERVAL";
  if (checkpoint?.size === size)
    return "the session's checkpoint, which has no file yet; `proof INDEX --format tlog` has it in the proof";
  const newest = checkpoint === undefined ? "" : `; the newest is of ${counted(checkpoint.size, "chunk")}`;
  return `a checkpoint (--checkpoint FILE), if one was signed at that size and somebody has kept it${newest}`;
}
