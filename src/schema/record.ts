import type { HashAlgorithm } from "../core/merkle/hash.ts";
import type { ChunkId, LeafHash, LeafIndex, NodeHash, SessionId, TreeSize } from "../core/ids.ts";

/**
 * What the stores keep, in the pipeline's own types. The MongoDB documents of contract §4 are these records
 * in snake_case; adapters/mongo/documents.ts maps one to the other.
 */

export type { HashAlgorithm };
export type SessionState = "open" | "sealed" | "anchored";
export type EventState = "pending" | "sent";

export interface TreeHead {
  readonly size: TreeSize;
  /** Perfect subtrees of `size`, largest first, 32 bytes each. */
  readonly frontier: readonly NodeHash[];
  /** 32 bytes; absent while the tree is empty. */
  readonly root: NodeHash | undefined;
}

export interface SessionTotals {
  readonly originalBytes: number;
  readonly storedBytes: number;
}

export interface WrappedSecret {
  readonly keyVersion: number;
  readonly kekVersion: number;
  /** nonce ‖ ciphertext ‖ tag */
  readonly wrapped: Uint8Array;
}

export interface FinalizeDetails {
  readonly ownerAddress?: string;
  readonly manifestType: string;
  readonly startedAt?: string;
  readonly endedAt?: string;
  /** Canonical JSON text; never a stored object, because BSON would keep `$where` and `__proto__` keys. */
  readonly metadata?: string;
}

export interface SessionRecord {
  readonly id: SessionId;
  readonly state: SessionState;
  readonly hashAlgorithm: HashAlgorithm;
  /** Raised by every change of the document; each change is a compare-and-swap on it. */
  readonly version: number;
  readonly tree: TreeHead;
  /** Of the leaves in the tree. */
  readonly totals: SessionTotals;
  /** True once a chunk was to be let in so far ahead of the tree that only a count of all bytes tells whether it has room. */
  readonly roomCounted: boolean;
  /** Proposed by finalize-session; binding once `countConfirmed`. */
  readonly expectedCount: number | undefined;
  /** True once somebody has looked for committed chunks beyond the proposed count and found none. */
  readonly countConfirmed: boolean;
  readonly finalize: FinalizeDetails | undefined;
  readonly keys: readonly WrappedSecret[];
  readonly createdAt: Date;
  readonly sealedAt: Date | undefined;
  /** Outbox state of `session.sealed`; absent while open. */
  readonly sealedEvent: EventState | undefined;
  /** The newest checkpoint that was signed; what the next one must be consistent with. */
  readonly checkpoint: SignedCheckpoint | undefined;
  /** Absent until somebody begins to anchor the root. */
  readonly anchor: AnchorRecord | undefined;
  /** Outbox state of `session.anchored`; absent until anchored. */
  readonly anchoredEvent: EventState | undefined;
  /** True once nothing is left to do for the session: announced, and with manifest and anchor as far as configured. */
  readonly closed: boolean;
}

export interface SignedCheckpoint {
  readonly size: TreeSize;
  readonly root: NodeHash;
  /** C2SP signed note. */
  readonly note: string;
}

/** claimed → submitted → confirmed. A root is anchored together with its tree size. */
export interface AnchorRecord {
  readonly status: "claimed" | "submitted" | "confirmed";
  /** Random; whoever wrote it is submitting. */
  readonly claim: string;
  readonly anchoringId?: string;
  readonly transaction?: string;
  readonly block?: number;
  readonly anchoredAt?: Date;
}

export interface ChunkRecord {
  readonly sessionId: SessionId;
  readonly chunkId: ChunkId;
  readonly index: LeafIndex;
  readonly blobId: string;
  /** BLAKE3 of the stored blob, 32 bytes. */
  readonly blobBlake3: Uint8Array;
  readonly originalBytes: number;
  readonly compressedBytes: number;
  readonly storedBytes: number;
  readonly codec: "none" | "zstd" | "lz4" | "brotli";
  readonly level: number;
  readonly encryptionFormat: 1;
  readonly keyVersion: number;
  readonly kekVersion: number;
  readonly keyCommit: Uint8Array;
  readonly plainMac: Uint8Array;
  readonly hashAlgorithm: HashAlgorithm;
  readonly leafHash: LeafHash;
  readonly recordedAt?: string;
  /** Canonical JSON text of the job's `metadata`. */
  readonly metadata?: string;
  readonly committedAt: Date;
  readonly eventId: string;
  readonly eventState: EventState;
}
