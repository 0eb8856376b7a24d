import type { SessionId } from "../core/ids.ts";

/**
 * The blockchain engine (contract §9). Calls fail with SERVICE_UNAVAILABLE or SERVICE_ANSWER_INVALID (not known whether it
 * happened; ask again), or SERVICE_REJECTED (the engine understood and refused).
 */
export interface AnchoringEngine {
  /** Safe to repeat: the same key is the same anchoring. */
  submit(request: AnchorRequest, idempotencyKey: string): Promise<AnchorSubmission>;
  status(session: SessionId): Promise<AnchorStatus>;
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
  | { readonly kind: "accepted"; readonly anchoringId?: string }
  /** The engine had it already, and it is in a block. */
  | { readonly kind: "confirmed"; readonly transaction?: string; readonly block?: number };

export type AnchorStatus =
  | { readonly kind: "unknown" }
  | { readonly kind: "pending" }
  | { readonly kind: "confirmed"; readonly transaction?: string; readonly block?: number }
  | { readonly kind: "failed" };

/** One anchoring per (session, size, root): a retry after a lost answer, or by another worker, is the same one. */
export function anchorIdempotencyKey(session: SessionId, size: number, rootHex: string): string {
  return `${session}.${size}.${rootHex}`;
}
