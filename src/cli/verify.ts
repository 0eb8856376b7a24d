import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import type { Command } from "commander";
import { CpuThreads } from "../adapters/threads/cpu-threads.ts";
import { LineThreads } from "../adapters/threads/line-threads.ts";
import { type Config, loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { MANIFEST_BYTES_MAX } from "../core/manifest/sign.ts";
import { keyRingOf } from "../key-ring.ts";
import {
  type BlobCheck,
  type BlobReader,
  hashingBlobCheck,
  openingBlobCheck,
  type Refusal,
  type VerifiedSession,
  verifySession,
} from "../pipeline/verify-session.ts";
import { EXIT_FAILURE, newCommand, perform } from "./command.ts";
import { manifestFolder, readNamed, readUpTo } from "./files.ts";
import { type OpenStores, openStores } from "./open-stores.ts";
import { counted, formatBytes, formatTable, type Output } from "./output.ts";
import { type KeyFlags, NO_KEY_PINNED, pinnedKeys, withKeyOptions } from "./pinned-keys.ts";
import { requireKeyOf } from "./require-key.ts";

/** Below this, starting threads takes longer than they save. */
const THREADS_CHUNKS_MIN = 20_000;
const THREADS_MAX = 4;

interface VerifyFlags extends KeyFlags {
  readonly json?: boolean;
  readonly data?: boolean;
  readonly blobs?: string;
}

export function verifyCommand(): Command {
  return withKeyOptions(
    newCommand("verify", "check a manifest and the files beside it, offline, with pinned keys"),
  )
    .argument("<manifest>", "the …_manifest.json")
    .option("--data", "also check every blob in MongoDB; with a key (ENCRYPTION_KEY …) open it too")
    .option("--blobs <folder>", "also check every blob in a folder, files <chunk index>.blob")
    .action((file: string, flags: VerifyFlags) =>
      perform(flags.json, async (output, signal) => {
        const keys = await pinnedKeys(flags);
        if (keys.length === 0) throw new LucidError("CONFIG_INVALID", NO_KEY_PINNED);
        if (flags.data === true && flags.blobs !== undefined)
          throw new LucidError("CONFIG_INVALID", "--data and --blobs exclude one another");
        const bytes = await readNamed(file, MANIFEST_BYTES_MAX);
        const blobs = await blobSource(flags, bytes, signal);
        // Nothing in the manifest is believed before it is verified; this only gives the bar its length.
        const count = claimedCount(bytes);
        const threads = count >= THREADS_CHUNKS_MIN && blobs === undefined ? lineThreads() : undefined;
        const bar = output.progress("verify", count, "chunks");
        try {
          const verdict = await verifySession(bytes, manifestFolder(dirname(file)), {
            pinnedKeys: keys,
            signal,
            onProgress: (chunks) => bar.update(chunks),
            ...(blobs === undefined ? {} : { checkBlob: blobs.check }),
            ...(threads === undefined ? {} : { checkLines: (request) => threads.check(request) }),
          });
          bar.stop();
          if (!verdict.ok) return await reportRefusal(output, file, verdict.refusal);
          await report(output, verdict.verified, blobs?.depth ?? "not checked");
          return 0;
        } finally {
          bar.stop();
          await threads?.close();
          await blobs?.close();
        }
      }),
    );
}

function lineThreads(): LineThreads {
  return new LineThreads(Math.min(availableParallelism(), THREADS_MAX));
}

interface BlobSource {
  readonly check: BlobCheck;
  readonly depth: "hashed" | "opened";
  close(): Promise<void>;
}

async function blobSource(
  { data, blobs }: VerifyFlags,
  manifest: Uint8Array,
  signal: AbortSignal,
): Promise<BlobSource | undefined> {
  if (blobs !== undefined) {
    return { check: hashingBlobCheck(folderOfBlobs(blobs)), depth: "hashed", close: async () => {} };
  }
  return data === true
    ? storedBlobs(loadProcessConfig({ needs: ["mongodb"] }).config, manifest, signal)
    : undefined;
}

function folderOfBlobs(folder: string): BlobReader {
  return async ({ index, storedBytes }) =>
    readUpTo(join(folder, `${index}.blob`), storedBytes, "BLOB_MALFORMED");
}

async function storedBlobs(config: Config, manifest: Uint8Array, signal: AbortSignal): Promise<BlobSource> {
  const stores = await openStores(config.mongodb.url.reveal());
  try {
    return await blobsOf(stores, config, manifest, signal);
  } catch (thrown) {
    await stores.close();
    throw thrown;
  }
}

async function blobsOf(
  stores: OpenStores,
  config: Config,
  manifest: Uint8Array,
  signal: AbortSignal,
): Promise<BlobSource> {
  const read: BlobReader = ({ blobId }) => stores.blobs.read(blobId);
  const session = await stores.sessions.find(claimedSession(manifest));
  if (config.encryption.kek.kind === "none" || session === undefined) {
    return { check: hashingBlobCheck(read), depth: "hashed", close: () => stores.close() };
  }
  const keyRing = await requireKeyOf(stores, keyRingOf(config));
  const threads = new CpuThreads({
    threads: config.kernel.threads,
    timeoutMs: config.kernel.workerTimeoutMs,
  });
  return {
    check: openingBlobCheck(read, { threads, keyRing, session, signal }),
    depth: "opened",
    async close() {
      await threads.close();
      await stores.close();
    },
  };
}

interface Claims {
  readonly session_metadata?: { readonly session_id?: unknown; readonly chunk_count?: unknown };
}

function claimsOf(manifest: Uint8Array): Claims {
  try {
    return (JSON.parse(Buffer.from(manifest).toString("utf8")) ?? {}) as Claims;
  } catch {
    return {};
  }
}

function claimedCount(manifest: Uint8Array): number {
  const count = claimsOf(manifest).session_metadata?.chunk_count;
  return typeof count === "number" && Number.isSafeInteger(count) && count > 0 ? count : 0;
}

/** Only to look up the wrapped secrets: what doesn't belong to it opens no blob. */
function claimedSession(manifest: Uint8Array): SessionId {
  const id = claimsOf(manifest).session_metadata?.session_id;
  return (typeof id === "string" ? id : "") as SessionId;
}

async function reportRefusal(
  output: Output,
  file: string,
  { part, place, code, reason }: Refusal,
): Promise<number> {
  const where = place === undefined ? part : `${part}, ${place}`;
  await output.result(
    { verified: false, file, part, place: place ?? null, code, reason },
    `REFUSED: ${where}: ${reason} [${code}]`,
  );
  return EXIT_FAILURE;
}

async function report(
  output: Output,
  verified: VerifiedSession,
  blobs: "hashed" | "opened" | "not checked",
): Promise<void> {
  const { manifest, chunks, anchor, blobBytes } = verified;
  const { merkle, session_metadata: session, signature } = manifest;
  const blobText =
    blobs === "not checked"
      ? "not checked (--blobs FOLDER, or --data for those in MongoDB)"
      : `${blobs}, ${formatBytes(blobBytes)}`;
  await output.result(
    {
      verified: true,
      session_id: session.session_id,
      manifest_id: manifest.manifest_id,
      chunks,
      tree_size: merkle.tree_size,
      root_hash: merkle.root_hash,
      hash_algorithm: merkle.hash_algorithm,
      total_size: session.total_size,
      key_id: signature.key_id,
      anchor: anchor ?? null,
      blobs,
      blob_bytes: blobBytes,
    },
    formatTable([
      ["session", session.session_id],
      ["manifest", `signed by pinned key ${signature.key_id}, canonical, consistent`],
      ["chunks", `${counted(chunks, "line")}, ${formatBytes(session.total_size)} as recorded`],
      ["root", `${merkle.root_hash} (${merkle.hash_algorithm}, ${merkle.tree_size} leaves)`],
      ["checkpoint", "signed by a pinned key, same size and root"],
      ["anchor", anchorText(anchor)],
      ["blobs", blobText],
    ]),
  );
}

function anchorText(anchor: VerifiedSession["anchor"]): string {
  if (anchor === undefined) return "none yet";
  const { transaction, block } = anchor;
  return `same size and root; look up transaction ${transaction ?? "(unknown)"}, block ${block ?? "(unknown)"}`;
}
