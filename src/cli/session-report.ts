import { toHex } from "../core/bytes.ts";
import { manifestId } from "../core/manifest/names.ts";
import { missingRanges } from "../pipeline/sweep.ts";
import { type ManifestRecord, type ManifestStatus, sealedSession } from "../schema/manifest.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { formatBytes, formatTable, PROGRAM } from "./output.ts";

export interface SessionFacts {
  readonly record: SessionRecord;
  /** Committed chunks beyond the tree of an open session. */
  readonly later: readonly ChunkRecord[];
  readonly manifest: ManifestRecord | undefined;
}

export interface SessionReport {
  readonly json: object;
  readonly text: string;
  /** False if somebody has to send or mend something: chunks are missing, or the manifest can't be written. */
  readonly healthy: boolean;
}

/** The id that the session's manifest has or will have; `undefined` while the session is open. */
export function manifestIdOf(record: SessionRecord): string | undefined {
  if (record.state === "open" || record.tree.root === undefined) return undefined;
  return manifestId(record.id, sealedSession(record).manifestType);
}

/** How far a session is, for programs and for people. */
export function sessionReport(facts: SessionFacts): SessionReport {
  const { record, later } = facts;
  const missing = record.state === "open" ? missingRanges(record.tree.size, later, record.expectedCount) : [];
  const status = manifestStatus(facts);
  return {
    json: reportJson(facts, missing, status),
    text: reportText(facts, missing, status),
    healthy: missing.length === 0 && status !== "error",
  };
}

/** A closed session without a manifest was closed by a worker that has no signing key. */
function manifestStatus({ record, manifest }: SessionFacts): ManifestStatus | undefined {
  if (manifest !== undefined) return manifest.status;
  return record.state === "open" || record.closed ? undefined : "pending";
}

function reportJson(
  { record, later, manifest }: SessionFacts,
  missing: readonly (readonly [number, number])[],
  status: ManifestStatus | undefined,
): object {
  const { tree, totals, checkpoint, anchor } = record;
  return {
    session_id: record.id,
    state: record.state,
    tree_size: tree.size,
    root_hash: tree.root === undefined ? null : toHex(tree.root),
    hash_algorithm: record.hashAlgorithm,
    expected_count: record.expectedCount ?? null,
    count_confirmed: record.countConfirmed,
    waiting_for_gap: later.length,
    missing,
    original_bytes: totals.originalBytes,
    stored_bytes: totals.storedBytes,
    created_at: record.createdAt.toISOString(),
    sealed_at: record.sealedAt?.toISOString() ?? null,
    sealed_event: record.sealedEvent ?? null,
    checkpoint_size: checkpoint?.size ?? null,
    manifest:
      status === undefined
        ? null
        : { id: manifestIdOf(record) ?? null, status, reason: manifest?.reason ?? null },
    anchor:
      anchor === undefined
        ? null
        : {
            status: anchor.status,
            anchoring_id: anchor.anchoringId ?? null,
            transaction: anchor.transaction ?? null,
            block: anchor.block ?? null,
            anchored_at: anchor.anchoredAt?.toISOString() ?? null,
          },
    anchored_event: record.anchoredEvent ?? null,
    closed: record.closed,
    key_versions: record.keys.map(({ keyVersion, kekVersion }) => ({
      key_version: keyVersion,
      kek_version: kekVersion,
    })),
  };
}

function reportText(
  facts: SessionFacts,
  missing: readonly (readonly [number, number])[],
  status: ManifestStatus | undefined,
): string {
  const { record, later } = facts;
  const { tree, totals, checkpoint } = record;
  return formatTable([
    ["session", record.id],
    ["state", record.state],
    ["chunks in tree", `${tree.size}${expectedText(record.expectedCount)}`],
    ["root", tree.root === undefined ? "(empty)" : `${toHex(tree.root)} (${record.hashAlgorithm})`],
    ["bytes", `${formatBytes(totals.originalBytes)}, stored ${formatBytes(totals.storedBytes)}`],
    ["missing", missing.length === 0 ? "none" : missing.map(rangeText).join(", ")],
    ...(missing[0] === undefined ? [] : [["to do", toDo(record, missing[0][0])] as const]),
    ["behind a gap", `${later.length} ${later.length === 1 ? "chunk" : "chunks"}`],
    ["checkpoint", checkpoint === undefined ? "none" : `signed at ${checkpoint.size} chunks`],
    ["manifest", manifestText(facts, status)],
    ["anchor", anchorText(record)],
  ]);
}

/** Chunks that somebody counted and nobody has are the one thing that no worker can mend. */
function toDo({ id, expectedCount, countConfirmed }: SessionRecord, first: number): string {
  const send = `send what is missing, unless it is on its way: ${PROGRAM} enqueue ${id} FILE --first-index ${first}`;
  if (!countConfirmed) return send;
  return `${send}; the count of ${expectedCount} is final: if it is too high, see README, Troubleshooting`;
}

function manifestText({ record, manifest }: SessionFacts, status: ManifestStatus | undefined): string {
  if (status === undefined) return record.closed ? "none: there was no signing key" : "none: not sealed yet";
  return manifest?.reason === undefined ? status : `${status}: ${manifest.reason}`;
}

function anchorText({ anchor }: SessionRecord): string {
  if (anchor === undefined) return "none";
  const { status, transaction, block, anchoringId } = anchor;
  const details = [
    ...(transaction === undefined ? [] : [`transaction ${transaction}`]),
    ...(block === undefined ? [] : [`block ${block}`]),
    ...(anchoringId === undefined ? [] : [`anchoring id ${anchoringId}`]),
  ];
  return details.length === 0 ? status : `${status}: ${details.join(", ")}`;
}

function expectedText(count: number | undefined): string {
  return count === undefined ? " (not finalized)" : ` of ${count}`;
}

/** `chunk 7`, `chunks 7–9`. */
export function rangeText([first, last]: readonly [number, number]): string {
  return first === last ? `chunk ${first}` : `chunks ${first}–${last}`;
}
