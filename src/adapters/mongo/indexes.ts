import type { IndexDescription } from "mongodb";
import type { MongoConnection } from "./connection.ts";
import { COLLECTIONS } from "./documents.ts";
import { isServerCode, NAMESPACE_EXISTS } from "./errors.ts";
import { LucidError } from "../../core/errors.ts";

/** Ciphertext doesn't compress: trying costs CPU time and gains nothing (facts). */
const UNCOMPRESSED = { storageEngine: { wiredTiger: { configString: "block_compressor=none" } } };

const SESSION_INDEXES: readonly IndexDescription[] = [
  // SessionStore.unfinished: by id. Partial: it holds what is under way, and not every session there ever was.
  { name: "unfinished", key: { closed: 1, _id: 1 }, partialFilterExpression: { closed: false } },
];

const CHUNK_INDEXES: readonly IndexDescription[] = [
  // A chunk id belongs to one index of its session.
  { name: "session_chunk_id", key: { session_id: 1, chunk_id: 1 }, unique: true },
  // ChunkStore.beyond. Not unique: `_id` is this pair already.
  { name: "session_chunk_index", key: { session_id: 1, chunk_index: 1 } },
  // ChunkStore.withPendingEvent. Partial: it holds what is on its way, and not every chunk there ever was.
  {
    name: "pending_event_by_id",
    key: { "event.state": 1, _id: 1 },
    partialFilterExpression: { "event.state": "pending" },
  },
];

/**
 * Makes the collections and indexes of contract §4. Running it again, or in several workers at once, changes nothing.
 * Returns sentences for the operator about what the server didn't take. Fails with STORE_UNAVAILABLE, or with INTERNAL
 * when an index of one of these names exists with other keys.
 */
export async function ensureIndexes(connection: MongoConnection): Promise<readonly string[]> {
  const notices = await ensureBlobCollection(connection);
  await ensure(connection, COLLECTIONS.sessions, SESSION_INDEXES);
  await ensure(connection, COLLECTIONS.chunks, CHUNK_INDEXES);
  return notices;
}

async function ensureBlobCollection(connection: MongoConnection): Promise<readonly string[]> {
  try {
    await connection.run(() => connection.db.createCollection(COLLECTIONS.blobs, UNCOMPRESSED));
    return [];
  } catch (thrown) {
    if (!(thrown instanceof LucidError) || thrown.code === "STORE_UNAVAILABLE") throw thrown;
    if (isServerCode(thrown.cause, NAMESPACE_EXISTS)) return [];
    // Another storage engine or a managed service: the first insert makes the collection.
    return ["chunk_blobs could not be made without compression; the server's default is used"];
  }
}

async function ensure(
  connection: MongoConnection,
  collection: string,
  indexes: readonly IndexDescription[],
): Promise<void> {
  await connection.run(() => connection.db.collection(collection).createIndexes([...indexes]));
}
