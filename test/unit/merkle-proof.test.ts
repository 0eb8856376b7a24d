import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import type { LeafHash, LeafIndex, NodeHash, TreeSize } from "../../src/core/ids.ts";
import { HASH_ALGORITHMS, type HashAlgorithm, treeHasher } from "../../src/core/merkle/hash.ts";
import {
  type ConsistencyProof,
  consistencyProof,
  consistencyProofTiles,
  type InclusionProof,
  inclusionProof,
  inclusionProofTiles,
  type SizedRoot,
  verifyConsistency,
  verifyInclusion,
} from "../../src/core/merkle/proof.ts";
import {
  consistencyProofToJson,
  inclusionProofToJson,
  PROOF_TEXT_CHARS_MAX,
  parseConsistencyProof,
  parseInclusionProof,
} from "../../src/core/merkle/proof-json.ts";
import {
  textbookConsistencyPath,
  textbookInclusionPath,
  textbookRoot,
} from "../../src/core/merkle/textbook.ts";
import { TILE_WIDTH, type TileReader } from "../../src/core/merkle/tiles.ts";
import { MerkleTreeInMemory, sampleLeaves, sizedRoot } from "../support/merkle-tree-in-memory.ts";
import treeVectors from "../vectors/merkle.json" with { type: "json" };
import vectors from "../vectors/merkle-proof.json" with { type: "json" };

const ok = { ok: true };
const refusedFor = (reason: string) => ({ ok: false, reason });

function publishedHead(algorithm: unknown, size: unknown): SizedRoot {
  const tree =
    treeVectors.trees.find((candidate) => candidate.hash_algorithm === algorithm) ?? treeVectors.trees[0];
  const trustedSize = typeof size === "number" && tree?.roots[size] !== undefined && size > 0 ? size : 7;
  const root = Uint8Array.from(Buffer.from(tree?.roots[trustedSize] ?? "", "hex"));
  return sizedRoot(tree?.hash_algorithm as HashAlgorithm, trustedSize, root);
}

describe("the published sha256 values of the Certificate Transparency tests", () => {
  const hasher = treeHasher("sha256");
  const leaves = treeVectors.entries.map((entry) => hasher.leaf(Buffer.from(entry, "hex")));
  const tree = new MerkleTreeInMemory("sha256", leaves);
  tree.append(8);

  test("are the root of the eight entries", () => {
    expect(toHex(tree.head().root)).toBe("5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
  });

  test("are the inclusion path of entry 0", () => {
    expect(inclusionProof(0 as LeafIndex, tree.head(), tree.read).path.map(toHex)).toEqual([
      "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
      "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
      "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]);
  });

  test("are the consistency path from 6 to 8", () => {
    expect(consistencyProof(publishedHead("sha256", 6), tree.head(), tree.read).path.map(toHex)).toEqual([
      "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
      "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
      "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]);
  });
});

describe("proof vectors", () => {
  test.each(vectors.inclusion)(
    "inclusion of $leaf_index in $tree_size ($hash_algorithm) passes",
    (vector) => {
      const parsed = parseInclusionProof(JSON.stringify(vector));
      if (!parsed.ok) throw new Error(parsed.reason);
      expect(verifyInclusion(parsed.proof, publishedHead(vector.hash_algorithm, vector.tree_size))).toEqual(
        ok,
      );
      expect(inclusionProofToJson(parsed.proof)).toBe(JSON.stringify(vector));
    },
  );

  test.each(vectors.consistency)("consistency of $size1 and $size2 ($hash_algorithm) passes", (vector) => {
    const parsed = parseConsistencyProof(JSON.stringify(vector));
    if (!parsed.ok) throw new Error(parsed.reason);
    const heads = [vector.size1, vector.size2].map((size) => publishedHead(vector.hash_algorithm, size));
    expect(verifyConsistency(parsed.proof, heads[0] as SizedRoot, heads[1] as SizedRoot)).toEqual(ok);
    expect(consistencyProofToJson(parsed.proof)).toBe(JSON.stringify(vector));
  });

  test.each(vectors.inclusion_must_fail)("inclusion with $name is refused", ({ text }) => {
    const parsed = parseInclusionProof(text);
    if (parsed.ok) {
      const head = publishedHead(parsed.proof.hashAlgorithm, 7);
      expect(verifyInclusion(parsed.proof, head)).toMatchObject({ ok: false });
    } else {
      expect(parsed.reason).toBeTypeOf("string");
    }
  });

  test.each(vectors.consistency_must_fail)("consistency with $name is refused", ({ text }) => {
    const parsed = parseConsistencyProof(text);
    if (parsed.ok) {
      const { hashAlgorithm, size1, size2 } = parsed.proof;
      const heads = [publishedHead(hashAlgorithm, size1), publishedHead(hashAlgorithm, size2)];
      const verdict = verifyConsistency(parsed.proof, heads[0] as SizedRoot, heads[1] as SizedRoot);
      expect(verdict).toMatchObject({ ok: false });
    } else {
      expect(parsed.reason).toBeTypeOf("string");
    }
  });
});

test("a proof may be indented, and end with one line feed", () => {
  const [vector] = vectors.inclusion;
  expect(parseInclusionProof(`${JSON.stringify(vector, null, 2)}\n`)).toMatchObject({ ok: true });
});

test("a text above the limit is refused before it is parsed", () => {
  const padded = `{${" ".repeat(PROOF_TEXT_CHARS_MAX)}}`;
  expect(parseInclusionProof(padded)).toEqual(refusedFor("malformed"));
});

describe.each(HASH_ALGORITHMS)("%s proofs from tiles", (algorithm) => {
  const leaves = sampleLeaves(1_100);
  const tree = new MerkleTreeInMemory(algorithm, leaves);
  tree.append(1_100);
  const headAt = (size: number): SizedRoot =>
    sizedRoot(algorithm, size, textbookRoot(leaves, algorithm, 0, size));

  test("equal the recursion for every leaf and every pair of sizes to 33", () => {
    const heads = Array.from({ length: 34 }, (_, size) => headAt(size));
    for (let size = 1; size <= 33; size++) {
      const head = heads[size] as SizedRoot;
      for (let other = 0; other < size; other++) {
        const inclusion = inclusionProof(other as LeafIndex, head, tree.read);
        expect(inclusion.path.map(toHex)).toEqual(
          textbookInclusionPath(other, leaves, algorithm, 0, size).map(toHex),
        );
        expect(inclusion.leafHash).toEqual(leaves[other]);
        const consistency = consistencyProof(heads[other + 1] as SizedRoot, head, tree.read);
        expect(consistency.path.map(toHex)).toEqual(
          textbookConsistencyPath(other + 1, leaves.slice(0, size), algorithm).map(toHex),
        );
      }
    }
  });

  test("equal the recursion for leaves and sizes around tile edges, also for sizes below the stored one", () => {
    const edges = [1, 2, 128, 255, 256, 257, 511, 512, 513, 600, 768, 1_024, 1_025, 1_100];
    const heads = new Map(edges.map((size) => [size, headAt(size)]));
    for (const [size, head] of heads) {
      for (const smaller of edges.filter((edge) => edge <= size)) {
        const path = inclusionProof((smaller - 1) as LeafIndex, head, tree.read).path;
        expect(path.map(toHex)).toEqual(
          textbookInclusionPath(smaller - 1, leaves, algorithm, 0, size).map(toHex),
        );
        const consistency = consistencyProof(heads.get(smaller) as SizedRoot, head, tree.read);
        expect(consistency.path.map(toHex)).toEqual(
          textbookConsistencyPath(smaller, leaves.slice(0, size), algorithm).map(toHex),
        );
      }
    }
  });
});

describe("the tiles of a proof", () => {
  const size = 1_000_000 as TreeSize;

  test("are at most five at a million leaves, for every kind of leaf and size", () => {
    const probes = [
      0, 255, 256, 65_535, 65_536, 524_287, 524_288, 983_039, 983_040, 999_935, 999_936, 999_999,
    ];
    for (const index of probes) {
      expect(inclusionProofTiles(index as LeafIndex, size).length).toBeLessThanOrEqual(5);
      expect(consistencyProofTiles((index + 1) as TreeSize, size).length).toBeLessThanOrEqual(5);
    }
  });

  test("are all that making the proof reads, and never wider than the tree is at its size", () => {
    const leaves = sampleLeaves(66_000);
    const tree = new MerkleTreeInMemory("blake3", leaves);
    tree.append(66_000);
    const head = tree.head();
    for (const index of [0, 300, 65_535, 65_536, 65_999]) {
      const widths = new Map(
        inclusionProofTiles(index as LeafIndex, head.size).map(({ level, n, width }) => [
          `${level}:${n}`,
          width,
        ]),
      );
      const cutToPlan: TileReader = (level, n) => {
        const width = widths.get(`${level}:${n}`) ?? 0;
        expect(width).toBeLessThanOrEqual(Math.floor(head.size / TILE_WIDTH ** level) - n * TILE_WIDTH);
        return tree.read(level, n)?.subarray(0, width * 32);
      };
      expect(verifyInclusion(inclusionProof(index as LeafIndex, head, cutToPlan), head)).toEqual(ok);
    }
  });

  test("that are missing or changed give no proof", () => {
    const tree = new MerkleTreeInMemory("blake3", sampleLeaves(600));
    tree.append(600);
    const corrupt = expect.objectContaining({ code: "TREE_CORRUPT" });
    const changed: TileReader = (level, n) => {
      const hashes = Uint8Array.from(tree.read(level, n) ?? []);
      hashes[0] = (hashes[0] ?? 0) ^ 1;
      return hashes;
    };
    expect(() => inclusionProof(3 as LeafIndex, tree.head(), () => undefined)).toThrow(corrupt);
    expect(() => inclusionProof(3 as LeafIndex, tree.head(), changed)).toThrow(corrupt);
  });

  test.each([
    [600, 600],
    [-1, 600],
    [0, 0],
    [1.5, 600],
    [Number.NaN, 600],
    [0, 2 ** 32 + 1],
  ])("can't be planned for leaf %s of %s", (index, treeSize) => {
    const invalid = expect.objectContaining({ code: "PROOF_INVALID" });
    expect(() => inclusionProofTiles(index as LeafIndex, treeSize as TreeSize)).toThrow(invalid);
    expect(() => consistencyProofTiles((index + 1) as TreeSize, treeSize as TreeSize)).toThrow(invalid);
  });
});

describe("a verifier", () => {
  const tree = new MerkleTreeInMemory("blake3", sampleLeaves(13));
  tree.append(6);
  const head6 = tree.head();
  tree.append(7);
  const head = tree.head();
  const proof = inclusionProof(7 as LeafIndex, head, tree.read);
  const consistency = consistencyProof(head6, head, tree.read);
  const short = new Uint8Array(31) as NodeHash;

  test("takes size, root and hash function from the trusted side only", () => {
    const other = { ...head, size: 12 as TreeSize };
    expect(verifyInclusion(proof, other)).toEqual(refusedFor("not-the-trusted-root"));
    expect(verifyInclusion(proof, { ...head, hashAlgorithm: "sha256" })).toEqual(
      refusedFor("not-the-trusted-root"),
    );
    expect(verifyInclusion(proof, { ...head, root: head6.root })).toEqual(refusedFor("not-the-trusted-root"));
    expect(verifyConsistency(consistency, other, head)).toEqual(refusedFor("not-the-trusted-root"));
    expect(verifyConsistency(consistency, head6, head6)).toEqual(refusedFor("not-the-trusted-root"));
    expect(verifyConsistency(consistency, head6, head)).toEqual(ok);
  });

  test("refuses an old root that the path doesn't lead to, although the new one is right", () => {
    const rewritten = { ...head6, root: treeHasher("blake3").node(head6.root, head6.root) };
    const forged = { ...consistency, root1: rewritten.root };
    expect(verifyConsistency(forged, rewritten, head)).toEqual(refusedFor("root-mismatch"));
  });

  test.each<[string, Partial<InclusionProof>]>([
    ["size-zero", { treeSize: 0 as TreeSize }],
    ["size-out-of-range", { treeSize: Number.NaN as TreeSize }],
    ["size-out-of-range", { treeSize: 12.5 as TreeSize }],
    ["size-out-of-range", { treeSize: (2 ** 32 + 1) as TreeSize }],
    ["size-out-of-range", { treeSize: Number.POSITIVE_INFINITY as TreeSize }],
    ["malformed", { treeSize: "13" as unknown as TreeSize }],
    ["index-beyond-size", { leafIndex: 13 as LeafIndex }],
    ["malformed", { leafIndex: -1 as LeafIndex }],
    ["malformed", { leafIndex: 7.5 as LeafIndex }],
    ["malformed", { leafIndex: 7n as unknown as LeafIndex }],
    ["hash-length", { leafHash: short as Uint8Array as LeafHash }],
    ["hash-length", { rootHash: "0".repeat(32) as unknown as NodeHash }],
    ["hash-length", { path: [...proof.path.slice(1), short] }],
    ["hash-length", { path: Object.assign([], { length: 4 }) }],
    ["malformed", { path: undefined as unknown as NodeHash[] }],
    ["malformed", { path: { length: 0 } as unknown as NodeHash[] }],
    ["path-length", { path: proof.path.slice(1) }],
    ["path-length", { path: [...proof.path, head.root] }],
    ["path-length", { path: Array.from({ length: 1_000_000 }, () => head.root) }],
    ["root-mismatch", { path: proof.path.toReversed() }],
    ["root-mismatch", { leafIndex: 6 as LeafIndex }],
  ])("answers %s for the change of case %#", (reason, change) => {
    expect(verifyInclusion({ ...proof, ...change }, head)).toEqual(refusedFor(reason));
  });

  test.each<[string, Partial<ConsistencyProof>]>([
    ["size-zero", { size1: 0 as TreeSize }],
    ["sizes-reversed", { size1: 13 as TreeSize, size2: 6 as TreeSize }],
    ["size-out-of-range", { size2: Number.NaN as TreeSize }],
    ["malformed", { size2: null as unknown as TreeSize }],
    ["hash-length", { root1: short }],
    ["path-length", { path: [] }],
    ["path-length", { path: consistency.path.slice(0, -1) }],
    ["path-length", { path: [...consistency.path, head.root] }],
    ["root-mismatch", { path: consistency.path.toReversed() }],
  ])("answers %s for the consistency change of case %#", (reason, change) => {
    expect(verifyConsistency({ ...consistency, ...change }, head6, head)).toEqual(refusedFor(reason));
  });

  test("says no, and throws nothing, for values of any other kind", () => {
    const thrower = new Proxy({}, { get: () => { throw new Error("hostile"); } }); // biome-ignore format: one line
    const values: unknown[] = [undefined, null, 0, "", "proof", [], {}, () => 0, Symbol("x"), thrower, 1n];
    for (const value of values) {
      expect(verifyInclusion(value as InclusionProof, head).ok).toBe(false);
      expect(verifyInclusion(proof, value as SizedRoot).ok).toBe(false);
      expect(verifyConsistency(value as ConsistencyProof, head6, head).ok).toBe(false);
      expect(verifyConsistency(consistency, head6, value as SizedRoot).ok).toBe(false);
      expect(parseInclusionProof(value as string).ok).toBe(false);
      expect(parseConsistencyProof(value as string).ok).toBe(false);
    }
  });

  test("follows paths of the largest tree, where indexes need all 32 bits", () => {
    const hasher = treeHasher("sha256");
    const path = Array.from({ length: 32 }, (_, at) => new Uint8Array(32).fill(at) as NodeHash);
    const leafHash = new Uint8Array(32).fill(0xff) as LeafHash;
    const root = path.reduce<NodeHash>(
      (right, left) => hasher.node(left, right),
      leafHash as Uint8Array as NodeHash,
    );
    const largest = sizedRoot("sha256", 2 ** 32, root);
    const last: InclusionProof = {
      hashAlgorithm: "sha256",
      treeSize: largest.size,
      leafIndex: (2 ** 32 - 1) as LeafIndex,
      leafHash,
      path,
      rootHash: root,
    };
    expect(verifyInclusion(last, largest)).toEqual(ok);
    expect(verifyInclusion({ ...last, leafIndex: (2 ** 31 - 1) as LeafIndex }, largest)).toEqual(
      refusedFor("root-mismatch"),
    );
  });
});
