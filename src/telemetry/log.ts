import { type DestinationStream, type Level, pino } from "pino";
import { asLucidError } from "../core/errors.ts";

/*
 * Logs: JSON lines on stdout. A line is an event: a constant message, values in declared fields. What is not declared
 * here doesn't type-check, and is dropped if it arrives anyway, so that no payload, plaintext or driver text
 * gets into a log by an object spread.
 */

/** Every field that a line may have, with its type; units are in the names. */
export interface LogFields {
  /** Any thrown value; logged as `{code, message}` and the class of its cause, never as the driver said it. */
  readonly err: unknown;
  readonly session_id: string;
  readonly chunk_index: number;
  readonly chunk_id: string;
  readonly job_id: string;
  readonly event_id: string;
  readonly event_type: string;
  readonly attempt: number;
  readonly attempts_max: number;
  readonly delay_ms: number;
  readonly duration_ms: number;
  readonly stage: string;
  readonly codec: string;
  readonly key_version: number;
  readonly kek_version: number;
  readonly original_bytes: number;
  readonly stored_bytes: number;
  readonly tree_size: number;
  readonly root_hash: string;
  readonly count: number;
  readonly queue: string;
  /** A dependency or a part: mongodb, redis, thread pool. */
  readonly what: string;
  readonly reason: string;
  readonly signal: string;
  readonly port: number;
  readonly threads: number;
  readonly concurrency: number;
  readonly settings: readonly string[];
  readonly warning: string;
  readonly event_name: string;
}

type FieldName = keyof LogFields;

interface EventDeclaration {
  readonly level: Level;
  /** Constant: values are in the fields. */
  readonly message: string;
  /** All required. */
  readonly fields: readonly FieldName[];
  readonly optional?: readonly FieldName[];
  /**
   * At most one line a second for each value of this field; the next line carries `suppressed`. Where none comes any more,
   * `lines_suppressed` tells of them, seconds later or at the end.
   */
  readonly limitBy?: FieldName;
}

/** Every event, one line each. To add one, add a line. */
export const LOG_EVENTS = {
  // Life cycle.
  service_starting: { level: "info", message: "service starting", fields: ["threads", "concurrency"] },
  config_warning: { level: "warn", message: "configuration warning", fields: ["warning"] },
  config_reloaded: {
    level: "info",
    message: "configuration reloaded",
    fields: ["concurrency"],
    optional: ["settings"],
  },
  config_reload_refused: { level: "error", message: "configuration not reloaded", fields: ["err"] },
  restart_required: { level: "warn", message: "changed settings need a restart", fields: ["settings"] },
  waiting_for: {
    level: "warn",
    message: "waiting for a dependency",
    fields: ["what"],
    optional: ["attempt", "duration_ms", "err"],
    limitBy: "what",
  },
  key_ring_mismatch: {
    level: "error",
    message: "wrong key encryption key, no job is taken",
    fields: ["err"],
    optional: ["kek_version"],
  },
  key_ring_partial: {
    level: "warn",
    message: "key encryption key opens some of the newest sessions, not all",
    fields: ["count"],
    optional: ["kek_version"],
  },
  connected: {
    level: "info",
    message: "connected to a dependency",
    fields: ["what"],
    optional: ["duration_ms"],
  },
  connected_stand_in: {
    level: "warn",
    message: "connected to a substitute, which is not for keeping data",
    fields: ["what"],
  },
  /** Takes jobs; `what` is the check of /ready that fails, `reason` what to do. */
  not_ready: { level: "warn", message: "not ready, a check fails", fields: ["what", "reason", "port"] },
  ready: { level: "info", message: "ready", fields: ["port"], optional: ["duration_ms"] },
  stopping: { level: "info", message: "stopping", fields: ["reason"], optional: ["signal"] },
  stopped: { level: "info", message: "stopped", fields: ["duration_ms"] },
  stop_deadline_passed: {
    level: "warn",
    message: "shutdown deadline passed",
    fields: ["what", "duration_ms"],
  },
  stop_forced: { level: "warn", message: "second signal, exiting at once", fields: ["signal"] },
  fatal: { level: "fatal", message: "can't go on", fields: ["err"] },
  // Chunks.
  chunk_committed: {
    level: "debug",
    message: "chunk committed",
    fields: ["session_id", "chunk_index", "duration_ms"],
    optional: ["job_id", "attempt", "codec", "key_version", "original_bytes", "stored_bytes"],
  },
  chunk_adopted: {
    level: "info",
    message: "chunk was there already, adopted",
    fields: ["session_id", "chunk_index"],
    optional: ["job_id", "attempt", "reason"],
    limitBy: "session_id",
  },
  chunk_withdrawn: {
    level: "warn",
    message: "chunk came after the seal, withdrawn",
    fields: ["session_id", "chunk_index"],
  },
  chunk_failed: {
    level: "error",
    message: "chunk failed for good",
    fields: ["job_id", "err"],
    optional: ["session_id", "chunk_index", "chunk_id", "attempt", "stage"],
  },
  chunk_kept: {
    level: "warn",
    message: "job was about to fail for good, but its chunk is committed",
    fields: ["job_id", "err"],
    optional: ["session_id", "chunk_index", "attempt"],
  },
  job_retry: {
    level: "warn",
    message: "job failed, will be tried again",
    fields: ["queue", "job_id", "attempt", "err"],
    optional: ["session_id", "chunk_index", "attempts_max", "delay_ms", "stage"],
  },
  job_failed: {
    level: "error",
    message: "job failed for good",
    fields: ["queue", "job_id", "err"],
    optional: ["session_id", "attempt"],
  },
  job_released: {
    level: "info",
    message: "job given back without using up an attempt",
    fields: ["queue", "err"],
    optional: ["job_id", "delay_ms"],
    limitBy: "queue",
  },
  /** Whoever takes the job over says so: job_stalled. */
  job_lock_lost: {
    level: "debug",
    message: "lock on a job was lost, another delivery will do it",
    fields: ["queue", "err"],
    limitBy: "queue",
  },
  job_stalled: {
    level: "warn",
    message: "job lost its worker, taken over",
    fields: ["queue", "job_id"],
    limitBy: "queue",
  },
  payload_cleanup_failed: {
    level: "warn",
    message: "payload not deleted, its time to live will",
    fields: ["session_id", "err"],
    optional: ["chunk_index"],
    limitBy: "err",
  },
  // Sessions.
  session_opened: {
    level: "info",
    message: "session opened",
    fields: ["session_id"],
    optional: ["key_version", "kek_version"],
  },
  session_finalizing: {
    level: "info",
    message: "session's chunk count recorded",
    fields: ["session_id", "count"],
  },
  session_sealed: {
    level: "info",
    message: "session sealed",
    fields: ["session_id", "tree_size", "root_hash"],
  },
  manifest_written: { level: "info", message: "manifest written", fields: ["session_id", "duration_ms"] },
  manifest_failed: {
    level: "error",
    message: "manifest not written",
    fields: ["session_id", "err"],
    limitBy: "session_id",
  },
  checkpoint_signed: { level: "debug", message: "checkpoint signed", fields: ["session_id", "tree_size"] },
  session_anchored: { level: "info", message: "session anchored", fields: ["session_id", "duration_ms"] },
  anchor_delayed: {
    level: "warn",
    message: "anchoring delayed",
    fields: ["session_id", "err"],
    limitBy: "err",
  },
  session_gap: {
    level: "warn",
    message: "chunk is missing before later ones, or before the announced end",
    fields: ["session_id", "chunk_index"],
    optional: ["count", "tree_size", "duration_ms"],
    limitBy: "session_id",
  },
  session_stuck: {
    level: "error",
    message: "session can not go on by itself",
    fields: ["session_id", "err"],
    limitBy: "session_id",
  },
  epoch_started: {
    level: "debug",
    message: "new salt and derived key",
    fields: ["session_id", "key_version"],
  },
  tree_grown: { level: "debug", message: "leaves integrated", fields: ["session_id", "tree_size", "count"] },
  tree_conflict: {
    level: "debug",
    message: "tree head moved, reading again",
    fields: ["session_id"],
    optional: ["attempt", "tree_size"],
  },
  tree_corrupt: { level: "error", message: "tree state contradicts itself", fields: ["session_id", "err"] },
  // Events and sweeps.
  event_relayed: {
    level: "debug",
    message: "event relayed",
    fields: ["event_id", "event_type"],
    optional: ["session_id"],
  },
  relay_failed: {
    level: "warn",
    message: "event not relayed, the sweeper will",
    fields: ["err"],
    optional: ["event_id", "session_id"],
    limitBy: "err",
  },
  sweep_events: {
    level: "info",
    message: "pending events added again",
    fields: ["count"],
    optional: ["duration_ms"],
  },
  sweep_blobs: {
    level: "info",
    message: "blobs without a document removed",
    fields: ["count"],
    optional: ["duration_ms"],
  },
  redis_lost_data: {
    level: "warn",
    message: "redis has lost its data, events are announced again",
    fields: ["count"],
  },
  sweep_failed: {
    level: "warn",
    message: "sweep failed, the next one will do",
    fields: ["what", "err"],
    limitBy: "what",
  },
  // Threads.
  thread_replaced: {
    level: "warn",
    message: "CPU thread replaced",
    fields: ["reason"],
    optional: ["err", "job_id", "session_id", "chunk_index", "duration_ms"],
  },
  // Dependencies: these repeat while one is down.
  queue_error: { level: "error", message: "queue client error", fields: ["queue", "err"], limitBy: "queue" },
  store_unavailable: {
    level: "error",
    message: "store not available",
    fields: ["what", "err"],
    optional: ["stage", "duration_ms"],
    limitBy: "what",
  },
  store_recovered: {
    level: "info",
    message: "store available again",
    /** Of the whole outage, as this process saw it. */
    fields: ["what", "duration_ms"],
    optional: ["stage"],
    limitBy: "what",
  },
  mongodb_client_renewed: {
    level: "warn",
    message: "MongoDB's driver stopped looking for the server, connecting anew",
    fields: [],
  },
  sidecar_error: { level: "warn", message: "health endpoint error", fields: ["err"], limitBy: "err" },
  lines_suppressed: {
    level: "warn",
    message: "repeated lines were left out",
    fields: ["event_name", "count"],
  },
} as const satisfies Record<string, EventDeclaration>;

export type LogEventName = keyof typeof LOG_EVENTS;

type RequiredOf<Name extends LogEventName> = (typeof LOG_EVENTS)[Name]["fields"][number];
type OptionalOf<Name extends LogEventName> = (typeof LOG_EVENTS)[Name] extends {
  readonly optional: readonly (infer Optional extends FieldName)[];
}
  ? Optional
  : never;

/** Exactly the fields that an event declares. */
export type FieldsOf<Name extends LogEventName> = Pick<LogFields, RequiredOf<Name>> & {
  readonly [Field in OptionalOf<Name>]?: LogFields[Field] | undefined;
};

export interface Log {
  event<Name extends LogEventName>(name: Name, fields: FieldsOf<Name>): void;
  /** True when the event's level is on: spares the work of making fields for debug lines. */
  enabled(name: LogEventName): boolean;
  /** Takes effect at once (SIGHUP). */
  setLevel(level: Level): void;
  /** Says what was suppressed and not yet told. For shutdown. */
  flush(): void;
}

export interface LogOptions {
  readonly level: Level;
  readonly service: string;
  readonly version: string;
  /** Absent: stdout, written synchronously, so that the last lines before an exit are not lost. */
  readonly destination?: DestinationStream;
  /** Milliseconds on a clock that never steps back; absent: the process's. */
  readonly now?: () => number;
}

/** The second line of defence, should a later declaration let one of these through. */
const REDACTED_NAMES = [
  "password",
  "secret",
  "token",
  "authorization",
  "encryption_key",
  "key",
  "dek",
  "kek",
  "url",
  "plaintext",
  "payload",
  "chunk_data",
  "chunk_data_base64",
  "stack",
] as const;

/** Exact paths: wildcards cost pino 40 µs a line, and only `err` nests. */
export const REDACTION = {
  paths: REDACTED_NAMES.flatMap((name) => [name, `err.${name}`, `err.cause.${name}`]),
  censor: "[redacted]",
};

/** A logger on pino; one per process. */
export function createLog(options: LogOptions): Log {
  const logger = pino(
    {
      level: options.level,
      // In front of pino's own pid and hostname, which an explicit base would replace.
      mixin: () => ({ service: options.service, version: options.version }),
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: (error: unknown) => error },
      redact: REDACTION,
    },
    options.destination ?? pino.destination({ fd: 1, sync: true }),
  );
  const limiter = createLineLimiter(options.now ?? (() => performance.now()));
  let telling: NodeJS.Timeout | undefined;

  const tell = (idleMs: number): void => {
    clearTimeout(telling);
    telling = undefined;
    for (const [name, count] of limiter.drain(idleMs)) {
      // As loud as the lines that it stands for.
      const { level } = LOG_EVENTS[name];
      const { message } = LOG_EVENTS.lines_suppressed;
      logger[level]({ event: "lines_suppressed", event_name: name, count }, message);
    }
    if (limiter.hasUntold) tellLater();
  };
  const tellLater = (): void => {
    telling ??= setTimeout(tell, TELL_AFTER_MS, TELL_AFTER_MS).unref();
  };

  const log: Log = {
    event(name, fields) {
      const declared: EventDeclaration = LOG_EVENTS[name];
      if (!logger.isLevelEnabled(declared.level)) return;
      const values = declaredValues(declared, fields);
      const suppressed =
        declared.limitBy === undefined ? 0 : limiter.admit(name, limitKey(values[declared.limitBy]));
      if (suppressed === undefined) {
        tellLater();
        return;
      }
      logger[declared.level](
        { event: name, ...values, ...(suppressed > 0 ? { suppressed } : {}) },
        declared.message,
      );
    },
    enabled: (name) => logger.isLevelEnabled(LOG_EVENTS[name].level),
    setLevel(level) {
      logger.level = level;
    },
    flush() {
      tell(0);
    },
  };
  return log;
}

const TEXT_CHARACTERS_MAX = 500;
const LIST_ITEMS_MAX = 64;

/** Only declared fields, errors reduced, texts and lists cut. */
function declaredValues(
  declared: EventDeclaration,
  fields: Partial<LogFields>,
): Readonly<Record<string, unknown>> {
  const values: Record<string, unknown> = {};
  for (const name of [...declared.fields, ...(declared.optional ?? [])]) {
    const value = fields[name];
    if (value !== undefined) values[name] = name === "err" ? loggedError(value) : plainValue(value);
  }
  return values;
}

/** No field holds an object: one that arrives in spite of its type could hold anything, so it is not written. */
function plainValue(value: unknown): unknown {
  if (typeof value === "string") return cut(value);
  if (typeof value === "number" || typeof value === "boolean") return value;
  if (Array.isArray(value))
    return value.slice(0, LIST_ITEMS_MAX).map((item) => (typeof item === "string" ? cut(item) : null));
  return undefined;
}

function cut(text: string): string {
  return text.length <= TEXT_CHARACTERS_MAX ? text : `${text.slice(0, TEXT_CHARACTERS_MAX)}…`;
}

export interface LoggedError {
  readonly code: string;
  readonly message: string;
  /** Class and code of what a driver threw; its text may quote a document or a URL and stays out. */
  readonly cause?: { readonly name: string; readonly code?: string };
  /** Where an unforeseen error came from: frames only, without the message above them. */
  readonly frames?: readonly string[];
}

/** The loggable part of any thrown value. */
export function loggedError(thrown: unknown): LoggedError {
  const error = asLucidError(thrown);
  const { cause } = error;
  return {
    code: error.code,
    message: cut(error.message),
    ...(cause === undefined ? {} : { cause: loggedCause(cause) }),
    ...(error.code === "INTERNAL" && cause instanceof Error ? { frames: framesOf(cause) } : {}),
  };
}

/** A driver's class names and codes are identifiers; anything else in their place is not believed. */
const IDENTIFIER = /^[A-Za-z_][A-Za-z0-9_]{0,63}$|^\d{1,9}$/;

function loggedCause(cause: unknown): { readonly name: string; readonly code?: string } {
  if (!(cause instanceof Error)) return { name: typeof cause };
  const name = IDENTIFIER.test(cause.name) ? cause.name : "Error";
  const code =
    "code" in cause && ["string", "number"].includes(typeof cause.code) ? `${cause.code as string}` : "";
  return IDENTIFIER.test(code) ? { name, code } : { name };
}

const FRAMES_MAX = 8;
const FRAME = /^ {4}at [^\n]{1,300}$/;

/** A message may hold line breaks and fake frames: only what follows the whole message counts. */
function framesOf(error: Error): readonly string[] {
  const { stack = "", message } = error;
  const at = stack.indexOf(message);
  if (at < 0) return [];
  const lines = stack.slice(at + message.length).split("\n");
  return lines
    .filter((line) => FRAME.test(line))
    .slice(0, FRAMES_MAX)
    .map((line) => line.trim());
}

function limitKey(value: unknown): string {
  return value !== null && typeof value === "object" && "code" in value ? String(value.code) : String(value);
}

const LINE_INTERVAL_MS = 1000;
/** What was left out waits so long for a line that carries it. */
const TELL_AFTER_MS = 5000;
const LIMITED_KEYS_MAX = 256;

export interface LineLimiter {
  /** The number of lines left out since the last one admitted, or `undefined` when this one is to be left out. */
  admit(name: LogEventName, key: string): number | undefined;
  /** What was left out and not told yet where no line was admitted for `idleMs`, by event; forgets it. */
  drain(idleMs: number): ReadonlyMap<LogEventName, number>;
  readonly hasUntold: boolean;
}

/** At most one line a second for each event and key; keeps at most LIMITED_KEYS_MAX keys apart, the rest share one. */
export function createLineLimiter(now: () => number): LineLimiter {
  const lines = new Map<string, { readonly name: LogEventName; admittedAtMs: number; suppressed: number }>();

  const isRoomFor = (key: string): boolean => {
    if (lines.has(key) || lines.size < LIMITED_KEYS_MAX) return true;
    // Sessions come and go: those whose last line is old and told keep nobody apart any more.
    for (const [slot, { admittedAtMs, suppressed }] of lines)
      if (suppressed === 0 && now() - admittedAtMs >= LINE_INTERVAL_MS) lines.delete(slot);
    return lines.size < LIMITED_KEYS_MAX;
  };

  return {
    admit(name, key) {
      const exact = `${name} ${key}`;
      const slot = isRoomFor(exact) ? exact : `${name} …`;
      const nowMs = now();
      const line = lines.get(slot);
      if (line === undefined) {
        lines.set(slot, { name, admittedAtMs: nowMs, suppressed: 0 });
        return 0;
      }
      if (nowMs - line.admittedAtMs < LINE_INTERVAL_MS) {
        line.suppressed += 1;
        return undefined;
      }
      const { suppressed } = line;
      line.admittedAtMs = nowMs;
      line.suppressed = 0;
      return suppressed;
    },
    drain(idleMs) {
      const totals = new Map<LogEventName, number>();
      for (const [slot, { name, admittedAtMs, suppressed }] of lines) {
        if (now() - admittedAtMs < idleMs) continue;
        lines.delete(slot);
        if (suppressed > 0) totals.set(name, (totals.get(name) ?? 0) + suppressed);
      }
      return totals;
    },
    get hasUntold() {
      return lines.values().some(({ suppressed }) => suppressed > 0);
    },
  };
}
