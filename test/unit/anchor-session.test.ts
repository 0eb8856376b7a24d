import { describe, expect, test } from "vitest";
import { asBuffer, toHex } from "../../src/core/bytes.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { verifyAnchorFile } from "../../src/core/manifest/anchor-file.ts";
import { verifyManifest } from "../../src/core/manifest/sign.ts";
import { AnchorClaims } from "../../src/pipeline/anchor-session.ts";
import type { AnchoringEngine } from "../../src/pipeline/anchoring-engine.ts";
import { closeSession } from "../../src/pipeline/close-session.ts";
import type { EventPublisher } from "../../src/pipeline/ports.ts";
import { eventSchema, type LucidEvent } from "../../src/schema/event.ts";
import {
  grow,
  manifestIdOf,
  type MemoryShared,
  namesOf,
  PINNED_KEY,
  recordOf,
  reported,
  seal,
  sharedInMemory,
  startWorker,
  SWEEP_MS,
  TAKE_OVER_MS,
  type Worker,
} from "../support/closing-world.ts";
import { type Death, Lifeline } from "../support/lifeline.ts";
import { ManualClock } from "../support/manual-clock.ts";
import type { MemoryEventPublisher } from "../support/memory/event-publisher.ts";
import { bytesOf } from "../support/memory/records.ts";

const ID = "sess-anchor" as SessionId;
const NAMES = namesOf(ID);
const CHUNKS = 3;
const HOUR_MS = 3_600_000;
const down = new LucidError("SERVICE_UNAVAILABLE", "the blockchain engine doesn't answer");
const garbage = new LucidError("SERVICE_ANSWER_INVALID", "the blockchain engine answers with something else");
const refusal = new LucidError("SERVICE_REJECTED", "the blockchain engine refuses");

async function sealedSession(
  id: SessionId = ID,
  shared: MemoryShared = sharedInMemory(),
): Promise<MemoryShared> {
  await grow(shared, id, CHUNKS);
  await seal(shared, id, {
    manifestType: "session_recording",
    ownerAddress: "TOwner",
    metadata: '{"room":"12"}',
  });
  return shared;
}

function anchorEvents({ events }: MemoryShared): readonly LucidEvent[] {
  return events.waiting("storage-events").filter(({ type }) => type === "session.anchored");
}

function expectAnchoredOnce(shared: MemoryShared, what = ""): void {
  expect(shared.engine.roots.size, what).toBe(1);
  expect(new Set(shared.engine.posts.map(({ key }) => key)).size, what).toBe(1);
  expect(anchorEvents(shared), what).toHaveLength(1);
}

async function sweepFor(worker: Worker, clock: ManualClock, ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += SWEEP_MS) {
    await worker.sweep();
    clock.advance(SWEEP_MS);
  }
}

describe("anchorSession", () => {
  test("claims, submits, polls until confirmed, writes the anchor file, announces, closes", async () => {
    const shared = await sealedSession();
    const worker = startWorker(shared);
    await worker.close(ID);
    expect((await recordOf(shared, ID)).anchor).toMatchObject({
      status: "submitted",
      anchoringId: "anchoring-1",
    });
    expect((await shared.manifests.find(manifestIdOf(ID)))?.status).toBe("generated");
    await worker.close(ID);
    expect(await recordOf(shared, ID)).toMatchObject({ state: "sealed", closed: false });
    expect(shared.files.files.has(NAMES.anchor)).toBe(false);

    const at = shared.clock.now();
    await worker.close(ID);
    expect(await recordOf(shared, ID)).toMatchObject({
      state: "anchored",
      anchor: { status: "confirmed", transaction: `tx-${ID}`, block: 7, anchoredAt: at },
      anchoredEvent: "sent",
      closed: false,
    });
    await worker.close(ID);
    expect(await recordOf(shared, ID)).toMatchObject({ state: "anchored", closed: true });
    expect((await shared.manifests.find(manifestIdOf(ID)))?.status).toBe("anchored");
    expect(shared.engine.posts).toHaveLength(1);
    expect(reported(worker, "session-anchored")).toHaveLength(1);
  });

  test("submits what contract §9 says, under the key of (session, size, root)", async () => {
    const shared = await sealedSession();
    await startWorker(shared).close(ID);
    const { tree, sealedAt } = await recordOf(shared, ID);
    const root = toHex(tree.root ?? new Uint8Array());
    const text = (await shared.manifests.find(manifestIdOf(ID)))?.text ?? "";
    expect(shared.engine.posts).toEqual([
      {
        key: `${ID}.${CHUNKS}.${root}`,
        request: {
          sessionId: ID,
          merkleRoot: root,
          chunkCount: CHUNKS,
          timestamp: sealedAt?.toISOString(),
          manifestData: JSON.parse(text) as unknown,
          metadata: { room: "12" },
        },
      },
    ]);
  });

  test("writes an anchor file that verifies against the manifest", async () => {
    const shared = await sealedSession();
    await startWorker(shared).drive(ID);
    const bytes = shared.files.files.get(NAMES.anchor) ?? new Uint8Array();
    const manifest = verifyManifest(shared.files.files.get(NAMES.manifest) ?? "", [PINNED_KEY]);
    if (!manifest.ok) throw new Error(manifest.detail);
    expect(verifyAnchorFile(bytes, manifest.manifest)).toMatchObject({
      ok: true,
      anchor: { anchoring_id: "anchoring-1", transaction: `tx-${ID}`, block: 7 },
    });
  });

  test("announces with a deterministic id, and with facts of the schema", async () => {
    const shared = await sealedSession();
    await startWorker(shared).drive(ID);
    const [event] = anchorEvents(shared);
    expect(eventSchema.parse(event)).toEqual(event);
    expect(event).toMatchObject({
      event_id: `session.anchored.${ID}`,
      tree_size: CHUNKS,
      transaction: `tx-${ID}`,
      block: 7,
      anchoring_id: "anchoring-1",
    });
  });

  test("takes an answer to the POST that is confirmed already", async () => {
    const shared = await sealedSession();
    const engine: AnchoringEngine = {
      submit: async () => ({ kind: "confirmed", transaction: "t-at-once" }),
      status: () => Promise.reject(new Error("nobody has to ask")),
    };
    expect(await startWorker(shared, { engine }).drive(ID, 2)).toMatchObject({
      state: "anchored",
      anchor: { transaction: "t-at-once" },
      closed: true,
    });
  });

  test("takes a confirmation of an engine that doesn't name the root, and one without a block", async () => {
    const shared = await sealedSession();
    const engine: AnchoringEngine = {
      submit: (request, key) => shared.engine.submit(request, key),
      status: async () => ({ kind: "confirmed", transaction: "t" }),
    };
    const record = await startWorker(shared, { engine }).drive(ID);
    expect(record).toMatchObject({ state: "anchored", closed: true });
    expect(record.anchor?.block).toBeUndefined();
  });

  test.each(["poll", "POST"])("takes no confirmation of another root for its own (%s)", async (where) => {
    const shared = await sealedSession();
    const confirmed = { kind: "confirmed", transaction: "t", merkleRoot: "ab".repeat(32) } as const;
    const engine: AnchoringEngine = {
      submit: async (request, key) => (where === "POST" ? confirmed : shared.engine.submit(request, key)),
      status: async () => (where === "poll" ? confirmed : { kind: "unknown" }),
    };
    const worker = startWorker(shared, { engine });
    await worker.drive(ID, 8);
    expect(await recordOf(shared, ID)).toMatchObject({ state: "sealed", closed: false });
    expect(reported(worker, "anchor-delayed").map(({ code }) => code)).toContain("SERVICE_REJECTED");
    expect(shared.files.files.has(NAMES.anchor)).toBe(false);
  });
});

describe("an engine that is away", () => {
  test.each([down, garbage])("for hours delays `anchored` and nothing else (%s)", async (outage) => {
    const shared = await sealedSession();
    const worker = startWorker(shared);
    shared.engine.outage = outage;
    await sweepFor(worker, shared.clock, 4 * HOUR_MS);
    expect(await recordOf(shared, ID)).toMatchObject({ state: "sealed", sealedEvent: "sent", closed: false });
    expect((await shared.manifests.find(manifestIdOf(ID)))?.status).toBe("generated");
    expect(shared.files.files.has(NAMES.manifest)).toBe(true);
    const delays = reported(worker, "anchor-delayed");
    expect(delays.length).toBeGreaterThan(100);
    expect(new Set(delays.map(({ code }) => code))).toEqual(new Set([outage.code]));
    expect(reported(worker, "session-stuck")).toHaveLength(0);
    const unanchored = reported(worker, "unanchored").at(-1);
    expect(unanchored).toMatchObject({ sessions: 1 });
    // The clock also moves while the event of the seal waits for its mark.
    expect(Math.abs((unanchored?.oldestSeconds ?? 0) - (4 * HOUR_MS - SWEEP_MS) / 1000)).toBeLessThan(3);

    shared.engine.outage = undefined;
    await sweepFor(worker, shared.clock, 2 * TAKE_OVER_MS);
    expect(await recordOf(shared, ID)).toMatchObject({ state: "anchored", closed: true });
    expectAnchoredOnce(shared);
    expect(reported(worker, "unanchored").at(-1)).toMatchObject({ sessions: 0, oldestSeconds: 0 });
  });

  test("is asked once and then left alone for a while, however many sessions wait", async () => {
    const shared = sharedInMemory();
    const ids = Array.from({ length: 40 }, (_, at) => `sess-${100 + at}` as SessionId);
    for (const id of ids) await announcedSession(shared, id);
    shared.engine.outage = down;
    const worker = startWorker(shared);
    await worker.sweep();
    // By those that are swept side by side.
    const { calls } = shared.engine;
    expect(calls).toBeLessThanOrEqual(16);
    await worker.sweep();
    expect(shared.engine.calls).toBe(calls);
    for (const id of ids) {
      expect((await shared.manifests.find(manifestIdOf(id)))?.status).toBe("generated");
    }
    shared.engine.outage = undefined;
    await sweepFor(worker, shared.clock, 2 * TAKE_OVER_MS);
    for (const id of ids) expect((await recordOf(shared, id)).closed).toBe(true);
    expect(shared.engine.roots.size).toBe(ids.length);
    expect(shared.engine.posts).toHaveLength(ids.length);
  });

  test.each(["submit", "status"])("and hangs is let go of at a shutdown (%s)", async (hangs) => {
    const shared = await sealedSession();
    if (hangs === "status") await startWorker(shared).close(ID);
    const reached = Promise.withResolvers<string>();
    const hanging = (call: string, signal: AbortSignal | undefined): Promise<never> => {
      reached.resolve(call);
      return new Promise((_, reject) => {
        signal?.addEventListener("abort", () => reject(new LucidError("SHUTTING_DOWN", "stopped")));
      });
    };
    const engine: AnchoringEngine = {
      submit: (_request, _key, signal) => hanging("submit", signal),
      status: (_session, signal) => hanging("status", signal),
    };
    const stop = new AbortController();
    const closing = closeSession(startWorker(shared, { engine }).ports, ID, stop.signal);
    expect(await reached.promise).toBe(hangs);
    stop.abort();
    await expect(closing).rejects.toMatchObject({ code: "SHUTTING_DOWN" });
  });
});

describe("an engine that refuses", () => {
  test("is reported each time and asked again, until it takes the session", async () => {
    const shared = await sealedSession();
    const worker = startWorker(shared);
    shared.engine.refusal = refusal;
    for (let sweep = 1; sweep <= 3; sweep++) {
      await worker.sweep();
      shared.clock.advance(SWEEP_MS);
      expect(reported(worker, "anchor-delayed")).toHaveLength(sweep);
    }
    expect(shared.engine.posts).toHaveLength(3);
    expect(reported(worker, "anchor-delayed")[0]).toEqual({
      kind: "anchor-delayed",
      sessionId: ID,
      code: "SERVICE_REJECTED",
    });
    expect((await recordOf(shared, ID)).state).toBe("sealed");
    shared.engine.refusal = undefined;
    await sweepFor(worker, shared.clock, TAKE_OVER_MS);
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expectAnchoredOnce(shared);
  });

  test("one session leaves the others their turn", async () => {
    const shared = await sealedSession();
    const other = "sess-zz" as SessionId;
    await sealedSession(other, shared);
    shared.engine.plant(ID, "cd".repeat(32));
    const worker = startWorker(shared);
    await sweepFor(worker, shared.clock, 2 * TAKE_OVER_MS);
    expect((await recordOf(shared, other)).closed).toBe(true);
    expect((await recordOf(shared, ID)).state).toBe("sealed");
    expect(reported(worker, "anchor-delayed").every(({ sessionId }) => sessionId === ID)).toBe(true);
  });
});

describe("an engine that forgets", () => {
  async function submitted() {
    const shared = await sealedSession();
    shared.engine.confirmAfterPolls = 1_000;
    const worker = startWorker(shared);
    await worker.sweep();
    expect((await recordOf(shared, ID)).anchor?.status).toBe("submitted");
    return { shared, worker };
  }

  test("what it had accepted is given it again, once the take-over time has passed and not before", async () => {
    const { shared, worker } = await submitted();
    shared.engine.forget(ID);
    await worker.sweep();
    shared.clock.advance(TAKE_OVER_MS - 1);
    await worker.sweep();
    expect(shared.engine.posts).toHaveLength(1);
    shared.clock.advance(1);
    await worker.sweep();
    expect(shared.engine.posts).toHaveLength(2);
    shared.engine.confirmAfterPolls = 0;
    await sweepFor(worker, shared.clock, TAKE_OVER_MS);
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expectAnchoredOnce(shared);
  });

  test("again and again is given it once in each take-over time, not at each sweep", async () => {
    const { shared, worker } = await submitted();
    for (let time = 1; time <= 3; time++) {
      shared.engine.forget(ID);
      await worker.sweep();
      for (let sweeps = 0; sweeps < 3; sweeps++) {
        shared.clock.advance(SWEEP_MS);
        await worker.sweep();
        expect(shared.engine.posts).toHaveLength(time);
      }
      shared.clock.advance(SWEEP_MS);
      await worker.sweep();
      expect(shared.engine.posts).toHaveLength(time + 1);
    }
    expect(new Set(shared.engine.posts.map(({ key }) => key)).size).toBe(1);
  });

  test("for a moment, and then knows it again, starts the time anew", async () => {
    const { shared } = await submitted();
    const { engine } = shared;
    const blind: AnchoringEngine = {
      submit: (request, key) => engine.submit(request, key),
      status: async (session) => (hidden ? { kind: "unknown" } : engine.status(session)),
    };
    let hidden = true;
    const other = startWorker(shared, { engine: blind });
    await other.sweep();
    hidden = false;
    shared.clock.advance(TAKE_OVER_MS - 1);
    await other.sweep();
    hidden = true;
    shared.clock.advance(1);
    await other.sweep();
    expect(engine.posts).toHaveLength(1);
  });

  test("or whose transaction fails is given it again under the same key", async () => {
    const { shared, worker } = await submitted();
    shared.engine.fail(ID);
    await sweepFor(worker, shared.clock, TAKE_OVER_MS + SWEEP_MS);
    expect(shared.engine.posts).toHaveLength(2);
    shared.engine.confirmAfterPolls = 0;
    await sweepFor(worker, shared.clock, TAKE_OVER_MS);
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expectAnchoredOnce(shared);
  });
});

describe("a claim", () => {
  const dieAt = (name: string, when: Death["when"]) => async (shared: MemoryShared) => {
    const clean = startWorker(await sealedSession());
    await clean.drive(ID);
    const atCall = clean.lifeline.calls.indexOf(name);
    const lifeline = new Lifeline({ atCall, when, of: "process" });
    await expect(startWorker(shared, { lifeline }).drive(ID)).rejects.toThrow("died");
  };

  test("of a worker that died before its POST is taken over after the take-over time", async () => {
    const shared = await sealedSession();
    await dieAt("engine.submit", "before")(shared);
    expect((await recordOf(shared, ID)).anchor?.status).toBe("claimed");
    const worker = startWorker(shared);
    await worker.sweep();
    shared.clock.advance(TAKE_OVER_MS - 1);
    await worker.sweep();
    expect(shared.engine.posts).toHaveLength(0);
    shared.clock.advance(1);
    await worker.sweep();
    expect(shared.engine.posts).toHaveLength(1);
    await worker.drive(ID);
    expectAnchoredOnce(shared);
  });

  test("of a worker that died after its POST is polled by the next one, without another POST", async () => {
    const shared = await sealedSession();
    await dieAt("engine.submit", "after")(shared);
    await startWorker(shared).drive(ID);
    expect((await recordOf(shared, ID)).closed).toBe(true);
    expect(shared.engine.posts).toHaveLength(1);
  });

  test("that is one's own is submitted again at once, when the engine comes back", async () => {
    const shared = await sealedSession();
    const worker = startWorker(shared);
    shared.engine.outage = down;
    await worker.sweep();
    expect((await recordOf(shared, ID)).anchor?.status).toBe("claimed");
    shared.engine.outage = undefined;
    shared.clock.advance(TAKE_OVER_MS / 2);
    await worker.sweep();
    expect(shared.engine.posts).toHaveLength(1);
  });

  test("of a session that is gone from the sweep is forgotten", () => {
    const clock = new ManualClock();
    const claims = new AnchorClaims(clock, (length) => bytesOf(1, length));
    const anchor = { status: "claimed", claim: "other" } as const;
    claims.maySubmit(ID, anchor);
    clock.advance(TAKE_OVER_MS);
    claims.keepOnly(new Set([ID]));
    expect(claims.maySubmit(ID, anchor)).toBe(true);
    claims.keepOnly(new Set());
    expect(claims.maySubmit(ID, anchor)).toBe(false);
  });
});

describe("two workers at once", () => {
  test("anchor once, at every offset, with one report and one kind of event", async () => {
    for (let lead = 0; lead < 40; lead++) {
      const shared = await sealedSession();
      shared.engine.confirmAfterPolls = 2;
      const published: LucidEvent[] = [];
      const events = listeningTo(shared.events, published);
      const [one, two] = [startWorker({ ...shared, events }), startWorker({ ...shared, events })];
      for (let round = 0; round < 12; round++) {
        const first = one.close(ID);
        for (let turn = 0; turn < lead; turn++) await Promise.resolve();
        await Promise.all([first, two.close(ID)]);
        shared.clock.advance(SWEEP_MS);
      }
      expect(await recordOf(shared, ID), `lead ${lead}`).toMatchObject({ state: "anchored", closed: true });
      expectAnchoredOnce(shared, `lead ${lead}`);
      const reports = [one, two].flatMap((worker) => reported(worker, "session-anchored"));
      expect(reports, `lead ${lead}`).toHaveLength(1);
      const anchored = published.filter(({ type }) => type === "session.anchored");
      for (const event of anchored) expect(event).toEqual(anchored[0]);
    }
  });
});

describe("session.anchored", () => {
  test("is told again after a crash before its mark, with the same id and the same facts", async () => {
    const clean = startWorker(await sealedSession());
    await clean.drive(ID);
    const mark = clean.lifeline.calls.lastIndexOf("events.publish");
    const shared = await sealedSession();
    const published: LucidEvent[] = [];
    const events = listeningTo(shared.events, published);
    const lifeline = new Lifeline({ atCall: mark, when: "after", of: "process" });
    await expect(startWorker({ ...shared, events }, { lifeline }).drive(ID)).rejects.toThrow("died");
    expect(await recordOf(shared, ID)).toMatchObject({ state: "anchored", anchoredEvent: "pending" });
    shared.clock.advance(HOUR_MS);
    await startWorker({ ...shared, events }).drive(ID);
    const [first, second, ...more] = published.filter(({ type }) => type === "session.anchored");
    expect(more).toEqual([]);
    expect(second).toEqual(first);
    expect(anchorEvents(shared)).toHaveLength(1);
    expect((await recordOf(shared, ID)).closed).toBe(true);
  });

  test("reaches a queue that has lost its data since the crash", async () => {
    const clean = startWorker(await sealedSession());
    await clean.drive(ID);
    const mark = clean.lifeline.calls.lastIndexOf("events.publish");
    const shared = await sealedSession();
    const lifeline = new Lifeline({ atCall: mark, when: "after", of: "process" });
    await expect(startWorker(shared, { lifeline }).drive(ID)).rejects.toThrow("died");
    shared.events.lose("storage-events");
    await startWorker(shared).drive(ID);
    expect(anchorEvents(shared)).toHaveLength(1);
  });
});

/** Sealed, and its event is marked: then the clock doesn't move while a mark waits. */
async function announcedSession(shared: MemoryShared, id: SessionId): Promise<void> {
  await sealedSession(id, shared);
  const { version } = await recordOf(shared, id);
  await shared.sessions.replace(id, version, { kind: "sealed-event-sent" });
}

/** Everything that is published, also what the queue drops as a repeat. */
function listeningTo(queue: MemoryEventPublisher, published: LucidEvent[]): MemoryEventPublisher {
  const publish: EventPublisher["publish"] = async (event) => {
    published.push(event);
    await queue.publish(event);
  };
  return new Proxy(queue, {
    get: (target, name) => {
      if (name === "publish") return publish;
      const member: unknown = Reflect.get(target, name, target);
      return typeof member === "function" ? member.bind(target) : member;
    },
  });
}

describe("the count of sessions that wait for their anchor", () => {
  test("covers all pages of a sweep, and says since when the oldest has been seen", async () => {
    const shared = sharedInMemory();
    const ids = Array.from({ length: 230 }, (_, at) => `sess-${1000 + at}` as SessionId);
    for (const id of ids.slice(0, 1)) await announcedSession(shared, id);
    shared.engine.confirmAfterPolls = 1_000_000;
    const worker = startWorker(shared);
    await worker.sweep();
    expect(reported(worker, "unanchored")).toEqual([{ kind: "unanchored", sessions: 1, oldestSeconds: 0 }]);
    for (const id of ids.slice(1)) await announcedSession(shared, id);
    await grow(shared, "sess-open" as SessionId, 2);
    shared.clock.advance(40_000);
    shared.clock.stepWall(-HOUR_MS);
    await worker.sweep();
    expect(reported(worker, "unanchored").at(-1)).toEqual({
      kind: "unanchored",
      sessions: ids.length,
      oldestSeconds: 40,
    });
    shared.engine.confirmAfterPolls = 0;
    await worker.sweep();
    expect(reported(worker, "unanchored").at(-1)).toEqual({
      kind: "unanchored",
      sessions: 0,
      oldestSeconds: 0,
    });
  });

  test("is told once a full pass, also when that takes several sweeps", async () => {
    const shared = sharedInMemory();
    for (let at = 0; at < 2_050; at++) await grow(shared, `open-${10_000 + at}` as SessionId, 0);
    await sealedSession("a-first" as SessionId, shared);
    await sealedSession("z-last" as SessionId, shared);
    shared.engine.outage = down;
    const worker = startWorker(shared);
    await worker.sweep();
    expect(reported(worker, "unanchored")).toEqual([]);
    await worker.sweep();
    expect(reported(worker, "unanchored")).toMatchObject([{ sessions: 2 }]);
  });

  test("counts a session whose manifest fails too, and none without an engine or a key", async () => {
    const shared = await sealedSession();
    shared.files.files.set(NAMES.chunks, bytesOf(1, 3));
    const failing = startWorker(shared);
    await failing.sweep();
    expect(reported(failing, "unanchored")).toMatchObject([{ sessions: 1 }]);
    for (const option of [{ engine: null }, { signingKey: null }]) {
      const worker = startWorker(await sealedSession(), option);
      await worker.sweep();
      expect(reported(worker, "unanchored")).toEqual([]);
    }
  });
});

describe("the manifest's file", () => {
  test("holds the very text that was submitted", async () => {
    const shared = await sealedSession();
    await startWorker(shared).drive(ID);
    const file = asBuffer(shared.files.files.get(NAMES.manifest) ?? new Uint8Array()).toString("utf8");
    expect(JSON.parse(file)).toEqual(shared.engine.posts[0]?.request.manifestData);
  });
});
