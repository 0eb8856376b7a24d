import { beforeAll, describe, expect, test } from "vitest";
import type { LeafIndex, NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import { type Frontier, subtreeHeights } from "../../src/core/merkle/frontier.ts";
import { HASH_ALGORITHMS, type HashAlgorithm } from "../../src/core/merkle/hash.ts";
import { type SizedRoot, verifyConsistency, verifyInclusion } from "../../src/core/merkle/proof.ts";
import {
  textbookConsistencyPath,
  textbookInclusionPath,
  textbookRoot,
} from "../../src/core/merkle/textbook.ts";
import type { TileRequest } from "../../src/core/merkle/tiles.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import type { TileStore } from "../../src/pipeline/ports.ts";
import {
  consistencyTiles,
  inclusionTiles,
  loadTree,
  type ProofStores,
  proveConsistency,
  proveInclusion,
} from "../../src/pipeline/prove.ts";
import { MemoryChunkStore } from "../support/memory/chunk-store.ts";
import { bytesOf, chunk, newSession } from "../support/memory/records.ts";
import { MemorySessionStore } from "../support/memory/session-store.ts";
import { MemoryTileStore } from "../support/memory/tile-store.ts";
import { sampleLeaves, sizedRoot } from "../support/merkle-tree-in-memory.ts";
import { impatient, NEVER, silent } from "../support/recorded-session.ts";

const session = "sess-1" as SessionId;
const LEAVES = sampleLeaves(700);
const withCode = (code: string): unknown => expect.objectContaining({ code });

interface Stores extends ProofStores {
  readonly sessions: MemorySessionStore;
  readonly chunks: MemoryChunkStore;
  readonly tiles: MemoryTileStore;
}

/** An open session of `size` leaves, as the pipeline leaves it. */
async function openSession(size: number, algorithm: HashAlgorithm = "blake3"): Promise<Stores> {
  const stores = {
    sessions: new MemorySessionStore(),
    chunks: new MemoryChunkStore(),
    tiles: new MemoryTileStore(),
  };
  await addSession(stores, session, size, algorithm);
  return stores;
}

async function addSession(
  stores: Stores,
  id: SessionId,
  size: number,
  algorithm: HashAlgorithm = "blake3",
): Promise<void> {
  await stores.sessions.create(newSession(id, { hashAlgorithm: algorithm }));
  for (const [index, leafHash] of LEAVES.slice(0, size).entries()) {
    await stores.chunks.insert(chunk(id, index, { leafHash, hashAlgorithm: algorithm }));
  }
  await integrate(
    { ...stores, observer: silent, patience: impatient, growth: new OwnGrowth(createSystemClock()) },
    id,
    NEVER,
  );
}

function headAt(size: number, algorithm: HashAlgorithm = "blake3"): SizedRoot {
  return sizedRoot(algorithm, size, textbookRoot(LEAVES.slice(0, size), algorithm));
}

/** The tile store with one tile changed, or gone. */
function withTile(
  tiles: TileStore,
  id: string,
  change: (hashes: Uint8Array) => Uint8Array | undefined,
): TileStore {
  return {
    write: (of, records) => tiles.write(of, records),
    async read(of, level, n) {
      const hashes = await tiles.read(of, level, n);
      return hashes !== undefined && `${level}:${n}` === id ? change(hashes) : hashes;
    },
  };
}

describe.each(HASH_ALGORITHMS)("proofs of an open session, %s", (algorithm) => {
  let stores: Stores;
  beforeAll(async () => {
    stores = await openSession(700, algorithm);
  });

  test.each([0, 1, 255, 256, 511, 512, 699])("leaf %i has the path of the RFC's recursion", async (index) => {
    const proof = await proveInclusion(stores, session, index);
    expect(proof.path).toEqual(textbookInclusionPath(index, LEAVES, algorithm));
    expect(proof.leafHash).toEqual(LEAVES[index]);
    expect(verifyInclusion(proof, headAt(700, algorithm))).toEqual({ ok: true });
  });

  test.each([
    [0, 1],
    [0, 2],
    [254, 255],
    [255, 256],
    [3, 257],
    [511, 512],
    [600, 699],
  ])("leaf %i of the tree as it was at %i leaves", async (index, size) => {
    const proof = await proveInclusion(stores, session, index, size);
    expect(proof.path).toEqual(textbookInclusionPath(index, LEAVES.slice(0, size), algorithm));
    expect(verifyInclusion(proof, headAt(size, algorithm))).toEqual({ ok: true });
  });

  test.each([
    [1, 700],
    [256, 700],
    [257, 512],
    [512, 513],
    [699, 700],
    [700, 700],
  ])("from %i to %i leaves the consistency path is that of the recursion", async (size1, size2) => {
    const proof = await proveConsistency(stores, session, size1, size2);
    expect(proof.path).toEqual(textbookConsistencyPath(size1, LEAVES.slice(0, size2), algorithm));
    expect(verifyConsistency(proof, headAt(size1, algorithm), headAt(size2, algorithm))).toEqual({
      ok: true,
    });
  });

  test("without a second size, consistency leads to the tree as it is", async () => {
    expect((await proveConsistency(stores, session, 300)).size2).toBe(700);
  });
});

test("every consistency proof between any two sizes to 40 verifies against the recursion's roots", async () => {
  const stores = await openSession(40);
  for (let size2 = 1; size2 <= 40; size2++) {
    for (let size1 = 1; size1 <= size2; size1++) {
      const proof = await proveConsistency(stores, session, size1, size2);
      expect(verifyConsistency(proof, headAt(size1), headAt(size2))).toEqual({ ok: true });
    }
  }
});

test("every inclusion proof of every size to 40 verifies against the recursion's root", async () => {
  const stores = await openSession(40);
  for (let size = 1; size <= 40; size++) {
    for (let index = 0; index < size; index++) {
      const proof = await proveInclusion(stores, session, index, size);
      expect(verifyInclusion(proof, headAt(size))).toEqual({ ok: true });
    }
  }
});

test("a tile that a proof of the head does not need may be gone: the frontier has its hashes", async () => {
  const sound = await openSession(700);
  const stores = { ...sound, tiles: withTile(sound.tiles, "1:0", () => undefined) };
  expect(verifyInclusion(await proveInclusion(stores, session, 600), headAt(700))).toEqual({ ok: true });
});

describe("tiles that a proof reads", () => {
  const FULL_LEVELS = [256, 65_536, 2 ** 24];

  /** Edges of all levels and their neighbours, the head's own end, and some in between. */
  function places(size: number): readonly number[] {
    const edges = FULL_LEVELS.flatMap((full) =>
      [0, 1, 2, 3, 127, 128, 255].flatMap((times) => [-1, 0, 1].map((by) => full * times + by)),
    );
    const between = Array.from({ length: 60 }, (_, at) => 1 + Math.floor((at * 0.618_034 * size) % size));
    const all = new Set([1, 2, ...edges, ...between, size - 2, size - 1, size]);
    return [...all].filter((place) => place >= 1 && place <= size).toSorted((a, b) => a - b);
  }

  function frontierOf(size: number): Frontier {
    const hashes = subtreeHeights(size).map((height) => bytesOf(height) as NodeHash);
    return { size: size as TreeSize, hashes };
  }

  // One way to the root, and two of them: bounds that are reached.
  test.each([
    [200, 1, 1],
    [65_536, 2, 3],
    [65_537, 2, 3],
    [1_000_000, 3, 5],
    [2 ** 24 - 1, 3, 5],
    [2 ** 24, 3, 5],
    [2 ** 32, 4, 7],
  ])("at %i leaves are at most %i for the head, %i for earlier sizes", (size, ofHead, ofEarlier) => {
    const frontier = frontierOf(size);
    const last = size as TreeSize;
    const most = { inclusion: 0, inclusionEarlier: 0, consistency: 0, consistencyEarlier: 0 };
    const sizes = places(size) as readonly TreeSize[];
    for (const one of sizes) {
      const index = (one - 1) as LeafIndex;
      most.inclusion = Math.max(most.inclusion, inclusionTiles(frontier, index, last).length);
      most.consistency = Math.max(most.consistency, consistencyTiles(frontier, one, last).length);
      for (const other of sizes.filter((larger) => larger >= one)) {
        const ofLeaf = inclusionTiles(frontier, index, other).length;
        most.inclusionEarlier = Math.max(most.inclusionEarlier, ofLeaf);
        const ofSizes = consistencyTiles(frontier, one, other).length;
        most.consistencyEarlier = Math.max(most.consistencyEarlier, ofSizes);
      }
    }
    expect(most).toEqual({
      inclusion: ofHead,
      consistency: ofHead,
      inclusionEarlier: ofEarlier,
      consistencyEarlier: ofEarlier,
    });
  });

  test("are each read once, and no others", async () => {
    const stores = await openSession(700);
    const read: string[] = [];
    const tiles: TileStore = {
      write: (of, records) => stores.tiles.write(of, records),
      read(of, level, n) {
        read.push(`${level}:${n}`);
        return stores.tiles.read(of, level, n);
      },
    };
    const counted: string[] = [];
    const options = { countReads: ({ level, n }: TileRequest) => counted.push(`${level}:${n}`) };
    for (const [index, size] of [
      [0, 700],
      [300, 700],
      [699, 700],
      [0, 640],
      [255, 300],
    ] as const) {
      read.length = 0;
      counted.length = 0;
      await proveInclusion({ ...stores, tiles }, session, index, size, options);
      expect(read).toEqual(counted);
      expect(new Set(read).size).toBe(read.length);
      expect(read.length).toBeLessThanOrEqual(size === 700 ? 2 : 3);
    }
  });
});

describe("what is stored and contradicts the head", () => {
  const flipped = (hashes: Uint8Array): Uint8Array => {
    hashes.set([(hashes[40] ?? 0) ^ 1], 40);
    return hashes;
  };

  test.each([
    ["a hash of a leaf tile", "0:0", flipped],
    ["a leaf tile that is gone, without chunk documents for it", "0:0", () => undefined],
    ["a hash one level up", "1:0", flipped],
    ["a tile that is cut to one hash", "1:0", (hashes: Uint8Array) => hashes.slice(0, 32)],
    ["a tile that is no whole number of hashes", "1:0", (hashes: Uint8Array) => hashes.slice(0, 63)],
    ["a tile that is gone", "1:0", () => undefined],
  ])("%s is TREE_CORRUPT", async (_name, tile, change) => {
    const sound = await openSession(700);
    const chunks = new MemoryChunkStore();
    const stores: ProofStores = {
      ...sound,
      ...(tile === "0:0" ? { chunks } : {}),
      tiles: withTile(sound.tiles, tile, change),
    };
    await expect(proveInclusion(stores, session, 0, 640)).rejects.toEqual(withCode("TREE_CORRUPT"));
  });

  test("a chunk document with another leaf hash is TREE_CORRUPT", async () => {
    const stores = await openSession(10);
    const changed = await stores.chunks.find(session, 4 as LeafIndex);
    if (changed === undefined) throw new Error("it was inserted");
    await stores.chunks.withdraw(changed, changed.blobId);
    await stores.chunks.insert({ ...changed, leafHash: bytesOf(9) as typeof changed.leafHash });
    await expect(proveInclusion(stores, session, 5)).rejects.toEqual(withCode("TREE_CORRUPT"));
    await expect(proveConsistency(stores, session, 6)).rejects.toEqual(withCode("TREE_CORRUPT"));
    await expect(loadTree(stores, session)).rejects.toEqual(withCode("TREE_CORRUPT"));
  });

  test("a leaf below an earlier size that changed gets no root of its own", async () => {
    const sound = await openSession(700);
    const stores = { ...sound, tiles: withTile(sound.tiles, "0:0", flipped) };
    await expect(proveInclusion(stores, session, 0, 200)).rejects.toEqual(withCode("TREE_CORRUPT"));
  });

  test("a head whose root is not its frontier's is TREE_CORRUPT", async () => {
    const stores = await openSession(10);
    const record = await stores.sessions.find(session);
    if (record === undefined) throw new Error("it was created");
    await stores.sessions.replace(session, record.version, {
      kind: "grow",
      tree: { ...record.tree, root: bytesOf(1) as NodeHash },
      addedOriginalBytes: 0,
      addedStoredBytes: 0,
    });
    await expect(proveInclusion(stores, session, 0)).rejects.toEqual(withCode("TREE_CORRUPT"));
  });
});

describe("loading a tree", () => {
  test.each([1, 2, 255, 256, 257, 700])("%i leaves: the frontier is that of the tiles", async (size) => {
    const stores = await openSession(size);
    expect((await loadTree(stores, session)).head).toEqual(headAt(size));
  });

  test("a session that is corrupt stops alone: the others load, at the same time", async () => {
    const stores = await openSession(300);
    const ids = Array.from({ length: 20 }, (_, at) => `sess-${at + 2}` as SessionId);
    for (const id of ids) await addSession(stores, id, 300);
    const tiles: TileStore = {
      write: (of, records) => stores.tiles.write(of, records),
      read: async (of, level, n) => (of === ids[7] ? bytesOf(1, 8192) : stores.tiles.read(of, level, n)),
    };
    const loaded = await Promise.allSettled(ids.map((id) => loadTree({ ...stores, tiles }, id)));
    expect(loaded.flatMap(({ status }, at) => (status === "rejected" ? at : []))).toEqual([7]);
    expect(loaded[7]).toEqual(expect.objectContaining({ reason: withCode("TREE_CORRUPT") }));
  });
});

describe("what the tree doesn't have", () => {
  test.each([
    [10, undefined],
    [9, 9],
    [0, 0],
    [0, 11],
    [0, 1.5],
  ])("leaf %s at size %s is CONFIG_INVALID", async (index, size) => {
    const stores = await openSession(10);
    await expect(proveInclusion(stores, session, index, size)).rejects.toEqual(withCode("CONFIG_INVALID"));
  });

  test.each([
    [0, 5],
    [6, 5],
    [5, 11],
  ])("consistency from %i to %i is CONFIG_INVALID", async (size1, size2) => {
    const stores = await openSession(10);
    await expect(proveConsistency(stores, session, size1, size2)).rejects.toEqual(withCode("CONFIG_INVALID"));
  });

  test("an unknown or empty session is SESSION_UNKNOWN", async () => {
    const stores = await openSession(0);
    await expect(proveInclusion(stores, session, 0)).rejects.toEqual(withCode("SESSION_UNKNOWN"));
    await expect(proveInclusion(stores, "other" as SessionId, 0)).rejects.toEqual(
      withCode("SESSION_UNKNOWN"),
    );
  });
});
