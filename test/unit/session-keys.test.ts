import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import type { KernelThreads } from "../../src/pipeline/ports.ts";
import { SessionKeys } from "../../src/pipeline/session-keys.ts";
import type { SessionRecord } from "../../src/schema/record.ts";
import { PipelineStage } from "../support/pipeline-stage.ts";
import { fastKey } from "../support/pipeline-world.ts";
import { seededRandom } from "../support/seeded-random.ts";

const SESSION = "sess-1" as SessionId;
const EPOCH_AGE_MAX_MS = 3_600_000;
const EPOCH_BYTES_MAX = 64 * 2 ** 30;

/** The keys of one process. */
function keysOf(seed: number) {
  const seeded = seededRandom(seed);
  const state = { nowMs: 0, derivations: 0, failNext: false };
  const threads = {
    async deriveKey(password: string, salt: Uint8Array) {
      state.derivations += 1;
      if (state.failNext) {
        state.failNext = false;
        throw new LucidError("THREAD_CRASHED", "crashed");
      }
      return fastKey(password, salt);
    },
  } as KernelThreads;
  const keys = new SessionKeys({
    keyRing: singleKeyRing("d5Yt0pMZ3kQm8sVx2bHc7nRw4jLf9gTa"),
    threads,
    clock: { now: () => new Date(0), monotonicMs: () => state.nowMs, sleep: async () => undefined },
    random: (length) => seeded.bytes(length),
    observer: { report: () => undefined },
    epochAgeMaxMs: EPOCH_AGE_MAX_MS,
  });
  return { keys, state };
}

function recordOf(keys: SessionKeys, session = SESSION): SessionRecord {
  return { id: session, keys: [keys.newSecret(session)] } as unknown as SessionRecord;
}

async function saltOf(keys: SessionKeys, record: SessionRecord, bytes = 1): Promise<string> {
  return toHex((await keys.forSealing(record, bytes)).salt);
}

/** Counted by a process without the test runner's hooks, in which a million promises take ten seconds. */
function chunksOfFirstEpoch(): Promise<number> {
  const program = fileURLToPath(new URL("../support/count-epoch-chunks.ts", import.meta.url));
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [program], (error, stdout) => {
      if (error === null) resolve(Number(stdout));
      else reject(new Error("the count failed", { cause: error }));
    });
  });
}

describe("an epoch", () => {
  test("has one salt and one derivation, and a nonce for each chunk", async () => {
    const { keys, state } = keysOf(1);
    const record = recordOf(keys);
    const all = await Promise.all([1, 2, 3].map(() => keys.forSealing(record, 10)));
    expect(new Set(all.map(({ salt }) => toHex(salt))).size).toBe(1);
    expect(new Set(all.map(({ nonce }) => toHex(nonce))).size).toBe(3);
    expect(state.derivations).toBe(1);
  });

  test("is never shared by two processes or two sessions", async () => {
    const [{ keys: left }, { keys: right }] = [keysOf(1), keysOf(2)];
    const record = recordOf(left);
    const salts = [
      await saltOf(left, record),
      await saltOf(right, record),
      await saltOf(left, recordOf(left, "sess-2" as SessionId)),
    ];
    expect(new Set(salts).size).toBe(3);
  });

  test("ends at its age, and not before", async () => {
    const { keys, state } = keysOf(1);
    const record = recordOf(keys);
    const first = await saltOf(keys, record);
    state.nowMs = EPOCH_AGE_MAX_MS - 1;
    expect(await saltOf(keys, record)).toBe(first);
    state.nowMs = EPOCH_AGE_MAX_MS;
    expect(await saltOf(keys, record)).not.toBe(first);
    expect(state.derivations).toBe(2);
  });

  test("ends at its bytes, and not before", async () => {
    const { keys } = keysOf(1);
    const record = recordOf(keys);
    const first = await saltOf(keys, record, EPOCH_BYTES_MAX - 1);
    expect(await saltOf(keys, record, 1)).toBe(first);
    expect(await saltOf(keys, record, 1)).not.toBe(first);
  });

  test("ends at 2^20 chunks, and not before", async () => {
    expect(await chunksOfFirstEpoch()).toBe(2 ** 20);
  });

  test("whose derivation failed is not kept", async () => {
    const { keys, state } = keysOf(1);
    const record = recordOf(keys);
    state.failNext = true;
    await expect(keys.forSealing(record, 1)).rejects.toMatchObject({ code: "THREAD_CRASHED" });
    await expect(keys.forSealing(record, 1)).resolves.toMatchObject({ keyVersion: 1, kekVersion: 1 });
  });
});

test("a session without a secret takes no chunk and answers for none", async () => {
  const { keys } = keysOf(1);
  const shredded = { id: SESSION, keys: [] } as unknown as SessionRecord;
  await expect(keys.forSealing(shredded, 1)).rejects.toMatchObject({ code: "SECRET_UNWRAP_FAILED" });
  expect(() => keys.plainMacKey(shredded, 1)).toThrow(
    expect.objectContaining({ code: "SECRET_UNWRAP_FAILED" }),
  );
});

describe("the session directory", () => {
  test("reads an open session once in a second, and then again", async () => {
    const stage = new PipelineStage();
    await stage.process(stage.chunkJob(0));
    const read = stage.count("sessions.find");
    await stage.process(stage.chunkJob(0));
    const perRepeat = stage.count("sessions.find") - read;
    await stage.wait(1_001);
    await stage.process(stage.chunkJob(0));
    expect(stage.count("sessions.find") - read).toBe(2 * perRepeat + 1);
  });

  test("two workers that begin a session at once agree on one secret", async () => {
    const stage = new PipelineStage(2);
    const never = new AbortController().signal;
    const both = [0, 1].map((at) => stage.worker(at).pipeline.processChunk(stage.chunkJob(at), never));
    await stage.run(Promise.all(both));
    expect(stage.count("sessions.create")).toBe(2);
    expect((await stage.record())?.keys).toHaveLength(1);
    // Each repeats the other's chunk: under another secret it would take it for another one.
    await stage.process(stage.chunkJob(0), stage.worker(1));
    await stage.process(stage.chunkJob(1), stage.worker(0));
    expect(await stage.record()).toMatchObject({ tree: { size: 2 } });
  });
});
