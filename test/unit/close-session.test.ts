import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, test } from "vitest";
import { asBuffer, utf8 } from "../../src/core/bytes.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { ChunksFileVerifier } from "../../src/core/manifest/chunks-file.ts";
import { verifyManifest } from "../../src/core/manifest/sign.ts";
import { checkpointVerifierKey, verifyCheckpoint } from "../../src/core/merkle/checkpoint.ts";
import { appendLeaves, emptyFrontier, type Frontier, rootOf } from "../../src/core/merkle/frontier.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { findExportable } from "../../src/pipeline/export-session.ts";
import type { ChunkStore, ManifestFiles } from "../../src/pipeline/ports.ts";
import {
  grow,
  leafChunk,
  manifestIdOf,
  type MemoryShared,
  namesOf,
  OTHER_SIGNING_KEY,
  PINNED_KEY,
  recordOf,
  reported,
  seal,
  sharedInMemory,
  startWorker,
  type Worker,
} from "../support/closing-world.ts";
import { type Death, Died, Lifeline } from "../support/lifeline.ts";
import { MemoryChunkStore } from "../support/memory/chunk-store.ts";
import { MemoryManifestStore } from "../support/memory/manifest-store.ts";
import { newSession } from "../support/memory/records.ts";

const ID = "sess-closing" as SessionId;
const NAMES = namesOf(ID);
const CHUNKS = 5;
/** Sweeps until even the longest take-over is through. */
const SWEEPS_MAX = 30;

async function sealedSession(chunks = CHUNKS): Promise<MemoryShared> {
  const shared = sharedInMemory();
  await grow(shared, ID, chunks);
  await seal(shared, ID);
  return shared;
}

function filesOf({ files }: MemoryShared): Readonly<Record<string, string>> {
  return Object.fromEntries(
    [...files.files].map(([name, bytes]) => [name, asBuffer(bytes).toString("latin1")]),
  );
}

/** What follows from the seal alone: the anchor file has the time of the confirmation in it. */
function sealedFilesOf(shared: MemoryShared): Readonly<Record<string, string>> {
  const { [NAMES.anchor]: _anchor, ...rest } = filesOf(shared);
  return rest;
}

function eventIds({ events }: MemoryShared): readonly string[] {
  return events.waiting("storage-events").map(({ event_id }) => event_id);
}

function expectVerifiable(shared: MemoryShared, chunks = CHUNKS): void {
  const verdict = verifyManifest(fileOf(shared, NAMES.manifest), [PINNED_KEY]);
  if (!verdict.ok) throw new Error(verdict.detail);
  expect(verdict.manifest.merkle.tree_size).toBe(chunks);
  const chunksFile = new ChunksFileVerifier(verdict.manifest);
  chunksFile.add(fileOf(shared, NAMES.chunks));
  chunksFile.finish();
  const note = asBuffer(fileOf(shared, NAMES.checkpoint)).toString("utf8");
  const checkpoint = verifyCheckpoint(note, ID, [checkpointVerifierKey(ID, "blake3", PINNED_KEY)]);
  expect(checkpoint).toMatchObject({ ok: true, checkpoint: { size: chunks } });
}

function fileOf({ files }: MemoryShared, name: string): Uint8Array {
  const bytes = files.files.get(name);
  if (bytes === undefined) throw new Error(`${name} is not there`);
  return bytes;
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (thrown) {
    return thrown instanceof LucidError ? thrown.code : String(thrown);
  }
  return "none";
}

describe("closeSession", () => {
  test("leaves an open session alone, and says so of one that is gone", async () => {
    const shared = sharedInMemory();
    await grow(shared, ID, 2);
    const worker = startWorker(shared);
    expect((await worker.close(ID)).state).toBe("open");
    expect(shared.files.files.size).toBe(0);
    expect(await codeOf(worker.close("nobody" as SessionId))).toBe("SESSION_UNKNOWN");
  });

  test("announces, writes files that verify, and closes; without an engine there is no anchor", async () => {
    const shared = await sealedSession();
    const worker = startWorker(shared, { engine: null });
    await worker.close(ID);
    expect(await recordOf(shared, ID)).toMatchObject({ state: "sealed", sealedEvent: "sent" });
    await worker.close(ID);
    expect(await recordOf(shared, ID)).toMatchObject({ closed: true });
    expect([...shared.files.files.keys()].sort()).toEqual(
      [NAMES.checkpoint, NAMES.chunks, NAMES.manifest].sort(),
    );
    expectVerifiable(shared);
    expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({
      status: "generated",
      text: asBuffer(fileOf(shared, NAMES.manifest)).toString("utf8"),
    });
    expect(eventIds(shared)).toEqual([`session.sealed.${ID}`]);
    expect(reported(worker, "manifest-written")).toHaveLength(1);
  });

  test("writes the manifest last, after the chunks file and the checkpoint", async () => {
    const shared = await sealedSession();
    await startWorker(shared, { engine: null }).close(ID);
    expect([...shared.files.files.keys()]).toEqual([NAMES.chunks, NAMES.checkpoint, NAMES.manifest]);
  });

  test("without a signing key the session is announced and closed, and nothing is written or anchored", async () => {
    const shared = await sealedSession();
    await startWorker(shared, { signingKey: null }).drive(ID);
    expect(await recordOf(shared, ID)).toMatchObject({
      state: "sealed",
      sealedEvent: "sent",
      checkpoint: undefined,
      anchor: undefined,
      closed: true,
    });
    expect(shared.files.files.size).toBe(0);
    expect(shared.engine.calls).toBe(0);
    expect(await shared.manifests.find(manifestIdOf(ID))).toBeUndefined();
    // Whoever wants to export it isn't told to wait for what never comes.
    await expect(findExportable(shared, ID)).rejects.toThrow(
      /closed by a worker without MANIFEST_SIGNING_KEY_FILE/,
    );
  });

  test("a manifest that is gone from the database isn't taken for one that there never was", async () => {
    const shared = await sealedSession();
    await startWorker(shared).drive(ID);
    expect(await recordOf(shared, ID)).toMatchObject({ closed: true });
    const manifests = new MemoryManifestStore();
    await expect(findExportable({ ...shared, manifests }, ID)).rejects.toThrow(
      /signed manifest is gone from the database; run fsck/,
    );
  });

  test("a closed session is not touched again", async () => {
    const shared = await sealedSession();
    await startWorker(shared).drive(ID);
    const before = await recordOf(shared, ID);
    expect(before.closed).toBe(true);
    const worker = startWorker(shared);
    await worker.close(ID);
    expect(worker.lifeline.calls).toEqual(["sessions.find"]);
    expect(await recordOf(shared, ID)).toEqual(before);
  });

  test("two workers at the same session, at every offset, leave the same files and one text", async () => {
    const clean = await sealedSession();
    await startWorker(clean, { engine: null }).close(ID);
    for (let lead = 0; lead < 20; lead++) {
      const shared = await sealedSession();
      const [one, two] = [startWorker(shared, { engine: null }), startWorker(shared, { engine: null })];
      const first = one.close(ID);
      for (let turn = 0; turn < lead; turn++) await Promise.resolve();
      await Promise.all([first, two.close(ID)]);
      await one.drive(ID);
      expect(filesOf(shared)).toEqual(filesOf(clean));
      expect((await shared.manifests.find(manifestIdOf(ID)))?.status).toBe("generated");
      expect((await recordOf(shared, ID)).closed).toBe(true);
      expect(eventIds(shared)).toEqual([`session.sealed.${ID}`]);
    }
  });

  test("workers with different signing keys agree on one manifest and one checkpoint", async () => {
    const shared = await sealedSession();
    const one = startWorker(shared, { engine: null });
    const two = startWorker(shared, { engine: null, signingKey: OTHER_SIGNING_KEY });
    await Promise.all([one.close(ID), two.close(ID)]);
    await one.drive(ID);
    const stored = await shared.manifests.find(manifestIdOf(ID));
    expect(stored?.status).toBe("generated");
    expect(asBuffer(fileOf(shared, NAMES.manifest)).toString("utf8")).toBe(stored?.text);
    expect(asBuffer(fileOf(shared, NAMES.checkpoint)).toString("utf8")).toBe(
      (await recordOf(shared, ID)).checkpoint?.note,
    );
  });

  test("another signing key after a crash goes on with the text that is published", async () => {
    const shared = await sealedSession();
    const publish = await callNumber("manifests.publish");
    const lifeline = new Lifeline({ atCall: publish, when: "after", of: "process" });
    await expect(startWorker(shared, { lifeline }).close(ID)).rejects.toThrow(Died);
    const text = (await shared.manifests.find(manifestIdOf(ID)))?.text;
    await startWorker(shared, { engine: null, signingKey: OTHER_SIGNING_KEY }).drive(ID);
    expect(asBuffer(fileOf(shared, NAMES.manifest)).toString("utf8")).toBe(text);
  });
});

describe("a worker that is configured with less than the one before it", () => {
  /** Anchored, closed, and then its events are pending again: what a loss of Redis leaves. */
  async function reopened() {
    const shared = await sealedSession();
    expect((await startWorker(shared).drive(ID)).closed).toBe(true);
    await shared.sessions.reopenEvents(ID);
    shared.events.lose("storage-events");
    return shared;
  }

  test("without an engine tells session.anchored all the same", async () => {
    const shared = await reopened();
    expect(await startWorker(shared, { engine: null }).drive(ID)).toMatchObject({
      sealedEvent: "sent",
      anchoredEvent: "sent",
      closed: true,
    });
    expect(eventIds(shared)).toContain(`session.anchored.${ID}`);
  });

  test("without a signing key leaves the session open for one that has it", async () => {
    const shared = await reopened();
    expect(await startWorker(shared, { signingKey: null }).drive(ID)).toMatchObject({
      sealedEvent: "sent",
      anchoredEvent: "pending",
      closed: false,
    });
    expect(await startWorker(shared).drive(ID)).toMatchObject({ anchoredEvent: "sent", closed: true });
  });
});

describe("a crash while closing", () => {
  test("at any port call, before or after it took effect, is made up for by another worker, byte for byte", async () => {
    const clean = await sealedSession();
    const cleanWorker = startWorker(clean);
    expect((await cleanWorker.drive(ID)).closed).toBe(true);
    const { calls } = cleanWorker.lifeline;
    expect(new Set(calls)).toEqual(EVERY_CALL);
    for (const death of deathsOf(calls.length)) {
      const { shared, died } = await dieAndRecover(death);
      const what = JSON.stringify({ ...death, call: calls[death.atCall] });
      expect(died, what).toBe(true);
      expectClosedOnce(shared, what);
      expect(sealedFilesOf(shared), what).toEqual(sealedFilesOf(clean));
      const record = await recordOf(shared, ID);
      expect(record, what).toMatchObject({
        state: "anchored",
        sealedEvent: "sent",
        anchoredEvent: "sent",
        closed: true,
      });
      expect(await shared.manifests.find(manifestIdOf(ID)), what).toMatchObject({
        status: "anchored",
        reason: undefined,
        text: sealedFilesOf(clean)[NAMES.manifest],
      });
    }
  });

  test("at any port call in each of two workers, one after the other, changes nothing either", async () => {
    const clean = await sealedSession();
    const cleanWorker = startWorker(clean);
    await cleanWorker.drive(ID);
    const total = cleanWorker.lifeline.calls.length;
    for (let first = 0; first < total; first += 3) {
      for (let second = 0; second < total; second += 5) {
        const shared = await sealedSession();
        for (const [atCall, when] of [
          [first, "after"],
          [second, "before"],
        ] as const) {
          const lifeline = new Lifeline({ atCall, when, of: "process" });
          await startWorker(shared, { lifeline })
            .drive(ID, 5)
            .catch(() => undefined);
        }
        await startWorker(shared).drive(ID, SWEEPS_MAX);
        expectClosedOnce(shared, `${first} ${second}`);
        expect(sealedFilesOf(shared)).toEqual(sealedFilesOf(clean));
      }
    }
  });

  test("an error at any single call leaves the worker able to finish by itself", async () => {
    const cleanWorker = startWorker(await sealedSession());
    await cleanWorker.drive(ID);
    for (const death of deathsOf(cleanWorker.lifeline.calls.length)) {
      const shared = await sealedSession();
      const worker = startWorker(shared, { lifeline: new Lifeline({ ...death, of: "call" }) });
      await driveThroughErrors(worker);
      expect((await recordOf(shared, ID)).closed, JSON.stringify(death)).toBe(true);
      expectClosedOnce(shared, JSON.stringify(death));
    }
  });

  test("a store or queue that is away for a moment at any call is waited for", async () => {
    const cleanWorker = startWorker(await sealedSession());
    await cleanWorker.drive(ID);
    const { calls } = cleanWorker.lifeline;
    for (const death of deathsOf(calls.length)) {
      const name = calls[death.atCall] ?? "";
      if (name.startsWith("engine.") || name.startsWith("files.")) continue;
      const code = name.startsWith("events.") ? "QUEUE_UNAVAILABLE" : "STORE_UNAVAILABLE";
      const shared = await sealedSession();
      const error = new LucidError(code, "away");
      const worker = startWorker(shared, { lifeline: new Lifeline({ ...death, of: "call", error }) });
      // Nothing is thrown: no job and no sweep is failed by an outage.
      expect((await worker.drive(ID, SWEEPS_MAX)).closed, `${name} ${death.when}`).toBe(true);
      expectClosedOnce(shared, name);
    }
  });
});

const EVERY_CALL = new Set([
  "sessions.find",
  "sessions.replace",
  "events.publish",
  "events.marker",
  "manifests.find",
  "manifests.mark",
  "manifests.publish",
  "chunks.beyond",
  "files.write",
  "engine.submit",
  "engine.status",
]);

function* deathsOf(calls: number): Generator<Death> {
  for (let atCall = 0; atCall < calls; atCall++) {
    for (const when of ["before", "after"] as const) yield { atCall, when, of: "process" };
  }
}

async function dieAndRecover(
  death: Death,
): Promise<{ readonly shared: MemoryShared; readonly died: boolean }> {
  const shared = await sealedSession();
  const victim = startWorker(shared, { lifeline: new Lifeline(death) });
  const died = await victim.drive(ID).then(
    () => false,
    (thrown: unknown) => thrown instanceof Died,
  );
  await startWorker(shared).drive(ID, SWEEPS_MAX);
  return { shared, died };
}

async function driveThroughErrors(worker: Worker): Promise<void> {
  for (let time = 0; time < 3; time++) await worker.drive(ID, SWEEPS_MAX).catch(() => undefined);
}

/** One root, one key on every POST, one event of each kind, four files. */
function expectClosedOnce(shared: MemoryShared, what: string): void {
  expect(shared.engine.roots.size, what).toBe(1);
  expect(new Set(shared.engine.posts.map(({ key }) => key)).size, what).toBe(1);
  expect(eventIds(shared), what).toEqual([`session.sealed.${ID}`, `session.anchored.${ID}`]);
  expect([...shared.files.files.keys()].sort(), what).toEqual(Object.values(NAMES).map(String).sort());
}

async function callNumber(name: string): Promise<number> {
  const worker = startWorker(await sealedSession());
  await worker.drive(ID);
  return worker.lifeline.calls.indexOf(name);
}

describe("a manifest that can't be written", () => {
  test("has status error with the reason, is reported, and recovers by itself through the sweeper", async () => {
    const shared = await sealedSession();
    const full = new LucidError("MANIFEST_DIRECTORY_UNUSABLE", "the manifest directory is full");
    const folder = breakable(shared.files);
    const worker = startWorker({ ...shared, files: folder }, { engine: null });
    folder.fault = full;
    await worker.sweep();
    expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({
      status: "error",
      reason: "MANIFEST_DIRECTORY_UNUSABLE: the manifest directory is full",
    });
    expect(reported(worker, "manifest-failed")[0]?.code).toBe("MANIFEST_DIRECTORY_UNUSABLE");
    expect(reported(worker, "session-stuck")[0]).toMatchObject({ sessionId: ID, code: full.code });
    expect(await recordOf(shared, ID)).toMatchObject({ sealedEvent: "sent", closed: false });
    folder.fault = undefined;
    await worker.sweep();
    expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({
      status: "generated",
      reason: undefined,
    });
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expectVerifiable(shared);
  });

  test("is tried once a sweep, and reported once", async () => {
    const shared = await sealedSession();
    const folder = breakable(shared.files);
    folder.fault = new LucidError("MANIFEST_DIRECTORY_UNUSABLE", "read-only");
    const worker = startWorker({ ...shared, files: folder }, { engine: null });
    for (let sweeps = 1; sweeps <= 3; sweeps++) {
      await worker.sweep();
      expect(reported(worker, "manifest-failed")).toHaveLength(sweeps);
      expect(reported(worker, "session-stuck")).toHaveLength(sweeps);
    }
  });

  test.each(Object.entries({ chunks: NAMES.chunks, checkpoint: NAMES.checkpoint, manifest: NAMES.manifest }))(
    "because other bytes are under the name of its %s is refused, reported, and overwrites nothing",
    async (_which, name) => {
      const shared = await sealedSession();
      shared.files.files.set(name, utf8("somebody else's"));
      const worker = startWorker(shared);
      await worker.sweep();
      expect(filesOf(shared)[name]).toBe("somebody else's");
      expect(reported(worker, "manifest-failed")[0]?.code).toBe("MANIFEST_INVALID");
      expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({
        status: "error",
        reason: expect.stringMatching(/^MANIFEST_INVALID: .*move it away/) as string,
      });
      expect(shared.engine.posts).toHaveLength(0);
      shared.files.files.delete(name);
      await worker.sweep();
      expect((await shared.manifests.find(manifestIdOf(ID)))?.status).toBe("generated");
      expectVerifiable(shared);
    },
  );

  test("because other bytes are under the anchor's name is reported, and finishes once they are moved away", async () => {
    const shared = await sealedSession();
    shared.files.files.set(NAMES.anchor, utf8("somebody else's"));
    const worker = startWorker(shared);
    for (let sweep = 0; sweep < 4; sweep++) await worker.sweep();
    expect(filesOf(shared)[NAMES.anchor]).toBe("somebody else's");
    expect(reported(worker, "session-stuck").at(-1)).toMatchObject({ code: "MANIFEST_INVALID" });
    expect(eventIds(shared)).toEqual([`session.sealed.${ID}`]);
    shared.files.files.delete(NAMES.anchor);
    await worker.sweep();
    await worker.sweep();
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expectClosedOnce(shared, "anchor file");
  });

  test("because a chunk document is gone, or another one stands there, is TREE_CORRUPT, and nothing is signed", async () => {
    for (const [index, put] of [
      [2, undefined],
      [2, { storedBytes: 1 }],
      [CHUNKS - 1, undefined],
    ] as const) {
      const shared = await sealedSession();
      const stored = leafChunk(ID, index);
      await shared.chunks.withdraw(stored, stored.blobId);
      if (put !== undefined) await shared.chunks.insert({ ...stored, ...put });
      const worker = startWorker(shared);
      await worker.sweep();
      expect(reported(worker, "manifest-failed")[0]?.code).toBe("TREE_CORRUPT");
      expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({
        status: "error",
        text: undefined,
      });
      expect((await recordOf(shared, ID)).checkpoint).toBeUndefined();
      expect(shared.engine.calls).toBe(0);
    }
  });

  test("is left where it is by a shutdown: no error is recorded", async () => {
    const shared = await sealedSession();
    const folder = breakable(shared.files);
    folder.fault = new LucidError("SHUTTING_DOWN", "stopped");
    const worker = startWorker({ ...shared, files: folder });
    expect(await codeOf(worker.close(ID))).toBe("SHUTTING_DOWN");
    expect(await shared.manifests.find(manifestIdOf(ID))).toMatchObject({
      status: "generating",
      reason: undefined,
    });
    expect(reported(worker, "manifest-failed")).toHaveLength(0);
  });
});

/** A folder that fails while `fault` is set, having read all that it was to write: as a full disk does at the sync. */
function breakable(files: ManifestFiles): ManifestFiles & { fault: LucidError | undefined } {
  const folder = {
    fault: undefined as LucidError | undefined,
    async write(name: string, content: Uint8Array | AsyncIterable<Uint8Array>) {
      if (folder.fault === undefined) return files.write(name, content);
      if (!(content instanceof Uint8Array)) for await (const block of content) void block;
      throw folder.fault;
    },
  };
  return folder;
}

describe("a long session", () => {
  test("100 000 chunks stream through in bounded memory", { timeout: 60_000 }, async () => {
    const chunks = 100_000;
    const shared = sharedInMemory();
    await shared.sessions.create(newSession(ID));
    const tree = treeOf(chunks);
    const grown = { kind: "grow", tree, addedOriginalBytes: chunks, addedStoredBytes: chunks } as const;
    await shared.sessions.replace(ID, 0, grown);
    await seal(shared, ID);
    const folder = new MeasuredFolder();
    const worker = startWorker({ ...shared, chunks: madeOnDemand(), files: folder }, { engine: null });
    await worker.close(ID);
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expect(folder.lines).toBe(chunks);
    expect(folder.bytes).toBeGreaterThan(40_000_000);
    // 50 MB pass through; a page of chunk documents and a block of lines are what is held.
    expect(folder.heldBytesMax).toBeLessThan(8 * 1024 * 1024);
    expect(folder.blockBytesMax).toBeLessThan(1024 * 1024);
  });
});

function treeOf(chunks: number) {
  const hasher = treeHasher("blake3");
  let frontier: Frontier = emptyFrontier();
  for (let from = 0; from < chunks; from += 1_000) {
    const leaves = Array.from({ length: 1_000 }, (_, at) => leafChunk(ID, from + at).leafHash);
    frontier = appendLeaves(frontier, leaves, hasher);
  }
  return { size: frontier.size, frontier: frontier.hashes, root: rootOf(frontier, hasher) };
}

/** Chunk documents that take no memory until they are asked for. */
function madeOnDemand(): ChunkStore {
  const store: ChunkStore = new MemoryChunkStore();
  store.beyond = async (session, from, limit) =>
    Array.from({ length: limit }, (_, at) => leafChunk(session, from + at));
  return store;
}

/** Keeps nothing, and looks now and then at how much is alive. */
class MeasuredFolder implements ManifestFiles {
  readonly #collect: () => void;
  readonly #before: number;
  lines = 0;
  bytes = 0;
  blockBytesMax = 0;
  heldBytesMax = 0;

  constructor() {
    setFlagsFromString("--expose-gc");
    this.#collect = runInNewContext("gc") as () => void;
    this.#before = this.#alive();
  }

  async write(_name: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<"written"> {
    if (content instanceof Uint8Array) return "written";
    let blocks = 0;
    for await (const block of content) {
      this.bytes += block.byteLength;
      this.lines += block.reduce((count, byte) => (byte === 0x0a ? count + 1 : count), 0);
      this.blockBytesMax = Math.max(this.blockBytesMax, block.byteLength);
      if ((blocks += 1) % 20 === 0)
        this.heldBytesMax = Math.max(this.heldBytesMax, this.#alive() - this.#before);
    }
    return "written";
  }

  #alive(): number {
    this.#collect();
    const { heapUsed, external, arrayBuffers } = process.memoryUsage();
    return heapUsed + external + arrayBuffers;
  }
}
