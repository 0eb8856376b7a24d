import type { PrivateKey } from "../core/manifest/sign.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { SessionRecord } from "../schema/record.ts";
import { type AnchorClaims, type AnchoringPorts, anchorSession, announceAnchor } from "./anchor-session.ts";
import type { AnchoringEngine } from "./anchoring-engine.ts";
import { type RelayPorts, relaySessionSealed } from "./relay-events.ts";
import type { Clock, ManifestFiles, ManifestStore, TileStore } from "./ports.ts";
import { writeManifest } from "./write-manifest.ts";

/** What is done for a session after its seal, as far as it is configured. */
export interface Closing {
  /** Without a key there is no manifest, no checkpoint and no anchor. */
  readonly signingKey: PrivateKey | undefined;
  readonly engine: AnchoringEngine | undefined;
}

export interface ClosePorts extends RelayPorts {
  readonly tiles: TileStore;
  readonly manifests: ManifestStore;
  readonly files: ManifestFiles;
  readonly clock: Clock;
  readonly claims: AnchorClaims;
  readonly closing: Closing;
}

/**
 * Everything that follows a seal: the event, the manifest, the anchor, each as often as it takes. Called after the seal and
 * by the sweeper until the session is closed, which is at a visit after its events are marked `sent`. Every step looks first whether it is done, so that a crash between any two,
 * or two workers at the same session, repeat nothing that can be seen.
 */
export async function closeSession(
  ports: ClosePorts,
  id: SessionId,
  signal: AbortSignal,
): Promise<SessionRecord> {
  const { patience, sessions, closing } = ports;
  const found = await patience("sessions.find", signal, () => sessions.find(id));
  if (found === undefined)
    throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
  if (found.state === "open" || found.closed) return found;
  let session = found;
  await relaySessionSealed(ports, session, signal);
  if (closing.signingKey !== undefined) {
    const manifestPorts = { ...ports, signingKey: closing.signingKey };
    const { session: withManifest, text } = await writeManifest(manifestPorts, session, signal);
    session = withManifest;
    if (session.state === "anchored") {
      await announceAnchor(ports, session, signal);
    } else if (closing.engine !== undefined) {
      const anchoring: AnchoringPorts = { ...ports, engine: closing.engine };
      session = await anchorSession(anchoring, session, text, signal);
      if (session.state !== "anchored") return session;
    }
  }
  // Also by a worker without key or engine: an event that is pending is told by one that has them.
  if (session.sealedEvent !== "sent" || session.anchoredEvent === "pending") return session;
  await patience("sessions.close", signal, () => sessions.replace(id, session.version, { kind: "closed" }));
  return session;
}
