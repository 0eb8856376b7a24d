import { parentPort } from "node:worker_threads";
import { sealChunk } from "../../src/core/kernel.ts";
import type { ThreadJob, ThreadReply } from "../../src/schema/thread.ts";

// Speaks the CPU threads' protocol and misbehaves on request: a `derive` task's password says how, and a chunk of a
// `seal-many` task that begins with POISON_BYTE ends it, with HANGING_BYTE hangs it.

const POISON_BYTE = 0xff;
const HANGING_BYTE = 0xfe;

const port = parentPort;
if (port === null) throw new Error("runs as a worker thread only");

const hoard: unknown[] = [];

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
    if (wait !== undefined) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Number(wait));
    const result = { key: new Uint8Array(32).fill(task.request.password.length) };
    port.postMessage({ state: "done", id, kind: "derive", result } satisfies ThreadReply);
    // After the answer, which is on its way: the thread looks idle.
    if (task.request.password === "hang when idle") for (;;);
  } else if (task.kind === "seal-many") {
    const { requests } = task.request;
    if (requests.some(({ payload }) => payload[0] === POISON_BYTE)) process.exit(3);
    if (requests.some(({ payload }) => payload[0] === HANGING_BYTE)) for (;;);
    const result = { chunks: requests.map((request) => sealChunk(request, () => 0)) };
    port.postMessage({ state: "done", id, kind: "seal-many", result } satisfies ThreadReply);
  } else {
    port.postMessage({ state: "done", id, kind: "ping", result: {} } satisfies ThreadReply);
  }
});
port.postMessage({ state: "ready" } satisfies ThreadReply);
