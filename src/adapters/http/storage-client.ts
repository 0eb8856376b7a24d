import { asBuffer, fromBase64 } from "../../core/bytes.ts";
import { LucidError } from "../../core/errors.ts";
import { type ChunkId, isId, type LeafIndex, type SessionId } from "../../core/ids.ts";
import { chunkListSchema, chunkStoredSchema, storedChunkSchema } from "../../schema/service.ts";
import { createServiceClient, type ServiceClientOptions, type ServiceHealth } from "./service-client.ts";

/** Fields around the base64 of a chunk in a JSON answer. */
const CHUNK_ENVELOPE_BYTES_MAX = 65_536;
const LIST_LIMIT_MAX = 1_000;
const HEALTH_TIMEOUT_MS = 2_000;
const BYTES_TYPE = "application/octet-stream";

export interface ChunkToStore {
  readonly sessionId: SessionId;
  readonly chunkId: ChunkId;
  readonly index: LeafIndex;
  /** The sealed blob. */
  readonly blob: Uint8Array;
  /** SHA-256 of the sealed blob, 64 lowercase hex. */
  readonly sha256: string;
  /** ISO 8601 */
  readonly timestamp: string;
  /** More fields of `chunk_metadata`, in snake_case; they can't replace the ones above. */
  readonly metadata?: Readonly<Record<string, unknown>>;
}

export interface ListedChunk {
  readonly chunkId: string;
  readonly index: number | undefined;
  readonly sha256: string | undefined;
  readonly timestamp: string | undefined;
}

/**
 * The session storage over HTTP, SESSION_STORAGE_URL (contract §10). Errors as of ServiceClient.call; an id that isn't one
 * is a JOB_INVALID before anything is sent.
 */
export interface StorageClient {
  /**
   * Safe to repeat: the Idempotency-Key is made of session, index and digest. `exists`: storage answers 409, which is what a
   * repeat after a lost answer may get; with which bytes, only `getChunk` tells.
   */
  storeChunk(chunk: ChunkToStore, signal?: AbortSignal): Promise<"stored" | "exists">;
  /** The sealed blob, at most `bytesMax` bytes, unchecked; undefined if storage has none. */
  getChunk(
    session: SessionId,
    chunk: ChunkId,
    bytesMax: number,
    signal?: AbortSignal,
  ): Promise<Uint8Array | undefined>;
  /** A page in storage's own order; `limit` 1 … 1000. Empty for a session that it doesn't know. */
  listChunks(
    session: SessionId,
    page: { readonly limit: number; readonly offset: number },
    signal?: AbortSignal,
  ): Promise<readonly ListedChunk[]>;
  deleteChunk(session: SessionId, chunk: ChunkId, signal?: AbortSignal): Promise<"deleted" | "absent">;
  healthCheck(signal?: AbortSignal): Promise<ServiceHealth>;
  close(): void;
}

export function createStorageClient(
  options: Omit<ServiceClientOptions, "service" | "setting">,
): StorageClient {
  const client = createServiceClient({
    ...options,
    service: "storage service",
    setting: "SESSION_STORAGE_URL",
  });

  return {
    async storeChunk(chunk, signal) {
      const { sessionId, chunkId, index, blob, sha256, timestamp, metadata } = chunk;
      const answer = await client.call(
        {
          operation: "store a chunk",
          method: "POST",
          path: chunksOf(sessionId),
          body: {
            chunk_data: asBuffer(blob).toString("base64"),
            chunk_metadata: {
              ...metadata,
              chunk_id: checked(chunkId),
              chunk_index: index,
              hash_sha256: sha256,
              timestamp,
            },
          },
          idempotencyKey: `${sessionId}.${index}.${sha256}`,
          answers: [409],
        },
        signal,
      );
      if (answer.status === 409) return "exists";
      // 200 alone is what a proxy's welcome page says too.
      if (answer.status === 204) return "stored";
      const stored = answer.json(chunkStoredSchema);
      const other =
        (stored.session_id ?? sessionId) !== sessionId || (stored.chunk_id ?? chunkId) !== chunkId;
      if (other) throw answer.invalid("it answered about another chunk");
      return "stored";
    },

    async getChunk(session, chunk, bytesMax, signal) {
      const answer = await client.call(
        {
          operation: "give a chunk",
          method: "GET",
          path: [...chunksOf(session), checked(chunk)],
          accept: `${BYTES_TYPE}, application/json;q=0.9`,
          answers: [404],
          answerBytesMax: Math.ceil(bytesMax / 3) * 4 + CHUNK_ENVELOPE_BYTES_MAX,
        },
        signal,
      );
      if (answer.status === 404) return undefined;
      const bytes =
        answer.contentType === BYTES_TYPE ? answer.body : bytesInJson(answer.json(storedChunkSchema));
      if (bytes === undefined) throw answer.invalid("its answer holds no chunk in base64");
      if (bytes.byteLength > bytesMax) throw answer.invalid("the chunk is larger than a chunk can be");
      return bytes;
    },

    async listChunks(session, { limit, offset }, signal) {
      const answer = await client.call(
        {
          operation: "list chunks",
          method: "GET",
          path: chunksOf(session),
          query: { limit: Math.min(limit, LIST_LIMIT_MAX), offset },
          answers: [404],
        },
        signal,
      );
      if (answer.status === 404) return [];
      return answer.json(chunkListSchema).chunks.map((chunk) => ({
        chunkId: chunk.chunk_id,
        index: chunk.chunk_index ?? undefined,
        sha256: chunk.hash_sha256?.toLowerCase(),
        timestamp: chunk.timestamp ?? undefined,
      }));
    },

    async deleteChunk(session, chunk, signal) {
      const answer = await client.call(
        {
          operation: "delete a chunk",
          method: "DELETE",
          path: [...chunksOf(session), checked(chunk)],
          answers: [404],
        },
        signal,
      );
      return answer.status === 404 ? "absent" : "deleted";
    },

    healthCheck: (signal) => client.health(HEALTH_TIMEOUT_MS, signal),
    close: () => client.close(),
  };
}

function chunksOf(session: SessionId): readonly string[] {
  return ["sessions", checked(session), "chunks"];
}

/** Checked again although the types say so: it becomes a path on somebody else's machine. */
function checked(id: SessionId | ChunkId): string {
  if (!isId(id)) throw new LucidError("JOB_INVALID", "the id doesn't have the form of one");
  return id;
}

function bytesInJson(chunk: {
  readonly data?: string | null | undefined;
  readonly chunk_data?: string | null | undefined;
}): Uint8Array | undefined {
  return fromBase64(chunk.data || chunk.chunk_data || "");
}
