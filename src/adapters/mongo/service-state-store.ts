import type { Collection } from "mongodb";
import type { ServiceStateStore } from "../../pipeline/ports.ts";
import type { MongoConnection } from "./connection.ts";
import { COLLECTIONS } from "./documents.ts";

interface StateDocument {
  readonly _id: string;
  readonly value: string;
}

/** Not of one queue prefix: the sessions that it is about belong to the database. */
function kekCheckId(version: number): string {
  return `kek-check:${version}`;
}

export class MongoServiceStateStore implements ServiceStateStore {
  readonly #connection: MongoConnection;
  readonly #state: Collection<StateDocument>;

  readonly #markerId: string;

  /** `prefix` of the queues: two installations on one database have a Redis each. */
  constructor(connection: MongoConnection, prefix: string) {
    this.#connection = connection;
    this.#markerId = `redis-marker:${prefix}`;
    this.#state = connection.db.collection<StateDocument>(COLLECTIONS.serviceState);
  }

  async redisMarker(): Promise<string | undefined> {
    const found = await this.#connection.run(() => this.#state.findOne({ _id: this.#markerId }));
    return found?.value;
  }

  async setRedisMarker(marker: string): Promise<void> {
    await this.#connection.write({
      update: COLLECTIONS.serviceState,
      updates: [{ q: { _id: this.#markerId }, u: { $set: { value: marker } }, upsert: true }],
    });
  }

  async kekCheck(version: number): Promise<string | undefined> {
    const found = await this.#connection.run(() => this.#state.findOne({ _id: kekCheckId(version) }));
    return found?.value;
  }

  async claimKekCheck(version: number, candidate: string): Promise<string> {
    // A racing upsert that comes second meets a duplicate key: the one that is there counts.
    await this.#connection.write({
      update: COLLECTIONS.serviceState,
      updates: [{ q: { _id: kekCheckId(version) }, u: { $setOnInsert: { value: candidate } }, upsert: true }],
    });
    return (await this.kekCheck(version)) ?? candidate;
  }
}
