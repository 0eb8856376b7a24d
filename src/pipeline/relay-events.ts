import { type ErrorCode, errorCodeOf } from "../core/errors.ts";
import type { LucidEvent } from "../schema/event.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { chunkCompletedEvent, sessionSealedEvent } from "./event-messages.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, EventPublisher, Observer, SessionStore } from "./ports.ts";
import type { Announced, SentMarks } from "./sent-marks.ts";

export interface RelayPorts {
  readonly chunks: ChunkStore;
  readonly sessions: SessionStore;
  readonly events: EventPublisher;
  readonly observer: Observer;
  readonly patience: Patience;
  readonly background: BackgroundWork;
  readonly marks: SentMarks;
}

/** Work that nobody waits for, so that a shutdown can let it finish. A failure is told to `onFailure` and ends there. */
export class BackgroundWork {
  readonly #running = new Set<Promise<void>>();

  add(work: Promise<unknown>, onFailure: (code: ErrorCode) => void): void {
    const guarded = work.then(
      () => undefined,
      (thrown: unknown) => onFailure(errorCodeOf(thrown)),
    );
    this.#running.add(guarded);
    void guarded.finally(() => this.#running.delete(guarded));
  }

  /** Also of what the work adds: a later look may seal a session, which then is closed. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }
}

/** Step 6: the event into every queue, then the mark, which nobody waits for. */
export async function relayChunkCompleted(
  ports: RelayPorts,
  chunk: ChunkRecord,
  signal: AbortSignal,
): Promise<void> {
  if (chunk.eventState === "sent") return;
  const { patience, events, observer, marks } = ports;
  const seen = marks.seen();
  await patience("events.publish", signal, () => events.publish(chunkCompletedEvent(chunk)));
  observer.report({ kind: "event-relayed", type: "chunk.completed", eventId: chunk.eventId, swept: false });
  // Dies here: published and still `pending`; sweepPendingEvents publishes it again under the same id.
  marks.add(chunk.eventId, { kind: "chunk", chunk }, seen);
}

/** For events that no record carries as pending: waits until every queue has it. */
export async function relayNow(ports: RelayPorts, event: LucidEvent, signal: AbortSignal): Promise<void> {
  await ports.patience("events.publish", signal, () => ports.events.publish(event));
  ports.observer.report({ kind: "event-relayed", type: event.type, eventId: event.event_id, swept: false });
}

/** Publishes `session.sealed`, unless it waits for its mark already. */
export async function relaySessionSealed(
  ports: RelayPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<void> {
  if (session.sealedEvent !== "pending") return;
  await relaySessionEvent(
    ports,
    { kind: "session", session: session.id, event: "sealed" },
    sessionSealedEvent(session),
    signal,
  );
}

/** Publishes `session.anchored`, unless it waits for its mark already. */
export async function relaySessionAnchored(
  ports: RelayPorts,
  session: SessionRecord,
  event: LucidEvent,
  signal: AbortSignal,
): Promise<void> {
  if (session.anchoredEvent !== "pending") return;
  await relaySessionEvent(ports, { kind: "session", session: session.id, event: "anchored" }, event, signal);
}

async function relaySessionEvent(
  ports: RelayPorts,
  of: Announced,
  event: LucidEvent,
  signal: AbortSignal,
): Promise<void> {
  const { marks } = ports;
  if (marks.isUnderWay(event.event_id)) return;
  const seen = marks.seen();
  await relayNow(ports, event, signal);
  // Dies here: published and still `pending`; sweepSessions finds the session, which isn't closed, and publishes it again.
  marks.add(event.event_id, of, seen);
}
