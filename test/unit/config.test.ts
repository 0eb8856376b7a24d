import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { tmpdir } from "node:os";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  type LoadedConfig,
  type LoadOptions,
  loadConfig,
  maskUrl,
  reloadable,
  restartRequired,
  Secret,
  SETTING_NAMES,
  settingOf,
  YAML_KEYS,
} from "../../src/config.ts";
import { LucidError } from "../../src/core/errors.ts";

const KEY = "q7Zr2vXw9LkT4mBn8sPd1fGh6jYc3aUe5iOo0RtN=";
const PASSWORD = "hunter2-in-url";
const REQUIRED = {
  MONGODB_URL: `mongodb://app:${PASSWORD}@db:27017/chunks`,
  REDIS_URL: `redis://:${PASSWORD}@cache:6379/2`,
  ENCRYPTION_KEY: KEY,
} as const;

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "config-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

type Env = Record<string, string>;

function load(env: Env = {}, options: Partial<LoadOptions> = {}): LoadedConfig {
  return loadConfig({ env: { ...REQUIRED, ...env }, cwd: dir, programDir: dir, ...options });
}

/** The message of the CONFIG_INVALID that loading ends with. */
function refusal(env: Env, options: Partial<LoadOptions> = {}): string {
  try {
    loadConfig({ env, cwd: dir, programDir: dir, ...options });
  } catch (error) {
    expect(error).toBeInstanceOf(LucidError);
    expect((error as LucidError).code).toBe("CONFIG_INVALID");
    return (error as LucidError).message;
  }
  throw new Error("the configuration was accepted");
}

function file(name: string, text: string | Uint8Array, mode = 0o600): string {
  const path = join(dir, name);
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
}

describe("defaults", () => {
  test("are those of the contract", () => {
    const { config } = load();
    expect(config.http).toEqual({ bind: "0.0.0.0", port: 8091 });
    expect(config.log.level).toBe("info");
    expect(config.queues).toMatchObject({
      prefix: "{lucid}",
      events: ["storage-events"],
      concurrency: 10,
      backPressureJobs: 1000,
      retryAttempts: 3,
      retryDelayMs: 1000,
      lockDurationMs: 15_000,
      stalledIntervalMs: 5000,
      stalledCountMax: 16,
      payloadTtlSeconds: 86_400,
    });
    expect(config.kernel.workerTimeoutMs).toBe(30_000);
    expect(config.compression).toEqual({ algorithm: "zstd", level: 3, thresholdBytes: 1024 });
    expect(config.limits).toEqual({ chunkBytesMax: 1_048_576, sessionBytesMax: 107_374_182_400 });
    expect(config.encryption.keyRotationIntervalMs).toBe(3_600_000);
    expect(config.sweep).toEqual({
      intervalMs: 15_000,
      eventPendingMs: 30_000,
      orphanBlobMs: 3_600_000,
      gapAlertMs: 60_000,
    });
    expect(config.merkle.hashAlgorithm).toBe("blake3");
    expect(config.services).toMatchObject({
      timeoutMs: 30_000,
      connectTimeoutMs: 5000,
      attempts: 3,
      retryDelayMs: 1000,
      delivery: "events",
    });
    expect(config.services.storageUrl).toBeUndefined();
    expect(config.shutdown.deadlineMs).toBe(25_000);
    expect(config.kernel.threads).toBeGreaterThanOrEqual(1);
  });

  test("CPU threads default to the available cores, paths are absolute, the result is frozen", () => {
    const { config, sources } = load();
    expect(sources.CPU_THREADS).toBe("default");
    expect(config.paths.manifests).toBe(join(dir, "data/manifests"));
    expect(Object.isFrozen(config) && Object.isFrozen(config.queues.events)).toBe(true);
  });

  test("every default passes its own rule", () => {
    for (const name of SETTING_NAMES) {
      const { schema, default: text } = settingOf(name);
      expect(schema.safeParse(text).success, name).toBe(true);
    }
  });

  test("brotli starts at quality 4, and switching compression off means none", () => {
    expect(load({ COMPRESSION_ALGORITHM: "brotli" }).config.compression.level).toBe(4);
    expect(load({ COMPRESSION_ENABLED: "false" }).config.compression.algorithm).toBe("none");
  });
});

describe("precedence", () => {
  test("environment beats YAML beats default, and each says where it came from", () => {
    file("config.yaml", "max_workers: 20\nqueue_size: 50\n");
    const { config, sources } = load({ MAX_WORKERS: "30" });
    expect(config.queues).toMatchObject({ concurrency: 30, backPressureJobs: 50 });
    expect(sources).toMatchObject({
      MAX_WORKERS: "environment",
      QUEUE_SIZE: "yaml",
      RETRY_ATTEMPTS: "default",
    });
  });

  test("dotenv files are read in development only, below the environment and above YAML", () => {
    file(".env", "MAX_WORKERS=7\nQUEUE_SIZE=8\n");
    file("config.yaml", "queue_size: 50\n");
    const { config, sources } = load({ NODE_ENV: "development", MAX_WORKERS: "9" });
    expect(config.queues).toMatchObject({ concurrency: 9, backPressureJobs: 8 });
    expect(sources.QUEUE_SIZE).toBe("dotenv");
    for (const NODE_ENV of ["production", "test", "staging"]) {
      expect(load({ NODE_ENV }).config.queues.backPressureJobs).toBe(50);
    }
    expect(load().config.queues.backPressureJobs).toBe(50);
  });

  test("CONFIG_FILE is relative to the working directory and must exist when it is named", () => {
    file("other.yaml", "max_workers: 4\n");
    expect(load({ CONFIG_FILE: "other.yaml" }).config.queues.concurrency).toBe(4);
    expect(refusal({ ...REQUIRED, CONFIG_FILE: "absent.yaml" })).toContain("absent.yaml does not exist");
    expect(load({}, { configFile: "other.yaml" }).config.queues.concurrency).toBe(4);
  });
});

describe("numbers", () => {
  test.each([
    "10abc",
    "",
    "1e3",
    "+1",
    " 10",
    "10 ",
    "0x10",
    "010",
    "-1",
    "1.5",
    "NaN",
    "Infinity",
    "1_0",
    "0",
    "51",
  ])("MAX_WORKERS=%j is refused", (text) => {
    expect(refusal({ ...REQUIRED, MAX_WORKERS: text })).toContain(
      `MAX_WORKERS = ${JSON.stringify(text)} (environment) must be a whole number from 1 to 50`,
    );
  });

  test("both ends of a range are accepted", () => {
    expect(load({ MAX_WORKERS: "1" }).config.queues.concurrency).toBe(1);
    expect(load({ MAX_WORKERS: "50" }).config.queues.concurrency).toBe(50);
  });

  test("seconds take decimals and become milliseconds; four decimals are refused", () => {
    expect(load({ RETRY_DELAY: "0.25" }).config.queues.retryDelayMs).toBe(250);
    expect(refusal({ ...REQUIRED, RETRY_DELAY: "0.0001" })).toContain("RETRY_DELAY");
  });

  test("YAML numbers follow the same rules", () => {
    file("config.yaml", "max_workers: 1e1\n");
    expect(refusal(REQUIRED)).toContain('MAX_WORKERS = "1e1" (yaml) must be a whole number');
  });
});

describe("other forms", () => {
  test("the older service's log levels are understood", () => {
    expect(load({ LOG_LEVEL: "WARNING" }).config.log.level).toBe("warn");
    expect(load({ LOG_LEVEL: "INFO" }).config.log.level).toBe("info");
    expect(refusal({ ...REQUIRED, LOG_LEVEL: "loud" })).toContain(
      "one of fatal, error, warn, info, debug, trace",
    );
  });

  test("booleans take the usual words and nothing else", () => {
    expect(load({ COMPRESSION_ENABLED: "No" }).config.compression.algorithm).toBe("none");
    expect(refusal({ ...REQUIRED, COMPRESSION_ENABLED: "maybe" })).toContain("COMPRESSION_ENABLED");
  });

  test("event queues are a list of different names, none of them our own", () => {
    expect(load({ EVENT_QUEUES: "storage-events, audit" }).config.queues.events).toEqual([
      "storage-events",
      "audit",
    ]);
    for (const list of ["", "a,,b", "a,a", "session-chunks", "a:b", "a b"]) {
      expect(refusal({ ...REQUIRED, EVENT_QUEUES: list })).toContain("EVENT_QUEUES");
    }
  });

  test.each([
    "mongodb://h",
    "mongodb://a:1,b:2,c/db?replicaSet=rs0",
    "mongodb+srv://u:p@cluster.example/db",
    "mongodb://[::1]:27017",
    "mongodb://u:p%40q@h/db",
  ])("%s is a MongoDB URL", (MONGODB_URL) => {
    expect(load({ MONGODB_URL }).config.mongodb.url.reveal()).toBe(MONGODB_URL);
  });

  test.each([
    "http://h",
    "mongodb://",
    "mongodb://h:99999",
    "mongodb+srv://a,b/db",
    "mongodb+srv://a:1/db",
    "mongodb://h/a/b",
    "mongodb://h/$db",
    "h:27017",
    "mongodb://a b",
  ])("%s is not a MongoDB URL", (MONGODB_URL) => {
    expect(refusal({ ...REQUIRED, MONGODB_URL })).toContain(
      "MONGODB_URL = (hidden) (environment) must be mongodb://",
    );
  });

  test("the database is the one in the URL, else lucid", () => {
    expect(load().config.mongodb.database).toBe("chunks");
    expect(load({ MONGODB_URL: "mongodb://h/?w=majority" }).config.mongodb.database).toBe("lucid");
  });

  test("Redis URLs are redis or rediss with a host and a database number", () => {
    expect(load({ REDIS_URL: "rediss://u:p@h:6380/1" }).config.redis.url.reveal()).toBe(
      "rediss://u:p@h:6380/1",
    );
    for (const REDIS_URL of ["http://h", "redis://", "redis://h/name", "h:6379", "redis://h:99999"]) {
      expect(refusal({ ...REQUIRED, REDIS_URL })).toContain("REDIS_URL = (hidden)");
    }
  });

  test("a neighbour's URL has no credentials, and an empty one is not set", () => {
    expect(load({ SESSION_STORAGE_URL: "http://storage:8082/" }).config.services.storageUrl).toBe(
      "http://storage:8082",
    );
    expect(load({ SESSION_STORAGE_URL: "" }).config.services.storageUrl).toBeUndefined();
    const message = refusal({ ...REQUIRED, SESSION_STORAGE_URL: `http://u:${PASSWORD}@storage` });
    expect(message).toContain("SESSION_STORAGE_URL");
    expect(message).not.toContain(PASSWORD);
  });
});

describe("settings together", () => {
  test.each([
    ["STALLED_INTERVAL", { STALLED_INTERVAL: "20" }],
    ["ORPHAN_BLOB_SECONDS", { ORPHAN_BLOB_SECONDS: "30" }],
    ["MAX_SESSION_SIZE", { MAX_SESSION_SIZE: "2048" }],
    [
      "LUCID_DEFAULT_COMPRESSION_LEVEL",
      { COMPRESSION_ALGORITHM: "brotli", LUCID_DEFAULT_COMPRESSION_LEVEL: "12" },
    ],
    ["LUCID_DEFAULT_COMPRESSION_LEVEL", { LUCID_DEFAULT_COMPRESSION_LEVEL: "0" }],
    ["STORAGE_DELIVERY", { STORAGE_DELIVERY: "http" }],
  ])("%s is refused where another setting contradicts it", (name, env) => {
    expect(refusal({ ...REQUIRED, ...env })).toMatch(new RegExp(`1 problem:\n  - ${name} `));
  });

  test("are judged also when an unrelated setting is wrong", () => {
    const message = refusal({ ...REQUIRED, STORAGE_DELIVERY: "http", MAX_WORKERS: "x" });
    expect(message).toContain("2 problems");
    expect(message).toContain("STORAGE_DELIVERY");
  });
});

describe("a bad configuration", () => {
  test("is one message with every problem and no secret", () => {
    const weak = "too-short-a-key";
    file("config.yaml", "max_worker: 3\nretry_delay: soon\n");
    const message = refusal({
      MONGODB_URL: `postgres://u:${PASSWORD}@h`,
      ENCRYPTION_KEY: weak,
      QUEUE_SIZE: "many",
      LUCID_MAX_CHUNK_SIZE: "1",
    });
    expect(message).toContain("7 problems");
    expect(message).toContain("MONGODB_URL = (hidden)");
    expect(message).toContain("REDIS_URL is not set");
    expect(message).toContain(
      "ENCRYPTION_KEY = (hidden) (environment) is refused: shorter than 32 characters",
    );
    expect(message).toContain('QUEUE_SIZE = "many" (environment)');
    expect(message).toContain('RETRY_DELAY = "soon" (yaml)');
    expect(message).toContain("LUCID_MAX_CHUNK_SIZE");
    expect(message).toContain('line 1: unknown key "max_worker"; did you mean max_workers?');
    expect(message).not.toContain(PASSWORD);
    expect(message).not.toContain(weak);
  });

  test("cuts and quotes a hostile value", () => {
    const message = refusal({ ...REQUIRED, LOG_LEVEL: `\u001b[31m\u009b\u202e\n${"x".repeat(10_000)}` });
    expect(message).not.toMatch(/[\u001b\u009b\u202e]/);
    expect(message.length).toBeLessThan(500);
  });
});

describe("the key", () => {
  const { ENCRYPTION_KEY: _, ...withoutKey } = REQUIRED;

  test("is required unless the command has no need of it", () => {
    expect(refusal(withoutKey)).toContain("ENCRYPTION_KEY is not set");
    // `run` refuses a key ring, so nobody is sent there.
    expect(refusal(withoutKey)).not.toContain("KEYRING");
    expect(refusal({ ...withoutKey, ENCRYPTION_KEY: "" })).toContain("ENCRYPTION_KEY is not set");
    const { config } = loadConfig({
      env: withoutKey,
      cwd: dir,
      programDir: dir,
      needs: ["mongodb", "redis"],
    });
    expect(config.encryption.kek).toEqual({ kind: "none" });
  });

  test.each(["x".repeat(40), "changeme-changeme-changeme-changeme", "short"])(
    "%s is refused as weak",
    (text) => {
      expect(refusal({ ...withoutKey, ENCRYPTION_KEY: text })).toContain(
        "ENCRYPTION_KEY = (hidden) (environment) is refused",
      );
    },
  );

  test("comes from a file, without the newline at its end", () => {
    const path = file("kek", `${KEY}\r\n`);
    const { config, sources, warnings } = loadConfig({
      env: { ...withoutKey, ENCRYPTION_KEY_FILE: path },
      cwd: dir,
      programDir: dir,
    });
    expect(config.encryption.kek.kind === "key" && config.encryption.kek.key.reveal()).toBe(KEY);
    expect(sources.ENCRYPTION_KEY).toBe(`file ${path}`);
    expect(warnings).toEqual([]);
  });

  test("given twice is refused: variable and file, or key and key ring", () => {
    const path = file("kek", KEY);
    expect(refusal({ ...REQUIRED, ENCRYPTION_KEY_FILE: path })).toContain(
      "ENCRYPTION_KEY and ENCRYPTION_KEY_FILE are both set",
    );
    expect(refusal({ ...REQUIRED, ENCRYPTION_KEYRING_FILE: path })).toContain("ENCRYPTION_KEYRING_FILE");
  });

  test("may be a key-ring file, whose path is passed on", () => {
    const path = file("ring.json", "{}");
    expect(load({ ENCRYPTION_KEY: "", ENCRYPTION_KEYRING_FILE: path }).config.encryption.kek).toEqual({
      kind: "keyring",
      file: path,
    });
  });

  test("in a file that others can read is a warning", () => {
    const path = file("kek", KEY, 0o644);
    const { warnings } = load({ ENCRYPTION_KEY: "", ENCRYPTION_KEY_FILE: path });
    expect(warnings).toEqual([`ENCRYPTION_KEY_FILE: ${path} is open to group or others; chmod 600 it`]);
  });
});

describe("secret files", () => {
  test("work for every secret", () => {
    const env: Env = {};
    for (const [name, text] of Object.entries({ ...REQUIRED, JWT_SECRET_KEY: "bearer" })) {
      env[`${name}_FILE`] = file(name, `${text}\n`);
    }
    const { config } = loadConfig({ env, cwd: dir, programDir: dir });
    expect(config.mongodb.url.reveal()).toBe(REQUIRED.MONGODB_URL);
    expect(config.redis.url.reveal()).toBe(REQUIRED.REDIS_URL);
    expect(config.services.bearerToken?.reveal()).toBe("bearer");
  });

  test.each([
    ["absent", () => join(dir, "nothing"), "does not exist"],
    ["a directory", () => dir, "is not a regular file"],
    ["empty", () => file("e", "\n"), "is empty"],
    ["too large", () => file("big", "x".repeat(70_000)), "is larger than"],
    ["not text", () => file("bin", new Uint8Array([0xff, 0xfe, 0x80])), "is not UTF-8 text"],
  ])("that are %s are one problem", (_what, make, words) => {
    const message = refusal({ ...REQUIRED, ENCRYPTION_KEY: "", ENCRYPTION_KEY_FILE: make() });
    expect(message).toContain("1 problem:");
    expect(message).toContain(words);
  });
});

describe("YAML", () => {
  test("takes the older service's keys", () => {
    file(
      "config.yaml",
      `port: 9000\nhost: "127.0.0.1"\nworker_timeout: 5\ncompression_level: 6\nstorage_path: /srv/payloads\nmax_chunk_size: 10485760
mongodb_url: ""\nencryption_key:\nlog_level: INFO\nBLOCKCHAIN_ENGINE_URL: http://engine:8084\nevent_queues: [a, b]\n`,
    );
    const { config } = load();
    expect(config.http).toEqual({ bind: "127.0.0.1", port: 9000 });
    expect(config.kernel.workerTimeoutMs).toBe(5000);
    expect(config.compression.level).toBe(6);
    expect(config.paths.payloads).toBe("/srv/payloads");
    expect(config.limits.chunkBytesMax).toBe(10_485_760);
    expect(config.services.blockchainUrl).toBe("http://engine:8084");
    expect(config.queues.events).toEqual(["a", "b"]);
  });

  test("names keys that have no effect any more in a warning", () => {
    const path = file("config.yaml", "batch_size: 100\nmax_workers: 3\n");
    expect(load().warnings).toEqual([`${path} line 1: batch_size has no effect any more`]);
  });

  test.each([
    ["max_workers: [\n", "not valid YAML"],
    ["- a\n- b\n", 'must be a list of "key: value" lines'],
    ["max_workers: {a: 1}\n", "max_workers must be a single value"],
    ["max_workers: 1\nMAX_WORKERS: 2\n", "is given twice"],
    ["storage_path: a\npayload_path: b\n", "is given twice"],
    ["nonsense_that_resembles_nothing: 1\n", 'unknown key "nonsense_that_resembles_nothing"'],
    ["__proto__: 1\n", "unknown key"],
    ["node_env: development\n", "unknown key"],
  ])("%j is refused", (text, words) => {
    file("config.yaml", text);
    expect(refusal(REQUIRED)).toContain(words);
  });

  test("a syntax error doesn't quote the line it is in", () => {
    file("config.yaml", `encryption_key: "${PASSWORD}\nx: [`);
    expect(refusal(REQUIRED)).not.toContain(PASSWORD);
  });

  test("an empty file is no configuration", () => {
    file("config.yaml", "# nothing yet\n");
    expect(load().config.queues.concurrency).toBe(10);
  });

  test("with a secret that others can read is a warning", () => {
    file("config.yaml", `encryption_key: ${KEY}\n`, 0o644);
    expect(load({ ENCRYPTION_KEY: "" }).warnings).toHaveLength(1);
  });

  test("no key stands for two settings", () => {
    const keys = SETTING_NAMES.flatMap((name) => [name.toLowerCase(), ...(settingOf(name).yaml ?? [])]);
    expect(new Set(keys).size).toBe(keys.length);
    expect(YAML_KEYS.get("max_workers")).toBe("MAX_WORKERS");
  });
});

describe("required settings", () => {
  test("in production are the two URLs; in development they default to this machine", () => {
    const message = refusal({ ENCRYPTION_KEY: KEY });
    expect(message).toContain("MONGODB_URL is not set");
    expect(message).toContain("REDIS_URL is not set");
    const { config } = loadConfig({
      env: { ENCRYPTION_KEY: KEY },
      cwd: dir,
      programDir: dir,
      mode: "development",
    });
    expect(config.redis.url.reveal()).toBe("redis://127.0.0.1:6379");
  });

  test("a mistyped variable is pointed at, an unrelated one is not", () => {
    const { warnings } = load({ MAX_WORKER: "3", HOME: "/", LUCID_OTHER_THING: "1" });
    expect(warnings).toEqual(['environment variable "MAX_WORKER" is not known; did you mean MAX_WORKERS?']);
  });
});

describe("secrets", () => {
  test("don't leave a Secret by accident", () => {
    const secret = new Secret("s3cr3t");
    const texts = [
      `${secret as unknown as string}`,
      JSON.stringify({ secret }),
      inspect({ secret }, { showHidden: true, depth: 9 }),
      String(secret),
    ];
    for (const text of texts) expect(text).not.toContain("s3cr3t");
    expect(secret.reveal()).toBe("s3cr3t");
  });

  test("don't leave a loaded configuration", () => {
    const loaded = load({ JWT_SECRET_KEY: "bearer-secret" });
    for (const text of [JSON.stringify(loaded), inspect(loaded, { depth: 20, showHidden: true })]) {
      for (const secret of [KEY, PASSWORD, "bearer-secret"]) expect(text).not.toContain(secret);
    }
    expect(String(loaded.config.mongodb.url)).toBe("mongodb://***@db:27017/chunks");
  });

  test.each([
    ["redis://:pw@h:1/0", "redis://***@h:1/0"],
    ["mongodb://u:p@ss/w@h/db", "mongodb://***@h/db"],
    [
      "mongodb://h/db?tls=true&tlsCertificateKeyFilePassword=pw&w=1",
      "mongodb://h/db?tls=true&tlsCertificateKeyFilePassword=***&w=1",
    ],
    ["mongodb://h/db", "mongodb://h/db"],
  ])("maskUrl(%s) keeps only what may be shown", (url, shown) => {
    expect(maskUrl(url)).toBe(shown);
  });
});

describe("reload", () => {
  test("covers concurrency and log level; other changes are named as needing a restart", () => {
    const before = load();
    const after = load({
      MAX_WORKERS: "20",
      LOG_LEVEL: "debug",
      CPU_THREADS: "7",
      ENCRYPTION_KEY: `${KEY}x`,
    });
    expect(reloadable(after.config)).toEqual({ concurrency: 20, logLevel: "debug" });
    expect(restartRequired(before, after)).toEqual(["ENCRYPTION_KEY", "CPU_THREADS"]);
    expect(restartRequired(before, load())).toEqual([]);
  });
});
