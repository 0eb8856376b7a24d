import type { Collection } from "mongodb";
import type { ServiceStateStore } from "../../pipeline/ports.ts";
import type { MongoConnection } from "./connection.ts";
import { COLLECTIONS } from "./documents.ts";

interface StateDocument {
  readonly _id: string;
  readonly value: string;
}

const REDIS_MARKER = "redis-marker";

export class MongoServiceStateStore implements ServiceStateStore {
  readonly #connection: MongoConnection;
  readonly #state: Collection<StateDocument>;

  constructor(connection: MongoConnection) {
    this.#connection = connection;
    this.#state = connection.db.collection<StateDocument>(COLLECTIONS.serviceState);
  }

  async redisMarker(): Promise<string | undefined> {
    const found = await this.#connection.run(() => this.#state.findOne({ _id: REDIS_MARKER }));
    return found?.value;
  }

  async setRedisMarker(marker: string): Promise<void> {
    await this.#connection.write({
      update: COLLECTIONS.serviceState,
      updates: [{ q: { _id: REDIS_MARKER }, u: { $set: { value: marker } }, upsert: true }],
    });
  }
}
