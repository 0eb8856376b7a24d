import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createManifestFiles } from "../../src/adapters/file/manifest-files.ts";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { MongoManifestStore } from "../../src/adapters/mongo/manifest-store.ts";
import { MongoSessionStore } from "../../src/adapters/mongo/session-store.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { ChunksFileVerifier } from "../../src/core/manifest/chunks-file.ts";
import { verifyManifest } from "../../src/core/manifest/sign.ts";
import { checkpointVerifierKey, verifyCheckpoint } from "../../src/core/merkle/checkpoint.ts";
import type { ManifestFiles } from "../../src/pipeline/ports.ts";
import { mongoStores } from "../conformance/stores.ts";
import {
  grow,
  manifestIdOf,
  namesOf,
  PINNED_KEY,
  recordOf,
  reported,
  seal,
  type Shared,
  sharedInMemory,
  startWorker,
} from "../support/closing-world.ts";
import { Died, Lifeline } from "../support/lifeline.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { MemoryAnchoringEngine } from "../support/memory/anchoring-engine.ts";
import { MemoryEventPublisher } from "../support/memory/event-publisher.ts";
import { testServers } from "../support/servers.ts";

const servers = testServers();
/** More than one page of chunk documents, and a tile. */
const CHUNKS = 1_050;
const SWEEPS_MAX = 30;
const ID = servers.sessionId("long") as SessionId;

const connections: MongoConnection[] = [];
let directory: string;

beforeAll(async () => {
  for (const appName of ["closing-1", "closing-2"]) {
    connections.push(await connectMongo({ url: servers.mongodbUrl, appName }));
  }
  await ensureIndexes(connection(0));
  await grow(sharedOver(0), ID, CHUNKS);
  await seal(sharedOver(0), ID);
});

afterAll(async () => {
  for (const open of connections) await open.close();
});

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "close-session-"));
});

afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

function connection(at: number): MongoConnection {
  const found = connections[at];
  if (found === undefined) throw new Error("not connected");
  return found;
}

/** What a worker with a connection of its own shares with the others. */
function sharedOver(at: number, others: Partial<Shared> = {}): Shared {
  return {
    ...mongoStores(connection(at)),
    sessions: new MongoSessionStore(connection(at)),
    manifests: new MongoManifestStore(connection(at)),
    files: createManifestFiles(directory ?? "/nonexistent"),
    events: new MemoryEventPublisher(),
    engine: new MemoryAnchoringEngine(),
    clock: new ManualClock(),
    ...others,
  };
}

function twoWorkersWorth(): readonly [Shared, Shared] {
  const first = sharedOver(0);
  const { events, engine, clock } = first;
  return [first, sharedOver(1, { events, engine, clock })];
}

function read(name: string): string {
  return readFileSync(join(directory, name), "utf8");
}

function expectVerifiable(session: SessionId, chunks: number): void {
  const names = namesOf(session);
  const verdict = verifyManifest(read(names.manifest), [PINNED_KEY]);
  if (!verdict.ok) throw new Error(verdict.detail);
  const verifier = new ChunksFileVerifier(verdict.manifest);
  expect(verifier.add(readFileSync(join(directory, names.chunks)))).toHaveLength(chunks);
  verifier.finish();
  const key = checkpointVerifierKey(session, "blake3", PINNED_KEY);
  expect(verifyCheckpoint(read(names.checkpoint), session, [key])).toMatchObject({ ok: true });
}

async function smallSession(name: string): Promise<SessionId> {
  const id = servers.sessionId(name) as SessionId;
  await grow(sharedOver(0), id, 4);
  await seal(sharedOver(0), id);
  return id;
}

/** The same session in memory: what is sealed is the same, so every byte must be. */
async function filesOfUndisturbedRun(id: SessionId): Promise<ReadonlyMap<string, Uint8Array>> {
  const shared = sharedInMemory();
  await grow(shared, id, 4);
  await seal(shared, id);
  await startWorker(shared, { engine: null }).drive(id);
  return shared.files.files;
}

describe("closing a session over MongoDB and a real folder", () => {
  test("two workers at once leave one manifest, four whole files and nothing else", async () => {
    const [one, two] = twoWorkersWorth();
    const [first, second] = [startWorker(one), startWorker(two)];
    await Promise.all([first.close(ID), second.close(ID)]);
    await first.drive(ID, SWEEPS_MAX);
    expect(await recordOf(two, ID)).toMatchObject({
      state: "anchored",
      anchor: { status: "confirmed", transaction: `tx-${ID}`, block: 7 },
      closed: true,
    });
    expect(readdirSync(directory).sort()).toEqual(Object.values(namesOf(ID)).map(String).sort());
    expectVerifiable(ID, CHUNKS);
    expect(await two.manifests.find(manifestIdOf(ID))).toMatchObject({
      status: "anchored",
      text: read(namesOf(ID).manifest),
    });
    expect(one.engine.roots.size).toBe(1);
    expect(new Set(one.engine.posts.map(({ key }) => key)).size).toBe(1);
    expect(one.events.waiting("storage-events").map(({ event_id }) => event_id)).toEqual([
      `session.sealed.${ID}`,
      `session.anchored.${ID}`,
    ]);
  });

  test("each file becomes visible whole, after its last block, and the manifest is the last", async () => {
    const id = await smallSession("watched");
    const names = namesOf(id);
    const folder = createManifestFiles(directory);
    const visible = (): readonly string[] => readdirSync(directory).filter((name) => !name.startsWith("."));
    const sights: (readonly string[])[] = [];
    const files: ManifestFiles = {
      async write(name, content) {
        async function* watched(): AsyncGenerator<Uint8Array> {
          const blocks = content instanceof Uint8Array ? [content] : content;
          for await (const block of blocks) {
            yield block;
            expect(visible()).not.toContain(name);
          }
        }
        const outcome = await folder.write(name, watched());
        sights.push(visible());
        return outcome;
      },
    };
    await startWorker(sharedOver(0, { files }), { engine: null }).drive(id);
    expect(sights.map((seen) => [...seen].sort())).toEqual([
      [names.chunks],
      [names.checkpoint, names.chunks].sort(),
      [names.checkpoint, names.chunks, names.manifest].sort(),
    ]);
    expectVerifiable(id, 4);
  });

  test("a worker that dies at any file or manifest call is followed by one that leaves the bytes of an undisturbed run", async () => {
    const cleanWorker = startWorker(sharedOver(0), { engine: null });
    await cleanWorker.drive(await smallSession("clean"));
    const { calls } = cleanWorker.lifeline;
    const deaths = calls.flatMap((name, atCall) => (/^(files|manifests)\./.test(name) ? [atCall] : []));
    expect(deaths).toHaveLength(7);
    for (const [at, atCall] of deaths.entries()) {
      for (const when of ["before", "after"] as const) {
        const id = await smallSession(`died-${at}-${when}`);
        const lifeline = new Lifeline({ atCall, when, of: "process" });
        const [one, two] = twoWorkersWorth();
        await expect(startWorker(one, { lifeline, engine: null }).drive(id)).rejects.toThrow(Died);
        await startWorker(two, { engine: null }).drive(id);
        const undisturbed = await filesOfUndisturbedRun(id);
        expect([...undisturbed.keys()]).toHaveLength(3);
        for (const [name, bytes] of undisturbed) expect(read(name)).toBe(Buffer.from(bytes).toString("utf8"));
        expect((await two.manifests.find(manifestIdOf(id)))?.text).toBe(read(namesOf(id).manifest));
        expect(readdirSync(directory).filter((name) => name.startsWith("."))).toEqual([]);
      }
    }
  });

  test("a folder that isn't mounted is an error with its reason, and heals when it is there", async () => {
    const id = await smallSession("unmounted");
    const missing = join(directory, "volume");
    const shared = sharedOver(0, { files: createManifestFiles(missing) });
    const worker = startWorker(shared, { engine: null });
    await worker.close(id).catch(() => undefined);
    expect(await shared.manifests.find(manifestIdOf(id))).toMatchObject({
      status: "error",
      reason: expect.stringMatching(/^MANIFEST_DIRECTORY_UNUSABLE: .*is missing/) as string,
    });
    expect(reported(worker, "manifest-failed")).toHaveLength(1);
    mkdirSync(missing);
    expect((await worker.drive(id)).closed).toBe(true);
    expect(await shared.manifests.find(manifestIdOf(id))).toMatchObject({
      status: "generated",
      reason: undefined,
    });
    expect(readdirSync(missing)).toHaveLength(3);
  });

  test("a folder without write access is an error with its reason, and heals", async (ctx) => {
    ctx.skip(process.getuid?.() === 0, "root may write into any folder");
    const id = await smallSession("locked");
    const shared = sharedOver(0);
    const worker = startWorker(shared, { engine: null });
    chmodSync(directory, 0o555);
    await worker.close(id).catch(() => undefined);
    chmodSync(directory, 0o755);
    expect(await shared.manifests.find(manifestIdOf(id))).toMatchObject({
      status: "error",
      reason: expect.stringMatching(/^MANIFEST_DIRECTORY_UNUSABLE: .*may not be written/) as string,
    });
    expect((await worker.drive(id)).closed).toBe(true);
    expectVerifiable(id, 4);
  });

  test("other bytes under the manifest's name stay, and are an error with its reason", async () => {
    const id = await smallSession("taken");
    const shared = sharedOver(0);
    const worker = startWorker(shared, { engine: null });
    writeFileSync(join(directory, namesOf(id).manifest), "somebody else's");
    await worker.close(id).catch(() => undefined);
    expect(read(namesOf(id).manifest)).toBe("somebody else's");
    expect(await shared.manifests.find(manifestIdOf(id))).toMatchObject({
      status: "error",
      reason: expect.stringMatching(/^MANIFEST_INVALID: /) as string,
    });
    expect((await recordOf(shared, id)).closed).toBe(false);
    expect(reported(worker, "manifest-failed")[0]?.code).toBe("MANIFEST_INVALID");
  });
});
