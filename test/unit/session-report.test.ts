import { describe, expect, test } from "vitest";
import { manifestIdOf, sessionReport } from "../../src/cli/session-report.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import {
  grow,
  leafChunk,
  type MemoryShared,
  recordOf,
  seal,
  sharedInMemory,
  startWorker,
  type WorkerOptions,
} from "../support/closing-world.ts";

const ID = "sess-report" as SessionId;

async function reportOf(shared: MemoryShared) {
  const record = await recordOf(shared, ID);
  const id = manifestIdOf(record);
  const manifest = id === undefined ? undefined : await shared.manifests.find(id);
  const later = await shared.chunks.beyond(ID, record.tree.size, 100);
  const { json, text, healthy } = sessionReport({ record, later, manifest });
  return { json, text, healthy };
}

async function sealed(options: WorkerOptions = {}) {
  const shared = sharedInMemory();
  await grow(shared, ID, 3);
  await seal(shared, ID);
  return { shared, worker: startWorker(shared, options) };
}

describe("the status of a session", () => {
  test("that is open names what is missing, the newest checkpoint, and no manifest yet", async () => {
    const shared = sharedInMemory();
    await grow(shared, ID, 3);
    const worker = startWorker(shared, { checkpointIntervalMs: 1_000 });
    await worker.sweep();
    shared.clock.advance(1_000);
    await worker.sweep();
    await shared.chunks.insert(leafChunk(ID, 5));
    const { json, text, healthy } = await reportOf(shared);
    expect(json).toMatchObject({
      state: "open",
      missing: [[3, 4]],
      waiting_for_gap: 1,
      checkpoint_size: 3,
      manifest: null,
      anchor: null,
      closed: false,
    });
    expect(text).toMatch(/^missing +chunks 3–4$/m);
    expect(text).toMatch(/^behind a gap +1 chunk$/m);
    expect(text).toMatch(/^checkpoint +signed at 3 chunks$/m);
    expect(text).toMatch(/^manifest +none: not sealed yet$/m);
    expect(healthy).toBe(false);
  });

  test("that waits for chunks says what to do, and that a confirmed count is final", async () => {
    const shared = sharedInMemory();
    await grow(shared, ID, 3);
    await shared.chunks.insert(leafChunk(ID, 4));
    const open = await reportOf(shared);
    expect(open.json).toMatchObject({ expected_count: null, count_confirmed: false });
    expect(open.text).toMatch(/^to do +send what is missing, .* enqueue sess-report FILE --first-index 3$/m);
    const { version } = await recordOf(shared, ID);
    const proposed = {
      kind: "propose-count",
      count: 7,
      finalize: { manifestType: "session_recording" },
    } as const;
    await shared.sessions.replace(ID, version, proposed);
    await shared.sessions.replace(ID, version + 1, { kind: "confirm-count" });
    const finalized = await reportOf(shared);
    expect(finalized.json).toMatchObject({
      expected_count: 7,
      count_confirmed: true,
      missing: [
        [3, 3],
        [5, 6],
      ],
    });
    expect(finalized.text).toMatch(/^to do .*; the count of 7 is final: if it is too high, see README/m);
  });

  test("that misses single chunks names them as chunks, and not as a number of them", async () => {
    const shared = sharedInMemory();
    await grow(shared, ID, 0);
    for (const index of [1, 3]) await shared.chunks.insert(leafChunk(ID, index));
    expect((await reportOf(shared)).text).toMatch(/^missing +chunk 0, chunk 2$/m);
  });

  test("that is sealed and not begun with has a pending manifest", async () => {
    const { shared } = await sealed();
    const { json, healthy } = await reportOf(shared);
    const manifest = { id: `${ID}-recording-manifest`, status: "pending", reason: null };
    expect(json).toMatchObject({ state: "sealed", checkpoint_size: null, manifest });
    expect(healthy).toBe(true);
  });

  test("whose manifest can't be written says why, and isn't healthy", async () => {
    const { shared, worker } = await sealed();
    shared.files.write = () =>
      Promise.reject(new LucidError("MANIFEST_DIRECTORY_UNUSABLE", "the manifest directory is full"));
    await worker.sweep();
    const { json, text, healthy } = await reportOf(shared);
    const reason = "MANIFEST_DIRECTORY_UNUSABLE: the manifest directory is full";
    expect(json).toMatchObject({ manifest: { status: "error", reason } });
    expect(text).toContain(`error: ${reason}`);
    expect(healthy).toBe(false);
  });

  test("that waits for its anchor shows what the engine called it", async () => {
    const { shared, worker } = await sealed();
    await worker.close(ID);
    const { json, text, healthy } = await reportOf(shared);
    expect(json).toMatchObject({
      manifest: { status: "generated" },
      checkpoint_size: 3,
      anchor: { status: "submitted", anchoring_id: "anchoring-1", transaction: null, block: null },
    });
    expect(text).toMatch(/^anchor +submitted: anchoring id anchoring-1$/m);
    expect(healthy).toBe(true);
  });

  test("that is anchored shows transaction, block and time", async () => {
    const { shared, worker } = await sealed();
    await worker.drive(ID);
    const { json, text } = await reportOf(shared);
    const { anchor } = await recordOf(shared, ID);
    expect(json).toMatchObject({
      state: "anchored",
      manifest: { status: "anchored" },
      anchor: {
        status: "confirmed",
        transaction: `tx-${ID}`,
        block: 7,
        anchored_at: anchor?.anchoredAt?.toISOString(),
      },
      anchored_event: "sent",
      closed: true,
    });
    expect(text).toContain(`confirmed: transaction tx-${ID}, block 7`);
  });

  test("that was closed without a signing key has no manifest, and says so", async () => {
    const { shared, worker } = await sealed({ signingKey: null });
    await worker.drive(ID);
    const { json, text, healthy } = await reportOf(shared);
    expect(json).toMatchObject({ manifest: null, anchor: null, closed: true });
    expect(text).toMatch(/^manifest +none: there was no signing key$/m);
    expect(healthy).toBe(true);
  });
});
