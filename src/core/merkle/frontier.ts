import { bytesEqual } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import { HASH_BYTES, LEAF_INDEX_MAX, type LeafHash, type NodeHash, type TreeSize } from "../ids.ts";
import type { TreeHasher } from "./hash.ts";

export const TREE_SIZE_MAX: number = LEAF_INDEX_MAX + 1;
/** 2^32 leaves are one perfect subtree of this height. */
const SUBTREE_HEIGHT_MAX = 32;

/** The node hashes of the perfect subtrees whose sizes are the binary digits of `size`, largest (leftmost) first. */
export interface Frontier {
  readonly size: TreeSize;
  readonly hashes: readonly NodeHash[];
}

/** Told of every perfect subtree that an append completes; `height` ≥ 1, it has 2^height leaves. */
export type SubtreeListener = (height: number, hash: NodeHash) => void;

export function emptyFrontier(): Frontier {
  return { size: 0 as TreeSize, hashes: [] };
}

/** Heights of the perfect subtrees of `leafCount` leaves, largest first: the positions of its 1 bits. */
export function subtreeHeights(leafCount: number): readonly number[] {
  const heights: number[] = [];
  // Division, not shifts: 2^32 has no 32-bit form.
  for (let height = SUBTREE_HEIGHT_MAX; height >= 0; height--) {
    if (Math.floor(leafCount / 2 ** height) % 2 === 1) heights.push(height);
  }
  return heights;
}

/**
 * The frontier after `leaves` follow the ones it already has. A leaf costs one node hash on average, whatever the
 * size: each merge removes one of the subtrees that earlier leaves have put on the stack.
 */
export function appendLeaves(
  frontier: Frontier,
  leaves: readonly LeafHash[],
  hasher: TreeHasher,
  onSubtree?: SubtreeListener,
): Frontier {
  if (frontier.size + leaves.length > TREE_SIZE_MAX) {
    throw new LucidError("TREE_CORRUPT", "a tree holds at most 4294967296 leaves");
  }
  const stack: NodeHash[] = [...frontier.hashes];
  let size: number = frontier.size;
  for (const leaf of leaves) {
    let hash: Uint8Array = leaf;
    let height = 0;
    // Each trailing 1 bit of the leaf's index is a perfect subtree of equal height on its left. An index fits 32 bits.
    for (let rest = size; (rest & 1) === 1; rest >>>= 1) {
      hash = hasher.node(popSubtree(stack), hash);
      height += 1;
      onSubtree?.(height, hash as NodeHash);
    }
    stack.push(hash as NodeHash);
    size += 1;
  }
  return { size: size as TreeSize, hashes: stack };
}

function popSubtree(stack: NodeHash[]): NodeHash {
  const hash = stack.pop();
  if (hash === undefined)
    throw new LucidError("TREE_CORRUPT", "the frontier has fewer hashes than its size needs");
  return hash;
}

/** RFC 9162 §2.1.1 MTH: a ragged tree is its perfect subtrees, joined from the right. HASH() when there are none. */
export function rootOf(frontier: Frontier, hasher: TreeHasher): NodeHash {
  return joinSubtrees(frontier.hashes, hasher) ?? hasher.emptyRoot;
}

/** Perfect subtrees of falling heights, leftmost first, to the root of them all; `undefined` for none. */
export function joinSubtrees(hashes: readonly NodeHash[], hasher: TreeHasher): NodeHash | undefined {
  if (hashes.length === 0) return undefined;
  return hashes.reduceRight((right, left) => hasher.node(left, right));
}

/** What was stored as a frontier, checked: an allowed size, one hash for each 1 bit, 32 bytes each. Throws TREE_CORRUPT. */
export function checkFrontier(size: number, hashes: readonly Uint8Array[]): Frontier {
  if (!Number.isInteger(size) || size < 0 || size > TREE_SIZE_MAX) {
    throw new LucidError("TREE_CORRUPT", "the stored tree size is not an integer from 0 to 4294967296");
  }
  if (hashes.length !== subtreeHeights(size).length) {
    throw new LucidError(
      "TREE_CORRUPT",
      "the stored frontier doesn't have one hash for each 1 bit of the tree size",
    );
  }
  if (!hashes.every((hash) => hash instanceof Uint8Array && hash.byteLength === HASH_BYTES)) {
    throw new LucidError("TREE_CORRUPT", "a hash of the stored frontier is not 32 bytes");
  }
  return { size: size as TreeSize, hashes: hashes as readonly NodeHash[] };
}

export function frontiersEqual(left: Frontier, right: Frontier): boolean {
  return (
    left.size === right.size &&
    left.hashes.length === right.hashes.length &&
    left.hashes.every((hash, position) => bytesEqual(hash, right.hashes[position] ?? new Uint8Array(0)))
  );
}
