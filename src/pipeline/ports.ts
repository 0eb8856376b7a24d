import type { ErrorCode } from "../core/errors.ts";
import type { ManifestType } from "../core/manifest/names.ts";
import type { OpenedChunk, OpenRequest, SealedChunk, SealRequest } from "../core/kernel.ts";
import type { ChunkId, LeafHash, LeafIndex, NodeHash, SessionId, TreeSize } from "../core/ids.ts";
import type { LucidEvent } from "../schema/event.ts";
import type { PayloadRef } from "../schema/job.ts";
import type { ManifestRecord, ManifestStatus } from "../schema/manifest.ts";
import type {
  ChunkRecord,
  FinalizeDetails,
  SessionRecord,
  SignedCheckpoint,
  TreeHead,
  WrappedSecret,
} from "../schema/record.ts";

/*
 * The pipeline's surroundings. Every port exists twice: over the real servers (src/adapters) and in memory
 * (test/support/memory), and one conformance suite holds both to the words below.
 *
 * All calls of a store may fail with STORE_UNAVAILABLE, of a queue or a Redis payload with QUEUE_UNAVAILABLE.
 * That means: not known whether it happened. The pipeline then waits and asks again (patience.ts), so every
 * write here is one that may be applied twice without a second effect.
 *
 * A read of a store sees at least what this process has written and read before, in whichever store. Of two processes that
 * each write and then look for the other's write, at least one sees it.
 */

/** Session documents. Calls for one session are linearizable; a returned write is durable (majority, journal). */
export interface SessionStore {
  find(session: SessionId): Promise<SessionRecord | undefined>;
  /** Inserts an open, empty session, or returns the one that was first. */
  create(session: NewSession): Promise<SessionRecord>;
  /** Applies `change` if the document still has `version`, and raises it; never overwrites, never retries. */
  replace(session: SessionId, version: number, change: SessionChange): Promise<"replaced" | "conflict">;
  /**
   * Makes the `sent` events of a sealed session `pending` again, and opens it for the sweep; how many events. Raises its
   * version also when they are `pending`: a mark that is under way meets a conflict.
   */
  reopenEvents(session: SessionId): Promise<number>;
  /** Ids of sessions, in order, after `after`, that aren't closed, or were sealed or anchored since then. */
  activeSince(since: Date, after: SessionId | undefined, limit: number): Promise<readonly SessionId[]>;
  /** Sessions that are not closed, ordered by id, after `after`. */
  unfinished(after: SessionId | undefined, limit: number): Promise<readonly Listed<SessionRecord>[]>;
}

/** A document of a page that holds those of many sessions: one that can't be read must not end the page. */
export interface Listed<Document> {
  /** The page after it begins here. */
  readonly id: string;
  readonly sessionId: SessionId;
  /** Throws DOCUMENT_UNREADABLE. */
  read(): Document;
}

/** What only an audit, and the check of the key ring, ask of the session store. */
export interface SessionListing {
  /** Ids of all sessions, in order, after `after`; also of those whose documents can't be read. */
  ids(after: SessionId | undefined, limit: number): Promise<readonly SessionId[]>;
  /** Those that were made last, newest first as far as the database keeps that order; also unreadable ones. */
  newest(limit: number): Promise<readonly SessionId[]>;
}

export interface NewSession {
  readonly id: SessionId;
  readonly hashAlgorithm: "blake3" | "sha256";
  readonly key: WrappedSecret;
  readonly createdAt: Date;
}

export type SessionChange =
  | {
      readonly kind: "grow";
      readonly tree: TreeHead;
      readonly addedOriginalBytes: number;
      readonly addedStoredBytes: number;
    }
  /** Sets roomCounted, for good. */
  | { readonly kind: "count-room" }
  /** Sets expectedCount, not confirmed. */
  | { readonly kind: "propose-count"; readonly count: number; readonly finalize: FinalizeDetails }
  | { readonly kind: "confirm-count" }
  /** Removes expectedCount and finalize again. */
  | { readonly kind: "withdraw-count" }
  | { readonly kind: "seal"; readonly at: Date }
  | { readonly kind: "sealed-event-sent" }
  | { readonly kind: "checkpoint"; readonly checkpoint: SignedCheckpoint }
  | { readonly kind: "anchor-claimed"; readonly claim: string }
  | { readonly kind: "anchor-submitted"; readonly anchoringId: string | undefined }
  /** sealed → anchored, with the event pending. */
  | {
      readonly kind: "anchored";
      readonly transaction: string | undefined;
      readonly block: number | undefined;
      readonly at: Date;
    }
  | { readonly kind: "anchored-event-sent" }
  | { readonly kind: "closed" };

/** Committed chunks. Insert-only but for the event's state; a returned insert is durable. */
export interface ChunkStore {
  find(session: SessionId, index: LeafIndex): Promise<ChunkRecord | undefined>;
  /** The commit point. `index-taken`: a chunk of this index exists; `id-taken`: its chunk id has another index. */
  insert(chunk: ChunkRecord): Promise<"inserted" | "index-taken" | "id-taken">;
  /** Committed leaves from `from`, in order, without a gap, at most `limit`; ends before the first absent one. */
  contiguousLeaves(session: SessionId, from: LeafIndex, limit: number): Promise<readonly CommittedLeaf[]>;
  /** Committed chunks with index ≥ `from`, lowest first. */
  beyond(session: SessionId, from: number, limit: number): Promise<readonly ChunkRecord[]>;
  /** Sum of `originalBytes` of the committed chunks with index ≥ `from`; costs as much as there are. */
  originalBytesFrom(session: SessionId, from: number): Promise<number>;
  /** Chunks whose event is `pending`, ordered by document id, after `after`. */
  withPendingEvent(after: string | undefined, limit: number): Promise<readonly Listed<ChunkRecord>[]>;
  /** Makes the events of a session's chunks that were marked `sent` since then `pending` again; how many. */
  reopenEvents(session: SessionId, since: Date): Promise<number>;
  /** Marks the events of these chunks `sent`, at that time. */
  markSent(chunks: readonly ChunkKey[], at: Date): Promise<void>;
  /** Removes a chunk that never became a leaf; only if its blob is still `blobId`. */
  withdraw(chunk: ChunkKey, blobId: string): Promise<void>;
}

export interface ChunkKey {
  readonly sessionId: SessionId;
  readonly index: LeafIndex;
}

export interface CommittedLeaf {
  readonly index: LeafIndex;
  readonly leafHash: LeafHash;
  readonly originalBytes: number;
  readonly storedBytes: number;
}

/** Facts of the installation, not of a session. */
export interface ServiceStateStore {
  /** The Redis that the `sent` marks are about; absent before the first start. */
  redis(): Promise<KnownRedis | undefined>;
  /** Only if what is known is still that of `before`'s marker; `undefined`: if nothing is known yet. */
  replaceRedis(before: string | undefined, known: KnownRedis): Promise<"replaced" | "conflict">;
  /** The check values of KEKs (kek-check.ts) by version. */
  kekChecks(): Promise<ReadonlyMap<number, string>>;
  /** Sets `candidate` if this version has none. */
  claimKekCheck(version: number, candidate: string): Promise<void>;
  /** Sets `check`, whatever is there: an operator's decision. */
  replaceKekCheck(version: number, check: string): Promise<void>;
}

export interface KnownRedis {
  readonly marker: string;
  /** False while the loss that this marker came after may not be repaired to the end. */
  readonly isSettled: boolean;
}

/** Sealed bytes under ids of one attempt each, written once. */
export interface BlobStore {
  /**
   * Durable when it returns; the store then holds no more of `blob`, which is as it was and the caller's to release. The same
   * id again is taken as the same attempt's retry.
   */
  insert(id: string, owner: ChunkKey, blob: Uint8Array): Promise<void>;
  read(id: string): Promise<Uint8Array | undefined>;
  remove(ids: readonly string[]): Promise<void>;
  /** Ids in order, after `after`; with the chunk each was written for. */
  page(after: string | undefined, limit: number): Promise<readonly BlobEntry[]>;
}

/** What only an audit asks of the blob store. */
export interface BlobPresence {
  /** Those of `ids` under which a blob is stored; no blob is read for it. */
  existing(ids: readonly string[]): Promise<ReadonlySet<string>>;
}

export interface BlobEntry {
  readonly id: string;
  readonly owner: ChunkKey;
  /** The blob id of the committed chunk at that index, if there is one. */
  readonly committedBlobId: string | undefined;
}

/** 256-wide tiles of node hashes. A narrower tile never replaces a wider one. */
export interface TileStore {
  read(session: SessionId, level: number, n: number): Promise<Uint8Array | undefined>;
  write(session: SessionId, tiles: readonly TileRecord[]): Promise<void>;
}

/** What only a repair does to the tile store. */
export interface TileRepair {
  /** Puts `tile` in the place of one whose hashes are exactly `wrong`, in one step; `conflict`: it has others, or is gone. */
  replace(session: SessionId, tile: TileRecord, wrong: Uint8Array): Promise<"replaced" | "conflict">;
}

export interface TileRecord {
  readonly level: number;
  readonly n: number;
  /** 1 … 256 */
  readonly width: number;
  /** width × 32 bytes */
  readonly hashes: Uint8Array;
}

/** Signed manifests. A text, once published, stays: of two workers that seal together, one writes it. */
export interface ManifestStore {
  find(id: string): Promise<ManifestRecord | undefined>;
  /** Sets the status, and with `error` its reason. `generated` and `anchored` are never taken back. */
  mark(manifest: ManifestKey, status: ManifestStatus, reason?: string): Promise<void>;
  /** Stores the text unless there is one, and returns the one that is there. */
  publish(manifest: ManifestKey, text: string): Promise<string>;
}

export interface ManifestKey {
  readonly id: string;
  readonly sessionId: SessionId;
  readonly type: ManifestType;
}

/** The manifest directory: files appear whole or not at all. Fails with MANIFEST_DIRECTORY_UNUSABLE. */
export interface ManifestFiles {
  /** Durable when it returns. `differs`: a file of that name has other bytes, and stays. */
  write(
    name: string,
    content: Uint8Array | AsyncIterable<Uint8Array>,
  ): Promise<"written" | "identical" | "differs">;
}

/** Raw chunk bytes that a producer left for us. */
export interface PayloadStore {
  /** At most `bytesMax` + 1 bytes are read; absent → undefined. Refuses a reference outside the session. */
  read(session: SessionId, ref: PayloadRef, bytesMax: number): Promise<Uint8Array | undefined>;
  remove(session: SessionId, ref: PayloadRef): Promise<void>;
}

/** The event queues, one per subscriber. */
export interface EventPublisher {
  /** Raised each time the connection to Redis is lost: what was added before may be gone with Redis' last second. */
  readonly epoch: number;
  /**
   * The marker that says which data Redis has: sets `candidate` if there is none, and returns the one that is there then.
   * A Redis that was emptied or replaced has none, or another.
   */
  claimMarker(candidate: string): Promise<string>;
  /** The marker, if there is one. */
  marker(): Promise<string | undefined>;
  /** Adds the event to every queue under its id; an id that is there already stays as it is. */
  publish(event: LucidEvent): Promise<void>;
}

/** The pure kernel, off the event loop. */
export interface KernelThreads {
  seal(request: SealRequest, signal: AbortSignal): Promise<SealedChunk>;
  open(request: OpenRequest, signal: AbortSignal): Promise<OpenedChunk>;
  /** PBKDF2-HMAC-SHA256 of contract §7, 32 bytes. */
  deriveKey(password: string, salt: Uint8Array): Promise<Uint8Array>;
}

export interface Clock {
  now(): Date;
  /** Milliseconds that never step back; the only base for ages and time-outs. */
  monotonicMs(): number;
  /** Ends early, without an error, when the signal fires. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

/** Cryptographically strong random bytes. */
export type RandomBytes = (length: number) => Uint8Array;

/** What the pipeline tells its operators; telemetry turns it into log lines and metrics. */
export interface Observer {
  report(event: PipelineEvent): void;
}

export type Stage =
  | "read"
  | "digest"
  | "compress"
  | "seal"
  | "verify"
  | "hash"
  | "store"
  | "integrate"
  | "relay";

export type PipelineEvent =
  | { readonly kind: "stage"; readonly stage: Stage; readonly seconds: number }
  | { readonly kind: "chunk-committed"; readonly chunk: ChunkRecord; readonly seconds: number }
  | {
      readonly kind: "chunk-adopted";
      readonly sessionId: SessionId;
      readonly index: LeafIndex;
      readonly codec: ChunkRecord["codec"];
    }
  | { readonly kind: "chunk-withdrawn"; readonly sessionId: SessionId; readonly index: LeafIndex }
  | {
      readonly kind: "tree-grown";
      readonly sessionId: SessionId;
      readonly size: TreeSize;
      readonly added: number;
    }
  | { readonly kind: "tree-conflict"; readonly sessionId: SessionId }
  | { readonly kind: "session-created"; readonly sessionId: SessionId }
  | {
      readonly kind: "session-sealed";
      readonly sessionId: SessionId;
      readonly size: TreeSize;
      readonly root: NodeHash;
    }
  | {
      readonly kind: "session-gap";
      readonly sessionId: SessionId;
      readonly first: number;
      readonly missing: number;
    }
  | { readonly kind: "session-stuck"; readonly sessionId: SessionId; readonly code: ErrorCode }
  | { readonly kind: "epoch-started"; readonly sessionId: SessionId; readonly keyVersion: number }
  | {
      readonly kind: "event-relayed";
      readonly type: LucidEvent["type"];
      readonly eventId: string;
      readonly swept: boolean;
    }
  | { readonly kind: "manifest-written"; readonly sessionId: SessionId; readonly seconds: number }
  | { readonly kind: "manifest-failed"; readonly sessionId: SessionId; readonly code: ErrorCode }
  | { readonly kind: "checkpoint-signed"; readonly sessionId: SessionId; readonly size: TreeSize }
  | { readonly kind: "session-anchored"; readonly sessionId: SessionId; readonly seconds: number }
  | { readonly kind: "anchor-delayed"; readonly sessionId: SessionId; readonly code: ErrorCode }
  | { readonly kind: "unanchored"; readonly sessions: number; readonly oldestSeconds: number }
  | { readonly kind: "redis-lost-data"; readonly reopened: number }
  | { readonly kind: "payload-left"; readonly sessionId: SessionId; readonly code: ErrorCode }
  | { readonly kind: "mark-lost"; readonly code: ErrorCode }
  | { readonly kind: "outbox"; readonly pending: number; readonly oldestSeconds: number }
  | { readonly kind: "events-swept"; readonly count: number }
  | { readonly kind: "blobs-swept"; readonly removed: number }
  | {
      readonly kind: "waiting";
      readonly operation: string;
      readonly code: ErrorCode;
      readonly seconds: number;
    }
  | {
      readonly kind: "resumed";
      readonly operation: string;
      readonly code: ErrorCode;
      readonly seconds: number;
    };

/** A chunk job whose form has been checked: what process-chunk works on. */
export interface ChunkJob {
  readonly sessionId: SessionId;
  readonly chunkId: ChunkId;
  readonly index: LeafIndex;
  readonly source: ChunkSource;
  readonly declared: {
    readonly sizeBytes?: number;
    readonly blake3?: Uint8Array;
    readonly sha256?: Uint8Array;
  };
  readonly compression: { readonly algorithm: "none" | "zstd" | "lz4" | "brotli"; readonly level: number };
  readonly recordedAt?: string;
  readonly metadata?: string;
}

export type ChunkSource =
  | { readonly kind: "inline"; readonly bytes: Uint8Array }
  /** `declared.sizeBytes` and `declared.blake3` are present with a reference. */
  | { readonly kind: "reference"; readonly ref: PayloadRef };

export interface FinalizeJob {
  readonly sessionId: SessionId;
  readonly chunkCount: number;
  readonly details: FinalizeDetails;
}
