import {
  MongoCompatibilityError,
  MongoError,
  MongoNetworkError,
  MongoOperationTimeoutError,
  MongoServerError,
  MongoSystemError,
  MongoWriteConcernError,
} from "mongodb";
import { LucidError } from "../../core/errors.ts";

/** E11000: a unique key exists already. */
export const DUPLICATE_KEY = 11_000;
/** Another process created the collection first, or an earlier start did. */
export const NAMESPACE_EXISTS = 48;

const UNAUTHORIZED = 13;
const AUTHENTICATION_FAILED = 18;
const OUT_OF_DISK_SPACE = 14_031;

/**
 * Server codes after which it isn't known whether the operation was applied, or which end by themselves: the "retryable"
 * and "state change" codes of the driver specifications, interrupted and timed-out operations, unmet write concerns,
 * a full disk, and rights that an operator has to give back.
 */
const UNAVAILABLE_CODES: ReadonlySet<number> = new Set([
  6, // HostUnreachable
  7, // HostNotFound
  UNAUTHORIZED,
  AUTHENTICATION_FAILED,
  24, // LockTimeout
  43, // CursorNotFound
  46, // LockBusy
  50, // MaxTimeMSExpired
  63, // StaleShardVersion
  64, // WriteConcernTimeout
  79, // UnknownReplWriteConcern
  89, // NetworkTimeout
  91, // ShutdownInProgress
  94, // NotYetInitialized
  100, // UnsatisfiableWriteConcern
  112, // WriteConflict
  133, // FailedToSatisfyReadPreference
  134, // ReadConcernMajorityNotAvailableYet
  150, // StaleEpoch
  189, // PrimarySteppedDown
  202, // NetworkInterfaceExceededTimeLimit
  211, // KeyNotFound
  237, // CursorKilled
  262, // ExceededTimeLimit
  365, // TemporarilyUnavailable
  9_001, // SocketException
  10_058, // LegacyNotPrimary
  10_107, // NotWritablePrimary
  11_600, // InterruptedAtShutdown
  11_601, // Interrupted
  11_602, // InterruptedDueToReplStateChange
  13_388, // StaleConfig
  13_435, // NotPrimaryNoSecondaryOk
  13_436, // NotPrimaryOrSecondary
  OUT_OF_DISK_SPACE,
]);

const RETRYABLE_LABELS = ["RetryableWriteError", "RetryableError", "SystemOverloadedError"];
/** Driver errors that mean "no connection now" or "no reply that makes sense"; not all of their classes are exported. */
const UNAVAILABLE_NAMES: ReadonlySet<string> = new Set([
  "MongoNotConnectedError",
  "MongoTopologyClosedError",
  "MongoClientClosedError",
  "MongoWaitQueueTimeoutError",
  "MongoExpiredSessionError",
  "MongoServerClosedError",
  "MongoPoolClosedError",
  "MongoStalePrimaryError",
  "MongoUnexpectedServerResponseError",
]);
/** Name resolution of a `mongodb+srv:` address fails with Node's own errors. */
const RESOLVER_CODES: ReadonlySet<string> = new Set([
  "ENOTFOUND",
  "ETIMEOUT",
  "EAI_AGAIN",
  "ESERVFAIL",
  "ECONNREFUSED",
]);

const TEXT_UNAVAILABLE = "MongoDB is not available; it is not known whether the last operation was applied";
const TEXT_NO_ANSWER =
  "MongoDB does not answer: check that it runs (of a replica set, that it has a primary), and MONGODB_URL";
const TEXT_INTERNAL = "MongoDB or its driver refused an operation; the log line with this code has more";
const TEXT_CONFIG =
  "MONGODB_URL can't be used; check its form, its credentials and that the server is MongoDB 4.4 or newer";

/**
 * Any thrown value of the driver as a LucidError: STORE_UNAVAILABLE (outcome unknown, ask again) or INTERNAL (asking again
 * won't help). The driver's own text may quote a document, so it stays in `cause`.
 */
export function storeError(thrown: unknown): LucidError {
  if (thrown instanceof LucidError) return thrown;
  if (isOutage(thrown)) return new LucidError("STORE_UNAVAILABLE", TEXT_UNAVAILABLE, { cause: thrown });
  return new LucidError("INTERNAL", TEXT_INTERNAL, { cause: thrown });
}

/**
 * As `storeError`, for the first connection: nothing was sent whose outcome could be unknown, and what only another setting or
 * another server heals is CONFIG_INVALID.
 */
export function connectError(thrown: unknown): LucidError {
  const hopeless = isAuthenticationFailure(thrown) || thrown instanceof MongoCompatibilityError;
  if (hopeless) return addressError(thrown);
  const error = storeError(thrown);
  if (error.code !== "STORE_UNAVAILABLE") return error;
  return new LucidError("STORE_UNAVAILABLE", TEXT_NO_ANSWER, { cause: error.cause });
}

export function addressError(cause: unknown): LucidError {
  return new LucidError("CONFIG_INVALID", TEXT_CONFIG, { cause });
}

/** The error of one item of a write command, whose codes are those of a whole command. */
export function writeItemError(code: number, cause: unknown): LucidError {
  if (UNAVAILABLE_CODES.has(code)) return new LucidError("STORE_UNAVAILABLE", TEXT_UNAVAILABLE, { cause });
  return new LucidError("INTERNAL", TEXT_INTERNAL, { cause });
}

export function isServerCode(thrown: unknown, code: number): boolean {
  return thrown instanceof MongoServerError && thrown.code === code;
}

function isOutage(thrown: unknown): boolean {
  if (thrown instanceof MongoCompatibilityError) return false;
  // MongoSystemError is the parent of the server selection error.
  if (thrown instanceof MongoNetworkError || thrown instanceof MongoSystemError) return true;
  if (thrown instanceof MongoOperationTimeoutError || thrown instanceof MongoWriteConcernError) return true;
  if (thrown instanceof MongoServerError) return hasUnavailableCode(thrown);
  if (thrown instanceof MongoError) return UNAVAILABLE_NAMES.has(thrown.name);
  return thrown instanceof Error && "code" in thrown && RESOLVER_CODES.has(String(thrown.code));
}

function hasUnavailableCode(error: MongoServerError): boolean {
  if (typeof error.code === "number" && UNAVAILABLE_CODES.has(error.code)) return true;
  return RETRYABLE_LABELS.some((label) => error.hasErrorLabel(label));
}

function isAuthenticationFailure(thrown: unknown): boolean {
  if (isServerCode(thrown, AUTHENTICATION_FAILED)) return true;
  return thrown instanceof MongoSystemError && isServerCode(thrown.cause, AUTHENTICATION_FAILED);
}
