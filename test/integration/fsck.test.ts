import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Document } from "mongodb";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createManifestFiles } from "../../src/adapters/file/manifest-files.ts";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { CpuThreads } from "../../src/adapters/threads/cpu-threads.ts";
import { asBuffer } from "../../src/core/bytes.ts";
import { canonicalChunkId, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import { manifestFileNames, manifestId } from "../../src/core/manifest/names.ts";
import { fsck, type FsckOptions, type FsckPorts } from "../../src/pipeline/fsck.ts";
import { placeText } from "../../src/pipeline/fsck-findings.ts";
import { createPipeline, type Pipeline } from "../../src/pipeline/pipeline.ts";
import type { Clock } from "../../src/pipeline/ports.ts";
import { mongoStores, type Stores } from "../conformance/stores.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { MemoryAnchoringEngine } from "../support/memory/anchoring-engine.ts";
import { MemoryEventPublisher } from "../support/memory/event-publisher.ts";
import { MemoryPayloadStore } from "../support/memory/payload-store.ts";
import { MemoryServiceStateStore } from "../support/memory/service-state-store.ts";
import { REPOSITORY } from "../support/planted-tree.ts";
import {
  folderWith,
  KEK_TEXT,
  KEY_RING,
  kernelHere,
  NEVER,
  PINNED_KEY,
  samplePayload,
  SIGNING_KEY,
  silent,
} from "../support/recorded-session.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment } from "../support/worker-process.ts";

const servers = testServers();
const CLI = join(REPOSITORY, "src/cli/session-processor.ts");
/** A full tile of level 0, one of level 1, and leaves in none. */
const CHUNKS = 262;
const SWEEPS_MAX = 10;
const SWEEP_MS = 15_000;
const ID = servers.sessionId("whole") as SessionId;
const NAMES = manifestFileNames(ID, "session_recording");
const MANIFEST_ID = manifestId(ID, "session_recording");
const home = mkdtempSync(join(tmpdir(), "fsck-"));
const directory = join(home, "manifests");
const clock = new ManualClock();
let connection: MongoConnection;
let stores: Stores;
let pipeline: Pipeline;

beforeAll(async () => {
  mkdirSync(directory);
  const pem = SIGNING_KEY.export({ format: "pem", type: "pkcs8" });
  writeFileSync(join(home, "signing.pem"), pem, { mode: 0o600 });
  connection = await connectMongo({ url: servers.mongodbUrl, appName: "fsck" });
  await ensureIndexes(connection);
  stores = mongoStores(connection);
  pipeline = startPipeline();
  // As a worker's first sweep: without Redis' marker no event is marked.
  await pipeline.sweeper.sweepPendingEvents(NEVER);
  await record(ID, CHUNKS);
  await close(ID, CHUNKS);
});
afterAll(async () => {
  await pipeline.settled();
  await connection.close();
  rmSync(home, { recursive: true, force: true });
});

function startPipeline(): Pipeline {
  return createPipeline(
    {
      ...stores,
      serviceState: new MemoryServiceStateStore(),
      files: createManifestFiles(directory),
      payloads: new MemoryPayloadStore(),
      events: new MemoryEventPublisher(),
      threads: kernelHere,
      clock,
      random: (length) => crypto.getRandomValues(new Uint8Array(length)),
      observer: silent,
    },
    {
      keyRing: KEY_RING,
      hashAlgorithm: "blake3",
      chunkBytesMax: 1_048_576,
      sessionBytesMax: 1_000_000_000,
      compressionThresholdBytes: 64,
      epochAgeMaxMs: 3_600_000,
      eventPendingMs: 30_000,
      eventRetentionMs: 86_400_000,
      gapAlertMs: 60_000,
      orphanBlobMs: 3_600_000,
      checkpointIntervalMs: 0,
      closing: { signingKey: SIGNING_KEY, engine: new MemoryAnchoringEngine() },
    },
    NEVER,
  );
}

async function record(session: SessionId, count: number, from = 0): Promise<void> {
  const indexes = Array.from({ length: count }, (_, at) => (from + at) as LeafIndex);
  await Promise.all(indexes.map((index) => processOne(session, index)));
}

async function processOne(session: SessionId, index: LeafIndex): Promise<void> {
  await pipeline.processChunk(
    {
      sessionId: session,
      chunkId: canonicalChunkId(session, index),
      index,
      source: { kind: "inline", bytes: samplePayload(index, 60 + index) },
      declared: {},
      compression: { algorithm: "zstd", level: 3 },
    },
    NEVER,
  );
}

async function close(session: SessionId, chunkCount: number): Promise<void> {
  const details = { manifestType: "session_recording" };
  await pipeline.finalizeSession({ sessionId: session, chunkCount, details }, NEVER);
  for (let sweep = 0; sweep < SWEEPS_MAX; sweep++) {
    await pipeline.settled();
    if ((await stores.sessions.find(session))?.closed === true) return;
    clock.advance(SWEEP_MS);
    await pipeline.sweeper.sweepSessions(NEVER);
  }
  throw new Error("the session was not closed");
}

// ---- damage ------------------------------------------------------------------------------------------------

/** What a test has changed, to be put back: each one plants one thing. */
const undo: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const back of undo.splice(0).toReversed()) await back();
});

type Raw = Document & { _id: string };
const collection = (name: string) => connection.db.collection<Raw>(name);

async function plant(name: string, _id: string, change: Document | "remove"): Promise<void> {
  const before = await collection(name).findOne({ _id });
  if (before === null) throw new Error(`there is no ${_id} in ${name}`);
  undo.push(() => collection(name).replaceOne({ _id }, before, { upsert: true }));
  if (change === "remove") await collection(name).deleteOne({ _id });
  else await collection(name).updateOne({ _id }, { $set: change });
}

async function field(name: string, _id: string, key: string): Promise<Uint8Array> {
  const document = await collection(name).findOne({ _id }, { promoteBuffers: true });
  return document?.[key] as Uint8Array;
}

async function add(name: string, document: Raw): Promise<void> {
  undo.push(() => collection(name).deleteOne({ _id: document._id }));
  await collection(name).insertOne(document);
}

function plantFile(name: string, change: (bytes: Buffer) => Uint8Array | undefined): void {
  const path = join(directory, name);
  const before = readFileSync(path);
  undo.push(() => writeFileSync(path, before));
  const after = change(Buffer.from(before));
  if (after === undefined) rmSync(path);
  else writeFileSync(path, after);
}

const flipped = (bytes: Uint8Array, at: number): Buffer => {
  const copy = Buffer.from(bytes);
  copy[at] = (copy[at] ?? 0) ^ 1;
  return copy;
};
const chunkId = (index: number) => `${ID}:${index}`;
const blobIdOf = async (index: number): Promise<string> =>
  (await stores.chunks.find(ID, index as LeafIndex))?.blobId ?? "";

// ---- runs --------------------------------------------------------------------------------------------------

const options = (more: Partial<FsckOptions> = {}): FsckOptions => ({
  data: false,
  repair: false,
  pinnedKeys: [PINNED_KEY],
  eventPendingMs: 30_000,
  gapAlertMs: 60_000,
  orphanBlobMs: 3_600_000,
  signal: NEVER,
  ...more,
});

function ports(): FsckPorts {
  const files = new Map(
    Object.values(NAMES).flatMap((name) => {
      try {
        return [[name, readFileSync(join(directory, name))] as const];
      } catch {
        return [];
      }
    }),
  );
  return {
    ...stores,
    folder: folderWith(files),
    files: createManifestFiles(directory),
    opening: undefined,
    clock,
  };
}

/** Each finding as `kind at place`. */
async function found(more: Partial<FsckOptions> = {}): Promise<readonly string[]> {
  const { findings } = await fsck(ports(), options(more), ID);
  return findings.map(({ kind, place }) => `${kind} at ${placeText(place)}`);
}

interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const OTHER_KEK = "hW3nZ8tK1vQx5rYb0sMd7fJc2gLp9aUe4iOoTtRr=";
const ENV = {
  MONGODB_URL: servers.mongodbUrl,
  LUCID_MANIFEST_PATH: directory,
  MANIFEST_SIGNING_KEY_FILE: join(home, "signing.pem"),
};

function run(args: readonly string[], env: Readonly<Record<string, string>> = ENV): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const settings = { cwd: home, env: { ...bareEnvironment(), ...env } };
    execFile(process.execPath, [CLI, "fsck", ...args], settings, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== "number") {
        reject(new Error("the command did not run to its end", { cause: error }));
      } else resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

describe("a session that the pipeline made", () => {
  test("is clean, and every blob opens in CPU threads", async () => {
    const threads = new CpuThreads({ threads: 1, timeoutMs: 30_000 });
    try {
      const opening = { threads, keyRing: KEY_RING };
      expect(await fsck({ ...ports(), opening }, options({ data: true }), ID)).toEqual({
        sessions: 1,
        chunks: CHUNKS,
        blobs: "opened",
        findings: [],
        omitted: 0,
        worst: "clean",
      });
    } finally {
      await threads.close();
    }
  });

  test("is never told anything worse than an info while it is written to", async () => {
    const session = servers.sessionId("busy") as SessionId;
    const worsts: string[] = [];
    // The second look has to come later for the workers too.
    const patient: Clock = { now: () => clock.now(), monotonicMs: () => 0, sleep: (ms) => sleep(ms) };
    const look = async (): Promise<void> => {
      const { worst, findings } = await fsck({ ...ports(), clock: patient }, options(), session);
      worsts.push(worst === "warning" || worst === "error" ? JSON.stringify(findings) : worst);
    };
    await record(session, 40);
    for (let from = 40; from < 280; from += 40) {
      await Promise.all([record(session, 40, from), look(), sleep(20).then(look), sleep(60).then(look)]);
    }
    expect(worsts).toHaveLength(18);
    expect(worsts.filter((worst) => worst !== "clean" && worst !== "info")).toEqual([]);
  });
});

describe("damage in MongoDB is found where it is", () => {
  test("a blob that is gone", async () => {
    const blobId = await blobIdOf(7);
    await plant("chunk_blobs", blobId, "remove");
    expect(await found()).toEqual([`blob-missing at blob ${blobId} (chunk 7)`]);
  });

  test("a blob with a changed byte, and one that was cut, with --data", async () => {
    const [changed, cut] = [await blobIdOf(100), await blobIdOf(261)];
    await plant("chunk_blobs", changed, { bytes: flipped(await field("chunk_blobs", changed, "bytes"), 50) });
    const bytes = await field("chunk_blobs", cut, "bytes");
    await plant("chunk_blobs", cut, { bytes: Buffer.from(bytes.subarray(0, -1)) });
    expect(await found({ data: true })).toEqual([
      `blob-length-wrong at blob ${cut} (chunk 261)`,
      `blob-digest-wrong at blob ${changed} (chunk 100)`,
    ]);
    expect(await found()).toEqual([]);
  });

  test("an orphan blob", async () => {
    await add("chunk_blobs", {
      _id: `${ID}:9:orphan`,
      format: 1,
      session_id: ID,
      chunk_index: 9,
      bytes: Buffer.alloc(80),
    });
    expect(await found()).toEqual([`blob-orphan at blob ${ID}:9:orphan (chunk 9)`]);
  });

  test.each([0, 255, 261])("chunk document %i that is gone", async (index) => {
    await plant("chunks", chunkId(index), "remove");
    expect(await found()).toContain(`chunk-missing at chunk ${index}`);
  });

  test("a chunk document of an unknown format, and one that lacks a field", async () => {
    await plant("chunks", chunkId(30), { format: 2 });
    await plant("chunks", chunkId(31), { event: null });
    const findings = await found();
    expect(findings.slice(0, 2)).toEqual(["chunk-unreadable at chunk 30", "chunk-unreadable at chunk 31"]);
  });

  test("a chunk document that says it is another", async () => {
    await plant("chunks", chunkId(30), { chunk_index: 3_000 });
    expect(await found()).toContain("chunk-misplaced at chunk 30");
    await plant("chunks", chunkId(31), { chunk_index: 32 });
    expect(await found()).toContain("chunk-misplaced at chunk 31");
  });

  test.each([
    ["original_bytes", { original_bytes: 5 }, "leaf-hash-wrong"],
    ["codec", { codec: "lz4" }, "leaf-hash-wrong"],
    ["chunk_id", { chunk_id: "other" }, "leaf-hash-wrong"],
    ["leaf_hash", { leaf_hash: Buffer.alloc(32, 1) }, "leaf-hash-wrong"],
    ["key_commit", { key_commit: Buffer.alloc(32, 1) }, "leaf-hash-wrong"],
    ["a short plain_mac", { plain_mac: Buffer.alloc(31) }, "chunk-fields-wrong"],
    ["level", { level: 19 }, "chunk-fields-wrong"],
    ["hash_algorithm", { hash_algorithm: "sha256" }, "chunk-fields-wrong"],
    ["blob_id", { blob_id: `${ID}:1:x` }, "blob-of-another-chunk"],
    ["key_version", { key_version: 2 }, "blob-key-missing"],
    ["a pending event", { "event.state": "pending" }, "chunk-event-pending"],
  ])("a chunk document with another %s", async (_field, change, kind) => {
    await plant("chunks", chunkId(77), change);
    expect(await found()).toContain(`${kind} at chunk 77`);
  });

  test.each([
    ["tile-missing", 0, "remove"],
    ["tile-narrow", 0, 10],
    ["tile-wrong", 0, 256],
    ["tile-missing", 1, "remove"],
    ["tile-wrong", 1, 1],
  ] as const)("%s of level %i, which a repair writes again", async (kind, level, change) => {
    const tileId = `${ID}:${level}:0`;
    const sound = await field("merkle_tiles", tileId, "hashes");
    if (change === "remove") await plant("merkle_tiles", tileId, "remove");
    else {
      const hashes = change === 10 ? Buffer.from(sound.subarray(0, 320)) : flipped(sound, 9);
      await plant("merkle_tiles", tileId, { width: change, hashes });
    }
    expect(await found()).toEqual([`${kind} at tile ${level}:0`]);
    const repair = await fsck(ports(), options({ repair: true }), ID);
    expect(repair.findings.map(({ repaired }) => repaired !== undefined)).toEqual([true]);
    expect(await found()).toEqual([]);
    expect(Buffer.compare(await field("merkle_tiles", tileId, "hashes"), sound)).toBe(0);
  });

  test.each([
    ["root", { "tree.root": Buffer.alloc(32, 1) }, "root-wrong at tree head"],
    ["size", { "tree.size": 261 }, "session-inconsistent at session"],
    ["totals", { "totals.original_bytes": 1 }, "totals-wrong at tree head"],
    ["time of the seal", { sealed_at: null }, "session-inconsistent at session"],
    ["format", { format: 9 }, "session-unreadable at session"],
    ["event", { sealed_event: "pending" }, "closed-too-early at session"],
    ["closed flag", { closed: false }, "closing-pending at session"],
    ["checkpoint's root", { "checkpoint.root": Buffer.alloc(32, 1) }, "checkpoint-wrong at checkpoint"],
    ["checkpoint's note", { "checkpoint.note": "none\n" }, "checkpoint-invalid at checkpoint"],
    ["anchor's block", { "anchor.block": 8 }, "anchor-differs at anchor"],
  ])("a session's document with another %s", async (_what, change, finding) => {
    await plant("sessions", ID, change);
    expect(await found()).toContain(finding);
  });

  test("a session's document that is gone", async () => {
    await plant("sessions", ID, "remove");
    expect(await found()).toEqual(["session-missing at session"]);
  });

  test("a manifest's text and status", async () => {
    const { text } = (await collection("manifests").findOne({ _id: MANIFEST_ID })) as unknown as {
      text: string;
    };
    await plant("manifests", MANIFEST_ID, { text: text.replace(`"count":${CHUNKS}`, '"count":1') });
    expect(await found()).toContain(`manifest-invalid at manifest ${MANIFEST_ID}`);
    await plant("manifests", MANIFEST_ID, { text, status: "error", reason: "X: disk" });
    expect(await found()).toContain(`manifest-failed at manifest ${MANIFEST_ID}`);
    await plant("manifests", MANIFEST_ID, "remove");
    expect(await found()).toContain(`manifest-missing at manifest ${MANIFEST_ID}`);
  });
});

describe("the command", () => {
  test("is clean with 0, for one session and for all, with --data", async () => {
    const one = await run([ID, "--json", "--data"], { ...ENV, ENCRYPTION_KEY: KEK_TEXT });
    expect(one.code).toBe(0);
    expect(JSON.parse(one.stdout)).toEqual({
      sessions: 1,
      chunks: CHUNKS,
      blobs: "opened",
      findings: [],
      omitted: 0,
      worst: "clean",
    });
    const all = await run([]);
    expect(all).toMatchObject({ code: 0, stdout: expect.stringMatching(/^(clean|0 errors)/) as unknown });
  });

  test("says what is wrong, where and what to do, and exits with 3", async () => {
    await plant("chunks", chunkId(77), { leaf_hash: Buffer.alloc(32, 1) });
    const { code, stdout } = await run([ID]);
    expect(code).toBe(3);
    expect(stdout).toContain(
      `ERROR ${ID}, chunk 77: the document's fields don't make its leaf hash [leaf-hash-wrong]`,
    );
    expect(stdout).toContain("to do: restore the document of this chunk");
    const { findings, worst } = JSON.parse((await run([ID, "--json"])).stdout) as Document;
    expect(worst).toBe("error");
    expect((findings as Document[])[0]).toEqual({
      kind: "leaf-hash-wrong",
      severity: "error",
      session_id: ID,
      place: { what: "chunk", index: 77 },
      problem: expect.any(String) as unknown,
      action: expect.any(String) as unknown,
      repaired: null,
    });
  });

  test("says of another ENCRYPTION_KEY that, and nothing about the session", async () => {
    const { code, stdout, stderr } = await run([ID, "--data"], { ...ENV, ENCRYPTION_KEY: OTHER_KEK });
    expect({ code, stdout }).toEqual({ code: 8, stdout: "" });
    expect(stderr).toMatch(/^error: ENCRYPTION_KEY (?:is not the key|opens none) [^\n]* \[KEK_MISMATCH\]\n$/);
    // It isn't needed for anything else.
    expect((await run([ID], { ...ENV, ENCRYPTION_KEY: OTHER_KEK })).code).toBe(0);
  });

  test("exits with 1 for warnings, and for what it repaired", async () => {
    await plant("chunks", chunkId(5), { "event.state": "pending" });
    expect((await run([ID])).code).toBe(1);
    for (const back of undo.splice(0)) await back();
    plantFile(NAMES.chunks, () => undefined);
    const before = await run([ID]);
    expect(before).toMatchObject({ code: 1, stdout: expect.stringContaining("[file-missing]") as unknown });
    const repaired = await run([ID, "--repair"]);
    expect(repaired).toMatchObject({ code: 1, stdout: expect.stringContaining("repaired: ") as unknown });
    expect((await run([ID])).code).toBe(0);
  });

  test.each(Object.keys(NAMES) as (keyof typeof NAMES)[])("names a changed %s file", async (which) => {
    plantFile(NAMES[which], (bytes) => flipped(bytes, 30));
    const { code, stdout } = await run([ID]);
    expect(code).toBe(3);
    expect(stdout).toContain(NAMES[which]);
  });

  test("believes --key and not the configured one when given", async () => {
    const other = asBuffer(new Uint8Array(32).fill(3)).toString("hex");
    const { code, stdout } = await run([ID, "--key", other]);
    expect(code).toBe(3);
    expect(stdout).toContain("[manifest-invalid]");
    const pinned = asBuffer(PINNED_KEY).toString("base64");
    expect((await run([ID, "--key", pinned], { ...ENV, MANIFEST_SIGNING_KEY_FILE: "" })).code).toBe(0);
  });

  test("exits with 8 when it can't look, and with 2 for wrong usage", async () => {
    const unknown = await run(["nobody", "--json"]);
    expect(unknown).toMatchObject({ code: 8, stdout: "" });
    expect(JSON.parse(unknown.stderr)).toEqual({
      error: { code: "SESSION_UNKNOWN", message: expect.any(String) as unknown },
    });
    const away = await run([ID], { ...ENV, MONGODB_URL: "mongodb://127.0.0.1:1/x" });
    expect(away).toMatchObject({ code: 8, stderr: expect.stringContaining("STORE_UNAVAILABLE") as unknown });
    expect((await run([ID, "--nonsense"])).code).toBe(2);
    expect((await run(["--help"])).stdout).toContain("Exit codes:");
  });
});
