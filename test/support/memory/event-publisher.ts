import type { EventPublisher } from "../../../src/pipeline/ports.ts";
import type { LucidEvent } from "../../../src/schema/event.ts";

interface QueuedEvent {
  readonly event: LucidEvent;
  readonly state: "waiting" | "failed";
}

/** The twin of the BullMQ publisher: one queue a subscriber, jobs under their event ids, in the order they came. */
export class MemoryEventPublisher implements EventPublisher {
  readonly #queues: ReadonlyMap<string, Map<string, QueuedEvent>>;

  constructor(queueNames: readonly string[] = ["storage-events"]) {
    this.#queues = new Map(queueNames.map((name) => [name, new Map<string, QueuedEvent>()]));
  }

  /** Raised by a test that breaks the connection. */
  epoch = 0;
  #marker: string | undefined;

  async claimMarker(candidate: string): Promise<string> {
    this.#marker ??= candidate;
    return this.#marker;
  }

  async marker(): Promise<string | undefined> {
    return this.#marker;
  }

  async publish(event: LucidEvent): Promise<void> {
    for (const queue of this.#queues.values()) {
      if (!queue.has(event.event_id)) queue.set(event.event_id, { event, state: "waiting" });
    }
  }

  /** Events that wait in one queue; all of them, also those delivered, until `lose`. */
  waiting(queueName: string): readonly LucidEvent[] {
    return [...this.#queue(queueName).values()].flatMap(({ event, state }) =>
      state === "waiting" ? event : [],
    );
  }

  /** The consumer used up its attempts. */
  fail(queueName: string, eventId: string): void {
    const queue = this.#queue(queueName);
    const queued = queue.get(eventId);
    if (queued !== undefined) queue.set(eventId, { ...queued, state: "failed" });
  }

  /** FLUSHALL: the queues and the marker are gone. */
  empty(): void {
    for (const queue of this.#queues.values()) queue.clear();
    this.#marker = undefined;
  }

  /** A queue that loses its data, as Redis may. */
  lose(queueName: string): void {
    this.#queue(queueName).clear();
  }

  #queue(name: string): Map<string, QueuedEvent> {
    const queue = this.#queues.get(name);
    if (queue === undefined) throw new Error(`no queue ${name}`);
    return queue;
  }
}
