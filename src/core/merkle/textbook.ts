import { blake3 } from "@noble/hashes/blake3.js";
import { sha256 } from "@noble/hashes/sha2.js";
import type { HashAlgorithm } from "./hash.ts";

/**
 * RFC 9162 §2.1 word for word: recursion over all leaves, another hash library, no frontier, no tiles. It shares no
 * code with what it checks (the import above is a type), so that a fault would have to be made twice. Slow by design.
 */
const HASH = {
  blake3: (bytes: Uint8Array) => blake3(bytes),
  sha256: (bytes: Uint8Array) => sha256(bytes),
} as const;

function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** HASH(0x00 ‖ d). */
export function textbookLeafHash(entry: Uint8Array, algorithm: HashAlgorithm): Uint8Array {
  return HASH[algorithm](concat(Uint8Array.of(0x00), entry));
}

function nodeHash(left: Uint8Array, right: Uint8Array, algorithm: HashAlgorithm): Uint8Array {
  return HASH[algorithm](concat(Uint8Array.of(0x01), left, right));
}

/** The largest power of two smaller than n, n > 1. */
function split(n: number): number {
  let k = 1;
  while (2 * k < n) k *= 2;
  return k;
}

function leafAt(leaves: readonly Uint8Array[], position: number): Uint8Array {
  const leaf = leaves[position];
  if (leaf === undefined) throw new RangeError("no such leaf");
  return leaf;
}

/** §2.1.1, MTH(D[from:to]) of leaf hashes. */
export function textbookRoot(
  leaves: readonly Uint8Array[],
  algorithm: HashAlgorithm,
  from = 0,
  to: number = leaves.length,
): Uint8Array {
  const n = to - from;
  if (n === 0) return HASH[algorithm](new Uint8Array(0));
  if (n === 1) return leafAt(leaves, from);
  const middle = from + split(n);
  return nodeHash(
    textbookRoot(leaves, algorithm, from, middle),
    textbookRoot(leaves, algorithm, middle, to),
    algorithm,
  );
}

/** §2.1.3.1, PATH(m, D[from:to]); m counts from `from`. */
export function textbookInclusionPath(
  m: number,
  leaves: readonly Uint8Array[],
  algorithm: HashAlgorithm,
  from = 0,
  to: number = leaves.length,
): readonly Uint8Array[] {
  const n = to - from;
  if (n === 1) return [];
  const k = split(n);
  return m < k
    ? [
        ...textbookInclusionPath(m, leaves, algorithm, from, from + k),
        textbookRoot(leaves, algorithm, from + k, to),
      ]
    : [
        ...textbookInclusionPath(m - k, leaves, algorithm, from + k, to),
        textbookRoot(leaves, algorithm, from, from + k),
      ];
}

/** §2.1.4.1, PROOF(m, D_n) = SUBPROOF(m, D_n, true), 0 < m ≤ n. */
export function textbookConsistencyPath(
  m: number,
  leaves: readonly Uint8Array[],
  algorithm: HashAlgorithm,
): readonly Uint8Array[] {
  return subproof(m, leaves, algorithm, 0, leaves.length, true);
}

function subproof(
  m: number,
  leaves: readonly Uint8Array[],
  algorithm: HashAlgorithm,
  from: number,
  to: number,
  known: boolean,
): readonly Uint8Array[] {
  const n = to - from;
  if (m === n) return known ? [] : [textbookRoot(leaves, algorithm, from, to)];
  const k = split(n);
  return m <= k
    ? [
        ...subproof(m, leaves, algorithm, from, from + k, known),
        textbookRoot(leaves, algorithm, from + k, to),
      ]
    : [
        ...subproof(m - k, leaves, algorithm, from + k, to, false),
        textbookRoot(leaves, algorithm, from, from + k),
      ];
}
