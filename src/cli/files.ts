import { constants, existsSync } from "node:fs";
import { access, lstat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { FileFailure, writeFileAtomically } from "../adapters/file/atomic-files.ts";
import { blocksOf, openRegular, type RegularFile, readBounded } from "../adapters/file/regular-file.ts";
import { type ErrorCode, LucidError } from "../core/errors.ts";
import type { ManifestFolder } from "../pipeline/verify-session.ts";
import { errnoOf } from "../adapters/file/errno.ts";

// ---- what a command reads ----------------------------------------------------------------------------------

/**
 * The first `bytesMax` + 1 bytes at most; `undefined` when there is no such file. Throws `notRegular` for what isn't a
 * regular file, CONFIG_INVALID for one that can't be read.
 */
export async function readUpTo(
  path: string,
  bytesMax: number,
  notRegular: ErrorCode = "CONFIG_INVALID",
): Promise<Uint8Array | undefined> {
  const file = await openForReading(path, notRegular);
  if (file === undefined) return undefined;
  try {
    return await readBounded(file, bytesMax);
  } catch (cause) {
    throw unreadable(path, cause);
  } finally {
    await file.handle.close();
  }
}

/** As `readUpTo`, for a file that was named on the command line. */
export async function readNamed(path: string, bytesMax: number): Promise<Uint8Array> {
  const bytes = await readUpTo(path, bytesMax);
  if (bytes === undefined) throw new LucidError("CONFIG_INVALID", `there is no file ${path}`);
  return bytes;
}

/** The files beside a manifest. Whatever isn't a regular file there is the folder's fault: MANIFEST_INVALID. */
export function manifestFolder(directory: string): ManifestFolder {
  return {
    read: (name, bytesMax) => readUpTo(join(directory, name), bytesMax, "MANIFEST_INVALID"),
    stream(name) {
      const path = join(directory, name);
      return existsSync(path) ? blocksOfPart(path) : undefined;
    },
  };
}

/** Opened when the first block is asked for: a check that ends before holds no file. */
async function* blocksOfPart(path: string): AsyncGenerator<Uint8Array> {
  const file = await openForReading(path, "MANIFEST_INVALID");
  if (file === undefined) throw new LucidError("MANIFEST_INVALID", `${path} has just gone`);
  const blocks = blocksOf(file);
  try {
    for (;;) {
      const next = await blocks.next().catch((cause: unknown) => {
        throw unreadable(path, cause);
      });
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    await file.handle.close();
  }
}

async function openForReading(path: string, notRegular: ErrorCode): Promise<RegularFile | undefined> {
  let file: RegularFile | undefined;
  try {
    file = await openRegular(path);
  } catch (cause) {
    if (isAbsence(cause)) return undefined;
    throw unreadable(path, cause);
  }
  if (file === undefined) throw new LucidError(notRegular, `${path} is not a regular file`);
  return file;
}

function isAbsence(thrown: unknown): boolean {
  const code = errnoOf(thrown);
  return code === "ENOENT" || code === "ENOTDIR";
}

const READ_TROUBLE: Readonly<Record<string, string>> = {
  EACCES: "this user may not read it",
  EPERM: "this user may not read it",
  ENAMETOOLONG: "its name is too long",
  ELOOP: "its links lead in a circle",
  EIO: "its disk or server fails",
  EISDIR: "it is a directory",
  ENOENT: "there is no such file",
  ENOTDIR: "there is no such file",
};

/** CONFIG_INVALID that names the path. */
export function unreadable(path: string, cause: unknown): LucidError {
  const code = errnoOf(cause);
  const why = READ_TROUBLE[code ?? ""] ?? code ?? "for an unknown reason";
  return new LucidError("CONFIG_INVALID", `${path} can't be read: ${why}`, { cause });
}

// ---- what a command writes ---------------------------------------------------------------------------------

export interface OutputFileOptions {
  /** An existing regular file gives way, in one step. Absent where the command has no --force. */
  readonly force?: boolean;
  /** Default 0600: what a command writes is as secret as what it was made from. */
  readonly mode?: number;
}

const OUTPUT_MODE = 0o600;

/**
 * The rule of every `-o`: a file that is there stays, unless --force is given, and then it must be a regular one. To be
 * asked before the work; `writeOutputFile` holds to it also when something appears in between.
 */
export async function refuseTaken(path: string, options: OutputFileOptions): Promise<void> {
  const { force = false } = options;
  let isFile: boolean;
  let isDirectory: boolean;
  try {
    const stats = await lstat(path);
    isFile = stats.isFile();
    isDirectory = stats.isDirectory();
  } catch (cause) {
    if (errnoOf(cause) !== "ENOENT") throw unwritable(path, cause);
    await access(dirname(resolve(path)), constants.W_OK).catch((why: unknown) => {
      throw unwritable(path, why);
    });
    return;
  }
  if (isDirectory) throw new LucidError("CONFIG_INVALID", `${path} is a directory: name a file with -o`);
  if (!isFile && force) {
    throw new LucidError("CONFIG_INVALID", `${path} is not a regular file: name another with -o`);
  }
  if (!force) throw taken(path, options);
}

/** Whole and durable under its name, or not there; no part of it stays. Throws OUTPUT_FAILED, CONFIG_INVALID, or what `content` throws. */
export async function writeOutputFile(
  path: string,
  content: Uint8Array | AsyncIterable<Uint8Array>,
  options: OutputFileOptions,
): Promise<void> {
  const { force = false, mode = OUTPUT_MODE } = options;
  try {
    const existing = force ? "replace" : "keep";
    const outcome = await writeFileAtomically(resolve(path), content, { existing, mode });
    if (outcome === "differs") throw taken(path, options);
  } catch (thrown) {
    throw thrown instanceof FileFailure ? unwritable(path, thrown) : thrown;
  }
}

function taken(path: string, { force }: OutputFileOptions): LucidError {
  const orForce = force === undefined ? "" : ", or give --force to replace it";
  const message = `${path} exists and stays as it is; name another file with -o${orForce}`;
  return new LucidError("CONFIG_INVALID", message);
}

/** What another path or other rights mend; all else happened to a file that could be written at first. */
const CHOOSE_ANOTHER: Readonly<Record<string, string>> = {
  ENOENT: "its folder doesn't exist",
  ENOTDIR: "its folder doesn't exist",
  EISDIR: "it is a directory",
  EACCES: "this user may not write there",
  EPERM: "this user may not write there",
  EROFS: "its file system is read-only",
  ENAMETOOLONG: "its name is too long",
  ELOOP: "its links lead in a circle",
};

function unwritable(path: string, cause: unknown): LucidError {
  const code = errnoOf(cause);
  const choose = CHOOSE_ANOTHER[code ?? ""];
  if (choose !== undefined) {
    return new LucidError("CONFIG_INVALID", `${path} can't be written: ${choose}`, { cause });
  }
  return outputFailed(path, cause);
}

const WRITE_TROUBLE: Readonly<Record<string, string>> = {
  ENOSPC: "the file system is full",
  EDQUOT: "the quota is used up",
  EFBIG: "it would become larger than is allowed",
  EIO: "its disk or server fails",
  EPIPE: "its reader has gone",
};

/** OUTPUT_FAILED for what `place` (a path, or standard output) did not take. */
export function outputFailed(place: string, cause: unknown): LucidError {
  const code = errnoOf(cause);
  const why = WRITE_TROUBLE[code ?? ""] ?? code ?? "for an unknown reason";
  return new LucidError("OUTPUT_FAILED", `${place} could not be written to its end: ${why}`, { cause });
}
