import { readFileSync, statSync } from "node:fs";
import { availableParallelism, hostname } from "node:os";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { inspect } from "node:util";
import dotenvFlow from "dotenv-flow";
import { isMap, isScalar, isSeq, LineCounter, parseDocument } from "yaml";
import { z } from "zod";
import { keyWeakness } from "./core/encrypt/kek.ts";
import { LucidError } from "./core/errors.ts";

/*
 * The configuration (contract §11): environment > dotenv files (development only) > YAML file > defaults. Read, checked and
 * arranged once; nothing else in the program reads the environment. First what there is to set, in SETTINGS, from which
 * the schema, the YAML keys, the `config` command and the README's table are made; then how it is read.
 */

/** Wraps what must not be printed. Every accidental way to text gives `shown`; only `reveal()` gives the value. */
export class Secret {
  readonly #value: string;
  readonly #shown: string;

  constructor(value: string, shown = "[secret]") {
    this.#value = value;
    this.#shown = shown;
  }

  reveal(): string {
    return this.#value;
  }

  toString(): string {
    return this.#shown;
  }

  toJSON(): string {
    return this.#shown;
  }

  [inspect.custom](): string {
    return this.#shown;
  }
}

/** A text-to-value rule with the words that say what it allows. */
interface Kind<Value> {
  readonly schema: z.ZodType<Value, string>;
  readonly allowed: string;
  /** `X=""`, as compose files write it for "not set", counts as not set. False where "" is a likely slip. */
  readonly emptyIsUnset: boolean;
}

function kind<Value>(
  allowed: string,
  parse: (text: string) => Value | undefined,
  emptyIsUnset = false,
): Kind<Value> {
  const schema = z.string().transform((text, context): Value => {
    const value = parse(text);
    if (value !== undefined) return value;
    context.addIssue({ code: "custom", message: `must be ${allowed}` });
    return z.NEVER;
  });
  return { schema, allowed, emptyIsUnset };
}

const DECIMAL_INTEGER = /^(?:0|[1-9]\d{0,15})$/;
const DECIMAL_SECONDS = /^(?:0|[1-9]\d{0,9})(?:\.\d{1,3})?$/;

/** Digits only: "10abc", "", "1e3", "+1", "0x10" and " 10" are refused. */
function integer(min: number, max: number): Kind<number> {
  return kind(`a whole number from ${min} to ${max}`, (text) => {
    const value = DECIMAL_INTEGER.test(text) ? Number(text) : Number.NaN;
    return value >= min && value <= max ? value : undefined;
  });
}

/** Seconds in the text, milliseconds in the value. */
function seconds(min: number, max: number): Kind<number> {
  return kind(`seconds from ${min} to ${max}, at most three decimals`, (text) => {
    const value = DECIMAL_SECONDS.test(text) ? Number(text) : Number.NaN;
    return value >= min && value <= max ? Math.round(value * 1000) : undefined;
  });
}

const BOOLEAN_WORDS = new Map([
  ...["true", "yes", "on", "1"].map((word) => [word, true] as const),
  ...["false", "no", "off", "0"].map((word) => [word, false] as const),
]);

const boolean: Kind<boolean> = kind("true or false (also yes/no, on/off, 1/0)", (text) =>
  BOOLEAN_WORDS.get(text.toLowerCase()),
);

/** Compared without case; `aliases` are the older service's words. */
function choice<const Choice extends string>(
  choices: readonly Choice[],
  aliases: Readonly<Record<string, Choice>> = {},
): Kind<Choice> {
  return kind(`one of ${choices.join(", ")}`, (text) => {
    const word = text.toLowerCase();
    return choices.find((one) => one.toLowerCase() === word) ?? aliases[word];
  });
}

const PRINTABLE = /^[^\p{Cc}]+$/u;

const secretText: Kind<Secret> = kind(
  "1 to 4096 characters without control characters",
  (text) => (text.length <= 4096 && PRINTABLE.test(text) ? new Secret(text) : undefined),
  true,
);

/** A key-encryption key; how weak is too weak is decided beside the cipher. */
const keyText: Kind<Secret> = {
  allowed: "at least 32 random characters (`openssl rand -base64 32` makes one)",
  emptyIsUnset: true,
  schema: z.string().transform((text, context): Secret => {
    const weakness = keyWeakness(text);
    if (weakness === undefined) return new Secret(text);
    context.addIssue({
      code: "custom",
      message: `is refused: ${weakness}; make one with \`openssl rand -base64 32\``,
    });
    return z.NEVER;
  }),
};

const path: Kind<string> = kind(
  "a path",
  (text) => (text.length <= 4096 && PRINTABLE.test(text) ? text : undefined),
  true,
);

function text(allowed: string, pattern: RegExp): Kind<string> {
  return kind(allowed, (given) => (pattern.test(given) ? given : undefined), true);
}

const TELLING_PARAMETER = /([?&][^=&]*(?:pass|token|secret|properties|key)[^=&]*=)[^&#]*/gi;

/** `scheme://***@host/path?…`: the user part always, and parameters whose names speak of secrets. */
export function maskUrl(given: string): string {
  // Up to the last @: a password with an unescaped slash or @ must not leave its tail behind.
  return given.replace(/^([A-Za-z][A-Za-z0-9+.-]*:\/\/)\S*@/, "$1***@").replace(TELLING_PARAMETER, "$1***");
}

const MONGODB_URL = /^mongodb(\+srv)?:\/\/(?:[^@/?#\s]*@)?([^@/?#\s]+)(?:\/([^/?#\s]*))?(?:\?[^#\s]*)?$/;
const HOST = /^(?:[A-Za-z0-9._%-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?$/;
const DATABASE_NAME = /^[A-Za-z0-9_-]{1,63}$/;
const MONGODB_DATABASE_DEFAULT = "lucid";

export interface MongodbTarget {
  readonly url: Secret;
  readonly database: string;
}

/** By hand: WHATWG URL refuses the list of hosts that a replica set's connection string has. */
function parseMongodbUrl(given: string): MongodbTarget | undefined {
  const [, srv, hostList = "", database] = MONGODB_URL.exec(given) ?? [];
  const hosts = hostList.split(",").map((host) => HOST.exec(host));
  if (!hosts.every((host) => host !== null && Number(host[1] ?? 1) >= 1 && Number(host[1] ?? 1) <= 65_535)) {
    return undefined;
  }
  // An SRV name is one name; its port comes from DNS.
  if (srv !== undefined && (hosts.length !== 1 || hosts[0]?.[1] !== undefined)) return undefined;
  if (database && !DATABASE_NAME.test(database)) return undefined;
  return { url: new Secret(given, maskUrl(given)), database: database || MONGODB_DATABASE_DEFAULT };
}

function parseUrl(given: string, schemes: readonly string[]): URL | undefined {
  const url = URL.canParse(given) && !/\s/.test(given) ? new URL(given) : undefined;
  return url !== undefined && schemes.includes(url.protocol) && url.hostname !== "" ? url : undefined;
}

function parseRedisUrl(given: string): Secret | undefined {
  const url = parseUrl(given, ["redis:", "rediss:"]);
  return url !== undefined && /^\/?\d{0,5}$/.test(url.pathname) && url.hash === ""
    ? new Secret(given, maskUrl(given))
    : undefined;
}

const mongodbUrl: Kind<MongodbTarget> = kind(
  "mongodb://host[:port][,…]/database or mongodb+srv://host/database",
  parseMongodbUrl,
  true,
);
const redisUrl: Kind<Secret> = kind("redis://host:port[/number] or rediss://…", parseRedisUrl, true);

/** The base URL of a neighbour, without a slash at its end. */
const serviceUrl: Kind<string> = kind(
  "an http:// or https:// URL without user, password, query and fragment",
  (given) => {
    const url = parseUrl(given, ["http:", "https:"]);
    const plain =
      url !== undefined && url.username === "" && url.password === "" && url.search === "" && url.hash === "";
    return plain ? given.replace(/\/+$/, "") : undefined;
  },
  true,
);

const QUEUE_NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;
const OWN_QUEUES: readonly string[] = ["session-chunks", "session-control"];
const EVENT_QUEUES_MAX = 16;

const queueNames: Kind<readonly string[]> = kind(
  `1 to ${EVENT_QUEUES_MAX} different queue names with commas between them, none of them ${OWN_QUEUES.join(" or ")}`,
  (given) => {
    const names = given.split(",").map((name) => name.trim());
    const valid = names.every((name) => QUEUE_NAME.test(name) && !OWN_QUEUES.includes(name));
    return valid && names.length <= EVENT_QUEUES_MAX && new Set(names).size === names.length
      ? names
      : undefined;
  },
);

type Unit = "seconds" | "bytes" | "jobs" | "threads" | "attempts";

interface Facts {
  /** Accepted YAML keys beside the lowercase environment name: what the older service called it. */
  readonly yaml?: readonly string[];
  readonly unit?: Unit;
  /** Never printed. Also accepts `<NAME>_FILE`, a path to a file that holds the value. */
  readonly secret?: true;
  /** May change while the service runs (SIGHUP). */
  readonly reloadable?: true;
  /** Not in YAML: it decides what is read at all. */
  readonly environmentOnly?: true;
  readonly about: string;
}

export interface Setting<Schema extends z.ZodType = z.ZodType> extends Facts {
  readonly schema: Schema;
  readonly allowed: string;
  readonly emptyIsUnset: boolean;
  /** In text form: defaults go through the same rule as what an operator writes. */
  readonly default: string | undefined;
  /** What the README says where the default depends on the machine. */
  readonly defaultShown: string;
}

function setting<Value>(
  { schema, allowed, emptyIsUnset }: Kind<Value>,
  facts: Facts & { readonly default: string; readonly defaultShown?: string },
): Setting<z.ZodType<Value, string>> {
  return { defaultShown: facts.default, ...facts, schema, allowed, emptyIsUnset };
}

function optional<Value>(
  { schema, allowed, emptyIsUnset }: Kind<Value>,
  facts: Facts,
): Setting<z.ZodOptional<z.ZodType<Value, string>>> {
  return { ...facts, schema: schema.optional(), allowed, emptyIsUnset, default: undefined, defaultShown: "" };
}

const DAY_SECONDS = 86_400;
const MIB = 1_048_576;
/** A sealed chunk is one MongoDB document (16 MiB at most) beside its 60 bytes of seal and its fields. */
const CHUNK_BYTES_LIMIT = 15 * MIB;

/** Every setting, in the order in which the README and the `config` command show them. */
export const SETTINGS = {
  NODE_ENV: setting(text("a word", /^[A-Za-z0-9_-]{1,32}$/), {
    default: "production",
    environmentOnly: true,
    about:
      "`development` reads `.env*` files and lets MONGODB_URL and REDIS_URL default to this machine; anything else counts as production.",
  }),
  CONFIG_FILE: optional(path, {
    environmentOnly: true,
    about: "The YAML file; without it `config.yaml` beside the program, if there is one.",
  }),
  MONGODB_URL: setting(mongodbUrl, {
    default: "mongodb://127.0.0.1:27017/lucid",
    defaultShown: "required in production",
    secret: true,
    about: "Where the truth is kept; the database is the one in the path, else `lucid`.",
  }),
  REDIS_URL: setting(redisUrl, {
    default: "redis://127.0.0.1:6379",
    defaultShown: "required in production",
    secret: true,
    about: "Where the queues are.",
  }),
  ENCRYPTION_KEY: optional(keyText, {
    secret: true,
    about: "The key-encryption key, version 1. This or its _FILE form is required to run.",
  }),
  ENCRYPTION_KEYRING_FILE: optional(path, {
    about:
      "For a later version: a file with several versions of the key-encryption key. `run` refuses it in this one.",
  }),
  KEY_ROTATION_INTERVAL: setting(seconds(1, 30 * DAY_SECONDS), {
    default: "3600",
    unit: "seconds",
    about: "Longest life of a salt and the key derived with it.",
  }),

  SESSION_PROCESSOR_PORT: setting(integer(0, 65_535), {
    default: "8091",
    yaml: ["port"],
    about: "Port of health, readiness and metrics; 0 takes a free one.",
  }),
  SESSION_PROCESSOR_HOST: setting(text("a host name", /^[A-Za-z0-9._:-]{1,253}$/), {
    default: hostname(),
    defaultShown: "the machine's name",
    about: "How this process names itself; not what it binds to.",
  }),
  HTTP_BIND: setting(text("an address or host name", /^[A-Za-z0-9.:_-]{1,253}$/), {
    default: "0.0.0.0",
    yaml: ["host"],
    about: "Address that health, readiness and metrics listen on.",
  }),
  LOG_LEVEL: setting(
    choice(["fatal", "error", "warn", "info", "debug", "trace"], { warning: "warn", critical: "fatal" }),
    { default: "info", reloadable: true, about: "Least severe level that is logged." },
  ),
  SHUTDOWN_DEADLINE: setting(seconds(1, 3600), {
    default: "25",
    unit: "seconds",
    about: "After SIGTERM, longest time to finish what runs; keep it below the orchestrator's grace period.",
  }),

  MAX_WORKERS: setting(integer(1, 50), {
    default: "10",
    unit: "jobs",
    reloadable: true,
    about: "Jobs worked on at the same time.",
  }),
  CPU_THREADS: setting(integer(1, 256), {
    default: String(availableParallelism()),
    defaultShown: "available cores",
    unit: "threads",
    about: "Threads that compress, seal, verify and hash.",
  }),
  WORKER_TIMEOUT: setting(seconds(0.1, 3600), {
    default: "30",
    unit: "seconds",
    about: "Longest time a CPU thread may take for one chunk before it is replaced.",
  }),
  QUEUE_SIZE: setting(integer(1, 1_000_000), {
    default: "1000",
    unit: "jobs",
    about: "Waiting jobs at which producers pause.",
  }),
  QUEUE_PREFIX: setting(text("1 to 64 letters, digits and _ - : { }", /^[A-Za-z0-9_:{}-]{1,64}$/), {
    default: "{lucid}",
    about: "First part of every queue key; the braces keep a queue in one slot of a Redis Cluster.",
  }),
  EVENT_QUEUES: setting(queueNames, {
    default: "storage-events",
    about: "Queues that get every event, one per subscriber.",
  }),
  RETRY_ATTEMPTS: setting(integer(1, 100), {
    default: "3",
    unit: "attempts",
    about: "Attempts of a job before it is a dead letter.",
  }),
  RETRY_DELAY: setting(seconds(0.001, 3600), {
    default: "1",
    unit: "seconds",
    about: "First pause before a retry; doubles with each one, with jitter.",
  }),
  LOCK_DURATION: setting(seconds(1, 3600), {
    default: "15",
    unit: "seconds",
    about: "How long a job stays with a worker that has gone silent.",
  }),
  STALLED_INTERVAL: setting(seconds(0.5, 3600), {
    default: "5",
    unit: "seconds",
    about: "How often jobs of silent workers are looked for.",
  }),
  MAX_STALLED_COUNT: setting(integer(1, 1000), {
    default: "16",
    unit: "attempts",
    about: "How often a job may lose its worker before it is a dead letter.",
  }),
  JOB_RETENTION_SECONDS: setting(integer(1, 365 * DAY_SECONDS), {
    default: "3600",
    unit: "seconds",
    about: "How long a completed job is kept.",
  }),
  JOB_RETENTION_COUNT: setting(integer(0, 1_000_000), {
    default: "1000",
    unit: "jobs",
    about: "How many completed jobs a queue keeps.",
  }),
  JOB_RETENTION_FAILED_SECONDS: setting(integer(1, 365 * DAY_SECONDS), {
    default: "604800",
    unit: "seconds",
    about: "How long a dead letter is kept.",
  }),
  JOB_RETENTION_FAILED_COUNT: setting(integer(1, 1_000_000), {
    default: "1000",
    unit: "jobs",
    about: "How many dead letters a queue keeps.",
  }),
  EVENT_RETENTION_SECONDS: setting(integer(1, 365 * DAY_SECONDS), {
    default: "86400",
    unit: "seconds",
    about: "How long a consumed or failed event is kept; while it is, adding it again does nothing.",
  }),
  EVENT_RETENTION_COUNT: setting(integer(0, 1_000_000), {
    default: "10000",
    unit: "jobs",
    about: "How many consumed or failed events a queue keeps.",
  }),
  PAYLOAD_TTL_SECONDS: setting(integer(60, 365 * DAY_SECONDS), {
    default: "86400",
    unit: "seconds",
    about: "Life of a claim-check payload that `enqueue` puts into Redis.",
  }),

  LUCID_MAX_CHUNK_SIZE: setting(integer(1024, CHUNK_BYTES_LIMIT), {
    default: String(MIB),
    yaml: ["max_chunk_size"],
    unit: "bytes",
    about: "Largest chunk.",
  }),
  MAX_SESSION_SIZE: setting(integer(1024, Number.MAX_SAFE_INTEGER), {
    default: String(100 * 1024 * MIB),
    unit: "bytes",
    about: "Largest session, in bytes before compression.",
  }),
  COMPRESSION_ENABLED: setting(boolean, { default: "true", about: "Whether chunks are compressed at all." }),
  COMPRESSION_ALGORITHM: setting(choice(["zstd", "lz4", "brotli", "none"]), {
    default: "zstd",
    about: "Codec of chunks whose job names none.",
  }),
  LUCID_DEFAULT_COMPRESSION_LEVEL: optional(integer(0, 22), {
    yaml: ["default_compression_level", "compression_level"],
    about: "Level of that codec: zstd 1–22 (default 3), brotli 0–11 (default 4); lz4 frames have one.",
  }),
  LUCID_COMPRESSION_THRESHOLD: setting(integer(0, CHUNK_BYTES_LIMIT), {
    default: "1024",
    yaml: ["compression_threshold"],
    unit: "bytes",
    about: "Chunks below this are stored uncompressed.",
  }),

  LUCID_COMPRESSION_PATH: setting(path, {
    default: "data/scratch",
    yaml: ["compression_path"],
    about: "Scratch directory for file payloads.",
  }),
  LUCID_PAYLOAD_PATH: setting(path, {
    default: "data/payloads",
    yaml: ["payload_path", "storage_path"],
    about: "Directory of claim-check payloads that are files.",
  }),
  LUCID_MANIFEST_PATH: setting(path, {
    default: "data/manifests",
    yaml: ["manifest_path"],
    about: "Directory that manifests are written to.",
  }),
  LUCID_MANIFEST_HASH_ALGORITHM: setting(choice(["BLAKE3", "SHA256"], { "sha-256": "SHA256" }), {
    default: "BLAKE3",
    yaml: ["manifest_hash_algorithm"],
    about: "Hash of a new session's Merkle tree; a session keeps the one it began with.",
  }),
  LUCID_MANIFEST_SIGNATURE_ALGORITHM: setting(choice(["Ed25519"]), {
    default: "Ed25519",
    yaml: ["manifest_signature_algorithm"],
    about: "Signature of manifests and checkpoints.",
  }),
  MANIFEST_SIGNING_KEY_FILE: optional(path, {
    about: "Ed25519 private key that signs manifests: PKCS8 PEM, mode 0600.",
  }),
  CHECKPOINT_INTERVAL: setting(seconds(0, DAY_SECONDS), {
    default: "0",
    unit: "seconds",
    about: "Time between signed checkpoints of an open session; 0 signs only when it is sealed.",
  }),

  EVENT_PENDING_SECONDS: setting(seconds(0.1, DAY_SECONDS), {
    default: "30",
    unit: "seconds",
    about: "Age at which the sweeper adds an event again that was not marked as sent.",
  }),
  SWEEP_INTERVAL: setting(seconds(0.1, DAY_SECONDS), {
    default: "15",
    unit: "seconds",
    about: "Pause between two sweeps.",
  }),
  ORPHAN_BLOB_SECONDS: setting(seconds(1, 30 * DAY_SECONDS), {
    default: "3600",
    unit: "seconds",
    about: "Age at which a blob that no chunk document names is removed.",
  }),
  GAP_ALERT_SECONDS: setting(seconds(0.1, DAY_SECONDS), {
    default: "60",
    unit: "seconds",
    about:
      "How long a chunk may be missing before later ones, or before the announced end, until `session.gap` is sent.",
  }),

  SESSION_STORAGE_URL: optional(serviceUrl, { about: "Storage service." }),
  SESSION_PIPELINE_URL: optional(serviceUrl, { about: "Session pipeline." }),
  BLOCKCHAIN_ENGINE_URL: optional(serviceUrl, { about: "Blockchain engine that roots are anchored with." }),
  SESSION_RECORDER_URL: optional(serviceUrl, { about: "Session recorder; shown in /ready only." }),
  SESSION_API_URL: optional(serviceUrl, { about: "Session API; shown in /ready only." }),
  NODE_MANAGEMENT_URL: optional(serviceUrl, { about: "Node management; shown in /ready only." }),
  API_GATEWAY_URL: optional(serviceUrl, { about: "API gateway; shown in /ready only." }),
  AUTH_SERVICE_URL: optional(serviceUrl, { about: "Auth service; shown in /ready only." }),
  STORAGE_DELIVERY: setting(choice(["events", "http"]), {
    default: "events",
    about: "`http` forwards blobs to SESSION_STORAGE_URL besides sending events.",
  }),
  SERVICE_TIMEOUT_SECONDS: setting(seconds(0.1, 600), {
    default: "30",
    unit: "seconds",
    about: "Longest time of one call to a neighbour.",
  }),
  SERVICE_CONNECT_TIMEOUT_SECONDS: setting(seconds(0.1, 600), {
    default: "5",
    unit: "seconds",
    about: "Longest time to connect to a neighbour.",
  }),
  SERVICE_RETRY_COUNT: setting(integer(1, 20), {
    default: "3",
    unit: "attempts",
    about: "Attempts of one call to a neighbour.",
  }),
  SERVICE_RETRY_DELAY_SECONDS: setting(seconds(0, 600), {
    default: "1.0",
    unit: "seconds",
    about: "First pause between them; doubles with each one, with jitter.",
  }),
  JWT_SECRET_KEY: optional(secretText, {
    secret: true,
    about: "Bearer token for neighbours; none is sent without it.",
  }),
} as const satisfies Record<string, Setting>;

export type SettingName = keyof typeof SETTINGS;

export const SETTING_NAMES = Object.keys(SETTINGS) as readonly SettingName[];

/** The declared form of a setting, without the exact types of the table. */
export function settingOf(name: SettingName): Setting {
  return SETTINGS[name];
}

/** Keys of the older service's YAML file that mean nothing here; they are named in a warning, not refused. */
const OBSOLETE_YAML_KEYS: ReadonlySet<string> = new Set(
  `service_name service_version debug encryption_algorithm batch_size cleanup_interval metrics_enabled metrics_interval
  profiling_enabled memory_limit_mb cpu_limit_percent io_timeout allowed_origins rate_limit_enabled rate_limit_requests
  rate_limit_window audit_logging secure_headers health_check_interval log_format prometheus_enabled prometheus_port
  jaeger_enabled jaeger_endpoint`.split(/\s+/),
);

type Shape = { readonly [Name in SettingName]: (typeof SETTINGS)[Name]["schema"] };

const FIELDS = z.object(
  Object.fromEntries(SETTING_NAMES.map((name) => [name, SETTINGS[name].schema])) as unknown as Shape,
);

type Values = z.infer<typeof FIELDS>;

/** What must hold between settings; named by the one to change. */
interface Rule {
  readonly name: SettingName;
  readonly reads: readonly SettingName[];
  readonly message: string;
  readonly holds: (values: Values) => boolean;
}

const RULES: readonly Rule[] = [
  {
    name: "STALLED_INTERVAL",
    reads: ["LOCK_DURATION"],
    message: "must not be longer than LOCK_DURATION",
    holds: (values) => values.STALLED_INTERVAL <= values.LOCK_DURATION,
  },
  {
    name: "ORPHAN_BLOB_SECONDS",
    reads: ["WORKER_TIMEOUT"],
    // A blob younger than one attempt may belong to a worker that is about to name it in a chunk document.
    message: "must be longer than WORKER_TIMEOUT",
    holds: (values) => values.ORPHAN_BLOB_SECONDS > values.WORKER_TIMEOUT,
  },
  {
    name: "MAX_SESSION_SIZE",
    reads: ["LUCID_MAX_CHUNK_SIZE"],
    message: "must not be smaller than LUCID_MAX_CHUNK_SIZE",
    holds: (values) => values.MAX_SESSION_SIZE >= values.LUCID_MAX_CHUNK_SIZE,
  },
  {
    name: "LUCID_DEFAULT_COMPRESSION_LEVEL",
    reads: ["COMPRESSION_ALGORITHM"],
    message: "must be 0 to 11 with brotli, 1 to 22 with zstd",
    holds: ({ COMPRESSION_ALGORITHM: algorithm, LUCID_DEFAULT_COMPRESSION_LEVEL: level }) =>
      level === undefined || !((algorithm === "brotli" && level > 11) || (algorithm === "zstd" && level < 1)),
  },
  {
    name: "STORAGE_DELIVERY",
    reads: ["SESSION_STORAGE_URL"],
    message: "is http, so SESSION_STORAGE_URL must be set",
    holds: (values) => values.STORAGE_DELIVERY !== "http" || values.SESSION_STORAGE_URL !== undefined,
  },
  {
    name: "ENCRYPTION_KEYRING_FILE",
    reads: ["ENCRYPTION_KEY"],
    // Guessing which one was meant could seal a session under a key that its operator has thrown away.
    message: "and ENCRYPTION_KEY (or its _FILE) are both set; keep one",
    holds: (values) => values.ENCRYPTION_KEYRING_FILE === undefined || values.ENCRYPTION_KEY === undefined,
  },
];

/** The one schema: environment names to texts in, checked values out. */
const SCHEMA = RULES.reduce(
  (schema, { name, reads, message, holds }) =>
    schema.refine(holds, {
      path: [name],
      message,
      // Judged also when other settings are wrong, so that one start shows every problem.
      when: ({ issues }) => !issues.some(({ path }) => [name, ...reads].includes(path?.[0] as SettingName)),
    }),
  FIELDS,
);

export type Source = "environment" | "dotenv" | "yaml" | "default" | `file ${string}`;
export type Need = "mongodb" | "redis" | "kek";
export type Mode = "development" | "production";

export interface LoadOptions {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Relative paths, and the dotenv files, are looked up here. */
  readonly cwd: string;
  /** Absent: "development" when NODE_ENV says exactly that, otherwise "production". */
  readonly mode?: Mode;
  /** What the command can't do without; absent: everything. */
  readonly needs?: readonly Need[];
  /** Overrides CONFIG_FILE (a `--config` option). */
  readonly configFile?: string;
  /** Where the default `config.yaml` is looked for; absent: the package's directory. */
  readonly programDir?: string;
}

/** One line of `session-processor config`. */
export interface EffectiveSetting {
  readonly name: SettingName;
  /** Fit to be printed: masked when secret; `undefined` when not set. */
  readonly value: string | undefined;
  readonly source: Source;
  readonly secret: boolean;
  readonly reloadable: boolean;
}

export interface LoadedConfig {
  readonly config: Config;
  readonly sources: Readonly<Record<SettingName, Source>>;
  readonly settings: readonly EffectiveSetting[];
  /** Nothing that prevents a start, but what an operator should know; safe to log. */
  readonly warnings: readonly string[];
}

const NEEDS_ALL: readonly Need[] = ["mongodb", "redis", "kek"];
const PROGRAM_DIR = fileURLToPath(new URL("..", import.meta.url));

/**
 * Reads, checks and arranges the whole configuration; touches no global state.
 * @throws LucidError CONFIG_INVALID, with every problem in its message and no secret in it.
 */
export function loadConfig(options: LoadOptions): LoadedConfig {
  const notes: Notes = { problems: [], warnings: [] };
  const mode = options.mode ?? (options.env["NODE_ENV"] === "development" ? "development" : "production");
  const found = findTexts(readLayers(options, mode, notes), options.cwd, notes);

  const parsed = SCHEMA.safeParse(Object.fromEntries([...found].map(([name, { text }]) => [name, text])));
  for (const issue of parsed.error?.issues ?? []) {
    const name = issue.path[0] as SettingName;
    if (found.get(name)?.unreadable) continue;
    notes.problems.push(`${describeFound(name, found.get(name))} ${issue.message}`);
  }
  checkNeeds(options.needs ?? NEEDS_ALL, mode, found, notes);
  checkKeyFiles(found, options.cwd, notes);
  if (!parsed.success || notes.problems.length > 0) throw invalid(notes.problems);

  warnOfNearMisses(options.env, notes);
  const loaded: LoadedConfig = {
    config: deepFreeze(arrange(parsed.data, mode, options.cwd)),
    sources: Object.fromEntries(
      SETTING_NAMES.map((name) => [name, found.get(name)?.source ?? "default"]),
    ) as Record<SettingName, Source>,
    settings: SETTING_NAMES.map((name) => effective(name, parsed.data[name], found.get(name))),
    warnings: notes.warnings,
  };
  TEXTS.set(loaded, found);
  return loaded;
}

/** What each configuration was made from, secrets too: kept apart so that printing a LoadedConfig can't show it. */
const TEXTS = new WeakMap<LoadedConfig, ReadonlyMap<SettingName, Found>>();

/** `loadConfig` for this process: the one place that reads its environment. */
export function loadProcessConfig(options: Omit<LoadOptions, "env" | "cwd"> = {}): LoadedConfig {
  return loadConfig({ ...options, env: process.env, cwd: process.cwd() });
}

interface Notes {
  readonly problems: string[];
  readonly warnings: string[];
}

interface Found {
  readonly text: string;
  readonly source: Source;
  /** Its file could not be read and that is noted already: what the schema says of it would be a second complaint. */
  readonly unreadable?: true;
}

/** What one source says: environment names (also `…_FILE`) to texts. */
interface Layer {
  readonly source: "environment" | "dotenv" | "yaml";
  readonly texts: ReadonlyMap<string, string>;
}

function invalid(problems: readonly string[]): LucidError {
  const count = problems.length === 1 ? "1 problem" : `${problems.length} problems`;
  return new LucidError(
    "CONFIG_INVALID",
    `the configuration has ${count}:\n${problems.map((problem) => `  - ${problem}`).join("\n")}`,
  );
}

function readLayers(options: LoadOptions, mode: Mode, notes: Notes): readonly Layer[] {
  const environment: Layer = {
    source: "environment",
    texts: new Map(
      Object.entries(options.env).flatMap(([name, text]) => (text === undefined ? [] : [[name, text]])),
    ),
  };
  // In development only: a forgotten .env file must not steer a production service.
  const dotenv: Layer = {
    source: "dotenv",
    texts: mode === "development" ? readDotenv(options.cwd, notes) : new Map(),
  };
  const named = options.configFile ?? environment.texts.get("CONFIG_FILE") ?? dotenv.texts.get("CONFIG_FILE");
  const yaml: Layer = { source: "yaml", texts: readYaml(named, options, notes) };
  return [environment, dotenv, yaml];
}

function readDotenv(cwd: string, notes: Notes): ReadonlyMap<string, string> {
  try {
    const files = dotenvFlow.listFiles({ node_env: "development", path: cwd });
    return new Map(Object.entries(dotenvFlow.parse(files)));
  } catch {
    notes.problems.push(`the .env files in ${cwd} can't be read`);
    return new Map();
  }
}

const YAML_BYTES_MAX = MIB;

function readYaml(
  named: string | undefined,
  options: LoadOptions,
  notes: Notes,
): ReadonlyMap<string, string> {
  const file = named
    ? resolve(options.cwd, named)
    : resolve(options.programDir ?? PROGRAM_DIR, "config.yaml");
  const read = readText(file, YAML_BYTES_MAX);
  if (read.text === undefined) {
    if (named || read.reason !== "does not exist") notes.problems.push(`CONFIG_FILE: ${file} ${read.reason}`);
    return new Map();
  }
  const texts = parseYaml(read.text, file, notes);
  if (
    read.shared &&
    [...texts.keys()].some((name) => name in SETTINGS && settingOf(name as SettingName).secret)
  ) {
    notes.warnings.push(`${file} holds a secret and is open to group or others; chmod 600 it`);
  }
  return texts;
}

/** Scalars stay texts (`failsafe`), so that YAML and the environment share one set of rules for numbers. */
function parseYaml(text: string, file: string, notes: Notes): ReadonlyMap<string, string> {
  const lines = new LineCounter();
  const document = parseDocument(text, { schema: "failsafe", lineCounter: lines, prettyErrors: false });
  const at = (offset: number | undefined): string => `${file} line ${lines.linePos(offset ?? 0).line}`;
  for (const error of document.errors) {
    // Not the parser's own message: it may quote the line, and the line may hold a secret.
    notes.problems.push(`${at(error.pos[0])}: not valid YAML (${error.code})`);
  }
  const texts = new Map<string, string>();
  if (document.errors.length > 0 || document.contents === null) return texts;
  if (isScalar(document.contents) && document.contents.value === "") return texts;
  if (!isMap(document.contents)) {
    notes.problems.push(`${file}: must be a list of "key: value" lines`);
    return texts;
  }
  for (const { key, value } of document.contents.items) {
    const word = isScalar(key) ? (textOf(key.value) ?? "") : "";
    const where = at(isScalar(key) ? key.range?.[0] : undefined);
    const given = scalarText(value);
    const name = YAML_KEYS.get(word.toLowerCase());
    if (name === undefined) noteUnknownKey(word, where, notes);
    else if (given === undefined) notes.problems.push(`${where}: ${word} must be a single value`);
    else if (texts.has(name)) notes.problems.push(`${where}: ${word} is given twice (${name})`);
    else if (!isNull(value, given)) texts.set(name, given);
  }
  return texts;
}

function noteUnknownKey(word: string, where: string, notes: Notes): void {
  if (OBSOLETE_YAML_KEYS.has(word.toLowerCase())) {
    notes.warnings.push(`${where}: ${word} has no effect any more`);
    return;
  }
  const guess = nearest(word.toLowerCase(), YAML_KEYS.keys());
  const hint = guess === undefined ? "" : `; did you mean ${guess}?`;
  notes.problems.push(`${where}: unknown key ${printable(word)}${hint}`);
}

/** A list of scalars counts as one text with commas; anything deeper is no value. */
function scalarText(node: unknown): string | undefined {
  if (node === null) return "";
  if (isScalar(node)) return textOf(node.value);
  if (!isSeq(node)) return undefined;
  const parts = node.items.map((item) => (isScalar(item) ? textOf(item.value) : undefined));
  return parts.every((part) => part !== undefined) ? parts.join(",") : undefined;
}

/** Under `failsafe` every scalar is a text already. */
function textOf(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}

/** `key:`, `key: ~` and `key: null` mean "not set" in YAML; the quoted word is a text. */
function isNull(node: unknown, given: string): boolean {
  return node === null || (isScalar(node) && node.type === "PLAIN" && ["", "~", "null"].includes(given));
}

/** Accepted YAML key → environment name. */
export const YAML_KEYS: ReadonlyMap<string, string> = new Map(
  SETTING_NAMES.flatMap((name) => {
    const { yaml = [], secret, environmentOnly } = settingOf(name);
    if (environmentOnly) return [];
    const keys = [name.toLowerCase(), ...yaml];
    const files = secret ? keys.map((key) => [`${key}_file`, `${name}_FILE`] as const) : [];
    return [...keys.map((key) => [key, name] as const), ...files];
  }),
);

/** For each setting the text of the strongest source that has one. */
function findTexts(layers: readonly Layer[], cwd: string, notes: Notes): ReadonlyMap<SettingName, Found> {
  const found = new Map<SettingName, Found>();
  for (const name of SETTING_NAMES) {
    const { default: fallback } = settingOf(name);
    const text =
      firstOf(layers, (layer) => findInLayer(name, layer, cwd, notes)) ??
      (fallback === undefined ? undefined : { text: fallback, source: "default" as const });
    if (text !== undefined) found.set(name, text);
  }
  return found;
}

function firstOf<Item, Result>(
  items: readonly Item[],
  pick: (item: Item) => Result | undefined,
): Result | undefined {
  for (const item of items) {
    const result = pick(item);
    if (result !== undefined) return result;
  }
  return undefined;
}

function findInLayer(name: SettingName, layer: Layer, cwd: string, notes: Notes): Found | undefined {
  const { secret, emptyIsUnset } = settingOf(name);
  const direct = layer.texts.get(name);
  const isSet = direct !== undefined && !(direct === "" && emptyIsUnset);
  const file = secret ? layer.texts.get(`${name}_FILE`) : undefined;
  if (!file) return isSet ? { text: direct, source: layer.source } : undefined;
  if (isSet) notes.problems.push(`${name} and ${name}_FILE are both set (${layer.source}); keep one`);
  return readSecretFile(name, resolve(cwd, file), notes);
}

const SECRET_FILE_BYTES_MAX = 65_536;

function readSecretFile(name: SettingName, file: string, notes: Notes): Found {
  const source: Source = `file ${file}`;
  const read = readText(file, SECRET_FILE_BYTES_MAX);
  if (read.text === undefined) {
    notes.problems.push(`${name}_FILE: ${file} ${read.reason}`);
    return { text: "", source, unreadable: true };
  }
  warnIfShared(`${name}_FILE`, file, read.shared, notes);
  const text = read.text.replace(/[\r\n]+$/, "");
  if (text === "") {
    notes.problems.push(`${name}_FILE: ${file} is empty`);
    return { text: "", source, unreadable: true };
  }
  return { text, source };
}

function warnIfShared(name: string, file: string, shared: boolean, notes: Notes): void {
  if (shared) notes.warnings.push(`${name}: ${file} is open to group or others; chmod 600 it`);
}

type ReadText =
  | { readonly text: string; readonly shared: boolean }
  | { readonly text?: undefined; readonly reason: string };

function readText(file: string, bytesMax: number): ReadText {
  try {
    const { mode, size } = statFile(file);
    if (size > bytesMax) return { reason: `is larger than ${bytesMax} bytes` };
    const text = new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(file));
    return { text, shared: process.platform !== "win32" && (mode & 0o077) !== 0 };
  } catch (error) {
    return { reason: readFailure(error) };
  }
}

/** Follows symbolic links, as Kubernetes mounts secrets; refuses what could block, such as a pipe. */
function statFile(file: string): { readonly mode: number; readonly size: number } {
  const status = statSync(file);
  if (!status.isFile()) throw Object.assign(new Error("not a file"), { code: "EISDIR" });
  return status;
}

function readFailure(error: unknown): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const reasons: Readonly<Record<string, string>> = {
    ENOENT: "does not exist",
    ENOTDIR: "does not exist",
    EACCES: "must not be read by this user",
    EPERM: "must not be read by this user",
    EISDIR: "is not a regular file",
    ERR_ENCODING_INVALID_ENCODED_DATA: "is not UTF-8 text",
  };
  return reasons[code] ?? "can't be read";
}

function checkNeeds(
  needs: readonly Need[],
  mode: Mode,
  found: ReadonlyMap<SettingName, Found>,
  notes: Notes,
): void {
  const isDefault = (name: SettingName): boolean => found.get(name)?.source === "default";
  for (const [need, name] of [
    ["mongodb", "MONGODB_URL"],
    ["redis", "REDIS_URL"],
  ] as const) {
    if (needs.includes(need) && mode === "production" && isDefault(name)) {
      notes.problems.push(`${name} is not set: required, ${settingOf(name).allowed}`);
    }
  }
  if (needs.includes("kek") && !found.has("ENCRYPTION_KEY") && !found.has("ENCRYPTION_KEYRING_FILE")) {
    notes.problems.push(
      `ENCRYPTION_KEY is not set: it or ENCRYPTION_KEY_FILE is required, ${SETTINGS.ENCRYPTION_KEY.allowed}`,
    );
  }
}

/** Key files that other modules read: here only whether they are there, and closed to others. */
function checkKeyFiles(found: ReadonlyMap<SettingName, Found>, cwd: string, notes: Notes): void {
  for (const name of ["ENCRYPTION_KEYRING_FILE", "MANIFEST_SIGNING_KEY_FILE"] as const) {
    const given = found.get(name)?.text;
    if (given === undefined || given === "") continue;
    const read = readText(resolve(cwd, given), SECRET_FILE_BYTES_MAX);
    if (read.text === undefined) notes.problems.push(`${name}: ${resolve(cwd, given)} ${read.reason}`);
    else warnIfShared(name, resolve(cwd, given), read.shared, notes);
  }
}

/** A mistyped variable is otherwise just ignored; unrelated ones are none of our business. */
function warnOfNearMisses(env: LoadOptions["env"], notes: Notes): void {
  const known = SETTING_NAMES.flatMap((name) => (settingOf(name).secret ? [name, `${name}_FILE`] : [name]));
  const unset = known.filter((name) => env[name] === undefined && name.length >= 8);
  for (const name of Object.keys(env)) {
    if (known.includes(name)) continue;
    const guess = unset.find((one) => editDistance(name, one, 1) <= 1);
    if (guess !== undefined)
      notes.warnings.push(`environment variable ${printable(name)} is not known; did you mean ${guess}?`);
  }
}

const SHOWN_CHARACTERS_MAX = 80;
/** What JSON leaves as it is and a terminal may obey: C1 controls, direction marks, line separators. */
const INVISIBLE = /[\p{Cc}\p{Zl}\p{Zp}\u200b-\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** Quoted, without control characters, cut, and without the user and password of a URL. */
function printable(given: string): string {
  const masked = maskUrl(given);
  const cut = masked.length > SHOWN_CHARACTERS_MAX ? `${masked.slice(0, SHOWN_CHARACTERS_MAX)}…` : masked;
  return JSON.stringify(cut).replace(
    INVISIBLE,
    (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function describeFound(name: SettingName, found: Found | undefined): string {
  if (found === undefined) return name;
  const value = settingOf(name).secret ? "(hidden)" : printable(found.text);
  return `${name} = ${value} (${found.source})`;
}

function effective(
  name: SettingName,
  value: Values[SettingName],
  found: Found | undefined,
): EffectiveSetting {
  const { secret = false, reloadable = false } = settingOf(name);
  const shown = value !== null && typeof value === "object" && "url" in value ? value.url : value;
  const text = shown instanceof Secret ? String(shown) : found?.text;
  return { name, value: text, source: found?.source ?? "default", secret, reloadable };
}

/** Where the KEKs come from (contract §7); `none` only for commands that don't need one. */
export type KekSource =
  | { readonly kind: "key"; readonly key: Secret }
  | { readonly kind: "keyring"; readonly file: string }
  | { readonly kind: "none" };

function kekSource(values: Values, cwd: string): KekSource {
  if (values.ENCRYPTION_KEYRING_FILE !== undefined) {
    return { kind: "keyring", file: resolve(cwd, values.ENCRYPTION_KEYRING_FILE) };
  }
  return values.ENCRYPTION_KEY === undefined ? { kind: "none" } : { kind: "key", key: values.ENCRYPTION_KEY };
}

const LEVEL_DEFAULT = { zstd: 3, lz4: 0, brotli: 4, none: 0 } as const;

/** `lz4` and `none` have no levels: 0. */
function compression(values: Values) {
  const algorithm = values.COMPRESSION_ENABLED ? values.COMPRESSION_ALGORITHM : "none";
  const given =
    algorithm === "zstd" || algorithm === "brotli" ? values.LUCID_DEFAULT_COMPRESSION_LEVEL : undefined;
  return {
    algorithm,
    level: given ?? LEVEL_DEFAULT[algorithm],
    thresholdBytes: values.LUCID_COMPRESSION_THRESHOLD,
  };
}

/** Flat names to the shape that the program uses: nested by subject, units last, paths absolute. */
function arrange(values: Values, mode: Mode, cwd: string) {
  return {
    mode,
    host: values.SESSION_PROCESSOR_HOST,
    http: { bind: values.HTTP_BIND, port: values.SESSION_PROCESSOR_PORT },
    log: { level: values.LOG_LEVEL },
    shutdown: { deadlineMs: values.SHUTDOWN_DEADLINE },
    mongodb: values.MONGODB_URL,
    redis: { url: values.REDIS_URL },
    encryption: { kek: kekSource(values, cwd), keyRotationIntervalMs: values.KEY_ROTATION_INTERVAL },
    kernel: { threads: values.CPU_THREADS, workerTimeoutMs: values.WORKER_TIMEOUT },
    compression: compression(values),
    limits: { chunkBytesMax: values.LUCID_MAX_CHUNK_SIZE, sessionBytesMax: values.MAX_SESSION_SIZE },
    queues: {
      prefix: values.QUEUE_PREFIX,
      events: values.EVENT_QUEUES,
      concurrency: values.MAX_WORKERS,
      backPressureJobs: values.QUEUE_SIZE,
      retryAttempts: values.RETRY_ATTEMPTS,
      retryDelayMs: values.RETRY_DELAY,
      lockDurationMs: values.LOCK_DURATION,
      stalledIntervalMs: values.STALLED_INTERVAL,
      stalledCountMax: values.MAX_STALLED_COUNT,
      jobRetention: { ageSeconds: values.JOB_RETENTION_SECONDS, count: values.JOB_RETENTION_COUNT },
      failedRetention: {
        ageSeconds: values.JOB_RETENTION_FAILED_SECONDS,
        count: values.JOB_RETENTION_FAILED_COUNT,
      },
      eventRetention: { ageSeconds: values.EVENT_RETENTION_SECONDS, count: values.EVENT_RETENTION_COUNT },
      payloadTtlSeconds: values.PAYLOAD_TTL_SECONDS,
    },
    sweep: {
      intervalMs: values.SWEEP_INTERVAL,
      eventPendingMs: values.EVENT_PENDING_SECONDS,
      orphanBlobMs: values.ORPHAN_BLOB_SECONDS,
      gapAlertMs: values.GAP_ALERT_SECONDS,
    },
    paths: {
      scratch: resolve(cwd, values.LUCID_COMPRESSION_PATH),
      payloads: resolve(cwd, values.LUCID_PAYLOAD_PATH),
      manifests: resolve(cwd, values.LUCID_MANIFEST_PATH),
    },
    merkle: {
      hashAlgorithm:
        values.LUCID_MANIFEST_HASH_ALGORITHM === "BLAKE3" ? ("blake3" as const) : ("sha256" as const),
      checkpointIntervalMs: values.CHECKPOINT_INTERVAL,
    },
    manifest: {
      signatureAlgorithm: values.LUCID_MANIFEST_SIGNATURE_ALGORITHM,
      signingKeyFile:
        values.MANIFEST_SIGNING_KEY_FILE === undefined
          ? undefined
          : resolve(cwd, values.MANIFEST_SIGNING_KEY_FILE),
    },
    services: {
      storageUrl: values.SESSION_STORAGE_URL,
      pipelineUrl: values.SESSION_PIPELINE_URL,
      blockchainUrl: values.BLOCKCHAIN_ENGINE_URL,
      recorderUrl: values.SESSION_RECORDER_URL,
      sessionApiUrl: values.SESSION_API_URL,
      nodeManagementUrl: values.NODE_MANAGEMENT_URL,
      gatewayUrl: values.API_GATEWAY_URL,
      authUrl: values.AUTH_SERVICE_URL,
      delivery: values.STORAGE_DELIVERY,
      timeoutMs: values.SERVICE_TIMEOUT_SECONDS,
      connectTimeoutMs: values.SERVICE_CONNECT_TIMEOUT_SECONDS,
      attempts: values.SERVICE_RETRY_COUNT,
      retryDelayMs: values.SERVICE_RETRY_DELAY_SECONDS,
      bearerToken: values.JWT_SECRET_KEY,
    },
  };
}

type DeepReadonly<T> = T extends Secret
  ? T
  : T extends object
    ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> }
    : T;

/** The whole configuration: durations in milliseconds, sizes in bytes, paths absolute. */
export type Config = DeepReadonly<ReturnType<typeof arrange>>;

function deepFreeze<T extends object>(value: T): T {
  for (const inner of Object.values(value))
    if (inner !== null && typeof inner === "object") deepFreeze(inner);
  return Object.freeze(value);
}

/** What SIGHUP may change in a running process; everything else waits for a restart. */
export interface ReloadableConfig {
  readonly concurrency: number;
  readonly logLevel: Config["log"]["level"];
}

export function reloadable(config: Config): ReloadableConfig {
  return { concurrency: config.queues.concurrency, logLevel: config.log.level };
}

/** Names of the settings that differ but take effect only after a restart. */
export function restartRequired(before: LoadedConfig, after: LoadedConfig): readonly SettingName[] {
  const text = (loaded: LoadedConfig, name: SettingName): string | undefined =>
    TEXTS.get(loaded)?.get(name)?.text;
  return SETTING_NAMES.filter(
    (name) => !settingOf(name).reloadable && text(before, name) !== text(after, name),
  );
}

/** The most alike word, if it is alike enough to be worth suggesting. */
function nearest(word: string, candidates: Iterable<string>): string | undefined {
  let best: { readonly word: string; readonly distance: number } | undefined;
  const distanceMax = Math.max(2, Math.floor(word.length / 3));
  for (const candidate of candidates) {
    const distance = editDistance(word, candidate, distanceMax);
    if (distance <= distanceMax && distance < (best?.distance ?? Number.POSITIVE_INFINITY)) {
      best = { word: candidate, distance };
    }
  }
  return best?.word;
}

/** Levenshtein distance; gives up (with a larger number) when the lengths alone differ by more than `max`. */
function editDistance(left: string, right: string, max: number): number {
  if (Math.abs(left.length - right.length) > max) return max + 1;
  let row = Array.from({ length: right.length + 1 }, (_, column) => column);
  for (let i = 1; i <= left.length; i++) {
    const next = [i];
    for (let j = 1; j <= right.length; j++) {
      const substitution = (row[j - 1] ?? 0) + (left[i - 1] === right[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[right.length] ?? 0;
}
