import { type ErrorCode, errorCodeOf } from "../core/errors.ts";
import type { LucidEvent } from "../schema/event.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { chunkCompletedEvent, sessionSealedEvent } from "./event-messages.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, EventPublisher, Observer, SessionStore } from "./ports.ts";
import type { SentMarks } from "./sent-marks.ts";

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

  async settled(): Promise<void> {
    await Promise.all(this.#running);
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
  marks.add(chunk, seen);
}

/** For events that no record carries as pending: waits until every queue has it. */
export async function relayNow(ports: RelayPorts, event: LucidEvent, signal: AbortSignal): Promise<void> {
  await ports.patience("events.publish", signal, () => ports.events.publish(event));
  ports.observer.report({ kind: "event-relayed", type: event.type, eventId: event.event_id, swept: false });
}

/** Publishes `session.sealed` and marks it; returns the record as it then is. */
export async function relaySessionSealed(
  ports: RelayPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<SessionRecord> {
  if (session.sealedEvent !== "pending") return session;
  const { patience, sessions } = ports;
  await relayNow(ports, sessionSealedEvent(session), signal);
  // Dies here: as above; sweepSessions finds sealed sessions whose event is still pending.
  const outcome = await patience("sessions.markSent", signal, () =>
    sessions.replace(session.id, session.version, { kind: "sealed-event-sent" }),
  );
  if (outcome === "conflict") return session;
  return { ...session, version: session.version + 1, sealedEvent: "sent" };
}
