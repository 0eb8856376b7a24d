import type { SessionId } from "../ids.ts";

export const MANIFEST_TYPES = [
  "session_recording",
  "session_data",
  "session_compression",
  "session_encryption",
  "session_blockchain",
] as const;
export type ManifestType = (typeof MANIFEST_TYPES)[number];

const TYPE_PREFIX = "session_";

export function isManifestType(value: unknown): value is ManifestType {
  return MANIFEST_TYPES.some((type) => type === value);
}

/** `recording`, `data`, …: the type as file names and `session_type` show it. */
export function sessionTypeOf(type: ManifestType): string {
  return type.slice(TYPE_PREFIX.length);
}

/** `{session_id}-{session_type}-manifest`: the same whoever makes the manifest, so that it is its own fence. */
export function manifestId(session: SessionId, type: ManifestType): string {
  return `${session}-${sessionTypeOf(type)}-manifest`;
}

export interface ManifestFileNames {
  readonly manifest: string;
  readonly chunks: string;
  readonly checkpoint: string;
  readonly anchor: string;
}

/**
 * Contract §9: all four share the stem `{session_id}_{session_type}_manifest`. No id has a dot, so what follows the first
 * one tells them apart, and what stands before it names one session and one type.
 */
export function manifestFileNames(session: SessionId, type: ManifestType): ManifestFileNames {
  const stem = `${session}_${sessionTypeOf(type)}_manifest`;
  return {
    manifest: `${stem}.json`,
    chunks: `${stem}.chunks.ndjson`,
    checkpoint: `${stem}.checkpoint`,
    anchor: `${stem}.anchor.json`,
  };
}
