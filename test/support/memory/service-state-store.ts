import type { KnownRedis, ServiceStateStore } from "../../../src/pipeline/ports.ts";

/** The twin of MongoServiceStateStore. */
export class MemoryServiceStateStore implements ServiceStateStore {
  #redis: KnownRedis | undefined;
  readonly #kekChecks = new Map<number, string>();

  async redis(): Promise<KnownRedis | undefined> {
    return this.#redis;
  }

  async replaceRedis(before: string | undefined, known: KnownRedis): Promise<"replaced" | "conflict"> {
    if (this.#redis?.marker !== before) return "conflict";
    this.#redis = known;
    return "replaced";
  }

  async kekChecks(): Promise<ReadonlyMap<number, string>> {
    return new Map(this.#kekChecks);
  }

  async claimKekCheck(version: number, candidate: string): Promise<void> {
    if (!this.#kekChecks.has(version)) this.#kekChecks.set(version, candidate);
  }

  async replaceKekCheck(version: number, check: string): Promise<void> {
    this.#kekChecks.set(version, check);
  }
}
