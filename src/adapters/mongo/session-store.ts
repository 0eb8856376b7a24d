import type { Collection, Filter } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import type { SessionId } from "../../core/ids.ts";
import type {
  Listed,
  NewSession,
  SessionChange,
  SessionListing,
  SessionStore,
} from "../../pipeline/ports.ts";
import type { SessionRecord } from "../../schema/record.ts";
import { coalesce } from "../coalesce.ts";
import type { MongoConnection } from "./connection.ts";
import {
  COLLECTIONS,
  newSessionDocument,
  type SessionDocument,
  sessionRecord,
  sessionUpdate,
} from "./documents.ts";

/** Ids in one gathered read; documents are one or two KiB. */
const FIND_ITEMS_MAX = 100;
/** A session that is removed between "exists" and the read of it is made anew; twice in a row is no accident. */
const CREATE_TRIES_MAX = 3;

export class MongoSessionStore implements SessionStore, SessionListing {
  readonly #connection: MongoConnection;
  readonly #find: (id: SessionId) => Promise<SessionDocument | undefined>;

  constructor(connection: MongoConnection) {
    this.#connection = connection;
    this.#find = coalesce({ lanes: 1, itemsMax: FIND_ITEMS_MAX, send: (ids) => this.#findMany(ids) });
  }

  get #sessions(): Collection<SessionDocument> {
    return this.#connection.db.collection<SessionDocument>(COLLECTIONS.sessions);
  }

  async find(session: SessionId): Promise<SessionRecord | undefined> {
    const document = await this.#find(session);
    // Here, and not where the gathered read is: an unreadable document is the trouble of its own caller only.
    return document === undefined ? undefined : sessionRecord(document);
  }

  async create(session: NewSession): Promise<SessionRecord> {
    const document = newSessionDocument(session);
    for (let tries = 0; tries < CREATE_TRIES_MAX; tries++) {
      const { duplicates } = await this.#connection.write({
        insert: COLLECTIONS.sessions,
        documents: [document],
      });
      if (duplicates.length === 0) return sessionRecord(document);
      // Somebody else's session, or our own insert whose reply was lost: the document that is there counts.
      const first = await this.#find(session.id);
      if (first !== undefined) return sessionRecord(first);
    }
    throw new LucidError(
      "INTERNAL",
      "a session exists and can't be read; check that nothing removes sessions",
    );
  }

  async replace(
    session: SessionId,
    version: number,
    change: SessionChange,
  ): Promise<"replaced" | "conflict"> {
    const { n } = await this.#connection.write({
      update: COLLECTIONS.sessions,
      updates: [{ q: { _id: session, "tree.version": version }, u: sessionUpdate(change) }],
    });
    return n === 1 ? "replaced" : "conflict";
  }

  async reopenEvents(session: SessionId): Promise<number> {
    const $inc = { "tree.version": 1 };
    const isPending = { $or: [{ sealed_event: "pending" }, { anchored_event: "pending" }] };
    // First: an event whose mark comes in between is `sent` then, and reopened by what follows.
    await this.#connection.write({
      update: COLLECTIONS.sessions,
      updates: [{ q: { _id: session, ...isPending }, u: { $inc } }],
    });
    const reopen = (field: "sealed_event" | "anchored_event") => ({
      q: { _id: session, [field]: "sent" },
      u: { $set: { [field]: "pending", closed: false }, $inc },
    });
    const { n } = await this.#connection.write({
      update: COLLECTIONS.sessions,
      updates: [reopen("sealed_event"), reopen("anchored_event")],
    });
    return n;
  }

  async activeSince(since: Date, after: SessionId | undefined, limit: number): Promise<readonly SessionId[]> {
    const isActive = {
      $or: [{ closed: false }, { sealed_at: { $gte: since } }, { "anchor.anchored_at": { $gte: since } }],
    };
    return this.#idsOf(isActive, after, limit);
  }

  async unfinished(after: SessionId | undefined, limit: number): Promise<readonly Listed<SessionRecord>[]> {
    if (limit < 1) return [];
    // An equality on the first key of the index, in the order of the second: nothing is sorted.
    const filter = { closed: false, ...(after === undefined ? {} : { _id: { $gt: after } }) };
    const documents = await this.#connection.read((options) =>
      this.#sessions
        .find(filter, { ...options, limit, batchSize: limit })
        .sort({ _id: 1 })
        .toArray(),
    );
    return documents.map((document) => ({
      id: document._id,
      sessionId: document._id as SessionId,
      read: () => sessionRecord(document),
    }));
  }

  async ids(after: SessionId | undefined, limit: number): Promise<readonly SessionId[]> {
    return this.#idsOf({}, after, limit);
  }

  async newest(limit: number): Promise<readonly SessionId[]> {
    if (limit < 1) return [];
    // The order of insertion backwards: there is no index by time, and this one costs no look at the others.
    const found = await this.#connection.read((options) =>
      this.#sessions
        .find({}, { ...options, limit, batchSize: limit })
        .sort({ $natural: -1 })
        .project<{ readonly _id: SessionId }>({ _id: 1 })
        .toArray(),
    );
    return found.map(({ _id }) => _id);
  }

  /** Only `_id`, so that a document of an unknown form doesn't end the page. */
  async #idsOf(
    which: Filter<SessionDocument>,
    after: SessionId | undefined,
    limit: number,
  ): Promise<readonly SessionId[]> {
    if (limit < 1) return [];
    const filter = { ...which, ...(after === undefined ? {} : { _id: { $gt: after } }) };
    const found = await this.#connection.read((options) =>
      this.#sessions
        .find(filter, { ...options, limit, batchSize: limit })
        .sort({ _id: 1 })
        .project<{ readonly _id: SessionId }>({ _id: 1 })
        .toArray(),
    );
    return found.map(({ _id }) => _id);
  }

  async #findMany(ids: readonly SessionId[]): Promise<readonly (SessionDocument | undefined)[]> {
    const distinct = [...new Set(ids)];
    const documents = await this.#connection.read((options) =>
      this.#sessions
        .find({ _id: { $in: distinct } }, { ...options, batchSize: distinct.length + 1 })
        .toArray(),
    );
    const found = new Map(documents.map((document) => [document._id, document]));
    return ids.map((id) => found.get(id));
  }
}
