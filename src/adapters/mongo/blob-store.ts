import type { Collection } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import type { BlobEntry, BlobPresence, BlobStore, ChunkKey } from "../../pipeline/ports.ts";
import { coalesce } from "../coalesce.ts";
import type { MongoConnection } from "./connection.ts";
import {
  type BlobDocument,
  blobDocument,
  blobEntry,
  blobOwner,
  type ChunkDocument,
  COLLECTIONS,
  chunkDocumentId,
} from "./documents.ts";

/** Blobs above this go alone and at once: for them a round trip costs less than waiting for another. */
const GATHERED_BLOB_BYTES_MAX = 128 * 1024;
const INSERT_BYTES_MAX = 1024 * 1024;
const INSERT_ITEMS_MAX = 64;
const INSERT_LANES = 2;
const REMOVE_ITEMS_MAX = 1_000;
const EXISTING_ITEMS_MAX = 1_000;

export class MongoBlobStore implements BlobStore, BlobPresence {
  readonly #connection: MongoConnection;
  readonly #insertSmall: (document: BlobDocument) => Promise<void>;

  constructor(connection: MongoConnection) {
    this.#connection = connection;
    this.#insertSmall = coalesce({
      lanes: INSERT_LANES,
      itemsMax: INSERT_ITEMS_MAX,
      bytesMax: INSERT_BYTES_MAX,
      bytesOf: ({ bytes }) => bytes.byteLength,
      send: (documents) => this.#insertMany(documents),
    });
  }

  get #blobs(): Collection<BlobDocument> {
    return this.#connection.db.collection<BlobDocument>(COLLECTIONS.blobs);
  }

  get #chunks(): Collection<ChunkDocument> {
    return this.#connection.db.collection<ChunkDocument>(COLLECTIONS.chunks);
  }

  /** `blob` is not copied before it is sent: it must stay as it is, and must not be transferred, until this settles. */
  async insert(id: string, owner: ChunkKey, blob: Uint8Array): Promise<void> {
    assertOwner(id, owner);
    const document = blobDocument(id, owner, blob);
    if (blob.byteLength <= GATHERED_BLOB_BYTES_MAX) await this.#insertSmall(document);
    else await this.#insertMany([document]);
  }

  async read(id: string): Promise<Uint8Array | undefined> {
    const document = await this.#connection.read((options) =>
      this.#blobs.findOne({ _id: id }, { ...options, projection: { bytes: 1 } }),
    );
    return document?.bytes;
  }

  async remove(ids: readonly string[]): Promise<void> {
    for (let at = 0; at < ids.length; at += REMOVE_ITEMS_MAX) {
      const some = ids.slice(at, at + REMOVE_ITEMS_MAX);
      await this.#connection.write({
        delete: COLLECTIONS.blobs,
        deletes: [{ q: { _id: { $in: some } }, limit: 0 }],
      });
    }
  }

  async page(after: string | undefined, limit: number): Promise<readonly BlobEntry[]> {
    if (limit < 1) return [];
    let last = after;
    for (;;) {
      const ids = await this.#idsAfter(last, limit);
      const entries = await this.#entries(ids);
      // An id that no worker wrote is passed over; a page of nothing else must not look like the end.
      if (entries.length > 0 || ids.length < limit) return entries;
      last = ids.at(-1);
    }
  }

  async existing(ids: readonly string[]): Promise<ReadonlySet<string>> {
    const present = new Set<string>();
    for (let at = 0; at < ids.length; at += EXISTING_ITEMS_MAX) {
      const some = ids.slice(at, at + EXISTING_ITEMS_MAX);
      const found = await this.#connection.read((options) =>
        this.#blobs
          .find({ _id: { $in: some } }, { ...options, batchSize: some.length + 1 })
          .project<{ readonly _id: string }>({ _id: 1 })
          .toArray(),
      );
      for (const { _id } of found) present.add(_id);
    }
    return present;
  }

  /** A duplicate `_id` is this attempt's own insert, whose reply was lost. */
  async #insertMany(documents: readonly BlobDocument[]): Promise<readonly undefined[]> {
    await this.#connection.write({ insert: COLLECTIONS.blobs, documents, ordered: false });
    return documents.map(() => undefined);
  }

  /** Only `_id`, so that the index answers and no blob is read from the disk. */
  async #idsAfter(after: string | undefined, limit: number): Promise<readonly string[]> {
    const filter = after === undefined ? {} : { _id: { $gt: after } };
    const found = await this.#connection.read((options) =>
      this.#blobs
        .find(filter, { ...options, limit, batchSize: limit })
        .sort({ _id: 1 })
        .project<{ readonly _id: string }>({ _id: 1 })
        .toArray(),
    );
    return found.map(({ _id }) => _id);
  }

  async #entries(ids: readonly string[]): Promise<readonly BlobEntry[]> {
    const owners = new Set(ids.flatMap((id) => ownerDocumentId(id) ?? []));
    // After the blob ids and never before: a chunk that commits between the two reads is seen.
    const committed = await this.#committedBlobIds([...owners]);
    return ids.flatMap((id) => blobEntry(id, committed) ?? []);
  }

  async #committedBlobIds(chunkIds: readonly string[]): Promise<ReadonlyMap<string, string>> {
    if (chunkIds.length === 0) return new Map();
    const found = await this.#connection.read((options) =>
      this.#chunks
        .find({ _id: { $in: [...chunkIds] } }, { ...options, batchSize: chunkIds.length + 1 })
        .project<{ readonly _id: string; readonly blob_id: string }>({ blob_id: 1 })
        .toArray(),
    );
    return new Map(found.map(({ _id, blob_id }) => [_id, blob_id]));
  }
}

function ownerDocumentId(blobId: string): string | undefined {
  const owner = blobOwner(blobId);
  return owner === undefined ? undefined : chunkDocumentId(owner);
}

/** `page` reads the owner off the id, so an id of another form would hide its blob from the sweeper. */
function assertOwner(id: string, owner: ChunkKey): void {
  if (ownerDocumentId(id) === chunkDocumentId(owner)) return;
  throw new LucidError("INTERNAL", "a blob id must be {session_id}:{index}:{attempt} of the chunk it is for");
}
