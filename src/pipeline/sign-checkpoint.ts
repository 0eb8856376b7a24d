import type { PrivateKey } from "../core/manifest/sign.ts";
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
  readonly signingKey: PrivateKey;
  readonly patience: Patience;
  readonly observer: Observer;
}

/** Lost races in a row before it is left to the next sweep; each one means that somebody has moved the session on. */
const CONFLICTS_MAX = 100;

interface Checkpointed {
  readonly session: SessionRecord;
  readonly note: string;
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
): Promise<Checkpointed> {
  let current = session;
  for (let conflicts = 0; conflicts < CONFLICTS_MAX; conflicts++) {
    const signed = await signOnce(ports, current, signal);
    if (signed !== "conflict") return signed;
    // Somebody else stored a checkpoint, or moved something else on: look again from what is there.
    const { patience, sessions } = ports;
    const found = await patience("sessions.find", signal, () => sessions.find(session.id));
    if (found === undefined)
      throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
    current = found;
  }
  throw new LucidError(
    "INTERNAL",
    "the session changed more often than expected; its checkpoint is left to the next sweep",
  );
}

async function signOnce(
  ports: CheckpointPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<Checkpointed | "conflict"> {
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
  if (outcome === "conflict") return outcome;
  observer.report({ kind: "checkpoint-signed", sessionId: id, size });
  return { session: { ...session, checkpoint, version: session.version + 1 }, note };
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
