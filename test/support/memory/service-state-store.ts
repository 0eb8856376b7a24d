import type { KnownRedis, ServiceStateStore } from "../../../src/pipeline/ports.ts";

/** The twin of MongoServiceStateStore. */
export class MemoryServiceStateStore implements ServiceStateStore {
  #redis: KnownRedis | undefined;

  async redis(): Promise<KnownRedis | undefined> {
    return this.#redis;
  }

  async replaceRedis(before: string | undefined, known: KnownRedis): Promise<"replaced" | "conflict"> {
    if (this.#redis?.marker !== before) return "conflict";
    this.#redis = known;
    return "replaced";
  }
}
