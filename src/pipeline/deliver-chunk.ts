import { toHex } from "../core/bytes.ts";
import { sha256 } from "../core/digest.ts";
import { LucidError } from "../core/errors.ts";
import type { ChunkId, LeafIndex, SessionId } from "../core/ids.ts";
import type { ChunkCompletedEvent, LucidEvent } from "../schema/event.ts";
import type { BlobStore } from "./ports.ts";

/** STORAGE_DELIVERY=http: a storage service that is told over HTTP instead of listening to a queue. */
export interface ChunkStorage {
  /** Safe to repeat. Fails with SERVICE_UNAVAILABLE or SERVICE_ANSWER_INVALID (try again) or SERVICE_REJECTED. */
  storeChunk(
    chunk: {
      readonly sessionId: SessionId;
      readonly chunkId: ChunkId;
      readonly index: LeafIndex;
      readonly blob: Uint8Array;
      readonly sha256: string;
      readonly timestamp: string;
      readonly metadata: Readonly<Record<string, unknown>>;
    },
    signal: AbortSignal,
  ): Promise<"stored" | "exists">;
}

/**
 * Forwards the sealed blob of a `chunk.completed` event; other events are not for storage. What it throws makes the event's
 * queue deliver it again.
 */
export async function deliverChunk(
  { blobs, storage }: { readonly blobs: BlobStore; readonly storage: ChunkStorage },
  event: LucidEvent,
  signal: AbortSignal,
): Promise<"delivered" | "ignored"> {
  if (event.type !== "chunk.completed") return "ignored";
  const blob = await blobs.read(event.blob.id);
  if (blob === undefined)
    throw new LucidError("BLOB_MISSING", "the announced chunk's blob is gone; run fsck");
  await storage.storeChunk(
    {
      sessionId: event.session_id as SessionId,
      chunkId: event.chunk_id as ChunkId,
      index: event.chunk_index as LeafIndex,
      blob,
      sha256: toHex(sha256(blob)),
      timestamp: event.occurred_at,
      metadata: storageMetadata(event),
    },
    signal,
  );
  return "delivered";
}

function storageMetadata(event: ChunkCompletedEvent): Readonly<Record<string, unknown>> {
  const { original_bytes, stored_bytes, compression, encryption, leaf_hash, hash_algorithm } = event;
  return { original_bytes, stored_bytes, compression, encryption, leaf_hash, hash_algorithm };
}
