import { ErrorCode as BullmqCode, UnrecoverableError, WaitingError } from "bullmq";
import type { LucidError } from "../../core/errors.ts";

/** The attempt failed and the job is tried again, later. Its message is what Redis keeps as `failedReason`. */
class AttemptFailedError extends Error {
  override readonly name = "AttemptFailedError";
}

/*
 * What a processor may throw: the only place where error codes become BullMQ's own errors. BullMQ stores a message in
 * Redis and shows it in dashboards, so it is the code and our constant text, never a driver's or a job's.
 */

export function failForGood(error: LucidError): Error {
  return new UnrecoverableError(`${error.code}: ${error.message}`);
}

export function failAttempt(error: LucidError): Error {
  return new AttemptFailedError(`${error.code}: ${error.message}`);
}

/** The job has been moved back to the waiting ones already; its attempt doesn't count. */
export function released(): Error {
  return new WaitingError();
}

/** False for what BullMQ itself throws when Redis refuses to record a verdict. */
export function isVerdict(thrown: unknown): boolean {
  return (
    thrown instanceof UnrecoverableError ||
    thrown instanceof AttemptFailedError ||
    thrown instanceof WaitingError
  );
}

/** BullMQ's answers to a worker that asks for something about a job which isn't its own any more, or isn't there. */
const LOST_LOCK_CODES: ReadonlySet<unknown> = new Set([
  BullmqCode.JobNotExist,
  BullmqCode.JobLockNotExist,
  BullmqCode.JobNotInState,
  BullmqCode.JobLockMismatch,
]);
const LOST_LOCK_MESSAGE = /^could not renew lock for job /;

/** True for what a worker meets after its lock ran out: the job is, or will be, another delivery's. */
export function isLostLock(thrown: unknown): boolean {
  if (!(thrown instanceof Error)) return false;
  return LOST_LOCK_MESSAGE.test(thrown.message) || ("code" in thrown && LOST_LOCK_CODES.has(thrown.code));
}
