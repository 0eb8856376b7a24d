import { describe, expect, test } from "vitest";
import type { NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import {
  type Checkpoint,
  checkpointVerifierKey,
  signCheckpoint,
  verifyCheckpoint,
} from "../../src/core/merkle/checkpoint.ts";
import { consistencyProof, consistencyProofTiles, verifyConsistency } from "../../src/core/merkle/proof.ts";
import type { HashAlgorithm } from "../../src/core/merkle/hash.ts";
import type { SessionStore, TileStore } from "../../src/pipeline/ports.ts";
import { createPatience } from "../../src/pipeline/patience.ts";
import { readTiles } from "../../src/pipeline/read-tiles.ts";
import { signedCheckpoint } from "../../src/pipeline/sign-checkpoint.ts";
import type { SessionRecord } from "../../src/schema/record.ts";
import {
  grow,
  manifestIdOf,
  type MemoryShared,
  PINNED_KEY,
  recordOf,
  reported,
  seal,
  sharedInMemory,
  SIGNING_KEY,
  startWorker,
  type Worker,
} from "../support/closing-world.ts";
import { bytesOf } from "../support/memory/records.ts";

const ID = "sess-checkpoint" as SessionId;
const INTERVAL_MS = 60_000;
const HOUR_MS = 3_600_000;
const NEVER = new AbortController().signal;
const timed = { checkpointIntervalMs: INTERVAL_MS };

async function openSession(chunks: number, algorithm: HashAlgorithm = "blake3"): Promise<MemoryShared> {
  const shared = sharedInMemory();
  await grow(shared, ID, chunks, algorithm);
  return shared;
}

function sign(worker: Worker, session: SessionRecord) {
  return signedCheckpoint({ ...worker.ports, signingKey: SIGNING_KEY }, session, NEVER);
}

async function signNow(shared: MemoryShared, worker: Worker = startWorker(shared)): Promise<Checkpoint> {
  const { note } = await sign(worker, await recordOf(shared, ID));
  return opened(note, (await recordOf(shared, ID)).hashAlgorithm);
}

function opened(note: string | undefined, algorithm: HashAlgorithm = "blake3"): Checkpoint {
  const verdict = verifyCheckpoint(note ?? "", ID, [checkpointVerifierKey(ID, algorithm, PINNED_KEY)]);
  if (!verdict.ok) throw new Error(verdict.reason);
  return verdict.checkpoint;
}

async function signedSize(shared: MemoryShared): Promise<number | undefined> {
  return (await recordOf(shared, ID)).checkpoint?.size;
}

describe("checkpoints of an open session", () => {
  test("are signed when the interval has passed since the tree outgrew the last one", async () => {
    const shared = await openSession(3);
    const worker = startWorker(shared, timed);
    await worker.sweep();
    shared.clock.advance(INTERVAL_MS - 1);
    await worker.sweep();
    expect(await signedSize(shared)).toBeUndefined();
    shared.clock.advance(1);
    await worker.sweep();
    const { checkpoint, tree, state } = await recordOf(shared, ID);
    expect(state).toBe("open");
    expect(opened(checkpoint?.note)).toMatchObject({ sessionId: ID, size: 3, root: tree.root });
    expect(reported(worker, "checkpoint-signed")).toEqual([
      { kind: "checkpoint-signed", sessionId: ID, size: 3 },
    ]);
  });

  test("are not repeated while the tree stands, and are due again an interval after it has grown", async () => {
    const shared = await openSession(3);
    const worker = startWorker(shared, timed);
    const pass = async (ms: number): Promise<number | undefined> => {
      shared.clock.advance(ms);
      await worker.sweep();
      return signedSize(shared);
    };
    await pass(0);
    expect(await pass(INTERVAL_MS)).toBe(3);
    expect(await pass(10 * INTERVAL_MS)).toBe(3);
    await grow(shared, ID, 4);
    expect(await pass(0)).toBe(3);
    expect(await pass(INTERVAL_MS - 1)).toBe(3);
    expect(await pass(1)).toBe(7);
    expect(reported(worker, "checkpoint-signed")).toHaveLength(2);
  });

  test("follow the monotonic clock: a wall clock that steps by an hour makes none early and none late", async () => {
    for (const step of [HOUR_MS, -HOUR_MS]) {
      const shared = await openSession(3);
      const worker = startWorker(shared, timed);
      await worker.sweep();
      shared.clock.stepWall(step);
      shared.clock.advance(INTERVAL_MS - 1);
      await worker.sweep();
      expect(await signedSize(shared)).toBeUndefined();
      shared.clock.advance(1);
      await worker.sweep();
      expect(await signedSize(shared)).toBe(3);
    }
  });

  test("are not signed with an interval of 0, without a key, or for an empty tree", async () => {
    for (const [chunks, options] of [
      [3, { checkpointIntervalMs: 0 }],
      [3, { ...timed, signingKey: null }],
      [0, timed],
    ] as const) {
      const shared = await openSession(chunks);
      const worker = startWorker(shared, options);
      for (let sweep = 0; sweep < 3; sweep++) {
        await worker.sweep();
        shared.clock.advance(INTERVAL_MS);
      }
      expect(await signedSize(shared)).toBeUndefined();
      expect(reported(worker, "session-stuck")).toHaveLength(0);
    }
  });

  test("of two workers that sign at once one is stored, and both go on with it", async () => {
    for (let lead = 0; lead < 12; lead++) {
      const shared = await openSession(300);
      await signNow(shared);
      const older = await recordOf(shared, ID);
      await grow(shared, ID, 300);
      const newer = await recordOf(shared, ID);
      const [one, two] = [startWorker(shared), startWorker(shared)];
      const first = sign(one, older);
      for (let turn = 0; turn < lead; turn++) await Promise.resolve();
      const notes = (await Promise.all([first, sign(two, newer)])).map(({ note }) => opened(note));
      expect(notes[1]).toMatchObject({ size: 600, root: newer.tree.root });
      expect(opened((await recordOf(shared, ID)).checkpoint?.note).size).toBe(600);
      expect((await recordOf(shared, ID)).version).toBe(newer.version + 1);
    }
  });

  test("sign no smaller size than the stored one, however old the record that a worker holds", async () => {
    const shared = await openSession(5);
    const older = await recordOf(shared, ID);
    await grow(shared, ID, 5);
    await signNow(shared);
    const { note, session } = await sign(startWorker(shared), older);
    expect(opened(note).size).toBe(10);
    expect(session.checkpoint?.size).toBe(10);
    expect((await recordOf(shared, ID)).checkpoint?.note).toBe(note);
  });

  test("give up after a bounded number of lost races, and leave it to the next sweep", async () => {
    const shared = await openSession(5);
    let tries = 0;
    const sessions: SessionStore = {
      ...bound(shared.sessions),
      replace: async () => {
        tries += 1;
        return "conflict";
      },
    };
    const worker = startWorker({ ...shared, sessions });
    await expect(sign(worker, await recordOf(shared, ID))).rejects.toMatchObject({ code: "INTERNAL" });
    expect(tries).toBeLessThan(1_000);
  });
});

describe("a checkpoint of a tree that isn't the earlier one grown", () => {
  const foreign = (size: number): Checkpoint => ({
    sessionId: ID,
    hashAlgorithm: "blake3",
    size: size as TreeSize,
    root: bytesOf(9) as NodeHash,
  });
  const plant = async (shared: MemoryShared, checkpoint: Checkpoint): Promise<void> => {
    const { version } = await recordOf(shared, ID);
    const note = signCheckpoint(checkpoint, SIGNING_KEY);
    await shared.sessions.replace(ID, version, { kind: "checkpoint", checkpoint: { ...checkpoint, note } });
  };

  test.each([
    ["another root at the same size", 5],
    ["another root at a smaller size", 3],
    ["a larger size: the tree has lost leaves", 6],
  ])("is never signed: %s", async (_what, size) => {
    const shared = await openSession(5);
    await plant(shared, foreign(size));
    const worker = startWorker(shared, timed);
    await expect(sign(worker, await recordOf(shared, ID))).rejects.toMatchObject({ code: "TREE_CORRUPT" });
    expect(await signedSize(shared)).toBe(size);
    expect(reported(worker, "checkpoint-signed")).toHaveLength(0);
  });

  test("is reported by the sweeper, which goes on with the other sessions", async () => {
    const shared = await openSession(5);
    await plant(shared, foreign(3));
    const other = "sess-other" as SessionId;
    await grow(shared, other, 4);
    const worker = startWorker(shared, timed);
    await worker.sweep();
    shared.clock.advance(INTERVAL_MS);
    await worker.sweep();
    expect(reported(worker, "session-stuck")).toEqual([
      { kind: "session-stuck", sessionId: ID, code: "TREE_CORRUPT" },
    ]);
    expect(await signedSize(shared)).toBe(3);
    expect((await recordOf(shared, other)).checkpoint?.size).toBe(4);
  });

  test.each([3, 6])("keeps the seal from being signed in any form (signed before: size %i)", async (size) => {
    const shared = await openSession(5);
    await plant(shared, foreign(size));
    await seal(shared, ID);
    const worker = startWorker(shared);
    await worker.sweep();
    expect(reported(worker, "manifest-failed")[0]?.code).toBe("TREE_CORRUPT");
    expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({ status: "error", text: undefined });
    expect(await signedSize(shared)).toBe(size);
    expect(shared.engine.calls).toBe(0);
    expect([...shared.files.files.keys()].filter((name) => !name.endsWith(".ndjson"))).toEqual([]);
  });

  test.each([
    ["changed", (hashes: Uint8Array) => hashes.with(40, (hashes[40] ?? 0) ^ 1)],
    ["cut", () => new Uint8Array(0)],
    ["gone", () => undefined],
  ])("isn't signed from a tile of level 1 that is %s", async (what, spoil) => {
    const shared = await openSession(700);
    const spoilt: TileStore = {
      ...bound(shared.tiles),
      read: async (session, level, n) => {
        const hashes = await shared.tiles.read(session, level, n);
        return hashes === undefined || level === 0 ? hashes : spoil(hashes);
      },
    };
    await plant(shared, { ...foreign(100), root: await rootAt(100) });
    const worker = startWorker({ ...shared, tiles: spoilt });
    await expect(sign(worker, await recordOf(shared, ID)), what).rejects.toMatchObject({
      code: "TREE_CORRUPT",
    });
    expect(await signedSize(shared)).toBe(100);
  });
});

describe("a tile of level 0 that is gone or cut", () => {
  test.each([undefined, new Uint8Array(32)])("is made again of the chunk documents", async (stored) => {
    const shared = await openSession(700);
    await signNow(shared);
    await grow(shared, ID, 100);
    const tiles: TileStore = {
      ...bound(shared.tiles),
      read: async (session, level, n) => (level === 0 ? stored : shared.tiles.read(session, level, n)),
    };
    const checkpoint = await signNow(shared, startWorker({ ...shared, tiles }));
    expect(checkpoint.size).toBe(800);
  });
});

describe("a chain of checkpoints", () => {
  test.each(["blake3", "sha256"] as const)(
    "is consistent from each to the next and to the seal (%s)",
    async (algorithm) => {
      const shared = await openSession(0, algorithm);
      const chain: Checkpoint[] = [];
      for (const step of [1, 1, 1, 4, 100, 148, 1, 1, 254, 1, 300]) {
        await grow(shared, ID, step, algorithm);
        chain.push(await signNow(shared));
      }
      await grow(shared, ID, 7, algorithm);
      const worker = startWorker(shared, { engine: null });
      await seal(shared, ID);
      await worker.close(ID);
      const { checkpoint, tree } = await recordOf(shared, ID);
      chain.push(opened(checkpoint?.note, algorithm));
      expect(chain.map(({ size }) => size as number)).toEqual([
        1, 2, 3, 7, 107, 255, 256, 257, 511, 512, 812, 819,
      ]);
      expect(chain.at(-1)?.root).toEqual(tree.root);
      for (const [at, next] of chain.entries()) {
        const previous = chain[at - 1];
        if (previous !== undefined) await expectConsistent(shared, previous, next);
      }
    },
  );

  test("ends with the open session's own note when it was sealed at a size that is signed already", async () => {
    const shared = await openSession(5);
    await signNow(shared);
    const { checkpoint } = await recordOf(shared, ID);
    await seal(shared, ID);
    const worker = startWorker(shared, { engine: null });
    await worker.close(ID);
    expect((await recordOf(shared, ID)).checkpoint?.note).toBe(checkpoint?.note);
    expect(reported(worker, "checkpoint-signed")).toHaveLength(0);
  });
});

async function expectConsistent(shared: MemoryShared, one: Checkpoint, other: Checkpoint): Promise<void> {
  const sources = { ...shared, patience: createPatience(shared.clock, { report: () => undefined }) };
  const requests = consistencyProofTiles(one.size, other.size);
  const tiles = await readTiles(sources, await recordOf(shared, ID), requests, NEVER);
  expect(verifyConsistency(consistencyProof(one, other, tiles), one, other)).toEqual({ ok: true });
}

async function rootAt(size: number): Promise<NodeHash> {
  const { root } = (await recordOf(await openSession(size), ID)).tree;
  if (root === undefined) throw new Error("the tree is empty");
  return root;
}

/** The methods of a class instance as plain properties, to be overridden one by one. */
function bound<Port extends object>(port: Port): Port {
  const names = Object.getOwnPropertyNames(Object.getPrototypeOf(port)).filter(
    (name) => name !== "constructor",
  );
  const methods = names.map((name) => {
    const method = Reflect.get(port, name) as (...args: readonly unknown[]) => unknown;
    return [name, method.bind(port)] as const;
  });
  return Object.fromEntries(methods) as Port;
}
