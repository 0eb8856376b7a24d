import { bytesEqual, fromHex } from "../core/bytes.ts";
import { blake3 } from "../core/digest.ts";
import { asLucidError, type ErrorCode, LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { ANCHOR_FILE_BYTES_MAX, type AnchorFile, verifyAnchorFile } from "../core/manifest/anchor-file.ts";
import { CHUNK_LINE_CHARS_MAX, type ManifestChunk } from "../core/manifest/chunk-line.ts";
import { type ChunkRun, type ChunkRunRequest, ChunkRunsVerifier } from "../core/manifest/chunk-run.ts";
import { ChunksFileVerifier } from "../core/manifest/chunks-file.ts";
import type { Manifest } from "../core/manifest/manifest.ts";
import { manifestFileNames } from "../core/manifest/names.ts";
import { verifyManifest } from "../core/manifest/sign.ts";
import { CHECKPOINT_CHARS_MAX, checkpointVerifierKey, verifyCheckpoint } from "../core/merkle/checkpoint.ts";
import type { SessionRecord } from "../schema/record.ts";
import { OpeningKeys } from "./opening-keys.ts";
import type { KernelThreads } from "./ports.ts";
import type { KeyRing } from "../core/encrypt/kek.ts";

/** The files beside a manifest. MANIFEST_INVALID is thrown for what has the name of one and isn't a regular file. */
export interface ManifestFolder {
  /** At most `bytesMax` + 1 bytes; `undefined` when there is no file of that name. */
  read(name: string, bytesMax: number): Promise<Uint8Array | undefined>;
  /** From the beginning; `undefined` when there is no file of that name. */
  stream(name: string): AsyncIterable<Uint8Array> | undefined;
}

/** Which of the things that were checked was refused. */
export type VerifiedPart = "manifest" | "chunks file" | "checkpoint" | "anchor file" | "blob";

export interface Refusal {
  readonly part: VerifiedPart;
  /** Where in it: `line 3`, `chunk 7`; absent for the whole. */
  readonly place?: string;
  readonly code: ErrorCode;
  readonly reason: string;
}

export interface VerifiedSession {
  readonly manifest: Manifest;
  readonly chunks: number;
  /** Absent while the session isn't anchored. */
  readonly anchor: AnchorFile | undefined;
  /** Bytes of the blobs that were checked; 0 without `checkBlob`. */
  readonly blobBytes: number;
}

export type SessionVerdict =
  | { readonly ok: true; readonly verified: VerifiedSession }
  | { readonly ok: false; readonly refusal: Refusal };

/** Throws unless the blob of the chunk is the one of its line; returns the blob's bytes. */
export type BlobCheck = (chunk: ManifestChunk) => Promise<number>;

/** checkChunkRun in another thread; the lines' buffer may be transferred. */
export type LineCheck = (request: ChunkRunRequest) => Promise<ChunkRun>;

export interface SessionChecks {
  /** Public keys of 32 bytes: the only ones that are believed. */
  readonly pinnedKeys: readonly Uint8Array[];
  readonly checkBlob?: BlobCheck;
  /** Checks lines of the chunks file in other threads; not used together with `checkBlob`, whose blobs take longer. */
  readonly checkLines?: LineCheck;
  /** Told how many chunks are through. */
  readonly onProgress?: (chunks: number) => void;
  readonly signal?: AbortSignal;
}

/** Blobs that are under way at the same time, so that reading and CPU threads keep one another busy. */
const BLOBS_AHEAD_MAX = 8;
/** Blocks of lines that are under way at the same time. */
const RUNS_AHEAD_MAX = 6;
const utf8Decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Ends a verification; what it says is the caller's result, not an error of the program. */
class Refused extends Error {
  readonly refusal: Refusal;

  constructor(refusal: Refusal) {
    super(refusal.reason);
    this.refusal = refusal;
  }
}

/**
 * What an auditor does who has a manifest, the files beside it, pinned keys and perhaps the blobs, and trusts nothing else:
 * manifest (signature, canonical form), chunks file line by line, checkpoint, anchor file where there is one. The first
 * thing that is wrong is named. Throws only for what says nothing about the session: STORE_UNAVAILABLE, an unreadable file.
 */
export async function verifySession(
  manifestBytes: Uint8Array,
  folder: ManifestFolder,
  checks: SessionChecks,
): Promise<SessionVerdict> {
  try {
    const manifest = checkedManifest(manifestBytes, checks);
    const names = manifestFileNames(
      manifest.session_metadata.session_id as SessionId,
      manifest.manifest_type,
    );
    await checkCheckpoint(folder, names.checkpoint, manifest, checks);
    const anchor = await checkAnchor(folder, names.anchor, manifest);
    const { checkBlob, checkLines } = checks;
    const { chunks, blobBytes } =
      checkBlob === undefined && checkLines !== undefined
        ? await checkChunksElsewhere(folder, manifest, checks, checkLines)
        : await checkChunks(folder, manifest, checks);
    return { ok: true, verified: { manifest, chunks, anchor, blobBytes } };
  } catch (thrown) {
    if (thrown instanceof Refused) return { ok: false, refusal: thrown.refusal };
    throw thrown;
  }
}

function checkedManifest(bytes: Uint8Array, { pinnedKeys }: SessionChecks): Manifest {
  const verdict = verifyManifest(bytes, pinnedKeys);
  if (verdict.ok) return verdict.manifest;
  const isSignature = verdict.reason === "key-not-pinned" || verdict.reason === "signature-invalid";
  const code = isSignature ? "SIGNATURE_INVALID" : "MANIFEST_INVALID";
  throw new Refused({ part: "manifest", code, reason: `${verdict.reason}: ${verdict.detail}` });
}

async function checkCheckpoint(
  folder: ManifestFolder,
  name: string,
  { session_metadata, merkle }: Manifest,
  { pinnedKeys }: SessionChecks,
): Promise<void> {
  const part = "checkpoint";
  const bytes = await readPart(folder, part, name, CHECKPOINT_CHARS_MAX);
  if (bytes === undefined) throw absent(part, name);
  const session = session_metadata.session_id as SessionId;
  const keys = pinnedKeys.map((key) => checkpointVerifierKey(session, merkle.hash_algorithm, key));
  const note = decoded(bytes);
  if (note === undefined) throw new Refused({ part, code: "PROOF_INVALID", reason: "it is not UTF-8" });
  const verdict = verifyCheckpoint(note, session, keys);
  if (!verdict.ok) {
    const code = verdict.reason === "malformed" ? "PROOF_INVALID" : "SIGNATURE_INVALID";
    throw new Refused({ part, code, reason: verdict.reason });
  }
  const { size, root } = verdict.checkpoint;
  if (size !== merkle.tree_size || !bytesEqual(root, fromHex(merkle.root_hash) ?? new Uint8Array(0))) {
    throw new Refused({ part, code: "PROOF_INVALID", reason: "its size and root are not the manifest's" });
  }
}

async function checkAnchor(
  folder: ManifestFolder,
  name: string,
  manifest: Manifest,
): Promise<AnchorFile | undefined> {
  const part = "anchor file";
  const bytes = await readPart(folder, part, name, ANCHOR_FILE_BYTES_MAX);
  if (bytes === undefined) return undefined;
  const verdict = verifyAnchorFile(bytes, manifest);
  if (verdict.ok) return verdict.anchor;
  throw new Refused({ part, code: "MANIFEST_INVALID", reason: verdict.detail });
}

async function checkChunks(
  folder: ManifestFolder,
  manifest: Manifest,
  checks: SessionChecks,
): Promise<{ readonly chunks: number; readonly blobBytes: number }> {
  const verifier = new ChunksFileVerifier(manifest);
  const blobs = new BlobChecks(checks);
  let chunks = 0;
  for await (const block of chunksBlocks(folder, manifest)) {
    checks.signal?.throwIfAborted();
    let read: readonly ManifestChunk[];
    try {
      read = verifier.add(block);
    } catch (thrown) {
      throw await firstWrongLine(folder, manifest, thrown);
    }
    chunks += read.length;
    for (const chunk of read) await blobs.add(chunk);
    checks.onProgress?.(chunks);
  }
  try {
    verifier.finish();
  } catch (thrown) {
    throw refusedChunks(thrown, undefined);
  }
  return { chunks, blobBytes: await blobs.finish() };
}

/** As checkChunks, with the lines checked by others, a few blocks at a time. */
async function checkChunksElsewhere(
  folder: ManifestFolder,
  manifest: Manifest,
  { signal, onProgress }: SessionChecks,
  checkLines: LineCheck,
): Promise<{ readonly chunks: number; readonly blobBytes: number }> {
  const verifier = new ChunkRunsVerifier(manifest);
  const request = {
    sessionId: manifest.session_metadata.session_id as SessionId,
    hashAlgorithm: manifest.merkle.hash_algorithm,
  };
  const ahead: Promise<ChunkRun>[] = [];
  let chunks = 0;
  const settleFirst = async (): Promise<void> => {
    const run = await ahead.shift();
    if (run === undefined) return;
    verifier.addRun(run);
    chunks += run.count;
    onProgress?.(chunks);
  };
  try {
    let rest: Uint8Array = new Uint8Array(0);
    for await (const block of chunksBlocks(folder, manifest)) {
      signal?.throwIfAborted();
      verifier.addBytes(block);
      const end = block.lastIndexOf(0x0a) + 1;
      const lines = joined(rest, block.subarray(0, end));
      rest = end === 0 ? joined(rest, block) : block.slice(end);
      if (rest.byteLength > CHUNK_LINE_CHARS_MAX) break;
      if (end === 0) continue;
      const checked = checkLines({ ...request, lines });
      // Its error is met when its turn comes; until then it must not count as unhandled.
      checked.catch(() => undefined);
      ahead.push(checked);
      if (ahead.length >= RUNS_AHEAD_MAX) await settleFirst();
    }
    while (ahead.length > 0) await settleFirst();
    verifier.finish();
  } catch (thrown) {
    if (thrown instanceof Refused) throw thrown;
    const { code } = asLucidError(thrown);
    if (code === "MANIFEST_INVALID" || code === "TREE_CORRUPT") {
      throw await firstWrongLine(folder, manifest, thrown);
    }
    throw thrown;
  }
  return { chunks, blobBytes: 0 };
}

function joined(left: Uint8Array, right: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(left.byteLength + right.byteLength);
  both.set(left, 0);
  both.set(right, left.byteLength);
  return both;
}

async function* chunksBlocks(
  folder: ManifestFolder,
  { chunks_file: { name } }: Manifest,
): AsyncGenerator<Uint8Array> {
  const part = "chunks file";
  const blocks = folder.stream(name);
  if (blocks === undefined) throw absent(part, name);
  try {
    yield* blocks;
  } catch (thrown) {
    throw refusedFile(part, thrown);
  }
}

async function readPart(
  folder: ManifestFolder,
  part: VerifiedPart,
  name: string,
  bytesMax: number,
): Promise<Uint8Array | undefined> {
  try {
    return await folder.read(name, bytesMax);
  } catch (thrown) {
    throw refusedFile(part, thrown);
  }
}

/** What isn't even a file is refused as what it stands for; one that can't be read says nothing about the session. */
function refusedFile(part: VerifiedPart, thrown: unknown): unknown {
  const { code, message } = asLucidError(thrown);
  return code === "MANIFEST_INVALID" ? new Refused({ part, code, reason: message }) : thrown;
}

/** Blocks are checked as a whole, for speed; only a file that was refused is read again line by line, to name the line. */
async function firstWrongLine(folder: ManifestFolder, manifest: Manifest, first: unknown): Promise<Refused> {
  const verifier = new ChunksFileVerifier(manifest);
  let line = 1;
  try {
    for await (const bytes of linesOf(chunksBlocks(folder, manifest))) {
      verifier.add(bytes);
      line += 1;
    }
  } catch (thrown) {
    return thrown instanceof Refused ? thrown : refusedChunks(thrown, `line ${line}`);
  }
  return refusedChunks(first, undefined);
}

async function* linesOf(blocks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let rest: Uint8Array = new Uint8Array(0);
  for await (const block of blocks) {
    let bytes: Uint8Array = Buffer.concat([rest, block]);
    for (let end = bytes.indexOf(0x0a); end >= 0; end = bytes.indexOf(0x0a)) {
      yield bytes.subarray(0, end + 1);
      bytes = bytes.subarray(end + 1);
    }
    rest = bytes;
    // No line is longer: it is refused as it is, and what follows is not collected.
    if (rest.byteLength > CHUNK_LINE_CHARS_MAX) yield rest;
  }
}

/** Checks of blobs, a few at a time; their failures come in the order of the chunks. */
class BlobChecks {
  readonly #check: BlobCheck | undefined;
  readonly #ahead: { readonly chunk: ManifestChunk; readonly checked: Promise<number> }[] = [];
  #bytes = 0;

  constructor({ checkBlob }: SessionChecks) {
    this.#check = checkBlob;
  }

  async add(chunk: ManifestChunk): Promise<void> {
    if (this.#check === undefined) return;
    const checked = this.#check(chunk);
    // Its error is met when its turn comes; until then it must not count as unhandled.
    checked.catch(() => undefined);
    this.#ahead.push({ chunk, checked });
    if (this.#ahead.length >= BLOBS_AHEAD_MAX) await this.#settleFirst();
  }

  /** Bytes of all blobs. */
  async finish(): Promise<number> {
    while (this.#ahead.length > 0) await this.#settleFirst();
    return this.#bytes;
  }

  async #settleFirst(): Promise<void> {
    const first = this.#ahead.shift();
    if (first === undefined) return;
    try {
      this.#bytes += await first.checked;
    } catch (thrown) {
      const { code, message } = asLucidError(thrown);
      if (!BLOB_FAULTS.has(code)) throw thrown;
      throw new Refused({ part: "blob", place: `chunk ${first.chunk.index}`, code, reason: message });
    }
  }
}

/** What an unsound blob is refused with; all else says something about the surroundings, and not about the session. */
const BLOB_FAULTS: ReadonlySet<ErrorCode> = new Set([
  "BLOB_MISSING",
  "BLOB_MALFORMED",
  "BLOB_AUTHENTICATION_FAILED",
  "DECODE_FAILED",
  "DECODE_LENGTH_MISMATCH",
]);

/** The blob of a chunk, wherever it is kept. */
export type BlobReader = (chunk: ManifestChunk) => Promise<Uint8Array | undefined>;

/** Length and BLAKE3 against the line: all that can be said without the session's secret. */
export function hashingBlobCheck(read: BlobReader): BlobCheck {
  return async (chunk) => {
    const blob = await readBlob(read, chunk);
    if (!bytesEqual(blake3(blob), chunk.blobBlake3)) {
      throw new LucidError("BLOB_MALFORMED", "the blob's BLAKE3 is not that of its line");
    }
    return blob.byteLength;
  };
}

export interface OpeningPorts {
  readonly threads: KernelThreads;
  readonly keyRing: KeyRing;
  /** For its wrapped secrets; nothing else in it is believed. */
  readonly session: SessionRecord;
  readonly signal: AbortSignal;
}

/** Also opens each blob in a CPU thread: key commitment, tag, length and plain mac against the line. */
export function openingBlobCheck(read: BlobReader, ports: OpeningPorts): BlobCheck {
  const { threads, keyRing, session, signal } = ports;
  const keys = new OpeningKeys(threads, keyRing, session);
  return async (chunk) => {
    const blob = await readBlob(read, chunk);
    const { byteLength } = blob;
    const opening = await keys.forBlob(chunk.keyVersion, blob);
    await threads.open(
      {
        ...chunk,
        sessionId: session.id,
        originalLength: chunk.originalBytes,
        blob,
        key: opening.key,
        plainMacKey: opening.plainMacKey,
      },
      signal,
    );
    return byteLength;
  };
}

async function readBlob(read: BlobReader, chunk: ManifestChunk): Promise<Uint8Array> {
  const blob = await read(chunk);
  if (blob === undefined) throw new LucidError("BLOB_MISSING", "there is no blob of this chunk");
  if (blob.byteLength !== chunk.storedBytes) {
    throw new LucidError(
      "BLOB_MALFORMED",
      `the blob doesn't have the ${chunk.storedBytes} bytes of its line`,
    );
  }
  return blob;
}

function refusedChunks(thrown: unknown, place: string | undefined): Refused {
  const { code, message } = asLucidError(thrown);
  return new Refused({
    part: "chunks file",
    ...(place === undefined ? {} : { place }),
    // To whoever holds a copy a line that isn't of the tree says nothing about anybody's database.
    code: code === "TREE_CORRUPT" ? "MANIFEST_INVALID" : code,
    reason: message,
  });
}

function absent(part: VerifiedPart, name: string): Refused {
  return new Refused({ part, code: "MANIFEST_INVALID", reason: `there is no ${name} beside the manifest` });
}

function decoded(bytes: Uint8Array): string | undefined {
  try {
    return utf8Decoder.decode(bytes);
  } catch {
    return undefined;
  }
}
