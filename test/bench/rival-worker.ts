/**
 * What the worker is measured against: the same queue, drivers and kernel, put together as one does in an afternoon. A chunk is
 * read, sealed and verified, stored, and announced, one call after another, with the drivers as they come. It has no tree, no
 * outbox, no sweeps, no metrics, no limits on what it is given; what dies in the middle of a job is lost or done twice.
 */
import { randomBytes } from "node:crypto";
import { type Job, Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { MongoClient } from "mongodb";
import { chunkDocument } from "../../src/adapters/mongo/documents.ts";
import { CpuThreads } from "../../src/adapters/threads/cpu-threads.ts";
import { plainMacKey } from "../../src/core/encrypt/commit.ts";
import { parseChunkJob } from "../../src/pipeline/parse-job.ts";
import { chunkCompletedEvent } from "../../src/pipeline/event-messages.ts";
import { chunkCompletedEventId } from "../../src/pipeline/event-ids.ts";

const { REDIS_URL, MONGODB_URL, QUEUE_PREFIX, CPU_THREADS, MAX_WORKERS } = process.env as Readonly<
  Record<string, string>
>;
const CHUNK_BYTES_MAX = 1_048_576;
const RETENTION = {
  removeOnComplete: { age: 3_600, count: 1_000 },
  removeOnFail: { age: 3_600, count: 1_000 },
};

const redis = new Redis(REDIS_URL ?? "", { maxRetriesPerRequest: null });
const mongodb = await new MongoClient(MONGODB_URL ?? "").connect();
const database = mongodb.db(undefined, { writeConcern: { w: "majority", journal: true } });
const blobs = database.collection<{ _id: string; bytes: Uint8Array }>("chunk_blobs");
const chunks = database.collection<{ _id: string }>("chunks");
const events = new Queue("storage-events", { connection: redis, prefix: QUEUE_PREFIX ?? "" });
const threads = new CpuThreads({ threads: Number(CPU_THREADS), timeoutMs: 30_000 });
const salt = new Uint8Array(32);
const key = await threads.deriveKey("rival", salt);

async function work({ data }: Job<unknown>): Promise<unknown> {
  const task = parseChunkJob(data, {
    chunkBytesMax: CHUNK_BYTES_MAX,
    defaultCompression: { algorithm: "zstd", level: 3 },
  });
  if (task.kind !== "chunk" || task.job.source.kind !== "reference") throw new Error("not a claim check");
  const { sessionId, chunkId, index, declared, source } = task.job;
  if (source.ref.store !== "redis") throw new Error("not a claim check in Redis");
  const payload = await redis.getBuffer(source.ref.key);
  if (payload === null) throw new Error("no payload");
  const sealed = await threads.seal({
    sessionId,
    chunkId,
    index,
    payload,
    declaredBlake3: declared.blake3,
    compression: { algorithm: "zstd", level: 3, thresholdBytes: 1_024 },
    hashAlgorithm: "blake3",
    keyVersion: 1,
    key,
    salt,
    nonce: new Uint8Array(randomBytes(12)),
    plainMacKey: plainMacKey("rival"),
  });
  const chunk = {
    ...sealed,
    sessionId,
    chunkId,
    index,
    blobId: `${sessionId}:${index}:0`,
    originalBytes: sealed.originalLength,
    compressedBytes: sealed.compressedLength,
    storedBytes: sealed.storedLength,
    encryptionFormat: 1,
    keyVersion: 1,
    kekVersion: 1,
    hashAlgorithm: "blake3",
    committedAt: new Date(),
    eventId: chunkCompletedEventId(sessionId, index),
    eventState: "pending",
  } as const;
  await blobs.insertOne({ _id: chunk.blobId, bytes: sealed.blob });
  await chunks.insertOne(chunkDocument(chunk));
  await events.add("chunk.completed", chunkCompletedEvent(chunk), { jobId: chunk.eventId, ...RETENTION });
  await redis.unlink(source.ref.key);
  return { chunk_id: chunkId };
}

const worker = new Worker("session-chunks", work, {
  connection: redis,
  prefix: QUEUE_PREFIX ?? "",
  concurrency: Number(MAX_WORKERS),
  ...RETENTION,
});
// BullMQ catches what its listeners throw.
for (const event of ["failed", "error"] as const) {
  worker.on(event, (...told: readonly unknown[]) => {
    console.error(told.find((value) => value instanceof Error));
    process.exit(1);
  });
}
await worker.waitUntilReady();
process.stdout.write("rival ready\n");
