import { bytesEqual } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import {
  HASH_BYTES,
  type LeafHash,
  type LeafIndex,
  type NodeHash,
  type SessionId,
  type TreeSize,
} from "../ids.ts";
import { appendLeaves, type Frontier, frontiersEqual, rootOf, subtreeHeights } from "./frontier.ts";
import type { TreeHasher } from "./hash.ts";

/**
 * Tiles as in C2SP tlog-tiles: hash j of tile (level, n) is the root of the 256^level leaves that begin at leaf
 * (n · 256 + j) · 256^level. Level 0 is stored only when full, because a partial one is what the chunk documents
 * say. Levels ≥ 1 are written each time they grow, so that an append reads one short tile and not 65 536 leaves.
 */
export const TILE_WIDTH = 256;
const TILE_HEIGHT = 8;

export interface TileCoordinate {
  readonly level: number;
  readonly n: number;
}

/** A read of at least the first `width` hashes of a tile; a wider one is as good. */
export interface TileRequest extends TileCoordinate {
  /** Hashes, 1 … 256. */
  readonly width: number;
}

/** A write that must not replace a wider tile: the writer that lost a race would take hashes away. */
export interface TileWrite extends TileRequest {
  /** `width` × 32 bytes. */
  readonly hashes: Uint8Array;
}

/** The stored bytes of one tile, 32 bytes a hash; `undefined` when there is none. */
export type TileReader = (level: number, n: number) => Uint8Array | undefined;

/** Contiguous leaf hashes; the first is that of leaf `from`. */
export interface LeafRun {
  readonly from: LeafIndex;
  readonly hashes: readonly LeafHash[];
}

export interface AppendPlan {
  /** Read leaf hashes from here on: the old tree size, or the start of the level-0 tile that gets full. */
  readonly leavesNeededFrom: LeafIndex;
  readonly tilesNeeded: readonly TileRequest[];
}

export interface AppendResult {
  readonly frontier: Frontier;
  readonly root: NodeHash;
  readonly tileWrites: readonly TileWrite[];
}

export function tileId(session: SessionId, level: number, n: number): string {
  return `${session}:${level}:${n}`;
}

/** A key for maps of tiles read. */
export function tileKey(level: number, n: number): string {
  return `${level}:${n}`;
}

/** Number of hashes that all tiles of a level hold together at `size` leaves: its complete subtrees. */
function levelLength(size: number, level: number): number {
  return Math.floor(size / TILE_WIDTH ** level);
}

/** Levels that hold at least one hash at `size` leaves. */
function levelCount(size: number): number {
  let level = 0;
  while (levelLength(size, level) > 0) level += 1;
  return level;
}

/**
 * What an append of `newLeafCount` leaves to a tree of `size` has to read beside the new leaf hashes. Earlier
 * leaves are needed only when a level-0 tile gets full, once in 256 leaves, so that the cost does not depend on
 * the size.
 */
export function planAppend(size: TreeSize, newLeafCount: number): AppendPlan {
  const newSize = size + newLeafCount;
  const fillsTile = levelLength(newSize, 1) > levelLength(size, 1);
  const tilesNeeded: TileRequest[] = [];
  for (let level = 1; level < levelCount(newSize); level++) {
    const before = levelLength(size, level);
    const width = before % TILE_WIDTH;
    const grows = levelLength(newSize, level) > before;
    if (grows && width > 0) tilesNeeded.push({ level, n: Math.floor(before / TILE_WIDTH), width });
  }
  const leavesNeededFrom = fillsTile ? size - (size % TILE_WIDTH) : size;
  return { leavesNeededFrom: leavesNeededFrom as LeafIndex, tilesNeeded };
}

/**
 * The tree after the new leaves, and the tiles to write before the tree head is replaced. `leaves` begins exactly at
 * the plan's `leavesNeededFrom`; `readTile` answers for the plan's tiles (a wider tile, left by a writer that lost its
 * race or died before the head, is cut to the width of this head). Throws TREE_CORRUPT if what was stored contradicts
 * the frontier.
 */
export function applyAppend(
  frontier: Frontier,
  leaves: LeafRun,
  readTile: TileReader,
  hasher: TreeHasher,
): AppendResult {
  const newLeafCount = leaves.from + leaves.hashes.length - frontier.size;
  const plan = planAppend(frontier.size, Math.max(newLeafCount, 0));
  if (newLeafCount < 0 || leaves.from !== plan.leavesNeededFrom) {
    throw new LucidError("INTERNAL", "the leaf hashes don't begin where the append plan says");
  }
  const grownLevels = new GrownLevels();
  const next = appendLeaves(
    frontier,
    leaves.hashes.slice(frontier.size - leaves.from),
    hasher,
    (height, hash) => grownLevels.add(height, hash),
  );
  const tileWrites: TileWrite[] = fullLeafTiles(frontier.size, next.size, leaves);
  for (let level = 1; level < levelCount(next.size); level++) {
    tileWrites.push(...grownTiles(level, frontier.size, grownLevels.at(level), readTile));
  }
  requireTilesOfFrontier(tileWrites, frontier.size, grownLevels, hasher);
  return { frontier: next, root: rootOf(next, hasher), tileWrites };
}

/** The hashes that an append adds to each level ≥ 1, in order: subtrees whose height is a multiple of 8. */
class GrownLevels {
  readonly #hashes = new Map<number, NodeHash[]>();

  add(height: number, hash: NodeHash): void {
    if (height % TILE_HEIGHT !== 0) return;
    const level = height / TILE_HEIGHT;
    const grown = this.#hashes.get(level);
    if (grown === undefined) this.#hashes.set(level, [hash]);
    else grown.push(hash);
  }

  at(level: number): readonly NodeHash[] {
    return this.#hashes.get(level) ?? [];
  }
}

function fullLeafTiles(oldSize: number, newSize: number, leaves: LeafRun): TileWrite[] {
  const writes: TileWrite[] = [];
  for (let n = levelLength(oldSize, 1); n < levelLength(newSize, 1); n++) {
    const start = n * TILE_WIDTH - leaves.from;
    writes.push(tileWrite(0, n, leaves.hashes.slice(start, start + TILE_WIDTH)));
  }
  return writes;
}

function grownTiles(
  level: number,
  oldSize: number,
  grown: readonly NodeHash[],
  readTile: TileReader,
): TileWrite[] {
  const before = levelLength(oldSize, level);
  const after = before + grown.length;
  const writes: TileWrite[] = [];
  for (let start = before; start < after; ) {
    const n = Math.floor(start / TILE_WIDTH);
    const end = Math.min((n + 1) * TILE_WIDTH, after);
    const oldWidth = start % TILE_WIDTH;
    const old = oldWidth === 0 ? [] : [readWidth(readTile, level, n, oldWidth)];
    writes.push(tileWrite(level, n, [...old, ...grown.slice(start - before, end - before)]));
    start = end;
  }
  return writes;
}

function tileWrite(level: number, n: number, parts: readonly Uint8Array[]): TileWrite {
  const hashes = Buffer.concat(parts);
  return { level, n, width: hashes.byteLength / HASH_BYTES, hashes };
}

/** The first `width` hashes of a tile; throws TREE_CORRUPT when it has fewer, or is no whole number of hashes. */
function readWidth(readTile: TileReader, level: number, n: number, width: number): Uint8Array {
  const hashes = readTile(level, n);
  const sound =
    hashes !== undefined &&
    hashes.byteLength % HASH_BYTES === 0 &&
    hashes.byteLength >= width * HASH_BYTES &&
    hashes.byteLength <= TILE_WIDTH * HASH_BYTES;
  if (!sound) {
    throw new LucidError(
      "TREE_CORRUPT",
      `tile ${level}:${n} doesn't have the ${width} hashes the tree size needs`,
    );
  }
  return hashes.subarray(0, width * HASH_BYTES);
}

/**
 * A tile that gets full partly consists of hashes read from the store, while the hash it adds one level up comes
 * from the frontier. Both must agree, or every later proof from this tile would fail. Costs 255 node hashes once
 * in 256 leaves; tiles made wholly of hashes computed here need no check.
 */
function requireTilesOfFrontier(
  writes: readonly TileWrite[],
  oldSize: number,
  grownLevels: GrownLevels,
  hasher: TreeHasher,
): void {
  for (const { level, n, width, hashes } of writes) {
    const before = levelLength(oldSize, level);
    const hasReadHashes = n === Math.floor(before / TILE_WIDTH) && before % TILE_WIDTH > 0;
    if (width < TILE_WIDTH || !hasReadHashes) continue;
    const expected = grownLevels.at(level + 1)[0];
    if (expected === undefined || !bytesEqual(subtreeRoot(hashes, 0, TILE_WIDTH, hasher), expected)) {
      throw new LucidError(
        "TREE_CORRUPT",
        `the hashes stored for tile ${level}:${n} contradict the tree's frontier`,
      );
    }
  }
}

/** The root over `span` (a power of two) neighbouring hashes of a tile. */
function subtreeRoot(hashes: Uint8Array, offset: number, span: number, hasher: TreeHasher): NodeHash {
  if (span === 1) {
    // A copy, which `slice` would not be when the tile is a Buffer: a proof must not share memory with a tile.
    return new Uint8Array(hashes.subarray(offset * HASH_BYTES, (offset + 1) * HASH_BYTES)) as NodeHash;
  }
  const half = span / 2;
  return hasher.node(
    subtreeRoot(hashes, offset, half, hasher),
    subtreeRoot(hashes, offset + half, half, hasher),
  );
}

/** Leaves `from` … `to` - 1 that form a subtree of an RFC 9162 tree, perfect or at its ragged right edge. */
export interface LeafRange {
  readonly from: number;
  readonly to: number;
}

interface TileSpan extends TileCoordinate {
  readonly offset: number;
  readonly span: number;
}

/** Where the hashes of the range's perfect subtrees lie, leftmost first. */
function tileSpans(range: LeafRange): readonly TileSpan[] {
  let from = range.from;
  return subtreeHeights(range.to - range.from).map((height) => {
    const level = Math.floor(height / TILE_HEIGHT);
    const start = from / TILE_WIDTH ** level;
    from += 2 ** height;
    return {
      level,
      n: Math.floor(start / TILE_WIDTH),
      offset: start % TILE_WIDTH,
      span: 2 ** (height % TILE_HEIGHT),
    };
  });
}

/** Roots of perfect subtrees that are at hand without a tile. */
export type KnownSubtrees = ReadonlyMap<string, NodeHash>;
const NONE_KNOWN: KnownSubtrees = new Map();

/** Those of a frontier, which the tree head has: with them a proof needs no tile of the tree's right edge for its own sake. */
export function frontierSubtrees(frontier: Frontier): KnownSubtrees {
  const spans = tileSpans({ from: 0, to: frontier.size });
  return new Map(
    spans.flatMap((span, at) => {
      const hash = frontier.hashes[at];
      return hash === undefined ? [] : [[spanKey(span), hash] as const];
    }),
  );
}

function spanKey({ level, n, offset, span }: TileSpan): string {
  return `${level}:${n}:${offset}:${span}`;
}

/** The tiles that hold everything the ranges' roots are made of beside `known`, each once, as wide as needed. */
export function tilesOfRanges(
  ranges: readonly LeafRange[],
  known: KnownSubtrees = NONE_KNOWN,
): readonly TileRequest[] {
  const requests = new Map<string, TileRequest>();
  for (const tileSpan of ranges.flatMap(tileSpans)) {
    if (known.has(spanKey(tileSpan))) continue;
    const { level, n, offset, span } = tileSpan;
    const key = tileKey(level, n);
    const width = Math.max(offset + span, requests.get(key)?.width ?? 0);
    requests.set(key, { level, n, width });
  }
  return [...requests.values()];
}

/** The perfect subtrees of a range, known or from tiles; throws TREE_CORRUPT for a tile that is too narrow. */
export function rangeSubtrees(
  range: LeafRange,
  readTile: TileReader,
  hasher: TreeHasher,
  known: KnownSubtrees = NONE_KNOWN,
): readonly NodeHash[] {
  return tileSpans(range).map((tileSpan) => {
    const { level, n, offset, span } = tileSpan;
    const hash = known.get(spanKey(tileSpan));
    // A copy: a proof must not share memory with a session's record.
    if (hash !== undefined) return new Uint8Array(hash) as NodeHash;
    return subtreeRoot(readWidth(readTile, level, n, offset + span), offset, span, hasher);
  });
}

/** The tiles to read before `requireFrontierOfTiles`; a level-0 tile that isn't full comes from the chunk documents. */
export function frontierTiles(size: TreeSize): readonly TileRequest[] {
  return tilesOfRanges([{ from: 0, to: size }]);
}

/** On load: the frontier computed again from the tiles must be the stored one. Throws TREE_CORRUPT. */
export function requireFrontierOfTiles(frontier: Frontier, readTile: TileReader, hasher: TreeHasher): void {
  const hashes = rangeSubtrees({ from: 0, to: frontier.size }, readTile, hasher);
  if (!frontiersEqual(frontier, { size: frontier.size, hashes })) {
    throw new LucidError("TREE_CORRUPT", "the stored frontier is not that of the stored tiles");
  }
}
