import { bytesEqual } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { leafIndex, type SessionId, treeSize } from "../core/ids.ts";
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
  frontierTiles,
  rangeSubtrees,
  requireFrontierOfTiles,
  type TileReader,
  type TileRequest,
  tileKey,
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
 * leaves. Reads the tiles on the leaf's way to the root and on the right edge: at most five up to 2^24 leaves, for an
 * earlier size also the right edge of the tree as it is. Throws TREE_CORRUPT when what is stored contradicts the head,
 * PROOF_INVALID for an index or a size that the tree doesn't have, SESSION_UNKNOWN.
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
  const leaf = leafIndex(index);
  const wanted = inclusionProofTiles(leaf, provenSize);
  const isHead = provenSize === tree.head.size;
  const more = isHead ? [] : headTiles(tree.head, provenSize);
  const readTile = await readWith(stores, tree.session, [...wanted, ...more], options);
  return inclusionProof(leaf, isHead ? tree.head : earlierHead(tree.head, provenSize, readTile), readTile);
}

/**
 * The proof that the session's tree at `size2` leaves (default: as it is) has the first `size1` of them unchanged. Errors as
 * proveInclusion.
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
  const wanted = [
    ...consistencyProofTiles(oldSize, newSize),
    ...headTiles(tree.head, oldSize),
    ...(newSize === tree.head.size ? [] : headTiles(tree.head, newSize)),
  ];
  const readTile = await readWith(stores, tree.session, wanted, options);
  const oldHead = earlierHead(tree.head, oldSize, readTile);
  return consistencyProof(oldHead, earlierHead(tree.head, newSize, readTile), readTile);
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
  if (size >= 1 && size <= head.size) return treeSize(size);
  throw new LucidError("PROOF_INVALID", `the tree has ${head.size} leaves: a size must lie from 1 to that`);
}

/** What earlierHead reads. */
function headTiles(head: SizedRoot, size: SizedRoot["size"]): readonly TileRequest[] {
  return [...frontierTiles(size), ...consistencyProofTiles(size, head.size)];
}

/**
 * The head that the tree had at `size`. No store keeps old roots, so the tiles say it, and only if from it they also lead to
 * the head of today: a changed leaf below an earlier size must not get a root of its own.
 */
function earlierHead(head: SizedRoot, size: SizedRoot["size"], readTile: TileReader): SizedRoot {
  if (size === head.size) return head;
  const hasher = treeHasher(head.hashAlgorithm);
  const root = joinSubtrees(rangeSubtrees({ from: 0, to: size }, readTile, hasher), hasher);
  if (root === undefined) throw new LucidError("INTERNAL", "a tree of at least one leaf has a root");
  const earlier = { hashAlgorithm: head.hashAlgorithm, size, root };
  consistencyProof(earlier, head, readTile);
  return earlier;
}

/** Each tile once, as wide as the widest request. */
async function readWith(
  stores: ProofStores,
  session: SessionRecord,
  requests: readonly TileRequest[],
  { countReads }: ProofOptions,
): Promise<TileReader> {
  const widest = new Map<string, TileRequest>();
  for (const request of requests) {
    const key = tileKey(request.level, request.n);
    if ((widest.get(key)?.width ?? 0) < request.width) widest.set(key, request);
  }
  const tiles = [...widest.values()];
  if (countReads !== undefined) for (const tile of tiles) countReads(tile);
  return readTiles({ ...stores, patience: once }, session, tiles, NEVER);
}
