/**
 * What the caller does about an error:
 * - `retryable`: the same job may succeed later; it counts as an attempt and backs off.
 * - `unrecoverable`: the input is wrong; the same job fails for good at its first try.
 * - `released`: nothing is wrong with the job; it goes back to the queue without using up an attempt.
 * - `fatal`: the process can't serve; it stops, or doesn't start.
 */
export type ErrorDisposition = "retryable" | "unrecoverable" | "released" | "fatal";

/** The closed set of error codes. docs/errors.md documents each; a test holds the two together. */
export const ERROR_DISPOSITIONS = {
  // The job's own form.
  JOB_INVALID: "unrecoverable",
  JOB_NAME_UNKNOWN: "unrecoverable",
  JOB_STALLED_TOO_OFTEN: "unrecoverable",
  PAYLOAD_BASE64_INVALID: "unrecoverable",
  PAYLOAD_EMPTY: "unrecoverable",
  PAYLOAD_TOO_LARGE: "unrecoverable",
  PAYLOAD_SIZE_MISMATCH: "unrecoverable",
  PAYLOAD_DIGEST_MISMATCH: "unrecoverable",
  PAYLOAD_REF_FORBIDDEN: "unrecoverable",
  PAYLOAD_MISSING: "retryable",
  // The chunk against its session.
  CHUNK_CONFLICT: "unrecoverable",
  CHUNK_ID_CONFLICT: "unrecoverable",
  CHUNK_BEYOND_END: "unrecoverable",
  SESSION_SEALED: "unrecoverable",
  SESSION_TOO_LARGE: "unrecoverable",
  SESSION_UNKNOWN: "unrecoverable",
  FINALIZE_COUNT_CONFLICT: "unrecoverable",
  FINALIZE_COUNT_BELOW_CHUNKS: "unrecoverable",
  TREE_CORRUPT: "unrecoverable",
  // The kernel and its threads.
  VERIFY_AFTER_SEAL_FAILED: "retryable",
  THREAD_CRASHED: "retryable",
  THREAD_TIMEOUT: "retryable",
  // Opening what is stored.
  BLOB_MALFORMED: "unrecoverable",
  BLOB_AUTHENTICATION_FAILED: "unrecoverable",
  BLOB_MISSING: "unrecoverable",
  DECODE_FAILED: "unrecoverable",
  DECODE_LENGTH_MISMATCH: "unrecoverable",
  SECRET_UNWRAP_FAILED: "unrecoverable",
  KEK_MISMATCH: "released",
  KEK_UNKNOWN: "retryable",
  PROOF_INVALID: "unrecoverable",
  // Manifests and their files.
  MANIFEST_INVALID: "unrecoverable",
  SIGNATURE_INVALID: "unrecoverable",
  SIGNING_KEY_UNUSABLE: "fatal",
  MANIFEST_DIRECTORY_UNUSABLE: "released",
  // The surroundings.
  STORE_UNAVAILABLE: "released",
  QUEUE_UNAVAILABLE: "released",
  JOB_LOCK_LOST: "released",
  SHUTTING_DOWN: "released",
  ATTEMPT_EXPIRED: "released",
  // Neighbours over HTTP.
  SERVICE_UNAVAILABLE: "retryable",
  SERVICE_ANSWER_INVALID: "retryable",
  SERVICE_REJECTED: "unrecoverable",
  /** Perhaps written by a newer version, whose workers can read it. */
  DOCUMENT_UNREADABLE: "retryable",
  // The process itself.
  CONFIG_INVALID: "fatal",
  OUTPUT_FAILED: "fatal",
  LOCAL_SERVER_UNAVAILABLE: "fatal",
  INTERNAL: "retryable",
} as const satisfies Record<string, ErrorDisposition>;

export type ErrorCode = keyof typeof ERROR_DISPOSITIONS;

export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(ERROR_DISPOSITIONS, text);
}

/**
 * The one error class. `message` says what is wrong and what to do, and never holds a secret, plaintext,
 * a payload or a driver's text; what the driver said stays in `cause`, which is not logged or stored.
 */
export class LucidError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { readonly cause?: unknown }) {
    super(message, options);
    this.name = "LucidError";
    this.code = code;
  }

  get disposition(): ErrorDisposition {
    return ERROR_DISPOSITIONS[this.code];
  }
}

/** The code of any thrown value: its own, or INTERNAL for what nobody foresaw. */
export function errorCodeOf(thrown: unknown): ErrorCode {
  return thrown instanceof LucidError ? thrown.code : "INTERNAL";
}

/** A server that is away is no fault of whoever asks it: these are waited out, or asked again. */
export const OUTAGE_CODES = [
  "STORE_UNAVAILABLE",
  "QUEUE_UNAVAILABLE",
] as const satisfies readonly ErrorCode[];

export function isOutage(thrown: unknown): thrown is LucidError {
  return thrown instanceof LucidError && OUTAGE_CODES.some((code) => code === thrown.code);
}

/** Any thrown value as a LucidError; an unforeseen one keeps its text out of `message`. */
export function asLucidError(thrown: unknown): LucidError {
  if (thrown instanceof LucidError) return thrown;
  const kind = thrown instanceof Error ? thrown.name : typeof thrown;
  return new LucidError("INTERNAL", `unforeseen ${kind}; see the log line with this code`, { cause: thrown });
}
