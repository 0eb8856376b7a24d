import { randomUUID } from "node:crypto";
import { lstat, mkdir, open, rename, rmdir, unlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import { LucidError } from "../../core/errors.ts";
import { isId, type SessionId } from "../../core/ids.ts";
import type { PayloadStore } from "../../pipeline/ports.ts";
import type { PayloadRef } from "../../schema/job.ts";
import { openRegular, readBounded } from "./regular-file.ts";
import { errnoOf } from "./errno.ts";

const FOLDER_MODE = 0o700;
const FILE_MODE = 0o600;
/** A consumer may remove the empty folder between our making it and our writing into it. */
const WRITE_TRIES_MAX = 5;

export interface FilePayloadStore extends PayloadStore {
  /** Durable and complete under its name, or not there. */
  write(session: SessionId, name: string, bytes: Uint8Array): Promise<PayloadRef>;
}

/** Claim checks as files (contract §3): `<root>/<session_id>/<name>`, where `root` is LUCID_PAYLOAD_PATH. */
export function createFilePayloadStore(root: string): FilePayloadStore {
  const base = resolve(root);
  return {
    async read(session, ref, bytesMax) {
      const { folder, file } = ownPath(base, session, ref);
      try {
        await refuseLinkedFolder(folder);
        // Not through a link out of the directory.
        const regular = await openRegular(file, { followLinks: false });
        if (regular === undefined) throw forbidden("payload_ref.name is not a regular file");
        try {
          const bytes = await readBounded(regular, bytesMax);
          return bytes.byteLength === 0 ? undefined : bytes;
        } finally {
          await regular.handle.close();
        }
      } catch (thrown) {
        return absentOrThrow(thrown);
      }
    },

    async remove(session, ref) {
      const { folder, file } = ownPath(base, session, ref);
      try {
        await refuseLinkedFolder(folder);
        await unlink(file);
      } catch (thrown) {
        absentOrThrow(thrown);
      }
      await removeIfEmpty(folder);
    },

    async write(session, name, bytes) {
      const ref: PayloadRef = { store: "file", name };
      const { folder, file } = ownPath(base, session, ref);
      // A dot first: no payload name has one, so no job can name a file that is not complete. Two writers never share one.
      const partial = join(folder, `.${name}.${randomUUID()}.partial`);
      for (let tries = 1; ; tries++) {
        try {
          await mkdir(folder, { recursive: true, mode: FOLDER_MODE });
          await writeDurably(partial, bytes);
          await rename(partial, file);
          return ref;
        } catch (thrown) {
          await removeQuietly(partial);
          if (errnoOf(thrown) !== "ENOENT" || tries >= WRITE_TRIES_MAX) throw unavailable(thrown);
        }
      }
    },
  };
}

function ownPath(
  base: string,
  session: SessionId,
  ref: PayloadRef,
): { readonly folder: string; readonly file: string } {
  if (ref.store !== "file" || !isId(ref.name) || !isId(session)) {
    throw forbidden("payload_ref.name must be a plain file name in the session's own folder");
  }
  const folder = join(base, session);
  return { folder, file: join(folder, ref.name) };
}

/** O_NOFOLLOW looks at the last part of a path only. */
async function refuseLinkedFolder(folder: string): Promise<void> {
  const stats = await lstat(folder);
  if (!stats.isDirectory()) throw forbidden("the session's payload folder is not a plain directory");
}

async function writeDurably(path: string, bytes: Uint8Array): Promise<void> {
  const handle = await open(path, "w", FILE_MODE);
  try {
    await handle.writeFile(bytes);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function removeQuietly(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch {
    // It was not made, or its disk fails: the error that brought us here says more.
  }
}

async function removeIfEmpty(folder: string): Promise<void> {
  try {
    await rmdir(folder);
  } catch {
    // Other payloads are in it, or another worker removed it. A folder left behind harms nobody.
  }
}

function absentOrThrow(thrown: unknown): undefined {
  if (thrown instanceof LucidError) throw thrown;
  const errno = errnoOf(thrown);
  if (errno === "ENOENT" || errno === "ENOTDIR") return undefined;
  if (errno === "ELOOP") throw forbidden("payload_ref.name is a symbolic link");
  if (errno === "EACCES" || errno === "EPERM") {
    const message = "the payload file may not be read; check its owner and mode";
    throw new LucidError("PAYLOAD_MISSING", message, { cause: thrown });
  }
  throw unavailable(thrown);
}

function unavailable(thrown: unknown): LucidError {
  return new LucidError(
    "STORE_UNAVAILABLE",
    "the payload directory can't be used; check LUCID_PAYLOAD_PATH",
    {
      cause: thrown,
    },
  );
}

function forbidden(message: string): LucidError {
  return new LucidError("PAYLOAD_REF_FORBIDDEN", message);
}
