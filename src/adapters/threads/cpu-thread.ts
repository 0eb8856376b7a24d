import { Worker } from "node:worker_threads";
import { LucidError } from "../../core/errors.ts";
import { type ThreadData, type ThreadJob, type ThreadReply, threadReply } from "../../schema/thread.ts";

/**
 * A thread's own heap, beside which the buffers of its chunk lie outside. A job that needs more ends its thread
 * with ERR_WORKER_OUT_OF_MEMORY, and not the process.
 */
const RESOURCE_LIMITS = { maxOldGenerationSizeMb: 96, maxYoungGenerationSizeMb: 16 } as const;
/** Loading the modules takes about 0.2 s; much more than that means that the thread hangs. */
const START_MS_MAX = 30_000;

export interface CpuThreadEvents {
  readonly onReady: () => void;
  readonly onReply: (reply: Exclude<ThreadReply, { state: "ready" }>) => void;
  /** At most once, and nothing after it. Not called after `end`. */
  readonly onDeath: (error: LucidError) => void;
}

/** One worker thread, from its start to its end. It knows one job at a time and no queue. */
export class CpuThread {
  readonly #worker: Worker;
  readonly #events: CpuThreadEvents;
  readonly #startTimer: NodeJS.Timeout;
  readonly #itemAt = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
  #ended = false;

  constructor(workerUrl: URL, events: CpuThreadEvents) {
    this.#events = events;
    this.#worker = new Worker(workerUrl, {
      name: "cpu",
      resourceLimits: RESOURCE_LIMITS,
      // The environment holds keys that a thread has no use for; the flags may belong to a test runner.
      env: {},
      execArgv: [],
      workerData: { itemAt: this.#itemAt } satisfies ThreadData,
    });
    this.#worker.on("message", (message: unknown) => this.#receive(message));
    this.#worker.on("messageerror", (cause) => this.#die("sent an answer that can't be read", cause));
    this.#worker.on("error", (cause) => this.#die(describeDeath(cause), cause));
    this.#worker.on("exit", (exitCode) => this.#die(`exited with code ${exitCode}`, undefined));
    this.#startTimer = setTimeout(() => this.#die("did not get ready", undefined), START_MS_MAX);
  }

  /**
   * The position of the item that it works on, in a job of several; below 0: it hasn't begun. It can be read while the thread hangs, and
   * when it has ended.
   */
  get itemAt(): number {
    return Atomics.load(this.#itemAt, 0);
  }

  /** Throws what structured clone throws, in which case the thread has seen nothing. */
  post(job: ThreadJob, transfer: ArrayBuffer[]): void {
    Atomics.store(this.#itemAt, 0, -1);
    this.#worker.postMessage(job, transfer);
  }

  /** Stops the thread wherever its JavaScript is; inside a native call, when that returns. */
  async end(): Promise<void> {
    this.#ended = true;
    clearTimeout(this.#startTimer);
    await this.#worker.terminate();
  }

  #receive(message: unknown): void {
    if (this.#ended) return;
    const parsed = threadReply.safeParse(message);
    if (!parsed.success) return this.#die("sent an answer of another form", parsed.error);
    if (parsed.data.state !== "ready") return this.#events.onReply(parsed.data);
    clearTimeout(this.#startTimer);
    this.#events.onReady();
  }

  #die(what: string, cause: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#startTimer);
    this.#events.onDeath(new LucidError("THREAD_CRASHED", `CPU thread ${what}`, { cause }));
  }
}

/** Only the code of Node's own error: its text, and any other error's, may hold what the thread worked on. */
function describeDeath(cause: unknown): string {
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  return code === "ERR_WORKER_OUT_OF_MEMORY" ? "ran out of memory" : "threw outside of its job";
}
