import { toHex } from "../core/bytes.ts";
import { errorCodeOf } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import type { AnchorClaims } from "./anchor-session.ts";
import type { Closing } from "./close-session.ts";
import { chunkCompletedEvent, sessionGapEvent } from "./event-messages.ts";
import { FirstSeen } from "./first-seen.ts";
import type { OnePerSession } from "./integrate.ts";
import type { BlobStore, Clock, RandomBytes, ServiceStateStore, TileStore } from "./ports.ts";
import { signedCheckpoint } from "./sign-checkpoint.ts";
import { withdrawChunk } from "./process-chunk.ts";
import { type RelayPorts, relayNow } from "./relay-events.ts";
import { isBeyondEnd } from "./seal-session.ts";
import type { SessionDirectory } from "./session-directory.ts";

/** What one sweep looks at, at most; the rest is the next sweep's. */
const EVENTS_PER_SWEEP_MAX = 1_000;
const SESSIONS_PER_PAGE = 200;
const SESSIONS_PER_SWEEP_MAX = 2_000;
const BLOBS_PER_PAGE = 500;
const BLOBS_PER_SWEEP_MAX = 10_000;
/** Indexes beyond the first missing one that a gap report looks at, and ranges that it names. */
const GAP_WINDOW_CHUNKS = 1_000;
const GAP_RANGES_MAX = 100;
const MARKER_BYTES = 16;

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
  }

  async sweep(signal: AbortSignal): Promise<void> {
    await this.sweepPendingEvents(signal);
    await this.sweepSessions(signal);
    await this.sweepOrphanBlobs(signal);
  }

  /** Re-adds events that have been pending for too long, and takes back chunks that came after the end. */
  async sweepPendingEvents(signal: AbortSignal): Promise<void> {
    await this.#reopenAfterLoss(signal);
    const { chunks, patience, observer, limits } = this.#ports;
    const pending = await patience("chunks.pending", signal, () =>
      chunks.withPendingEvent(EVENTS_PER_SWEEP_MAX),
    );
    this.#pendingEvents.keepOnly(new Set(pending.map((chunk) => chunk.eventId)));
    const aged = pending.map((chunk) => ({ chunk, ageMs: this.#pendingEvents.ageMs(chunk.eventId) }));
    const oldestMs = aged.reduce((oldest, { ageMs }) => Math.max(oldest, ageMs), 0);
    observer.report({ kind: "outbox", pending: pending.length, oldestSeconds: oldestMs / 1000 });
    let published = 0;
    for (const { chunk, ageMs } of aged) {
      if (ageMs < limits.eventPendingMs) continue;
      await this.#unlessStuck(chunk.sessionId, signal, async () => {
        if (await this.#republishChunk(chunk, signal)) published += 1;
      });
    }
    if (published > 0) observer.report({ kind: "events-swept", count: published });
  }

  /**
   * A Redis that was emptied (FLUSHALL) or replaced has lost events that were marked `sent` and that nobody had consumed.
   * Its marker is gone then, and differs from the one in the store. All events that a consumer may still wait for become
   * `pending` again; consumers drop what they know. Redis' marker first: if Redis is emptied once more while we are at it,
   * the one that we then write to the store isn't in Redis, and the next sweep sees it. The store's last: a crash in
   * between, or another worker at it, repeats a harmless step.
   */
  async #reopenAfterLoss(signal: AbortSignal): Promise<void> {
    const { patience, events, serviceState, chunks, sessions, clock, random, observer, marks, limits } =
      this.#ports;
    const inStore = await patience("state.marker", signal, () => serviceState.redisMarker());
    const inRedis = await patience("events.marker", signal, () => events.marker());
    if (inStore !== undefined && inStore === inRedis) {
      marks.remember(inStore);
      return;
    }
    // A new one for each try: a command that was given up and comes late must not restore a marker that was lost.
    const marker = await patience("events.claim", signal, () =>
      events.claimMarker(toHex(random(MARKER_BYTES))),
    );
    // Dies here: the store's marker is still the old one, and the next sweep begins anew.
    // Without one in the store the installation is new, or older than markers: then Redis has lost nothing that we know of.
    if (inStore !== undefined) {
      const since = new Date(clock.now().getTime() - limits.eventRetentionMs);
      const ofChunks = await patience("chunks.reopen", signal, () => chunks.reopenEvents(since));
      const ofSessions = await patience("sessions.reopen", signal, () => sessions.reopenEvents(since));
      observer.report({ kind: "redis-lost-data", reopened: ofChunks + ofSessions });
    }
    await patience("state.setMarker", signal, () => serviceState.setRedisMarker(marker));
    marks.remember(marker);
  }

  async #republishChunk(chunk: ChunkRecord, signal: AbortSignal): Promise<boolean> {
    const { patience, advance, events, observer, marks } = this.#ports;
    const seen = marks.seen();
    // As in the write path, a proposed count is settled before the event: none may leave out what has been announced.
    const session = await advance.request(chunk.sessionId);
    if (isBeyondEnd(session, chunk.index)) {
      await withdrawChunk(this.#ports, chunk, signal);
      return false;
    }
    await patience("events.republish", signal, () => events.republish(chunkCompletedEvent(chunk)));
    marks.add(chunk, seen);
    observer.report({ kind: "event-relayed", type: "chunk.completed", eventId: chunk.eventId, swept: true });
    return true;
  }

  /** One session that can't go on must not keep the others from it. */
  async #unlessStuck(session: SessionId, signal: AbortSignal, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (thrown) {
      if (signal.aborted) throw thrown;
      this.#ports.observer.report({ kind: "session-stuck", sessionId: session, code: errorCodeOf(thrown) });
    }
  }

  /** Grows, seals, announces and closes what was left half done, and reports gaps. */
  async sweepSessions(signal: AbortSignal): Promise<void> {
    const { patience, sessions } = this.#ports;
    for (let seen = 0; seen < SESSIONS_PER_SWEEP_MAX; ) {
      const page = await patience("sessions.unfinished", signal, () =>
        sessions.unfinished(this.#sessionCursor, SESSIONS_PER_PAGE),
      );
      for (const session of page) {
        this.#sessionsOfPass.add(session.id);
        await this.#unlessStuck(session.id, signal, () => this.#advance(session, signal));
      }
      seen += page.length;
      this.#sessionCursor = page.length < SESSIONS_PER_PAGE ? undefined : page.at(-1)?.id;
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
      const overdue = orphans.filter((blob) => this.#orphans.ageMs(blob.id) >= limits.orphanBlobMs);
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
