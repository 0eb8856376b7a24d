import { bytesEqual, fromBase64, utf8 } from "../core/bytes.ts";
import { blake3 } from "../core/digest.ts";
import type { KeyRing } from "../core/encrypt/kek.ts";
import { unwrapSecret } from "../core/encrypt/session-secret.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { ManifestAccumulator } from "../core/manifest/accumulator.ts";
import { requireChunksOfManifest } from "../core/manifest/chunks-file.ts";
import type { Manifest } from "../core/manifest/manifest.ts";
import { manifestFileNames, manifestId } from "../core/manifest/names.ts";
import { verifyManifest } from "../core/manifest/sign.ts";
import { sealedSession } from "../schema/manifest.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { anchorFileOf } from "./anchor-session.ts";
import type { BlobStore, ChunkStore, ManifestStore, SessionStore } from "./ports.ts";

/** Chunk documents that one query brings: with it and BLOBS_AHEAD_MAX the memory is bounded, however long the session. */
const PAGE_CHUNKS = 500;
/** Blobs that are read and written at the same time. */
const BLOBS_AHEAD_MAX = 8;
const BLOCK_BYTES = 65_536;

export interface ExportStores {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly blobs: BlobStore;
  readonly manifests: ManifestStore;
}

/** Where an export goes. A name that is there already gets the new content, in one step: no reader sees half of a file. */
export interface ExportTarget {
  write(name: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<void>;
  /** The blob of an earlier attempt, sound or not; at most `bytesMax` + 1 bytes of it. */
  readBlob(index: number, bytesMax: number): Promise<Uint8Array | undefined>;
  writeBlob(index: number, blob: Uint8Array): Promise<void>;
}

export interface ExportOptions {
  readonly signal: AbortSignal;
  /** Told how many blobs are through. */
  readonly onProgress?: (blobs: number) => void;
}

export interface ExportedSession {
  readonly names: { readonly manifest: string; readonly anchor: string | undefined };
  readonly blobBytes: number;
  /** Blobs that an earlier attempt had written. */
  readonly found: number;
}

/** A sealed session with all that was signed for it. */
export interface ExportableSession {
  readonly session: SessionRecord;
  readonly manifest: Manifest;
  /** The manifest's bytes as text. */
  readonly text: string;
  /** The checkpoint's note. */
  readonly note: string;
}

/** Throws SESSION_UNKNOWN, MANIFEST_INVALID while there is no manifest to hand out, TREE_CORRUPT. */
export async function findExportable(
  { sessions, manifests }: Pick<ExportStores, "sessions" | "manifests">,
  id: SessionId,
): Promise<ExportableSession> {
  const session = await sessions.find(id);
  if (session === undefined)
    throw new LucidError("SESSION_UNKNOWN", "there is no session of that id in this database");
  if (session.state === "open")
    throw new LucidError("MANIFEST_INVALID", "the session is still open: only a sealed one has a manifest");
  const { root = new Uint8Array(0), size } = session.tree;
  const text = (await manifests.find(manifestId(id, sealedSession(session).manifestType)))?.text;
  const { checkpoint } = session;
  // A checkpoint of the sealed tree was signed together with a manifest.
  if (text === undefined && checkpoint?.size === size) {
    throw new LucidError(
      "MANIFEST_INVALID",
      "the session's signed manifest is gone from the database; run fsck on the session where LUCID_MANIFEST_PATH is mounted",
    );
  }
  if (text === undefined && session.closed) {
    throw new LucidError(
      "MANIFEST_INVALID",
      "the session was closed by a worker without MANIFEST_SIGNING_KEY_FILE: it has no manifest and gets none, so nothing " +
        "signed can be handed out; restore and proof work. Later sessions get one if every worker has the key",
    );
  }
  if (text === undefined || checkpoint === undefined) {
    throw new LucidError(
      "MANIFEST_INVALID",
      "the session has no signed manifest yet: see its status, and MANIFEST_SIGNING_KEY_FILE of the worker",
    );
  }
  if (checkpoint.size !== size || !bytesEqual(checkpoint.root, root))
    throw new LucidError("TREE_CORRUPT", "the newest checkpoint is not of the sealed tree; run fsck");
  return { session, manifest: soundManifest(text), text, note: checkpoint.note };
}

/**
 * Everything that a stranger needs to check a session, as docs/formats.md names it: chunks file, blobs, checkpoint and anchor
 * file, and the manifest last. All of it from the stores, and held against the signed manifest: what an auditor would refuse
 * is not handed out, but is an error here (TREE_CORRUPT, MANIFEST_INVALID, BLOB_MISSING, BLOB_MALFORMED).
 */
export async function exportSession(
  stores: ExportStores,
  { session, manifest, text, note }: ExportableSession,
  target: ExportTarget,
  options: ExportOptions,
): Promise<ExportedSession> {
  const names = manifestFileNames(session.id, manifest.manifest_type);
  // Before the blobs: a contradiction shows after seconds, not after hours of copying.
  await target.write(names.chunks, chunkLines(stores.chunks, { session, manifest }, options.signal));
  const blobs = await copyBlobs(stores, session, target, options);
  await target.write(names.checkpoint, utf8(note));
  const anchor = session.state === "anchored" ? names.anchor : undefined;
  if (anchor !== undefined) await target.write(anchor, anchorFileOf(session));
  await target.write(names.manifest, utf8(text));
  return { names: { manifest: names.manifest, anchor }, ...blobs };
}

/** Lines `VERSION SECRET`, one for each key version. Throws SECRET_UNWRAP_FAILED, KEK_UNKNOWN. */
export function exportSecrets({ id, keys }: SessionRecord, keyRing: KeyRing): Uint8Array {
  if (keys.length === 0)
    throw new LucidError("SECRET_UNWRAP_FAILED", "the session's secret is gone (shredded?)");
  const lines = keys.map(({ keyVersion, kekVersion, wrapped }) => {
    const secret = unwrapSecret(wrapped, { kek: keyRing.kek(kekVersion), sessionId: id, keyVersion });
    return `${keyVersion} ${secret}\n`;
  });
  return utf8(lines.join(""));
}

/** By the key that it names itself: whether it is ours is for whoever has pinned one. */
function soundManifest(text: string): Manifest {
  const { signature } = JSON.parse(text) as { readonly signature?: { readonly public_key?: string } };
  const verdict = verifyManifest(utf8(text), [fromBase64(signature?.public_key ?? "") ?? new Uint8Array(0)]);
  if (verdict.ok) return verdict.manifest;
  throw new LucidError("MANIFEST_INVALID", `the stored manifest is not sound: ${verdict.reason}; run fsck`);
}

async function* chunkPages(
  chunks: ChunkStore,
  session: SessionRecord,
  signal: AbortSignal,
): AsyncGenerator<readonly ChunkRecord[]> {
  for (let next = 0; next < session.tree.size; ) {
    if (signal.aborted) throw new LucidError("SHUTTING_DOWN", "interrupted");
    const page = await chunks.beyond(session.id, next, Math.min(PAGE_CHUNKS, session.tree.size - next));
    if (page.length === 0)
      throw new LucidError("TREE_CORRUPT", "a leaf that the tree counts has no chunk document; run fsck");
    yield page;
    next += page.length;
  }
}

/** Throws at its end if they aren't the lines that the manifest signs: a file of them then never appears. */
async function* chunkLines(
  chunks: ChunkStore,
  { session, manifest }: Pick<ExportableSession, "session" | "manifest">,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const accumulator = new ManifestAccumulator(session.id, session.hashAlgorithm);
  let block = "";
  for await (const page of chunkPages(chunks, session, signal)) {
    for (const chunk of page) block += accumulator.add(chunk);
    if (block.length < BLOCK_BYTES) continue;
    yield utf8(block);
    block = "";
  }
  const summary = accumulator.summary();
  requireChunksOfManifest(manifest, summary, summary.chunksFileBlake3);
  yield utf8(block);
}

/** In order, a few at a time. When one fails, those under way end before its error goes up: nothing writes behind the caller's back. */
async function copyBlobs(
  { chunks, blobs }: ExportStores,
  session: SessionRecord,
  target: ExportTarget,
  { signal, onProgress }: ExportOptions,
): Promise<{ readonly blobBytes: number; readonly found: number }> {
  const ahead: Promise<"found" | "copied">[] = [];
  let [through, blobBytes, found] = [0, 0, 0];
  const settleFirst = async (): Promise<void> => {
    if ((await ahead.shift()) === "found") found += 1;
    onProgress?.((through += 1));
  };
  try {
    for await (const page of chunkPages(chunks, session, signal)) {
      for (const chunk of page) {
        if (signal.aborted) throw new LucidError("SHUTTING_DOWN", "interrupted");
        const copied = copyBlob(blobs, chunk, target);
        copied.catch(() => undefined);
        ahead.push(copied);
        blobBytes += chunk.storedBytes;
        if (ahead.length >= BLOBS_AHEAD_MAX) await settleFirst();
      }
    }
    while (ahead.length > 0) await settleFirst();
  } finally {
    await Promise.allSettled(ahead);
  }
  return { blobBytes, found };
}

async function copyBlob(
  blobs: BlobStore,
  chunk: ChunkRecord,
  target: ExportTarget,
): Promise<"found" | "copied"> {
  const earlier = await target.readBlob(chunk.index, chunk.storedBytes);
  if (earlier !== undefined && isBlobOf(chunk, earlier)) return "found";
  const blob = await blobs.read(chunk.blobId);
  if (blob === undefined)
    throw new LucidError("BLOB_MISSING", `the blob of chunk ${chunk.index} is not in the store; run fsck`);
  if (!isBlobOf(chunk, blob))
    throw new LucidError("BLOB_MALFORMED", `the blob of chunk ${chunk.index} has changed; run fsck --data`);
  await target.writeBlob(chunk.index, blob);
  return "copied";
}

function isBlobOf({ storedBytes, blobBlake3 }: ChunkRecord, blob: Uint8Array): boolean {
  return blob.byteLength === storedBytes && bytesEqual(blake3(blob), blobBlake3);
}
