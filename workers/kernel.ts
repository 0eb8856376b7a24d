import { parentPort, workerData } from "node:worker_threads";
import { deriveKey } from "../src/core/encrypt/derive.ts";
import { asLucidError } from "../src/core/errors.ts";
import { kernelScratch, openChunk, type SealRequest, sealChunk } from "../src/core/kernel.ts";
import { release } from "../src/core/scratch.ts";
import {
  type SealOutcome,
  type ThreadData,
  type ThreadReply,
  type ThreadTask,
  threadJob,
} from "../src/schema/thread.ts";

if (parentPort === null) throw new Error("workers/kernel.ts runs as a worker thread only");
const port = parentPort;
const scratch = kernelScratch();
const { itemAt } = workerData as ThreadData;
const nowMs = (): number => performance.now();

type Answer = { readonly reply: ThreadReply; readonly transfer: ArrayBuffer[] };

function perform(id: number, task: ThreadTask): Answer {
  switch (task.kind) {
    case "seal": {
      const result = sealChunk(task.request, nowMs, scratch);
      release(task.request.payload);
      return { reply: { state: "done", id, kind: "seal", result }, transfer: [result.blob.buffer] };
    }
    case "seal-many": {
      // Copied on the way, not transferred: for small buffers that costs less.
      const outcomes = task.request.requests.map((request, at) => {
        Atomics.store(itemAt, 0, at);
        return sealOne(request);
      });
      return { reply: { state: "done", id, kind: "seal-many", result: { outcomes } }, transfer: [] };
    }
    case "open": {
      const result = openChunk(task.request);
      release(task.request.blob);
      return { reply: { state: "done", id, kind: "open", result }, transfer: [result.payload.buffer] };
    }
    case "derive": {
      const key = deriveKey(task.request.password, task.request.salt);
      return { reply: { state: "done", id, kind: "derive", result: { key } }, transfer: [] };
    }
    case "ping":
      return { reply: { state: "done", id, kind: "ping", result: {} }, transfer: [] };
  }
}

function sealOne(request: SealRequest): SealOutcome {
  try {
    return { state: "sealed", chunk: sealChunk(request, nowMs, scratch) };
  } catch (thrown) {
    const { code, message } = asLucidError(thrown);
    return { state: "failed", code, message };
  }
}

function answer(message: unknown): Answer {
  const { id } = message as { readonly id: number };
  try {
    return perform(id, threadJob.parse(message).task);
  } catch (thrown) {
    const { code, message: text } = asLucidError(thrown);
    return { reply: { state: "failed", id, code, message: text }, transfer: [] };
  }
}

port.on("message", (message: unknown) => {
  const { reply, transfer } = answer(message);
  port.postMessage(reply, transfer);
});
port.postMessage({ state: "ready" } satisfies ThreadReply);
