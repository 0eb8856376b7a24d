import { constants } from "node:fs";
import { lstat, mkdir, open, opendir, rename } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { LucidError } from "../../core/errors.ts";
import type { SessionId } from "../../core/ids.ts";
import type { ExportTarget } from "../../pipeline/export-session.ts";
import { syncFolder } from "./atomic-files.ts";
import { openRegular, readBounded } from "./regular-file.ts";

/*
 * An export grows in `<folder>.<session>.partial` and gets its name when it is complete, in one step. What an attempt that was
 * interrupted has left there is gone on with: its blobs are read and hashed before they count, so that one that a crash
 * cut short is written again.
 */

const BLOBS = "blobs";
/** Evidence, and perhaps the secret that opens it: whoever exports decides who else gets it. */
const FOLDER_MODE = 0o700;
const FILE_MODE = 0o644;
const SECRET_MODE = 0o600;
const WRITE_FLAGS = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW;
const OTHERS_MAY_WRITE = 0o022;

export interface ExportFolder extends ExportTarget {
  /** Where it grows. */
  readonly partial: string;
  /** Of mode 0600. */
  writeSecret(name: string, content: Uint8Array): Promise<void>;
  /** Gives it its name. `blobs` is their number: a file too many is another export's. */
  publish(blobs: number): Promise<void>;
}

/** Throws CONFIG_INVALID if `folder` exists, OUTPUT_FAILED if it can't be made or written. */
export async function openExportFolder(folder: string, session: SessionId): Promise<ExportFolder> {
  const path = resolve(folder);
  const partial = join(dirname(path), `${basename(path)}.${session}.partial`);
  if (await exists(path)) throw taken();
  await inFolder(() => mkdir(join(partial, BLOBS), { recursive: true, mode: FOLDER_MODE }));
  await requireOwn(partial);
  await requireOwn(join(partial, BLOBS));
  const blobPath = (index: number): string => join(partial, BLOBS, `${index}.blob`);
  return {
    partial,
    write: (name, content) => writeFile(join(partial, name), content, FILE_MODE),
    writeSecret: (name, content) => writeFile(join(partial, name), content, SECRET_MODE),
    writeBlob: (index, blob) => writeFile(blobPath(index), blob, FILE_MODE),
    readBlob: (index, bytesMax) => inFolder(() => readOwn(blobPath(index), bytesMax)),
    async publish(blobs) {
      await inFolder(() => requireBlobs(join(partial, BLOBS), blobs));
      await inFolder(() => syncFolder(join(partial, BLOBS)));
      await inFolder(() => syncFolder(partial));
      if (await exists(path)) throw taken();
      // Dies here: complete without its name; the next attempt reads it through and gives it that.
      await inFolder(() => rename(partial, path));
      await inFolder(() => syncFolder(dirname(path)));
    },
  };
}

/** In a folder that others write to, somebody may have put links where a secret is about to be written. */
async function requireOwn(folder: string): Promise<void> {
  const found = await inFolder(() => lstat(folder));
  const isOwn = process.getuid === undefined || found.uid === process.getuid();
  if (found.isDirectory() && isOwn && (found.mode & OTHERS_MAY_WRITE) === 0) return;
  throw new LucidError(
    "CONFIG_INVALID",
    `${folder} is no folder that only you write to: remove it, or name another with -o`,
  );
}

async function writeFile(
  path: string,
  content: Uint8Array | AsyncIterable<Uint8Array>,
  mode: number,
): Promise<void> {
  const handle = await inFolder(() => open(path, WRITE_FLAGS, mode));
  try {
    // Also for one that an earlier attempt made.
    await inFolder(() => handle.chmod(mode));
    if (content instanceof Uint8Array) await inFolder(() => handle.writeFile(content));
    else {
      // An error of `content` itself is the caller's, and passes as it is.
      for await (const block of content) await inFolder(() => handle.writeFile(block));
    }
    await inFolder(() => handle.sync());
  } finally {
    await handle.close().catch(() => undefined);
  }
}

/** `undefined` for none, and for what isn't a file of ours: that is then written anew, or refused by the system. */
async function readOwn(path: string, bytesMax: number): Promise<Uint8Array | undefined> {
  if (!(await exists(path))) return undefined;
  const file = await openRegular(path, { followLinks: false });
  if (file === undefined) return undefined;
  try {
    return await readBounded(file, bytesMax);
  } finally {
    await file.handle.close();
  }
}

async function requireBlobs(folder: string, expected: number): Promise<void> {
  let found = 0;
  for await (const _entry of await opendir(folder)) found += 1;
  if (found === expected) return;
  throw new LucidError(
    "CONFIG_INVALID",
    `${folder} holds ${found} files for ${expected} chunks: remove it and export again`,
  );
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) === "ENOENT") return false;
    throw unusable(thrown);
  }
}

function taken(): LucidError {
  return new LucidError(
    "CONFIG_INVALID",
    "the output folder exists and stays as it is; name another with -o",
  );
}

async function inFolder<Result>(operation: () => Promise<Result>): Promise<Result> {
  try {
    return await operation();
  } catch (thrown) {
    throw unusable(thrown);
  }
}

const WHAT_TO_DO: Readonly<Record<string, string>> = {
  ENOSPC: "is full; make room, or name another with -o",
  EDQUOT: "is full; its quota is used up",
  EROFS: "is on a read-only file system; name another with -o",
  EACCES: "may not be written; name another with -o",
  EPERM: "may not be written; name another with -o",
  ENOENT: "went away while it was written",
  ENOTDIR: "lies below something that is not a folder",
  ELOOP: "holds a link where a file is to be written; remove it",
};

function unusable(thrown: unknown): LucidError {
  if (thrown instanceof LucidError) return thrown;
  const what = WHAT_TO_DO[errnoOf(thrown) ?? ""] ?? "can't be used";
  return new LucidError("OUTPUT_FAILED", `the output folder ${what}`, { cause: thrown });
}

function errnoOf(thrown: unknown): string | undefined {
  return (thrown as NodeJS.ErrnoException | undefined)?.code;
}
