import { type ErrorCode, LucidError } from "../../core/errors.ts";

/** Redis said no, but will say yes later: it loads, is full, is a replica, lost its quorum, or its operator errs. */
const REPLY_FOR_NOW =
  /\b(?:OOM|LOADING|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|NOAUTH|WRONGPASS|NOPERM|UNBLOCKED|max number of clients reached)\b/;

const CONNECTION_ERROR_NAMES: ReadonlySet<string> = new Set([
  "AbortError",
  "MaxRetriesPerRequestError",
  "ClusterAllFailedError",
  "ConnectionClosedError",
]);
const CONNECTION_MESSAGES =
  /Connection is closed|Stream isn't writeable|timed out|Socket timeout|ETIMEDOUT|ECONNREFUSED|All sentinels are unreachable/i;

/** QUEUE_UNAVAILABLE for what passes when Redis is back; INTERNAL for what doesn't. */
export function redisErrorCode(thrown: unknown): ErrorCode {
  if (thrown instanceof LucidError) return thrown.code;
  if (!(thrown instanceof Error)) return "INTERNAL";
  if (thrown.name === "ReplyError")
    return REPLY_FOR_NOW.test(thrown.message) ? "QUEUE_UNAVAILABLE" : "INTERNAL";
  const isConnection =
    CONNECTION_ERROR_NAMES.has(thrown.name) ||
    CONNECTION_MESSAGES.test(thrown.message) ||
    // A system error of the socket: ECONNRESET, EPIPE, EHOSTUNREACH, ENOTFOUND, EAI_AGAIN …
    ("syscall" in thrown && "code" in thrown);
  return isConnection ? "QUEUE_UNAVAILABLE" : "INTERNAL";
}

/** What Redis itself replied with, as opposed to a connection that fails. */
function refusalOf(thrown: unknown): string | undefined {
  const source = thrown instanceof LucidError ? thrown.cause : thrown;
  return source instanceof Error && source.name === "ReplyError" ? source.message : undefined;
}

/** True when Redis is up and says no. */
export function isRefusal(thrown: unknown): boolean {
  return refusalOf(thrown) !== undefined;
}

/** True when Redis is up and its rules (ACL) don't let us do this, which no patience mends. */
export function isForbidden(thrown: unknown): boolean {
  return /\bNOPERM\b/.test(refusalOf(thrown) ?? "");
}

/** True when Redis is up and has no memory left (maxmemory with noeviction). */
export function isOutOfMemory(thrown: unknown): boolean {
  return /\bOOM command not allowed\b/.test(refusalOf(thrown) ?? "");
}

/** What the driver threw, with its text in `cause` only. */
export function asRedisError(thrown: unknown): LucidError {
  if (thrown instanceof LucidError) return thrown;
  const code = redisErrorCode(thrown);
  const message =
    code === "QUEUE_UNAVAILABLE" ? "Redis doesn't answer, or refuses for now" : "Redis refused a command";
  return new LucidError(code, message, { cause: thrown });
}

export function throwRedisError(thrown: unknown): never {
  throw asRedisError(thrown);
}
