import { beforeAll, describe, expect, test } from "vitest";
import type { LeafIndex, NodeHash, SessionId } from "../../src/core/ids.ts";
import { HASH_ALGORITHMS, type HashAlgorithm } from "../../src/core/merkle/hash.ts";
import { type SizedRoot, verifyConsistency, verifyInclusion } from "../../src/core/merkle/proof.ts";
import {
  textbookConsistencyPath,
  textbookInclusionPath,
  textbookRoot,
} from "../../src/core/merkle/textbook.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import type { TileStore } from "../../src/pipeline/ports.ts";
import { loadTree, type ProofStores, proveConsistency, proveInclusion } from "../../src/pipeline/prove.ts";
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
  await integrate({ ...stores, observer: silent, patience: impatient }, id, NEVER);
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

test("every inclusion proof of every size to 40 verifies against the recursion's root", async () => {
  const stores = await openSession(40);
  for (let size = 1; size <= 40; size++) {
    for (let index = 0; index < size; index++) {
      const proof = await proveInclusion(stores, session, index, size);
      expect(verifyInclusion(proof, headAt(size))).toEqual({ ok: true });
    }
  }
});

test("a proof reads at most the leaf's tiles and the right edge", async () => {
  const stores = await openSession(700);
  for (const index of [0, 300, 699]) {
    const read: string[] = [];
    await proveInclusion(stores, session, index, undefined, {
      countReads: ({ level, n }) => read.push(`${level}:${n}`),
    });
    expect(read.length).toBeLessThanOrEqual(3);
    expect(new Set(read).size).toBe(read.length);
  }
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
    const index = tile === "0:0" ? 0 : 600;
    await expect(proveInclusion(stores, session, index, 640)).rejects.toEqual(withCode("TREE_CORRUPT"));
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
  ])("leaf %s at size %s is PROOF_INVALID", async (index, size) => {
    const stores = await openSession(10);
    await expect(proveInclusion(stores, session, index, size)).rejects.toEqual(withCode("PROOF_INVALID"));
  });

  test.each([
    [0, 5],
    [6, 5],
    [5, 11],
  ])("consistency from %i to %i is PROOF_INVALID", async (size1, size2) => {
    const stores = await openSession(10);
    await expect(proveConsistency(stores, session, size1, size2)).rejects.toEqual(withCode("PROOF_INVALID"));
  });

  test("an unknown or empty session is SESSION_UNKNOWN", async () => {
    const stores = await openSession(0);
    await expect(proveInclusion(stores, session, 0)).rejects.toEqual(withCode("SESSION_UNKNOWN"));
    await expect(proveInclusion(stores, "other" as SessionId, 0)).rejects.toEqual(
      withCode("SESSION_UNKNOWN"),
    );
  });
});
