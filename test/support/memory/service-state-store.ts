import type { ServiceStateStore } from "../../../src/pipeline/ports.ts";

/** The twin of MongoServiceStateStore. */
export class MemoryServiceStateStore implements ServiceStateStore {
  #marker: string | undefined;

  async redisMarker(): Promise<string | undefined> {
    return this.#marker;
  }

  async setRedisMarker(marker: string): Promise<void> {
    this.#marker = marker;
  }
}
