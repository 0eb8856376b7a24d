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
  /** Throws SESSION_SEALED, CHUNK_BEYOND_END or CHUNK_CONFLICT for a chunk that the session can't take. */
  checkChunk(index: number, bytes: number): Promise<void>;
  /** Throws FINALIZE_COUNT_CONFLICT or FINALIZE_COUNT_BELOW_CHUNKS for a count that the session can't get. */
  checkCount(count: number): Promise<void>;
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
      return foresight(stores, await stores.sessions.find(id));
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
  checkChunk: async () => {},
  checkCount: async () => {},
  close: async () => {},
};

function foresight(stores: OpenStores, session: SessionRecord | undefined): SessionForesight {
  return {
    checked: true,
    session,
    async checkChunk(index, bytes) {
      if (session === undefined) return;
      if (isBeyondEnd(session, index)) throw beyondEnd(session, index);
      if (session.state === "open" && index >= session.tree.size) return;
      // Sent again, it is harmless; other bytes are not. Without the session's key only the length tells.
      const committed = await stores.chunks.find(session.id, leafIndex(index));
      if (committed === undefined || committed.originalBytes === bytes) return;
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
    close: () => stores.close(),
  };
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
