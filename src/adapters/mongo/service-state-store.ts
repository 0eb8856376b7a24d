import type { Collection } from "mongodb";
import type { KnownRedis, ServiceStateStore } from "../../pipeline/ports.ts";
import type { MongoConnection } from "./connection.ts";
import { COLLECTIONS } from "./documents.ts";

interface StateDocument {
  readonly _id: string;
  readonly value: string;
  /** Of a marker only. */
  readonly settled?: boolean;
}

/** Not of one queue prefix: the sessions that it is about belong to the database. */
const KEK_CHECK_PREFIX = "kek-check:";
/** The next text after all that begin so: `;` follows `:`. */
const KEK_CHECK_END = "kek-check;";

function kekCheckId(version: number): string {
  return `${KEK_CHECK_PREFIX}${version}`;
}

export class MongoServiceStateStore implements ServiceStateStore {
  readonly #connection: MongoConnection;

  readonly #markerId: string;

  /** `prefix` of the queues: two installations on one database have a Redis each. */
  constructor(connection: MongoConnection, prefix: string) {
    this.#connection = connection;
    this.#markerId = `redis-marker:${prefix}`;
  }

  get #state(): Collection<StateDocument> {
    return this.#connection.db.collection<StateDocument>(COLLECTIONS.serviceState);
  }

  async redis(): Promise<KnownRedis | undefined> {
    const found = await this.#connection.read((options) =>
      this.#state.findOne({ _id: this.#markerId }, options),
    );
    return found === null ? undefined : { marker: found.value, isSettled: found.settled === true };
  }

  async replaceRedis(
    before: string | undefined,
    { marker, isSettled }: KnownRedis,
  ): Promise<"replaced" | "conflict"> {
    const _id = this.#markerId;
    if (before === undefined) {
      const document: StateDocument = { _id, value: marker, settled: isSettled };
      const { duplicates } = await this.#connection.write({
        insert: COLLECTIONS.serviceState,
        documents: [document],
      });
      return duplicates.length === 0 ? "replaced" : "conflict";
    }
    const u = { $set: { value: marker, settled: isSettled } };
    const { n } = await this.#connection.write({
      update: COLLECTIONS.serviceState,
      updates: [{ q: { _id, value: before }, u }],
    });
    return n === 1 ? "replaced" : "conflict";
  }

  async kekChecks(): Promise<ReadonlyMap<number, string>> {
    const found = await this.#connection.read((options) =>
      this.#state.find({ _id: { $gte: KEK_CHECK_PREFIX, $lt: KEK_CHECK_END } }, options).toArray(),
    );
    return new Map(
      found.flatMap(({ _id, value }) => {
        const version = Number(_id.slice(KEK_CHECK_PREFIX.length));
        return kekCheckId(version) === _id ? [[version, value] as const] : [];
      }),
    );
  }

  async claimKekCheck(version: number, candidate: string): Promise<void> {
    // A racing upsert that comes second meets a duplicate key: the one that is there counts.
    await this.#connection.write({
      update: COLLECTIONS.serviceState,
      updates: [{ q: { _id: kekCheckId(version) }, u: { $setOnInsert: { value: candidate } }, upsert: true }],
    });
  }

  async replaceKekCheck(version: number, check: string): Promise<void> {
    await this.#connection.write({
      update: COLLECTIONS.serviceState,
      updates: [{ q: { _id: kekCheckId(version) }, u: { $set: { value: check } }, upsert: true }],
    });
  }
}
