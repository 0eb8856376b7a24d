import type { Job } from "bullmq";
import { chunkFailedEvent } from "../../pipeline/event-messages.ts";
import type { ErrorCode } from "../../core/errors.ts";
import type { NamedChunk } from "../../pipeline/chunk-standing.ts";
import { base64Chars } from "../../pipeline/job-text.ts";
import { type ChunkTask, failureIdentity, type JobLimits, parseChunkJob } from "../../pipeline/parse-job.ts";
import type { LucidEvent } from "../../schema/event.ts";
import {
  type CommittedStub,
  JOB_PROCESS_CHUNK,
  type ProcessChunkReturn,
  QUEUE_CHUNKS,
} from "../../schema/job.ts";
import { throwRedisError } from "../redis/errors.ts";
import {
  type Consumer,
  type ConsumerOptions,
  createConsumer,
  type JobContext,
  type JobStanding,
} from "./job-worker.ts";

/**
 * No retry of a job that was refused with one of these can succeed, whatever an operator does. After the other codes it may:
 * with the right key, a repaired store, room in the session, or workers that stay alive; then its bytes are still needed, and
 * may be the only ones. A code that isn't named here keeps them. PAYLOAD_TOO_LARGE is named: a higher limit would help, but what is
 * over the limit is not kept, whether it was parsed to be found so or not.
 */
const REFUSED_FOR_EVER: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "JOB_INVALID",
  "PAYLOAD_BASE64_INVALID",
  "PAYLOAD_EMPTY",
  "PAYLOAD_TOO_LARGE",
  "PAYLOAD_SIZE_MISMATCH",
  "PAYLOAD_DIGEST_MISMATCH",
  "PAYLOAD_REF_FORBIDDEN",
  "CHUNK_CONFLICT",
  "CHUNK_ID_CONFLICT",
  "CHUNK_BEYOND_END",
  "SESSION_SEALED",
]);

export interface ChunkConsumerOptions extends ConsumerOptions {
  readonly limits: JobLimits;
  /** Resolves when every event queue has it. */
  announce(event: LucidEvent, signal: AbortSignal): Promise<void>;
  /** Returns when the chunk is committed, in the tree and announced. Throws LucidErrors. */
  process(task: ChunkTask, context: JobContext): Promise<ProcessChunkReturn>;
  /**
   * What the store has of the chunk, for a job that is about to fail for good; for one that can't be parsed, of the chunk that
   * it names. Throws LucidErrors.
   */
  standing(task: ChunkTask | NamedChunk, context: JobContext): Promise<JobStanding<ProcessChunkReturn>>;
}

/** Consumes `session-chunks` (contract §3). Fetches nothing before `start`. */
export function createChunkConsumer(options: ChunkConsumerOptions): Consumer {
  const { limits, clock } = options;
  return createConsumer(
    {
      queue: QUEUE_CHUNKS,
      jobName: JOB_PROCESS_CHUNK,
      textLimits: { payloadCharsMax: base64Chars(limits.chunkBytesMax) },
      async run(job, context) {
        const task = parseChunkJob(job.data, limits);
        const result = await options.process(task, context);
        // Dies here: the chunk is committed and its plaintext still in the job; the next delivery adopts the chunk and
        // comes here again. After the stub is written the next delivery is one of a stub.
        await replaceInlineBytes(job, task, result);
        return result;
      },
      async standing(job, context): Promise<JobStanding> {
        const task = parsedTask(job.data, limits) ?? namedChunk(job.data);
        if (task === undefined) return { kind: "none" };
        const standing = await options.standing(task, context);
        if (standing.kind === "done" && task.kind !== "named") {
          await replaceInlineBytes(job, task, standing.result);
        }
        return standing;
      },
      async announceFailure(job, { jobId, attempt, signal }, { code, message }) {
        const failed = { jobId, ...failureIdentity(job.data), code, message, attempts: attempt };
        await options.announce(chunkFailedEvent(failed, clock.now()), signal);
      },
      isRefusedForEver: (code) => REFUSED_FOR_EVER.has(code),
    },
    options,
  );
}

/** The chunk that unparsable data names. From this very job it isn't; but "failed" must not be told of a chunk that is there. */
function namedChunk(data: unknown): NamedChunk | undefined {
  const { sessionId, chunkId, chunkIndex: index } = failureIdentity(data);
  if (sessionId === undefined || chunkId === undefined || index === undefined) return undefined;
  return { kind: "named", sessionId, chunkId, index };
}

/** `undefined` for data that is no chunk's. */
function parsedTask(data: unknown, limits: JobLimits): ChunkTask | undefined {
  try {
    return parseChunkJob(data, limits);
  } catch {
    return undefined;
  }
}

async function replaceInlineBytes(
  job: Pick<Job<unknown, unknown, string>, "updateData">,
  task: ChunkTask,
  result: ProcessChunkReturn,
): Promise<void> {
  if (task.kind !== "chunk" || task.job.source.kind !== "inline") return;
  await job.updateData(stubOf(task.job.sessionId, result)).catch(throwRedisError);
}

function stubOf(session: string, result: ProcessChunkReturn): CommittedStub {
  return {
    committed: true,
    session_id: session,
    chunk_id: result.chunk_id,
    chunk_index: result.chunk_index,
    leaf_hash: result.leaf_hash,
  };
}
