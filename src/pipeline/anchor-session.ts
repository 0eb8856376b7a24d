import { toHex, utf8 } from "../core/bytes.ts";
import { canonicalJson } from "../core/canonical-json.ts";
import { errorCodeOf, LucidError } from "../core/errors.ts";
import { manifestFileNames, manifestId } from "../core/manifest/names.ts";
import { sealedSession } from "../schema/manifest.ts";
import type { SessionId } from "../core/ids.ts";
import type { AnchorRecord, SessionRecord } from "../schema/record.ts";
import { type AnchoringEngine, anchorIdempotencyKey } from "./anchoring-engine.ts";
import { sessionAnchoredEvent } from "./event-messages.ts";
import { type RelayPorts, relayNow } from "./relay-events.ts";
import { FirstSeen } from "./first-seen.ts";
import type { Clock, ManifestFiles, ManifestStore, RandomBytes, SessionChange } from "./ports.ts";

/** Random bytes that name the worker that is submitting. */
const CLAIM_BYTES = 10;
/** An anchoring that the engine doesn't know is left to its claimant for this long before another worker submits it. */
const TAKE_OVER_MS = 60_000;

/** Ids of an engine are short; its answers are checked for that where they come in. */
const ANCHOR_FILE_LIMITS = { bytesMax: 16_384, depthMax: 4 };

/** What this process knows about claims: which are its own, and for how long the engine hasn't known the others. */
export class AnchorClaims {
  readonly #own = new Set<string>();
  readonly #unknown: FirstSeen;
  readonly #random: RandomBytes;

  constructor(clock: Clock, random: RandomBytes) {
    this.#unknown = new FirstSeen(clock);
    this.#random = random;
  }

  make(): string {
    const claim = toHex(this.#random(CLAIM_BYTES));
    this.#own.add(claim);
    return claim;
  }

  /** True if it is for us to submit what the engine says it doesn't know. */
  maySubmit(session: SessionId, { status, claim }: AnchorRecord): boolean {
    if (status === "claimed" && this.#own.has(claim)) return true;
    return this.#unknown.ageMs(session, `${status} ${claim}`) >= TAKE_OVER_MS;
  }

  forget(session: SessionId, claim: string): void {
    this.#own.delete(claim);
    this.#unknown.forget(session);
  }
}

export interface AnchoringPorts extends RelayPorts {
  readonly manifests: ManifestStore;
  readonly files: ManifestFiles;
  readonly clock: Clock;
  readonly claims: AnchorClaims;
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
  if (session.anchoredEvent === "sent") return session;
  try {
    const confirmed =
      session.state === "anchored" ? session : await confirm(ports, session, manifestText, signal);
    return confirmed.state === "anchored" ? await announce(ports, confirmed, signal) : confirmed;
  } catch (thrown) {
    const code = errorCodeOf(thrown);
    if (!isEngineTrouble(code)) throw thrown;
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
    const claim = ports.claims.make();
    current = await replace(ports, current, { kind: "anchor-claimed", claim }, signal);
    // Lost the claim: the one who has it submits, and the next sweep polls.
    if (current.anchor?.claim !== claim) return current;
  } else {
    // Submitted, or claimed by a worker that may have died before or after its POST: the engine knows which.
    const status = await ports.engine.status(current.id);
    if (status.kind === "confirmed") return anchored(ports, current, status, signal);
    if (status.kind === "pending" || !ports.claims.maySubmit(current.id, current.anchor)) return current;
  }
  // Dies here: claimed, and perhaps not submitted; the next sweep asks the engine, and submits under the same key.
  const submission = await submit(ports, current, manifestText);
  if (submission.kind === "confirmed") return anchored(ports, current, submission, signal);
  // Dies here: submitted and not recorded; as above.
  return replace(ports, current, { kind: "anchor-submitted", anchoringId: submission.anchoringId }, signal);
}

function submit(ports: AnchoringPorts, session: SessionRecord, manifestText: string) {
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
  );
}

async function anchored(
  ports: AnchoringPorts,
  session: SessionRecord,
  { transaction, block }: { readonly transaction?: string; readonly block?: number },
  signal: AbortSignal,
): Promise<SessionRecord> {
  const at = ports.clock.now();
  const next = await replace(ports, session, { kind: "anchored", transaction, block, at }, signal);
  if (next.state === "anchored" && session.sealedAt !== undefined) {
    const seconds = Math.max(0, (at.getTime() - session.sealedAt.getTime()) / 1000);
    ports.observer.report({ kind: "session-anchored", sessionId: session.id, seconds });
  }
  return next;
}

/** The anchor file, the manifest's status, the event, and the mark that it is sent: in this order, each repeatable. */
async function announce(
  ports: AnchoringPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<SessionRecord> {
  const { patience, manifests, files } = ports;
  const sealed = sealedSession(session);
  const { anchor: name } = manifestFileNames(session.id, sealed.manifestType);
  const event = sessionAnchoredEvent(session);
  const { event_id: _id, type: _type, version: _version, occurred_at, ...facts } = event;
  const content = { ...facts, hash_algorithm: session.hashAlgorithm, anchored_at: occurred_at };
  const file = canonicalJson("anchor", content, ANCHOR_FILE_LIMITS);
  if ((await files.write(name, utf8(file))) === "differs") {
    throw new LucidError(
      "MANIFEST_INVALID",
      "the manifest directory holds another anchor file of this session",
    );
  }
  const key = {
    id: manifestId(session.id, sealed.manifestType),
    sessionId: session.id,
    type: sealed.manifestType,
  };
  await patience("manifests.mark", signal, () => manifests.mark(key, "anchored"));
  await relayNow(ports, event, signal);
  if (session.anchor !== undefined) ports.claims.forget(session.id, session.anchor.claim);
  // Dies here: announced and still `pending`; announced again under the same id.
  return replace(ports, session, { kind: "anchored-event-sent" }, signal);
}

/** The session after the change, or as somebody else has made it meanwhile. */
async function replace(
  { patience, sessions }: AnchoringPorts,
  session: SessionRecord,
  change: SessionChange,
  signal: AbortSignal,
): Promise<SessionRecord> {
  await patience("sessions.replace", signal, () => sessions.replace(session.id, session.version, change));
  const current = await patience("sessions.find", signal, () => sessions.find(session.id));
  if (current === undefined)
    throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
  return current;
}
