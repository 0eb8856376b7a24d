import { bytesEqual } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import { HASH_BYTES, type LeafHash, type LeafIndex, type NodeHash, type TreeSize } from "../ids.ts";
import { joinSubtrees, TREE_SIZE_MAX } from "./frontier.ts";
import { type HashAlgorithm, isHashAlgorithm, type TreeHasher, treeHasher } from "./hash.ts";
import {
  type KnownSubtrees,
  type LeafRange,
  rangeSubtrees,
  type TileReader,
  type TileRequest,
  tilesOfRanges,
} from "./tiles.ts";

/**
 * Size and root together. A root alone does not bind the size (many consistency proofs pass with a wrong one), so
 * the trusted side of every verification is one of these, taken from a signed checkpoint or manifest.
 */
export interface SizedRoot {
  readonly hashAlgorithm: HashAlgorithm;
  readonly size: TreeSize;
  readonly root: NodeHash;
}

/** RFC 9162 §2.1.3; the JSON form is contract §8. */
export interface InclusionProof {
  readonly hashAlgorithm: HashAlgorithm;
  readonly treeSize: TreeSize;
  readonly leafIndex: LeafIndex;
  readonly leafHash: LeafHash;
  /** From the leaf's sibling up to the root's child. */
  readonly path: readonly NodeHash[];
  readonly rootHash: NodeHash;
}

/** RFC 9162 §2.1.4; the JSON form is contract §8. */
export interface ConsistencyProof {
  readonly hashAlgorithm: HashAlgorithm;
  readonly size1: TreeSize;
  readonly size2: TreeSize;
  readonly root1: NodeHash;
  readonly root2: NodeHash;
  readonly path: readonly NodeHash[];
}

/** Why a proof is refused; a closed set, for reports. */
export type ProofFault =
  | "malformed"
  | "size-zero"
  | "size-out-of-range"
  | "index-beyond-size"
  | "sizes-reversed"
  | "hash-length"
  | "path-length"
  | "root-mismatch"
  | "not-the-trusted-root";

export type Verdict = { readonly ok: true } | { readonly ok: false; readonly reason: ProofFault };

/** A path of a tree of 2^32 leaves has 32 hashes, a consistency path at most one more. */
export const PATH_HASHES_MAX = 33;

const OK: Verdict = { ok: true };

function refused(reason: ProofFault): Verdict {
  return { ok: false, reason };
}

// ---- which subtrees a proof consists of --------------------------------------------------------------------

/** The largest power of two smaller than n, n > 1. */
function leftSubtreeSize(n: number): number {
  let size = 1;
  while (size * 2 < n) size *= 2;
  return size;
}

/** RFC 9162 §2.1.3.1 PATH, unrolled: the siblings from the leaf up. */
function inclusionRanges(index: number, size: number): readonly LeafRange[] {
  const fromRootDown: LeafRange[] = [];
  let from = 0;
  let to = size;
  while (to - from > 1) {
    const middle = from + leftSubtreeSize(to - from);
    if (index < middle) {
      fromRootDown.push({ from: middle, to });
      to = middle;
    } else {
      fromRootDown.push({ from, to: middle });
      from = middle;
    }
  }
  return fromRootDown.reverse();
}

/** RFC 9162 §2.1.4.1 SUBPROOF, unrolled; 1 ≤ size1 ≤ size2. */
function consistencyRanges(size1: number, size2: number): readonly LeafRange[] {
  const fromRootDown: LeafRange[] = [];
  let from = 0;
  let to = size2;
  while (to !== size1) {
    const middle = from + leftSubtreeSize(to - from);
    if (size1 <= middle) {
      fromRootDown.push({ from: middle, to });
      to = middle;
    } else {
      fromRootDown.push({ from, to: middle });
      from = middle;
    }
  }
  // The RFC's flag b: a subtree that begins at leaf 0 is the whole old tree, whose root the verifier has.
  if (from > 0) fromRootDown.push({ from, to });
  return fromRootDown.reverse();
}

function requireIndexInSize(index: number, size: number): void {
  if (!isTreeSize(size) || !Number.isInteger(index) || index < 0 || index >= size) {
    throw new LucidError("PROOF_INVALID", "an inclusion proof needs a leaf index below the tree size");
  }
}

function requireSizesInOrder(size1: number, size2: number): void {
  if (!isTreeSize(size1) || !isTreeSize(size2) || size1 > size2) {
    throw new LucidError("PROOF_INVALID", "a consistency proof needs two tree sizes, 1 ≤ size1 ≤ size2");
  }
}

function isTreeSize(value: unknown): value is TreeSize {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= TREE_SIZE_MAX;
}

// ---- making proofs -----------------------------------------------------------------------------------------

/** The tiles to read for `inclusionProof`, the leaf's own level-0 tile among them unless it is known. PROOF_INVALID for a wrong index. */
export function inclusionProofTiles(
  index: LeafIndex,
  size: TreeSize,
  known?: KnownSubtrees,
): readonly TileRequest[] {
  requireIndexInSize(index, size);
  return tilesOfRanges([{ from: index, to: index + 1 }, ...inclusionRanges(index, size)], known);
}

/** The tiles to read for `consistencyProof`. PROOF_INVALID for sizes that are not 1 ≤ size1 ≤ size2. */
export function consistencyProofTiles(
  size1: TreeSize,
  size2: TreeSize,
  known?: KnownSubtrees,
): readonly TileRequest[] {
  requireSizesInOrder(size1, size2);
  return tilesOfRanges(consistencyRanges(size1, size2), known);
}

/** One hash for each range: perfect subtrees from tiles, ragged ones joined. */
function rangeRoots(
  ranges: readonly LeafRange[],
  readTile: TileReader,
  hasher: TreeHasher,
  known: KnownSubtrees | undefined,
): readonly NodeHash[] {
  return ranges.map((range) => {
    const root = joinSubtrees(rangeSubtrees(range, readTile, hasher, known), hasher);
    if (root === undefined) throw new LucidError("INTERNAL", "a proof never has an empty subtree");
    return root;
  });
}

/**
 * The proof that leaf `index` is under `head`, from any size that the tiles cover. A level-0 tile that is not full
 * is the leaf hashes of the chunk documents, concatenated. Throws TREE_CORRUPT when the tiles don't lead to the
 * head's root: a proof that doesn't verify is never handed out.
 */
export function inclusionProof(
  index: LeafIndex,
  head: SizedRoot,
  readTile: TileReader,
  known?: KnownSubtrees,
): InclusionProof {
  requireIndexInSize(index, head.size);
  const hasher = treeHasher(head.hashAlgorithm);
  const leafRange = { from: index, to: index + 1 };
  const ranges = [leafRange, ...inclusionRanges(index, head.size)];
  const [leafHash, ...path] = rangeRoots(ranges, readTile, hasher, known);
  const proof: InclusionProof = {
    hashAlgorithm: head.hashAlgorithm,
    treeSize: head.size,
    leafIndex: index,
    leafHash: leafHash as Uint8Array as LeafHash,
    path,
    rootHash: head.root,
  };
  requireVerified(verifyInclusion(proof, head));
  return proof;
}

/** The proof that `head2` only adds leaves to `head1`. Throws TREE_CORRUPT when it would not verify. */
export function consistencyProof(
  head1: SizedRoot,
  head2: SizedRoot,
  readTile: TileReader,
  known?: KnownSubtrees,
): ConsistencyProof {
  requireSizesInOrder(head1.size, head2.size);
  const ranges = consistencyRanges(head1.size, head2.size);
  const proof: ConsistencyProof = {
    hashAlgorithm: head2.hashAlgorithm,
    size1: head1.size,
    size2: head2.size,
    root1: head1.root,
    root2: head2.root,
    path: rangeRoots(ranges, readTile, treeHasher(head2.hashAlgorithm), known),
  };
  requireVerified(verifyConsistency(proof, head1, head2));
  return proof;
}

function requireVerified(verdict: Verdict): void {
  if (verdict.ok) return;
  throw new LucidError("TREE_CORRUPT", `the stored tiles don't lead to the tree's root: ${verdict.reason}`);
}

// ---- verifying ---------------------------------------------------------------------------------------------

/** "No" also for what no type allows: a Proxy that throws, a getter, a revoked object. Fails closed. */
function neverThrowing(verify: () => Verdict): Verdict {
  try {
    return verify();
  } catch {
    return refused("malformed");
  }
}

function isHash(value: unknown): value is Uint8Array {
  return value instanceof Uint8Array && value.byteLength === HASH_BYTES;
}

function sizeFault(size: unknown): ProofFault | undefined {
  if (size === 0) return "size-zero";
  if (typeof size !== "number") return "malformed";
  return isTreeSize(size) ? undefined : "size-out-of-range";
}

function hashesFault(hashes: readonly unknown[], path: unknown): ProofFault | undefined {
  if (!Array.isArray(path)) return "malformed";
  if (path.length > PATH_HASHES_MAX) return "path-length";
  // Array.from, because every() passes over the holes of a sparse array.
  return [...hashes, ...Array.from<unknown>(path)].every(isHash) ? undefined : "hash-length";
}

function headFault(head: SizedRoot): ProofFault | undefined {
  if (!isHashAlgorithm(head.hashAlgorithm)) return "malformed";
  return sizeFault(head.size) ?? (isHash(head.root) ? undefined : "hash-length");
}

/** What is wrong with the form and the ranges of a proof; `undefined` for nothing. */
export function inclusionFault(proof: InclusionProof): ProofFault | undefined {
  const { hashAlgorithm, treeSize, leafIndex, leafHash, rootHash, path } = proof;
  if (!isHashAlgorithm(hashAlgorithm) || typeof leafIndex !== "number") return "malformed";
  const fault = sizeFault(treeSize) ?? hashesFault([leafHash, rootHash], path);
  if (fault !== undefined) return fault;
  if (!Number.isInteger(leafIndex) || leafIndex < 0) return "malformed";
  return leafIndex < treeSize ? undefined : "index-beyond-size";
}

/** As inclusionFault. */
export function consistencyFault(proof: ConsistencyProof): ProofFault | undefined {
  const { hashAlgorithm, size1, size2, root1, root2, path } = proof;
  if (!isHashAlgorithm(hashAlgorithm)) return "malformed";
  const fault = sizeFault(size1) ?? sizeFault(size2) ?? hashesFault([root1, root2], path);
  if (fault !== undefined) return fault;
  return size1 <= size2 ? undefined : "sizes-reversed";
}

function claims(algorithm: HashAlgorithm, size: number, root: Uint8Array, head: SizedRoot): boolean {
  return algorithm === head.hashAlgorithm && size === head.size && bytesEqual(root, head.root);
}

/**
 * RFC 9162 §2.1.3.2. `trusted` comes from a verified checkpoint or manifest, never from the proof; the caller compares
 * `proof.leafHash` with the leaf hash it has computed from the leaf. Never throws, whatever the arguments are.
 */
export function verifyInclusion(proof: InclusionProof, trusted: SizedRoot): Verdict {
  return neverThrowing(() => {
    const fault = headFault(trusted) ?? inclusionFault(proof);
    if (fault !== undefined) return refused(fault);
    if (!claims(proof.hashAlgorithm, proof.treeSize, proof.rootHash, trusted))
      return refused("not-the-trusted-root");
    return followInclusionPath(proof, treeHasher(trusted.hashAlgorithm));
  });
}

function followInclusionPath(proof: InclusionProof, hasher: TreeHasher): Verdict {
  // The RFC's names. Both are below 2^32, so that unsigned shifts are exact.
  let fn: number = proof.leafIndex;
  let sn: number = proof.treeSize - 1;
  let r: Uint8Array = proof.leafHash;
  for (const p of proof.path) {
    if (sn === 0) return refused("path-length");
    if (isOdd(fn) || fn === sn) {
      r = hasher.node(p, r);
      while (!isOdd(fn) && fn !== 0) {
        fn >>>= 1;
        sn >>>= 1;
      }
    } else {
      r = hasher.node(r, p);
    }
    fn >>>= 1;
    sn >>>= 1;
  }
  if (sn !== 0) return refused("path-length");
  return bytesEqual(r, proof.rootHash) ? OK : refused("root-mismatch");
}

/** RFC 9162 §2.1.4.2, with both heads from verified checkpoints. Never throws, whatever the arguments are. */
export function verifyConsistency(
  proof: ConsistencyProof,
  trusted1: SizedRoot,
  trusted2: SizedRoot,
): Verdict {
  return neverThrowing(() => {
    const fault = headFault(trusted1) ?? headFault(trusted2) ?? consistencyFault(proof);
    if (fault !== undefined) return refused(fault);
    const trusted =
      claims(proof.hashAlgorithm, proof.size1, proof.root1, trusted1) &&
      claims(proof.hashAlgorithm, proof.size2, proof.root2, trusted2);
    if (!trusted) return refused("not-the-trusted-root");
    return followConsistencyPath(proof, treeHasher(trusted2.hashAlgorithm));
  });
}

function followConsistencyPath(proof: ConsistencyProof, hasher: TreeHasher): Verdict {
  if (proof.size1 === proof.size2) {
    if (proof.path.length > 0) return refused("path-length");
    return bytesEqual(proof.root1, proof.root2) ? OK : refused("root-mismatch");
  }
  // A perfect old tree is a node of the new one, and its root is left out of the path.
  const oldTreeIsPerfect = Number.isInteger(Math.log2(proof.size1));
  const [first, ...rest] = oldTreeIsPerfect ? [proof.root1, ...proof.path] : proof.path;
  if (first === undefined) return refused("path-length");
  let fn: number = proof.size1 - 1;
  let sn: number = proof.size2 - 1;
  while (isOdd(fn)) {
    fn >>>= 1;
    sn >>>= 1;
  }
  let fr: Uint8Array = first;
  let sr: Uint8Array = first;
  for (const c of rest) {
    if (sn === 0) return refused("path-length");
    if (isOdd(fn) || fn === sn) {
      fr = hasher.node(c, fr);
      sr = hasher.node(c, sr);
      while (!isOdd(fn) && fn !== 0) {
        fn >>>= 1;
        sn >>>= 1;
      }
    } else {
      sr = hasher.node(sr, c);
    }
    fn >>>= 1;
    sn >>>= 1;
  }
  if (sn !== 0) return refused("path-length");
  return bytesEqual(fr, proof.root1) && bytesEqual(sr, proof.root2) ? OK : refused("root-mismatch");
}

function isOdd(value: number): boolean {
  return (value & 1) === 1;
}
