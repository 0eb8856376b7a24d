import type { SessionId } from "../core/ids.ts";

/**
 * - `error`: something is lost, changed or contradicts itself; nothing in the service will mend it.
 * - `warning`: unfinished for longer than it should be; the sweeper of a running worker takes care of it, except of chunks that
 *   somebody has to send.
 * - `info`: what is normal while a session is recorded, or what this run could not look at.
 */
export type Severity = "info" | "warning" | "error";

interface KindFacts {
  readonly severity: Severity;
  /** What to do about it. */
  readonly action: string;
}

const RESTORE_CHUNK =
  "restore the document of this chunk from a backup of `chunks`; what was signed can't be signed anew";
const RESTORE_BLOB =
  "restore this blob from a backup of `chunk_blobs`, or from what storage received with chunk.completed";
const RESTORE_SESSION = "restore the session's document from a backup of `sessions`; never edit a tree head";
const RESTORE_MANIFEST =
  "restore the document from a backup of `manifests`; its text is that of the manifest's file, if `verify` accepts that";
const REBUILD_TILE = "run fsck --repair: the tile is written again from the chunk documents";
const WAIT = "let a worker run: its sweeper finishes it; if it stays, see that worker's log for the session";
const SUSPECT_FILE = "find out what wrote it; move it away, and run fsck --repair to write ours again";

/** The closed set, in the order in which things are checked. */
export const FINDING_KINDS = {
  "session-missing": {
    severity: "error",
    action: "restore the session's document from a backup of `sessions`: it holds the secret of its blobs",
  },
  "session-unreadable": {
    severity: "error",
    action: "run the version that wrote it, or restore the document from a backup of `sessions`",
  },
  "session-inconsistent": { severity: "error", action: RESTORE_SESSION },
  "count-unconfirmed": { severity: "warning", action: WAIT },
  "seal-pending": { severity: "warning", action: WAIT },
  "tree-behind": { severity: "warning", action: WAIT },
  "blob-missing": { severity: "error", action: RESTORE_BLOB },
  "blob-of-another-chunk": { severity: "error", action: RESTORE_CHUNK },
  "blob-length-wrong": { severity: "error", action: RESTORE_BLOB },
  "blob-digest-wrong": { severity: "error", action: RESTORE_BLOB },
  "blob-key-missing": {
    severity: "error",
    action:
      "give the KEK of that version, or restore the session's wrapped secret; without it nobody reads it",
  },
  "blob-does-not-open": { severity: "error", action: RESTORE_BLOB },
  "blob-orphan": {
    severity: "warning",
    action:
      "nothing: the sweeper removes it once it has seen it for ORPHAN_BLOB_SECONDS; fsck never removes blobs",
  },
  "chunk-missing": { severity: "error", action: RESTORE_CHUNK },
  "chunk-unreadable": {
    severity: "error",
    action: "run the version that wrote it, or restore the document from a backup of `chunks`",
  },
  "chunk-misplaced": { severity: "error", action: RESTORE_CHUNK },
  "chunk-fields-wrong": { severity: "error", action: RESTORE_CHUNK },
  "chunk-event-pending": {
    severity: "warning",
    action: "let a worker run: its sweeper publishes the event again; fsck publishes nothing",
  },
  "chunk-beyond-end": { severity: "error", action: "ask the pipeline whether it counted its chunks right" },
  "chunks-in-flight": {
    severity: "info",
    action: "nothing, unless the missing one never comes: `status` shows it",
  },
  "chunks-awaited": {
    severity: "warning",
    action:
      "send them again: `enqueue` with --first-index, or the producer; if their bytes are gone, the session can't be sealed",
  },
  "chunks-announced": {
    severity: "warning",
    action:
      "send what is missing, unless it is on its way: `enqueue` with --first-index, or the producer; if the count is too high, " +
      "see README, Troubleshooting",
  },
  "leaf-hash-wrong": { severity: "error", action: RESTORE_CHUNK },
  "leaf-not-in-tree": { severity: "error", action: RESTORE_CHUNK },
  "tile-missing": { severity: "error", action: REBUILD_TILE },
  "tile-narrow": { severity: "error", action: REBUILD_TILE },
  "tile-wrong": { severity: "error", action: REBUILD_TILE },
  "totals-wrong": { severity: "error", action: RESTORE_SESSION },
  "frontier-wrong": { severity: "error", action: RESTORE_SESSION },
  "root-wrong": {
    severity: "error",
    action:
      "restore what was changed, chunk documents or tree head, from a backup; a root is never changed to fit",
  },
  "root-unchecked": { severity: "error", action: "restore the missing chunk documents, and run fsck again" },
  "checkpoint-missing": { severity: "error", action: RESTORE_SESSION },
  "checkpoint-invalid": {
    severity: "error",
    action:
      "if the signing key was changed, name the earlier public key with --key; else restore the document",
  },
  "checkpoint-wrong": { severity: "error", action: RESTORE_SESSION },
  "manifest-missing": { severity: "error", action: RESTORE_MANIFEST },
  "manifest-pending": { severity: "warning", action: WAIT },
  "manifest-failed": {
    severity: "warning",
    action: "remove the cause; the sweeper then writes the manifest",
  },
  "manifest-invalid": {
    severity: "error",
    action: `if the signing key was changed, name the earlier public key with --key; else ${RESTORE_MANIFEST}`,
  },
  "manifest-differs": {
    severity: "error",
    action: "restore what was changed from a backup; the signed manifest says what it was",
  },
  "manifest-status-wrong": { severity: "error", action: "restore the document from a backup of `manifests`" },
  "file-missing": { severity: "warning", action: "run fsck --repair, or copy the file from a backup" },
  "file-differs": { severity: "error", action: SUSPECT_FILE },
  "anchor-pending": {
    severity: "warning",
    action: "see that the blockchain engine answers; a worker's sweeper asks it for as long as it takes",
  },
  "anchor-differs": {
    severity: "error",
    action: "look up the transaction on the chain, and restore the other side",
  },
  "sealed-event-pending": { severity: "warning", action: WAIT },
  "anchored-event-pending": { severity: "warning", action: WAIT },
  "closing-pending": { severity: "warning", action: WAIT },
  "closed-too-early": {
    severity: "error",
    action: "set `closed` of the session's document to false: the sweeper then does what is left",
  },
  "signatures-unpinned": {
    severity: "info",
    action:
      "set MANIFEST_SIGNING_KEY_FILE or give --key: a key that stands in the manifest itself proves nothing",
  },
  "files-unchecked": { severity: "info", action: "run fsck where LUCID_MANIFEST_PATH is mounted" },
} as const satisfies Record<string, KindFacts>;

export type FindingKind = keyof typeof FINDING_KINDS;

/** What a finding is about, as precisely as it is known. */
export type Place =
  | { readonly what: "session" }
  | { readonly what: "tree head" }
  /** `last` for a run of neighbours. */
  | { readonly what: "chunk"; readonly index: number; readonly last?: number }
  | { readonly what: "blob"; readonly id: string; readonly index: number }
  | { readonly what: "tile"; readonly level: number; readonly n: number }
  | { readonly what: "checkpoint" }
  | { readonly what: "manifest"; readonly id: string }
  | { readonly what: "anchor" }
  /** `line` from 1. */
  | { readonly what: "file"; readonly name: string; readonly line?: number }
  | { readonly what: "run" };

export interface Finding {
  readonly kind: FindingKind;
  readonly severity: Severity;
  /** Absent for what concerns the run as a whole. */
  readonly session: SessionId | undefined;
  readonly place: Place;
  /** What is wrong. */
  readonly problem: string;
  readonly action: string;
  /** What `--repair` did about it. */
  readonly repaired: string | undefined;
}

export interface NewFinding {
  readonly kind: FindingKind;
  readonly session: SessionId | undefined;
  readonly place: Place;
  readonly problem: string;
  /** Milder than its kind: young, or of a session that is still recorded. */
  readonly severity?: Severity;
  readonly action?: string;
  readonly repaired?: string;
}

export type Worst = "clean" | Severity;

/** A session that lost everything must not fill the memory with its chunks. */
const FINDINGS_PER_SESSION_AND_KIND_MAX = 100;
const FINDINGS_MAX = 10_000;

const RANK: Readonly<Record<Worst, number>> = { clean: 0, info: 1, warning: 2, error: 3 };
const KIND_ORDER: ReadonlyMap<string, number> = new Map(
  Object.keys(FINDING_KINDS).map((kind, at) => [kind, at]),
);

function worseOf(left: Worst, right: Worst): Worst {
  return RANK[left] >= RANK[right] ? left : right;
}

/** Collects what is found, within limits; what is over them is counted. */
export class Findings {
  readonly #findings: Finding[] = [];
  /** Of the session that is being checked. */
  readonly #counts = new Map<FindingKind, number>();
  #countedSession: SessionId | undefined;
  #omitted = 0;
  #worst: Worst = "clean";

  add({ kind, session, place, problem, severity, action, repaired }: NewFinding): void {
    const facts = FINDING_KINDS[kind];
    const finding: Finding = {
      kind,
      severity: severity ?? facts.severity,
      session,
      place,
      problem,
      action: action ?? facts.action,
      repaired,
    };
    // Mended, and still worth knowing: something has done this.
    this.#worst = worseOf(this.#worst, repaired === undefined ? finding.severity : "warning");
    if (this.#isRoomFor(finding)) this.#findings.push(finding);
    else this.#omitted += 1;
  }

  #isRoomFor({ kind, session }: Finding): boolean {
    if (session !== this.#countedSession) {
      this.#counts.clear();
      this.#countedSession = session;
    }
    const count = (this.#counts.get(kind) ?? 0) + 1;
    this.#counts.set(kind, count);
    return count <= FINDINGS_PER_SESSION_AND_KIND_MAX && this.#findings.length < FINDINGS_MAX;
  }

  /** By session and then in the order of the checks. */
  sorted(): readonly Finding[] {
    return this.#findings.toSorted(
      (left, right) =>
        compare(left.session ?? "", right.session ?? "") ||
        (KIND_ORDER.get(left.kind) ?? 0) - (KIND_ORDER.get(right.kind) ?? 0),
    );
  }

  /** Found, and not listed. */
  get omitted(): number {
    return this.#omitted;
  }

  get worst(): Worst {
    return this.#worst;
  }
}

function compare(left: string, right: string): number {
  return left === right ? 0 : left < right ? -1 : 1;
}

/** `chunk 7`, `tile 1:0`, `file x_manifest.json, line 3`. */
export function placeText(place: Place): string {
  switch (place.what) {
    case "chunk":
      return place.last === undefined || place.last === place.index
        ? `chunk ${place.index}`
        : `chunks ${place.index}–${place.last}`;
    case "blob":
      return `blob ${place.id} (chunk ${place.index})`;
    case "tile":
      return `tile ${place.level}:${place.n}`;
    case "manifest":
      return `manifest ${place.id}`;
    case "file":
      return place.line === undefined ? `file ${place.name}` : `file ${place.name}, line ${place.line}`;
    case "session":
    case "tree head":
    case "checkpoint":
    case "anchor":
    case "run":
      return place.what;
  }
}
