import { toHex, utf8 } from "../core/bytes.ts";
import { sha256 } from "../core/digest.ts";
import type { ErrorCode } from "../core/errors.ts";
import { isId } from "../core/ids.ts";

/*
 * Contract §3: event ids are deterministic, so that the same fact told twice has the same id and the queue drops the
 * second. They are BullMQ job ids too: no `:`, never an integer. Ids in them match ID_PATTERN, whose alphabet has no `.`,
 * so no two facts share an id.
 */

/** Hex digits of a job id's digest: 128 bits, enough that nobody can make two job ids meet. */
const JOB_DIGEST_HEX_CHARS = 32;
/** BullMQ's own numbers, UUIDs and `{session}.{index}` pass; anything else might be a payload or a line of a log. */
const REPEATABLE_JOB_ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,149}$/;

export function chunkCompletedEventId(session: string, index: number): string {
  return `chunk.completed.${session}.${index}`;
}

/** What is known of a job that failed; the ids only if they have their form (parse-job.ts, failureIdentity). */
export interface FailedJobIdentity {
  readonly jobId: string;
  readonly sessionId?: string;
  readonly chunkIndex?: number;
  readonly code: ErrorCode;
}

/** By session and index if the job names both, else by the digest of the queue's job id, which may hold anything. */
export function chunkFailedEventId({ jobId, sessionId, chunkIndex, code }: FailedJobIdentity): string {
  return sessionId !== undefined && isId(sessionId) && chunkIndex !== undefined
    ? `chunk.failed.${sessionId}.${chunkIndex}.${code}`
    : `chunk.failed.job.${jobDigest(jobId)}.${code}`;
}

export function sessionSealedEventId(session: string): string {
  return `session.sealed.${session}`;
}

export function sessionAnchoredEventId(session: string): string {
  return `session.anchored.${session}`;
}

export function sessionGapEventId(session: string, firstMissing: number): string {
  return `session.gap.${session}.${firstMissing}`;
}

/** The job id if it can be repeated in events and logs, else its digest: producers choose job ids freely. */
export function repeatableJobId(jobId: string): string {
  return REPEATABLE_JOB_ID.test(jobId) ? jobId : `sha256-${jobDigest(jobId)}`;
}

function jobDigest(jobId: string): string {
  return toHex(sha256(utf8(jobId))).slice(0, JOB_DIGEST_HEX_CHARS);
}
