import { describe, expect, test } from "vitest";
import { type KeyRing, singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { isKekOf, makeKekCheck } from "../../src/core/encrypt/kek-check.ts";
import { makeSessionSecret, wrapSecret } from "../../src/core/encrypt/session-secret.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { adoptKeyRing, checkKeyRing } from "../../src/pipeline/check-key-ring.ts";
import { MemoryServiceStateStore } from "../support/memory/service-state-store.ts";
import { MemorySessionStore } from "../support/memory/session-store.ts";
import { seededRandom } from "../support/seeded-random.ts";

const seeded = seededRandom(3);
const random = (length: number): Uint8Array => seeded.bytes(length);
const RIGHT = singleKeyRing("d5Yt0pMZ3kQm8sVx2bHc7nRw4jLf9gTa");
const WRONG = singleKeyRing("another key, of which nothing here was made 8Qz");
/** The keys by version; the last is the active one. */
function ringOf(...keys: readonly (readonly [version: number, of: KeyRing])[]): KeyRing {
  return {
    activeVersion: keys.at(-1)?.[0] ?? 1,
    kek(version) {
      const found = keys.find(([held]) => held === version);
      if (found === undefined) throw new LucidError("KEK_UNKNOWN", "not in this ring");
      return found[1].kek(1);
    },
  };
}
const SECOND = singleKeyRing("the next k3y of this installation 777, uQ");
const OTHER_SECOND = singleKeyRing("the next k3y of an0ther installation 5, vW");
const MISMATCH = expect.objectContaining({ code: "KEK_MISMATCH" });

function database() {
  const serviceState = new MemoryServiceStateStore();
  const sessions = new MemorySessionStore();
  const ports = { serviceState, sessions, random };
  return {
    serviceState,
    sessions,
    check: (ring: KeyRing) => checkKeyRing(ports, ring),
    adopt: (ring: KeyRing) => adoptKeyRing(ports, ring),
    addSession: async (name: string, ring: KeyRing, { damaged = false } = {}): Promise<void> => {
      const id = name as SessionId;
      const place = { kek: ring.kek(1), sessionId: id, keyVersion: 1 };
      const wrapped = wrapSecret(makeSessionSecret(random), place, random);
      if (damaged) wrapped[20] = (wrapped[20] ?? 0) ^ 1;
      const key = { keyVersion: 1, kekVersion: 1, wrapped };
      await sessions.create({ id, hashAlgorithm: "blake3", key, createdAt: new Date(0) });
    },
  };
}

describe("a check value", () => {
  const kek = RIGHT.kek(1);

  test("fits its own key and version, and nothing else", () => {
    const check = makeKekCheck(kek, 1, random);
    expect(isKekOf(check, kek, 1)).toBe(true);
    expect(isKekOf(check, WRONG.kek(1), 1)).toBe(false);
    expect(isKekOf(check, kek, 2)).toBe(false);
    for (const text of ["", "AAAA", check.slice(4), `${check}AAAA`, check.replace(/.$/, "")])
      expect(isKekOf(text, kek, 1)).toBe(false);
  });

  test("is another one each time, so that nobody sees that two databases have one key", () => {
    expect(makeKekCheck(kek, 1, random)).not.toBe(makeKekCheck(kek, 1, random));
  });
});

describe("the key of a database", () => {
  test("is the first that an empty one sees, from then on", async () => {
    const { check, serviceState } = database();
    await check(RIGHT);
    const claimed = await serviceState.kekChecks();
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
    await check(RIGHT);
    expect(await serviceState.kekChecks()).toEqual(claimed);
  });

  test("is that of the sessions where there is no check value yet", async () => {
    const { check, addSession, serviceState } = database();
    await addSession("sess-1", RIGHT, { damaged: true });
    await addSession("sess-2", RIGHT);
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
    expect(await serviceState.kekChecks()).toEqual(new Map());
    await check(RIGHT);
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
  });

  test("is not put in question by sessions whose secrets are damaged", async () => {
    const { check, addSession } = database();
    await check(RIGHT);
    for (let n = 0; n < 40; n++) await addSession(`sess-${n}`, RIGHT, { damaged: true });
    await expect(check(RIGHT)).resolves.toEqual({ opened: 0, unopened: 0 });
  });

  test("is that of the newest sessions, and not of those whose ids come first", async () => {
    const { check, addSession, serviceState } = database();
    for (let n = 100; n < 132; n++) await addSession(`sess-2025-${n}`, WRONG);
    for (let n = 100; n < 600; n++) await addSession(`sess-2026-${n}`, RIGHT);
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
    expect(await serviceState.kekChecks()).toEqual(new Map());
    expect(await check(RIGHT)).toEqual({ opened: 256, unopened: 0 });
  });

  test("is accepted with a word where the newest sessions have several", async () => {
    const { check, addSession } = database();
    for (let n = 0; n < 200; n++) await addSession(`sess-a${n}`, RIGHT);
    for (let n = 0; n < 40; n++) await addSession(`sess-b${n}`, WRONG);
    expect(await check(RIGHT)).toEqual({ opened: 200, unopened: 40 });
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
  });

  test("is what an operator says it is, also against the check value and the sessions", async () => {
    const { check, adopt, addSession } = database();
    await check(WRONG);
    for (let n = 0; n < 3; n++) await addSession(`sess-${n}`, RIGHT, { damaged: n > 0 });
    await expect(check(RIGHT)).rejects.toEqual(MISMATCH);
    expect(await adopt(RIGHT)).toEqual({ opened: 1, unopened: 2 });
    await check(RIGHT);
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
  });

  test("is left to the operator where no secret of the newest sessions opens, and the refusal says so", async () => {
    const { check, adopt, addSession } = database();
    for (let n = 0; n < 3; n++) await addSession(`sess-${n}`, RIGHT, { damaged: true });
    await expect(check(RIGHT)).rejects.toMatchObject({ message: expect.stringContaining("keys adopt") });
    await adopt(RIGHT);
    await check(RIGHT);
  });

  test("is not put in question by sessions that can't be read", async () => {
    const { check, addSession, sessions } = database();
    for (const name of ["sess-a", "sess-b"]) await addSession(name, RIGHT);
    const find = sessions.find.bind(sessions);
    sessions.find = (id) =>
      id === "sess-a" ? Promise.reject(new LucidError("DOCUMENT_UNREADABLE", "a newer version's")) : find(id);
    await expect(check(WRONG)).rejects.toEqual(MISMATCH);
    await check(RIGHT);
  });

  test("of two processes that come to an empty database at once, one is refused", async () => {
    const { check } = database();
    const outcomes = await Promise.allSettled([check(RIGHT), check(WRONG)]);
    expect(outcomes.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
  });

  test("is never in the words of the refusal", async () => {
    const { check } = database();
    await check(RIGHT);
    const refusal = await check(WRONG).catch((thrown: unknown) => thrown as Error);
    expect(refusal).toMatchObject({ message: expect.stringContaining("ENCRYPTION_KEY") });
    expect(JSON.stringify(refusal)).not.toContain("another key,");
  });
});

describe("a ring of several keys", () => {
  test("brings a new version to a database that is its own, and is then what counts", async () => {
    const { check, addSession, serviceState } = database();
    await check(RIGHT);
    for (let n = 0; n < 20; n++) await addSession(`sess-${n}`, RIGHT);
    await check(ringOf([1, RIGHT], [2, SECOND]));
    expect([...(await serviceState.kekChecks()).keys()]).toEqual([1, 2]);
    await expect(check(ringOf([1, RIGHT], [2, OTHER_SECOND]))).rejects.toEqual(MISMATCH);
    // Before and after everybody has both.
    await check(RIGHT);
    await check(ringOf([2, SECOND]));
  });

  test.each([
    ["all of them wrong", ringOf([1, WRONG], [2, OTHER_SECOND])],
    ["the active one alone", ringOf([2, OTHER_SECOND])],
    ["an earlier one wrong", ringOf([1, WRONG], [2, SECOND])],
  ])("with %s is refused where another key is known, and claims nothing", async (_what, ring) => {
    const { check, addSession, serviceState } = database();
    await check(RIGHT);
    for (let n = 0; n < 20; n++) await addSession(`sess-${n}`, RIGHT);
    const before = await serviceState.kekChecks();
    await expect(check(ring)).rejects.toEqual(MISMATCH);
    expect(await serviceState.kekChecks()).toEqual(before);
    await check(ringOf([1, RIGHT], [2, SECOND]));
  });

  test("is an operator's to adopt as a whole", async () => {
    const { check, adopt } = database();
    await check(WRONG);
    const ring = ringOf([1, RIGHT], [2, SECOND]);
    await expect(check(ring)).rejects.toEqual(MISMATCH);
    await adopt(ring);
    await check(ring);
    await check(RIGHT);
  });

  test("is measured by all sessions that it has a key for, where nothing is known yet", async () => {
    const { check, addSession, serviceState } = database();
    await addSession("sess-1", RIGHT);
    await expect(check(ringOf([1, WRONG], [2, OTHER_SECOND]))).rejects.toEqual(MISMATCH);
    expect(await serviceState.kekChecks()).toEqual(new Map());
    await check(ringOf([1, RIGHT], [2, SECOND]));
  });

  test("of two that come to an empty database at once, with versions of their own, one at least is refused", async () => {
    const { check } = database();
    const outcomes = await Promise.allSettled([
      check(ringOf([1, RIGHT], [2, SECOND])),
      check(ringOf([1, WRONG])),
    ]);
    expect(outcomes.some(({ status }) => status === "rejected")).toBe(true);
  });
});
