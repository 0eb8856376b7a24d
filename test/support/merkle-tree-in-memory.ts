import type { LeafHash, NodeHash, TreeSize } from "../../src/core/ids.ts";
import { emptyFrontier, type Frontier, rootOf } from "../../src/core/merkle/frontier.ts";
import { type HashAlgorithm, type TreeHasher, treeHasher } from "../../src/core/merkle/hash.ts";
import type { SizedRoot } from "../../src/core/merkle/proof.ts";
import {
  applyAppend,
  planAppend,
  TILE_WIDTH,
  type TileReader,
  type TileWrite,
  tileKey,
} from "../../src/core/merkle/tiles.ts";

/** Leaf hashes that stand for chunk documents: distinct, cheap, the same in every run. */
export function sampleLeaves(count: number): readonly LeafHash[] {
  return Array.from({ length: count }, (_, index) => {
    const leaf = new Uint8Array(32).fill(0xa5);
    new DataView(leaf.buffer).setUint32(14, index);
    return leaf as LeafHash;
  });
}

/** What the pipeline and its stores do to one session's tree, in memory: chunk documents, tiles, head. */
export class MerkleTreeInMemory {
  readonly hasher: TreeHasher;
  readonly leaves: readonly LeafHash[];
  readonly tiles: Map<string, TileWrite> = new Map();
  readonly writes: TileWrite[] = [];
  frontier: Frontier = emptyFrontier();

  constructor(algorithm: HashAlgorithm, leaves: readonly LeafHash[]) {
    this.hasher = treeHasher(algorithm);
    this.leaves = leaves;
  }

  append(count: number): void {
    const plan = planAppend(this.frontier.size, count);
    const planned = new Set(plan.tilesNeeded.map(({ level, n }) => tileKey(level, n)));
    const readPlanned: TileReader = (level, n) =>
      planned.has(tileKey(level, n)) ? this.tiles.get(tileKey(level, n))?.hashes : undefined;
    const hashes = this.leaves.slice(plan.leavesNeededFrom, this.frontier.size + count);
    const result = applyAppend(
      this.frontier,
      { from: plan.leavesNeededFrom, hashes },
      readPlanned,
      this.hasher,
    );
    for (const write of result.tileWrites) this.#store(write);
    this.writes.push(...result.tileWrites);
    this.frontier = result.frontier;
  }

  #store(write: TileWrite): void {
    const key = tileKey(write.level, write.n);
    if ((this.tiles.get(key)?.width ?? 0) < write.width) this.tiles.set(key, write);
  }

  /** Tiles as stored; a level-0 tile that isn't stored comes from the leaves. */
  readonly read: TileReader = (level, n) => {
    const stored = this.tiles.get(tileKey(level, n))?.hashes;
    if (stored !== undefined || level > 0) return stored;
    return Buffer.concat(this.leaves.slice(n * TILE_WIDTH, (n + 1) * TILE_WIDTH));
  };

  head(): SizedRoot {
    return {
      hashAlgorithm: this.hasher.algorithm,
      size: this.frontier.size,
      root: rootOf(this.frontier, this.hasher),
    };
  }
}

export function sizedRoot(algorithm: HashAlgorithm, size: number, root: Uint8Array): SizedRoot {
  return { hashAlgorithm: algorithm, size: size as TreeSize, root: root as NodeHash };
}
