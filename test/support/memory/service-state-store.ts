import type { ServiceStateStore } from "../../../src/pipeline/ports.ts";

/** The twin of MongoServiceStateStore. */
export class MemoryServiceStateStore implements ServiceStateStore {
  #marker: string | undefined;
  readonly #kekChecks = new Map<number, string>();

  async redisMarker(): Promise<string | undefined> {
    return this.#marker;
  }

  async setRedisMarker(marker: string): Promise<void> {
    this.#marker = marker;
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
