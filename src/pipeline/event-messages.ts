import { toHex } from "../core/bytes.ts";
import type { ErrorCode } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type {
  ChunkCompletedEvent,
  ChunkFailedEvent,
  SessionAnchoredEvent,
  SessionGapEvent,
  SessionSealedEvent,
} from "../schema/event.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import {
  chunkFailedEventId,
  sessionAnchoredEventId,
  sessionGapEventId,
  sessionSealedEventId,
} from "./event-ids.ts";

/** Built from the committed record alone, so that every replay of an event is the same but for nothing. */
export function chunkCompletedEvent(chunk: ChunkRecord): ChunkCompletedEvent {
  return {
    event_id: chunk.eventId,
    type: "chunk.completed",
    version: 1,
    occurred_at: chunk.committedAt.toISOString(),
    session_id: chunk.sessionId,
    chunk_id: chunk.chunkId,
    chunk_index: chunk.index,
    original_bytes: chunk.originalBytes,
    stored_bytes: chunk.storedBytes,
    compression: {
      algorithm: chunk.codec,
      level: chunk.level,
      ratio: round6(chunk.originalBytes / chunk.compressedBytes),
    },
    encryption: { format: 1, key_version: chunk.keyVersion, kek_version: chunk.kekVersion },
    blob: { collection: "chunk_blobs", id: chunk.blobId, blake3: toHex(chunk.blobBlake3) },
    leaf_hash: toHex(chunk.leafHash),
    hash_algorithm: chunk.hashAlgorithm,
  };
}

export interface FailedChunk {
  readonly jobId: string;
  readonly sessionId?: string;
  readonly chunkId?: string;
  readonly chunkIndex?: number;
  readonly code: ErrorCode;
  readonly message: string;
  readonly attempts: number;
}

export function chunkFailedEvent(failed: FailedChunk, at: Date): ChunkFailedEvent {
  return {
    event_id: chunkFailedEventId(failed),
    type: "chunk.failed",
    version: 1,
    occurred_at: at.toISOString(),
    ...(failed.sessionId === undefined ? {} : { session_id: failed.sessionId }),
    ...(failed.chunkId === undefined ? {} : { chunk_id: failed.chunkId }),
    ...(failed.chunkIndex === undefined ? {} : { chunk_index: failed.chunkIndex }),
    job_id: failed.jobId,
    error: { code: failed.code, message: failed.message },
    attempts: failed.attempts,
  };
}

export function sessionSealedEvent(session: SessionRecord): SessionSealedEvent {
  if (session.tree.root === undefined || session.sealedAt === undefined) {
    throw new TypeError("only a sealed session has a sealed event");
  }
  return {
    event_id: sessionSealedEventId(session.id),
    type: "session.sealed",
    version: 1,
    occurred_at: session.sealedAt.toISOString(),
    session_id: session.id,
    tree_size: session.tree.size,
    root_hash: toHex(session.tree.root),
    hash_algorithm: session.hashAlgorithm,
    original_bytes: session.totals.originalBytes,
    stored_bytes: session.totals.storedBytes,
  };
}

export function sessionAnchoredEvent(session: SessionRecord): SessionAnchoredEvent {
  const { id, tree, anchor } = session;
  if (tree.root === undefined || anchor?.anchoredAt === undefined) {
    throw new TypeError("only an anchored session has an anchored event");
  }
  return {
    event_id: sessionAnchoredEventId(id),
    type: "session.anchored",
    version: 1,
    occurred_at: anchor.anchoredAt.toISOString(),
    session_id: id,
    tree_size: tree.size,
    root_hash: toHex(tree.root),
    ...(anchor.anchoringId === undefined ? {} : { anchoring_id: anchor.anchoringId }),
    ...(anchor.transaction === undefined ? {} : { transaction: anchor.transaction }),
    ...(anchor.block === undefined ? {} : { block: anchor.block }),
  };
}

/** One event per first missing index: while that one is missing, repeats are dropped by the id. */
export function sessionGapEvent(
  session: SessionId,
  size: number,
  missing: readonly (readonly [number, number])[],
  at: Date,
): SessionGapEvent {
  return {
    event_id: sessionGapEventId(session, missing[0]?.[0] ?? size),
    type: "session.gap",
    version: 1,
    occurred_at: at.toISOString(),
    session_id: session,
    tree_size: size,
    missing: missing.map(([first, last]) => [first, last]),
  };
}

function round6(value: number): number {
  return Math.round(value * 1e6) / 1e6;
}
