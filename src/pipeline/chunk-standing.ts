import { toHex } from "../core/bytes.ts";
import { errorCodeOf } from "../core/errors.ts";
import type { ChunkId, LeafIndex, SessionId } from "../core/ids.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import type { ChunkTask } from "./parse-job.ts";
import { type ChunkPipeline, findChunk, isSameInput, withInlineDigest } from "./process-chunk.ts";
import { isBeyondEnd } from "./seal-session.ts";

/** What the store has of a job's chunk. */
export type ChunkStanding =
  /** The job's chunk, and it stays: what is missing after its commit is made up for by the sweeps. */
  | { readonly kind: "committed"; readonly chunk: ChunkRecord }
  /** None, or another's, or one that is being withdrawn. */
  | { readonly kind: "none" }
  /** The job's chunk, beyond a count that is neither confirmed nor taken back yet. */
  | { readonly kind: "undecided" }
  /** A chunk of this id at this index that stays, and of which nobody can tell whether it is made of the job's bytes. */
  | { readonly kind: "unclear" };

/** What is known of a job that can't be parsed: not its input, which may be the chunk's or any other. */
export interface NamedChunk {
  readonly kind: "named";
  readonly sessionId: SessionId;
  readonly chunkId: ChunkId;
  readonly index: LeafIndex;
}

const NONE: ChunkStanding = { kind: "none" };

/**
 * Asked before a job fails for good: a worker that died, a tree that is corrupt or an attempt that used itself up after the
 * commit says nothing about the chunk. "Failed" must never be told of one that is committed. Waits for the store.
 */
export async function chunkStanding(
  pipeline: ChunkPipeline,
  task: ChunkTask | NamedChunk,
  signal: AbortSignal,
): Promise<ChunkStanding> {
  const { sessionId, index, chunkId } = placeOf(task);
  const chunk = await findChunk(pipeline, sessionId, index, signal);
  if (chunk === undefined || chunk.chunkId !== chunkId) return NONE;
  // Not from the directory, whose record may be a second old: what is asked is whether the chunk stays.
  const session = await pipeline.patience("sessions.find", signal, () => pipeline.sessions.find(sessionId));
  if (session === undefined) return { kind: "unclear" };
  const sameness = samenessOf(pipeline, task, chunk, session);
  if (sameness === "other" || isBeyondEnd(session, index)) return NONE;
  const isProposed = session.state === "open" && session.expectedCount !== undefined;
  if (isProposed && index >= session.expectedCount) return { kind: "undecided" };
  return sameness === "same" ? { kind: "committed", chunk } : { kind: "unclear" };
}

function placeOf(task: ChunkTask | NamedChunk): Omit<NamedChunk, "kind"> {
  if (task.kind === "named") return task;
  if (task.kind === "chunk") return task.job;
  const { stub } = task;
  return {
    sessionId: stub.session_id as SessionId,
    index: stub.chunk_index as LeafIndex,
    chunkId: stub.chunk_id as ChunkId,
  };
}

/** Is the chunk made of the job's input? "unknown" where the job can't be parsed, or the session's secret can't be opened. */
function samenessOf(
  pipeline: ChunkPipeline,
  task: ChunkTask | NamedChunk,
  chunk: ChunkRecord,
  session: SessionRecord,
): "same" | "other" | "unknown" {
  if (task.kind === "named") return "unknown";
  if (task.kind === "stub") return toHex(chunk.leafHash) === task.stub.leaf_hash ? "same" : "other";
  try {
    return isSameInput(pipeline, withInlineDigest(task.job), chunk, session) ? "same" : "other";
  } catch (thrown) {
    // Such an input is refused wherever it meets the store: nothing was ever committed from it.
    return errorCodeOf(thrown) === "PAYLOAD_DIGEST_MISMATCH" ? "other" : "unknown";
  }
}
