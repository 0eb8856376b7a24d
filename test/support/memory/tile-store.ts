import type { SessionId } from "../../../src/core/ids.ts";
import type { TileRecord, TileRepair, TileStore } from "../../../src/pipeline/ports.ts";

/** The twin of MongoTileStore. Copies what it is given, because a server does. */
export class MemoryTileStore implements TileStore, TileRepair {
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

  async replace(session: SessionId, tile: TileRecord, wrong: Uint8Array): Promise<"replaced" | "conflict"> {
    const id = `${session}:${tile.level}:${tile.n}`;
    const stored = this.#tiles.get(id);
    if (stored === undefined || Buffer.compare(stored.hashes, wrong) !== 0) return "conflict";
    this.#tiles.set(id, { ...tile, hashes: Uint8Array.from(tile.hashes) });
    return "replaced";
  }
}
