import { asBuffer } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { HASH_BYTES, leafIndex } from "../core/ids.ts";
import { TILE_WIDTH, type TileReader, type TileRequest, tileKey } from "../core/merkle/tiles.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, TileStore } from "./ports.ts";

export interface TileSources {
  readonly chunks: ChunkStore;
  readonly tiles: TileStore;
  readonly patience: Patience;
}

/**
 * The tiles that a proof needs, read before it is made. A tile of level 0 that isn't stored, because it isn't full, is made
 * of the leaf hashes in the chunk documents. Throws TREE_CORRUPT when one is in neither place.
 */
export async function readTiles(
  sources: TileSources,
  session: SessionRecord,
  requests: readonly TileRequest[],
  signal: AbortSignal,
): Promise<TileReader> {
  const read = await Promise.all(
    requests.map(
      async (request): Promise<readonly [string, Uint8Array]> => [
        tileKey(request.level, request.n),
        await readTile(sources, session, request, signal),
      ],
    ),
  );
  const tiles = new Map(read);
  return (level, n) => tiles.get(tileKey(level, n));
}

async function readTile(
  { chunks, tiles, patience }: TileSources,
  session: SessionRecord,
  { level, n, width }: TileRequest,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const stored = await patience("tiles.read", signal, () => tiles.read(session.id, level, n));
  if (stored !== undefined && stored.byteLength >= width * HASH_BYTES) return stored;
  const first = n * TILE_WIDTH;
  if (level === 0) {
    const leaves = await patience("chunks.leaves", signal, () =>
      chunks.contiguousLeaves(session.id, leafIndex(first), width),
    );
    if (leaves.length === width) return asBuffer(Buffer.concat(leaves.map(({ leafHash }) => leafHash)));
  }
  throw new LucidError("TREE_CORRUPT", "a tile that the tree size needs is missing or too narrow; run fsck");
}
