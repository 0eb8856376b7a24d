import type { SessionId } from "../core/ids.ts";

/**
 * The blockchain engine (contract §9). Calls fail with
 * - SERVICE_UNAVAILABLE or SERVICE_ANSWER_INVALID: not known whether it happened; ask again, as long as it takes;
 * - SERVICE_REJECTED: the engine understood and refused, or holds the session with another root;
 * - SHUTTING_DOWN: the signal fired, or the client is closed; as the first, not known whether it happened.
 */
export interface AnchoringEngine {
  /**
   * Safe to repeat: the same key is the same anchoring. Returns once the engine has taken it; that is no promise that it
   * keeps it, so `status` decides.
   */
  submit(request: AnchorRequest, idempotencyKey: string, signal?: AbortSignal): Promise<AnchorSubmission>;
  /** Where the anchoring of this session stands. Reads only. */
  status(session: SessionId, signal?: AbortSignal): Promise<AnchorStatus>;
}

export interface AnchorRequest {
  readonly sessionId: SessionId;
  /** 64 lowercase hex. */
  readonly merkleRoot: string;
  readonly chunkCount: number;
  /** ISO 8601: the time of the seal. */
  readonly timestamp: string;
  readonly manifestData: unknown;
  readonly metadata: Readonly<Record<string, unknown>>;
}

export type AnchorSubmission =
  /** Without an id if the engine only says that it has this session already. */
  | { readonly kind: "accepted"; readonly anchoringId?: string }
  /** The engine had it already, and it is in a block. */
  | ({ readonly kind: "confirmed" } & AnchorPlace);

export type AnchorStatus =
  /** The engine has never heard of it, or has forgotten it: submit (again). */
  | { readonly kind: "unknown" }
  | { readonly kind: "pending" }
  | ({ readonly kind: "confirmed" } & AnchorPlace)
  /** It won't get into a block by itself: submit again. */
  | { readonly kind: "failed" };

export interface AnchorPlace {
  /** Never absent from what the HTTP client returns: an anchor that can't be looked up proves nothing. */
  readonly transaction?: string;
  readonly block?: number;
  /**
   * 64 lowercase hex, the root that the engine says it has anchored; absent if it doesn't say. The engine is asked by
   * session, so the caller compares: another root than its own is not its anchor.
   */
  readonly merkleRoot?: string;
}

/**
 * One anchoring per (session, size, root): a retry after a lost answer, or by another worker, is the same one. At most
 * 176 characters of `[A-Za-z0-9_.-]`; ids have no `.`, so no two triples share a key.
 */
export function anchorIdempotencyKey(session: SessionId, size: number, rootHex: string): string {
  return `${session}.${size}.${rootHex}`;
}
