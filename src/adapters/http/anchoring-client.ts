import { LucidError } from "../../core/errors.ts";
import { isId, type SessionId } from "../../core/ids.ts";
import type { AnchoringEngine, AnchorPlace } from "../../pipeline/anchoring-engine.ts";
import { type Anchoring, anchoringSchema } from "../../schema/service.ts";
import { createServiceClient, type ServiceAnswer, type ServiceClientOptions } from "./service-client.ts";

const SERVICE = "blockchain engine";
const ANCHORINGS = ["api", "v1", "anchoring", "session"] as const;

export interface AnchoringClient extends AnchoringEngine {
  close(): void;
}

/** The blockchain engine over HTTP, BLOCKCHAIN_ENGINE_URL (contract §9). */
export function createAnchoringClient(
  options: Omit<ServiceClientOptions, "service" | "setting">,
): AnchoringClient {
  const client = createServiceClient({ ...options, service: SERVICE, setting: "BLOCKCHAIN_ENGINE_URL" });

  return {
    async submit(request, idempotencyKey, signal) {
      const answer = await client.call(
        {
          operation: "take a session for anchoring",
          method: "POST",
          path: ANCHORINGS,
          body: {
            session_id: request.sessionId,
            merkle_root: request.merkleRoot,
            chunk_count: request.chunkCount,
            timestamp: request.timestamp,
            manifest_data: request.manifestData,
            metadata: request.metadata,
          },
          idempotencyKey,
          // "I have this session": what an engine says that knows sessions and not idempotency keys.
          answers: [409],
        },
        signal,
      );
      const anchoring = answer.status === 409 ? ifAnchoring(answer) : answer.json(anchoringSchema);
      // `status` then tells whether what it has is ours.
      if (anchoring === undefined) return { kind: "accepted" };
      checkSession(answer, anchoring, request.sessionId);
      if (anchoring.merkleRoot !== undefined && anchoring.merkleRoot !== request.merkleRoot) {
        throw refused("has this session with another root; find out who anchored it");
      }
      if (anchoring.standing === "failed")
        throw refused("took the anchoring and failed at it; see its own log");
      if (anchoring.standing === "confirmed") return { kind: "confirmed", ...placeOf(answer, anchoring) };
      if (anchoring.anchoringId === undefined && answer.status !== 409) {
        throw answer.invalid("its answer has no anchoring_id");
      }
      return {
        kind: "accepted",
        ...(anchoring.anchoringId === undefined ? {} : { anchoringId: anchoring.anchoringId }),
      };
    },

    async status(session, signal) {
      if (!isId(session)) throw new LucidError("INTERNAL", "the session id doesn't have the form of one");
      const answer = await client.call(
        {
          operation: "tell how an anchoring stands",
          method: "GET",
          path: [...ANCHORINGS, session],
          answers: [404],
        },
        signal,
      );
      if (answer.status === 404) return { kind: "unknown" };
      const anchoring = answer.json(anchoringSchema);
      checkSession(answer, anchoring, session);
      return anchoring.standing === "confirmed"
        ? { kind: "confirmed", ...placeOf(answer, anchoring) }
        : { kind: anchoring.standing };
    },

    close: () => client.close(),
  };
}

/** A refusal may carry the anchoring that is in the way, or only words. */
function ifAnchoring(answer: ServiceAnswer): Anchoring | undefined {
  try {
    return answer.json(anchoringSchema);
  } catch {
    return undefined;
  }
}

function checkSession(answer: ServiceAnswer, { sessionId }: Anchoring, asked: SessionId): void {
  if (sessionId !== undefined && sessionId !== asked)
    throw answer.invalid("it answered about another session");
}

function placeOf(answer: ServiceAnswer, { transaction, block, merkleRoot }: Anchoring): AnchorPlace {
  if (transaction === undefined)
    throw answer.invalid("it calls an anchoring confirmed and names no transaction");
  return {
    transaction,
    ...(block === undefined ? {} : { block }),
    ...(merkleRoot === undefined ? {} : { merkleRoot }),
  };
}

function refused(what: string): LucidError {
  return new LucidError("SERVICE_REJECTED", `the ${SERVICE} ${what}`);
}
