import { chunkFailedEvent } from "../../pipeline/event-messages.ts";
import { type ChunkTask, failureIdentity, type JobLimits, parseChunkJob } from "../../pipeline/parse-job.ts";
import type { EventPublisher } from "../../pipeline/ports.ts";
import {
  type CommittedStub,
  JOB_PROCESS_CHUNK,
  type ProcessChunkReturn,
  QUEUE_CHUNKS,
} from "../../schema/job.ts";
import { throwRedisError } from "../redis/errors.ts";
import { type Consumer, type ConsumerOptions, createConsumer, type JobContext } from "./job-worker.ts";

export interface ChunkConsumerOptions extends ConsumerOptions {
  readonly limits: JobLimits;
  readonly events: EventPublisher;
  /** Returns when the chunk is committed, in the tree and announced. Throws LucidErrors. */
  process(task: ChunkTask, context: JobContext): Promise<ProcessChunkReturn>;
}

/** Consumes `session-chunks` (contract §3). Fetches nothing before `start`. */
export function createChunkConsumer(options: ChunkConsumerOptions): Consumer {
  const { limits, events, clock } = options;
  return createConsumer(
    {
      queue: QUEUE_CHUNKS,
      jobName: JOB_PROCESS_CHUNK,
      async run(job, context) {
        const task = parseChunkJob(job.data, limits);
        const result = await options.process(task, context);
        // Dies here: the chunk is committed and its plaintext still in the job; the next delivery adopts the chunk and
        // comes here again. After the stub is written the next delivery is one of a stub.
        if (task.kind === "chunk" && task.job.source.kind === "inline") {
          await job.updateData(stubOf(task.job.sessionId, result)).catch(throwRedisError);
        }
        return result;
      },
      async announceFailure(job, { jobId, attempt }, { code, message }) {
        const failed = { jobId, ...failureIdentity(job.data), code, message, attempts: attempt };
        await events.publish(chunkFailedEvent(failed, clock.now()));
      },
    },
    options,
  );
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
