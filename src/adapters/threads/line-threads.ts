import { Worker } from "node:worker_threads";
import { type ErrorCode, LucidError } from "../../core/errors.ts";
import type { ChunkRun, ChunkRunRequest } from "../../core/manifest/chunk-run.ts";

const WORKER_URL = new URL("../../../workers/check-lines.ts", import.meta.url);

type Reply = { readonly run: ChunkRun } | { readonly code: ErrorCode; readonly message: string };

interface Waiting {
  readonly resolve: (run: ChunkRun) => void;
  readonly reject: (reason: unknown) => void;
}

interface LineThread {
  readonly worker: Worker;
  /** In the order of the requests, which is that of the replies. */
  readonly waiting: Waiting[];
}

/**
 * Threads that check lines of a chunks file, for one verification and then closed. Nothing is restarted: a thread that dies fails
 * what it has, and with that the verification.
 */
export class LineThreads {
  readonly #threads: readonly LineThread[];

  constructor(count: number) {
    this.#threads = Array.from({ length: count }, start);
  }

  /** Takes `request.lines` over: its buffer is transferred. Errors of checkChunkRun, THREAD_CRASHED. */
  check(request: ChunkRunRequest): Promise<ChunkRun> {
    const thread = this.#threads.reduce((least, other) =>
      other.waiting.length < least.waiting.length ? other : least,
    );
    return new Promise((resolve, reject) => {
      thread.waiting.push({ resolve, reject });
      thread.worker.postMessage(request, [request.lines.buffer]);
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }
}

function start(): LineThread {
  const worker = new Worker(WORKER_URL);
  const waiting: Waiting[] = [];
  worker.on("message", (reply: Reply) => {
    const next = waiting.shift();
    if ("run" in reply) next?.resolve(reply.run);
    else next?.reject(new LucidError(reply.code, reply.message));
  });
  const failAll = (cause?: unknown): void => {
    const error = new LucidError("THREAD_CRASHED", "a thread that checks lines has ended", { cause });
    for (const { reject } of waiting.splice(0)) reject(error);
  };
  worker.on("error", failAll);
  worker.on("exit", () => failAll());
  return { worker, waiting };
}
