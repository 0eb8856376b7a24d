import { LucidError } from "../core/errors.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { OnePerSession } from "./integrate.ts";
import type { Patience } from "./patience.ts";
import type { FinalizeJob, SessionStore } from "./ports.ts";
import type { SessionDirectory } from "./session-directory.ts";

/** Lost compare-and-swaps in a row before the job is retried; the tree grows under us while chunks arrive. */
const CONFLICTS_MAX = 1_000;

export interface FinalizePorts {
  readonly sessions: SessionStore;
  readonly directory: SessionDirectory;
  /** advanceSession, at most once per session at a time. */
  readonly advance: OnePerSession;
  readonly patience: Patience;
}

/**
 * Proposes the expected count and lets advanceSession settle it: confirmed, or refused because committed chunks lie
 * beyond it. Sealing is done by whichever comes last, the last leaf or this. Harmless when repeated with the same count.
 */
export async function finalizeSession(
  ports: FinalizePorts,
  job: FinalizeJob,
  signal: AbortSignal,
): Promise<SessionRecord> {
  // The session may be new: chunks and this job travel in different queues.
  await ports.directory.findOrCreate(job.sessionId, signal);
  // Dies here: an empty open session; the job is delivered again.
  await proposeCount(ports, job, signal);
  // Dies here: a proposed count; the next commit, this job's next delivery or sweepSessions settles it.
  const session = await ports.advance.request(job.sessionId);
  ports.directory.remember(session);
  if (session.expectedCount === undefined) throw countBelowChunks();
  if (session.expectedCount !== job.chunkCount) throw countConflict();
  return session;
}

async function proposeCount(ports: FinalizePorts, job: FinalizeJob, signal: AbortSignal): Promise<void> {
  const { sessions, patience } = ports;
  for (let conflicts = 0; conflicts < CONFLICTS_MAX; conflicts++) {
    const record = await patience("sessions.find", signal, () => sessions.find(job.sessionId));
    if (record === undefined)
      throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
    if (record.expectedCount === job.chunkCount) return;
    if (record.countConfirmed) throw countConflict();
    if (record.expectedCount !== undefined) {
      // Somebody else's proposal, which committed chunks may still refute: then it is no reason to refuse this one.
      await ports.advance.request(job.sessionId);
      continue;
    }
    if (record.tree.size > job.chunkCount) throw countBelowChunks();
    const outcome = await patience("sessions.propose", signal, () =>
      sessions.replace(job.sessionId, record.version, {
        kind: "propose-count",
        count: job.chunkCount,
        finalize: job.details,
      }),
    );
    if (outcome === "replaced") return;
  }
  throw new LucidError("INTERNAL", "the session changed more often than expected; the job is retried");
}

function countConflict(): LucidError {
  return new LucidError(
    "FINALIZE_COUNT_CONFLICT",
    "the session was finalized with another chunk_count; the first one stays (README, Troubleshooting, if it was too high)",
  );
}

function countBelowChunks(): LucidError {
  return new LucidError(
    "FINALIZE_COUNT_BELOW_CHUNKS",
    "chunk_count leaves out chunks that are committed; finalize with the number of chunks that were sent",
  );
}
