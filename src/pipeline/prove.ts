import { bytesEqual } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { type LeafIndex, leafIndex, type SessionId, type TreeSize, treeSize } from "../core/ids.ts";
import { checkFrontier, type Frontier, joinSubtrees, rootOf } from "../core/merkle/frontier.ts";
import { treeHasher } from "../core/merkle/hash.ts";
import {
  type ConsistencyProof,
  consistencyProof,
  consistencyProofTiles,
  type InclusionProof,
  inclusionProof,
  inclusionProofTiles,
  type SizedRoot,
} from "../core/merkle/proof.ts";
import {
  frontierSubtrees,
  frontierTiles,
  type KnownSubtrees,
  rangeSubtrees,
  requireFrontierOfTiles,
  type TileReader,
  type TileRequest,
  tileKey,
  tilesOfRanges,
} from "../core/merkle/tiles.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, SessionStore, TileStore } from "./ports.ts";
import { readTiles } from "./read-tiles.ts";

export interface ProofStores {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly tiles: TileStore;
}

export interface ProofOptions {
  /** Told of each tile that is read; one made of chunk documents counts too. */
  readonly countReads?: (tile: TileRequest) => void;
}

/** A session's tree whose parts have been held against one another. */
export interface LoadedTree {
  readonly session: SessionRecord;
  readonly frontier: Frontier;
  readonly head: SizedRoot;
}

/** Whoever asks for a proof is told at once that a server is away; only workers wait for it. */
const once: Patience = (_name, _signal, operation) => operation();
const NEVER: AbortSignal = new AbortController().signal;

/**
 * The session's tree, its frontier computed again from the tiles. Throws TREE_CORRUPT if that gives another one, SESSION_UNKNOWN if
 * there is no such session or it has no leaf. One session's fault is an error of this call and of no other session.
 */
export async function loadTree(
  stores: ProofStores,
  session: SessionId,
  options: ProofOptions = {},
): Promise<LoadedTree> {
  const tree = await readTree(stores, session);
  const readTile = await readWith(stores, tree.session, frontierTiles(tree.head.size), options);
  requireFrontierOfTiles(tree.frontier, readTile, treeHasher(tree.head.hashAlgorithm));
  return tree;
}

/**
 * The proof that leaf `index` is in the session's tree, also while it is open: of the tree as it is, or as it was at `size`
 * leaves. Reads tiles as inclusionTiles says. Throws TREE_CORRUPT when what is stored contradicts the head, CONFIG_INVALID
 * for an index or a size that the tree doesn't have, SESSION_UNKNOWN.
 */
export async function proveInclusion(
  stores: ProofStores,
  session: SessionId,
  index: number,
  size?: number,
  options: ProofOptions = {},
): Promise<InclusionProof> {
  const tree = await readTree(stores, session);
  const provenSize = requireSize(size ?? tree.head.size, tree.head);
  const leaf = requireIndex(index, provenSize);
  const readTile = await readWith(
    stores,
    tree.session,
    inclusionTiles(tree.frontier, leaf, provenSize),
    options,
  );
  return inclusionProof(
    leaf,
    earlierHead(tree, provenSize, readTile),
    readTile,
    frontierSubtrees(tree.frontier),
  );
}

/**
 * The proof that the session's tree at `size2` leaves (default: as it is) has the first `size1` of them unchanged. Reads tiles
 * as consistencyTiles says. Errors as proveInclusion.
 */
export async function proveConsistency(
  stores: ProofStores,
  session: SessionId,
  size1: number,
  size2?: number,
  options: ProofOptions = {},
): Promise<ConsistencyProof> {
  const tree = await readTree(stores, session);
  const newSize = requireSize(size2 ?? tree.head.size, tree.head);
  const oldSize = requireSize(size1, tree.head);
  if (oldSize > newSize) throw wrongArgument(newSize, `a consistency proof can't begin at ${oldSize}`);
  const readTile = await readWith(
    stores,
    tree.session,
    consistencyTiles(tree.frontier, oldSize, newSize),
    options,
  );
  const newHead = earlierHead(tree, newSize, readTile);
  const known = frontierSubtrees(tree.frontier);
  // The older root is bound to the newer one by this very proof, and that one to the head.
  const oldHead = oldSize === newSize ? newHead : headOf(tree, oldSize, readTile);
  return consistencyProof(oldHead, newHead, readTile, known);
}

/*
 * How many tiles a proof reads. There are as many levels of tiles as the last leaf's index has bytes: 3 up to 2^24 leaves, 4 up to
 * 2^32. What the head's frontier holds is never read, so that the head's own right edge costs nothing, and every other hash of
 * a proof is a sibling on the way of one of two leaves to the root: the leaf that is proven and the last one of an earlier
 * size, or the last ones of two sizes. All siblings on one way are in one tile a level, and an earlier size's root is made of
 * those on its last leaf's way. Two ways share the top tile. Hence:
 *
 *   leaf in the head, or an earlier size and the head    one way     ≤ levels          3 up to 2^24 leaves
 *   leaf in an earlier size, or two earlier sizes        two ways    ≤ 2 · levels - 1  5 up to 2^24 leaves, 7 up to 2^32
 *
 * With four levels no fewer than 7 will do: where two ways part at the top, each has three tiles of its own whose hashes stand
 * nowhere else, short of hashing the thousands of leaves below them.
 */

/** Tiles that an inclusion proof reads, and with which its root is held against the head. PROOF_INVALID. */
export function inclusionTiles(frontier: Frontier, index: LeafIndex, size: TreeSize): readonly TileRequest[] {
  const known = frontierSubtrees(frontier);
  return widest([...inclusionProofTiles(index, size, known), ...headTiles(frontier, size, known)]);
}

/** Tiles that a consistency proof reads, and with which both its roots are held against the head. PROOF_INVALID. */
export function consistencyTiles(
  frontier: Frontier,
  size1: TreeSize,
  size2: TreeSize,
): readonly TileRequest[] {
  const known = frontierSubtrees(frontier);
  return widest([
    ...consistencyProofTiles(size1, size2, known),
    ...tilesOfRanges([{ from: 0, to: size1 }], known),
    ...headTiles(frontier, size2, known),
  ]);
}

/** For the root of an earlier size, and the proof that leads from it to the head. */
function headTiles(frontier: Frontier, size: TreeSize, known: KnownSubtrees): readonly TileRequest[] {
  return [
    ...tilesOfRanges([{ from: 0, to: size }], known),
    ...consistencyProofTiles(size, frontier.size, known),
  ];
}

/** Each tile once, as wide as the widest request. */
function widest(requests: readonly TileRequest[]): readonly TileRequest[] {
  const tiles = new Map<string, TileRequest>();
  for (const request of requests) {
    const key = tileKey(request.level, request.n);
    if ((tiles.get(key)?.width ?? 0) < request.width) tiles.set(key, request);
  }
  return [...tiles.values()];
}

async function readTree({ sessions }: ProofStores, id: SessionId): Promise<LoadedTree> {
  const session = await sessions.find(id);
  if (session === undefined)
    throw new LucidError("SESSION_UNKNOWN", "there is no session of that id in this database");
  const { tree, hashAlgorithm } = session;
  if (tree.root === undefined)
    throw new LucidError("SESSION_UNKNOWN", "the session has no chunk in its tree yet");
  const frontier = checkFrontier(tree.size, tree.frontier);
  if (!bytesEqual(rootOf(frontier, treeHasher(hashAlgorithm)), tree.root)) {
    throw new LucidError("TREE_CORRUPT", "the stored root is not that of the stored frontier; run fsck");
  }
  return { session, frontier, head: { hashAlgorithm, size: tree.size, root: tree.root } };
}

function requireSize(size: number, head: SizedRoot): SizedRoot["size"] {
  if (Number.isInteger(size) && size >= 1 && size <= head.size) return treeSize(size);
  throw wrongArgument(head.size, `there is none of size ${size}, but from 1 to ${head.size}`);
}

function requireIndex(index: number, size: TreeSize): LeafIndex {
  if (Number.isInteger(index) && index >= 0 && index < size) return leafIndex(index);
  throw wrongArgument(size, `there is no leaf ${index}, but from 0 to ${size - 1}`);
}

/** Of whoever asks: nothing is wrong with the tree, and no proof has been made. */
function wrongArgument(size: number, problem: string): LucidError {
  return new LucidError(
    "CONFIG_INVALID",
    `the tree has ${size} ${size === 1 ? "leaf" : "leaves"}: ${problem}`,
  );
}

/**
 * The head that the tree had at `size`. No store keeps old roots, so the tiles say it, and only if from it they also lead to
 * the head of today: a changed leaf below an earlier size must not get a root of its own.
 */
function earlierHead(tree: LoadedTree, size: TreeSize, readTile: TileReader): SizedRoot {
  const { head } = tree;
  if (size === head.size) return head;
  const earlier = headOf(tree, size, readTile);
  consistencyProof(earlier, head, readTile, frontierSubtrees(tree.frontier));
  return earlier;
}

/** What the tiles say, held against nothing yet. */
function headOf({ frontier, head }: LoadedTree, size: TreeSize, readTile: TileReader): SizedRoot {
  const hasher = treeHasher(head.hashAlgorithm);
  const subtrees = rangeSubtrees({ from: 0, to: size }, readTile, hasher, frontierSubtrees(frontier));
  const root = joinSubtrees(subtrees, hasher);
  if (root === undefined) throw new LucidError("INTERNAL", "a tree of at least one leaf has a root");
  return { hashAlgorithm: head.hashAlgorithm, size, root };
}

async function readWith(
  stores: ProofStores,
  session: SessionRecord,
  tiles: readonly TileRequest[],
  { countReads }: ProofOptions,
): Promise<TileReader> {
  if (countReads !== undefined) for (const tile of tiles) countReads(tile);
  return readTiles({ ...stores, patience: once }, session, tiles, NEVER);
}
