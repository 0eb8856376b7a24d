import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { errnoOf } from "./errno.ts";

/*
 * Files that somebody else put there. A path says nothing about what is behind it, and what it says can change between two
 * looks: it is opened first, without waiting for the other end of a FIFO, and what is asked and read is the opened file.
 */

const READ_FLAGS = constants.O_RDONLY | constants.O_NONBLOCK;
const NO_LINK_FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW;
const BLOCK_BYTES = 1_048_576;

export interface RegularFile {
  readonly handle: FileHandle;
  /** Bytes when it was opened. */
  readonly size: number;
}

export interface OpenRegularOptions {
  /** Default true; otherwise a link as the last part of the path fails with ELOOP. */
  readonly followLinks?: boolean;
}

/** For reading, to be closed by the caller; `undefined` for what isn't a regular file. The system's errors pass as they are. */
export async function openRegular(
  path: string,
  { followLinks = true }: OpenRegularOptions = {},
): Promise<RegularFile | undefined> {
  const handle = await openToLook(path, followLinks ? READ_FLAGS : NO_LINK_FLAGS);
  if (handle === undefined) return undefined;
  try {
    const stats = await handle.stat();
    if (stats.isFile()) return { handle, size: stats.size };
  } catch (thrown) {
    await handle.close();
    throw thrown;
  }
  await handle.close();
  return undefined;
}

/** A socket, or a device without a driver, can't even be opened. */
async function openToLook(path: string, flags: number): Promise<FileHandle | undefined> {
  try {
    return await open(path, flags);
  } catch (thrown) {
    if (errnoOf(thrown) === "ENXIO") return undefined;
    throw thrown;
  }
}

/** The first `bytesMax` + 1 bytes at most, so that a longer file can be told; in memory of their own. */
export async function readBounded({ handle, size }: RegularFile, bytesMax: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(Math.min(size, bytesMax + 1));
  let length = 0;
  while (length < bytes.byteLength) {
    const { bytesRead } = await handle.read(bytes, length, bytes.byteLength - length, length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return length === bytes.byteLength ? bytes : bytes.slice(0, length);
}

/** All of it from the beginning, in blocks that are the receiver's. */
export async function* blocksOf({ handle }: RegularFile): AsyncGenerator<Uint8Array> {
  for (let offset = 0; ; ) {
    const block = new Uint8Array(BLOCK_BYTES);
    const { bytesRead } = await handle.read(block, 0, block.byteLength, offset);
    if (bytesRead === 0) return;
    offset += bytesRead;
    yield block.subarray(0, bytesRead);
  }
}
