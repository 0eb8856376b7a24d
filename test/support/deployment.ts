import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Job, Queue } from "bullmq";
import { Redis } from "ioredis";
import { type Db, MongoClient } from "mongodb";
import { expect, onTestFinished } from "vitest";
import { createEventConsumer } from "../../src/adapters/bullmq/event-consumer.ts";
import { type ChunkToEnqueue, createProducer, type Producer } from "../../src/adapters/bullmq/producer.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { CpuThreads } from "../../src/adapters/threads/cpu-threads.ts";
import { type OpenStores, openStores } from "../../src/cli/open-stores.ts";
import { blake3 } from "../../src/core/digest.ts";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { sessionId } from "../../src/core/ids.ts";
import { encodeLeaf } from "../../src/core/merkle/leaf.ts";
import { textbookLeafHash, textbookRoot } from "../../src/core/merkle/textbook.ts";
import { findRestorable, restoreChunks } from "../../src/pipeline/restore-session.ts";
import type { LucidEvent } from "../../src/schema/event.ts";
import type { ChunkRecord, SessionRecord } from "../../src/schema/record.ts";
import { bareEnvironment, until, WorkerProcess } from "./worker-process.ts";

const EVENT_QUEUE = "storage-events";
const EFFECTS_MS = 20_000;
const POLL_MS = 100;
const PAGE_CHUNKS = 64;

export interface DeploymentOptions {
  readonly redisUrl: string;
  /** With the database in its path. */
  readonly mongodbUrl: string;
  readonly queuePrefix: string;
  /** For every worker, on top of what `FAST` sets. */
  readonly env?: NodeJS.ProcessEnv;
}

/** What production leaves to minutes and hours, in seconds. */
const FAST = {
  CPU_THREADS: "1",
  WORKER_TIMEOUT: "4",
  ORPHAN_BLOB_SECONDS: "5",
  EVENT_PENDING_SECONDS: "1",
  SWEEP_INTERVAL: "0.5",
  RETRY_DELAY: "0.1",
  // Nothing that a test wants to look at afterwards is tidied away.
  JOB_RETENTION_COUNT: "100000",
  EVENT_RETENTION_COUNT: "100000",
} as const;

/** A session as the test made it: what must be in the store, and nothing else. */
export interface TestSession {
  readonly id: string;
  /** Bytes of each chunk, by index. */
  readonly sizes: readonly number[];
}

/**
 * One installation: servers, names that nothing else on them uses, and any number of workers. What it opens is
 * closed at the end of the test that made it.
 */
export class Deployment {
  readonly folder: string = mkdtempSync(join(tmpdir(), "session-processor-e2e-"));
  readonly encryptionKey: string;
  readonly redisUrl: string;
  readonly #options: DeploymentOptions;
  readonly #queuePrefix: string;
  #mongo: MongoClient | undefined;
  #stores: OpenStores | undefined;

  constructor(options: DeploymentOptions) {
    this.#options = options;
    this.redisUrl = options.redisUrl;
    // One database has one key: the tests of a file share theirs.
    this.encryptionKey = createHash("sha256").update(`key of ${options.mongodbUrl}`).digest("base64");
    // Below the file's own prefix, so that it is tidied up with that, and not shared by the tests of the file.
    this.#queuePrefix = `${options.queuePrefix}-${randomBytes(4).toString("hex")}`;
    onTestFinished(async () => {
      await Promise.all([this.#mongo?.close(), this.#stores?.close()]);
      rmSync(this.folder, { recursive: true, force: true });
    });
  }

  /** A worker's whole environment. */
  get env(): NodeJS.ProcessEnv {
    const { redisUrl, mongodbUrl, env } = this.#options;
    return {
      ...bareEnvironment(),
      ...FAST,
      REDIS_URL: redisUrl,
      MONGODB_URL: mongodbUrl,
      QUEUE_PREFIX: this.#queuePrefix,
      ENCRYPTION_KEY: this.encryptionKey,
      LUCID_COMPRESSION_PATH: join(this.folder, "scratch"),
      LUCID_PAYLOAD_PATH: join(this.folder, "payloads"),
      LUCID_MANIFEST_PATH: join(this.folder, "manifests"),
      ...env,
    };
  }

  startWorker(env: NodeJS.ProcessEnv = {}): WorkerProcess {
    return new WorkerProcess({ ...this.env, ...env }, this.folder);
  }

  readyWorker(env: NodeJS.ProcessEnv = {}): Promise<WorkerProcess> {
    return this.startWorker(env).untilReady();
  }

  producer(queueSizeMax = 1_000): Producer {
    const producer = createProducer({
      url: this.redisUrl,
      prefix: this.#queuePrefix,
      queueSizeMax,
      payloadTtlSeconds: 3_600,
      clock: createSystemClock(),
      onError: () => undefined,
    });
    onTestFinished(() => producer.close());
    return producer;
  }

  /** For jobs that no producer of ours would add, and for looking at what became of them. */
  queue(name: "session-chunks" | "session-control" | "storage-events"): Queue {
    const client = this.redis();
    const queue = new Queue(name, { connection: client, prefix: this.#queuePrefix });
    queue.on("error", () => undefined);
    onTestFinished(() => queue.close());
    return queue;
  }

  redis(): Redis {
    const client = new Redis(this.redisUrl, { maxRetriesPerRequest: null });
    client.on("error", () => undefined);
    onTestFinished(() => client.disconnect());
    return client;
  }

  async db(): Promise<Db> {
    this.#mongo ??= await MongoClient.connect(this.#options.mongodbUrl);
    return this.#mongo.db();
  }

  async stores(): Promise<OpenStores> {
    this.#stores ??= await openStores(this.#options.mongodbUrl);
    return this.#stores;
  }

  /** Listens as a storage service does: at least once, repeats dropped by event id. */
  listen(): HeardEvents {
    const heard = new HeardEvents();
    const consumer = createEventConsumer({
      url: this.redisUrl,
      prefix: this.#queuePrefix,
      queue: EVENT_QUEUE,
      concurrency: 32,
      onError: () => undefined,
      onEvent: (event) => heard.take(event),
    });
    onTestFinished(() => consumer.close());
    return heard;
  }
}

/** What a subscriber heard, by event id. */
export class HeardEvents {
  readonly #byId = new Map<string, LucidEvent>();

  get all(): readonly LucidEvent[] {
    return [...this.#byId.values()];
  }

  take(event: LucidEvent): void {
    this.#byId.set(event.event_id, event);
  }

  idsOf(session: string): readonly string[] {
    return this.all
      .filter((event) => event.session_id === session)
      .map((event) => event.event_id)
      .sort();
  }

  has(id: string): boolean {
    return this.#byId.has(id);
  }
}

/** The bytes of one chunk: the same for every call, half of it compressible, different for every session and index. */
export function payloadOf(session: string, index: number, bytes: number): Uint8Array {
  const seed = createHash("sha256").update(`${session} ${index}`).digest("hex");
  const noise = createHash("shake256", { outputLength: Math.ceil(bytes / 2) })
    .update(seed)
    .digest();
  const text = Buffer.alloc(bytes, `{"session":"${session}","chunk":${index},"seed":"${seed}"}\n`);
  noise.copy(text, 0, 0, Math.floor(bytes / 2));
  return new Uint8Array(text);
}

export function* chunksOf(
  { id, sizes }: TestSession,
  from = 0,
  to: number = sizes.length,
): Generator<ChunkToEnqueue> {
  for (const [offset, bytes] of sizes.slice(from, to).entries()) {
    const index = from + offset;
    yield { sessionId: id, index, bytes: payloadOf(id, index, bytes) };
  }
}

/** Chunks of several sessions, taken in turn, as they come from several recorders. */
export function* inTurn(sessions: readonly TestSession[], from = 0, to?: number): Generator<ChunkToEnqueue> {
  const sources = sessions.map((session) => chunksOf(session, from, to));
  for (let left = sources.length; left > 0; ) {
    left = 0;
    for (const source of sources) {
      const next = source.next();
      if (next.done === true) continue;
      left += 1;
      yield next.value;
    }
  }
}

export async function finalizeAll(producer: Producer, sessions: readonly TestSession[]): Promise<void> {
  await Promise.all(
    sessions.map(({ id, sizes }) => producer.finalize({ session_id: id, chunk_count: sizes.length })),
  );
}

export async function untilSealed(
  deployment: Deployment,
  sessions: readonly TestSession[],
  timeoutMs: number,
): Promise<void> {
  const { sessions: store } = await deployment.stores();
  let left = sessions.map(({ id }) => sessionId(id));
  await until(
    "all sessions are sealed",
    async () => {
      const records = await Promise.all(left.map((id) => store.find(id)));
      left = left.filter((_, position) => records[position]?.state !== "sealed");
      return left.length === 0;
    },
    timeoutMs,
    POLL_MS,
  );
}

/**
 * Every effect of these sealed sessions is there, once: a document a chunk, a blob a document and no blob besides (once
 * the sweeper has had its time), each event id heard, the root that the recursion gives for the blobs as they are
 * stored, and the bytes that were sent.
 */
export async function expectEveryEffectOnce(
  deployment: Deployment,
  heard: HeardEvents,
  sessions: readonly TestSession[],
): Promise<void> {
  const threads = new CpuThreads({ threads: 1, timeoutMs: 30_000 });
  try {
    for (const session of sessions) await expectSession(deployment, heard, session, threads);
  } finally {
    await threads.close();
  }
}

async function expectSession(
  deployment: Deployment,
  heard: HeardEvents,
  session: TestSession,
  threads: CpuThreads,
): Promise<void> {
  const { id, sizes } = session;
  const stores = await deployment.stores();
  const record = await findRestorable(stores.sessions, sessionId(id));
  expect(record.state).toBe("sealed");
  expect(record.tree.size).toBe(sizes.length);

  const chunks = await chunkRecords(stores, record);
  expect(chunks.map(({ index }) => index)).toEqual(sizes.map((_, index) => index));
  await expectOneBlobEach(deployment, id, chunks);
  expect(await recursiveRoot(stores, record, chunks)).toEqual(Buffer.from(record.tree.root));

  const events = [
    ...sizes.map((_, index) => `chunk.completed.${id}.${index}`),
    `session.sealed.${id}`,
  ].sort();
  const eventsNow = () => heard.idsOf(id).filter((event) => !event.startsWith("session.gap."));
  await until(`every event of ${id}`, () => eventsNow().length >= events.length, EFFECTS_MS).catch(
    () => undefined,
  );
  expect(eventsNow()).toEqual(events);

  const ports = { ...stores, threads, keyRing: singleKeyRing(deployment.encryptionKey) };
  const range = { from: 0, to: sizes.length };
  for await (const { chunk, payload } of restoreChunks(ports, record, range, new AbortController().signal)) {
    const sent = payloadOf(id, chunk.index, sizes[chunk.index] ?? 0);
    expect(Buffer.compare(payload, sent), `bytes of chunk ${chunk.index}`).toBe(0);
  }
}

async function chunkRecords(
  { chunks }: OpenStores,
  { id }: Pick<SessionRecord, "id">,
): Promise<ChunkRecord[]> {
  const found: ChunkRecord[] = [];
  for (;;) {
    const page = await chunks.beyond(id, (found.at(-1)?.index ?? -1) + 1, PAGE_CHUNKS);
    found.push(...page);
    if (page.length < PAGE_CHUNKS) return found;
  }
}

export async function blobIds(deployment: Deployment, session: string): Promise<readonly string[]> {
  const db = await deployment.db();
  const found = await db
    .collection<{ _id: string }>("chunk_blobs")
    .find({ session_id: session }, { projection: { _id: 1 } })
    .toArray();
  return found.map(({ _id }) => _id).sort();
}

async function expectOneBlobEach(
  deployment: Deployment,
  session: string,
  chunks: readonly ChunkRecord[],
): Promise<void> {
  const named = chunks.map(({ blobId }) => blobId).sort();
  const hasSwept = async () => (await blobIds(deployment, session)).length <= named.length;
  await until("no orphan is left", hasSwept, EFFECTS_MS, POLL_MS).catch(() => undefined);
  expect(await blobIds(deployment, session)).toEqual(named);
}

/** Not from the leaf hashes in the documents, but from the blobs themselves. */
async function recursiveRoot(
  { blobs }: OpenStores,
  { hashAlgorithm }: Pick<SessionRecord, "hashAlgorithm">,
  chunks: readonly ChunkRecord[],
): Promise<Uint8Array> {
  const leaves: Uint8Array[] = [];
  for (const chunk of chunks) {
    const blob = await blobs.read(chunk.blobId);
    if (blob === undefined) throw new Error(`chunk ${chunk.index} names a blob that isn't there`);
    const leaf = encodeLeaf({
      sessionId: chunk.sessionId,
      index: chunk.index,
      chunkId: chunk.chunkId,
      codec: chunk.codec,
      originalLength: chunk.originalBytes,
      storedLength: blob.byteLength,
      blobBlake3: blake3(blob),
      keyCommit: chunk.keyCommit,
      plainMac: chunk.plainMac,
    });
    leaves.push(textbookLeafHash(leaf, hashAlgorithm));
  }
  return Buffer.from(textbookRoot(leaves, hashAlgorithm));
}

/** No job failed, and every one that is done was done at its first attempt: an outage is no fault of a job. */
export async function expectNoAttemptUsedUp(deployment: Deployment, jobs: number): Promise<void> {
  const queue = deployment.queue("session-chunks");
  // A seal comes before the completion of the job that made it.
  const isIdle = async () => (await queue.getActiveCount()) === 0;
  await until("the last completion is recorded", isIdle, EFFECTS_MS, POLL_MS).catch(() => undefined);
  const none = { failed: 0, delayed: 0, waiting: 0, active: 0 };
  expect(await queue.getJobCounts("failed", "delayed", "waiting", "active")).toEqual(none);
  const completed = (await queue.getJobs(["completed"])) as Job[];
  expect(completed.length).toBe(jobs);
  expect(completed.filter(({ attemptsMade }) => attemptsMade !== 1).map(({ id }) => id)).toEqual([]);
}
