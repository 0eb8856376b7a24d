import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { JsonObject, SealedSession } from "../core/manifest/manifest.ts";
import { isManifestType, type ManifestType } from "../core/manifest/names.ts";
import type { SessionRecord } from "./record.ts";

/** pending → generating → generated → anchored; `error` from any of the first three, and back by a retry. */
export const MANIFEST_STATUSES = ["pending", "generating", "generated", "anchored", "error"] as const;
export type ManifestStatus = (typeof MANIFEST_STATUSES)[number];

/** A document of `manifests`, contract §4. */
export interface ManifestRecord {
  /** manifestId of session and type; two workers that make it meet here. */
  readonly id: string;
  readonly sessionId: SessionId;
  readonly type: ManifestType;
  readonly status: ManifestStatus;
  /** The signed text, byte for byte that of the file; absent before `generated`. */
  readonly text: string | undefined;
  /** Code and message of the last failure; absent unless `error`. */
  readonly reason: string | undefined;
}

const MANIFEST_TYPE_DEFAULT: ManifestType = "session_recording";

/**
 * What a manifest takes from a session's record, which doesn't change after the seal. Throws TREE_CORRUPT for a record that
 * is no sealed session with leaves.
 */
export function sealedSession(record: SessionRecord): SealedSession {
  const { id, hashAlgorithm, tree, sealedAt, finalize, state } = record;
  if (state === "open" || sealedAt === undefined || tree.root === undefined) {
    throw new LucidError("TREE_CORRUPT", "only a sealed session with chunks has a manifest; run fsck");
  }
  const startedAt = finalize?.startedAt ?? null;
  const endedAt = finalize?.endedAt ?? null;
  return {
    id,
    hashAlgorithm,
    treeSize: tree.size,
    root: tree.root,
    sealedAt: sealedAt.toISOString(),
    manifestType: isManifestType(finalize?.manifestType) ? finalize.manifestType : MANIFEST_TYPE_DEFAULT,
    // Canonical JSON has no lone surrogates. MongoDB replaces them too, so no worker sees another text.
    ownerAddress: finalize?.ownerAddress?.toWellFormed() ?? null,
    startedAt,
    endedAt,
    durationSeconds: durationSeconds(startedAt, endedAt),
    metadata: finalize?.metadata === undefined ? {} : (JSON.parse(finalize.metadata) as JsonObject),
  };
}

/** To the millisecond; null unless both times are known and in order. */
function durationSeconds(startedAt: string | null, endedAt: string | null): number | null {
  if (startedAt === null || endedAt === null) return null;
  const milliseconds = Date.parse(endedAt) - Date.parse(startedAt);
  return milliseconds >= 0 ? milliseconds / 1000 : null;
}
