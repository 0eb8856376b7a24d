import { LEAF_INDEX_MAX, type LeafIndex, type SessionId } from "../../../src/core/ids.ts";
import type { ChunkKey, ChunkStore, CommittedLeaf, Listed } from "../../../src/pipeline/ports.ts";
import type { ChunkRecord } from "../../../src/schema/record.ts";
import { pageAfter } from "./order.ts";

const LONG_AGO = new Date(0);

/** The twin of MongoChunkStore: each call is one atomic step, taken when it is called. */
export class MemoryChunkStore implements ChunkStore {
  readonly #chunks = new Map<string, ChunkRecord>();
  /** `{sid}:{chunk id}`: the unique key. */
  readonly #chunkIds = new Set<string>();
  /** When events were marked. */
  readonly #sentAt = new Map<string, Date>();

  async find(session: SessionId, index: LeafIndex): Promise<ChunkRecord | undefined> {
    return this.committed({ sessionId: session, index });
  }

  async insert(chunk: ChunkRecord): Promise<"inserted" | "index-taken" | "id-taken"> {
    if (this.#chunks.has(indexKey(chunk))) return "index-taken";
    if (this.#chunkIds.has(idKey(chunk))) return "id-taken";
    this.#chunks.set(indexKey(chunk), chunk);
    this.#chunkIds.add(idKey(chunk));
    return "inserted";
  }

  async contiguousLeaves(
    session: SessionId,
    from: LeafIndex,
    limit: number,
  ): Promise<readonly CommittedLeaf[]> {
    const leaves: CommittedLeaf[] = [];
    for (let index: number = from; leaves.length < limit && index <= LEAF_INDEX_MAX; index++) {
      const chunk = this.committed({ sessionId: session, index: index as LeafIndex });
      if (chunk === undefined) break;
      const { leafHash, originalBytes, storedBytes } = chunk;
      leaves.push({ index: chunk.index, leafHash, originalBytes, storedBytes });
    }
    return leaves;
  }

  async beyond(session: SessionId, from: number, limit: number): Promise<readonly ChunkRecord[]> {
    return [...this.#chunks.values()]
      .filter(({ sessionId, index }) => sessionId === session && index >= from)
      .sort((left, right) => left.index - right.index)
      .slice(0, Math.max(limit, 0));
  }

  async originalBytesFrom(session: SessionId, from: number): Promise<number> {
    return [...this.#chunks.values()]
      .filter(({ sessionId, index }) => sessionId === session && index >= from)
      .reduce((total, { originalBytes }) => total + originalBytes, 0);
  }

  async reopenEvents(session: SessionId, since: Date): Promise<number> {
    const lost = [...this.#chunks].filter(
      ([key, { sessionId, eventState }]) =>
        sessionId === session && eventState === "sent" && (this.#sentAt.get(key) ?? LONG_AGO) >= since,
    );
    for (const [key, chunk] of lost) this.#chunks.set(key, { ...chunk, eventState: "pending" });
    return lost.length;
  }

  async withPendingEvent(after: string | undefined, limit: number): Promise<readonly Listed<ChunkRecord>[]> {
    const pending = [...this.#chunks.values()].filter(({ eventState }) => eventState === "pending");
    return pageAfter(pending, indexKey, after, limit).map((chunk) => ({
      id: indexKey(chunk),
      sessionId: chunk.sessionId,
      read: () => chunk,
    }));
  }

  async markSent(chunks: readonly ChunkKey[], at: Date): Promise<void> {
    for (const key of chunks) {
      const chunk = this.committed(key);
      if (chunk === undefined) continue;
      this.#chunks.set(indexKey(key), { ...chunk, eventState: "sent" });
      this.#sentAt.set(indexKey(key), at);
    }
  }

  async withdraw(chunk: ChunkKey, blobId: string): Promise<void> {
    const stored = this.committed(chunk);
    if (stored?.blobId !== blobId) return;
    this.#chunks.delete(indexKey(chunk));
    this.#chunkIds.delete(idKey(stored));
  }

  /** As `find`, in one step with the caller: for the blob store's page and for invariants. */
  committed(key: ChunkKey): ChunkRecord | undefined {
    return this.#chunks.get(indexKey(key));
  }
}

function indexKey({ sessionId, index }: ChunkKey): string {
  return `${sessionId}:${index}`;
}

function idKey({ sessionId, chunkId }: ChunkRecord): string {
  return `${sessionId}:${chunkId}`;
}
