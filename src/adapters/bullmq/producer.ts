import { type JobsOptions, Queue } from "bullmq";
import { asBuffer, toHex } from "../../core/bytes.ts";
import { blake3 } from "../../core/digest.ts";
import { LucidError } from "../../core/errors.ts";
import { canonicalChunkId, leafIndex, type SessionId, sessionId } from "../../core/ids.ts";
import { parseFinalizeJob } from "../../pipeline/parse-job.ts";
import type { Clock } from "../../pipeline/ports.ts";
import {
  type finalizeSessionDataSchema,
  JOB_FINALIZE_SESSION,
  JOB_PROCESS_CHUNK,
  type ProcessChunkData,
  QUEUE_CHUNKS,
  QUEUE_CONTROL,
} from "../../schema/job.ts";
import type { z } from "zod";
import { coalesce } from "../coalesce.ts";
import type { FilePayloadStore } from "../file/payload-store.ts";
import { closeClient, failFastClient, type OwnedRedis, type RedisTarget } from "../redis/client.ts";
import { asRedisError, isForbidden, isOutOfMemory, throwRedisError } from "../redis/errors.ts";
import { createRedisPayloadStore } from "../redis/payload-store.ts";
import { keepJobs, type Retention } from "./retrying-worker.ts";

/** Chunks between payload and job at the same time: enough to hide the round trips. */
const IN_FLIGHT_COUNT_MAX = 32;
const IN_FLIGHT_BYTES_MAX = 32 * 1024 * 1024;
const ADD_BATCH_MAX = 64;
/** Back-pressure ends at this share of QUEUE_SIZE, so that producers don't wake up for every single job. */
const RESUME_SHARE = 0.75;
/** The queue is counted after at most this many chunks, and after an eighth of QUEUE_SIZE if that is less. */
const CHUNKS_PER_COUNT_MAX = 32;
const BACK_PRESSURE_PAUSE_MS = 50;
/** Between two tries while Redis is away or refuses. */
const OUTAGE_PAUSE_MS = 250;
/** What is over sooner isn't told: a connection that is lost is mostly there again in a moment. */
const OUTAGE_TOLD_AFTER_MS = 1_000;
/** For the first connection; what is lost later is waited for without a limit. */
export const CONNECT_TIMEOUT_MS = 10_000;
const CONNECT_POLL_MS = 20;
/** For what is under way when the signal fires: a Redis that hangs must not hold the end up. */
const STOP_GRACE_MS = 1_000;
/** Hex digits of the chunk's BLAKE3 in its job id and payload name: other bytes at an index are another job. */
const DIGEST_CHARS = 16;
/** The worker sets its own; these hold while jobs are only seen by others. */
const RETENTION_COMPLETED: Retention = { ageSeconds: 3600, count: 1000 };
const RETENTION_FAILED: Retention = { ageSeconds: 7 * 86_400, count: 1000 };
const RETRY_ATTEMPTS = 3;
const RETRY_DELAY_MS = 1_000;

export type PayloadPlace = "redis" | "file" | "inline";

export interface ChunkToEnqueue {
  readonly sessionId: string;
  readonly index: number;
  /** Must not change until the call has ended. */
  readonly bytes: Uint8Array;
  /** Default: the canonical one. */
  readonly chunkId?: string;
  /** ISO 8601. */
  readonly recordedAt?: string;
  readonly compression?: NonNullable<ProcessChunkData["compression"]>;
  readonly metadata?: Readonly<Record<string, unknown>>;
  /** Default "redis". */
  readonly store?: PayloadPlace;
}

export type FinalizeData = z.input<typeof finalizeSessionDataSchema>;

/** Why a producer waits: Redis is away, hangs or refuses for now; or it is up and has no memory left (noeviction). */
export type OutageReason = "unavailable" | "out-of-memory";

export interface ProducerOptions extends RedisTarget {
  readonly prefix: string;
  /** QUEUE_SIZE: jobs not yet taken at which the producer waits. */
  readonly queueSizeMax: number;
  readonly payloadTtlSeconds: number;
  /** Needed for chunks with store "file". */
  readonly files?: FilePayloadStore;
  readonly clock: Clock;
  /** Ends every wait: what is under way fails with SHUTTING_DOWN, within a second or so. Without one an outage has no end but its own. */
  readonly signal?: AbortSignal;
  /** Hears once of each outage that lasts for more than a second. */
  readonly onOutage?: (reason: OutageReason) => void;
  /** Hears once of its end, with the first command that got through. */
  readonly onResumed?: () => void;
}

/**
 * Patience: a Redis that can't be reached at first is reported after CONNECT_TIMEOUT_MS, with QUEUE_UNAVAILABLE, as REDIS_URL may be
 * wrong. From the first connection on every call waits a Redis out that is away, hangs, loads or has no memory left, for as long as
 * that takes, and sends again what has no reply: for a source that can't say it twice. Only the signal ends such a wait. Whoever wants
 * a limit fires it: `AbortSignal.timeout(ms)`.
 */
export interface Producer {
  /**
   * Writes the payload, then adds the job; resolves when Redis has both. Waits while the queue is full, Redis is away (see above), or too
   * many calls are under way, so callers may start as many calls as they have chunks in memory.
   * The same chunk again is harmless, and always takes effect: a job of it that is done or has failed runs again, and adopts
   * the chunk if that is still committed. Throws QUEUE_UNAVAILABLE before the first connection, or if Redis doesn't grant what it needs
   * (NOPERM); SHUTTING_DOWN, upon which the chunk may be queued or not; JOB_INVALID.
   */
  enqueueChunk(chunk: ChunkToEnqueue): Promise<void>;
  /**
   * All of them, a bounded number at the same time and taken from `chunks` as they go; stops at the first error. In an outage no more
   * is taken. Those that `onAdded` was told of are queued, of others that were taken it isn't known.
   */
  enqueueAll(
    chunks: AsyncIterable<ChunkToEnqueue> | Iterable<ChunkToEnqueue>,
    onAdded?: (chunk: ChunkToEnqueue) => void,
  ): Promise<{ readonly chunks: number; readonly bytes: number }>;
  /** Again takes effect as above; another count for a session that has one is refused where it is processed. Throws as above. */
  finalize(data: FinalizeData): Promise<void>;
  readonly commands: number;
  /** Ends every wait, as the signal does. */
  close(): Promise<void>;
}

interface JobToAdd {
  readonly id: string;
  readonly data: ProcessChunkData;
}

export function createProducer(options: ProducerOptions): Producer {
  return new ClaimCheckProducer(options);
}

class ClaimCheckProducer implements Producer {
  readonly #options: ProducerOptions;
  readonly #client;
  readonly #payloads;
  readonly #chunks: Queue;
  readonly #control: Queue;
  readonly #add: (job: JobToAdd) => Promise<"added" | "completed">;
  readonly #signal: AbortSignal;
  readonly #inFlight = new Budget(IN_FLIGHT_COUNT_MAX, IN_FLIGHT_BYTES_MAX);
  readonly #chunksPerCount: number;
  #untilCount = 0;
  /** Chunks that were let in and whose jobs may not be in the queue yet. */
  #admitted = 0;
  #count: Promise<void> | undefined;
  /** Jobs in the queue: QUEUE_SIZE, and less once it was full. */
  #roomBelow: number;
  #connected: Promise<void> | undefined;
  readonly #closed = new AbortController();
  #hasBeenConnected = false;
  #outage: { readonly sinceMs: number; isTold: boolean } | undefined;
  readonly #operations = new Set<(error: LucidError) => void>();
  #stopTimer: NodeJS.Timeout | undefined;
  readonly #onAbort = (): void => {
    const end = (): void => {
      for (const reject of this.#operations) reject(stopped());
    };
    this.#stopTimer = setTimeout(end, STOP_GRACE_MS);
  };

  constructor(options: ProducerOptions) {
    this.#options = options;
    const signals = options.signal === undefined ? [] : [options.signal];
    this.#signal = AbortSignal.any([this.#closed.signal, ...signals]);
    this.#signal.addEventListener("abort", this.#onAbort, { once: true });
    this.#client = failFastClient(options, "producer");
    this.#payloads = createRedisPayloadStore(options);
    this.#chunks = this.#openQueue(QUEUE_CHUNKS);
    this.#control = this.#openQueue(QUEUE_CONTROL);
    this.#roomBelow = options.queueSizeMax;
    this.#chunksPerCount = Math.max(1, Math.min(CHUNKS_PER_COUNT_MAX, Math.floor(options.queueSizeMax / 8)));
    this.#add = coalesce({
      send: (jobs: readonly JobToAdd[]) => this.#addBatch(jobs).catch(throwRedisError),
      itemsMax: ADD_BATCH_MAX,
      lanes: 1,
    });
  }

  get commands(): number {
    return this.#client.commands + this.#payloads.commands;
  }

  enqueueChunk(chunk: ChunkToEnqueue): Promise<void> {
    return this.#enqueue(chunk, () => false);
  }

  /** If it `isGivenUp`, a chunk that waits because the queue is full isn't queued any more. */
  async #enqueue(chunk: ChunkToEnqueue, isGivenUp: () => boolean): Promise<void> {
    const release = await this.#inFlight.take(chunk.bytes.byteLength);
    try {
      await this.#whenRoom(isGivenUp);
      this.#admitted += 1;
      // As a whole: a Redis that comes back without its last second may have lost the payload that it had.
      await this.#patiently(() => this.#putInQueue(chunk)).finally(() => {
        this.#admitted -= 1;
      });
    } finally {
      release();
    }
  }

  async enqueueAll(
    chunks: AsyncIterable<ChunkToEnqueue> | Iterable<ChunkToEnqueue>,
    onAdded: (chunk: ChunkToEnqueue) => void = () => undefined,
  ): Promise<{ readonly chunks: number; readonly bytes: number }> {
    const underWay = new Set<Promise<void>>();
    const failures: unknown[] = [];
    let bytes = 0;
    let count = 0;
    let isGoingOn = true;
    try {
      for await (const chunk of chunks) {
        const call = this.#enqueue(chunk, () => !isGoingOn || failures.length > 0)
          .then(() => onAdded(chunk))
          .catch((thrown: unknown) => void failures.push(thrown))
          .finally(() => underWay.delete(call));
        underWay.add(call);
        bytes += chunk.bytes.byteLength;
        count += 1;
        // The source may be a file of any size: no more of it in memory than can be under way.
        if (underWay.size >= IN_FLIGHT_COUNT_MAX) await Promise.race(underWay);
        if (failures.length > 0) break;
      }
      if (failures.length === 0) await Promise.all(underWay);
    } finally {
      // Room in a full queue may never come: to wait for it would keep the caller from hearing what failed.
      isGoingOn = false;
      // Also when the source fails: nothing is queued behind the caller's back.
      await Promise.all(underWay);
    }
    if (failures.length > 0) throw asRedisError(failures[0]);
    return { chunks: count, bytes };
  }

  async finalize(data: FinalizeData): Promise<void> {
    const { sessionId: session, chunkCount } = parseFinalizeJob(data);
    // The count is in the id: under one id a second, different count would be dropped without a word.
    const opts = { ...jobOptions(), jobId: `${session}.finalize.${chunkCount}` };
    await this.#patiently(async () => {
      await forgetCompleted(this.#client, this.#control, [opts.jobId]);
      await this.#control.add(JOB_FINALIZE_SESSION, data, opts);
      const states = await statesOf(this.#client, this.#control, [opts.jobId]);
      await retryFailed(this.#control, states, [data]);
    });
  }

  async close(): Promise<void> {
    this.#closed.abort();
    // The queues don't own the connection; closing them takes off their listeners.
    await Promise.allSettled([this.#chunks.close(), this.#control.close()]);
    await Promise.all([closeClient(this.#client), this.#payloads.close()]);
    clearTimeout(this.#stopTimer);
  }

  async #putInQueue(chunk: ChunkToEnqueue): Promise<void> {
    const session = sessionId(chunk.sessionId);
    const index = leafIndex(chunk.index);
    const digest = toHex(blake3(chunk.bytes));
    const name = `${index}-${digest.slice(0, DIGEST_CHARS)}`;
    const source = await this.#writePayload(session, name, chunk);
    // Dies here: a payload without a job, which its TTL removes. The other way round a job could come before its bytes.
    const job: JobToAdd = {
      id: `${session}.${index}.${digest.slice(0, DIGEST_CHARS)}`,
      data: {
        session_id: session,
        chunk_id: chunk.chunkId ?? canonicalChunkId(session, index),
        chunk_index: index,
        ...source,
        size_bytes: chunk.bytes.byteLength,
        blake3: digest,
        ...(chunk.compression === undefined ? {} : { compression: chunk.compression }),
        ...(chunk.recordedAt === undefined ? {} : { recorded_at: chunk.recordedAt }),
        ...(chunk.metadata === undefined ? {} : { metadata: chunk.metadata }),
      },
    };
    const outcome = await this.#add(job);
    // Done while it was sent again: nobody will read, and remove, the payload that was just written.
    if (outcome === "completed") await this.#removePayload(session, source);
  }

  async #writePayload(
    session: SessionId,
    name: string,
    { bytes, store = "redis" }: ChunkToEnqueue,
  ): Promise<Pick<ProcessChunkData, "payload_ref" | "chunk_data_base64">> {
    switch (store) {
      case "redis": {
        const ttlSeconds = this.#options.payloadTtlSeconds;
        return { payload_ref: await this.#payloads.write(session, name, bytes, ttlSeconds) };
      }
      case "file": {
        const { files } = this.#options;
        if (files === undefined)
          throw new LucidError("CONFIG_INVALID", "store file needs LUCID_PAYLOAD_PATH");
        return { payload_ref: await files.write(session, name, bytes) };
      }
      case "inline":
        return { chunk_data_base64: asBuffer(bytes).toString("base64") };
    }
  }

  async #removePayload(
    session: SessionId,
    { payload_ref: ref }: Pick<ProcessChunkData, "payload_ref">,
  ): Promise<void> {
    if (ref?.store === "redis") await this.#payloads.remove(session, ref);
    if (ref?.store === "file") await this.#options.files?.remove(session, ref);
  }

  async #addBatch(jobs: readonly JobToAdd[]): Promise<readonly ("added" | "completed")[]> {
    const ids = jobs.map(({ id }) => id);
    await forgetCompleted(this.#client, this.#chunks, ids);
    // Dies here: a record of finished work is gone, and its chunk is as committed or as lost as it was.
    await this.#chunks.addBulk(
      jobs.map(({ id, data }) => ({ name: JOB_PROCESS_CHUNK, data, opts: { ...jobOptions(), jobId: id } })),
    );
    const states = await statesOf(this.#client, this.#chunks, ids);
    await retryFailed(
      this.#chunks,
      states,
      jobs.map(({ data }) => data),
    );
    return states.map(({ state }) => (state === "completed" ? "completed" : "added"));
  }

  get #isConnected(): boolean {
    return this.#client.status === "ready" && this.#payloads.connected;
  }

  /** Commands fail while the connection isn't there yet, or is being made anew: all calls wait for it together. */
  async #whenConnected(): Promise<void> {
    if (this.#isConnected) {
      this.#hasBeenConnected = true;
      return;
    }
    this.#connected ??= this.#waitForConnections().finally(() => {
      this.#connected = undefined;
    });
    await this.#connected;
  }

  async #waitForConnections(): Promise<void> {
    const { clock } = this.#options;
    const givesUpMs = clock.monotonicMs() + CONNECT_TIMEOUT_MS;
    while (!this.#isConnected) {
      if (this.#hasBeenConnected) this.#noticeOutage("unavailable");
      else if (clock.monotonicMs() >= givesUpMs)
        throw new LucidError("QUEUE_UNAVAILABLE", "Redis does not answer: check that it runs, and REDIS_URL");
      await this.#pause(CONNECT_POLL_MS);
    }
    this.#hasBeenConnected = true;
  }

  /** One count for many chunks; those that come while it is made, or while the queue is full, wait for it together. */
  async #whenRoom(isGivenUp: () => boolean): Promise<void> {
    while (this.#untilCount <= 0) {
      this.#count ??= this.#lookForRoom().finally(() => {
        this.#count = undefined;
      });
      await this.#count;
      if (this.#untilCount <= 0 && isGivenUp()) throw stopped();
    }
    this.#untilCount -= 1;
  }

  /** Counts once, and takes a while to do so when the queue is full. */
  async #lookForRoom(): Promise<void> {
    const { queueSizeMax } = this.#options;
    if ((await this.#queued()) + this.#admitted < this.#roomBelow) {
      this.#roomBelow = queueSizeMax;
      this.#untilCount = this.#chunksPerCount;
      return;
    }
    this.#roomBelow = Math.max(1, queueSizeMax * RESUME_SHARE);
    await this.#pause(BACK_PRESSURE_PAUSE_MS);
  }

  async #queued(): Promise<number> {
    // A Redis without memory counts all the same: that says nothing of the end of an outage.
    const counts = await this.#patiently(
      () => this.#chunks.getJobCounts("waiting", "prioritized", "delayed"),
      () => undefined,
    );
    return Object.values(counts).reduce((sum, count) => sum + count, 0);
  }

  /**
   * See Producer. A Redis without memory (noeviction) is a full queue: it has room again when workers have removed payloads.
   * `operation` must be safe to apply twice.
   */
  async #patiently<Result>(
    operation: () => Promise<Result>,
    onSuccess = (): void => this.#endOutage(),
  ): Promise<Result> {
    for (;;) {
      if (this.#signal.aborted) throw stopped();
      await this.#whenConnected();
      try {
        const result = await this.#unlessStopped(operation());
        onSuccess();
        return result;
      } catch (thrown) {
        const error = asRedisError(thrown);
        if (error.code !== "QUEUE_UNAVAILABLE" || isForbidden(error)) throw error;
        this.#noticeOutage(isOutOfMemory(error) ? "out-of-memory" : "unavailable");
      }
      await this.#pause(OUTAGE_PAUSE_MS);
    }
  }

  /** What `operation` gives, or SHUTTING_DOWN soon after the signal has fired, whatever becomes of it then. */
  async #unlessStopped<Result>(operation: Promise<Result>): Promise<Result> {
    const { promise: end, reject } = Promise.withResolvers<never>();
    this.#operations.add(reject);
    try {
      return await Promise.race([operation, end]);
    } finally {
      this.#operations.delete(reject);
    }
  }

  #noticeOutage(reason: OutageReason): void {
    const nowMs = this.#options.clock.monotonicMs();
    this.#outage ??= { sinceMs: nowMs, isTold: false };
    if (this.#outage.isTold || nowMs - this.#outage.sinceMs < OUTAGE_TOLD_AFTER_MS) return;
    this.#outage.isTold = true;
    this.#options.onOutage?.(reason);
  }

  #endOutage(): void {
    const isTold = this.#outage?.isTold ?? false;
    this.#outage = undefined;
    if (isTold) this.#options.onResumed?.();
  }

  async #pause(ms: number): Promise<void> {
    await this.#options.clock.sleep(ms, this.#signal);
    if (this.#signal.aborted) throw stopped();
  }

  #openQueue(name: string): Queue {
    const queue = new Queue(name, {
      connection: this.#client,
      prefix: this.#options.prefix,
      skipVersionCheck: true,
    });
    queue.on("error", () => undefined);
    return queue;
  }
}

function stopped(): LucidError {
  return new LucidError("SHUTTING_DOWN", "stopped while waiting for Redis, or for room in the queue");
}

function jobOptions(): JobsOptions {
  return {
    attempts: RETRY_ATTEMPTS,
    backoff: { type: "exponential", delay: RETRY_DELAY_MS, jitter: 0.5 },
    removeOnComplete: keepJobs(RETENTION_COMPLETED),
    removeOnFail: keepJobs(RETENTION_FAILED),
  };
}

/**
 * A job is dropped without a word while one of its id is there, and a completed one stays for as long as its retention: whoever
 * sends a chunk again because the store lost it would wait for nothing. Only what ZREM takes out of the completed set is
 * removed, so a job that another producer has just added anew, or that a worker has, stays as it is. Our jobs have
 * no parents and no children: these keys are all that BullMQ keeps of them.
 */
const FORGET_COMPLETED = `
for _, id in ipairs(ARGV) do
  if redis.call("ZREM", KEYS[1], id) == 1 then
    local job = KEYS[2] .. id
    redis.call("DEL", job, job .. ":logs", job .. ":dependencies", job .. ":processed", job .. ":failed", job .. ":unsuccessful")
  end
end`;

async function forgetCompleted(client: OwnedRedis, queue: Queue, ids: readonly string[]): Promise<void> {
  await client.eval(FORGET_COMPLETED, 2, queue.toKey("completed"), queue.toKey(""), ...ids);
}

interface JobState {
  readonly id: string;
  readonly state: "failed" | "completed" | "other";
}

/** Two commands for all: adding a job whose id is taken does nothing, and says nothing. */
async function statesOf(
  client: OwnedRedis,
  queue: Queue,
  ids: readonly string[],
): Promise<readonly JobState[]> {
  const [failed, completed] = await Promise.all([
    client.zmscore(queue.toKey("failed"), ...ids),
    client.zmscore(queue.toKey("completed"), ...ids),
  ]);
  return ids.map((id, position) => ({
    id,
    state: isSet(failed[position]) ? "failed" : isSet(completed[position]) ? "completed" : "other",
  }));
}

/** A score that is there; null means that the id isn't in the set. */
function isSet(score: string | null | undefined): boolean {
  return score !== null && score !== undefined;
}

/** With the data of now: a dead letter may have lost its inline bytes, or name a payload that is gone. */
async function retryFailed(
  queue: Queue,
  states: readonly JobState[],
  data: readonly (ProcessChunkData | FinalizeData)[],
): Promise<void> {
  for (const [position, { id, state }] of states.entries()) {
    if (state !== "failed") continue;
    const job = await queue.getJob(id);
    await job?.updateData(data[position]);
    await job?.retry("failed", { resetAttemptsMade: true });
  }
}

/** Bounds what is under way by number and bytes; one item larger than all of the bytes goes alone. */
class Budget {
  readonly #countMax: number;
  readonly #bytesMax: number;
  readonly #waiting: { readonly bytes: number; readonly go: () => void }[] = [];
  #count = 0;
  #bytes = 0;

  constructor(countMax: number, bytesMax: number) {
    this.#countMax = countMax;
    this.#bytesMax = bytesMax;
  }

  async take(bytes: number): Promise<() => void> {
    await new Promise<void>((resolve) => {
      this.#waiting.push({ bytes, go: resolve });
      this.#admit();
    });
    return () => {
      this.#count -= 1;
      this.#bytes -= bytes;
      this.#admit();
    };
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#count += 1;
      this.#bytes += next.bytes;
      next.go();
    }
  }

  #fits(bytes: number): boolean {
    return this.#count === 0 || (this.#count < this.#countMax && this.#bytes + bytes <= this.#bytesMax);
  }
}
