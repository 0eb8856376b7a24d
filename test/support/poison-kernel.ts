import { parentPort, workerData } from "node:worker_threads";
import { sealChunk } from "../../src/core/kernel.ts";
import type { SealOutcome, ThreadData, ThreadJob, ThreadReply } from "../../src/schema/thread.ts";

// Speaks the CPU threads' protocol and misbehaves on request: a `derive` task's password says how, and a chunk of a
// `seal-many` task that begins with POISON_BYTE ends it, with HANGING_BYTE hangs it, with SLOW_BYTE takes SLOW_MS.

const POISON_BYTE = 0xff;
const HANGING_BYTE = 0xfe;
const SLOW_BYTE = 0xfd;
const SLOW_MS = 400;

const port = parentPort;
if (port === null) throw new Error("runs as a worker thread only");

const { itemAt } = workerData as ThreadData;
const hoard: unknown[] = [];

function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

function misbehave(password: string): void {
  switch (password) {
    case "hang":
      for (;;);
    case "run out of memory":
      for (;;) hoard.push(Array.from({ length: 10_000 }, (_, at) => ({ at })));
    case "exit":
      process.exit(3);
      break;
    case "throw":
      throw new Error("text of a thrown error: plaintext");
    case "answer nonsense":
      port?.postMessage({ nonsense: true });
      break;
    case "answer another job":
      port?.postMessage({ state: "done", id: 999_999, kind: "ping", result: {} });
      break;
  }
}

port.on("message", ({ id, task }: ThreadJob) => {
  if (task.kind === "derive") {
    misbehave(task.request.password);
    const wait = /^sleep (\d+)$/.exec(task.request.password)?.[1];
    if (wait !== undefined) pause(Number(wait));
    const result = { key: new Uint8Array(32).fill(task.request.password.length) };
    port.postMessage({ state: "done", id, kind: "derive", result } satisfies ThreadReply);
    // After the answer, which is on its way: the thread looks idle.
    if (task.request.password === "hang when idle") for (;;);
  } else if (task.kind === "seal-many") {
    const outcomes = task.request.requests.map((request, at): SealOutcome => {
      Atomics.store(itemAt, 0, at);
      const [first] = request.payload;
      if (first === POISON_BYTE) process.exit(3);
      if (first === HANGING_BYTE) for (;;);
      if (first === SLOW_BYTE) pause(SLOW_MS);
      return { state: "sealed", chunk: sealChunk(request, () => 0) };
    });
    const result = { outcomes };
    port.postMessage({ state: "done", id, kind: "seal-many", result } satisfies ThreadReply);
  } else {
    port.postMessage({ state: "done", id, kind: "ping", result: {} } satisfies ThreadReply);
  }
});
port.postMessage({ state: "ready" } satisfies ThreadReply);
