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

  async kekCheck(version: number): Promise<string | undefined> {
    return this.#kekChecks.get(version);
  }

  async claimKekCheck(version: number, candidate: string): Promise<string> {
    const first = this.#kekChecks.get(version);
    if (first !== undefined) return first;
    this.#kekChecks.set(version, candidate);
    return candidate;
  }
}
