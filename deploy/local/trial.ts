import { randomBytes } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { generateSigningKey } from "../../src/adapters/file/signing-key.ts";
import type { LocalServers } from "./servers.ts";

/** Names and a key for one trial run, that nothing else on the same servers uses. */
export interface Trial {
  readonly redisUrl: string;
  readonly mongodbUrl: string;
  readonly database: string;
  readonly queuePrefix: string;
  readonly eventQueue: string;
  readonly encryptionKey: string;
  readonly threads: number;
  /** Where manifests appear, signed by `signingKeyFile`. */
  readonly manifestDirectory: string;
  readonly signingKeyFile: string;
  /** Of that key: base64 of the 32 bytes, to be pinned by whoever verifies. */
  readonly publicKey: string;
  /** The environment of a worker of this trial. */
  readonly env: NodeJS.ProcessEnv;
}

const PASSED_ON = ["PATH", "HOME", "TMPDIR", "LANG", "CPU_THREADS", "MAX_WORKERS", "LOG_LEVEL"] as const;

export async function trialOn(servers: LocalServers, name: string): Promise<Trial> {
  // Servers that were given may hold other things; in those of our own the usual names do.
  const isGiven = (process.env["REDIS_URL"] ?? "") !== "" || (process.env["MONGODB_URL"] ?? "") !== "";
  const own = isGiven ? `lucid_${name}_${randomBytes(6).toString("hex")}` : "lucid";
  const encryptionKey = randomBytes(32).toString("base64");
  const mongodbUrl = withDatabase(servers.mongodb.url, own);
  const queuePrefix = `{${own}}`;
  const folder = join(servers.folder, `${name}-${randomBytes(4).toString("hex")}`);
  const manifestDirectory = join(folder, "manifests");
  const signingKeyFile = join(folder, "signing-key.pem");
  const signingKey = generateSigningKey();
  await mkdir(manifestDirectory, { recursive: true });
  await writeFile(signingKeyFile, signingKey.privatePem, { mode: 0o600, flag: "wx" });
  const passedOn = Object.fromEntries(PASSED_ON.map((key) => [key, process.env[key]]));
  return {
    redisUrl: servers.redis.url,
    mongodbUrl,
    database: own,
    queuePrefix,
    eventQueue: "storage-events",
    encryptionKey,
    threads: availableParallelism(),
    manifestDirectory,
    signingKeyFile,
    publicKey: signingKey.base64,
    env: {
      ...passedOn,
      NODE_ENV: "production",
      REDIS_URL: servers.redis.url,
      MONGODB_URL: mongodbUrl,
      QUEUE_PREFIX: queuePrefix,
      ENCRYPTION_KEY: encryptionKey,
      LUCID_COMPRESSION_PATH: join(folder, "scratch"),
      LUCID_PAYLOAD_PATH: join(folder, "payloads"),
      LUCID_MANIFEST_PATH: manifestDirectory,
      MANIFEST_SIGNING_KEY_FILE: signingKeyFile,
    },
  };
}

/** Keeps hosts (there may be several) and options, replaces the path. */
export function withDatabase(url: string, database: string): string {
  const parts = /^(mongodb(?:\+srv)?:\/\/[^/?]+)(?:\/[^?]*)?(\?.*)?$/.exec(url);
  if (parts === null) throw new TypeError("MONGODB_URL must look like mongodb://host:port/");
  return `${parts[1]}/${database}${parts[2] ?? ""}`;
}

/** Takes the trial's database and queue keys off servers that others may use too. */
export async function dropTrial({
  mongodbUrl,
  redisUrl,
  queuePrefix,
}: Pick<Trial, "mongodbUrl" | "redisUrl" | "queuePrefix">): Promise<void> {
  const [{ MongoClient }, { Redis }] = await Promise.all([import("mongodb"), import("ioredis")]);
  const client = new MongoClient(mongodbUrl, { serverSelectionTimeoutMS: DROP_TIMEOUT_MS });
  const redis = new Redis(redisUrl, { maxRetriesPerRequest: 1, commandTimeout: DROP_TIMEOUT_MS });
  redis.on("error", () => undefined);
  try {
    await client.db().dropDatabase();
    for await (const keys of redis.scanStream({ match: `${escapeGlob(queuePrefix)}*`, count: 1_000 })) {
      if ((keys as string[]).length > 0) await redis.unlink(...(keys as string[]));
    }
  } finally {
    redis.disconnect();
    await client.close();
  }
}

const DROP_TIMEOUT_MS = 5_000;

function escapeGlob(text: string): string {
  return text.replace(/[\\*?[\]]/g, "\\$&");
}
