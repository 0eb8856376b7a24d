import type { KeyRing } from "../core/encrypt/kek.ts";
import { LucidError } from "../core/errors.ts";
import { leafIndex, type SessionId } from "../core/ids.ts";
import type { SealedSession } from "../core/manifest/manifest.ts";
import { checkFrontier, frontiersEqual, rootOf } from "../core/merkle/frontier.ts";
import { isHashAlgorithm, treeHasher } from "../core/merkle/hash.ts";
import { sealedSession } from "../schema/manifest.ts";
import type { ChunkRecord, SessionRecord, SessionTotals } from "../schema/record.ts";
import { ChunkCheck, type ChunksOutcome, unreadableReason } from "./fsck-chunks.ts";
import { CLOSING_PATIENCE_MS, ClosingCheck, ManifestWitness } from "./fsck-closing.ts";
import {
  type Finding,
  Findings,
  type NewFinding,
  type Place,
  type Severity,
  type Worst,
} from "./fsck-findings.ts";
import { same, TreeCheck, type TileFault, type TreeVerdict } from "./fsck-tree.ts";
import { OpeningKeys } from "./opening-keys.ts";
import type {
  BlobEntry,
  BlobPresence,
  BlobStore,
  ChunkStore,
  Clock,
  KernelThreads,
  ManifestFiles,
  ManifestStore,
  SessionListing,
  SessionStore,
  TileRepair,
  TileStore,
} from "./ports.ts";
import { isBeyondEnd } from "./seal-session.ts";
import { missingRanges } from "./sweep.ts";
import type { ManifestFolder } from "./verify-session.ts";

const SESSIONS_PER_PAGE = 200;
const BLOBS_PER_PAGE = 500;
/** Committed chunks beyond the tree that are looked at. */
const BEYOND_MAX = 1_000;
/** Sessions and blobs that are looked at a second time; more say nothing new. */
const SUSPECTS_MAX = 1_000;
/** What a worker is just about to do, it does within this time; what stays as it is has been left. */
const SETTLE_MS = 2_000;

export interface FsckPorts {
  readonly sessions: SessionStore & SessionListing;
  readonly chunks: ChunkStore;
  readonly blobs: BlobStore & BlobPresence;
  readonly tiles: TileStore & TileRepair;
  readonly manifests: ManifestStore;
  /** The manifest directory; absent where it isn't mounted. */
  readonly folder: ManifestFolder | undefined;
  /** Writes to the manifest directory; used by a repair only. */
  readonly files: ManifestFiles | undefined;
  /** Opens blobs; absent without a KEK. */
  readonly opening: { readonly threads: KernelThreads; readonly keyRing: KeyRing } | undefined;
  readonly clock: Clock;
}

export interface FsckOptions {
  /** Reads every blob: length and BLAKE3, and opens it if the ports can. Otherwise only that it is there. */
  readonly data: boolean;
  /** Writes what the committed documents give, and nothing else. */
  readonly repair: boolean;
  /** Ed25519 public keys, 32 bytes each, that manifests and checkpoints are signed with. */
  readonly pinnedKeys: readonly Uint8Array[];
  /** Age from which a pending event is a warning. */
  readonly eventPendingMs: number;
  /** For how long a chunk may be missing while later ones, or the announced count, wait for it. */
  readonly gapAlertMs: number;
  /** Age from which the sweeper removes an orphan blob. */
  readonly orphanBlobMs: number;
  /** Told where it is: chunks of `total` that are through. */
  readonly onProgress?: (session: SessionId, chunks: number, total: number) => void;
  readonly signal: AbortSignal;
}

export interface FsckReport {
  /** Checked, also those that have no document of their own. */
  readonly sessions: number;
  readonly chunks: number;
  readonly blobs: "present" | "hashed" | "opened";
  readonly findings: readonly Finding[];
  /** Found and not listed, because there are too many. */
  readonly omitted: number;
  /** Of all findings; one that was repaired counts as a warning. */
  readonly worst: Worst;
}

/**
 * Holds what is stored against itself: blobs, chunk documents, leaves, tiles, root, checkpoint, manifest, anchor, then blobs
 * that belong to nothing. Of one session or, in pages, of all. Reads only, unless it repairs, and never changes a chunk, a blob or a tree head.
 *
 * No false alarm while workers write: of each session the document is read first, and what it counts is complete and stays;
 * what is beyond it is normal. States that pass by themselves are looked at twice.
 *
 * Memory: a tile's width of documents, eight blobs, 10 000 findings. Throws STORE_UNAVAILABLE at once, as whoever waits for
 * the answer wants to know; SESSION_UNKNOWN if nothing at all is stored of the session.
 */
export async function fsck(ports: FsckPorts, options: FsckOptions, session?: SessionId): Promise<FsckReport> {
  return new Fsck(ports, options).run(session);
}

/** A state that a worker should have left by the second look. */
interface Suspect {
  readonly session: SessionRecord;
  readonly kind: "count-unconfirmed" | "seal-pending" | "tree-behind";
  readonly problem: string;
}

class Fsck {
  readonly #ports: FsckPorts;
  readonly #options: FsckOptions;
  readonly #findings = new Findings();
  readonly #suspects: Suspect[] = [];
  readonly #orphans: BlobEntry[] = [];
  #sessions = 0;
  #chunks = 0;
  #hasUnpinned = false;

  constructor(ports: FsckPorts, options: FsckOptions) {
    this.#ports = ports;
    this.#options = options;
  }

  async run(session: SessionId | undefined): Promise<FsckReport> {
    if (session === undefined) await this.#checkAll();
    else await this.#checkNamed(session);
    await this.#lookAgain();
    this.#reportLimits();
    const { data } = this.#options;
    return {
      sessions: this.#sessions,
      chunks: this.#chunks,
      blobs: !data ? "present" : this.#ports.opening === undefined ? "hashed" : "opened",
      findings: this.#findings.sorted(),
      omitted: this.#findings.omitted,
      worst: this.#findings.worst,
    };
  }

  async #checkAll(): Promise<void> {
    for (let after: SessionId | undefined; ; ) {
      const page = await this.#ports.sessions.ids(after, SESSIONS_PER_PAGE);
      for (const id of page) await this.#checkSession(id);
      after = page.at(-1);
      if (after === undefined) break;
    }
    await this.#checkBlobOwners(undefined);
  }

  async #checkNamed(id: SessionId): Promise<void> {
    const isThere = await this.#checkSession(id);
    const hasBlobs = await this.#checkBlobOwners(id);
    if (isThere || hasBlobs) return;
    if (await this.#hasChunks(id)) {
      this.#sessionMissing(id, "there are chunk documents of it, and no document of the session");
      return;
    }
    throw new LucidError("SESSION_UNKNOWN", "there is no session of that id in this database");
  }

  /** False if there is no document of it. */
  async #checkSession(id: SessionId): Promise<boolean> {
    this.#options.signal.throwIfAborted();
    let session: SessionRecord | undefined;
    try {
      session = await this.#ports.sessions.find(id);
    } catch (thrown) {
      this.#sessions += 1;
      const problem = unreadableReason(thrown);
      this.#findings.add({ kind: "session-unreadable", session: id, place: { what: "session" }, problem });
      return true;
    }
    if (session === undefined) return false;
    this.#sessions += 1;
    await new SessionCheck(this.#ports, this.#options, this.#findings, session, {
      suspect: (suspect) => {
        if (this.#suspects.length < SUSPECTS_MAX) this.#suspects.push(suspect);
      },
      unpinned: () => {
        this.#hasUnpinned = true;
      },
      chunksRead: (count) => {
        this.#chunks += count;
      },
    }).run();
    return true;
  }

  // ---- blobs that belong to nothing ------------------------------------------------------------------------

  /** All blobs, or those of one session: ids begin with the session's. True if there are any. */
  async #checkBlobOwners(only: SessionId | undefined): Promise<boolean> {
    let found = false;
    let owner:
      | { readonly id: SessionId; readonly session: SessionRecord | "unreadable" | undefined }
      | undefined;
    for (let after = only === undefined ? undefined : `${only}:`; ; ) {
      this.#options.signal.throwIfAborted();
      const page = await this.#ports.blobs.page(after, BLOBS_PER_PAGE);
      for (const entry of page) {
        const { sessionId } = entry.owner;
        if (only !== undefined && sessionId !== only) return found;
        found = true;
        if (owner?.id !== sessionId) {
          owner = { id: sessionId, session: await this.#ownerOf(sessionId) };
          if (owner.session === undefined) {
            this.#sessionMissing(sessionId, "there are blobs of it, and no document of the session");
          }
        }
        if (entry.committedBlobId === entry.id || typeof owner.session !== "object") continue;
        this.#orphan(entry, owner.session);
      }
      after = page.at(-1)?.id;
      if (after === undefined) return found;
    }
  }

  async #ownerOf(id: SessionId): Promise<SessionRecord | "unreadable" | undefined> {
    try {
      return await this.#ports.sessions.find(id);
    } catch (thrown) {
      unreadableReason(thrown);
      return "unreadable";
    }
  }

  async #hasChunks(id: SessionId): Promise<boolean> {
    try {
      return (await this.#ports.chunks.beyond(id, 0, 1)).length > 0;
    } catch (thrown) {
      unreadableReason(thrown);
      return true;
    }
  }

  #sessionMissing(session: SessionId, problem: string): void {
    this.#findings.add({ kind: "session-missing", session, place: { what: "session" }, problem });
  }

  #orphan(entry: BlobEntry, session: SessionRecord): void {
    const isOfLostChunk = entry.committedBlobId === undefined && entry.owner.index < session.tree.size;
    if (isOfLostChunk) {
      this.#orphanFound(entry, {
        problem: "the document of its chunk is gone, so that the sweeper takes it for an orphan",
        action:
          "stop the workers before they have seen it for ORPHAN_BLOB_SECONDS, and restore the chunk's document: " +
          "their sweeper would remove what may be the only copy",
      });
    } else if (this.#isYoungOrphan(session)) {
      this.#orphanFound(entry, { severity: "info" });
    } else if (this.#orphans.length < SUSPECTS_MAX) this.#orphans.push(entry);
  }

  /**
   * Blobs have no time of their own. While the session is open, a worker that is about to commit the chunk may own it; and nothing
   * is written for a sealed one, so the blob is old when the seal is.
   */
  #isYoungOrphan({ state, sealedAt }: SessionRecord): boolean {
    if (state === "open" || sealedAt === undefined) return state === "open";
    return this.#ports.clock.now().getTime() - sealedAt.getTime() < this.#options.orphanBlobMs;
  }

  #orphanFound(
    { id, owner }: BlobEntry,
    facts: Partial<Pick<NewFinding, "problem" | "severity" | "action">> = {},
  ): void {
    this.#findings.add({
      kind: "blob-orphan",
      session: owner.sessionId,
      place: { what: "blob", id, index: owner.index },
      problem: "no chunk document names it",
      ...facts,
    });
  }

  // ---- the second look -------------------------------------------------------------------------------------

  async #lookAgain(): Promise<void> {
    if (this.#suspects.length === 0 && this.#orphans.length === 0) return;
    const { sessions, blobs, clock } = this.#ports;
    const { signal } = this.#options;
    await clock.sleep(SETTLE_MS, signal);
    signal.throwIfAborted();
    for (const { session, kind, problem } of this.#suspects) {
      const now = await sessions.find(session.id);
      if (now?.version !== session.version) continue;
      this.#findings.add({ kind, session: session.id, place: { what: "session" }, problem });
    }
    const present = await blobs.existing(this.#orphans.map(({ id }) => id));
    for (const orphan of this.#orphans) {
      if (!present.has(orphan.id)) continue;
      if (!(await this.#isCommitted(orphan))) this.#orphanFound(orphan);
    }
  }

  async #isCommitted({ id, owner }: BlobEntry): Promise<boolean> {
    try {
      return (await this.#ports.chunks.find(owner.sessionId, owner.index))?.blobId === id;
    } catch (thrown) {
      unreadableReason(thrown);
      return false;
    }
  }

  /** What this run could not look at. */
  #reportLimits(): void {
    const place = { what: "run" } as const;
    if (this.#hasUnpinned) {
      const problem = "signatures were checked with the keys that the manifests name, not with pinned ones";
      this.#findings.add({ kind: "signatures-unpinned", session: undefined, place, problem });
    }
    if (this.#ports.folder === undefined) {
      const problem = "there is no manifest directory here: the files were not checked";
      this.#findings.add({ kind: "files-unchecked", session: undefined, place, problem });
    }
  }
}

interface SessionCheckCalls {
  suspect(suspect: Suspect): void;
  unpinned(): void;
  chunksRead(count: number): void;
}

/** One session, in the order of the chain of trust: each check may rely on those before it. */
class SessionCheck {
  readonly #ports: FsckPorts;
  readonly #options: FsckOptions;
  readonly #findings: Findings;
  readonly #session: SessionRecord;
  readonly #calls: SessionCheckCalls;

  constructor(
    ports: FsckPorts,
    options: FsckOptions,
    findings: Findings,
    session: SessionRecord,
    calls: SessionCheckCalls,
  ) {
    this.#ports = ports;
    this.#options = options;
    this.#findings = findings;
    this.#session = session;
    this.#calls = calls;
  }

  async run(): Promise<void> {
    const sealed = this.#checkRecord();
    if (!this.#isFrontierSound()) return;
    const witness = sealed === undefined ? undefined : new ManifestWitness(sealed, this.#ports.folder);
    try {
      const tree = new TreeCheck(this.#ports.tiles, this.#session);
      const chunks = await this.#checkChunks(tree, witness);
      this.#calls.chunksRead(chunks.read);
      const verdict = await tree.finish();
      await this.#checkBeyond();
      await this.#checkTree(verdict, chunks);
      const closing = this.#closingCheck(chunks, verdict);
      if (sealed === undefined || witness === undefined) closing.checkOpen();
      else if (await closing.checkSealed(sealed, witness)) this.#calls.unpinned();
    } finally {
      await witness?.close();
    }
  }

  // ---- the session's document ------------------------------------------------------------------------------

  /** What a manifest takes from it, if it is sealed and says all that. */
  #checkRecord(): SealedSession | undefined {
    const session = this.#session;
    const fault = inconsistencyOf(session);
    if (fault !== undefined) this.#sessionFinding("session-inconsistent", fault);
    this.#checkProgress();
    if (session.state === "open") return undefined;
    try {
      return sealedSession(session);
    } catch {
      if (fault === undefined) {
        this.#sessionFinding("session-inconsistent", "it is sealed, and lacks what its manifest is made of");
      }
      return undefined;
    }
  }

  #checkProgress(): void {
    const { state, expectedCount, countConfirmed, tree, sealedEvent, anchoredEvent, anchor, closed } =
      this.#session;
    if (state === "open") {
      if (expectedCount === undefined) return;
      const problem = countConfirmed
        ? "all chunks are in the tree, and it is not sealed"
        : "its chunk count is proposed, and neither confirmed nor withdrawn";
      const kind = countConfirmed ? "seal-pending" : "count-unconfirmed";
      if (!countConfirmed || tree.size >= expectedCount) {
        this.#calls.suspect({ session: this.#session, kind, problem });
      }
      return;
    }
    const isYoung = this.#sealedForMs() < this.#options.eventPendingMs;
    if (sealedEvent === "pending") this.#pending("sealed-event-pending", "session.sealed", isYoung);
    if (anchoredEvent === "pending") this.#pending("anchored-event-pending", "session.anchored", isYoung);
    const left =
      sealedEvent === "pending" || (state === "sealed" ? anchor !== undefined : anchoredEvent !== "sent");
    if (closed && left) {
      this.#sessionFinding("closed-too-early", "it is closed, and its events or its anchor are not done");
    } else if (!closed && !left) {
      const problem = "it is announced, and not closed: what follows the seal is not done";
      const isUnderWay = this.#sealedForMs() < CLOSING_PATIENCE_MS;
      this.#sessionFinding("closing-pending", problem, isUnderWay ? "info" : undefined);
    }
  }

  #pending(kind: NewFinding["kind"], event: string, isYoung: boolean): void {
    this.#sessionFinding(kind, `its ${event} is not marked as sent`, isYoung ? "info" : undefined);
  }

  /** False if the tree head is none: then there is no size to check up to. */
  #isFrontierSound(): boolean {
    const { tree, hashAlgorithm } = this.#session;
    const problem = headFault(tree, hashAlgorithm);
    if (problem === undefined) return true;
    this.#add({ kind: "frontier-wrong", place: { what: "tree head" }, problem });
    // With a size there is still everything below it to be checked.
    return Number.isSafeInteger(tree.size) && tree.size >= 0 && isHashAlgorithm(hashAlgorithm);
  }

  // ---- chunks ----------------------------------------------------------------------------------------------

  #checkChunks(tree: TreeCheck, witness: ManifestWitness | undefined): Promise<ChunksOutcome> {
    const { opening } = this.#ports;
    const { data, eventPendingMs, onProgress, signal } = this.#options;
    const session = this.#session;
    return new ChunkCheck(
      this.#ports,
      session,
      { tree, witness, findings: this.#findings },
      {
        blobs: data ? "data" : "presence",
        opening:
          opening === undefined
            ? undefined
            : { threads: opening.threads, keys: new OpeningKeys(opening.threads, opening.keyRing, session) },
        eventPendingMs,
        onProgress: (chunks) => onProgress?.(session.id, chunks, session.tree.size),
        signal,
      },
    ).run();
  }

  /** Committed, and not in the tree: on their way, or after the end. */
  async #checkBeyond(): Promise<void> {
    const { chunks, clock } = this.#ports;
    const session = this.#session;
    const { size } = session.tree;
    let later: readonly ChunkRecord[];
    try {
      later = await chunks.beyond(session.id, size, BEYOND_MAX);
    } catch (thrown) {
      const problem = `a document at or after this one: ${unreadableReason(thrown)}`;
      this.#add({ kind: "chunk-unreadable", place: { what: "chunk", index: size }, problem });
      return;
    }
    const waiting = later.filter(({ index }) => !isBeyondEnd(session, index));
    for (const chunk of later) {
      if (!isBeyondEnd(session, chunk.index)) continue;
      const ageMs = clock.now().getTime() - chunk.committedAt.getTime();
      this.#checkAfterEnd(chunk.index, chunk.eventState === "sent", ageMs < this.#options.eventPendingMs);
    }
    const [first] = waiting;
    const last = waiting.at(-1);
    if (await this.#checkGap(waiting)) return;
    if (first === undefined || last === undefined) return;
    const isNext = Number(first.index) === size;
    const count = waiting.length === BEYOND_MAX ? `${BEYOND_MAX} or more` : String(waiting.length);
    const one = waiting.length === 1;
    const problem = isNext
      ? `${count} committed ${one ? "chunk is" : "chunks are"} not in the tree yet`
      : `${count} committed ${one ? "chunk waits" : "chunks wait"} for chunk ${size}`;
    this.#add({
      kind: "chunks-in-flight",
      place: { what: "chunk", index: first.index, last: last.index },
      problem,
    });
    if (isNext && session.state === "open") {
      this.#calls.suspect({
        session,
        kind: "tree-behind",
        problem: `chunk ${size} is committed, and not in the tree`,
      });
    }
  }

  /** True if chunks have been missing before later ones for so long that nobody is bringing them any more, which is told. */
  async #checkGap(waiting: readonly ChunkRecord[]): Promise<boolean> {
    const { state, tree, expectedCount } = this.#session;
    const missing = missingRanges(tree.size, waiting, expectedCount);
    const [gap] = missing;
    if (state !== "open" || gap === undefined) return false;
    const [index, last] = gap;
    const place = { what: "chunk", index, ...(last === index ? {} : { last }) } as const;
    const behind = waiting.filter((chunk) => chunk.index > index);
    if (behind.length === 0) {
      await this.#checkAnnounced(place, waiting);
      return false;
    }
    const committedMs = behind.map(({ committedAt }) => committedAt.getTime());
    const waitMs = this.#ageMs(Math.min(...committedMs));
    if (waitMs < this.#options.gapAlertMs) return false;
    const wait = behind.length === 1 ? "1 committed chunk waits" : `${behind.length} committed chunks wait`;
    const ranges = missing.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
    this.#add({
      kind: "chunks-awaited",
      place,
      problem: `missing: ${ranges}; ${wait} behind, for ${Math.floor(waitMs / 1000)} s`,
    });
    return true;
  }

  /** Chunks at the end that the count says are to come: with none before them in sight, only the count tells of them. */
  async #checkAnnounced(place: Place, waiting: readonly ChunkRecord[]): Promise<void> {
    const { tree, expectedCount, countConfirmed, createdAt } = this.#session;
    // Not until then is it a count: #checkProgress tells that it isn't confirmed.
    if (!countConfirmed) return;
    const newest = [...waiting, await this.#lastLeaf()].map((chunk) => chunk?.committedAt.getTime() ?? 0);
    const waitMs = this.#ageMs(Math.max(createdAt.getTime(), ...newest));
    const there = `${tree.size + waiting.length} of the ${expectedCount} chunks that were announced are there`;
    this.#add({
      kind: "chunks-announced",
      place,
      problem: `not there yet: ${there}, and none has come for ${Math.floor(waitMs / 1000)} s`,
      ...(waitMs < this.#options.gapAlertMs ? { severity: "info" } : {}),
    });
  }

  /** If it can be read: what is wrong with it is told elsewhere. */
  async #lastLeaf(): Promise<ChunkRecord | undefined> {
    const { id, tree } = this.#session;
    if (tree.size === 0) return undefined;
    try {
      return await this.#ports.chunks.find(id, leafIndex(tree.size - 1));
    } catch (thrown) {
      unreadableReason(thrown);
      return undefined;
    }
  }

  #ageMs(timeMs: number): number {
    return this.#ports.clock.now().getTime() - timeMs;
  }

  #checkAfterEnd(index: number, isAnnounced: boolean, isYoung: boolean): void {
    const place = { what: "chunk", index } as const;
    if (isAnnounced) {
      const problem = "it was announced, and the session's end leaves it out";
      this.#add({ kind: "chunk-beyond-end", place, problem });
      return;
    }
    this.#add({
      kind: "chunk-beyond-end",
      place,
      problem: "it came after the session's end",
      severity: isYoung ? "info" : "warning",
      action: "let a worker run: its sweeper takes the chunk back",
    });
  }

  // ---- tree ------------------------------------------------------------------------------------------------

  async #checkTree(verdict: TreeVerdict, { totals, read, damaged }: ChunksOutcome): Promise<void> {
    const session = this.#session;
    for (const index of verdict.leafFaults) {
      if (damaged.has(index)) continue;
      const problem = "its document has another leaf hash than the tile";
      this.#add({ kind: "leaf-not-in-tree", place: { what: "chunk", index }, problem });
    }
    for (const fault of verdict.tileFaults) await this.#tileFault(fault, verdict);
    const place = { what: "tree head" } as const;
    const isWhole = read === session.tree.size && damaged.size === 0;
    if (isWhole && verdict.rootIsOf === "documents" && !equalTotals(totals, session.totals)) {
      const problem = "original_bytes or stored_bytes are not the sums over its chunks";
      this.#add({ kind: "totals-wrong", place, problem });
    }
    this.#checkRoot(verdict);
  }

  #checkRoot({ rootIsOf, frontier }: TreeVerdict): void {
    const { tree, hashAlgorithm } = this.#session;
    const place = { what: "tree head" } as const;
    if (rootIsOf === "unknown") {
      const problem = "the root can't be computed: a leaf is missing in documents and tiles";
      this.#add({ kind: "root-unchecked", place, problem });
      return;
    }
    if (rootIsOf === "neither") {
      const problem = "the leaves make another root than the tree head says; see the chunks above, if any";
      this.#add({ kind: "root-wrong", place, problem });
    }
    if (headFault(tree, hashAlgorithm) !== undefined || frontier === undefined) return;
    const stored = checkFrontier(tree.size, tree.frontier);
    if (rootIsOf !== "neither" && !frontiersEqual(stored, frontier)) {
      this.#add({ kind: "frontier-wrong", place, problem: "its frontier is not that of its leaves" });
    }
  }

  /** Rewritten only if the leaves it is made of make the root that the tree head says. */
  async #tileFault({ kind, level, n, right, stored }: TileFault, { rootIsOf }: TreeVerdict): Promise<void> {
    const isProven = rootIsOf === "documents" || rootIsOf === "others";
    const canRepair = right !== undefined && isProven;
    const repaired =
      this.#options.repair && canRepair && (await this.#writeTile(right, stored))
        ? `written again from the chunk documents, ${right.width} hashes`
        : undefined;
    const problem = {
      "tile-missing": "it is not there",
      "tile-narrow": "it has fewer hashes than the tree size needs",
      "tile-wrong": "its hashes are not those of the leaves",
    }[kind];
    this.#add({
      kind,
      place: { what: "tile", level, n },
      problem,
      ...(repaired === undefined ? {} : { repaired }),
      ...(canRepair ? {} : { action: "mend the chunks and the root first; the tile follows from them" }),
    });
  }

  /** False if a worker has written it meanwhile. */
  async #writeTile(right: NonNullable<TileFault["right"]>, stored: Uint8Array | undefined): Promise<boolean> {
    const { tiles } = this.#ports;
    const { id, state } = this.#session;
    if (stored === undefined) {
      await tiles.write(id, [right]);
      return true;
    }
    // What is wider than this head needs was written by a worker that is ahead of it: its hashes are not ours to drop.
    if (state === "open" && stored.byteLength > right.hashes.byteLength) return false;
    return (await tiles.replace(id, right, stored)) === "replaced";
  }

  // ---- what follows the root -------------------------------------------------------------------------------

  #closingCheck(chunks: ChunksOutcome, tree: TreeVerdict): ClosingCheck {
    const { repair, pinnedKeys } = this.#options;
    return new ClosingCheck(
      { ...this.#ports, repairFiles: repair ? this.#ports.files : undefined },
      this.#findings,
      { session: this.#session, chunks, tree, sealedForMs: this.#sealedForMs() },
      pinnedKeys,
    );
  }

  #sealedForMs(): number {
    const { sealedAt } = this.#session;
    return sealedAt === undefined ? 0 : this.#ports.clock.now().getTime() - sealedAt.getTime();
  }

  #sessionFinding(kind: NewFinding["kind"], problem: string, severity?: Severity): void {
    this.#add({ kind, place: { what: "session" }, problem, ...(severity === undefined ? {} : { severity }) });
  }

  #add(finding: Omit<NewFinding, "session">): void {
    this.#findings.add({ ...finding, session: this.#session.id });
  }
}

/** The first thing in which a session's document contradicts itself. One document is one write: no worker explains it. */
function inconsistencyOf(session: SessionRecord): string | undefined {
  const { state, tree, expectedCount, countConfirmed, sealedAt, sealedEvent, anchor, anchoredEvent } =
    session;
  if (!["open", "sealed", "anchored"].includes(state)) return "its state is unknown";
  if (countConfirmed && expectedCount === undefined) return "its count is confirmed, and there is none";
  if (countConfirmed && expectedCount !== undefined && tree.size > expectedCount)
    return `its tree has more chunks than the ${expectedCount} that were confirmed`;
  if (state === "open") {
    const isAhead =
      sealedAt !== undefined || sealedEvent !== undefined || anchor !== undefined || session.closed;
    return isAhead ? "it is open, and has what only a sealed session has" : undefined;
  }
  if (!countConfirmed || expectedCount !== tree.size)
    return `it is ${state} with ${tree.size} chunks, and its confirmed count is ${countConfirmed ? expectedCount : "none"}`;
  if (sealedAt === undefined || sealedEvent === undefined || tree.root === undefined)
    return "it is sealed without time, event or root";
  const isConfirmed = anchor?.status === "confirmed" && anchor.anchoredAt !== undefined;
  if (state === "anchored" && (!isConfirmed || anchoredEvent === undefined))
    return "it is anchored without a confirmed anchor or an event";
  if (state === "sealed" && (anchor?.status === "confirmed" || anchoredEvent !== undefined))
    return "its anchor is confirmed, and it is not anchored";
  return undefined;
}

/** What is wrong with a tree head by itself. */
function headFault(
  tree: SessionRecord["tree"],
  hashAlgorithm: SessionRecord["hashAlgorithm"],
): string | undefined {
  if (!isHashAlgorithm(hashAlgorithm)) return "its hash algorithm is unknown";
  try {
    const frontier = checkFrontier(tree.size, tree.frontier);
    const root = frontier.size === 0 ? undefined : rootOf(frontier, treeHasher(hashAlgorithm));
    return same(root, tree.root) ? undefined : "its root is not that of its frontier";
  } catch (thrown) {
    return thrown instanceof LucidError ? thrown.message : "its frontier can't be read";
  }
}

function equalTotals(left: SessionTotals, right: SessionTotals): boolean {
  return left.originalBytes === right.originalBytes && left.storedBytes === right.storedBytes;
}
