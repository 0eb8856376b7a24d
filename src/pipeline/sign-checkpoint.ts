import type { KeyObject } from "node:crypto";
import { bytesEqual } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { type Checkpoint, signCheckpoint, signNextCheckpoint } from "../core/merkle/checkpoint.ts";
import { consistencyProof, consistencyProofTiles } from "../core/merkle/proof.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, Observer, SessionStore, TileStore } from "./ports.ts";
import { readTiles } from "./read-tiles.ts";

export interface CheckpointPorts {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly tiles: TileStore;
  /** Ed25519. */
  readonly signingKey: KeyObject;
  readonly patience: Patience;
  readonly observer: Observer;
}

/**
 * A signed checkpoint of the session as it is. Nothing is signed that isn't consistent with the checkpoint before it: a tree
 * that lost or changed a leaf since then ends here with TREE_CORRUPT. The note is stored before it is given out, and
 * of two workers that sign at the same time one is stored; for one size both sign the same bytes.
 */
export async function signedCheckpoint(
  ports: CheckpointPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<{ readonly session: SessionRecord; readonly note: string }> {
  const { id, hashAlgorithm, checkpoint: previous, tree } = session;
  if (tree.root === undefined) throw new LucidError("TREE_CORRUPT", "an empty tree has no checkpoint");
  const { root, size } = tree;
  if (previous?.size === size) {
    if (!bytesEqual(previous.root, root)) throw inconsistent();
    return { session, note: previous.note };
  }
  const next = { sessionId: id, hashAlgorithm, size, root };
  const note =
    previous === undefined
      ? signCheckpoint(next, ports.signingKey)
      : await signConsistent(
          ports,
          session,
          { ...next, size: previous.size, root: previous.root },
          next,
          signal,
        );
  const checkpoint = { size, root, note };
  const { patience, sessions, observer } = ports;
  const outcome = await patience("sessions.checkpoint", signal, () =>
    sessions.replace(id, session.version, { kind: "checkpoint", checkpoint }),
  );
  if (outcome === "replaced") {
    observer.report({ kind: "checkpoint-signed", sessionId: id, size });
    return { session: { ...session, checkpoint, version: session.version + 1 }, note };
  }
  const current = await patience("sessions.find", signal, () => sessions.find(id));
  if (current === undefined)
    throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
  // Somebody else stored a checkpoint, or moved something else on: look again from what is there.
  return signedCheckpoint(ports, current, signal);
}

async function signConsistent(
  ports: CheckpointPorts,
  session: SessionRecord,
  previous: Checkpoint,
  next: Checkpoint,
  signal: AbortSignal,
): Promise<string> {
  if (previous.size > next.size) throw inconsistent();
  const readTile = await readTiles(ports, session, consistencyProofTiles(previous.size, next.size), signal);
  return signNextCheckpoint(previous, next, consistencyProof(previous, next, readTile), ports.signingKey);
}

function inconsistent(): LucidError {
  return new LucidError(
    "TREE_CORRUPT",
    "the tree differs from the signed checkpoint of its size; nothing is signed",
  );
}
