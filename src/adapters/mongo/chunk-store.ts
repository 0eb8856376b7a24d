import type { Collection } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import { LEAF_INDEX_MAX, type LeafIndex, type SessionId } from "../../core/ids.ts";
import type { ChunkKey, ChunkStore, CommittedLeaf, Listed } from "../../pipeline/ports.ts";
import type { ChunkRecord } from "../../schema/record.ts";
import { coalesce } from "../coalesce.ts";
import type { DuplicateKey, MongoConnection } from "./connection.ts";
import {
  type ChunkDocument,
  COLLECTIONS,
  chunkDocument,
  chunkDocumentId,
  chunkRecord,
  committedLeaf,
  LEAF_PROJECTION,
  type LeafDocument,
  sessionOfChunkId,
} from "./documents.ts";

const FIND_ITEMS_MAX = 100;
const INSERT_ITEMS_MAX = 100;
/** 16 KiB of metadata a document at most, so that a command stays far below the 16 MiB of BSON. */
const INSERT_BYTES_MAX = 2 * 1024 * 1024;
const DOCUMENT_OVERHEAD_BYTES = 1_024;
const MARK_ITEMS_MAX = 1_000;
/** Leaves of one read: a run of integrate usually adds a few, a session that catches up adds thousands. */
const LEAF_WINDOW_FIRST = 32;
const LEAF_WINDOW_MAX = 256;
/** An insert that was refused for a chunk which is gone when we look is tried again. */
const INSERT_TRIES_MAX = 3;

interface Marks {
  readonly ids: readonly string[];
  readonly at: Date;
}

type InsertOutcome = "inserted" | "index-taken" | "id-taken";

/**
 * The filters name `_id` alone wherever it is known: it carries the session id, and one field more would make the
 * stand-in scan the collection instead of using the index of `_id`.
 */
export class MongoChunkStore implements ChunkStore {
  readonly #connection: MongoConnection;
  readonly #find: (id: string) => Promise<ChunkDocument | undefined>;
  readonly #insert: (document: ChunkDocument) => Promise<InsertOutcome | "refused">;
  readonly #markSent: (marks: Marks) => Promise<void>;

  constructor(connection: MongoConnection) {
    this.#connection = connection;
    this.#find = coalesce({ lanes: 1, itemsMax: FIND_ITEMS_MAX, send: (ids) => this.#findMany(ids) });
    this.#insert = coalesce({
      lanes: 1,
      itemsMax: INSERT_ITEMS_MAX,
      bytesMax: INSERT_BYTES_MAX,
      bytesOf: ({ metadata }) => DOCUMENT_OVERHEAD_BYTES + Buffer.byteLength(metadata ?? ""),
      send: (documents) => this.#insertMany(documents),
    });
    this.#markSent = coalesce({
      lanes: 1,
      itemsMax: MARK_ITEMS_MAX,
      bytesMax: MARK_ITEMS_MAX,
      bytesOf: ({ ids }) => ids.length,
      send: (groups) => this.#markMany(groups),
    });
  }

  get #chunks(): Collection<ChunkDocument> {
    return this.#connection.db.collection<ChunkDocument>(COLLECTIONS.chunks);
  }

  async find(session: SessionId, index: LeafIndex): Promise<ChunkRecord | undefined> {
    const document = await this.#find(chunkDocumentId({ sessionId: session, index }));
    // Here, and not where the gathered read is: an unreadable document is the trouble of its own caller only.
    return document === undefined ? undefined : chunkRecord(document);
  }

  async insert(chunk: ChunkRecord): Promise<InsertOutcome> {
    const document = chunkDocument(chunk);
    for (let tries = 0; tries < INSERT_TRIES_MAX; tries++) {
      const outcome = await this.#insert(document);
      if (outcome !== "refused") return outcome;
      const reason = await this.#reasonOfRefusal(document);
      if (reason !== undefined) return reason;
    }
    throw new LucidError("INTERNAL", "a chunk is refused by a unique key that nothing holds; run fsck");
  }

  async contiguousLeaves(
    session: SessionId,
    from: LeafIndex,
    limit: number,
  ): Promise<readonly CommittedLeaf[]> {
    const leaves: CommittedLeaf[] = [];
    const end = Math.min(from + limit, LEAF_INDEX_MAX + 1);
    let windowSize = LEAF_WINDOW_FIRST;
    while (from + leaves.length < end) {
      const start = from + leaves.length;
      const asked = Math.min(windowSize, end - start);
      const found = await this.#leavesOfWindow(session, start, asked);
      leaves.push(...found);
      if (found.length < asked) break;
      windowSize = Math.min(windowSize * 2, LEAF_WINDOW_MAX);
    }
    return leaves;
  }

  async beyond(session: SessionId, from: number, limit: number): Promise<readonly ChunkRecord[]> {
    if (limit < 1) return [];
    const documents = await this.#connection.read((options) =>
      this.#chunks
        .find({ session_id: session, chunk_index: { $gte: from } }, { ...options, limit, batchSize: limit })
        .sort({ chunk_index: 1 })
        .toArray(),
    );
    return documents.map(chunkRecord);
  }

  async originalBytesFrom(session: SessionId, from: number): Promise<number> {
    const sums = await this.#connection.read((options) =>
      this.#chunks
        .aggregate<{ readonly bytes: number }>(
          [
            { $match: { session_id: session, chunk_index: { $gte: from } } },
            { $group: { _id: null, bytes: { $sum: "$original_bytes" } } },
          ],
          options,
        )
        .toArray(),
    );
    return Number(sums[0]?.bytes ?? 0);
  }

  async reopenEvents(session: SessionId, since: Date): Promise<number> {
    const { n } = await this.#connection.write({
      update: COLLECTIONS.chunks,
      updates: [
        {
          q: { session_id: session, "event.state": "sent", "event.sent_at": { $gte: since } },
          u: { $set: { "event.state": "pending" } },
          multi: true,
        },
      ],
    });
    return n;
  }

  async withPendingEvent(after: string | undefined, limit: number): Promise<readonly Listed<ChunkRecord>[]> {
    if (limit < 1) return [];
    // An equality on the first key of the index, in the order of the second: nothing is sorted.
    const filter = {
      "event.state": "pending" as const,
      ...(after === undefined ? {} : { _id: { $gt: after } }),
    };
    const documents = await this.#connection.read((options) =>
      this.#chunks
        .find(filter, { ...options, limit, batchSize: limit })
        .sort({ _id: 1 })
        .toArray(),
    );
    return documents.map((document) => ({
      id: document._id,
      sessionId: sessionOfChunkId(document._id),
      read: () => chunkRecord(document),
    }));
  }

  async markSent(chunks: readonly ChunkKey[], at: Date): Promise<void> {
    if (chunks.length === 0) return;
    await this.#markSent({ ids: chunks.map(chunkDocumentId), at });
  }

  async withdraw(chunk: ChunkKey, blobId: string): Promise<void> {
    await this.#connection.write({
      delete: COLLECTIONS.chunks,
      deletes: [{ q: { _id: chunkDocumentId(chunk), blob_id: blobId }, limit: 1 }],
    });
  }

  async #findMany(ids: readonly string[]): Promise<readonly (ChunkDocument | undefined)[]> {
    const distinct = [...new Set(ids)];
    const documents = await this.#connection.read((options) =>
      this.#chunks.find({ _id: { $in: distinct } }, { ...options, batchSize: distinct.length + 1 }).toArray(),
    );
    const found = new Map(documents.map((document) => [document._id, document]));
    return ids.map((id) => found.get(id));
  }

  async #insertMany(documents: readonly ChunkDocument[]): Promise<readonly (InsertOutcome | "refused")[]> {
    const { duplicates } = await this.#connection.write({
      insert: COLLECTIONS.chunks,
      documents,
      ordered: false,
    });
    const outcomes = documents.map((): InsertOutcome | "refused" => "inserted");
    for (const duplicate of duplicates) outcomes[duplicate.index] = outcomeOf(duplicate);
    return outcomes;
  }

  /**
   * A chunk that comes a second time violates both unique keys, and the server names whichever it met first. So only
   * `_id` is believed; for everything else this looks whether the index is taken before it blames the chunk id.
   */
  async #reasonOfRefusal(document: ChunkDocument): Promise<"index-taken" | "id-taken" | undefined> {
    if ((await this.#find(document._id)) !== undefined) return "index-taken";
    const { session_id, chunk_id } = document;
    const holder = await this.#connection.read((options) =>
      this.#chunks.findOne({ session_id, chunk_id }, { ...options, projection: { _id: 1 } }),
    );
    return holder === null ? undefined : "id-taken";
  }

  /** The leaves from `start` up to the first absent one, at most `count`. */
  async #leavesOfWindow(session: SessionId, start: number, count: number): Promise<readonly CommittedLeaf[]> {
    // One `$in` of exact ids: served by the `_id` index everywhere, where a range would scan in the stand-in.
    const ids = Array.from({ length: count }, (_, at) =>
      chunkDocumentId({ sessionId: session, index: (start + at) as LeafIndex }),
    );
    const documents = await this.#connection.read((options) =>
      this.#chunks
        .find({ _id: { $in: ids } }, { ...options, batchSize: count + 1 })
        .project<LeafDocument>(LEAF_PROJECTION)
        .toArray(),
    );
    const found = new Map(documents.map((document) => [document._id, document]));
    const leaves: CommittedLeaf[] = [];
    for (const id of ids) {
      const document = found.get(id);
      if (document === undefined) break;
      leaves.push(committedLeaf(document));
    }
    return leaves;
  }

  /** One time for all that share a command: the latest, with which none is overlooked by reopenEvents. */
  async #markMany(groups: readonly Marks[]): Promise<readonly undefined[]> {
    const ids = groups.flatMap((group) => group.ids);
    const at = new Date(Math.max(...groups.map((group) => group.at.getTime())));
    const u = { $set: { "event.state": "sent", "event.sent_at": at } };
    await this.#connection.write({
      update: COLLECTIONS.chunks,
      updates: [{ q: { _id: { $in: ids } }, u, multi: true }],
    });
    return groups.map(() => undefined);
  }
}

function outcomeOf({ keys }: DuplicateKey): InsertOutcome | "refused" {
  return keys?.length === 1 && keys[0] === "_id" ? "index-taken" : "refused";
}
