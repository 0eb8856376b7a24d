import { bytesEqual, toHex } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import type { NodeHash, SessionId, TreeSize } from "../ids.ts";
import type { HashAlgorithm } from "../merkle/hash.ts";
import type { LeafCodec } from "../merkle/leaf.ts";
import type { ChunksSummary } from "./accumulator.ts";
import { type ManifestType, manifestFileNames, manifestId, sessionTypeOf } from "./names.ts";

/** Contract §9, field by field; the names are the wire's. Digests are lowercase hex. */
export interface UnsignedManifest {
  /** `{session_id}-{session_type}-manifest` */
  readonly manifest_id: string;
  readonly manifest_version: "2.0";
  readonly manifest_type: ManifestType;
  readonly session_metadata: SessionMetadata;
  readonly merkle: {
    readonly hash_algorithm: HashAlgorithm;
    readonly tree_size: number;
    readonly root_hash: string;
  };
  /** Equal to merkle.root_hash, for readers of the older manifests. */
  readonly merkle_root: string;
  readonly chunks_file: {
    /** Beside the manifest. */
    readonly name: string;
    /** Lines. */
    readonly count: number;
    readonly blake3: string;
  };
  /** See ChunksSummary.totalChecksum. */
  readonly total_checksum: string;
  /** The time of the seal, ISO 8601 in UTC with milliseconds, so that every worker writes the same. */
  readonly generated_at: string;
  readonly generated_by: typeof GENERATED_BY;
}

export interface SessionMetadata {
  readonly session_id: string;
  readonly owner_address: string | null;
  /** manifest_type without its `session_`. */
  readonly session_type: string;
  readonly started_at: string | null;
  readonly ended_at: string | null;
  readonly duration_seconds: number | null;
  /** Bytes as recorded, over all chunks. */
  readonly total_size: number;
  readonly chunk_count: number;
  readonly compression_algorithms: readonly LeafCodec[];
  readonly encryption_algorithm: typeof ENCRYPTION_ALGORITHM;
  readonly metadata: JsonObject;
}

export interface Manifest extends UnsignedManifest {
  readonly signature: ManifestSignature;
}

export interface ManifestSignature {
  readonly algorithm: "Ed25519";
  /** See keyIdOf. */
  readonly key_id: string;
  /** Base64 of the 32 bytes. It says which key to look for; whether it is trusted, only pinned keys say. */
  readonly public_key: string;
  /** Base64 of the 64 bytes, over RFC 8785 of the manifest without this field. */
  readonly value: string;
}

/** What JSON.parse gave for an object. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** What a manifest takes from its sealed session. Nothing in it may differ between two workers. */
export interface SealedSession {
  readonly id: SessionId;
  readonly hashAlgorithm: HashAlgorithm;
  readonly treeSize: TreeSize;
  readonly root: NodeHash;
  /** Date.toISOString. */
  readonly sealedAt: string;
  readonly manifestType: ManifestType;
  readonly ownerAddress: string | null;
  readonly startedAt: string | null;
  readonly endedAt: string | null;
  readonly durationSeconds: number | null;
  readonly metadata: JsonObject;
}

export const MANIFEST_VERSION = "2.0";
export const GENERATED_BY = "session-processor";
export const ENCRYPTION_ALGORITHM = "AES-256-GCM";

/**
 * The manifest of a sealed session and the chunks that were read for it: the same for the same two, whoever makes it and
 * when. Throws TREE_CORRUPT unless the chunks make the session's tree.
 */
export function composeManifest(session: SealedSession, chunks: ChunksSummary): UnsignedManifest {
  if (chunks.count !== session.treeSize || !bytesEqual(chunks.root, session.root)) {
    throw new LucidError("TREE_CORRUPT", "the chunks don't make the session's sealed tree; run fsck");
  }
  const root = toHex(session.root);
  return {
    manifest_id: manifestId(session.id, session.manifestType),
    manifest_version: MANIFEST_VERSION,
    manifest_type: session.manifestType,
    session_metadata: {
      session_id: session.id,
      owner_address: session.ownerAddress,
      session_type: sessionTypeOf(session.manifestType),
      started_at: session.startedAt,
      ended_at: session.endedAt,
      duration_seconds: session.durationSeconds,
      total_size: chunks.originalBytes,
      chunk_count: chunks.count,
      compression_algorithms: chunks.codecs,
      encryption_algorithm: ENCRYPTION_ALGORITHM,
      metadata: session.metadata,
    },
    merkle: { hash_algorithm: session.hashAlgorithm, tree_size: session.treeSize, root_hash: root },
    merkle_root: root,
    chunks_file: {
      name: manifestFileNames(session.id, session.manifestType).chunks,
      count: chunks.count,
      blake3: toHex(chunks.chunksFileBlake3),
    },
    total_checksum: toHex(chunks.totalChecksum),
    generated_at: session.sealedAt,
    generated_by: GENERATED_BY,
  };
}

/**
 * The first thing in which fields that say the same differ, in words; `undefined` when none do. Looks at a manifest of
 * the right form.
 */
export function inconsistencyOf(manifest: Manifest): string | undefined {
  const { session_metadata: session, manifest_type: type, merkle, chunks_file: file } = manifest;
  const id = session.session_id as SessionId;
  if (manifest.manifest_id !== manifestId(id, type)) return "manifest_id is not that of the session and type";
  if (session.session_type !== sessionTypeOf(type)) return "session_type is not that of manifest_type";
  if (manifest.merkle_root !== merkle.root_hash) return "merkle_root is not merkle.root_hash";
  if (session.chunk_count !== merkle.tree_size) return "chunk_count is not merkle.tree_size";
  if (file.count !== merkle.tree_size) return "chunks_file.count is not merkle.tree_size";
  if (file.name !== manifestFileNames(id, type).chunks) return "chunks_file.name is not that of the session";
  return undefined;
}
