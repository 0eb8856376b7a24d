import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import {
  CpuThreads,
  type CpuThreadsEvent,
  type CpuThreadsOptions,
} from "../../src/adapters/threads/cpu-threads.ts";
import { CpuThread } from "../../src/adapters/threads/cpu-thread.ts";
import { asBuffer, toHex } from "../../src/core/bytes.ts";
import { deriveKey } from "../../src/core/encrypt/derive.ts";
import { LucidError } from "../../src/core/errors.ts";
import { canonicalChunkId, leafIndex, sessionId } from "../../src/core/ids.ts";
import { type OpenRequest, type SealedChunk, type SealRequest, sealChunk } from "../../src/core/kernel.ts";

const POISON_URL = new URL("../support/poison-kernel.ts", import.meta.url);
const STILLBORN_URL = new URL("../support/stillborn-kernel.ts", import.meta.url);
const PATIENCE_MS = 20_000;

const salt = new Uint8Array(32).fill(2);
const session = sessionId("sess-threads");
const withCode = (code: string): unknown => expect.objectContaining({ code });

function sealRequest(index: number, payload: Uint8Array): SealRequest {
  return {
    sessionId: session,
    index: leafIndex(index),
    chunkId: canonicalChunkId(session, leafIndex(index)),
    payload,
    compression: { algorithm: "zstd", level: 3, thresholdBytes: 1024 },
    hashAlgorithm: "blake3",
    keyVersion: 1,
    key: new Uint8Array(32).fill(1),
    salt,
    nonce: new Uint8Array(12).fill(3),
    plainMacKey: new Uint8Array(32).fill(4),
  };
}

const opened: CpuThreads[] = [];
let events: CpuThreadsEvent[] = [];

function cpuThreads(options: Partial<CpuThreadsOptions> = {}): CpuThreads {
  const threads = new CpuThreads({
    threads: 2,
    timeoutMs: PATIENCE_MS,
    log: (event) => events.push(event),
    ...options,
  });
  opened.push(threads);
  return threads;
}

function poison(threads: CpuThreads, password: string, signal?: AbortSignal): Promise<unknown> {
  return threads.run({ kind: "derive", request: { password, salt } }, { signal });
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error("condition did not come true");
    await sleep(5);
  }
}

const readyCount = (): number => events.filter((event) => event.kind === "thread-ready").length;

afterEach(async () => {
  await Promise.all(opened.splice(0).map((threads) => threads.close()));
  events = [];
});

describe("the kernel in CPU threads", () => {
  it("seals as the kernel does on the main thread, and opens again", async () => {
    const threads = cpuThreads();
    const payload = Buffer.alloc(200_000, '{"event":"scroll","y":12}\n');
    const request = sealRequest(0, new Uint8Array(payload));
    const here = sealChunk({ ...request, payload }, () => 0);
    const there: SealedChunk = await threads.seal(request);
    expect({ ...there, stageSeconds: undefined, blob: toHex(there.blob) }).toEqual({
      ...here,
      stageSeconds: undefined,
      blob: toHex(here.blob),
      // Buffers come out of a structured clone as plain arrays of bytes.
      blobBlake3: new Uint8Array(here.blobBlake3),
      keyCommit: new Uint8Array(here.keyCommit),
      plainMac: new Uint8Array(here.plainMac),
      leafHash: new Uint8Array(here.leafHash),
    });
    const openRequest: OpenRequest = { ...request, ...there };
    const { payload: restored } = await threads.open(openRequest);
    expect(asBuffer(restored).equals(payload)).toBe(true);
  });

  it("moves the payload instead of copying it, but copies a view of a larger buffer", async () => {
    const threads = cpuThreads({ threads: 1 });
    const whole = new Uint8Array(50_000);
    await threads.seal(sealRequest(0, whole));
    expect(whole.byteLength).toBe(0);
    const shared = new Uint8Array(50_000);
    await threads.seal(sealRequest(1, shared.subarray(10)));
    expect(shared.byteLength).toBe(50_000);
    const pooled = Buffer.from("in the pool");
    await threads.seal(sealRequest(2, pooled));
    expect(pooled.toString()).toBe("in the pool");
  });

  it("derives a key off the main thread", async () => {
    expect(toHex(await cpuThreads().deriveKey("password", salt))).toBe(toHex(deriveKey("password", salt)));
  });

  it("passes the kernel's error code and message, and goes on in the same thread", async () => {
    const threads = cpuThreads({ threads: 1 });
    const declaredBlake3 = new Uint8Array(32);
    const bad = threads.seal({ ...sealRequest(0, new Uint8Array(10)), declaredBlake3 });
    await expect(bad).rejects.toThrow(withCode("PAYLOAD_DIGEST_MISMATCH"));
    await expect(bad).rejects.toBeInstanceOf(LucidError);
    await expect(threads.seal(sealRequest(0, new Uint8Array(10)))).resolves.toMatchObject({ codec: "none" });
    expect(threads.replaced).toBe(0);
  });

  it("refuses a request of another form with INTERNAL, without ending the thread", async () => {
    const threads = cpuThreads({ threads: 1 });
    const bad = { ...sealRequest(0, new Uint8Array(10)), nonce: new Uint8Array(11) };
    await expect(threads.seal(bad)).rejects.toThrow(withCode("INTERNAL"));
    const uncloneable = { ...sealRequest(0, new Uint8Array(10)), keyVersion: (() => 1) as unknown as number };
    await expect(threads.seal(uncloneable)).rejects.toThrow(withCode("INTERNAL"));
    expect(await threads.ping()).toBe(true);
    expect(threads.replaced).toBe(0);
  });

  it("works many jobs at once, each with its own result", async () => {
    const threads = cpuThreads();
    const jobs = Array.from({ length: 60 }, (_, at) =>
      threads.seal(sealRequest(at, Buffer.alloc(3_000 + at, at))),
    );
    const sealed = await Promise.all(jobs);
    expect(sealed.map((chunk) => chunk.originalLength)).toEqual(
      Array.from({ length: 60 }, (_, at) => 3_000 + at),
    );
    expect(new Set(sealed.map((chunk) => toHex(chunk.leafHash))).size).toBe(60);
    expect([threads.queued, threads.busy]).toEqual([0, 0]);
  });
});

describe("small chunks, which go to a thread together", () => {
  const small = (at: number, first = at) => sealRequest(at, new Uint8Array(100).fill(first, 0, 1));

  it("a chunk that can't be sealed fails alone", async () => {
    const threads = cpuThreads({ threads: 1 });
    const bad = threads.seal({ ...small(0), declaredBlake3: new Uint8Array(32) });
    const good = Array.from({ length: 20 }, (_, at) => threads.seal(small(at + 1)));
    await expect(bad).rejects.toThrow(withCode("PAYLOAD_DIGEST_MISMATCH"));
    expect((await Promise.all(good)).map((chunk) => chunk.originalLength)).toEqual(Array(20).fill(100));
    expect(threads.replaced).toBe(0);
  });

  it("a chunk that ends its thread fails alone, and the others are sealed by the next one", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL });
    const good = Array.from({ length: 10 }, (_, at) => threads.seal(small(at)));
    const bad = threads.seal(small(10, 0xff));
    await expect(bad).rejects.toThrow(withCode("THREAD_CRASHED"));
    expect(new Set((await Promise.all(good)).map(({ leafHash }) => toHex(leafHash))).size).toBe(10);
    // Once with all the others, once alone.
    expect(threads.replaced).toBe(2);
  });

  for (const threadCount of [1, 2]) {
    it(`a chunk that hangs one of ${threadCount} threads keeps the others for a moment, and fails when its time is over`, async () => {
      const threads = cpuThreads({ threads: threadCount, workerUrl: POISON_URL, timeoutMs: PATIENCE_MS });
      const ended: string[] = [];
      const before = Array.from({ length: 5 }, (_, at) => threads.seal(small(at)));
      const bad = threads.seal(small(5, 0xfe)).catch((thrown: unknown) => {
        ended.push("bad");
        throw thrown;
      });
      const after = Array.from({ length: 5 }, (_, at) => threads.seal(small(at + 6)));
      const good = [...before, ...after].map((sealing) => sealing.then(() => ended.push("good")));
      await Promise.all(good);
      expect([threads.replaced, ended]).toEqual([0, Array(10).fill("good")]);
      await expect(bad).rejects.toThrow(withCode("THREAD_TIMEOUT"));
      expect(threads.replaced).toBe(1);
      await expect(threads.seal(small(11))).resolves.toBeDefined();
    });
  }

  it("two chunks that hang their threads hold nobody up for long, and none of the others fails", async () => {
    const threads = cpuThreads({ threads: 2, workerUrl: POISON_URL, timeoutMs: PATIENCE_MS });
    const bad = [0, 1].map((at) => threads.seal(small(at, 0xfe)));
    const outcomes = Promise.allSettled(bad);
    const good = Array.from({ length: 10 }, (_, at) => threads.seal(small(at + 2)));
    expect(new Set((await Promise.all(good)).map(({ leafHash }) => toHex(leafHash))).size).toBe(10);
    expect(threads.replaced).toBe(0);
    for (const outcome of await outcomes)
      expect(outcome).toMatchObject({ reason: { code: "THREAD_TIMEOUT" } });
  });

  it("a chunk that only takes its time is sealed, and so are the others", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL });
    const sealing = [0, 1, 2, 3].map((at) => threads.seal(small(at, at === 1 ? 0xfd : at)));
    expect(new Set((await Promise.all(sealing)).map(({ leafHash }) => toHex(leafHash))).size).toBe(4);
    expect(threads.replaced).toBe(0);
  });

  it("the kernel tells which of them it works on", async () => {
    const { promise: replied, resolve } = Promise.withResolvers<unknown>();
    const ready = Promise.withResolvers<void>();
    const thread = new CpuThread(new URL("../../workers/kernel.ts", import.meta.url), {
      onReady: ready.resolve,
      onReply: resolve,
      onDeath: ready.reject,
    });
    try {
      await ready.promise;
      const requests = [small(0), { ...small(1), declaredBlake3: new Uint8Array(32) }, small(2)];
      thread.post({ id: 1, task: { kind: "seal-many", request: { requests } } }, []);
      expect(await replied).toMatchObject({
        result: { outcomes: [{ state: "sealed" }, { code: "PAYLOAD_DIGEST_MISMATCH" }, { state: "sealed" }] },
      });
      expect(thread.itemAt).toBe(2);
    } finally {
      await thread.end();
    }
  });

  it("a cancelled one is answered at once, and so is one after the end", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: STILLBORN_URL });
    const cancel = new AbortController();
    const waiting = threads.seal(small(0), cancel.signal);
    cancel.abort(new LucidError("PAYLOAD_MISSING", "any reason of the caller"));
    await expect(waiting).rejects.toThrow(withCode("PAYLOAD_MISSING"));
    const left = Promise.allSettled([threads.seal(small(1))]);
    await threads.close();
    expect(await left).toMatchObject([{ status: "rejected", reason: { code: "SHUTTING_DOWN" } }]);
    await expect(threads.seal(small(2))).rejects.toThrow(withCode("SHUTTING_DOWN"));
  });
});

describe("order and bounds", () => {
  it("takes jobs first come first served, and counts what waits and runs", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL });
    await until(() => readyCount() === 1);
    const finished: number[] = [];
    const jobs = [0, 1, 2, 3].map((number) => poison(threads, "sleep 20").then(() => finished.push(number)));
    expect([threads.busy, threads.queued]).toEqual([1, 3]);
    await Promise.all(jobs);
    expect(finished).toEqual([0, 1, 2, 3]);
  });

  it("refuses more than it can keep waiting", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: STILLBORN_URL });
    const waiting = Promise.allSettled(Array.from({ length: 1_024 }, () => poison(threads, "x")));
    await expect(poison(threads, "x")).rejects.toThrow(withCode("QUEUE_UNAVAILABLE"));
    await threads.close();
    expect((await waiting).every((outcome) => outcome.status === "rejected")).toBe(true);
  });

  it("a cancelled waiting job leaves the queue; a cancelled running one is answered at once", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL });
    await until(() => readyCount() === 1);
    const [running, waiting] = [new AbortController(), new AbortController()];
    const first = poison(threads, "sleep 200", running.signal);
    const second = poison(threads, "x", waiting.signal);
    waiting.abort();
    await expect(second).rejects.toThrow(withCode("SHUTTING_DOWN"));
    expect(threads.queued).toBe(0);
    running.abort(new LucidError("PAYLOAD_MISSING", "any reason of the caller"));
    await expect(first).rejects.toThrow(withCode("PAYLOAD_MISSING"));
    expect(threads.busy).toBe(1);
    await expect(poison(threads, "x")).resolves.toBeDefined();
    await expect(poison(threads, "x", AbortSignal.abort())).rejects.toThrow(withCode("SHUTTING_DOWN"));
    expect(threads.replaced).toBe(0);
  });
});

describe("threads that misbehave", () => {
  const crashes = ["exit", "throw", "answer nonsense", "answer another job", "run out of memory"];
  for (const password of crashes) {
    it(`a thread made to ${password} fails its own job only, and is replaced`, async () => {
      const threads = cpuThreads({ workerUrl: POISON_URL });
      const bad = poison(threads, password);
      const good = Array.from({ length: 20 }, () => poison(threads, "sleep 1"));
      await expect(bad).rejects.toThrow(withCode("THREAD_CRASHED"));
      await Promise.all(good);
      await until(() => readyCount() === 3);
      expect(threads.replaced).toBe(1);
      expect(await threads.ping()).toBe(true);
    });
  }

  it("says that memory was the reason, and nothing of an error's text", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL });
    await expect(poison(threads, "run out of memory")).rejects.toThrow(/^CPU thread ran out of memory$/);
    await expect(poison(threads, "throw")).rejects.toThrow(/^CPU thread threw outside of its job$/);
  });

  it("a hung thread times out, and the other one goes on meanwhile", async () => {
    const threads = cpuThreads({ workerUrl: POISON_URL, timeoutMs: 500 });
    await until(() => readyCount() === 2);
    const bad = poison(threads, "hang");
    let meanwhile = 0;
    const good = Array.from({ length: 20 }, () => poison(threads, "x").then(() => (meanwhile += 1)));
    await Promise.all(good);
    await expect(bad).rejects.toThrow(withCode("THREAD_TIMEOUT"));
    expect(meanwhile).toBe(20);
    await until(() => readyCount() === 3);
    expect(await threads.ping()).toBe(true);
  });

  it("a hung thread is set aside with its job, and makes room for another", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL, timeoutMs: 10_000 });
    const outcomes = Promise.allSettled([poison(threads, "hang")]);
    await poison(threads, "x");
    expect([threads.replaced, threads.busy, await threads.ping()]).toEqual([0, 0, true]);
    expect(await outcomes).toMatchObject([{ reason: { code: "THREAD_TIMEOUT" } }]);
    expect([threads.replaced, readyCount(), await threads.ping()]).toEqual([1, 2, true]);
  });

  it("no more threads are set aside than there are slots", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL, timeoutMs: 4_000 });
    const ended: string[] = [];
    const note = (what: string) => () => void ended.push(what);
    const bad = [1, 2].map((at) => poison(threads, "hang").catch(note(`hung ${at}`)));
    await poison(threads, "x").then(note("good"));
    await Promise.all(bad);
    expect(ended).toEqual(["hung 1", "hung 2", "good"]);
  });

  it("a job that takes long succeeds in the thread that was set aside with it", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL, timeoutMs: 6_000 });
    await until(() => readyCount() === 1);
    await poison(threads, "sleep 1500");
    expect([threads.replaced, await threads.ping()]).toEqual([0, true]);
    const long = poison(threads, "sleep 1700");
    await poison(threads, "sleep 1000");
    await long;
    await expect(poison(threads, "x")).resolves.toBeDefined();
    expect(threads.replaced).toBe(0);
    await threads.close();
  });

  it("an answer that came while the loop itself was blocked is no timeout", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL, timeoutMs: 100 });
    await until(() => readyCount() === 1);
    const job = poison(threads, "x");
    const blockedUntil = performance.now() + 500;
    while (performance.now() < blockedUntil);
    await expect(job).resolves.toBeDefined();
    expect(threads.replaced).toBe(0);
  });

  it("waiting does not count as running", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL, timeoutMs: 400 });
    await until(() => readyCount() === 1);
    await Promise.all(Array.from({ length: 12 }, () => poison(threads, "sleep 50")));
    expect(threads.replaced).toBe(0);
  });

  it("poison after poison ends no thread for good", async () => {
    const threads = cpuThreads({ workerUrl: POISON_URL });
    const bad = Array.from({ length: 6 }, () => poison(threads, "exit"));
    const good = Array.from({ length: 30 }, () => poison(threads, "x"));
    const outcomes = await Promise.allSettled(bad);
    expect(outcomes.map((outcome) => outcome.status)).toEqual(Array.from({ length: 6 }, () => "rejected"));
    await Promise.all(good);
    expect(threads.replaced).toBe(6);
  });

  it("threads that die at birth take no job with them and are started ever more slowly", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: STILLBORN_URL });
    const outcomes = Promise.allSettled([poison(threads, "x")]);
    await until(() => threads.replaced >= 3);
    expect(threads.queued).toBe(1);
    expect(await threads.ping()).toBe(false);
    const delays = events.flatMap((event) => (event.kind === "thread-replaced" ? [event.delayMs] : []));
    expect(delays.slice(0, 3)).toEqual([0, 100, 200]);
    await threads.close();
    expect(await outcomes).toMatchObject([{ status: "rejected", reason: { code: "SHUTTING_DOWN" } }]);
  });
});

describe("isStarting", () => {
  it("is true until a thread is up, which no replacement brings back", async () => {
    const threads = cpuThreads({ workerUrl: POISON_URL });
    expect(threads.isStarting).toBe(true);
    await until(() => readyCount() === 2);
    expect(threads.isStarting).toBe(false);
    const both = [poison(threads, "exit"), poison(threads, "exit")];
    await Promise.allSettled(both);
    expect(threads.isStarting).toBe(false);
  });

  it("ends with the threads that can't come up", async () => {
    const threads = cpuThreads({ workerUrl: STILLBORN_URL });
    expect(threads.isStarting).toBe(true);
    // When each has died once; one of them may have died twice by then.
    await until(() => !threads.isStarting);
    expect(threads.replaced).toBeGreaterThanOrEqual(2);
    expect(readyCount()).toBe(0);
  });
});

describe("ping", () => {
  it("is false before a thread is ready, and true when it idles or works", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL });
    expect(await threads.ping()).toBe(false);
    await until(() => readyCount() === 1);
    expect(await threads.ping()).toBe(true);
    const job = poison(threads, "sleep 100");
    expect(await threads.ping()).toBe(true);
    await job;
  });

  it("is false for an idle thread that no longer answers, which is replaced", async () => {
    const threads = cpuThreads({ threads: 1, workerUrl: POISON_URL, timeoutMs: 500 });
    await poison(threads, "hang when idle");
    expect(await threads.ping()).toBe(false);
    await until(() => readyCount() === 2);
    expect(await threads.ping()).toBe(true);
  });
});

describe("close", () => {
  it("rejects what runs and waits, ends every thread, and takes nothing more", async () => {
    const threads = cpuThreads({ workerUrl: POISON_URL });
    await until(() => readyCount() === 2);
    const jobs = ["hang", "hang", "x", "x"].map((password) => poison(threads, password));
    const outcomes = Promise.allSettled(jobs);
    const closing = threads.close();
    expect(threads.close()).toBe(closing);
    await closing;
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: "rejected", reason: { code: "SHUTTING_DOWN" } });
    }
    await expect(poison(threads, "x")).rejects.toThrow(withCode("SHUTTING_DOWN"));
    expect(await threads.ping()).toBe(false);
    expect([threads.queued, threads.busy]).toEqual([0, 0]);
  });

  it("under load leaves neither threads nor timers: a process with nothing else ends", async () => {
    const { Worker } = await import("node:worker_threads");
    const source = `
      const { CpuThreads } = await import(${JSON.stringify(new URL("../../src/adapters/threads/cpu-threads.ts", import.meta.url).href)});
      const threads = new CpuThreads({ threads: 2, timeoutMs: 60000, workerUrl: new URL(${JSON.stringify(POISON_URL.href)}) });
      const jobs = Array.from({ length: 40 }, () => threads.run({ kind: "derive", request: { password: "sleep 5", salt: new Uint8Array(32) } }));
      await jobs[10];
      const outcomes = Promise.allSettled(jobs);
      await threads.close();
      await outcomes;`;
    const program = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
      execArgv: [],
    });
    const [exitCode] = await once(program, "exit");
    expect(exitCode).toBe(0);
  });
});
