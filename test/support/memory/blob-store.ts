import { LucidError } from "../../../src/core/errors.ts";
import type { BlobEntry, BlobPresence, BlobStore, ChunkKey } from "../../../src/pipeline/ports.ts";
import type { MemoryChunkStore } from "./chunk-store.ts";
import { pageAfter } from "./order.ts";

interface StoredBlob {
  readonly id: string;
  readonly owner: ChunkKey;
  readonly bytes: Uint8Array;
}

/** The twin of MongoBlobStore. Copies what it is given, because a server does. */
export class MemoryBlobStore implements BlobStore, BlobPresence {
  readonly #blobs = new Map<string, StoredBlob>();
  readonly #chunks: MemoryChunkStore;

  constructor(chunks: MemoryChunkStore) {
    this.#chunks = chunks;
  }

  async insert(id: string, owner: ChunkKey, blob: Uint8Array): Promise<void> {
    if (!id.startsWith(`${owner.sessionId}:${owner.index}:`)) {
      throw new LucidError(
        "INTERNAL",
        "a blob id must be {session_id}:{index}:{attempt} of the chunk it is for",
      );
    }
    if (!this.#blobs.has(id)) this.#blobs.set(id, { id, owner, bytes: Uint8Array.from(blob) });
  }

  async read(id: string): Promise<Uint8Array | undefined> {
    return this.#blobs.get(id)?.bytes.slice();
  }

  async remove(ids: readonly string[]): Promise<void> {
    for (const id of ids) this.#blobs.delete(id);
  }

  async existing(ids: readonly string[]): Promise<ReadonlySet<string>> {
    return new Set(ids.filter((id) => this.#blobs.has(id)));
  }

  async page(after: string | undefined, limit: number): Promise<readonly BlobEntry[]> {
    return pageAfter([...this.#blobs.values()], ({ id }) => id, after, limit).map(({ id, owner }) => ({
      id,
      owner,
      committedBlobId: this.#chunks.committed(owner)?.blobId,
    }));
  }
}
