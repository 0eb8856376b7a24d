import type { LoadedConfig } from "../config.ts";
import { errorCodeOf, LucidError } from "../core/errors.ts";
import { leafIndex, type SessionId } from "../core/ids.ts";
import { isBeyondEnd } from "../pipeline/seal-session.ts";
import type { SessionRecord } from "../schema/record.ts";
import { type OpenStores, openStores } from "./open-stores.ts";
import { counted, type Output, PROGRAM } from "./output.ts";

/*
 * What a producer is told before it queues a job that can only become a dead letter. It needs no database: where
 * MONGODB_URL isn't set, or MongoDB is away, nothing is looked at, and the command says so. What is refused here is certain:
 * a sealed session and a confirmed count stay, and a committed chunk is never overwritten.
 */

export interface SessionForesight {
  /** False if the session could not be looked at. */
  readonly checked: boolean;
  /** `undefined` for a session that isn't there yet, or that wasn't looked at. */
  readonly session: SessionRecord | undefined;
  /**
   * Throws SESSION_SEALED, CHUNK_BEYOND_END or CHUNK_CONFLICT for a chunk that the session can't take. True: the index is committed already, and the
   * chunk is taken only if it is the same.
   */
  checkChunk(index: number, bytes: number): Promise<boolean>;
  /** Throws FINALIZE_COUNT_CONFLICT or FINALIZE_COUNT_BELOW_CHUNKS for a count that the session can't get. */
  checkCount(count: number): Promise<void>;
  /**
   * `sent`, or one more than the highest index that the session has, whichever is more; `undefined` if nobody can tell. What is still
   * queued isn't seen.
   */
  countKnown(sent: number): Promise<number | undefined>;
  close(): Promise<void>;
}

export async function foresee(
  { config, sources }: LoadedConfig,
  id: SessionId,
  output: Pick<Output, "say">,
): Promise<SessionForesight> {
  if (sources.MONGODB_URL === "default") {
    output.say("MONGODB_URL is not set: not checked whether the session still takes this");
    return UNCHECKED;
  }
  try {
    const stores = await openStores(config.mongodb.url.reveal());
    try {
      const session = await stores.sessions.find(id);
      const [later] = await stores.chunks.beyond(id, session?.tree.size ?? 0, 1);
      return foresight(stores, id, session, later !== undefined);
    } catch (thrown) {
      await stores.close();
      throw thrown;
    }
  } catch (thrown) {
    if (errorCodeOf(thrown) !== "STORE_UNAVAILABLE") throw thrown;
    output.say("MongoDB does not answer (MONGODB_URL): not checked whether the session still takes this");
    return UNCHECKED;
  }
}

const UNCHECKED: SessionForesight = {
  checked: false,
  session: undefined,
  checkChunk: async () => false,
  checkCount: async () => {},
  countKnown: async () => undefined,
  close: async () => {},
};

/** `hasLater`: chunks are committed beyond the tree, behind a gap. */
function foresight(
  stores: OpenStores,
  id: SessionId,
  session: SessionRecord | undefined,
  hasLater: boolean,
): SessionForesight {
  return {
    checked: true,
    session,
    async checkChunk(index, bytes) {
      if (session === undefined) return false;
      if (isBeyondEnd(session, index)) throw beyondEnd(session, index);
      if (session.state === "open" && index >= session.tree.size && !hasLater) return false;
      // Sent again, it is harmless; other bytes are not. Without the session's key only the length tells.
      const committed = await stores.chunks.find(session.id, leafIndex(index));
      if (committed === undefined) return false;
      if (committed.originalBytes === bytes) return true;
      throw new LucidError(
        "CHUNK_CONFLICT",
        `${session.id} has a chunk ${index} of ${committed.originalBytes} bytes and keeps it, this one has ${bytes}; ` +
          "record this in another session",
      );
    },
    async checkCount(count) {
      if (session === undefined) return;
      const { expectedCount, countConfirmed, id } = session;
      if (countConfirmed && expectedCount !== undefined && expectedCount !== count) {
        throw new LucidError("FINALIZE_COUNT_CONFLICT", countConflict(session, expectedCount, count));
      }
      const [beyond] = await stores.chunks.beyond(id, count, 1);
      if (beyond === undefined) return;
      throw new LucidError(
        "FINALIZE_COUNT_BELOW_CHUNKS",
        `${id} has a chunk ${beyond.index}, which a count of ${count} leaves out; give the number of chunks that were sent`,
      );
    },
    async countKnown(sent) {
      try {
        return await countOfHighest(stores.chunks, id, Math.max(sent, session?.tree.size ?? 0));
      } catch (thrown) {
        if (errorCodeOf(thrown) !== "STORE_UNAVAILABLE") throw thrown;
        return undefined;
      }
    },
    close: () => stores.close(),
  };
}

/** `known`, or one more than the highest committed index. Doubles its steps, then halves them: 64 questions at most, mostly one. */
async function countOfHighest(chunks: OpenStores["chunks"], id: SessionId, known: number): Promise<number> {
  const firstFrom = async (from: number): Promise<number | undefined> =>
    (await chunks.beyond(id, from, 1))[0]?.index;
  // There is none at or beyond `end`, and one just below `count`, or `count` is what is known.
  let count = known;
  let end = known;
  for (let step = 1; ; step *= 2) {
    const found = await firstFrom(end);
    if (found === undefined) break;
    count = found + 1;
    end = count + step;
  }
  while (count < end) {
    const middle = Math.floor((count + end) / 2);
    const found = await firstFrom(middle);
    if (found === undefined) end = middle;
    else count = found + 1;
  }
  return count;
}

function countConflict({ id, state, tree }: SessionRecord, expected: number, count: number): string {
  if (state !== "open")
    return `${id} is sealed with ${counted(tree.size, "chunk")}: ${count} can't be its count`;
  return (
    `${id} was finalized with ${counted(expected, "chunk")}, and that is final: ${count} can't be its count; ` +
    `${PROGRAM} status ${id} says what is missing and what to do`
  );
}

function beyondEnd({ id, state, tree, expectedCount }: SessionRecord, index: number): LucidError {
  return state === "open"
    ? new LucidError(
        "CHUNK_BEYOND_END",
        `${id} was finalized with ${expectedCount} chunks: chunk ${index} comes too late; record it in another session`,
      )
    : new LucidError(
        "SESSION_SEALED",
        `${id} is sealed with ${tree.size} chunks: chunk ${index} comes too late; record it in another session`,
      );
}
