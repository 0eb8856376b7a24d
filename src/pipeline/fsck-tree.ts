import { asBuffer, bytesEqual } from "../core/bytes.ts";
import { HASH_BYTES, type LeafHash, type NodeHash } from "../core/ids.ts";
import { appendLeaves, emptyFrontier, type Frontier, rootOf } from "../core/merkle/frontier.ts";
import { type TreeHasher, treeHasher } from "../core/merkle/hash.ts";
import { TILE_WIDTH } from "../core/merkle/tiles.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { TileRecord, TileStore } from "./ports.ts";

/** The height of a tile: hash j of level L is a subtree of 2^(8·L) leaves. */
const TILE_HEIGHT = 8;
/** Wrong tiles that are kept for the report and the repair, 16 KiB each at most. */
const TILE_FAULTS_MAX = 1_000;
const LEAF_FAULTS_MAX = 1_000;

export interface TileFault {
  readonly kind: "tile-missing" | "tile-narrow" | "tile-wrong";
  readonly level: number;
  readonly n: number;
  /** What the leaves make of it; absent where leaves are missing. */
  readonly right: TileRecord | undefined;
  readonly stored: Uint8Array | undefined;
}

export interface TreeVerdict {
  /**
   * Which leaf hashes make the root of the session's tree head: those of the chunk documents; others, of the tiles or of the
   * documents' fields, where these differ; or neither; `unknown` when a leaf is nowhere.
   */
  readonly rootIsOf: "documents" | "others" | "neither" | "unknown";
  /** Of those leaves; of the documents when neither. Absent when unknown. */
  readonly frontier: Frontier | undefined;
  /** The root that those leaves have at the size of the session's checkpoint. */
  readonly checkpointRoot: NodeHash | undefined;
  readonly tileFaults: readonly TileFault[];
  /** Chunks whose documents have another leaf hash than the tile, which is the one to believe unless one can't tell. */
  readonly leafFaults: readonly number[];
}

/**
 * The tree that a session's leaves make, in one pass and with a tile of each level in memory, held against the stored tiles.
 * Tiles may be wider than the head that was read: a worker has moved on since.
 */
export class TreeCheck {
  readonly #tiles: TileStore;
  readonly #session: SessionRecord;
  readonly #documents: LeafChain;
  /** From the first difference on. */
  #others: LeafChain | undefined;
  readonly #leafTileFaults: TileFault[] = [];
  readonly #differingTiles: TileFault[] = [];
  readonly #leafFaults: number[] = [];
  #isBroken = false;

  constructor(tiles: TileStore, session: SessionRecord) {
    this.#tiles = tiles;
    this.#session = session;
    this.#documents = new LeafChain(treeHasher(session.hashAlgorithm), session.checkpoint?.size);
  }

  /**
   * The chunks of level-0 tile `n`; fewer than 256 at the end only. `recorded` are the leaf hashes that their documents have,
   * `computed` those that the documents' fields make.
   */
  async addLeaves(
    n: number,
    recorded: readonly (LeafHash | undefined)[],
    computed: readonly (LeafHash | undefined)[],
  ): Promise<void> {
    const isFull = recorded.length === TILE_WIDTH;
    const tile = isFull ? await this.#checkLeafTile(n, recorded, computed) : undefined;
    const documents = recorded.map((leaf, at) => leaf ?? hashAt(tile, at) ?? computed[at]);
    const others = recorded.map((leaf, at) => hashAt(tile, at) ?? computed[at] ?? leaf);
    if (this.#isBroken || !isComplete(documents) || !isComplete(others)) {
      this.#isBroken = true;
      return;
    }
    const differs = others.some((leaf, at) => !same(leaf, documents[at]));
    if (differs) this.#others ??= this.#documents.fork();
    await this.#grow(this.#documents, documents);
    if (this.#others !== undefined) await this.#grow(this.#others, others);
  }

  /** Leaves are missing that nobody will add: nothing more can be said about the root. */
  breakOff(): void {
    this.#isBroken = true;
  }

  async finish(): Promise<TreeVerdict> {
    const { root } = this.#session.tree;
    await this.#compareTiles(this.#documents, this.#documents.partialTiles());
    if (this.#others !== undefined) await this.#compareTiles(this.#others, this.#others.partialTiles());
    const rootIsOf = this.#rootIsOf(root);
    const chain = rootIsOf === "others" ? (this.#others ?? this.#documents) : this.#documents;
    const tileIsWrong = rootIsOf === "documents";
    return {
      rootIsOf,
      frontier: this.#isBroken ? undefined : chain.frontier,
      checkpointRoot: chain.checkpointRoot,
      tileFaults: [
        ...this.#leafTileFaults,
        ...(tileIsWrong ? this.#differingTiles : []),
        ...chain.tileFaults,
      ],
      leafFaults: tileIsWrong ? [] : this.#leafFaults,
    };
  }

  #rootIsOf(root: NodeHash | undefined): TreeVerdict["rootIsOf"] {
    if (this.#isBroken) return "unknown";
    if (same(root, this.#documents.root)) return "documents";
    return this.#others !== undefined && same(root, this.#others.root) ? "others" : "neither";
  }

  /** The stored tile, if it can be believed to be one. */
  async #checkLeafTile(
    n: number,
    recorded: readonly (LeafHash | undefined)[],
    computed: readonly (LeafHash | undefined)[],
  ): Promise<Uint8Array | undefined> {
    const stored = await this.#tiles.read(this.#session.id, 0, n);
    const agree = isComplete(recorded) && recorded.every((leaf, at) => same(leaf, computed[at]));
    const right = agree ? tileOf(0, n, recorded) : undefined;
    const fault = { level: 0, n, right, stored };
    if (stored === undefined) keep(this.#leafTileFaults, { ...fault, kind: "tile-missing" });
    else if (stored.byteLength < TILE_WIDTH * HASH_BYTES)
      keep(this.#leafTileFaults, { ...fault, kind: "tile-narrow" });
    else if (stored.byteLength > TILE_WIDTH * HASH_BYTES)
      keep(this.#leafTileFaults, { ...fault, kind: "tile-wrong" });
    else {
      const differing = recorded.flatMap((leaf, at) =>
        leaf === undefined || same(leaf, hashAt(stored, at)) ? [] : n * TILE_WIDTH + at,
      );
      if (differing.length > 0) keep(this.#differingTiles, { ...fault, kind: "tile-wrong" });
      this.#leafFaults.push(...differing.slice(0, LEAF_FAULTS_MAX - this.#leafFaults.length));
      return stored;
    }
    return undefined;
  }

  async #grow(chain: LeafChain, leaves: readonly LeafHash[]): Promise<void> {
    await this.#compareTiles(chain, chain.append(leaves));
  }

  async #compareTiles(chain: LeafChain, made: readonly TileRecord[]): Promise<void> {
    for (const right of made) {
      const { level, n, hashes } = right;
      const stored = await this.#tiles.read(this.#session.id, level, n);
      const kind = tileFault(stored, hashes);
      if (kind !== undefined) keep(chain.tileFaults, { kind, level, n, right, stored });
    }
  }
}

/** Leaves in order: their frontier, and the tiles of levels ≥ 1 as they get full. */
class LeafChain {
  readonly #hasher: TreeHasher;
  readonly #checkpointSize: number | undefined;
  readonly tileFaults: TileFault[] = [];
  frontier: Frontier = emptyFrontier();
  checkpointRoot: NodeHash | undefined;
  /** By level: the number of full tiles, and the hashes of the next one. */
  #levels = new Map<number, { readonly full: number; readonly hashes: readonly NodeHash[] }>();

  constructor(hasher: TreeHasher, checkpointSize: number | undefined) {
    this.#hasher = hasher;
    this.#checkpointSize = checkpointSize;
  }

  fork(): LeafChain {
    const fork = new LeafChain(this.#hasher, this.#checkpointSize);
    fork.frontier = this.frontier;
    fork.checkpointRoot = this.checkpointRoot;
    fork.#levels = new Map(this.#levels);
    fork.tileFaults.push(...this.tileFaults);
    return fork;
  }

  get root(): NodeHash | undefined {
    return this.frontier.size === 0 ? undefined : rootOf(this.frontier, this.#hasher);
  }

  /** The tiles that these leaves fill. */
  append(leaves: readonly LeafHash[]): readonly TileRecord[] {
    const filled: TileRecord[] = [];
    const untilCheckpoint = (this.#checkpointSize ?? 0) - this.frontier.size;
    const first = untilCheckpoint > 0 ? leaves.slice(0, untilCheckpoint) : [];
    this.#append(first, filled);
    if (this.frontier.size === this.#checkpointSize) this.checkpointRoot ??= this.root;
    this.#append(leaves.slice(first.length), filled);
    return filled;
  }

  partialTiles(): readonly TileRecord[] {
    return [...this.#levels].flatMap(([level, { full, hashes }]) =>
      hashes.length === 0 ? [] : tileOf(level, full, hashes),
    );
  }

  #append(leaves: readonly LeafHash[], filled: TileRecord[]): void {
    this.frontier = appendLeaves(this.frontier, leaves, this.#hasher, (height, hash) => {
      if (height % TILE_HEIGHT !== 0) return;
      const level = height / TILE_HEIGHT;
      const { full, hashes } = this.#levels.get(level) ?? { full: 0, hashes: [] };
      const grown = [...hashes, hash];
      if (grown.length === TILE_WIDTH) filled.push(tileOf(level, full, grown));
      const isFull = grown.length === TILE_WIDTH;
      this.#levels.set(level, isFull ? { full: full + 1, hashes: [] } : { full, hashes: grown });
    });
  }
}

function tileOf(level: number, n: number, hashes: readonly Uint8Array[]): TileRecord {
  return { level, n, width: hashes.length, hashes: asBuffer(Buffer.concat(hashes)) };
}

function tileFault(stored: Uint8Array | undefined, right: Uint8Array): TileFault["kind"] | undefined {
  if (stored === undefined) return "tile-missing";
  if (stored.byteLength < right.byteLength) return "tile-narrow";
  const isTile = stored.byteLength % HASH_BYTES === 0 && stored.byteLength <= TILE_WIDTH * HASH_BYTES;
  return isTile && bytesEqual(stored.subarray(0, right.byteLength), right) ? undefined : "tile-wrong";
}

function hashAt(tile: Uint8Array | undefined, at: number): LeafHash | undefined {
  if (tile === undefined || tile.byteLength < (at + 1) * HASH_BYTES) return undefined;
  // A copy: a leaf must not keep its whole tile in memory.
  return new Uint8Array(tile.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES)) as LeafHash;
}

function isComplete(leaves: readonly (LeafHash | undefined)[]): leaves is readonly LeafHash[] {
  return !leaves.includes(undefined);
}

/** Not in constant time: nothing here is secret. */
export function same(left: Uint8Array | undefined, right: Uint8Array | undefined): boolean {
  if (left === undefined || right === undefined) return left === right;
  return asBuffer(left).equals(right);
}

function keep(faults: TileFault[], fault: TileFault): void {
  if (faults.length < TILE_FAULTS_MAX) faults.push(fault);
}
