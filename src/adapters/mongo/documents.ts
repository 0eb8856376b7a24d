import type { UpdateFilter } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import type { ChunkId, LeafHash, LeafIndex, NodeHash, SessionId, TreeSize } from "../../core/ids.ts";
import type {
  BlobEntry,
  ChunkKey,
  CommittedLeaf,
  NewSession,
  SessionChange,
  TileRecord,
} from "../../pipeline/ports.ts";
import type {
  AnchorRecord,
  ChunkRecord,
  EventState,
  FinalizeDetails,
  HashAlgorithm,
  SessionRecord,
  SessionState,
  SignedCheckpoint,
  TreeHead,
  WrappedSecret,
} from "../../schema/record.ts";

/*
 * The documents of contract §4 and their records. Bytes are BSON Binary of subtype 0, which is what the driver makes of a
 * Uint8Array. Integers are JavaScript numbers: int32 where they fit, else doubles, exact up to 2^53.
 */

export const COLLECTIONS = {
  sessions: "sessions",
  chunks: "chunks",
  blobs: "chunk_blobs",
  tiles: "merkle_tiles",
  manifests: "manifests",
  serviceState: "service_state",
} as const;

/** The version of the layouts below, in every document: a reader refuses what it doesn't know. */
const DOCUMENT_FORMAT = 1;

export interface SessionDocument {
  readonly _id: string;
  readonly format: number;
  readonly state: SessionState;
  readonly hash_algorithm: HashAlgorithm;
  readonly tree: TreeDocument;
  readonly totals: { readonly original_bytes: number; readonly stored_bytes: number };
  /** Absent in documents that are older than it: false. */
  readonly room_counted?: boolean;
  readonly expected_count: number | null;
  readonly count_confirmed: boolean;
  readonly finalize: FinalizeDocument | null;
  readonly keys: readonly WrappedSecretDocument[];
  readonly created_at: Date;
  readonly sealed_at: Date | null;
  readonly sealed_event: EventState | null;
  readonly checkpoint: CheckpointDocument | null;
  readonly anchor: AnchorDocument | null;
  readonly anchored_event: EventState | null;
  readonly closed: boolean;
}

interface CheckpointDocument {
  readonly size: number;
  readonly root: Uint8Array;
  readonly note: string;
}

interface AnchorDocument {
  readonly status: AnchorRecord["status"];
  readonly claim: string;
  readonly anchoring_id?: string;
  readonly transaction?: string;
  readonly block?: number;
  readonly anchored_at?: Date;
}

interface TreeDocument {
  readonly size: number;
  readonly frontier: readonly Uint8Array[];
  readonly root: Uint8Array | null;
  /** Raised by every change of the document, also by those that leave the tree alone. */
  readonly version: number;
}

interface FinalizeDocument {
  readonly manifest_type: string;
  readonly owner_address?: string;
  readonly started_at?: string;
  readonly ended_at?: string;
  readonly metadata?: string;
}

interface WrappedSecretDocument {
  readonly key_version: number;
  readonly kek_version: number;
  readonly wrapped: Uint8Array;
}

export interface ChunkDocument {
  readonly _id: string;
  readonly format: number;
  readonly session_id: string;
  readonly chunk_id: string;
  readonly chunk_index: number;
  readonly blob_id: string;
  readonly blob_blake3: Uint8Array;
  readonly original_bytes: number;
  readonly compressed_bytes: number;
  readonly stored_bytes: number;
  readonly codec: ChunkRecord["codec"];
  readonly level: number;
  readonly encryption_format: 1;
  readonly key_version: number;
  readonly kek_version: number;
  readonly key_commit: Uint8Array;
  readonly plain_mac: Uint8Array;
  readonly hash_algorithm: HashAlgorithm;
  readonly leaf_hash: Uint8Array;
  readonly recorded_at?: string;
  readonly metadata?: string;
  readonly committed_at: Date;
  readonly event: { readonly id: string; readonly state: EventState; readonly sent_at?: Date };
}

export type LeafDocument = Pick<
  ChunkDocument,
  "_id" | "chunk_index" | "leaf_hash" | "original_bytes" | "stored_bytes"
>;
export const LEAF_PROJECTION = { chunk_index: 1, leaf_hash: 1, original_bytes: 1, stored_bytes: 1 } as const;

export interface BlobDocument {
  readonly _id: string;
  readonly format: number;
  readonly session_id: string;
  readonly chunk_index: number;
  readonly bytes: Uint8Array;
}

export interface TileDocument {
  readonly _id: string;
  readonly format: number;
  readonly session_id: string;
  readonly level: number;
  readonly n: number;
  readonly width: number;
  readonly hashes: Uint8Array;
}

/** `{sid}:{index}` */
export function chunkDocumentId({ sessionId, index }: ChunkKey): string {
  return `${sessionId}:${index}`;
}

/** `{sid}:{level}:{n}` */
export function tileDocumentId(session: SessionId, level: number, n: number): string {
  return `${session}:${level}:${n}`;
}

/** The chunk that a blob id `{sid}:{index}:{attempt}` names; undefined for an id of another form. */
export function blobOwner(id: string): ChunkKey | undefined {
  const parts = /^([A-Za-z0-9][A-Za-z0-9_-]{0,99}):(0|[1-9][0-9]{0,9}):./.exec(id);
  if (parts === null) return undefined;
  return { sessionId: parts[1] as SessionId, index: Number(parts[2]) as LeafIndex };
}

export function newSessionDocument({ id, hashAlgorithm, key, createdAt }: NewSession): SessionDocument {
  return {
    _id: id,
    format: DOCUMENT_FORMAT,
    state: "open",
    hash_algorithm: hashAlgorithm,
    tree: { size: 0, frontier: [], root: null, version: 0 },
    totals: { original_bytes: 0, stored_bytes: 0 },
    room_counted: false,
    expected_count: null,
    count_confirmed: false,
    finalize: null,
    keys: [wrappedSecretDocument(key)],
    created_at: createdAt,
    sealed_at: null,
    sealed_event: null,
    checkpoint: null,
    anchor: null,
    anchored_event: null,
    closed: false,
  };
}

/** Throws DOCUMENT_UNREADABLE. */
export function sessionRecord(document: SessionDocument): SessionRecord {
  return reading(document, sessionFields);
}

function sessionFields(document: SessionDocument): SessionRecord {
  const { tree, totals } = document;
  return {
    id: document._id as SessionId,
    state: document.state,
    hashAlgorithm: document.hash_algorithm,
    version: tree.version,
    tree: {
      size: tree.size as TreeSize,
      frontier: tree.frontier as readonly NodeHash[],
      root: (tree.root ?? undefined) as NodeHash | undefined,
    },
    totals: { originalBytes: totals.original_bytes, storedBytes: totals.stored_bytes },
    roomCounted: document.room_counted ?? false,
    expectedCount: document.expected_count ?? undefined,
    countConfirmed: document.count_confirmed,
    finalize: document.finalize === null ? undefined : finalizeDetails(document.finalize),
    keys: document.keys.map(wrappedSecret),
    createdAt: document.created_at,
    sealedAt: document.sealed_at ?? undefined,
    sealedEvent: document.sealed_event ?? undefined,
    checkpoint: document.checkpoint === null ? undefined : signedCheckpoint(document.checkpoint),
    anchor: document.anchor === null ? undefined : anchorRecord(document.anchor),
    anchoredEvent: document.anchored_event ?? undefined,
    closed: document.closed,
  };
}

/** What a change does to the document; the filter on `tree.version` makes it a compare-and-swap. */
export function sessionUpdate(change: SessionChange): UpdateFilter<SessionDocument> {
  const raised = { "tree.version": 1 };
  switch (change.kind) {
    case "grow":
      return {
        $set: treeFields(change.tree),
        $inc: {
          ...raised,
          "totals.original_bytes": change.addedOriginalBytes,
          "totals.stored_bytes": change.addedStoredBytes,
        },
      };
    case "count-room":
      return { $set: { room_counted: true }, $inc: raised };
    case "propose-count":
      return {
        $set: {
          expected_count: change.count,
          count_confirmed: false,
          finalize: finalizeDocument(change.finalize),
        },
        $inc: raised,
      };
    case "confirm-count":
      return { $set: { count_confirmed: true }, $inc: raised };
    case "withdraw-count":
      return { $set: { expected_count: null, count_confirmed: false, finalize: null }, $inc: raised };
    case "seal":
      return { $set: { state: "sealed", sealed_at: change.at, sealed_event: "pending" }, $inc: raised };
    case "sealed-event-sent":
      return { $set: { sealed_event: "sent" }, $inc: raised };
    case "checkpoint":
      return { $set: { checkpoint: change.checkpoint }, $inc: raised };
    case "anchor-claimed":
      return { $set: { anchor: { status: "claimed", claim: change.claim } }, $inc: raised };
    case "anchor-submitted":
      return {
        $set: {
          "anchor.status": "submitted",
          ...(change.anchoringId === undefined ? {} : { "anchor.anchoring_id": change.anchoringId }),
        },
        $inc: raised,
      };
    case "anchored":
      return {
        $set: {
          state: "anchored",
          anchored_event: "pending",
          "anchor.status": "confirmed",
          "anchor.anchored_at": change.at,
          ...(change.transaction === undefined ? {} : { "anchor.transaction": change.transaction }),
          ...(change.block === undefined ? {} : { "anchor.block": change.block }),
        },
        $inc: raised,
      };
    case "anchored-event-sent":
      return { $set: { anchored_event: "sent" }, $inc: raised };
    case "closed":
      return { $set: { closed: true }, $inc: raised };
  }
}

function signedCheckpoint({ size, root, note }: CheckpointDocument): SignedCheckpoint {
  return { size: size as TreeSize, root: root as NodeHash, note };
}

function anchorRecord(document: AnchorDocument): AnchorRecord {
  const { status, claim, anchoring_id, transaction, block, anchored_at } = document;
  return {
    status,
    claim,
    ...(anchoring_id === undefined ? {} : { anchoringId: anchoring_id }),
    ...(transaction === undefined ? {} : { transaction }),
    ...(block === undefined ? {} : { block }),
    ...(anchored_at === undefined ? {} : { anchoredAt: anchored_at }),
  };
}

export function chunkDocument(chunk: ChunkRecord): ChunkDocument {
  return {
    _id: chunkDocumentId(chunk),
    format: DOCUMENT_FORMAT,
    session_id: chunk.sessionId,
    chunk_id: chunk.chunkId,
    chunk_index: chunk.index,
    blob_id: chunk.blobId,
    blob_blake3: chunk.blobBlake3,
    original_bytes: chunk.originalBytes,
    compressed_bytes: chunk.compressedBytes,
    stored_bytes: chunk.storedBytes,
    codec: chunk.codec,
    level: chunk.level,
    encryption_format: chunk.encryptionFormat,
    key_version: chunk.keyVersion,
    kek_version: chunk.kekVersion,
    key_commit: chunk.keyCommit,
    plain_mac: chunk.plainMac,
    hash_algorithm: chunk.hashAlgorithm,
    leaf_hash: chunk.leafHash,
    ...(chunk.recordedAt === undefined ? {} : { recorded_at: chunk.recordedAt }),
    ...(chunk.metadata === undefined ? {} : { metadata: chunk.metadata }),
    committed_at: chunk.committedAt,
    event: { id: chunk.eventId, state: chunk.eventState },
  };
}

/** Throws DOCUMENT_UNREADABLE. */
export function chunkRecord(document: ChunkDocument): ChunkRecord {
  return reading(document, chunkFields);
}

function chunkFields(document: ChunkDocument): ChunkRecord {
  return {
    sessionId: document.session_id as SessionId,
    chunkId: document.chunk_id as ChunkId,
    index: document.chunk_index as LeafIndex,
    blobId: document.blob_id,
    blobBlake3: document.blob_blake3,
    originalBytes: document.original_bytes,
    compressedBytes: document.compressed_bytes,
    storedBytes: document.stored_bytes,
    codec: document.codec,
    level: document.level,
    encryptionFormat: document.encryption_format,
    keyVersion: document.key_version,
    kekVersion: document.kek_version,
    keyCommit: document.key_commit,
    plainMac: document.plain_mac,
    hashAlgorithm: document.hash_algorithm,
    leafHash: document.leaf_hash as LeafHash,
    ...(document.recorded_at === undefined ? {} : { recordedAt: document.recorded_at }),
    ...(document.metadata === undefined ? {} : { metadata: document.metadata }),
    committedAt: document.committed_at,
    eventId: document.event.id,
    eventState: document.event.state,
  };
}

/** The session of a chunk's document, also of one that can't be read. */
export function sessionOfChunkId(id: string): SessionId {
  return id.slice(0, id.lastIndexOf(":")) as SessionId;
}

export function committedLeaf(document: LeafDocument): CommittedLeaf {
  return {
    index: document.chunk_index as LeafIndex,
    leafHash: document.leaf_hash as LeafHash,
    originalBytes: document.original_bytes,
    storedBytes: document.stored_bytes,
  };
}

/** `bytes` is used as it is; the driver copies it into its own buffer. */
export function blobDocument(id: string, owner: ChunkKey, bytes: Uint8Array): BlobDocument {
  return {
    _id: id,
    format: DOCUMENT_FORMAT,
    session_id: owner.sessionId,
    chunk_index: owner.index,
    bytes,
  };
}

export function blobEntry(id: string, committed: ReadonlyMap<string, string>): BlobEntry | undefined {
  const owner = blobOwner(id);
  if (owner === undefined) return undefined;
  return { id, owner, committedBlobId: committed.get(chunkDocumentId(owner)) };
}

/** The fields of a tile that its id does not say. */
export function tileFields(
  tile: TileRecord,
): Pick<TileDocument, "format" | "level" | "n" | "width" | "hashes"> {
  return { format: DOCUMENT_FORMAT, level: tile.level, n: tile.n, width: tile.width, hashes: tile.hashes };
}

function treeFields(tree: TreeHead): Record<string, unknown> {
  return { "tree.size": tree.size, "tree.frontier": tree.frontier, "tree.root": tree.root ?? null };
}

function finalizeDocument(details: FinalizeDetails): FinalizeDocument {
  return {
    manifest_type: details.manifestType,
    ...(details.ownerAddress === undefined ? {} : { owner_address: details.ownerAddress }),
    ...(details.startedAt === undefined ? {} : { started_at: details.startedAt }),
    ...(details.endedAt === undefined ? {} : { ended_at: details.endedAt }),
    ...(details.metadata === undefined ? {} : { metadata: details.metadata }),
  };
}

function finalizeDetails(document: FinalizeDocument): FinalizeDetails {
  return {
    manifestType: document.manifest_type,
    ...(document.owner_address === undefined ? {} : { ownerAddress: document.owner_address }),
    ...(document.started_at === undefined ? {} : { startedAt: document.started_at }),
    ...(document.ended_at === undefined ? {} : { endedAt: document.ended_at }),
    ...(document.metadata === undefined ? {} : { metadata: document.metadata }),
  };
}

function wrappedSecretDocument(key: WrappedSecret): WrappedSecretDocument {
  return { key_version: key.keyVersion, kek_version: key.kekVersion, wrapped: key.wrapped };
}

function wrappedSecret(document: WrappedSecretDocument): WrappedSecret {
  return { keyVersion: document.key_version, kekVersion: document.kek_version, wrapped: document.wrapped };
}

function reading<Document extends { readonly format: number }, Fields>(
  document: Document,
  fieldsOf: (document: Document) => Fields,
): Fields {
  if (document.format !== DOCUMENT_FORMAT) {
    throw new LucidError(
      "DOCUMENT_UNREADABLE",
      "a document has a format this version doesn't know; run a newer version",
    );
  }
  try {
    return fieldsOf(document);
  } catch (cause) {
    throw new LucidError("DOCUMENT_UNREADABLE", "a field of the document is missing or of another type", {
      cause,
    });
  }
}
