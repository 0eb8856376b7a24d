import { beforeAll, describe, expect, test } from "vitest";
import { utf8 } from "../../src/core/bytes.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { LeafHash, LeafIndex, NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import { leafHashOf } from "../../src/core/manifest/chunk-line.ts";
import { manifestId } from "../../src/core/manifest/names.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { type FsckOptions, type FsckPorts, type FsckReport, fsck } from "../../src/pipeline/fsck.ts";
import { FINDING_KINDS, type Finding, placeText } from "../../src/pipeline/fsck-findings.ts";
import type { ManifestStatus } from "../../src/schema/manifest.ts";
import type { ChunkRecord, SessionRecord } from "../../src/schema/record.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { MemoryBlobStore } from "../support/memory/blob-store.ts";
import { MemoryChunkStore } from "../support/memory/chunk-store.ts";
import { MemoryManifestFiles, MemoryManifestStore } from "../support/memory/manifest-store.ts";
import { MemoryTileStore } from "../support/memory/tile-store.ts";
import {
  folderWith,
  KEY_RING,
  kernelHere,
  NEVER,
  PINNED_KEY,
  type RecordedSession,
  recordSession,
  samplePayload,
} from "../support/recorded-session.ts";

/** A full tile of level 0, one hash in a tile of level 1, and 44 leaves that are in no tile. */
const CHUNKS = 300;
const HOUR_MS = 3_600_000;
const ANCHORED_AT = new Date("2026-01-02T03:04:05.678Z");

let recorded: RecordedSession;
let id: SessionId;

beforeAll(async () => {
  recorded = await recordSession(
    Array.from({ length: CHUNKS }, (_, index) => samplePayload(index, 70 + (index % 60))),
  );
  ({ id } = recorded);
});

/** The stores as they are after everything went well, with what a test changes. */
interface World {
  readonly chunks: (chunk: ChunkRecord) => ChunkRecord | undefined;
  readonly moreChunks: readonly ChunkRecord[];
  readonly blobs: (blob: Uint8Array, index: number) => Uint8Array | undefined;
  readonly moreBlobs: readonly string[];
  readonly tiles: (hashes: Uint8Array, level: number) => Uint8Array | undefined;
  readonly session: (record: SessionRecord) => SessionRecord | undefined;
  readonly manifest: (text: string) => string | undefined;
  readonly manifestStatus: ManifestStatus;
  readonly files: Readonly<Record<string, Uint8Array | undefined>>;
  readonly options: Partial<FsckOptions>;
  readonly ports: Partial<Omit<FsckPorts, "clock">> & { readonly clock?: ManualClock };
}

const SOUND: World = {
  chunks: (chunk) => chunk,
  moreChunks: [],
  blobs: (blob) => blob,
  moreBlobs: [],
  tiles: (hashes) => hashes,
  session: (record) => record,
  manifest: (text) => text,
  manifestStatus: "anchored",
  files: {},
  options: {},
  ports: {},
};

function closedRecord(record: SessionRecord): SessionRecord {
  return {
    ...record,
    state: "anchored",
    sealedEvent: "sent",
    anchor: {
      status: "confirmed",
      claim: "c",
      anchoringId: "anc-1",
      transaction: "0xfeed",
      block: 812,
      anchoredAt: ANCHORED_AT,
    },
    anchoredEvent: "sent",
    closed: true,
  };
}

async function portsOf(world: World): Promise<FsckPorts & { readonly clock: ManualClock }> {
  const chunks = new MemoryChunkStore();
  const blobs = new MemoryBlobStore(chunks);
  for (const [index, chunk] of recorded.chunks.entries()) {
    const stored = world.chunks(chunk);
    if (stored !== undefined) await chunks.insert(stored);
    const blob = world.blobs(recorded.blobs[index] ?? new Uint8Array(0), index);
    if (blob !== undefined) await blobs.insert(chunk.blobId, chunk, blob);
  }
  for (const chunk of world.moreChunks) await chunks.insert(chunk);
  for (const blobId of world.moreBlobs) {
    const [session, index] = blobId.split(":");
    const owner = { sessionId: session as SessionId, index: Number(index) as LeafIndex };
    await blobs.insert(blobId, owner, new Uint8Array(70));
  }
  const tiles = new MemoryTileStore();
  for (const level of [0, 1]) {
    const hashes = await recorded.stores.tiles.read(id, level, 0);
    const stored = hashes === undefined ? undefined : world.tiles(hashes, level);
    if (stored === undefined) continue;
    await tiles.write(id, [{ level, n: 0, width: stored.byteLength / 32, hashes: stored }]);
  }
  const record = world.session(closedRecord(recorded.record));
  const clock = new ManualClock();
  // Everything in the session is old, unless a test makes it young.
  clock.advance(24 * HOUR_MS);
  return {
    sessions: Object.assign(Object.create(recorded.stores.sessions) as FsckPorts["sessions"], {
      find: async () => record,
      ids: async (after: SessionId | undefined) => (after === undefined && record !== undefined ? [id] : []),
    }),
    chunks,
    blobs,
    tiles,
    manifests: await manifestsOf(world),
    folder: folderWith(recorded.files, world.files),
    files: new MemoryManifestFiles(),
    opening: undefined,
    clock,
    ...world.ports,
  };
}

async function manifestsOf(world: World): Promise<MemoryManifestStore> {
  const manifests = new MemoryManifestStore();
  const key = {
    id: manifestId(id, "session_recording"),
    sessionId: id,
    type: "session_recording",
  } as const;
  const text = world.manifest(Buffer.from(fileOf(recorded.names.manifest)).toString("utf8"));
  if (text !== undefined) await manifests.publish(key, text);
  if (text !== undefined || world.manifestStatus !== "anchored") {
    await manifests.mark(key, world.manifestStatus, world.manifestStatus === "error" ? "X: y" : undefined);
  }
  return manifests;
}

function fileOf(name: string): Uint8Array {
  const bytes = recorded.files.get(name);
  if (bytes === undefined) throw new Error("the session was recorded with all its files");
  return bytes;
}

function chunkOf(index: number): ChunkRecord {
  const chunk = recorded.chunks[index];
  if (chunk === undefined) throw new Error("there are 300 chunks");
  return chunk;
}

const options = (more: Partial<FsckOptions> = {}): FsckOptions => ({
  data: false,
  repair: false,
  pinnedKeys: [PINNED_KEY],
  eventPendingMs: 30_000,
  gapAlertMs: 60_000,
  orphanBlobMs: HOUR_MS,
  signal: NEVER,
  ...more,
});

async function check(change: Partial<World>): Promise<FsckReport> {
  const world = { ...SOUND, ...change };
  return fsck(await portsOf(world), options(world.options), id);
}

/** `kind at place`, each finding once. */
function told({ findings }: FsckReport): readonly string[] {
  return findings.map(({ kind, place }) => `${kind} at ${placeText(place)}`);
}

function onlyFinding({ findings }: FsckReport): Finding | undefined {
  expect(findings).toHaveLength(1);
  return findings[0];
}

const flipped = (bytes: Uint8Array, at: number): Uint8Array => bytes.with(at, (bytes[at] ?? 0) ^ 1);
const only =
  (index: number, change: (chunk: ChunkRecord) => ChunkRecord | undefined): World["chunks"] =>
  (chunk) =>
    chunk.index === index ? change(chunk) : chunk;
const files = () => recorded.names;

describe("a session that is whole", () => {
  test("is clean, with and without its data, named or among all", async () => {
    const ports = await portsOf(SOUND);
    const opening = { threads: kernelHere, keyRing: KEY_RING };
    for (const session of [id, undefined]) {
      expect(await fsck(ports, options(), session)).toEqual({
        sessions: 1,
        chunks: CHUNKS,
        blobs: "present",
        findings: [],
        omitted: 0,
        worst: "clean",
      });
    }
    const opened = await fsck({ ...ports, opening }, options({ data: true }));
    expect(opened).toMatchObject({ blobs: "opened", findings: [], worst: "clean" });
    expect(await fsck(ports, options({ data: true }))).toMatchObject({ blobs: "hashed", findings: [] });
  });

  test("is clean also where nobody pinned a key or the folder isn't mounted, which is said", async () => {
    const ports = { ...(await portsOf(SOUND)), folder: undefined };
    const report = await fsck(ports, options({ pinnedKeys: [] }), id);
    expect(told(report)).toEqual(["signatures-unpinned at run", "files-unchecked at run"]);
    expect(report.worst).toBe("info");
  });

  test("that was never there is SESSION_UNKNOWN", async () => {
    const ports = await portsOf({ ...SOUND, session: () => undefined });
    await expect(fsck(ports, options(), "sess-2" as SessionId)).rejects.toMatchObject({
      code: "SESSION_UNKNOWN",
    });
  });
});

describe("blobs", () => {
  test("one that is gone is named, also without reading any", async () => {
    const report = await check({ blobs: (blob, index) => (index === 7 ? undefined : blob) });
    expect(told(report)).toEqual([`blob-missing at blob ${id}:7:a1 (chunk 7)`]);
    expect(report.worst).toBe("error");
    const read = await check({
      blobs: (blob, index) => (index === 7 ? undefined : blob),
      options: { data: true },
    });
    expect(told(read)).toEqual(told(report));
  });

  test.each([
    ["cut", (blob: Uint8Array) => blob.slice(1), "blob-length-wrong"],
    ["changed in its tag", (blob: Uint8Array) => flipped(blob, blob.byteLength - 1), "blob-digest-wrong"],
    ["changed in its salt", (blob: Uint8Array) => flipped(blob, 0), "blob-digest-wrong"],
  ])("one that is %s is found by reading it, and only then", async (_how, change, kind) => {
    const blobs: World["blobs"] = (blob, index) => (index === 299 ? change(blob) : blob);
    expect(told(await check({ blobs, options: { data: true } }))).toEqual([
      `${kind} at blob ${id}:299:a1 (chunk 299)`,
    ]);
    expect((await check({ blobs })).worst).toBe("clean");
  });

  test("one that doesn't open under the session's secret is found where there is a KEK", async () => {
    const threads = {
      ...kernelHere,
      deriveKey: async (password: string, salt: Uint8Array) =>
        flipped(await kernelHere.deriveKey(password, salt), 3),
    };
    const ports = { opening: { threads, keyRing: KEY_RING } };
    const report = await check({ ports, options: { data: true } });
    expect(report.findings[0]).toMatchObject({ kind: "blob-does-not-open", place: { index: 0 } });
    expect(report.findings).toHaveLength(100);
    expect(report.omitted).toBe(CHUNKS - 100);
  });

  test("a session's secret that doesn't unwrap is one finding, and not one for each chunk", async () => {
    const session = (record: SessionRecord): SessionRecord => ({
      ...record,
      keys: record.keys.map((key) => ({ ...key, wrapped: flipped(key.wrapped, 20) })),
    });
    const ports = { opening: { threads: kernelHere, keyRing: KEY_RING } };
    expect(onlyFinding(await check({ session, ports, options: { data: true } }))).toMatchObject({
      kind: "blob-key-missing",
      severity: "error",
      place: { what: "chunk", index: 0, last: CHUNKS - 1 },
      problem: "the session's secret of key version 1 doesn't unwrap: 300 of these chunks can't be opened",
    });
  });

  test("a chunk whose blob_id names another chunk's blob is named", async () => {
    const report = await check({ chunks: only(5, (chunk) => ({ ...chunk, blobId: `${id}:6:a1` })) });
    expect(told(report)).toEqual([
      "blob-of-another-chunk at chunk 5",
      `blob-orphan at blob ${id}:5:a1 (chunk 5)`,
      expect.stringMatching(/^manifest-differs/),
    ]);
  });

  test("an orphan of a sealed session is a warning, of an open one an info", async () => {
    const moreBlobs = [`${id}:4:b2`];
    const sealed = await check({ moreBlobs });
    expect(onlyFinding(sealed)).toMatchObject({
      kind: "blob-orphan",
      severity: "warning",
      place: { index: 4 },
    });
    expect(sealed.worst).toBe("warning");
    const open = await check({ moreBlobs, session: openRecord });
    expect(onlyFinding(open)).toMatchObject({ kind: "blob-orphan", severity: "info" });
    const young = await check({ moreBlobs, options: { orphanBlobMs: 48 * HOUR_MS } });
    expect(onlyFinding(young)).toMatchObject({ kind: "blob-orphan", severity: "info" });
  });

  test("an orphan that goes while it is looked at was the loser of a race, and is not told", async () => {
    const ports = await portsOf({ ...SOUND, moreBlobs: [`${id}:4:b2`] });
    const { clock, blobs } = ports;
    clock.sleep = async () => blobs.remove([`${id}:4:b2`]);
    expect((await fsck(ports, options(), id)).worst).toBe("clean");
  });

  test("blobs without a session are told, by name and among all", async () => {
    const ports = await portsOf({ ...SOUND, session: () => undefined });
    for (const session of [id, undefined]) {
      const report = await fsck(ports, options(), session);
      expect(told(report)).toEqual(["session-missing at session"]);
      expect(report.findings[0]?.session).toBe(id);
    }
  });
});

describe("chunk documents", () => {
  test("without blobs and without a session are told by name", async () => {
    const ports = await portsOf({ ...SOUND, session: () => undefined, blobs: () => undefined });
    expect(told(await fsck(ports, options(), id))).toEqual(["session-missing at session"]);
  });

  test.each([0, 255, 256, 299])("one that is gone is named: %i", async (index) => {
    const report = await check({ chunks: only(index, () => undefined) });
    const lost = [
      `blob-orphan at blob ${id}:${index}:a1 (chunk ${index})`,
      `chunk-missing at chunk ${index}`,
    ];
    // A full tile still has its leaf hash, so that the root is proven all the same.
    const unproven = index < 256 ? [] : ["root-unchecked at tree head"];
    expect(told(report)).toEqual([...lost, ...unproven]);
    // The sweeper can't tell it from a loser's: whoever reads this has an hour.
    expect(report.findings[0]?.action).toContain("stop the workers");
  });

  test("neighbours that are gone are one finding", async () => {
    const report = await check({
      chunks: (chunk) => (chunk.index >= 200 && chunk.index < 280 ? undefined : chunk),
    });
    expect(told(report)).toContain("chunk-missing at chunks 200–279");
    expect(told(report).filter((line) => line.startsWith("chunk-missing"))).toHaveLength(1);
  });

  test("a tree head that claims billions of chunks isn't counted through", async () => {
    const session: World["session"] = (record) => ({
      ...openRecord(record),
      tree: { ...record.tree, size: 4_000_000_000 as TreeSize },
    });
    const report = await check({ session });
    expect(told(report)).toContain("chunk-missing at chunks 300–3999999999");
  });

  test.each([
    [
      "unknown",
      () => new LucidError("DOCUMENT_UNREADABLE", "a document has a format this version doesn't know"),
    ],
    ["malformed", () => new TypeError("Cannot read properties of undefined")],
  ])("one of an %s form is named, and the others are checked all the same", async (_how, error) => {
    const ports = await portsOf(SOUND);
    const { chunks } = ports;
    const unreadable = Object.assign(Object.create(chunks) as typeof chunks, {
      find: async (session: SessionId, index: LeafIndex) => {
        if (index === 17) throw error();
        return chunks.find(session, index);
      },
      beyond: async (session: SessionId, from: number, limit: number) => {
        if (from <= 17 && from + limit > 17) throw error();
        return chunks.beyond(session, from, limit);
      },
    });
    const report = await fsck({ ...ports, chunks: unreadable }, options(), id);
    expect(told(report)).toEqual(["chunk-unreadable at chunk 17"]);
    expect(report.chunks).toBe(CHUNKS - 1);
  });

  test("a store that is away, or refuses the query, is no finding", async () => {
    for (const error of [
      new LucidError("STORE_UNAVAILABLE", "MongoDB is not available"),
      new LucidError("INTERNAL", "refused", { cause: new Error("driver") }),
    ]) {
      const ports = await portsOf(SOUND);
      const chunks = Object.assign(Object.create(ports.chunks) as typeof ports.chunks, {
        beyond: () => Promise.reject(error),
      });
      await expect(fsck({ ...ports, chunks }, options(), id)).rejects.toBe(error);
    }
  });

  test("one that says it is another chunk is named by its id", async () => {
    const ports = await portsOf(SOUND);
    const { chunks } = ports;
    const displaced = { ...chunkOf(9), index: 9_000 as LeafIndex };
    const moved = Object.assign(Object.create(chunks) as typeof chunks, {
      find: async (session: SessionId, index: LeafIndex) =>
        index === 9 ? displaced : chunks.find(session, index),
      beyond: async (session: SessionId, from: number, limit: number) =>
        (await chunks.beyond(session, from, limit)).filter((chunk) => chunk.index !== 9),
    });
    const report = await fsck({ ...ports, chunks: moved }, options(), id);
    expect(told(report)).toEqual(["chunk-misplaced at chunk 9"]);
  });

  test.each([
    ["hash algorithm", { hashAlgorithm: "sha256" }, 0],
    ["lengths", { compressedBytes: 1 }, 0],
    ["event id", { eventId: "chunk.completed.other.3" }, 0],
    // What is in the manifest and not in the leaf: only the signed file knows what it was.
    ["level", { level: 9 }, 1],
    ["time", { recordedAt: "2026-01-02T04:00:00Z" }, 1],
  ] as const)("one with another %s is named", async (_what, change, inManifest) => {
    const report = await check({ chunks: only(3, (chunk) => ({ ...chunk, ...change })) });
    expect(told(report)[0]).toBe("chunk-fields-wrong at chunk 3");
    expect(report.findings.filter(({ kind }) => kind === "manifest-differs")).toHaveLength(inManifest);
    expect(report.findings).toHaveLength(1 + inManifest);
  });

  test("one whose key version the session doesn't have is named", async () => {
    const report = await check({ chunks: only(3, (chunk) => ({ ...chunk, keyVersion: 4 })) });
    expect(told(report)).toContain("blob-key-missing at chunk 3");
    const shredded = await check({ session: (record) => ({ ...record, keys: [] }) });
    expect(shredded.worst).toBe("info");
    expect(told(shredded)).toEqual(["blob-key-missing at chunks 0–299"]);
  });

  test("pending events of many chunks, as after an outage of Redis, are one finding", async () => {
    const chunks = (chunk: ChunkRecord): ChunkRecord =>
      chunk.index >= 10 && chunk.index % 2 === 0 ? { ...chunk, eventState: "pending" } : chunk;
    expect(onlyFinding(await check({ chunks }))).toMatchObject({
      kind: "chunk-event-pending",
      severity: "warning",
      place: { what: "chunk", index: 10, last: 298 },
      problem: "the chunk.completed of 145 of these chunks are not marked as sent",
    });
  });

  test("a pending event is a warning when it is old, and an info before", async () => {
    const chunks = only(12, (chunk) => ({ ...chunk, eventState: "pending" }));
    expect(onlyFinding(await check({ chunks }))).toMatchObject({
      kind: "chunk-event-pending",
      severity: "warning",
      place: { what: "chunk", index: 12 },
    });
    const young = await check({ chunks, options: { eventPendingMs: 48 * HOUR_MS } });
    expect(young.worst).toBe("info");
  });
});

describe("leaves", () => {
  test.each([40, 290])(
    "a changed field of the leaf is named, in a full tile and beyond: %i",
    async (index) => {
      const chunks = only(index, (chunk) => ({ ...chunk, plainMac: flipped(chunk.plainMac, 0) }));
      const report = await check({ chunks });
      expect(told(report)).toEqual([`leaf-hash-wrong at chunk ${index}`]);
    },
  );

  test.each([40, 290])("a changed leaf hash is named, and the root is still proven: %i", async (index) => {
    const leafHash = flipped(chunkOf(index).leafHash, 5) as LeafHash;
    const report = await check({ chunks: only(index, (chunk) => ({ ...chunk, leafHash })) });
    expect(told(report)).toEqual([`leaf-hash-wrong at chunk ${index}`]);
  });

  test("a field that was changed together with the leaf hash is found by the tile", async () => {
    const chunks = only(40, (chunk) => {
      const changed = { ...chunk, plainMac: flipped(chunk.plainMac, 0) };
      return { ...changed, leafHash: leafHashOf(id, changed, treeHasher("blake3")) };
    });
    const report = await check({ chunks });
    expect(told(report)).toContain("leaf-not-in-tree at chunk 40");
    expect(told(report)).not.toContain("root-wrong at tree head");
    expect(told(report)).not.toContain("tile-wrong at tile 0:0");
  });

  test("beyond the full tiles, it is found by the root and named by the signed chunks file", async () => {
    const chunks = only(290, (chunk) => {
      const changed = { ...chunk, plainMac: flipped(chunk.plainMac, 0) };
      return { ...changed, leafHash: leafHashOf(id, changed, treeHasher("blake3")) };
    });
    const report = await check({ chunks });
    expect(told(report)).toContain("root-wrong at tree head");
    expect(told(report)).toContain("chunk-fields-wrong at chunk 290");
  });
});

describe("tiles", () => {
  test.each([
    [0, "tile-missing", () => undefined],
    [0, "tile-narrow", (hashes: Uint8Array) => hashes.slice(0, 320)],
    [0, "tile-wrong", (hashes: Uint8Array) => flipped(hashes, 100)],
    [1, "tile-missing", () => undefined],
    [1, "tile-wrong", (hashes: Uint8Array) => flipped(hashes, 31)],
  ])("of level %i: %s is named, and repaired", async (level, kind, change) => {
    const tiles: World["tiles"] = (hashes, at) => (at === level ? change(hashes) : hashes);
    const ports = await portsOf({ ...SOUND, tiles });
    const before = await fsck(ports, options(), id);
    expect(told(before)).toEqual([`${kind} at tile ${level}:0`]);
    expect(before.worst).toBe("error");

    const repair = await fsck(ports, options({ repair: true }), id);
    expect(onlyFinding(repair)?.repaired).toMatch(/^written again from the chunk documents/);
    expect(repair.worst).toBe("warning");
    expect((await fsck(ports, options(), id)).worst).toBe("clean");
    expect(await ports.tiles.read(id, level, 0)).toEqual(await recorded.stores.tiles.read(id, level, 0));
  });

  test("are not written of leaves that don't make the root", async () => {
    const chunks = only(290, (chunk) => {
      const changed = { ...chunk, plainMac: flipped(chunk.plainMac, 0) };
      return { ...changed, leafHash: leafHashOf(id, changed, treeHasher("blake3")) };
    });
    const ports = await portsOf({
      ...SOUND,
      chunks,
      tiles: (hashes, level) => (level === 0 ? undefined : hashes),
    });
    const report = await fsck(ports, options({ repair: true }), id);
    expect(told(report)).toContain("tile-missing at tile 0:0");
    expect(report.findings.every(({ repaired }) => repaired === undefined)).toBe(true);
    expect(await ports.tiles.read(id, 0, 0)).toBeUndefined();
  });

  test("wider than the head that was read are those of a worker that is ahead", async () => {
    const tiles: World["tiles"] = (hashes, level) =>
      level === 1 ? Buffer.concat([hashes, new Uint8Array(32).fill(7)]) : hashes;
    expect((await check({ tiles, session: openRecord })).worst).toBe("clean");
  });
});

describe("the tree head", () => {
  test.each([
    ["totals", "totals-wrong", (r: SessionRecord) => ({ totals: { ...r.totals, storedBytes: 1 } })],
    ["root", "frontier-wrong", (r: SessionRecord) => ({ tree: { ...r.tree, root: root(r, 1) } })],
    [
      "frontier",
      "frontier-wrong",
      (r: SessionRecord) => ({
        tree: { ...r.tree, frontier: r.tree.frontier.map((hash) => flipped(hash, 1) as NodeHash) },
      }),
    ],
    [
      "number of frontier hashes",
      "frontier-wrong",
      (r: SessionRecord) => ({ tree: { ...r.tree, frontier: r.tree.frontier.slice(1) } }),
    ],
  ] as const)("with other %s is told", async (_what, kind, change) => {
    const report = await check({ session: (record) => ({ ...record, ...change(record) }) });
    expect(told(report)[0]).toBe(`${kind} at tree head`);
    expect(report.worst).toBe("error");
  });

  test("with a root that isn't that of its leaves is told as that", async () => {
    const report = await check({
      session: (record) => ({ ...record, tree: { ...record.tree, root: root(record, 3) } }),
    });
    expect(told(report)).toContain("root-wrong at tree head");
  });

  test("is never changed by a repair", async () => {
    let replaced = 0;
    const ports = await portsOf({
      ...SOUND,
      session: (record) => ({ ...record, tree: { ...record.tree, root: root(record, 3) } }),
    });
    Object.assign(ports.sessions, { replace: async () => (replaced += 1) });
    await fsck(ports, options({ repair: true }), id);
    expect(replaced).toBe(0);
  });
});

function root({ tree }: SessionRecord, at: number): NodeHash {
  return flipped(tree.root ?? new Uint8Array(32), at) as NodeHash;
}

const changed =
  (change: (checkpoint: NonNullable<SessionRecord["checkpoint"]>) => object): World["session"] =>
  (record) =>
    record.checkpoint === undefined
      ? record
      : { ...record, checkpoint: { ...record.checkpoint, ...change(record.checkpoint) } };

describe("checkpoint", () => {
  test.each([
    ["root", "checkpoint-wrong", (c: { root: NodeHash }) => ({ root: flipped(c.root, 0) })],
    ["size", "checkpoint-wrong", () => ({ size: 299 as TreeSize })],
    ["size beyond the tree", "checkpoint-wrong", () => ({ size: 301 as TreeSize })],
    [
      "signature",
      "checkpoint-invalid",
      (c: { note: string }) => ({ note: c.note.replace(/....\n$/, "AAA=\n") }),
    ],
    [
      "note's size",
      "checkpoint-invalid",
      (c: { note: string }) => ({ note: c.note.replace("\n300\n", "\n301\n") }),
    ],
  ])("with another %s is told", async (_what, kind, change) => {
    const report = await check({ session: changed(change) });
    expect(told(report)).toContain(`${kind} at checkpoint`);
  });

  test("whose note says another root than the document is told, also where no key is pinned", async () => {
    const inText = (root: Uint8Array): string => Buffer.from(root).toString("base64");
    const report = await check({
      session: changed(({ note, root }) => ({ note: note.replace(inText(root), inText(flipped(root, 0))) })),
      manifest: () => "{}",
      options: { pinnedKeys: [] },
    });
    expect(told(report)).toContain("checkpoint-wrong at checkpoint");
  });

  test("that is gone although there is a manifest is told", async () => {
    const report = await check({ session: (record) => ({ ...record, checkpoint: undefined }) });
    expect(told(report)).toEqual(["checkpoint-missing at checkpoint"]);
  });

  test("by a key that isn't pinned is refused, and so is the manifest", async () => {
    const report = await check({ options: { pinnedKeys: [new Uint8Array(32).fill(9)] } });
    expect(told(report)).toEqual([
      "checkpoint-invalid at checkpoint",
      `manifest-invalid at manifest ${manifestId(id, "session_recording")}`,
    ]);
  });
});

describe("manifest", () => {
  const place = (): string => `manifest ${manifestId(id, "session_recording")}`;

  const changedText = (text: string): string => text.replace('"chunk_count":300', '"chunk_count":301');

  test("with a changed byte is refused, and its file, which is sound, is left alone", async () => {
    const report = await check({ manifest: changedText });
    expect(told(report)).toEqual([`manifest-invalid at ${place()}`]);
    expect(onlyFinding(report)?.action).toContain("manifest's file");
  });

  test("with a changed byte is refused together with a file that has another", async () => {
    const other = Buffer.from(fileOf(files().manifest)).toString("utf8").replace(":300", ":302");
    const report = await check({ manifest: changedText, files: { [files().manifest]: utf8(other) } });
    expect(told(report)).toEqual([
      `manifest-invalid at ${place()}`,
      `file-differs at file ${files().manifest}`,
    ]);
  });

  describe.each([
    ["and a pinned key", [PINNED_KEY], "checkpoint-invalid"],
    ["and none pinned", [], "checkpoint-wrong"],
  ] as const)("with a changed byte, %s:", (_which, pinnedKeys, kind) => {
    const unpinned = pinnedKeys.length === 0 ? ["signatures-unpinned at run"] : [];

    test("neither it nor a checkpoint with one is ever what a repair writes", async () => {
      const written = new MemoryManifestFiles();
      const report = await check({
        manifest: changedText,
        session: changed(({ note }) => ({ note: note.replace("\n300\n", "\n301\n") })),
        files: { [files().manifest]: undefined, [files().checkpoint]: undefined },
        ports: { files: written },
        options: { repair: true, pinnedKeys },
      });
      expect(told(report)).toEqual([
        ...unpinned,
        `${kind} at checkpoint`,
        `manifest-invalid at ${place()}`,
        `file-missing at file ${files().checkpoint}`,
        `file-missing at file ${files().manifest}`,
      ]);
      expect([...written.files.keys()]).toEqual([]);
    });
  });

  test("and what it signs are not written anew where no key is pinned: anybody can sign with another", async () => {
    const written = new MemoryManifestFiles();
    const names = Object.values(files());
    const report = await check({
      files: Object.fromEntries(names.map((name) => [name, undefined])),
      ports: { files: written },
      options: { repair: true, pinnedKeys: [] },
    });
    const missing = report.findings.filter(({ kind }) => kind === "file-missing");
    expect(missing.map(({ action }) => action)).toEqual(names.map(() => expect.stringContaining("--key")));
    expect(missing.some((finding) => finding.repaired !== undefined)).toBe(false);
    expect([...written.files.keys()]).toEqual([]);
  });

  test("that is refused, with a checkpoint whose signature is: not written, as nobody vouches for it", async () => {
    const written = new MemoryManifestFiles();
    await check({
      manifest: changedText,
      session: changed(({ note }) => ({ note: note.replace(/....\n$/, "AAA=\n") })),
      files: { [files().checkpoint]: undefined },
      ports: { files: written },
      options: { repair: true, pinnedKeys: [] },
    });
    expect([...written.files.keys()]).toEqual([]);
  });

  test("of another session's making is told field by field", async () => {
    const report = await check({
      session: (record) => ({
        ...record,
        finalize: { manifestType: "session_recording", ownerAddress: "other" },
      }),
    });
    expect(report.findings).toEqual([
      expect.objectContaining({
        kind: "manifest-differs",
        problem: expect.stringContaining("session_metadata") as unknown,
      }),
    ]);
  });

  test("that is gone although it was anchored is told", async () => {
    expect(told(await check({ manifest: () => undefined }))).toEqual([`manifest-missing at ${place()}`]);
  });

  test("that can't be written is a warning with its reason", async () => {
    const report = await check({
      manifest: () => undefined,
      manifestStatus: "error",
      session: (record) => ({ ...sealedRecord(record), anchor: undefined, checkpoint: undefined }),
    });
    expect(report.findings).toContainEqual(
      expect.objectContaining({
        kind: "manifest-failed",
        severity: "warning",
        problem: expect.stringContaining("X: y") as unknown,
      }),
    );
  });

  test("that is anchored while its session is not is told", async () => {
    const report = await check({ session: sealedRecord });
    expect(told(report)).toContain(`manifest-status-wrong at ${place()}`);
  });

  test("of which the session is announced as anchored must be anchored too", async () => {
    expect(told(await check({ manifestStatus: "generated" }))).toEqual([
      `manifest-status-wrong at ${place()}`,
    ]);
  });
});

describe("files", () => {
  test("that are missing are warnings, and written again byte for byte", async () => {
    const names = Object.values(files());
    const written = new MemoryManifestFiles();
    const world = {
      files: Object.fromEntries(names.map((name) => [name, undefined])),
      ports: { files: written },
    };
    const report = await check(world);
    expect(told(report).toSorted()).toEqual(names.map((name) => `file-missing at file ${name}`).toSorted());
    expect(report.worst).toBe("warning");
    expect(written.files.size).toBe(0);
    await check({ ...world, options: { repair: true } });
    expect(new Set(written.files.keys())).toEqual(new Set(names));
    for (const [name, bytes] of written.files) expect(Buffer.compare(bytes, fileOf(name))).toBe(0);
  });

  test("a missing anchor file isn't written of a session that is not the manifest's", async () => {
    const written = new MemoryManifestFiles();
    const report = await check({
      session: (record) => ({
        ...record,
        tree: { ...record.tree, root: new Uint8Array(32) as NonNullable<typeof record.tree.root> },
      }),
      files: { [files().anchor]: undefined },
      ports: { files: written },
      options: { repair: true },
    });
    expect(report.worst).toBe("error");
    expect([...written.files.keys()]).toEqual([]);
  });

  test("a missing chunks file isn't written of documents that the manifest doesn't sign", async () => {
    const written = new MemoryManifestFiles();
    const report = await check({
      chunks: only(3, (chunk) => ({ ...chunk, level: 9 })),
      files: { [files().chunks]: undefined },
      ports: { files: written },
      options: { repair: true },
    });
    expect(told(report)).toContain(`file-missing at file ${files().chunks}`);
    expect(written.files.size).toBe(0);
  });

  test.each([1, 150, 300])("a changed line of the chunks file is named: %i", async (line) => {
    const lines = Buffer.from(fileOf(files().chunks)).toString("latin1").split("\n");
    lines[line - 1] = (lines[line - 1] ?? "").replace(/"level":-?\d+/, '"level":11');
    const report = await check({ files: { [files().chunks]: Buffer.from(lines.join("\n"), "latin1") } });
    expect(told(report)).toEqual([`file-differs at file ${files().chunks}, line ${line}`]);
  });

  test("a chunks file that is cut, goes on, or has bytes outside of ASCII is told", async () => {
    const bytes = fileOf(files().chunks);
    const cut = await check({ files: { [files().chunks]: bytes.slice(0, -5) } });
    expect(told(cut)).toEqual([`file-differs at file ${files().chunks}, line 300`]);
    const longer = await check({ files: { [files().chunks]: Buffer.concat([bytes, Buffer.from("{}\n")]) } });
    expect(told(longer)).toEqual([`file-differs at file ${files().chunks}, line 301`]);
    const noise = await check({ files: { [files().chunks]: Buffer.alloc(100_000, 0xff) } });
    expect(told(noise)).toContain(`file-differs at file ${files().chunks}, line 1`);
  });

  test.each(["manifest", "checkpoint", "anchor"] as const)("a changed %s file is told", async (which) => {
    const name = files()[which];
    const report = await check({ files: { [name]: flipped(fileOf(name), 20) } });
    expect(told(report)).toEqual([`file-differs at file ${name}`]);
  });

  test("an anchor file that says another block than the session is told", async () => {
    const report = await check({
      session: (record) =>
        record.anchor === undefined ? record : { ...record, anchor: { ...record.anchor, block: 813 } },
    });
    expect(onlyFinding(report)).toMatchObject({
      kind: "anchor-differs",
      problem: expect.stringMatching(/^block/) as unknown,
    });
  });
});

const openRecord = (record: SessionRecord): SessionRecord => ({
  ...record,
  state: "open",
  expectedCount: undefined,
  countConfirmed: false,
  finalize: undefined,
  sealedAt: undefined,
  sealedEvent: undefined,
  anchor: undefined,
  anchoredEvent: undefined,
  closed: false,
});
const sealedRecord = (record: SessionRecord): SessionRecord => ({
  ...record,
  state: "sealed",
  anchor: { status: "submitted", claim: "c" },
  anchoredEvent: undefined,
  closed: false,
});

describe("states that a session should have left", () => {
  test.each([
    ["count-unconfirmed", { expectedCount: 400 as TreeSize, countConfirmed: false }],
    ["seal-pending", { expectedCount: CHUNKS as TreeSize, countConfirmed: true }],
  ])("%s is a warning if it stays, and nothing if it passes", async (kind, change) => {
    const session: World["session"] = (record) => ({ ...openRecord(record), ...change });
    expect(onlyFinding(await check({ session }))).toMatchObject({ kind, severity: "warning" });

    const ports = await portsOf({ ...SOUND, session });
    ports.clock.sleep = async () => {
      const now = await ports.sessions.find(id);
      Object.assign(ports.sessions, { find: async () => ({ ...now, version: (now?.version ?? 0) + 1 }) });
    };
    expect((await fsck(ports, options(), id)).findings).toEqual([]);
  });

  test.each([
    ["sealed-event-pending", { sealedEvent: "pending", closed: false }, "warning"],
    ["anchored-event-pending", { anchoredEvent: "pending", closed: false }, "warning"],
    ["closing-pending", { closed: false }, "warning"],
    ["closed-too-early", { anchoredEvent: "pending" }, "error"],
    ["session-inconsistent", { sealedAt: undefined }, "error"],
    ["session-inconsistent", { expectedCount: 299 }, "error"],
    ["session-inconsistent", { state: "open" }, "error"],
  ] as const)("%s is told: %o", async (kind, change, severity) => {
    const report = await check({ session: (record) => ({ ...record, ...change }) });
    expect(report.findings).toContainEqual(
      expect.objectContaining({ kind, severity, place: { what: "session" } }),
    );
  });

  test("an anchor that isn't confirmed is a warning after an hour, and an info before", async () => {
    const anchored = { manifestStatus: "generated" as const, session: sealedRecord };
    expect(onlyFinding(await check(anchored))).toMatchObject({ kind: "anchor-pending", severity: "warning" });
    const young = await check({ ...anchored, ports: { clock: new ManualClock() } });
    expect(young.worst).toBe("info");
  });

  test("a document of the session that can't be read is told, and the next session is checked", async () => {
    const ports = await portsOf(SOUND);
    const record = await ports.sessions.find(id);
    Object.assign(ports.sessions, {
      ids: async (after: SessionId | undefined) => (after === undefined ? ["broken", id] : []),
      find: async (session: SessionId) => {
        if (session === "broken") throw new TypeError("no tree");
        return record;
      },
    });
    const report = await fsck(ports, options());
    expect(told(report)).toEqual(["session-unreadable at session"]);
    expect(report).toMatchObject({ sessions: 2, chunks: CHUNKS });
  });
});

describe("a session that is being written to", () => {
  const later = (index: number, change: Partial<ChunkRecord> = {}): ChunkRecord => {
    const chunk = { ...chunkOf(0), ...change, index: index as LeafIndex };
    return {
      ...chunk,
      chunkId: `${id}-later-${index}` as ChunkRecord["chunkId"],
      blobId: `${id}:${index}:a1`,
    };
  };
  const blobsOf = (...indexes: readonly number[]) => indexes.map((index) => `${id}:${index}:a1`);

  test("has chunks behind a gap: an info; for long, a warning that says to send them again", async () => {
    const moreChunks = [later(303), later(305)];
    const world = { session: openRecord, moreChunks, moreBlobs: blobsOf(303, 305) };
    const old = onlyFinding(await check(world));
    expect(old).toMatchObject({
      kind: "chunks-awaited",
      severity: "warning",
      place: { what: "chunk", index: 300, last: 302 },
      problem: expect.stringMatching(
        /^missing: 300–302, 304; 2 committed chunks wait behind, for \d+ s$/,
      ) as unknown,
    });
    expect(old?.action).toMatch(/^send them again/);
    expect(onlyFinding(await check({ ...world, options: { gapAlertMs: 48 * HOUR_MS } }))).toMatchObject({
      kind: "chunks-in-flight",
      severity: "info",
      place: { index: 303, last: 305 },
    });
  });

  test("waits for chunks that were announced: an info; when none comes for long, a warning", async () => {
    const announced: World["session"] = (record) => ({
      ...openRecord(record),
      expectedCount: 320,
      countConfirmed: true,
    });
    const recent = await check({ session: announced, options: { gapAlertMs: 48 * HOUR_MS } });
    expect(recent.worst).toBe("info");
    const young = onlyFinding(recent);
    expect(young).toMatchObject({
      kind: "chunks-announced",
      severity: "info",
      place: { what: "chunk", index: 300, last: 319 },
      problem: expect.stringMatching(
        /^not there yet: 300 of the 320 chunks that were announced are there, and none has come for \d+ s$/,
      ) as unknown,
    });
    expect(young?.action).toMatch(/^send what is missing, unless it is on its way/);
    const old = await check({ session: announced });
    expect(onlyFinding(old)).toMatchObject({ kind: "chunks-announced", severity: "warning" });

    const none = await check({
      session: (record) => ({
        ...openRecord(record),
        tree: { size: 0 as TreeSize, frontier: [], root: undefined },
        totals: { originalBytes: 0, storedBytes: 0 },
        checkpoint: undefined,
        expectedCount: 3,
        countConfirmed: true,
      }),
      chunks: () => undefined,
      blobs: () => undefined,
      tiles: () => undefined,
    });
    expect(onlyFinding(none)).toMatchObject({
      kind: "chunks-announced",
      severity: "warning",
      place: { index: 0, last: 2 },
      problem: expect.stringMatching(/0 of the 3 chunks that were announced/) as unknown,
    });

    const withNext = await check({ session: announced, moreChunks: [later(300)], moreBlobs: blobsOf(300) });
    expect(told(withNext)).toContain("chunks-announced at chunks 301–319");
    expect(told(withNext)).toContain("chunks-in-flight at chunk 300");
  });

  test("that a worker is about to take in is an info; left as it is, a warning", async () => {
    const world = { ...SOUND, session: openRecord, moreChunks: [later(300)], moreBlobs: blobsOf(300) };
    const left = await fsck(await portsOf(world), options(), id);
    expect(told(left)).toEqual(["tree-behind at session", "chunks-in-flight at chunk 300"]);
    const ports = await portsOf(world);
    ports.clock.sleep = async () => {
      Object.assign(ports.sessions, { find: async () => ({ ...recorded.record, version: 1_000 }) });
    };
    expect((await fsck(ports, options(), id)).worst).toBe("info");
  });

  test("a chunk after the end: announced an error, else the sweeper's", async () => {
    const announced = await check({ moreChunks: [later(300)], moreBlobs: blobsOf(300) });
    expect(onlyFinding(announced)).toMatchObject({
      kind: "chunk-beyond-end",
      severity: "error",
      place: { index: 300 },
    });
    const pending = await check({
      moreChunks: [later(300, { eventState: "pending" })],
      moreBlobs: blobsOf(300),
    });
    expect(onlyFinding(pending)).toMatchObject({ kind: "chunk-beyond-end", severity: "warning" });
  });

  test("an empty session is clean", async () => {
    const session: World["session"] = (record) => ({
      ...openRecord(record),
      tree: { size: 0 as TreeSize, frontier: [], root: undefined },
      totals: { originalBytes: 0, storedBytes: 0 },
      checkpoint: undefined,
    });
    const report = await check({
      session,
      chunks: () => undefined,
      blobs: () => undefined,
      tiles: () => undefined,
    });
    expect(report.worst).toBe("clean");
  });
});

test("each kind of finding says what to do", () => {
  for (const { action } of Object.values(FINDING_KINDS)) expect(action.length).toBeGreaterThan(20);
});
