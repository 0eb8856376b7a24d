import { toHex, utf8 } from "../core/bytes.ts";
import { errorCodeOf, LucidError } from "../core/errors.ts";
import { anchorFileText } from "../core/manifest/anchor-file.ts";
import { manifestFileNames } from "../core/manifest/names.ts";
import { sealedSession } from "../schema/manifest.ts";
import type { SessionId } from "../core/ids.ts";
import type { AnchorRecord, SessionRecord } from "../schema/record.ts";
import {
  type AnchoringEngine,
  type AnchorPlace,
  type AnchorSubmission,
  anchorIdempotencyKey,
} from "./anchoring-engine.ts";
import { sessionAnchoredEvent } from "./event-messages.ts";
import { manifestKeyOf } from "./write-manifest.ts";
import { type RelayPorts, relaySessionAnchored } from "./relay-events.ts";
import { FirstSeen } from "./first-seen.ts";
import type { Clock, ManifestFiles, ManifestStore, RandomBytes, SessionChange } from "./ports.ts";

/** Random bytes that name the worker that is submitting. */
const CLAIM_BYTES = 10;
/** An anchoring that the engine doesn't know is left to its claimant for this long before another worker submits it. */
const TAKE_OVER_MS = 60_000;
/** An engine that didn't answer for one session isn't asked for the others: each would cost the sweep all its time-outs. */
const ENGINE_REST_MS = 30_000;

/** What this process knows: its own claims, for how long the engine hasn't known the others, and whether it answers. */
export class AnchorClaims {
  readonly #own = new Map<SessionId, string>();
  readonly #unknown: FirstSeen;
  readonly #clock: Clock;
  readonly #random: RandomBytes;
  #engineAwaySinceMs: number | undefined;

  constructor(clock: Clock, random: RandomBytes) {
    this.#unknown = new FirstSeen(clock);
    this.#clock = clock;
    this.#random = random;
  }

  make(session: SessionId): string {
    const claim = toHex(this.#random(CLAIM_BYTES));
    this.#own.set(session, claim);
    return claim;
  }

  /** True if it is for us to submit what the engine says it doesn't know. */
  maySubmit(session: SessionId, { status, claim }: AnchorRecord): boolean {
    if (status === "claimed" && this.#own.get(session) === claim) return true;
    return this.#unknown.ageMs(session, `${status} ${claim}`) >= TAKE_OVER_MS;
  }

  /** The engine knows the session, or was given it: how long it doesn't is counted anew. */
  engineKnows(session: SessionId): void {
    this.#unknown.forget(session);
  }

  forget(session: SessionId): void {
    this.#own.delete(session);
    this.#unknown.forget(session);
  }

  /** Forgets the sessions that other workers have closed. */
  keepOnly(sessions: ReadonlySet<SessionId>): void {
    this.#unknown.keepOnly(sessions);
    for (const session of this.#own.keys()) if (!sessions.has(session)) this.#own.delete(session);
  }

  engineIsAway(): void {
    this.#engineAwaySinceMs = this.#clock.monotonicMs();
  }

  get engineRests(): boolean {
    const since = this.#engineAwaySinceMs;
    return since !== undefined && this.#clock.monotonicMs() - since < ENGINE_REST_MS;
  }
}

export interface AnnouncingPorts extends RelayPorts {
  readonly manifests: ManifestStore;
  readonly files: ManifestFiles;
  readonly claims: AnchorClaims;
}

export interface AnchoringPorts extends AnnouncingPorts {
  readonly clock: Clock;
  readonly engine: AnchoringEngine;
}

/**
 * Takes the anchoring of a sealed session as far as it goes now: claim → submit → poll → confirmed → anchor file → event.
 * An engine that is away or not done leaves it where it is; the sweeper calls again, for as long as it takes.
 *
 * One root per (session, size): the claim lets one worker submit at a time, and whatever the claim can't prevent (a worker
 * that died after its POST, an answer that was lost) the idempotency key makes the same anchoring.
 */
export async function anchorSession(
  ports: AnchoringPorts,
  session: SessionRecord,
  manifestText: string,
  signal: AbortSignal,
): Promise<SessionRecord> {
  if (ports.claims.engineRests) return session;
  try {
    const confirmed = await confirm(ports, session, manifestText, signal);
    if (confirmed.state === "anchored") await announceAnchor(ports, confirmed, signal);
    return confirmed;
  } catch (thrown) {
    const code = errorCodeOf(thrown);
    if (!isEngineTrouble(code)) throw thrown;
    if (code === "SERVICE_UNAVAILABLE") ports.claims.engineIsAway();
    ports.observer.report({ kind: "anchor-delayed", sessionId: session.id, code });
    return session;
  }
}

function isEngineTrouble(code: string): boolean {
  return code === "SERVICE_UNAVAILABLE" || code === "SERVICE_ANSWER_INVALID" || code === "SERVICE_REJECTED";
}

async function confirm(
  ports: AnchoringPorts,
  session: SessionRecord,
  manifestText: string,
  signal: AbortSignal,
): Promise<SessionRecord> {
  let current = session;
  if (current.anchor === undefined) {
    const claim = ports.claims.make(current.id);
    current = await replace(ports, current, { kind: "anchor-claimed", claim }, signal);
    // Lost the claim: the one who has it submits, and the next sweep polls.
    if (current.anchor?.claim !== claim) {
      ports.claims.forget(current.id);
      return current;
    }
  } else {
    // Submitted, or claimed by a worker that may have died before or after its POST: the engine knows which.
    const status = await ports.engine.status(current.id, signal);
    if (status.kind === "confirmed") return anchored(ports, current, status, signal);
    if (status.kind === "pending") {
      ports.claims.engineKnows(current.id);
      return current;
    }
    if (!ports.claims.maySubmit(current.id, current.anchor)) return current;
  }
  // Dies here: claimed, and perhaps not submitted; the next sweep asks the engine, and submits under the same key.
  const submission = await submit(ports, current, manifestText, signal);
  ports.claims.engineKnows(current.id);
  if (submission.kind === "confirmed") return anchored(ports, current, submission, signal);
  // Dies here: submitted and not recorded; as above.
  return replace(ports, current, { kind: "anchor-submitted", anchoringId: submission.anchoringId }, signal);
}

function submit(
  ports: AnchoringPorts,
  session: SessionRecord,
  manifestText: string,
  signal: AbortSignal,
): Promise<AnchorSubmission> {
  const { id, treeSize, root, sealedAt, metadata } = sealedSession(session);
  const merkleRoot = toHex(root);
  return ports.engine.submit(
    {
      sessionId: id,
      merkleRoot,
      chunkCount: treeSize,
      timestamp: sealedAt,
      manifestData: JSON.parse(manifestText) as unknown,
      metadata,
    },
    anchorIdempotencyKey(id, treeSize, merkleRoot),
    signal,
  );
}

async function anchored(
  ports: AnchoringPorts,
  session: SessionRecord,
  { transaction, block, merkleRoot }: AnchorPlace,
  signal: AbortSignal,
): Promise<SessionRecord> {
  // The engine is asked by session: what it has in a block may be what somebody else submitted.
  if (merkleRoot !== undefined && merkleRoot !== toHex(sealedSession(session).root)) {
    throw new LucidError(
      "SERVICE_REJECTED",
      "the blockchain engine has anchored another root for this session; find out who submitted it",
    );
  }
  const at = ports.clock.now();
  const outcome = await tryReplace(ports, session, { kind: "anchored", transaction, block, at }, signal);
  // Of two workers that see the confirmation one reports it.
  if (outcome === "replaced" && session.sealedAt !== undefined) {
    const seconds = Math.max(0, (at.getTime() - session.sealedAt.getTime()) / 1000);
    ports.observer.report({ kind: "session-anchored", sessionId: session.id, seconds });
  }
  return reread(ports, session, signal);
}

/** The anchor file of an anchored session: all of it is in the session's document. */
export function anchorFileOf(session: SessionRecord): Uint8Array {
  const event = sessionAnchoredEvent(session);
  const { event_id: _id, type: _type, version: _version, occurred_at, ...facts } = event;
  return utf8(anchorFileText({ ...facts, hash_algorithm: session.hashAlgorithm, anchored_at: occurred_at }));
}

/** The anchor file, the manifest's status, the event, which is marked later: in this order, each repeatable. */
export async function announceAnchor(
  ports: AnnouncingPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<void> {
  if (session.anchoredEvent !== "pending") return;
  const { patience, manifests, files } = ports;
  const key = manifestKeyOf(session);
  const { anchor: name } = manifestFileNames(session.id, key.type);
  const event = sessionAnchoredEvent(session);
  if ((await files.write(name, anchorFileOf(session))) === "differs") {
    throw new LucidError(
      "MANIFEST_INVALID",
      "the manifest directory holds another anchor file of this session",
    );
  }
  await patience("manifests.mark", signal, () => manifests.mark(key, "anchored"));
  ports.claims.forget(session.id);
  await relaySessionAnchored(ports, session, event, signal);
}

/** The session after the change, or as somebody else has made it meanwhile. */
async function replace(
  ports: AnchoringPorts,
  session: SessionRecord,
  change: SessionChange,
  signal: AbortSignal,
): Promise<SessionRecord> {
  await tryReplace(ports, session, change, signal);
  return reread(ports, session, signal);
}

function tryReplace(
  { patience, sessions }: AnchoringPorts,
  { id, version }: SessionRecord,
  change: SessionChange,
  signal: AbortSignal,
): Promise<"replaced" | "conflict"> {
  return patience("sessions.replace", signal, () => sessions.replace(id, version, change));
}

async function reread(
  { patience, sessions }: AnchoringPorts,
  { id }: SessionRecord,
  signal: AbortSignal,
): Promise<SessionRecord> {
  const current = await patience("sessions.find", signal, () => sessions.find(id));
  if (current === undefined)
    throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
  return current;
}
