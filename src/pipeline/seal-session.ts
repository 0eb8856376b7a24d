import type { SessionId } from "../core/ids.ts";
import type { SessionRecord } from "../schema/record.ts";
import { integrate } from "./integrate.ts";
import type { OwnGrowth } from "./own-growth.ts";
import type { Clock, SessionChange, TileStore } from "./ports.ts";
import { type RelayPorts, relaySessionSealed } from "./relay-events.ts";

export interface AdvancePorts extends RelayPorts {
  readonly tiles: TileStore;
  readonly clock: Clock;
  readonly growth: OwnGrowth;
}

/** Lost compare-and-swaps in a row before a run gives up; each one means that another worker has moved on. */
const ROUNDS_MAX = 1_000;

/**
 * Moves a session as far as its committed chunks allow: grows the tree, settles a proposed count, seals when the count
 * is reached, announces the seal. Called after every commit, by finalize-session and by the sweeper; whichever comes
 * last seals.
 */
export async function advanceSession(
  ports: AdvancePorts,
  session: SessionId,
  signal: AbortSignal,
): Promise<SessionRecord> {
  let record = await integrate(ports, session, signal);
  for (let rounds = 0; rounds < ROUNDS_MAX; rounds++) {
    const step = await nextStep(ports, record, signal);
    if (step === undefined) break;
    const { patience, sessions } = ports;
    const outcome = await patience("sessions.replace", signal, () =>
      sessions.replace(session, record.version, step),
    );
    if (outcome === "replaced" && step.kind === "seal") {
      reportSealed(ports, record);
    }
    record = await integrate(ports, session, signal);
  }
  await relaySessionSealed(ports, record, signal);
  return record;
}

function reportSealed({ observer }: AdvancePorts, { id, tree }: SessionRecord): void {
  if (tree.root === undefined) return;
  observer.report({ kind: "session-sealed", sessionId: id, size: tree.size, root: tree.root });
}

/** The change of state that is due, if any. */
async function nextStep(
  ports: AdvancePorts,
  record: SessionRecord,
  signal: AbortSignal,
): Promise<SessionChange | undefined> {
  if (record.state !== "open" || record.expectedCount === undefined) return undefined;
  if (!record.countConfirmed) return settleCount(ports, record, record.expectedCount, signal);
  if (record.tree.size < record.expectedCount) return undefined;
  return { kind: "seal", at: ports.clock.now() };
}

/**
 * A proposed count is confirmed if no committed chunk lies beyond it, else taken back.
 *
 * Why a confirmed count never leaves out a chunk that anyone has heard of: this look comes after the proposal. A chunk
 * beyond the count that it doesn't see is committed after it, so its worker, which reads the session after its commit
 * and before its event, finds the count there, confirmed or brought to a decision by this very function. It withdraws
 * the chunk or, the count being taken back, keeps it. So what lies beyond a *confirmed* count may be withdrawn by
 * anyone, at any time.
 *
 * Both looks must see what came before them in the store's history, also after a fail-over: ports.ts, "Of two processes …".
 */
async function settleCount(
  ports: AdvancePorts,
  record: SessionRecord,
  count: number,
  signal: AbortSignal,
): Promise<SessionChange> {
  const { patience, chunks } = ports;
  const beyond = await patience("chunks.beyond", signal, () => chunks.beyond(record.id, count, 1));
  return beyond.length === 0 ? { kind: "confirm-count" } : { kind: "withdraw-count" };
}

/** True for an index that the session's end, confirmed or sealed, leaves out. */
export function isBeyondEnd(session: SessionRecord, index: number): boolean {
  if (session.state !== "open") return index >= session.tree.size;
  return session.countConfirmed && session.expectedCount !== undefined && index >= session.expectedCount;
}
