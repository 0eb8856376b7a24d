import { randomBytes } from "node:crypto";
import type { Dirent } from "node:fs";
import { lstat, mkdir, opendir, rename, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { LucidError } from "../../core/errors.ts";
import type { SessionId } from "../../core/ids.ts";
import type { ExportTarget } from "../../pipeline/export-session.ts";
import { FileFailure, isPartialName, syncFolder, writeFileAtomically } from "./atomic-files.ts";
import { openRegular, readBounded } from "./regular-file.ts";
import { errnoOf } from "./errno.ts";

/*
 * An export grows in `<folder>.<session>.partial` and gets its name when it is complete, in one step. What an attempt that was
 * interrupted has left there is gone on with: its blobs are read and hashed before they count. Several exports may be at it at
 * once: every file appears whole (atomic-files.ts), and one of them takes the folder to publish it.
 *
 * To publish, the folder is first renamed to a name that nobody else knows. From then on no other export puts a file into it, so
 * that its names can be compared with those that belong there, and only there the secret is written.
 */

const BLOBS = "blobs";
/** Opens every blob beside it. */
export const SECRET_FILE = "session-secret";
/** Evidence, and perhaps the secret that opens it: whoever exports decides who else gets it. */
const FOLDER_MODE = 0o700;
const FILE_MODE = 0o644;
const SECRET_MODE = 0o600;
const OTHERS_MAY_WRITE = 0o022;
const CLAIM_BYTES = 16;
const BLOB_NAME = /^(0|[1-9][0-9]{0,9})\.blob$/;

export interface ExportFolder extends ExportTarget {
  /** Where it grows. */
  readonly partial: string;
  /**
   * Gives it its name, if it holds what was written here and the blobs 0 … `blobs` - 1, and nothing else; with `secret`, in a file
   * of mode 0600, if there is one. Without that name, no secret stays.
   */
  publish(blobs: number, secret: Uint8Array | undefined): Promise<void>;
}

/** Throws CONFIG_INVALID if `folder` exists, OUTPUT_FAILED if it can't be made or written. */
export async function openExportFolder(folder: string, session: SessionId): Promise<ExportFolder> {
  const path = resolve(folder);
  // Without the folder's name, which may be as long as a name can be: it would show when all is copied.
  const claimed = join(dirname(path), `${session}.${randomBytes(CLAIM_BYTES).toString("hex")}.partial`);
  const partial = join(dirname(path), `${basename(path)}.${session}.partial`);
  if (await exists(path)) throw taken();
  await inFolder(() => mkdir(join(partial, BLOBS), { recursive: true, mode: FOLDER_MODE }));
  await requireOwn(partial);
  await requireOwn(join(partial, BLOBS));
  // Earlier versions wrote it here: it is not this export's to hand out.
  await inFolder(() => rm(join(partial, SECRET_FILE), { force: true }));
  const names = new Set<string>();
  const blobPath = (index: number): string => join(partial, BLOBS, `${index}.blob`);
  return {
    partial,
    write(name, content) {
      names.add(name);
      return writeFile(join(partial, name), content, FILE_MODE);
    },
    writeBlob: (index, blob) => writeFile(blobPath(index), blob, FILE_MODE),
    readBlob: (index, bytesMax) => inFolder(() => readOwn(blobPath(index), bytesMax)),
    async publish(blobs, secret) {
      await inFolder(() => rename(partial, claimed));
      // Killed here, or before it has its name: all of it stays, by a name that no export goes on with or hands out.
      try {
        await complete(claimed, { names, blobs });
        if (await exists(path)) throw taken();
        if (secret !== undefined) await writeFile(join(claimed, SECRET_FILE), secret, SECRET_MODE);
        await inFolder(() => syncFolder(claimed));
        await publishAs(path, claimed);
      } catch (thrown) {
        await giveBack(claimed, partial);
        throw thrown;
      }
      await inFolder(() => syncFolder(dirname(path)));
    },
  };
}

interface Contents {
  /** Of the files beside the blobs. */
  readonly names: ReadonlySet<string>;
  readonly blobs: number;
}

/** Removes what killed attempts left half written; throws if the folder then holds more than `contents`, or less. */
async function complete(folder: string, { names, blobs }: Contents): Promise<void> {
  const isBlobs = (entry: Dirent): boolean => entry.name === BLOBS && entry.isDirectory();
  await requireEntries(
    folder,
    names.size + 1,
    (entry) => isBlobs(entry) || (entry.isFile() && names.has(entry.name)),
  );
  await requireEntries(
    join(folder, BLOBS),
    blobs,
    (entry) => entry.isFile() && isBlobBelow(entry.name, blobs),
  );
  await inFolder(() => syncFolder(join(folder, BLOBS)));
}

/** CONFIG_INVALID for an entry that doesn't belong there: a person put it there, or it is another export's. */
async function requireEntries(
  folder: string,
  expected: number,
  belongs: (entry: Dirent) => boolean,
): Promise<void> {
  let found = 0;
  for await (const entry of await inFolder(() => opendir(folder))) {
    if (isPartialName(entry.name)) await inFolder(() => rm(join(folder, entry.name), { force: true }));
    else if (belongs(entry)) found += 1;
    else throw notOfThis(entry.name);
  }
  if (found === expected) return;
  const message = `the partial folder holds ${found} of ${expected} files: something removes them; export again`;
  throw new LucidError("OUTPUT_FAILED", message);
}

function notOfThis(name: string): LucidError {
  return new LucidError(
    "CONFIG_INVALID",
    `the partial folder holds ${JSON.stringify(name)}, which is not of this export: remove it, and export again`,
  );
}

function isBlobBelow(name: string, blobs: number): boolean {
  const index = BLOB_NAME.exec(name)?.[1];
  return index !== undefined && Number(index) < blobs;
}

async function publishAs(path: string, claimed: string): Promise<void> {
  try {
    await rename(claimed, path);
  } catch (thrown) {
    throw NAME_TAKEN.has(errnoOf(thrown) ?? "") ? taken() : unusable(thrown);
  }
}

/** Somebody made it since it was looked for. */
const NAME_TAKEN: ReadonlySet<string> = new Set(["EEXIST", "ENOTEMPTY", "ENOTDIR"]);

/** For the next attempt to go on with, unless another one has begun anew; the secret goes first, and what failed stays the error. */
async function giveBack(claimed: string, partial: string): Promise<void> {
  await rm(join(claimed, SECRET_FILE), { force: true }).catch(() => undefined);
  if (await exists(join(claimed, SECRET_FILE)).catch(() => true)) return;
  await rename(claimed, partial).catch(() => undefined);
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

/** An error of `content` itself is the caller's, and passes as it is. */
async function writeFile(
  path: string,
  content: Uint8Array | AsyncIterable<Uint8Array>,
  mode: number,
): Promise<void> {
  try {
    await writeFileAtomically(path, content, { existing: "replace", mode, folder: "left" });
  } catch (thrown) {
    throw thrown instanceof FileFailure ? unusable(thrown) : thrown;
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
  EISDIR: "holds a folder where a file is to be written; remove it",
  ELOOP: "holds a link where a file is to be read; remove it",
};

function unusable(thrown: unknown): LucidError {
  if (thrown instanceof LucidError) return thrown;
  const what = WHAT_TO_DO[errnoOf(thrown) ?? ""] ?? "can't be used";
  return new LucidError("OUTPUT_FAILED", `the output folder ${what}`, { cause: thrown });
}
