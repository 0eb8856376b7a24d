import type { Collection } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import type { SessionId } from "../../core/ids.ts";
import type { TileRecord, TileRepair, TileStore } from "../../pipeline/ports.ts";
import type { MongoConnection } from "./connection.ts";
import { COLLECTIONS, type TileDocument, tileDocumentId, tileFields } from "./documents.ts";

/** Of at most 8 KiB each, so that a command stays near 1 MiB. */
const TILES_PER_COMMAND_MAX = 128;
/** A refused tile means that the stored one grew meanwhile, which a tile of 256 hashes can do this often. */
const TRIES_MAX = 256;

export class MongoTileStore implements TileStore, TileRepair {
  readonly #connection: MongoConnection;

  constructor(connection: MongoConnection) {
    this.#connection = connection;
  }

  get #tiles(): Collection<TileDocument> {
    return this.#connection.db.collection<TileDocument>(COLLECTIONS.tiles);
  }

  async read(session: SessionId, level: number, n: number): Promise<Uint8Array | undefined> {
    const document = await this.#connection.read((options) =>
      this.#tiles.findOne(
        { _id: tileDocumentId(session, level, n) },
        { ...options, projection: { hashes: 1 } },
      ),
    );
    return document?.hashes;
  }

  async write(session: SessionId, tiles: readonly TileRecord[]): Promise<void> {
    for (let at = 0; at < tiles.length; at += TILES_PER_COMMAND_MAX) {
      await this.#writeSome(session, tiles.slice(at, at + TILES_PER_COMMAND_MAX));
    }
  }

  async replace(session: SessionId, tile: TileRecord, wrong: Uint8Array): Promise<"replaced" | "conflict"> {
    const { n } = await this.#connection.write({
      update: COLLECTIONS.tiles,
      updates: [
        {
          q: { _id: tileDocumentId(session, tile.level, tile.n), session_id: session, hashes: wrong },
          u: { $set: tileFields(tile) },
        },
      ],
    });
    return n === 1 ? "replaced" : "conflict";
  }

  async #writeSome(session: SessionId, tiles: readonly TileRecord[]): Promise<void> {
    let narrower = tiles;
    for (let tries = 0; tries < TRIES_MAX; tries++) {
      const refused = await this.#upsert(session, narrower);
      if (refused.length === 0) return;
      narrower = await this.#widerThanStored(session, refused);
      if (narrower.length === 0) return;
    }
    throw new LucidError("INTERNAL", "a tile is refused although it is the widest; run fsck");
  }

  /**
   * Writes each tile where none or a narrower one is. Where the filter fails on a wider one, the upsert turns into an insert
   * and that into a duplicate key: the width guard. Two first writers of one tile race in the same way, so a
   * refused tile may still be the wider one: returned, for a second look.
   */
  async #upsert(session: SessionId, tiles: readonly TileRecord[]): Promise<readonly TileRecord[]> {
    const { duplicates } = await this.#connection.write({
      update: COLLECTIONS.tiles,
      ordered: false,
      updates: tiles.map((tile) => ({
        // The session id, because an upsert has to name the shard key.
        q: {
          _id: tileDocumentId(session, tile.level, tile.n),
          session_id: session,
          width: { $lt: tile.width },
        },
        u: { $set: tileFields(tile) },
        upsert: true,
      })),
    });
    return duplicates.flatMap(({ index }) => tiles[index] ?? []);
  }

  async #widerThanStored(session: SessionId, tiles: readonly TileRecord[]): Promise<readonly TileRecord[]> {
    const ids = tiles.map(({ level, n }) => tileDocumentId(session, level, n));
    const stored = await this.#connection.read((options) =>
      this.#tiles
        .find({ _id: { $in: ids } }, { ...options, batchSize: ids.length + 1 })
        .project<Pick<TileDocument, "_id" | "width">>({ width: 1 })
        .toArray(),
    );
    const widths = new Map(stored.map(({ _id, width }) => [_id, width]));
    return tiles.filter(
      ({ level, n, width }) => width > (widths.get(tileDocumentId(session, level, n)) ?? 0),
    );
  }
}
