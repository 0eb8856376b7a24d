import { asBuffer } from "../../core/bytes.ts";
import { LucidError } from "../../core/errors.ts";
import { type ChunkId, isId, type LeafIndex, type SessionId } from "../../core/ids.ts";
import { pipelineSchema } from "../../schema/service.ts";
import {
  createServiceClient,
  type ServiceAnswer,
  type ServiceClientOptions,
  type ServiceHealth,
} from "./service-client.ts";

const HEALTH_TIMEOUT_MS = 2_000;

export interface ChunkToSend {
  readonly sessionId: SessionId;
  readonly chunkId: ChunkId;
  readonly index: LeafIndex;
  readonly bytes: Uint8Array;
  /** More fields of `chunk_metadata`, in snake_case; they can't replace chunk_id and chunk_index. */
  readonly metadata?: Readonly<Record<string, unknown>>;
}

/**
 * The session pipeline over HTTP, SESSION_PIPELINE_URL (contract §10); a pipeline has its session's id. Errors as of
 * ServiceClient.call; an id that isn't one is a JOB_INVALID before anything is sent.
 */
export interface PipelineClient {
  /** `exists`: the pipeline answers 409, which is also what a repeat after a lost answer may get. */
  create(
    session: SessionId,
    metadata: Readonly<Record<string, unknown>>,
    signal?: AbortSignal,
  ): Promise<"created" | "exists">;
  start(session: SessionId, signal?: AbortSignal): Promise<void>;
  stop(session: SessionId, signal?: AbortSignal): Promise<void>;
  status(session: SessionId, signal?: AbortSignal): Promise<PipelineStatus>;
  sendChunk(chunk: ChunkToSend, signal?: AbortSignal): Promise<void>;
  healthCheck(signal?: AbortSignal): Promise<ServiceHealth>;
  close(): void;
}

export type PipelineStatus =
  | { readonly kind: "unknown" }
  /** `state` is the pipeline's own word. */
  | { readonly kind: "known"; readonly state: string };

export function createPipelineClient(
  options: Omit<ServiceClientOptions, "service" | "setting">,
): PipelineClient {
  const client = createServiceClient({
    ...options,
    service: "session pipeline",
    setting: "SESSION_PIPELINE_URL",
  });

  async function turn(session: SessionId, step: "start" | "stop", signal?: AbortSignal): Promise<void> {
    const operation = `${step} a pipeline`;
    const answer = await client.call(
      { operation, method: "POST", path: [...pipelineOf(session), step] },
      signal,
    );
    checkAnswer(answer, session);
  }

  return {
    async create(session, metadata, signal) {
      const answer = await client.call(
        {
          operation: "create a pipeline",
          method: "POST",
          path: ["pipelines"],
          // The older pipeline takes it from the query, its successor from the body.
          query: { session_id: checked(session) },
          body: { session_id: session, metadata },
          answers: [409],
        },
        signal,
      );
      if (answer.status === 409) return "exists";
      checkAnswer(answer, session);
      return "created";
    },

    start: (session, signal) => turn(session, "start", signal),
    stop: (session, signal) => turn(session, "stop", signal),

    async status(session, signal) {
      const answer = await client.call(
        {
          operation: "tell a pipeline's status",
          method: "GET",
          path: [...pipelineOf(session), "status"],
          answers: [404],
        },
        signal,
      );
      if (answer.status === 404) return { kind: "unknown" };
      const { status, state } = checkAnswer(answer, session);
      const word = status || state;
      if (!word) throw answer.invalid("its answer names no status");
      return { kind: "known", state: word };
    },

    async sendChunk({ sessionId, chunkId, index, bytes, metadata }, signal) {
      const answer = await client.call(
        {
          operation: "take a chunk",
          method: "POST",
          path: [...pipelineOf(sessionId), "chunks"],
          body: {
            chunk_data: asBuffer(bytes).toString("base64"),
            chunk_metadata: { ...metadata, chunk_id: checked(chunkId), chunk_index: index },
          },
        },
        signal,
      );
      checkAnswer(answer, sessionId);
    },

    healthCheck: (signal) => client.health(HEALTH_TIMEOUT_MS, signal),
    close: () => client.close(),
  };
}

function pipelineOf(session: SessionId): readonly string[] {
  return ["pipelines", checked(session)];
}

/** Checked again although the types say so: it becomes a path on somebody else's machine. */
function checked(id: SessionId | ChunkId): string {
  if (!isId(id)) throw new LucidError("JOB_INVALID", "the id doesn't have the form of one");
  return id;
}

/** 200 alone is what a proxy's welcome page says too. */
function checkAnswer(
  answer: ServiceAnswer,
  session: SessionId,
): { readonly status?: string | null | undefined; readonly state?: string | null | undefined } {
  if (answer.status === 204) return {};
  const known = answer.json(pipelineSchema);
  if ((known.session_id ?? session) !== session) throw answer.invalid("it answered about another session");
  return known;
}
