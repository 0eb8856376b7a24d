import type { BackgroundWork } from "./relay-events.ts";
import type { Patience } from "./patience.ts";
import type { ChunkRecord } from "../schema/record.ts";
import type { ChunkStore, Clock, EventPublisher, Observer } from "./ports.ts";

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
  /** As last read; absent when none was there, or none was read yet. */
  readonly marker: string | undefined;
}

interface AwaitedMark {
  readonly chunk: ChunkRecord;
  readonly seen: RedisSeen;
  readonly dueMs: number;
}

export interface SentMarkPorts {
  readonly chunks: ChunkStore;
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

  add(chunk: ChunkRecord, seen: RedisSeen): void {
    const { clock, background, observer } = this.#ports;
    if (this.#awaited.length >= AWAITED_MAX) return;
    const dueMs = Math.ceil((clock.monotonicMs() + MARK_DELAY_MS) / MARK_STEP_MS) * MARK_STEP_MS;
    this.#awaited.push({ chunk, seen, dueMs });
    if (this.#isRunning) return;
    this.#isRunning = true;
    background.add(this.#run(), (code) => {
      this.#isRunning = false;
      observer.report({ kind: "mark-lost", code });
    });
  }

  async #run(): Promise<void> {
    const { clock } = this.#ports;
    for (let first = this.#awaited[0]; first !== undefined; first = this.#awaited[0]) {
      const waitMs = first.dueMs - clock.monotonicMs();
      if (waitMs > 0) await clock.sleep(waitMs, this.#stopped);
      if (this.#stopped.aborted) break;
      await this.#markDue();
    }
    this.#isRunning = false;
  }

  async #markDue(): Promise<void> {
    const { chunks, events, clock, patience } = this.#ports;
    const nowMs = clock.monotonicMs();
    const waiting = this.#awaited.findIndex(({ dueMs }) => dueMs > nowMs);
    const due = this.#awaited.splice(0, Math.min(waiting < 0 ? this.#awaited.length : waiting, MARKS_MAX));
    let tried: readonly AwaitedMark[] = [];
    await patience("chunks.markSent", this.#stopped, async () => {
      // Looked at anew before every try: Redis may have been emptied while MongoDB was away. The reply also shows that
      // the connection lives; one whose other end lost power breaks only when it is used.
      await this.#takeBackLost(tried);
      const safe = due.filter(({ seen }) => seen.epoch === events.epoch && seen.marker === this.#marker);
      tried = safe;
      if (safe.length === 0) return;
      await chunks.markSent(safe.map(({ chunk }) => chunk));
      // Emptied since we looked, and perhaps reopened by a sweeper already: then our marks came too late for it.
      // Dies here, or the command arrives even later: such an event is lost (decision 13).
      await this.#takeBackLost(tried);
    });
  }

  /** Reads the marker; of marks that were tried under another one, all events since the oldest become `pending` again. */
  async #takeBackLost(tried: readonly AwaitedMark[]): Promise<void> {
    const { chunks, events } = this.#ports;
    const marker = await events.marker();
    this.#marker = marker;
    const times = tried
      .filter(({ seen }) => seen.marker !== marker)
      .map(({ chunk }) => chunk.committedAt.getTime());
    if (times.length > 0) await chunks.reopenEvents(new Date(Math.min(...times)));
  }
}
