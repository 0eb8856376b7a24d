import { LucidError } from "../core/errors.ts";
import type { LeafIndex, SessionId } from "../core/ids.ts";
import type { SessionRecord } from "../schema/record.ts";
import { OnePerSession } from "./integrate.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, SessionStore } from "./ports.ts";
import type { SessionDirectory } from "./session-directory.ts";

/** Lost compare-and-swaps in a row before the job is retried; the tree grows under us while chunks arrive. */
const CONFLICTS_MAX = 1_000;

export interface RoomPorts {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly directory: SessionDirectory;
  readonly patience: Patience;
}

export interface RoomLimits {
  readonly chunkBytesMax: number;
  readonly sessionBytesMax: number;
}

/**
 * Whether MAX_SESSION_SIZE has room for one chunk more, also where chunks are committed far ahead of the tree.
 *
 * - *By index.* The tree's bytes and `chunkBytesMax` for each index from there up to the chunk's own are within the limit:
 *   then so is everything up to that index, whatever else is committed there. No read; nearly every chunk.
 * - *By count.* A chunk that may have room but not for sure by its index: then the bytes that are committed are summed up.
 *   What it takes lies beyond what the others vouch for, so the session's document says first that it is `roomCounted`, and
 *   from then on every chunk of the session is counted. Those of one time share a sum.
 *
 * How far above the limit a session can get: two chunks that are under way at the same time don't see each other, and a
 * worker knows `roomCounted` a second later at most, or when its next chunk is in the tree. So at most by what all workers have
 * under way at one time, which is a few times MAX_WORKERS chunks each.
 */
export class SessionRoom {
  readonly #ports: RoomPorts;
  readonly #limits: RoomLimits;
  readonly #committedBytes: OnePerSession<number>;

  constructor(ports: RoomPorts, limits: RoomLimits, stopped: AbortSignal) {
    this.#ports = ports;
    this.#limits = limits;
    this.#committedBytes = new OnePerSession((session) => countBytes(ports, session, stopped));
  }

  /** May be told of a chunk that is committed already: then `false` says nothing. */
  async takes(
    session: SessionRecord,
    index: LeafIndex,
    bytes: number,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { chunkBytesMax, sessionBytesMax } = this.#limits;
    const { totals, tree, roomCounted } = session;
    if (totals.originalBytes + bytes > sessionBytesMax) return false;
    // Above 2^53 the product isn't exact, but never below the limit, which is.
    const reach = totals.originalBytes + (index + 1 - tree.size) * chunkBytesMax;
    if (!roomCounted && reach <= sessionBytesMax) return true;
    if (!roomCounted) await markCounted(this.#ports, session, signal);
    // Dies here: the session's chunks are counted though nothing lies far ahead, which costs a read now and then.
    return (await this.#committedBytes.request(session.id)) + bytes <= sessionBytesMax;
  }
}

async function markCounted(
  { sessions, directory, patience }: RoomPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<void> {
  let record: SessionRecord | undefined = session;
  for (let conflicts = 0; conflicts < CONFLICTS_MAX; conflicts++) {
    const { id, version, state, roomCounted }: SessionRecord = record;
    if (roomCounted || state !== "open") return;
    const outcome = await patience("sessions.countRoom", signal, () =>
      sessions.replace(id, version, { kind: "count-room" }),
    );
    // What comes next in this process is to know it.
    if (outcome === "replaced")
      return directory.remember({ ...record, roomCounted: true, version: version + 1 });
    record = await patience("sessions.find", signal, () => sessions.find(id));
    if (record === undefined)
      throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
    directory.remember(record);
  }
  throw new LucidError("INTERNAL", "the session changed more often than expected; the job is retried");
}

/**
 * Original bytes of all committed chunks. The record may be a second old: leaves that have come into the tree since then are
 * among those that are summed up, none of them twice.
 */
async function countBytes(
  { chunks, directory, patience }: RoomPorts,
  session: SessionId,
  signal: AbortSignal,
): Promise<number> {
  const record = await directory.find(session, signal);
  if (record === undefined)
    throw new LucidError("SESSION_UNKNOWN", "the session's document is gone; run fsck");
  const beyond = await patience("chunks.bytes", signal, () =>
    chunks.originalBytesFrom(session, record.tree.size),
  );
  return record.totals.originalBytes + beyond;
}
