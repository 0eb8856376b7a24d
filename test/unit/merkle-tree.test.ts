import { describe, expect, test } from "vitest";
import { toHex, utf8 } from "../../src/core/bytes.ts";
import type { LeafHash, LeafIndex, NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import {
  appendLeaves,
  checkFrontier,
  emptyFrontier,
  rootOf,
  subtreeHeights,
} from "../../src/core/merkle/frontier.ts";
import { HASH_ALGORITHMS, treeHasher } from "../../src/core/merkle/hash.ts";
import { textbookLeafHash, textbookRoot } from "../../src/core/merkle/textbook.ts";
import {
  applyAppend,
  frontierTiles,
  planAppend,
  requireFrontierOfTiles,
  type TileReader,
  tileId,
} from "../../src/core/merkle/tiles.ts";
import { MerkleTreeInMemory, sampleLeaves } from "../support/merkle-tree-in-memory.ts";
import vectors from "../vectors/merkle.json" with { type: "json" };

const SIZES_MAX = 600;
const leaves = sampleLeaves(SIZES_MAX);
const corrupt = expect.objectContaining({ code: "TREE_CORRUPT" });

describe.each(vectors.trees)("the $hash_algorithm tree of the eight RFC 6962 entries", (tree) => {
  const hasher = treeHasher(tree.hash_algorithm as "blake3" | "sha256");
  const leafHashes = vectors.entries.map((entry) => hasher.leaf(Buffer.from(entry, "hex")));

  test("has the published leaf hashes", () => {
    expect(leafHashes.map(toHex)).toEqual(tree.leaf_hashes);
  });

  test("has the published root at every size from 0 to 8", () => {
    const roots = tree.roots.map((_, size) =>
      toHex(rootOf(appendLeaves(emptyFrontier(), leafHashes.slice(0, size), hasher), hasher)),
    );
    expect(roots).toEqual(tree.roots);
  });
});

describe.each(HASH_ALGORITHMS)("%s", (algorithm) => {
  const hasher = treeHasher(algorithm);

  test("leaf and node hashes equal those of the second implementation at sizes around a block", () => {
    for (const length of [0, 1, 31, 63, 64, 65, 127, 128, 350, 510, 511, 512, 1023, 1024, 1025, 4096]) {
      const entry = new Uint8Array(length).map((_, position) => position * 7);
      expect(toHex(hasher.leaf(entry))).toBe(toHex(textbookLeafHash(entry, algorithm)));
    }
    const pair = leaves.slice(0, 2);
    const node = hasher.node(pair[0] as LeafHash, pair[1] as LeafHash);
    expect(toHex(node)).toBe(toHex(textbookRoot(pair, algorithm)));
  });

  test("a hash is in memory of its own, and later calls leave it alone", () => {
    const first = hasher.leaf(utf8("first"));
    const before = toHex(first);
    hasher.leaf(utf8("second"));
    hasher.node(first, first);
    expect(toHex(first)).toBe(before);
    expect(first.buffer.byteLength).toBe(32);
  });

  test("a node of a child that isn't 32 bytes is refused", () => {
    const whole = new Uint8Array(32);
    expect(() => hasher.node(new Uint8Array(31), whole)).toThrow(corrupt);
    expect(() => hasher.node(whole, new Uint8Array(33))).toThrow(corrupt);
  });

  test("root, frontier and tiles equal the textbook recursion at every size to 600", () => {
    const tree = new MerkleTreeInMemory(algorithm, leaves);
    for (let size = 1; size <= SIZES_MAX; size++) {
      tree.append(1);
      expect(toHex(tree.head().root)).toBe(toHex(textbookRoot(leaves, algorithm, 0, size)));
      expect(tree.frontier.hashes).toHaveLength(subtreeHeights(size).length);
      if (size % 16 <= 1) requireFrontierOfTiles(tree.frontier, tree.read, hasher);
    }
    expect(tree.writes.map(({ level, n, width }) => ({ level, n, width }))).toEqual([
      { level: 0, n: 0, width: 256 },
      { level: 1, n: 0, width: 1 },
      { level: 0, n: 1, width: 256 },
      { level: 1, n: 0, width: 2 },
    ]);
    const tileRoots = [textbookRoot(leaves, algorithm, 0, 256), textbookRoot(leaves, algorithm, 256, 512)];
    expect(Buffer.from(tree.read(0, 1) ?? [])).toEqual(Buffer.concat(leaves.slice(256, 512)));
    expect(Buffer.from(tree.read(1, 0) ?? [])).toEqual(Buffer.concat(tileRoots));
  });

  test("the first hash of level 2 appears with leaf 65 536, over the 256 of level 1", () => {
    const tree = new MerkleTreeInMemory(algorithm, sampleLeaves(65_537));
    tree.append(65_535);
    expect(tree.read(2, 0)).toBeUndefined();
    tree.append(2);
    const level1 = tree.read(1, 0) ?? new Uint8Array(0);
    const hashes = Array.from({ length: 256 }, (_, j) => level1.slice(j * 32, (j + 1) * 32));
    expect(toHex(tree.read(2, 0) ?? new Uint8Array(0))).toBe(toHex(textbookRoot(hashes, algorithm)));
  });
});

describe("an append plan", () => {
  const size = (value: number): TreeSize => value as TreeSize;

  test("needs no earlier leaf and no tile while no level-0 tile gets full", () => {
    expect(planAppend(size(1_000_000), 1)).toEqual({ leavesNeededFrom: 1_000_000, tilesNeeded: [] });
    expect(planAppend(size(0), 255)).toEqual({ leavesNeededFrom: 0, tilesNeeded: [] });
  });

  test("needs the leaves of the tile that gets full, and the one tile above that grows", () => {
    expect(planAppend(size(1_000_191), 1)).toEqual({
      leavesNeededFrom: 999_936,
      tilesNeeded: [{ level: 1, n: 15, width: 66 }],
    });
  });

  test("needs every level that grows when an append fills a level-1 tile", () => {
    expect(planAppend(size(2 * 65_536 - 1), 1)).toEqual({
      leavesNeededFrom: 2 * 65_536 - 256,
      tilesNeeded: [
        { level: 1, n: 1, width: 255 },
        { level: 2, n: 0, width: 1 },
      ],
    });
  });

  test("reads 1.02 tiles or fewer for 256 leaves, whatever the size", () => {
    for (const start of [1_024, 1_000_192]) {
      let tileReads = 0;
      for (let offset = 0; offset < 65_536; offset++) {
        tileReads += planAppend(size(start + offset), 1).tilesNeeded.length;
      }
      expect(tileReads / 256).toBeLessThanOrEqual(1.02);
    }
  });
});

describe("an append", () => {
  const hasher = treeHasher("blake3");
  const at255 = appendLeaves(emptyFrontier(), leaves.slice(0, 255), hasher);
  const noTile = (): undefined => undefined;
  const run = (from: number, to: number) => ({ from: from as LeafIndex, hashes: leaves.slice(from, to) });

  test("of no leaves changes nothing", () => {
    const result = applyAppend(at255, run(255, 255), noTile, hasher);
    expect(result).toEqual({ frontier: at255, root: rootOf(at255, hasher), tileWrites: [] });
  });

  test("is refused when its leaves don't begin where the plan says", () => {
    expect(() => applyAppend(at255, run(255, 256), noTile, hasher)).toThrow(
      expect.objectContaining({ code: "INTERNAL" }),
    );
    expect(() => applyAppend(at255, run(0, 100), noTile, hasher)).toThrow(
      expect.objectContaining({ code: "INTERNAL" }),
    );
  });

  test("that fills a tile is refused when an earlier leaf is not the one the frontier was made of", () => {
    const changed = run(0, 256).hashes.with(17, new Uint8Array(32) as LeafHash);
    expect(() => applyAppend(at255, { from: 0 as LeafIndex, hashes: changed }, noTile, hasher)).toThrow(
      corrupt,
    );
    expect(applyAppend(at255, run(0, 256), noTile, hasher).tileWrites).toHaveLength(2);
  });

  test("is refused when a tile it builds on is missing, too narrow, or no whole number of hashes", () => {
    const at511 = appendLeaves(emptyFrontier(), leaves.slice(0, 511), hasher);
    for (const tile of [undefined, new Uint8Array(0), new Uint8Array(31), new Uint8Array(33)]) {
      expect(() => applyAppend(at511, run(256, 512), () => tile, hasher)).toThrow(corrupt);
    }
    const at513 = new MerkleTreeInMemory("blake3", sampleLeaves(768));
    at513.append(513);
    const oneHashOfTwo: TileReader = (level, n) => at513.read(level, n)?.subarray(0, 32);
    const tail = { from: 512 as LeafIndex, hashes: at513.leaves.slice(512) };
    expect(() => applyAppend(at513.frontier, tail, oneHashOfTwo, hasher)).toThrow(corrupt);
    expect(applyAppend(at513.frontier, tail, at513.read, hasher).tileWrites).toHaveLength(2);
  });

  test("builds on the first hashes of a wider tile, which a writer that lost its race has left", () => {
    const tree = new MerkleTreeInMemory("blake3", leaves);
    tree.append(600);
    const at511 = appendLeaves(emptyFrontier(), leaves.slice(0, 511), hasher);
    const { tileWrites } = applyAppend(at511, run(256, 512), tree.read, hasher);
    expect(tileWrites.find(({ level }) => level === 1)).toEqual(tree.tiles.get("1:0"));
  });

  test("that fills a level-1 tile is refused when an earlier hash of that tile was changed", () => {
    const many = sampleLeaves(65_536);
    const tree = new MerkleTreeInMemory("blake3", many);
    tree.append(65_535);
    const lastTile = { from: 65_280 as LeafIndex, hashes: many.slice(65_280) };
    const changed = Uint8Array.from(tree.read(1, 0) ?? []);
    expect(applyAppend(tree.frontier, lastTile, () => changed, hasher).frontier.hashes).toHaveLength(1);
    changed[40] = (changed[40] ?? 0) ^ 1;
    expect(() => applyAppend(tree.frontier, lastTile, () => changed, hasher)).toThrow(corrupt);
  });
});

describe("a stored frontier", () => {
  const hash = new Uint8Array(32) as NodeHash;

  test("is accepted with one hash for each 1 bit of its size", () => {
    expect(checkFrontier(0, []).hashes).toEqual([]);
    expect(checkFrontier(6, [hash, hash]).size).toBe(6);
    expect(checkFrontier(2 ** 32, [hash]).size).toBe(2 ** 32);
  });

  test.each([
    ["too few hashes", 6, [hash]],
    ["too many hashes", 6, [hash, hash, hash]],
    ["hashes for no leaves", 0, [hash]],
    ["a short hash", 1, [new Uint8Array(31)]],
    ["a hash that is text", 1, ["0".repeat(32) as unknown as Uint8Array]],
    ["a negative size", -1, [hash]],
    ["a size that is no integer", 1.5, [hash]],
    ["NaN as its size", Number.NaN, []],
    ["a size above 2^32", 2 ** 32 + 1, [hash, hash]],
  ])("is refused with %s", (_, size, hashes) => {
    expect(() => checkFrontier(size, hashes)).toThrow(corrupt);
  });

  test("is refused on load when the tiles say otherwise", () => {
    const tree = new MerkleTreeInMemory("sha256", leaves);
    tree.append(600);
    const { frontier, hasher } = tree;
    expect(frontierTiles(frontier.size)).toEqual([
      { level: 1, n: 0, width: 2 },
      { level: 0, n: 2, width: 88 },
    ]);
    const swapped = { size: frontier.size, hashes: frontier.hashes.with(0, frontier.hashes[1] as NodeHash) };
    expect(() => requireFrontierOfTiles(swapped, tree.read, hasher)).toThrow(corrupt);
    requireFrontierOfTiles(frontier, tree.read, hasher);
  });

  test("can't grow beyond 2^32 leaves", () => {
    const full = checkFrontier(2 ** 32, [hash]);
    expect(() => appendLeaves(full, leaves.slice(0, 1), treeHasher("blake3"))).toThrow(corrupt);
  });
});

test("the last leaf of the largest tree completes a subtree at every height", () => {
  const hash = new Uint8Array(32) as NodeHash;
  const heights: number[] = [];
  const frontier = checkFrontier(
    2 ** 32 - 1,
    Array.from({ length: 32 }, () => hash),
  );
  const next = appendLeaves(frontier, leaves.slice(0, 1), treeHasher("blake3"), (height) =>
    heights.push(height),
  );
  expect(next.size).toBe(2 ** 32);
  expect(next.hashes).toHaveLength(1);
  expect(heights).toEqual(Array.from({ length: 32 }, (_, position) => position + 1));
});

test("a tile's id begins with its session", () => {
  expect(tileId("sess-1" as SessionId, 1, 15)).toBe("sess-1:1:15");
});
