import { bytesEqual, toHex } from "../core/bytes.ts";
import { blake3, sha256 } from "../core/digest.ts";
import { plainMac } from "../core/encrypt/commit.ts";
import { LucidError } from "../core/errors.ts";
import type { SealedChunk } from "../core/kernel.ts";
import type { LeafIndex, SessionId } from "../core/ids.ts";
import { release } from "../core/scratch.ts";
import type { CommittedStub, PayloadRef } from "../schema/job.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { chunkCompletedEventId } from "./event-ids.ts";
import type { OnePerSession } from "./integrate.ts";
import type { OwnGrowth } from "./own-growth.ts";
import { type RelayPorts, relayChunkCompleted } from "./relay-events.ts";
import { isBeyondEnd } from "./seal-session.ts";
import type { BlobStore, ChunkJob, Clock, KernelThreads, PayloadStore, RandomBytes } from "./ports.ts";
import type { SealingMaterial, SessionKeys } from "./session-keys.ts";
import type { SessionDirectory } from "./session-directory.ts";
import type { SessionRoom } from "./session-room.ts";

/** Random bytes that name one attempt; two attempts at one chunk never share a blob id. */
const ATTEMPT_ID_BYTES = 10;

export interface ChunkPipeline extends RelayPorts {
  readonly blobs: BlobStore;
  readonly payloads: PayloadStore;
  readonly threads: KernelThreads;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly keys: SessionKeys;
  readonly directory: SessionDirectory;
  /** advanceSession, at most once per session at a time. */
  readonly advance: OnePerSession;
  readonly growth: OwnGrowth;
  readonly room: SessionRoom;
  readonly limits: ChunkLimits;
}

export interface ChunkLimits {
  readonly chunkBytesMax: number;
  readonly sessionBytesMax: number;
  readonly compressionThresholdBytes: number;
  /** An attempt whose blob is older than this doesn't commit any more: the blob sweeper may have taken it. */
  readonly attemptAgeMaxMs: number;
}

/**
 * The write path of contract §5: one chunk from its job to its event, with exactly one effect however often the job
 * is delivered and wherever a process dies. `isFirstDelivery` saves work and decides nothing: it may be wrong (decision 15).
 */
export async function processChunk(
  pipeline: ChunkPipeline,
  delivered: ChunkJob,
  signal: AbortSignal,
  isFirstDelivery = false,
): Promise<ChunkRecord> {
  const job = withInlineDigest(delivered);

  // 1. Is it committed already? A first delivery hardly ever is: it isn't asked for, and step 4 says so if it is.
  const committed = isFirstDelivery ? undefined : await findChunk(pipeline, job.sessionId, job.index, signal);
  if (committed !== undefined) return finishRepeat(pipeline, job, committed, signal);
  // Dies here: nothing is written. The job's lock runs out and the job is delivered again; so it is up to step 4.

  // 2. Compress, seal, open again and compare, hash: in a CPU thread.
  const payload = await readPayload(pipeline, job, signal);
  if (payload === undefined) return finishAfterLostPayload(pipeline, job, signal);
  const admission = await admit(pipeline, job, payload, signal);
  if (admission.kind === "refused") return finishRefused(pipeline, job, admission.error, signal);
  const { session } = admission;
  const material = await pipeline.keys.forSealing(session, payload.byteLength);
  const sealed = await sealInThread(pipeline, job, session, material, payload, signal);
  const chunk = chunkRecordOf(pipeline, job, session, material, sealed);

  // 3. The sealed bytes, under an id of this attempt.
  const blobAtMs = pipeline.clock.monotonicMs();
  await timed(pipeline, "store", () =>
    pipeline.patience("blobs.insert", signal, () => pipeline.blobs.insert(chunk.blobId, job, sealed.blob)),
  );
  // Dies here: a blob without a document. The next attempt writes its own; sweepOrphanBlobs removes this one.

  // 4. Commit point.
  const outcome = await commit(pipeline, chunk, blobAtMs, signal);
  if (outcome !== "inserted") {
    release(sealed.blob);
    return finishLostRace(pipeline, job, chunk, outcome, signal);
  }
  if (isExpired(pipeline, blobAtMs)) {
    // Frozen after the last look at the clock: the sweeper may have taken the blob in between. The same bytes again.
    await pipeline.patience("blobs.insert", signal, () =>
      pipeline.blobs.insert(chunk.blobId, job, sealed.blob),
    );
  }
  // Not before: the bytes may have been needed once more. Left to the garbage collector they pile up.
  release(sealed.blob);
  pipeline.growth.committed(chunk.sessionId, chunk);
  pipeline.observer.report({
    kind: "chunk-committed",
    chunk,
    seconds: (pipeline.clock.monotonicMs() - blobAtMs) / 1000,
  });
  // Dies here: the chunk is committed, but not in the tree and not announced. The job's next delivery finds it in
  // step 1 and goes on below; without a job, sweepSessions and sweepPendingEvents do the same.

  return finishCommitted(pipeline, job, chunk, signal);
}

/** The job of an inline chunk whose bytes were replaced after its commit: only the steps after that are left. */
export async function finishStub(
  pipeline: ChunkPipeline,
  stub: CommittedStub,
  signal: AbortSignal,
): Promise<ChunkRecord> {
  const committed = await findChunk(
    pipeline,
    stub.session_id as SessionId,
    stub.chunk_index as LeafIndex,
    signal,
  );
  if (committed === undefined || toHex(committed.leafHash) !== stub.leaf_hash) {
    throw new LucidError(
      "PAYLOAD_MISSING",
      "the job says that its chunk is committed, but the store has no such chunk; send the chunk again",
    );
  }
  return finishCommitted(pipeline, undefined, committed, signal);
}

async function finishCommitted(
  pipeline: ChunkPipeline,
  job: ChunkJob | undefined,
  chunk: ChunkRecord,
  signal: AbortSignal,
): Promise<ChunkRecord> {
  // 5. Integrate, and seal if that was the last leaf.
  const session = await timed(pipeline, "integrate", () => pipeline.advance.request(chunk.sessionId));
  pipeline.directory.remember(session);
  if (isBeyondEnd(session, chunk.index)) return withdraw(pipeline, chunk, session, signal);
  // Dies here: the leaf is in the tree; the event is still `pending` in the chunk document and gets swept.

  // 6. Relay the event.
  await timed(pipeline, "relay", () => relayChunkCompleted(pipeline, chunk, signal));
  // Dies here: the payload is left behind until its TTL, and the job is delivered once more, to end in step 1.

  if (job?.source.kind === "reference") removePayload(pipeline, job.sessionId, job.source.ref, signal);
  return chunk;
}

/** Nobody waits for it: what is left behind by a failure or a death goes by its TTL. */
function removePayload(
  { background, patience, payloads, observer }: ChunkPipeline,
  session: SessionId,
  ref: PayloadRef,
  signal: AbortSignal,
): void {
  background.add(
    patience("payloads.remove", signal, () => payloads.remove(session, ref)),
    (code) => observer.report({ kind: "payload-left", sessionId: session, code }),
  );
}

/** Same chunk again: finish what its first delivery may have left undone. Other bytes or id: the first stays. */
async function finishRepeat(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  committed: ChunkRecord,
  signal: AbortSignal,
): Promise<ChunkRecord> {
  const session = await pipeline.directory.find(job.sessionId, signal);
  if (session === undefined) throw sessionUnknown();
  if (!isSameInput(pipeline, job, committed, session)) {
    throw new LucidError(
      "CHUNK_CONFLICT",
      "the session already has another chunk at this index; the first one stays, this one is refused",
    );
  }
  pipeline.observer.report({
    kind: "chunk-adopted",
    sessionId: job.sessionId,
    index: job.index,
    codec: committed.codec,
  });
  return finishCommitted(pipeline, job, committed, signal);
}

/**
 * Inline bytes leave this thread in step 2, so their digest is taken first. With it every job, from here on, is known by
 * its BLAKE3 alone.
 */
export function withInlineDigest(job: ChunkJob): ChunkJob {
  if (job.source.kind !== "inline") return job;
  const digest = blake3(job.source.bytes);
  if (job.declared.blake3 !== undefined && !bytesEqual(job.declared.blake3, digest)) throw digestMismatch();
  return { ...job, declared: { ...job.declared, blake3: digest } };
}

export function isSameInput(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  committed: ChunkRecord,
  session: SessionRecord,
): boolean {
  if (committed.chunkId !== job.chunkId) return false;
  // The declared digest is enough: bytes that don't match it are refused, never committed.
  const digest = job.declared.blake3;
  if (digest === undefined) return false;
  const key = pipeline.keys.plainMacKey(session, committed.keyVersion);
  return bytesEqual(plainMac(key, digest), committed.plainMac);
}

async function readPayload(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  signal: AbortSignal,
): Promise<Uint8Array | undefined> {
  if (job.source.kind === "inline") return job.source.bytes;
  const { ref } = job.source;
  const declaredBytes = job.declared.sizeBytes ?? pipeline.limits.chunkBytesMax;
  const payload = await timed(pipeline, "read", () =>
    pipeline.patience("payloads.read", signal, () =>
      pipeline.payloads.read(job.sessionId, ref, declaredBytes),
    ),
  );
  if (payload !== undefined && payload.byteLength !== declaredBytes) {
    throw new LucidError("PAYLOAD_SIZE_MISMATCH", "the payload's length is not the job's size_bytes");
  }
  return payload;
}

/** No payload: another delivery of this job may have committed the chunk, and removed the payload, meanwhile. */
async function finishAfterLostPayload(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  signal: AbortSignal,
): Promise<ChunkRecord> {
  const committed = await findChunk(pipeline, job.sessionId, job.index, signal);
  if (committed !== undefined) return finishRepeat(pipeline, job, committed, signal);
  throw new LucidError(
    "PAYLOAD_MISSING",
    "the payload that the job refers to is not there (expired, or never written); send the chunk again",
  );
}

type Admission =
  | { readonly kind: "admitted"; readonly session: SessionRecord }
  | { readonly kind: "refused"; readonly error: LucidError };

/** The session that takes this chunk; made here if it is the first. Refuses before anything is written. */
async function admit(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<Admission> {
  const { directory, limits, room } = pipeline;
  const known = await directory.find(job.sessionId, signal);
  if (known === undefined) {
    // The kernel checks digests too, but by then the session's document would have been written.
    checkDeclaredDigests(job, payload);
    if (payload.byteLength > limits.sessionBytesMax) throw tooLarge();
    // A session may have lost its document: a new one, with another secret, would be in the way of its restore. If it is only
    // that somebody has just begun the session with this chunk, finishRepeat finds out.
    const committed = await findChunk(pipeline, job.sessionId, job.index, signal);
    if (committed !== undefined) return { kind: "refused", error: sessionUnknown() };
  }
  const session = known ?? (await directory.findOrCreate(job.sessionId, signal));
  if (session.state !== "open") return { kind: "refused", error: sessionSealed() };
  if (isBeyondEnd(session, job.index)) return { kind: "refused", error: beyondEnd() };
  if (!(await room.takes(session, job.index, payload.byteLength, signal))) {
    return { kind: "refused", error: tooLarge() };
  }
  return { kind: "admitted", session };
}

/**
 * Refused, unless the session is sealed or full because it holds this very chunk: another delivery of the job may have
 * committed it since step 1.
 */
async function finishRefused(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  error: LucidError,
  signal: AbortSignal,
): Promise<ChunkRecord> {
  const committed = await findChunk(pipeline, job.sessionId, job.index, signal);
  if (committed === undefined) throw error;
  return finishRepeat(pipeline, job, committed, signal);
}

function checkDeclaredDigests(job: ChunkJob, payload: Uint8Array): void {
  const { blake3: declaredBlake3, sha256: declaredSha256 } = job.declared;
  const isWrong =
    (declaredBlake3 !== undefined && !bytesEqual(blake3(payload), declaredBlake3)) ||
    (declaredSha256 !== undefined && !bytesEqual(sha256(payload), declaredSha256));
  if (isWrong) throw digestMismatch();
}

async function sealInThread(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  session: SessionRecord,
  material: SealingMaterial,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<SealedChunk> {
  const { threads, limits, observer } = pipeline;
  const { algorithm, level } = job.compression;
  const sealed = await threads.seal(
    {
      sessionId: job.sessionId,
      chunkId: job.chunkId,
      index: job.index,
      payload,
      ...(job.declared.blake3 === undefined ? {} : { declaredBlake3: job.declared.blake3 }),
      ...(job.declared.sha256 === undefined ? {} : { declaredSha256: job.declared.sha256 }),
      compression: { algorithm, level, thresholdBytes: limits.compressionThresholdBytes },
      hashAlgorithm: session.hashAlgorithm,
      keyVersion: material.keyVersion,
      key: material.key,
      salt: material.salt,
      nonce: material.nonce,
      plainMacKey: material.plainMacKey,
    },
    signal,
  );
  for (const stage of ["digest", "compress", "seal", "verify", "hash"] as const) {
    observer.report({ kind: "stage", stage, seconds: sealed.stageSeconds[stage] });
  }
  return sealed;
}

function chunkRecordOf(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  session: SessionRecord,
  material: SealingMaterial,
  sealed: SealedChunk,
): ChunkRecord {
  const attempt = toHex(pipeline.random(ATTEMPT_ID_BYTES));
  return {
    sessionId: job.sessionId,
    chunkId: job.chunkId,
    index: job.index,
    blobId: `${job.sessionId}:${job.index}:${attempt}`,
    blobBlake3: sealed.blobBlake3,
    originalBytes: sealed.originalLength,
    compressedBytes: sealed.compressedLength,
    storedBytes: sealed.storedLength,
    codec: sealed.codec,
    level: sealed.level,
    encryptionFormat: 1,
    keyVersion: material.keyVersion,
    kekVersion: material.kekVersion,
    keyCommit: sealed.keyCommit,
    plainMac: sealed.plainMac,
    hashAlgorithm: session.hashAlgorithm,
    leafHash: sealed.leafHash,
    ...(job.recordedAt === undefined ? {} : { recordedAt: job.recordedAt }),
    ...(job.metadata === undefined ? {} : { metadata: job.metadata }),
    committedAt: pipeline.clock.now(),
    eventId: chunkCompletedEventId(job.sessionId, job.index),
    eventState: "pending",
  };
}

async function commit(
  pipeline: ChunkPipeline,
  chunk: ChunkRecord,
  blobAtMs: number,
  signal: AbortSignal,
): Promise<"inserted" | "index-taken" | "id-taken"> {
  const { patience, chunks } = pipeline;
  return timed(pipeline, "store", () =>
    patience("chunks.insert", signal, () => {
      if (isExpired(pipeline, blobAtMs)) {
        // Frozen, or waiting for a server, for so long that the blob may count as an orphan by now.
        throw new LucidError("ATTEMPT_EXPIRED", "the attempt is too old to commit; the job starts anew");
      }
      return chunks.insert(chunk);
    }),
  );
}

function isExpired({ clock, limits }: ChunkPipeline, blobAtMs: number): boolean {
  return clock.monotonicMs() - blobAtMs > limits.attemptAgeMaxMs;
}

/** The insert was refused: by another attempt's chunk, or by our own of which only the reply was lost. */
async function finishLostRace(
  pipeline: ChunkPipeline,
  job: ChunkJob,
  own: ChunkRecord,
  outcome: "index-taken" | "id-taken",
  signal: AbortSignal,
): Promise<ChunkRecord> {
  const winner = await findChunk(pipeline, job.sessionId, job.index, signal);
  if (winner?.blobId === own.blobId) return finishCommitted(pipeline, job, winner, signal);
  if (winner !== undefined) {
    await pipeline.patience("blobs.remove", signal, () => pipeline.blobs.remove([own.blobId]));
    return finishRepeat(pipeline, job, winner, signal);
  }
  // The index is free: an insert of ours that was given up may still arrive and find nothing in its way, so the blob is
  // left to sweepOrphanBlobs.
  if (outcome === "id-taken") {
    throw new LucidError("CHUNK_ID_CONFLICT", "the session already has this chunk_id at another index");
  }
  throw new LucidError("INTERNAL", "the chunk that took this index is gone again; the job is retried");
}

/**
 * The chunk was committed after the session's count was confirmed. It can't become a leaf, and nobody has heard of it
 * (see settleCount), so it is taken back and the job fails as if it had come later.
 */
async function withdraw(
  pipeline: ChunkPipeline,
  chunk: ChunkRecord,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<never> {
  await withdrawChunk(pipeline, chunk, signal);
  throw session.state === "open" ? beyondEnd() : sessionSealed();
}

/** Document first: without it the blob is an orphan, the other way round the document would point nowhere. */
export async function withdrawChunk(
  pipeline: Pick<ChunkPipeline, "chunks" | "blobs" | "patience" | "observer">,
  chunk: ChunkRecord,
  signal: AbortSignal,
): Promise<void> {
  const { patience, chunks, blobs, observer } = pipeline;
  await patience("chunks.withdraw", signal, () => chunks.withdraw(chunk, chunk.blobId));
  await patience("blobs.remove", signal, () => blobs.remove([chunk.blobId]));
  observer.report({ kind: "chunk-withdrawn", sessionId: chunk.sessionId, index: chunk.index });
}

export function findChunk(
  pipeline: Pick<ChunkPipeline, "patience" | "chunks">,
  session: SessionId,
  index: LeafIndex,
  signal: AbortSignal,
): Promise<ChunkRecord | undefined> {
  return pipeline.patience("chunks.find", signal, () => pipeline.chunks.find(session, index));
}

async function timed<Result>(
  pipeline: Pick<ChunkPipeline, "clock" | "observer">,
  stage: "read" | "store" | "integrate" | "relay",
  work: () => Promise<Result>,
): Promise<Result> {
  const startedMs = pipeline.clock.monotonicMs();
  const result = await work();
  pipeline.observer.report({
    kind: "stage",
    stage,
    seconds: (pipeline.clock.monotonicMs() - startedMs) / 1000,
  });
  return result;
}

function digestMismatch(): LucidError {
  return new LucidError(
    "PAYLOAD_DIGEST_MISMATCH",
    "the payload's digest is not the one that the job declares",
  );
}

function sessionUnknown(): LucidError {
  return new LucidError(
    "SESSION_UNKNOWN",
    "the chunk is committed but its session has no document; run fsck",
  );
}

function sessionSealed(): LucidError {
  return new LucidError("SESSION_SEALED", "the session is sealed and takes no more chunks");
}

function beyondEnd(): LucidError {
  return new LucidError(
    "CHUNK_BEYOND_END",
    "the index is not below the chunk_count that finalize-session announced",
  );
}

function tooLarge(): LucidError {
  return new LucidError("SESSION_TOO_LARGE", "the chunk would take the session above MAX_SESSION_SIZE");
}
