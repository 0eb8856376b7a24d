import type { SessionId } from "../../../src/core/ids.ts";
import type { TileRecord, TileStore } from "../../../src/pipeline/ports.ts";

/** The twin of MongoTileStore. Copies what it is given, because a server does. */
export class MemoryTileStore implements TileStore {
  readonly #tiles = new Map<string, TileRecord>();

  async read(session: SessionId, level: number, n: number): Promise<Uint8Array | undefined> {
    return this.#tiles.get(`${session}:${level}:${n}`)?.hashes.slice();
  }

  async write(session: SessionId, tiles: readonly TileRecord[]): Promise<void> {
    for (const tile of tiles) {
      const id = `${session}:${tile.level}:${tile.n}`;
      const storedWidth = this.#tiles.get(id)?.width ?? 0;
      if (tile.width > storedWidth) this.#tiles.set(id, { ...tile, hashes: Uint8Array.from(tile.hashes) });
    }
  }
}
