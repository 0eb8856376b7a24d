import { constants } from "node:fs";
import { type FileHandle, link, open, readdir, rename, rm, stat, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { randomBytes } from "node:crypto";
import { LucidError } from "../../core/errors.ts";
import { errnoOf } from "./errno.ts";

/*
 * Files that appear whole or not at all. On the way a file is `.{name}.{32 hex}.partial` in the same folder, which no reader
 * looks for: complete and synced it gets its name in one step, and then the folder is synced, so that the name survives a
 * power cut as well.
 */

export type AtomicOutcome =
  | "written"
  /** The file was there with the same bytes, and is durable. */
  | "identical"
  /** The file is there with other bytes, and stays. */
  | "differs";

export interface AtomicOptions {
  /** `replace`: an existing file gives way, in one step. Default `keep`. */
  readonly existing?: "keep" | "replace";
  /** Narrowed by the umask. Default 0644: manifests are for others to read. */
  readonly mode?: number;
  /** `left`: the name is not durable yet, and the caller syncs the folder once for many files. Default `synced`. */
  readonly folder?: "synced" | "left";
}

const FILE_MODE = 0o644;
const BLOCK_BYTES = 65_536;
const RANDOM_BYTES = 16;
const NAME_PATTERN = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/;
const PARTIAL_PATTERN = /^\.[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.[0-9a-f]{32}\.partial$/;
const CREATE_FLAGS = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
/** Not through a link, and without waiting for the other end of a FIFO. */
const READ_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
const PROBE_NAME = "probe";
const OWN_NAME = "session-processor";
/** A block of the file system: a smaller file may find room in the folder of a full one. */
const PROBE = new Uint8Array(4096).fill(0x20);
/** A writer that pauses longer between two blocks loses its file, and starts again. */
const LEFTOVER_IDLE_MS = 600_000;
const LEFTOVERS_MAX = 10_000;

/**
 * Writes `name` into `directory`, which must exist: made here, it would hide that a volume is not mounted. Durable when it
 * returns. Throws MANIFEST_DIRECTORY_UNUSABLE, or what `content` throws; nothing is visible then, and no partial file
 * stays unless the process dies or the folder refuses its removal too.
 */
export async function writeAtomically(
  directory: string,
  name: string,
  content: Content,
  options: AtomicOptions = {},
): Promise<AtomicOutcome> {
  const partial = partialPath(directory, name);
  return inDirectory(() => writeWhole(partial, join(directory, name), content, options));
}

/**
 * The same for a file of any name anywhere: what the system answers comes as FileFailure, for a caller who knows what the
 * path is. What `content` throws passes as it is.
 */
export async function writeFileAtomically(
  path: string,
  content: Content,
  options: AtomicOptions = {},
): Promise<AtomicOutcome> {
  // Not with the file's own name in it: that may already be as long as a name can be.
  const partial = partialPath(dirname(path), OWN_NAME);
  return asFileFailure(() => writeWhole(partial, path, content, options));
}

/** The system refused an operation on the file or its folder; `code` is its errno. */
export class FileFailure extends Error {
  readonly code: string | undefined;

  constructor(cause: unknown) {
    super("a file operation failed", { cause });
    this.name = "FileFailure";
    this.code = errnoOf(cause);
  }
}

type Content = Uint8Array | AsyncIterable<Uint8Array>;

async function writeWhole(
  partial: string,
  target: string,
  content: Content,
  { existing, mode = FILE_MODE, folder = "synced" }: AtomicOptions,
): Promise<AtomicOutcome> {
  try {
    await writePartial(partial, content, mode);
    // Dies here: a complete file without a name; the caller's retry makes it again, LeftoverSweep removes this one.
    const outcome = existing === "replace" ? await replace(partial, target) : await publish(partial, target);
    // Dies here: visible, and after a power cut perhaps not; the retry finds it identical or writes it again.
    if (folder === "synced") await syncFolder(dirname(target));
    return outcome;
  } finally {
    await removeQuietly(partial);
  }
}

/**
 * Returns if a file of one block can be written into the folder; it is removed again. For /ready: nothing is synced, so it
 * costs no flash wear. Throws MANIFEST_DIRECTORY_UNUSABLE. On a network file system it may hang: give it a deadline.
 */
export async function probeDirectory(directory: string): Promise<void> {
  const probe = partialPath(directory, PROBE_NAME);
  try {
    await inDirectory(() => writeBlocks(probe, PROBE, FILE_MODE));
  } finally {
    await removeQuietly(probe);
  }
}

/** Exclusive creation, so that nobody's file or link is written through. */
async function writeBlocks(
  path: string,
  content: Content,
  mode: number,
  finish: (handle: FileHandle) => Promise<void> = async () => {},
): Promise<void> {
  const handle = await open(path, CREATE_FLAGS, mode);
  try {
    if (content instanceof Uint8Array) await handle.writeFile(content);
    else for await (const block of passingErrors(content)) await handle.writeFile(block);
    await finish(handle);
  } finally {
    await handle.close().catch(() => {});
  }
}

/** An error of the content itself is the caller's: marked here, so that it isn't taken for one of the file. */
async function* passingErrors(content: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  try {
    yield* content;
  } catch (thrown) {
    throw new ContentFailure(thrown);
  }
}

class ContentFailure extends Error {
  constructor(cause: unknown) {
    super("the content could not be made", { cause });
    this.name = "ContentFailure";
  }
}

function writePartial(path: string, content: Content, mode: number): Promise<void> {
  // Before the name exists: otherwise a power cut could leave the name with empty content.
  return writeBlocks(path, content, mode, (handle) => handle.sync());
}

async function replace(partial: string, target: string): Promise<AtomicOutcome> {
  await rename(partial, target);
  return "written";
}

/**
 * A second name instead of a rename: `link` refuses a name that is taken, where `rename` would overwrite what another
 * worker has published in the meantime.
 */
async function publish(partial: string, target: string): Promise<AtomicOutcome> {
  try {
    await link(partial, target);
    return "written";
  } catch (thrown) {
    const code = errnoOf(thrown);
    if (code === "EEXIST") return compare(partial, target);
    if (code !== undefined && LINKS_UNSUPPORTED.has(code)) return publishWithoutLinks(partial, target);
    throw thrown;
  }
}

/** What file systems without hard links answer (FAT, some network and FUSE ones). */
const LINKS_UNSUPPORTED: ReadonlySet<string> = new Set([
  "EPERM",
  "ENOTSUP",
  "EOPNOTSUPP",
  "ENOSYS",
  "EMLINK",
]);

/**
 * The window between look and rename is left open, because nothing closes it there: two workers in it write the same
 * bytes, unless their signing keys differ, and then the later one's file stays, whole.
 */
async function publishWithoutLinks(partial: string, target: string): Promise<AtomicOutcome> {
  const taken = await exists(target);
  return taken ? compare(partial, target) : replace(partial, target);
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) === "ENOENT") return false;
    throw thrown;
  }
}

/** A target that isn't a regular file, a link among them, differs. */
async function compare(partial: string, target: string): Promise<AtomicOutcome> {
  const own = await open(partial, READ_FLAGS);
  try {
    const other = await openTarget(target);
    if (other === undefined) return "differs";
    try {
      return (await sameBytes(own, other)) ? "identical" : "differs";
    } finally {
      await other.close();
    }
  } finally {
    await own.close();
  }
}

async function openTarget(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, READ_FLAGS);
  } catch (thrown) {
    if (errnoOf(thrown) === "ELOOP" || errnoOf(thrown) === "ENXIO") return undefined;
    throw thrown;
  }
}

/** Also syncs `other` when it is the same: whoever wrote it may not have done so. */
async function sameBytes(own: FileHandle, other: FileHandle): Promise<boolean> {
  const [ownStats, otherStats] = await Promise.all([own.stat(), other.stat()]);
  if (!otherStats.isFile() || ownStats.size !== otherStats.size) return false;
  const left = Buffer.alloc(BLOCK_BYTES);
  const right = Buffer.alloc(BLOCK_BYTES);
  for (let offset = 0; offset < ownStats.size; ) {
    const length = await readFully(own, left, offset);
    if (length === 0 || (await readFully(other, right, offset)) !== length) return false;
    if (!left.subarray(0, length).equals(right.subarray(0, length))) return false;
    offset += length;
  }
  await other.sync();
  return true;
}

/** Fills `block` as far as the file goes; a read may return less. */
async function readFully(handle: FileHandle, block: Buffer, offset: number): Promise<number> {
  let filled = 0;
  while (filled < block.byteLength) {
    const { bytesRead } = await handle.read(block, filled, block.byteLength - filled, offset + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return filled;
}

/** Makes the names in a folder durable. */
export async function syncFolder(directory: string): Promise<void> {
  const handle = await open(directory, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } catch (thrown) {
    // Some network file systems don't sync folders, and say so; there is nothing more to be had there.
    if (errnoOf(thrown) !== "EINVAL") throw thrown;
  } finally {
    await handle.close();
  }
}

/** Of a file on its way. */
export function isPartialName(name: string): boolean {
  return PARTIAL_PATTERN.test(name);
}

// ---- what a crash leaves ---------------------------------------------------------------------------------------

export interface LeftoverSweep {
  /** Removes what has been idle long enough; the number of files removed. Throws MANIFEST_DIRECTORY_UNUSABLE. */
  sweep(): Promise<number>;
}

interface Sighting {
  /** Inode, size and modification time: changes with every block that a living writer adds. */
  readonly state: string;
  readonly sinceMs: number;
}

/**
 * Removes partial files that nobody writes any more. How old a file is, is asked of no clock but `monotonicMs`: one goes
 * when this process has seen it unchanged for ten minutes. File times are compared with each other only, so that neither
 * a clock step nor another machine's clock can make a file in use look old. Should a writer have slept that long, its
 * publication fails with MANIFEST_DIRECTORY_UNUSABLE, and is tried again.
 */
export function createLeftoverSweep(
  directory: string,
  monotonicMs: () => number,
  idleMs: number = LEFTOVER_IDLE_MS,
): LeftoverSweep {
  let seen: ReadonlyMap<string, Sighting> = new Map();
  return {
    async sweep() {
      const names = (await inDirectory(() => readdir(directory))).filter((name) => isPartialName(name));
      const next = new Map<string, Sighting>();
      let removed = 0;
      for (const name of names.slice(0, LEFTOVERS_MAX)) {
        const path = join(directory, name);
        const state = await stateOf(path);
        if (state === undefined) continue;
        const earlier = seen.get(name);
        const sinceMs = earlier?.state === state ? earlier.sinceMs : monotonicMs();
        if (monotonicMs() - sinceMs < idleMs) next.set(name, { state, sinceMs });
        else if (await removeLeftover(path)) removed += 1;
      }
      seen = next;
      return removed;
    },
  };
}

/** `undefined` when it has gone in the meantime. */
async function stateOf(path: string): Promise<string | undefined> {
  try {
    const { ino, size, mtimeNs } = await stat(path, { bigint: true });
    return `${ino} ${size} ${mtimeNs}`;
  } catch (thrown) {
    if (errnoOf(thrown) === "ENOENT") return undefined;
    throw unusable(thrown);
  }
}

/** False when another process was quicker. */
async function removeLeftover(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) === "ENOENT") return false;
    throw unusable(thrown);
  }
}

// ---- names and errors ------------------------------------------------------------------------------------------

function partialPath(directory: string, name: string): string {
  if (!NAME_PATTERN.test(name)) throw new LucidError("INTERNAL", "a file name must be plain, without a path");
  return join(directory, `.${name}.${randomBytes(RANDOM_BYTES).toString("hex")}.partial`);
}

/** What comes after a failure must not hide it. */
async function removeQuietly(path: string): Promise<void> {
  await rm(path, { force: true }).catch(() => {});
}

function inDirectory<Result>(operation: () => Promise<Result>): Promise<Result> {
  return orThrow(operation, unusable);
}

function asFileFailure<Result>(operation: () => Promise<Result>): Promise<Result> {
  return orThrow(operation, (thrown) => new FileFailure(thrown));
}

async function orThrow<Result>(
  operation: () => Promise<Result>,
  failure: (thrown: unknown) => Error,
): Promise<Result> {
  try {
    return await operation();
  } catch (thrown) {
    throw thrown instanceof ContentFailure ? thrown.cause : failure(thrown);
  }
}

const WHAT_TO_DO: Readonly<Record<string, string>> = {
  ENOSPC: "is full; make room on its file system",
  EDQUOT: "is full; its quota is used up",
  EROFS: "is on a read-only file system; mount it writable",
  EACCES: "may not be written; give this user write access to it",
  EPERM: "may not be written; give this user write access to it",
  ENOENT: "is missing, or a file in it went away while it was written; create or mount it",
  ENOTDIR: "is not a folder",
  EIO: "has a failing disk or server under it",
};

function unusable(thrown: unknown): LucidError {
  const what = WHAT_TO_DO[errnoOf(thrown) ?? ""] ?? "can't be used";
  const message = `the manifest directory ${what}; see LUCID_MANIFEST_PATH`;
  return new LucidError("MANIFEST_DIRECTORY_UNUSABLE", message, { cause: thrown });
}
