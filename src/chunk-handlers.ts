import type { ChunkConsumerOptions } from "./adapters/bullmq/chunk-consumer.ts";
import { toHex } from "./core/bytes.ts";
import type { Pipeline } from "./pipeline/pipeline.ts";
import type { ProcessChunkReturn } from "./schema/job.ts";
import type { ChunkRecord } from "./schema/record.ts";

type ChunkHandlers = Pick<ChunkConsumerOptions, "announce" | "process" | "standing">;

/** What the queue of chunks asks of the pipeline: tasks and what is known of their delivery in, small return values out. */
export function chunkHandlersOf(
  pipeline: Pick<Pipeline, "announce" | "processChunk" | "finishStub" | "chunkStanding">,
): ChunkHandlers {
  return {
    announce: (event, signal) => pipeline.announce(event, signal),
    async process(task, { signal, isFirstDelivery }) {
      const chunk =
        task.kind === "chunk"
          ? await pipeline.processChunk(task.job, signal, isFirstDelivery)
          : await pipeline.finishStub(task.stub, signal);
      return returnOf(chunk);
    },
    async standing(task, { signal }) {
      const standing = await pipeline.chunkStanding(task, signal);
      return standing.kind === "committed" ? { kind: "done", result: returnOf(standing.chunk) } : standing;
    },
  };
}

function returnOf(chunk: ChunkRecord): ProcessChunkReturn {
  return {
    chunk_id: chunk.chunkId,
    chunk_index: chunk.index,
    leaf_hash: toHex(chunk.leafHash),
    stored_bytes: chunk.storedBytes,
  };
}
