import type { BackgroundWork } from "./relay-events.ts";
import type { Patience } from "./patience.ts";
import type { ChunkKey, ChunkStore, Clock, EventPublisher, Observer } from "./ports.ts";

/**
 * How long an event must have been in Redis before it counts as sent. With `appendfsync everysec` Redis loses up to two
 * seconds when its machine loses power.
 */
const MARK_DELAY_MS = 2_500;
/** Marks that one command takes. */
const MARKS_MAX = 1_000;

interface AwaitedMark {
  readonly chunk: ChunkKey;
  /** Of the publisher's connection, when the event was added. */
  readonly epoch: number;
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
 * Writes `sent` for events that have been in Redis long enough to survive it. If the connection broke meanwhile, Redis may
 * have died and come back without them: no mark is written, the event stays `pending`, and a sweeper adds it again
 * under the same id, which the queue drops or the consumer recognises. The same holds for whatever else ends a mark.
 */
export class SentMarks {
  readonly #ports: SentMarkPorts;
  readonly #stopped: AbortSignal;
  readonly #awaited: AwaitedMark[] = [];
  #isRunning = false;

  constructor(ports: SentMarkPorts, stopped: AbortSignal) {
    this.#ports = ports;
    this.#stopped = stopped;
  }

  /** `epoch` is that of the publisher before the event was added. */
  add(chunk: ChunkKey, epoch: number): void {
    const { clock, background, observer } = this.#ports;
    this.#awaited.push({ chunk, epoch, dueMs: clock.monotonicMs() + MARK_DELAY_MS });
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
    const safe = due.filter(({ epoch }) => epoch === events.epoch).map(({ chunk }) => chunk);
    if (safe.length > 0) await patience("chunks.markSent", this.#stopped, () => chunks.markSent(safe));
  }
}
