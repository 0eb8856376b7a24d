import { errorCodeOf } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { BackgroundWork } from "./relay-events.ts";
import type { Patience } from "./patience.ts";
import type { ChunkKey, ChunkStore, Clock, EventPublisher, Observer, SessionStore } from "./ports.ts";
import { readable } from "./readable.ts";

/**
 * How long an event must have been in Redis before it counts as sent. With `appendfsync everysec` Redis loses up to two
 * seconds when its machine loses power.
 */
const MARK_DELAY_MS = 2_500;
/** Marks come due in steps, so that those of one step share a command; nobody waits for a mark. */
const MARK_STEP_MS = 100;
/** Marks that one command takes. */
const MARKS_MAX = 1_000;
/** Far more than are added in MARK_DELAY_MS; what comes beyond stays `pending`, for the sweeper. */
const AWAITED_MAX = 50_000;

/** What was known of Redis right before an event was added to it. */
export interface RedisSeen {
  /** Of the publisher's connection. */
  readonly epoch: number;
  /** As last read; absent when none was there, or none was read yet: then nothing is known of what is lost. */
  readonly marker: string | undefined;
}

/** Whose record carries the state of an event. */
export type Announced =
  | { readonly kind: "chunk"; readonly chunk: ChunkKey }
  | { readonly kind: "session"; readonly session: SessionId; readonly event: "sealed" | "anchored" };

interface AwaitedMark {
  readonly eventId: string;
  readonly of: Announced;
  readonly seen: RedisSeen;
  readonly dueMs: number;
}

export interface SentMarkPorts {
  readonly chunks: ChunkStore;
  readonly sessions: SessionStore;
  readonly events: EventPublisher;
  readonly clock: Clock;
  readonly patience: Patience;
  readonly background: BackgroundWork;
  readonly observer: Observer;
}

/**
 * Writes `sent` for events that have been in Redis long enough to survive it, and still are there. If the connection broke
 * meanwhile, Redis may have died and come back without them. If its marker is another, it was emptied, which breaks no
 * connection; and the sweep that looks for that may have been there before the mark, which it then can't take back. In both
 * cases no mark is written, the event stays `pending`, and a sweeper adds it again under the same id, which the queue
 * drops or the consumer recognises. The same holds for whatever else ends a mark.
 */
export class SentMarks {
  readonly #ports: SentMarkPorts;
  readonly #stopped: AbortSignal;
  readonly #awaited: AwaitedMark[] = [];
  /** Event ids of `#awaited`, and of the marks that are being written. */
  readonly #underWay = new Map<string, RedisSeen>();
  #marker: string | undefined;
  #isRunning = false;

  constructor(ports: SentMarkPorts, stopped: AbortSignal) {
    this.#ports = ports;
    this.#stopped = stopped;
  }

  /** To be asked before an event is added, and given to `add` when it was. */
  seen(): RedisSeen {
    return { epoch: this.#ports.events.epoch, marker: this.#marker };
  }

  /** The sweeper has read Redis' marker, or set it. */
  remember(marker: string): void {
    this.#marker = marker;
  }

  /** True while the event, added by this process, waits for its mark, and nothing is known that would prevent it. */
  isUnderWay(eventId: string): boolean {
    const seen = this.#underWay.get(eventId);
    return seen !== undefined && this.#isSafe(seen);
  }

  add(eventId: string, of: Announced, seen: RedisSeen): void {
    const { clock, background, observer } = this.#ports;
    if (this.#awaited.length >= AWAITED_MAX) return;
    const dueMs = Math.ceil((clock.monotonicMs() + MARK_DELAY_MS) / MARK_STEP_MS) * MARK_STEP_MS;
    this.#awaited.push({ eventId, of: keyOf(of), seen, dueMs });
    this.#underWay.set(eventId, seen);
    if (this.#isRunning) return;
    this.#isRunning = true;
    background.add(this.#run(), (code) => observer.report({ kind: "mark-lost", code }));
  }

  async #run(): Promise<void> {
    const { clock } = this.#ports;
    for (let first = this.#awaited[0]; first !== undefined; first = this.#awaited[0]) {
      const waitMs = first.dueMs - clock.monotonicMs();
      if (waitMs > 0) await clock.sleep(waitMs, this.#stopped);
      if (this.#stopped.aborted) break;
      const due = this.#takeDue();
      // What isn't marked stays `pending`, for the sweeper; the marks after it are none of its business.
      await this.#mark(due).catch((thrown: unknown) => this.#reportLost(thrown));
      for (const { eventId, seen } of due) {
        if (this.#underWay.get(eventId) === seen) this.#underWay.delete(eventId);
      }
    }
    this.#isRunning = false;
  }

  #reportLost(thrown: unknown): void {
    if (!this.#stopped.aborted) this.#ports.observer.report({ kind: "mark-lost", code: errorCodeOf(thrown) });
  }

  #takeDue(): readonly AwaitedMark[] {
    const nowMs = this.#ports.clock.monotonicMs();
    const waiting = this.#awaited.findIndex(({ dueMs }) => dueMs > nowMs);
    return this.#awaited.splice(0, Math.min(waiting < 0 ? this.#awaited.length : waiting, MARKS_MAX));
  }

  async #mark(due: readonly AwaitedMark[]): Promise<void> {
    let tried: readonly AwaitedMark[] = [];
    let since = this.#ports.clock.now();
    await this.#ports.patience("events.mark", this.#stopped, async () => {
      // Looked at anew before every try: Redis may have been emptied while MongoDB was away. The reply also shows that
      // the connection lives; one whose other end lost power breaks only when it is used.
      await this.#takeBackLost(tried, since);
      const safe = due.filter(({ seen }) => this.#isSafe(seen));
      tried = safe;
      if (safe.length === 0) return;
      const at = this.#ports.clock.now();
      // The wall clock may have stepped back since the try before.
      if (at < since) since = at;
      await this.#writeMarks(
        safe.map(({ of }) => of),
        at,
      );
      // Emptied since we looked, and perhaps reopened by a sweeper already: then our marks came too late for it.
      // Dies here, or the command arrives even later: such an event is lost (decision 13).
      await this.#takeBackLost(tried, since);
    });
  }

  #isSafe({ epoch, marker }: RedisSeen): boolean {
    return marker !== undefined && marker === this.#marker && epoch === this.#ports.events.epoch;
  }

  async #writeMarks(announced: readonly Announced[], at: Date): Promise<void> {
    const chunks = announced.flatMap((of) => (of.kind === "chunk" ? of.chunk : []));
    if (chunks.length > 0) await this.#ports.chunks.markSent(chunks, at);
    const sessions = announced.filter((of) => of.kind === "session");
    await Promise.all(sessions.map((of) => this.#markSession(of)));
  }

  /** A conflict leaves the event `pending`: it may be that of a sweeper which has just made it so. */
  async #markSession({ session: id, event }: Announced & { readonly kind: "session" }): Promise<void> {
    const { sessions } = this.#ports;
    // One that can't be read has a mark less; those beside it have theirs.
    const session = await readable(sessions.find(id), (thrown) => this.#reportLost(thrown));
    const state = event === "sealed" ? session?.sealedEvent : session?.anchoredEvent;
    if (session === undefined || state !== "pending") return;
    await sessions.replace(id, session.version, { kind: `${event}-event-sent` });
  }

  /** Reads the marker; of marks that were tried under another one, the events become `pending` again. */
  async #takeBackLost(tried: readonly AwaitedMark[], since: Date): Promise<void> {
    const { chunks, sessions, events } = this.#ports;
    const marker = await events.marker();
    this.#marker = marker;
    const lost = new Set<SessionId>();
    for (const { of, seen } of tried) {
      if (seen.marker === marker) continue;
      if (of.kind === "session") {
        await sessions.reopenEvents(of.session);
        continue;
      }
      lost.add(of.chunk.sessionId);
    }
    for (const session of lost) await chunks.reopenEvents(session, since);
  }
}

/** Thousands wait here for seconds: a whole record each would be what grows old in the heap. */
function keyOf(of: Announced): Announced {
  if (of.kind === "session") return of;
  const { sessionId, index } = of.chunk;
  return { kind: "chunk", chunk: { sessionId, index } };
}
