import { toHex } from "../core/bytes.ts";
import { errorCodeOf } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import type { AnchorClaims } from "./anchor-session.ts";
import type { Closing } from "./close-session.ts";
import { chunkCompletedEvent, sessionGapEvent } from "./event-messages.ts";
import { FirstSeen } from "./first-seen.ts";
import type { OnePerSession } from "./integrate.ts";
import type {
  BlobEntry,
  BlobStore,
  Clock,
  Listed,
  RandomBytes,
  ServiceStateStore,
  TileStore,
} from "./ports.ts";
import { signedCheckpoint } from "./sign-checkpoint.ts";
import { withdrawChunk } from "./process-chunk.ts";
import { type RelayPorts, relayNow } from "./relay-events.ts";
import { inLanes } from "./lanes.ts";
import { isBeyondEnd } from "./seal-session.ts";
import type { SessionDirectory } from "./session-directory.ts";

/** What one sweep looks at, at most; the rest is the next sweep's. */
const EVENTS_PER_PAGE = 1_000;
const EVENTS_PER_SWEEP_MAX = 50_000;
/** Of `eventPendingMs`. An event that was committed so long ago, by the wall clock, waits no longer. */
const OVERDUE_FACTOR = 2;
/** Sessions of one page that are worked on at the same time. */
const SESSION_LANES = 16;
const SESSIONS_PER_PAGE = 200;
const SESSIONS_PER_SWEEP_MAX = 2_000;
const BLOBS_PER_PAGE = 500;
const BLOBS_PER_SWEEP_MAX = 10_000;
/** Indexes beyond the first missing one that a gap report looks at, and ranges that it names. */
const GAP_WINDOW_CHUNKS = 1_000;
const GAP_RANGES_MAX = 100;
const MARKER_BYTES = 16;
/** Of `eventPendingMs`: later than this after it was sent no command of a worker reaches the store. */
const LATE_FACTOR = 2;
/** Marks that can be that late are younger than this, also where the clocks of two machines are two hours apart. */
const LATE_MARKS_MS = 3 * 3_600_000;

export interface SweepPorts extends RelayPorts {
  readonly blobs: BlobStore;
  readonly clock: Clock;
  readonly directory: SessionDirectory;
  readonly tiles: TileStore;
  readonly advance: OnePerSession;
  /** closeSession, at most once per session at a time. */
  readonly close: OnePerSession;
  readonly closing: Closing;
  readonly claims: AnchorClaims;
  readonly serviceState: ServiceStateStore;
  readonly random: RandomBytes;
  readonly limits: SweepLimits;
}

export interface SweepLimits {
  readonly eventPendingMs: number;
  /** How far back a subscriber may still wait for an event. */
  readonly eventRetentionMs: number;
  readonly gapAlertMs: number;
  readonly orphanBlobMs: number;
  /** 0: checkpoints are signed at the seal only. */
  readonly checkpointIntervalMs: number;
}

interface Outbox {
  pending: number;
  oldestMs: number;
  /** Event ids whose age this process measures itself. */
  readonly young: Set<string>;
}

function emptyOutbox(): Outbox {
  return { pending: 0, oldestMs: 0, young: new Set() };
}

/**
 * The repairs that need no job: a Redis that lost everything, or a worker that died between commit and event, leave
 * nothing behind that these don't find. Every replica runs them; their effects are idempotent.
 */
export class Sweeper {
  readonly #ports: SweepPorts;
  readonly #pendingEvents: FirstSeen;
  readonly #gaps: FirstSeen;
  readonly #orphans: FirstSeen;
  readonly #checkpoints: FirstSeen;
  readonly #unanchored: FirstSeen;
  readonly #losses: FirstSeen;
  /** Where the last sweep of pending events stopped, and what it has seen since it began at the first one. */
  #eventCursor: string | undefined;
  #outbox: Outbox = emptyOutbox();
  /** Sessions whose events could not go out: not tried again, event by event, in this pass over the pending ones. */
  #skippedInPass = new Set<SessionId>();
  /** Sessions that were reported as stuck in this pass. */
  #stuckInPass = new Set<SessionId>();
  /** Where the last blob sweep stopped. */
  #blobCursor: string | undefined;
  #sessionCursor: SessionId | undefined;
  /** Seen since the sweep last began at the first one; what isn't among them in the end has left the watched state. */
  #orphansOfPass = new Set<string>();
  #sessionsOfPass = new Set<SessionId>();
  /** Sealed, and without their anchor though an engine is configured. */
  #unanchoredOfPass = new Set<SessionId>();

  constructor(ports: SweepPorts) {
    this.#ports = ports;
    this.#pendingEvents = new FirstSeen(ports.clock);
    this.#gaps = new FirstSeen(ports.clock);
    this.#orphans = new FirstSeen(ports.clock);
    this.#checkpoints = new FirstSeen(ports.clock);
    this.#unanchored = new FirstSeen(ports.clock);
    this.#losses = new FirstSeen(ports.clock);
  }

  async sweep(signal: AbortSignal): Promise<void> {
    await this.sweepPendingEvents(signal);
    await this.sweepSessions(signal);
    await this.sweepOrphanBlobs(signal);
  }

  /** Re-adds events that have been pending for too long, and takes back chunks that came after the end. */
  async sweepPendingEvents(signal: AbortSignal): Promise<void> {
    const { chunks, patience, observer } = this.#ports;
    await this.#reopenAfterLoss(signal);
    let published = 0;
    for (let seen = 0; seen < EVENTS_PER_SWEEP_MAX; ) {
      const page = await patience("chunks.pending", signal, () =>
        chunks.withPendingEvent(this.#eventCursor, EVENTS_PER_PAGE),
      );
      published += await this.#republishPage(page, signal);
      seen += page.length;
      this.#eventCursor = page.length < EVENTS_PER_PAGE ? undefined : page.at(-1)?.id;
      if (this.#eventCursor === undefined) {
        this.#endEventPass();
        break;
      }
    }
    if (published > 0) observer.report({ kind: "events-swept", count: published });
  }

  /** Of a whole pass: one that a sweep doesn't finish, after Redis has lost a day's events, is no lower number. */
  #endEventPass(): void {
    const { pending, oldestMs, young } = this.#outbox;
    this.#pendingEvents.keepOnly(young);
    this.#ports.observer.report({ kind: "outbox", pending, oldestSeconds: oldestMs / 1000 });
    this.#outbox = emptyOutbox();
    this.#skippedInPass = new Set();
    this.#stuckInPass = new Set();
  }

  /** How many were published. Sessions side by side, so that none waits for those before it. */
  async #republishPage(page: readonly Listed<ChunkRecord>[], signal: AbortSignal): Promise<number> {
    const due = new Map<SessionId, ChunkRecord[]>();
    for (const listed of page) {
      this.#outbox.pending += 1;
      const chunk = await this.#readable(listed, signal);
      if (chunk === undefined || !this.#isDue(chunk)) continue;
      const ofSession = due.get(chunk.sessionId);
      if (ofSession === undefined) due.set(chunk.sessionId, [chunk]);
      else ofSession.push(chunk);
    }
    let published = 0;
    await inLanes([...due], SESSION_LANES, async ([session, chunks]) => {
      if (this.#skippedInPass.has(session)) return;
      const goesOn = await this.#unlessStuck(session, signal, async () => {
        published += await this.#republish(session, chunks, signal);
      });
      if (!goesOn) this.#skippedInPass.add(session);
    });
    return published;
  }

  /** `undefined` for a document that can't be read, which its session is then stuck with. */
  async #readable<Document>(listed: Listed<Document>, signal: AbortSignal): Promise<Document | undefined> {
    let document: Document | undefined;
    await this.#unlessStuck(listed.sessionId, signal, async () => {
      document = listed.read();
    });
    return document;
  }

  /**
   * By this process' own clock. Beside it the wall clock says what is long overdue, such as everything that Redis has lost:
   * that needs no memory of when it was seen first. If it is wrong, an event is added twice, or later.
   */
  #isDue({ eventId, committedAt }: ChunkRecord): boolean {
    const { clock, limits } = this.#ports;
    const wallAgeMs = clock.now().getTime() - committedAt.getTime();
    const isOverdue = wallAgeMs >= OVERDUE_FACTOR * limits.eventPendingMs;
    if (!isOverdue) this.#outbox.young.add(eventId);
    const ageMs = isOverdue ? wallAgeMs : this.#pendingEvents.ageMs(eventId);
    this.#outbox.oldestMs = Math.max(this.#outbox.oldestMs, ageMs);
    return ageMs >= limits.eventPendingMs;
  }

  async #republish(id: SessionId, pending: readonly ChunkRecord[], signal: AbortSignal): Promise<number> {
    const { advance } = this.#ports;
    const chunks = pending.filter(({ eventId }) => !this.#ports.marks.isUnderWay(eventId));
    if (chunks.length === 0) return 0;
    // As in the write path, a proposed count is settled before the event: none may leave out what has been announced.
    const session = await advance.request(id);
    const outcomes = await Promise.all(
      chunks.map((chunk) =>
        isBeyondEnd(session, chunk.index)
          ? withdrawChunk(this.#ports, chunk, signal)
          : this.#republishChunk(chunk, signal),
      ),
    );
    return outcomes.filter((outcome) => outcome === "published").length;
  }

  async #republishChunk(chunk: ChunkRecord, signal: AbortSignal): Promise<"published"> {
    const { patience, events, observer, marks } = this.#ports;
    const { eventId } = chunk;
    const seen = marks.seen();
    await patience("events.publish", signal, () => events.publish(chunkCompletedEvent(chunk)));
    marks.add(eventId, { kind: "chunk", chunk }, seen);
    observer.report({ kind: "event-relayed", type: "chunk.completed", eventId, swept: true });
    return "published";
  }

  /**
   * A Redis that was emptied (FLUSHALL) or replaced has lost events that were marked `sent` and that nobody had consumed.
   * Its marker is gone then, and differs from the one in the store. All events that a consumer may still wait for become
   * `pending` again; consumers drop what they know. Redis' marker first: if Redis is emptied once more while we are at it,
   * the one that we then write to the store isn't in Redis, and the next sweep sees it. The store's last: a crash in
   * between, or another worker at it, repeats a harmless step.
   */
  async #reopenAfterLoss(signal: AbortSignal): Promise<void> {
    const { patience, events, serviceState, random, marks, limits } = this.#ports;
    const known = await patience("state.redis", signal, () => serviceState.redis());
    const inRedis = await patience("events.marker", signal, () => events.marker());
    if (known !== undefined && known.marker === inRedis) {
      marks.remember(inRedis);
      if (!known.isSettled) await this.#settleLoss(inRedis, signal);
      return;
    }
    // A new one for each try: a command that was given up and comes late must not restore a marker that was lost.
    const marker = await patience("events.claim", signal, () =>
      events.claimMarker(toHex(random(MARKER_BYTES))),
    );
    // Dies here: the store's marker is still the old one, and the next sweep begins anew.
    // Without one in the store nothing has ever been marked: no mark is written while Redis' marker isn't known.
    if (known !== undefined) await this.#reopenEvents(limits.eventRetentionMs, signal);
    const outcome = await patience("state.redis", signal, () =>
      serviceState.replaceRedis(known?.marker, { marker, isSettled: known === undefined }),
    );
    // A conflict: somebody was faster, and Redis may have been emptied since. The next sweep looks.
    if (outcome === "replaced") marks.remember(marker);
  }

  /**
   * A mark that was under way when Redis was emptied may have reached the store after the events were made `pending`, and
   * its worker may not live to take it back. So the young ones are looked at once more, when no command is that late.
   */
  async #settleLoss(marker: string, signal: AbortSignal): Promise<void> {
    const { patience, serviceState, limits } = this.#ports;
    if (this.#losses.ageMs("redis", marker) < LATE_FACTOR * limits.eventPendingMs) return;
    await this.#reopenEvents(Math.min(LATE_MARKS_MS, limits.eventRetentionMs), signal);
    await patience("state.redis", signal, () =>
      serviceState.replaceRedis(marker, { marker, isSettled: true }),
    );
    this.#losses.forget("redis");
  }

  /** Of that age. Session by session: one command for all of them may never end in time. */
  async #reopenEvents(ageMaxMs: number, signal: AbortSignal): Promise<void> {
    const { patience, chunks, sessions, clock, observer } = this.#ports;
    const since = new Date(clock.now().getTime() - ageMaxMs);
    let reopened = 0;
    for (let after: SessionId | undefined; ; ) {
      const page = await patience("sessions.active", signal, () =>
        sessions.activeSince(since, after, SESSIONS_PER_PAGE),
      );
      await inLanes(page, SESSION_LANES, async (id) => {
        reopened += await patience("chunks.reopen", signal, () => chunks.reopenEvents(id, since));
        reopened += await patience("sessions.reopen", signal, () => sessions.reopenEvents(id));
      });
      after = page.at(-1);
      if (page.length < SESSIONS_PER_PAGE) break;
    }
    observer.report({ kind: "redis-lost-data", reopened });
  }

  /** One session that can't go on must not keep the others from it. False: it could not. */
  async #unlessStuck(session: SessionId, signal: AbortSignal, work: () => Promise<void>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (thrown) {
      if (signal.aborted) throw thrown;
      if (!this.#stuckInPass.has(session)) {
        this.#stuckInPass.add(session);
        this.#ports.observer.report({ kind: "session-stuck", sessionId: session, code: errorCodeOf(thrown) });
      }
      return false;
    }
  }

  /** Grows, seals, announces and closes what was left half done, and reports gaps. */
  async sweepSessions(signal: AbortSignal): Promise<void> {
    const { patience, sessions } = this.#ports;
    for (let seen = 0; seen < SESSIONS_PER_SWEEP_MAX; ) {
      const page = await patience("sessions.unfinished", signal, () =>
        sessions.unfinished(this.#sessionCursor, SESSIONS_PER_PAGE),
      );
      for (const { sessionId } of page) this.#sessionsOfPass.add(sessionId);
      // Side by side: a blockchain engine may take its time over each.
      await inLanes(page, SESSION_LANES, async (listed) => {
        await this.#unlessStuck(listed.sessionId, signal, () => this.#advance(listed.read(), signal));
      });
      seen += page.length;
      this.#sessionCursor = page.length < SESSIONS_PER_PAGE ? undefined : page.at(-1)?.sessionId;
      if (this.#sessionCursor === undefined) {
        this.#endSessionPass();
        return;
      }
    }
  }

  #endSessionPass(): void {
    // Another worker may have closed a session that was watched here: it would stay in memory for good.
    this.#gaps.keepOnly(this.#sessionsOfPass);
    this.#checkpoints.keepOnly(this.#sessionsOfPass);
    this.#ports.claims.keepOnly(this.#sessionsOfPass);
    this.#sessionsOfPass = new Set();
    if (this.#anchors) this.#reportUnanchored();
  }

  /** Of a whole pass: a page's count would jump with every page. */
  #reportUnanchored(): void {
    const sessions = this.#unanchoredOfPass;
    this.#unanchored.keepOnly(sessions);
    const ages = [...sessions].map((session) => this.#unanchored.ageMs(session));
    const oldestSeconds = ages.reduce((oldest, ageMs) => Math.max(oldest, ageMs), 0) / 1000;
    this.#ports.observer.report({ kind: "unanchored", sessions: sessions.size, oldestSeconds });
    this.#unanchoredOfPass = new Set();
  }

  /** Without a signing key there is no manifest, and nothing to anchor. */
  get #anchors(): boolean {
    const { engine, signingKey } = this.#ports.closing;
    return engine !== undefined && signingKey !== undefined;
  }

  async #advance(session: SessionRecord, signal: AbortSignal): Promise<void> {
    const { advance, close, directory } = this.#ports;
    // Nothing of a sealed session is left to advance; asking would only close it twice.
    const advanced = session.state === "open" ? await advance.request(session.id) : session;
    directory.remember(advanced);
    if (advanced.state === "open") {
      await this.#signCheckpointIfDue(advanced, signal);
      await this.#reportGap(advanced, signal);
      return;
    }
    this.#gaps.forget(session.id);
    this.#checkpoints.forget(session.id);
    if (this.#anchors && advanced.state === "sealed") {
      this.#unanchoredOfPass.add(session.id);
      // Its age begins here, and not at the end of the pass.
      this.#unanchored.ageMs(session.id);
    }
    const closed = await close.request(session.id);
    if (closed.state === "anchored") this.#unanchoredOfPass.delete(session.id);
  }

  /** For open sessions, CHECKPOINT_INTERVAL after the tree has outgrown the last signed one. */
  async #signCheckpointIfDue(session: SessionRecord, signal: AbortSignal): Promise<void> {
    const { closing, limits } = this.#ports;
    const signedSize = session.checkpoint?.size ?? 0;
    if (closing.signingKey === undefined || limits.checkpointIntervalMs === 0) return;
    if (session.tree.size <= signedSize) return;
    if (this.#checkpoints.ageMs(session.id, String(signedSize)) < limits.checkpointIntervalMs) return;
    await signedCheckpoint({ ...this.#ports, signingKey: closing.signingKey }, session, signal);
  }

  async #reportGap(session: SessionRecord, signal: AbortSignal): Promise<void> {
    const { chunks, patience, observer, limits, clock } = this.#ports;
    const { size } = session.tree;
    const later = await patience("chunks.beyond", signal, () =>
      chunks.beyond(session.id, size, GAP_WINDOW_CHUNKS),
    );
    const missing = missingRanges(size, later, session.expectedCount);
    const first = missing[0];
    if (first === undefined) {
      this.#gaps.forget(session.id);
      return;
    }
    // A gap that has moved on to another index is a new one.
    if (this.#gaps.ageMs(session.id, String(first[0])) < limits.gapAlertMs) return;
    await relayNow(this.#ports, sessionGapEvent(session.id, size, missing, clock.now()), signal);
    observer.report({
      kind: "session-gap",
      sessionId: session.id,
      first: first[0],
      missing: countOf(missing),
    });
  }

  /**
   * A leaf whose chunk document is gone has nothing left but its blob, with which fsck and a backup may yet repair it. Which
   * of an index's blobs it is, only the document said.
   */
  async #withoutLeaf(orphans: readonly BlobEntry[], signal: AbortSignal): Promise<readonly BlobEntry[]> {
    const { patience, sessions } = this.#ports;
    const suspects = orphans.filter(({ committedBlobId }) => committedBlobId === undefined);
    const sizes = new Map<SessionId, number>();
    for (const id of new Set(suspects.map(({ owner }) => owner.sessionId))) {
      await this.#unlessStuck(id, signal, async () => {
        // One that can't be read keeps all of its blobs.
        sizes.set(id, Number.POSITIVE_INFINITY);
        const session = await patience("sessions.find", signal, () => sessions.find(id));
        sizes.set(id, session?.tree.size ?? 0);
      });
    }
    return orphans.filter(
      ({ committedBlobId, owner }) =>
        committedBlobId !== undefined || owner.index >= (sizes.get(owner.sessionId) ?? 0),
    );
  }

  /**
   * Removes blobs that no chunk document names. Only after `orphanBlobMs`: an attempt stops being able to commit its
   * blob well before that (ChunkLimits.attemptAgeMaxMs), so nothing can name the blob any more.
   */
  async sweepOrphanBlobs(signal: AbortSignal): Promise<void> {
    const { blobs, patience, observer, limits } = this.#ports;
    let removed = 0;
    for (let seen = 0; seen < BLOBS_PER_SWEEP_MAX; ) {
      const page = await patience("blobs.page", signal, () => blobs.page(this.#blobCursor, BLOBS_PER_PAGE));
      const orphans = page.filter((blob) => blob.committedBlobId !== blob.id);
      for (const blob of orphans) this.#orphansOfPass.add(blob.id);
      const aged = orphans.filter((blob) => this.#orphans.ageMs(blob.id) >= limits.orphanBlobMs);
      const overdue = await this.#withoutLeaf(aged, signal);
      if (overdue.length > 0) {
        await patience("blobs.remove", signal, () => blobs.remove(overdue.map((blob) => blob.id)));
        for (const blob of overdue) this.#orphans.forget(blob.id);
        removed += overdue.length;
      }
      seen += page.length;
      // Only an empty page is the end: the store passes over ids that no worker wrote.
      this.#blobCursor = page.at(-1)?.id;
      if (this.#blobCursor === undefined) {
        // Most blobs without a document get one a moment later: they would stay in memory for good.
        this.#orphans.keepOnly(this.#orphansOfPass);
        this.#orphansOfPass = new Set();
        break;
      }
    }
    if (removed > 0) observer.report({ kind: "blobs-swept", removed });
  }
}

/** Closed ranges absent before the last of `later` (or before the announced end), lowest first. */
export function missingRanges(
  size: number,
  later: readonly ChunkRecord[],
  expectedCount: number | undefined,
): readonly (readonly [number, number])[] {
  const ranges: (readonly [number, number])[] = [];
  let next = size;
  for (const { index } of later) {
    if (index > next) ranges.push([next, index - 1]);
    next = index + 1;
    if (ranges.length === GAP_RANGES_MAX) return ranges;
  }
  // A full window says nothing about what follows it.
  const end = later.length < GAP_WINDOW_CHUNKS ? (expectedCount ?? 0) : 0;
  if (end > next) ranges.push([next, end - 1]);
  return ranges;
}

function countOf(ranges: readonly (readonly [number, number])[]): number {
  return ranges.reduce((total, [first, last]) => total + (last - first + 1), 0);
}
