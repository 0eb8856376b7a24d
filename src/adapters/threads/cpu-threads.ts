import { LucidError } from "../../core/errors.ts";
import type { OpenedChunk, OpenRequest, SealedChunk, SealRequest } from "../../core/kernel.ts";
import type { ThreadReply, ThreadResults, ThreadTask, ThreadTaskKind } from "../../schema/thread.ts";
import { coalesce } from "../coalesce.ts";
import { CpuThread } from "./cpu-thread.ts";
import { portableTask } from "./portable-task.ts";

const KERNEL_URL = new URL("../../../workers/kernel.ts", import.meta.url);
/** Far above MAX_WORKERS' 50 jobs at a time: reached only if a caller forgets to wait. */
const QUEUED_MAX = 1_024;
/** Chunks up to this size and these levels go to a thread together: the message costs more than the work, 0.2 ms at most, in it. */
const GATHERED_PAYLOAD_BYTES_MAX = 16 * 1024;
const GATHERED_LEVEL_MAX = { none: 0, lz4: 0, zstd: 9, brotli: 5 } as const;
const GATHERED_ITEMS_MAX = 64;
/**
 * They all go to one thread, as long as it answers: two would take them in smaller groups, and wake each other's cores. At 4 KiB
 * and 50 jobs at a time that costs an eighth of the chunks a second.
 */
const GATHERED_LANE_DELAY_MS = 50;
/** Of the time that a job is given. They take milliseconds; one that hangs must not keep its company for all of that time. */
const GATHERED_TIMEOUT_SHARE = 1 / 6;
const PING_MS_MAX = 5_000;
/** The first replacement is made at once; without a finished job in between, each next one waits twice as long. */
const RESTART_DELAY_MS = 100;
const RESTART_DELAY_MS_MAX = 5_000;

export type CpuThreadsEvent =
  | { readonly kind: "thread-ready"; readonly thread: number }
  | {
      readonly kind: "thread-replaced";
      readonly thread: number;
      /** THREAD_TIMEOUT or THREAD_CRASHED, with what was seen of it in its message. */
      readonly error: LucidError;
      /** Until its successor is started. */
      readonly delayMs: number;
    };

export interface CpuThreadsOptions {
  readonly threads: number;
  /** A job's time in its thread; waiting in the queue doesn't count. */
  readonly timeoutMs: number;
  readonly log?: (event: CpuThreadsEvent) => void;
  /** For tests of threads that misbehave. */
  readonly workerUrl?: URL;
}

export interface RunOptions {
  /** Takes a waiting job out of the queue. A running one can't be stopped: its result is dropped. */
  readonly signal?: AbortSignal | undefined;
  /** Default: that of the pool. */
  readonly timeoutMs?: number;
}

interface Job {
  readonly id: number;
  readonly task: ThreadTask;
  readonly timeoutMs: number;
  /** Both have no effect after the first call of either. */
  readonly resolve: (result: ThreadResults[ThreadTaskKind]) => void;
  readonly reject: (reason: unknown) => void;
}

/** A place for one thread at a time. Without `thread` it waits to start the next one. */
interface Slot {
  readonly number: number;
  thread: CpuThread | undefined;
  ready: boolean;
  job: Job | undefined;
  jobTimer: NodeJS.Timeout | undefined;
  restartTimer: NodeJS.Timeout | undefined;
  /** Since a job last finished here. */
  deaths: number;
}

/**
 * A fixed number of worker threads that run the kernel, one job each at a time, first come first served. A thread that dies or
 * takes too long is replaced; its job fails with THREAD_CRASHED or THREAD_TIMEOUT, every other job goes on.
 */
export class CpuThreads {
  readonly #options: CpuThreadsOptions;
  readonly #slots: readonly Slot[];
  readonly #waiting: Job[] = [];
  readonly #sealGathered: (request: SealRequest) => Promise<SealedChunk>;
  /** Threads on their way out; `close` waits for them. */
  readonly #ending = new Set<Promise<void>>();
  #nextId = 0;
  #replaced = 0;
  #closing: Promise<void> | undefined;

  constructor(options: CpuThreadsOptions) {
    this.#options = options;
    this.#slots = Array.from({ length: options.threads }, (_, number) => ({
      number,
      thread: undefined,
      ready: false,
      job: undefined,
      jobTimer: undefined,
      restartTimer: undefined,
      deaths: 0,
    }));
    // A thread that dies, or a chunk that can't be sealed, fails all that went with it; then each is sent alone.
    this.#sealGathered = coalesce({
      lanes: options.threads,
      laneDelayMs: GATHERED_LANE_DELAY_MS,
      itemsMax: GATHERED_ITEMS_MAX,
      send: (requests) => this.#sealMany(requests),
    });
    for (const slot of this.#slots) this.#start(slot);
  }

  /** Jobs that wait for a thread; what is sealed together is one. */
  get queued(): number {
    return this.#waiting.length;
  }

  /** Threads that run a job. */
  get busy(): number {
    return this.#slots.filter((slot) => slot.job !== undefined).length;
  }

  /**
   * None is up yet, and one of them may still come up for the first time. Ends by itself: a thread that isn't up within START_MS_MAX
   * (cpu-thread.ts) is replaced, and its successor isn't the first.
   */
  get isStarting(): boolean {
    if (this.#closing !== undefined || this.#slots.some((slot) => slot.ready)) return false;
    return this.#slots.some((slot) => slot.deaths === 0);
  }

  /** Threads replaced since the start. */
  get replaced(): number {
    return this.#replaced;
  }

  /**
   * Takes `request.payload` over: its buffer may be transferred and is then empty for the caller. Errors of sealChunk, `run`. Small
   * chunks that take little time are sealed together.
   */
  seal(request: SealRequest, signal?: AbortSignal): Promise<SealedChunk> {
    if (!isGathered(request)) {
      return this.run({ kind: "seal", request }, { signal });
    }
    return untilAborted(signal, () => this.#sealGathered(request));
  }

  /** Takes `request.blob` over, as `seal` does the payload. Errors of openChunk, `run`. */
  open(request: OpenRequest, signal?: AbortSignal): Promise<OpenedChunk> {
    return this.run({ kind: "open", request }, { signal });
  }

  /** PBKDF2-HMAC-SHA256 of contract §7, 32 bytes. */
  async deriveKey(password: string, salt: Uint8Array): Promise<Uint8Array> {
    const { key } = await this.run({ kind: "derive", request: { password, salt } });
    return key;
  }

  /**
   * The result of one task. Rejects with the kernel's error, THREAD_TIMEOUT, THREAD_CRASHED, SHUTTING_DOWN after `close` or when
   * the signal fires, QUEUE_UNAVAILABLE when too many wait.
   */
  async run<Task extends ThreadTask>(
    task: Task,
    options: RunOptions = {},
  ): Promise<ThreadResults[Task["kind"]]> {
    if (this.#closing !== undefined) throw closed();
    if (this.#waiting.length >= QUEUED_MAX) {
      throw new LucidError("QUEUE_UNAVAILABLE", `more than ${QUEUED_MAX} jobs wait for a CPU thread`);
    }
    const { signal, timeoutMs = this.#options.timeoutMs } = options;
    if (signal?.aborted === true) throw cancelled(signal);
    const { promise, ...settle } = Promise.withResolvers<ThreadResults[ThreadTaskKind]>();
    const job: Job = { id: this.#nextId++, task, timeoutMs, ...settle };
    const onAbort = (): void => this.#cancel(job, signal);
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#waiting.push(job);
    this.#dispatch();
    try {
      return (await promise) as ThreadResults[Task["kind"]];
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /**
   * True when a thread is there and every idle one answers. A busy one is watched by its job's timeout, and an idle one that
   * doesn't answer is replaced.
   */
  async ping(): Promise<boolean> {
    if (this.#closing !== undefined) return false;
    const running = this.#slots.filter((slot) => slot.ready);
    const idle = running.filter((slot) => slot.job === undefined);
    const answers = await Promise.allSettled(idle.map((slot) => this.#pingSlot(slot)));
    return running.length > 0 && answers.every((answer) => answer.status === "fulfilled");
  }

  /** Ends every thread and rejects what waits and runs with SHUTTING_DOWN. Resolves when no thread is left. */
  close(): Promise<void> {
    this.#closing ??= this.#endAll();
    return this.#closing;
  }

  async #sealMany(requests: readonly SealRequest[]): Promise<readonly SealedChunk[]> {
    const timeoutMs = this.#options.timeoutMs * GATHERED_TIMEOUT_SHARE;
    const { chunks } = await this.run(
      { kind: "seal-many", request: { requests: [...requests] } },
      { timeoutMs },
    );
    return chunks;
  }

  #pingSlot(slot: Slot): Promise<unknown> {
    const { promise, ...settle } = Promise.withResolvers<unknown>();
    const timeoutMs = Math.min(PING_MS_MAX, this.#options.timeoutMs);
    const job: Job = { id: this.#nextId++, task: { kind: "ping", request: {} }, timeoutMs, ...settle };
    this.#assign(slot, job);
    return promise;
  }

  #start(slot: Slot): void {
    slot.restartTimer = undefined;
    const thread = new CpuThread(this.#options.workerUrl ?? KERNEL_URL, {
      onReady: () => this.#becomeReady(slot),
      onReply: (reply) => this.#settle(slot, reply),
      onDeath: (error) => this.#replace(slot, error),
    });
    slot.thread = thread;
  }

  // No job is given to a thread before it is ready: one that can't even start must not take jobs down with it.
  #becomeReady(slot: Slot): void {
    slot.ready = true;
    this.#options.log?.({ kind: "thread-ready", thread: slot.number });
    this.#dispatch();
  }

  #dispatch(): void {
    for (const slot of this.#slots) {
      while (slot.ready && slot.job === undefined) {
        const job = this.#waiting.shift();
        if (job === undefined) return;
        this.#assign(slot, job);
      }
    }
  }

  // One job per thread, not one running and one posted ahead: that one's payload would be gone with the thread that a poison
  // job kills, and a job would fail that did nothing.
  #assign(slot: Slot, job: Job): void {
    try {
      const { task, transfer } = portableTask(job.task);
      slot.thread?.post({ id: job.id, task }, transfer);
    } catch (cause) {
      // The thread has seen nothing of it and stays idle.
      job.reject(new LucidError("INTERNAL", "job can't be sent to a CPU thread", { cause }));
      return;
    }
    slot.job = job;
    slot.jobTimer = setTimeout(() => this.#onTimeout(slot, job), job.timeoutMs);
  }

  #settle(slot: Slot, reply: Exclude<ThreadReply, { state: "ready" }>): void {
    const { job } = slot;
    if (job === undefined || reply.id !== job.id) {
      this.#replace(
        slot,
        new LucidError("THREAD_CRASHED", "CPU thread answered a job that it was not given"),
      );
      return;
    }
    this.#release(slot);
    slot.deaths = 0;
    if (reply.state === "failed") job.reject(new LucidError(reply.code, reply.message));
    else job.resolve(reply.result);
    this.#dispatch();
  }

  /**
   * If the loop itself was held up, the answer may be here, unread: a turn of the loop runs timers first, then messages, then
   * immediates. So the thread gets the rest of this turn.
   */
  #onTimeout(slot: Slot, job: Job): void {
    setImmediate(() => {
      if (slot.job !== job) return;
      const text = `job took longer than ${job.timeoutMs} ms in its CPU thread, which is replaced`;
      this.#replace(slot, new LucidError("THREAD_TIMEOUT", text));
    });
  }

  #replace(slot: Slot, error: LucidError): void {
    const { job, thread } = slot;
    this.#release(slot);
    slot.thread = undefined;
    slot.ready = false;
    slot.deaths += 1;
    this.#replaced += 1;
    if (thread !== undefined) this.#end(thread);
    const delayMs = restartDelayMs(slot.deaths);
    slot.restartTimer = setTimeout(() => this.#start(slot), delayMs);
    job?.reject(error);
    this.#options.log?.({ kind: "thread-replaced", thread: slot.number, error, delayMs });
  }

  #release(slot: Slot): void {
    clearTimeout(slot.jobTimer);
    slot.jobTimer = undefined;
    slot.job = undefined;
  }

  #cancel(job: Job, signal: AbortSignal | undefined): void {
    const at = this.#waiting.indexOf(job);
    if (at >= 0) this.#waiting.splice(at, 1);
    job.reject(cancelled(signal));
  }

  #end(thread: CpuThread): void {
    const ended = thread.end().finally(() => this.#ending.delete(ended));
    this.#ending.add(ended);
  }

  async #endAll(): Promise<void> {
    for (const job of this.#waiting.splice(0)) job.reject(closed());
    for (const slot of this.#slots) {
      clearTimeout(slot.restartTimer);
      slot.job?.reject(closed());
      this.#release(slot);
      slot.ready = false;
      if (slot.thread !== undefined) this.#end(slot.thread);
      slot.thread = undefined;
    }
    await Promise.all(this.#ending);
  }
}

function isGathered({ payload, compression: { algorithm, level } }: SealRequest): boolean {
  return payload.byteLength <= GATHERED_PAYLOAD_BYTES_MAX && level <= GATHERED_LEVEL_MAX[algorithm];
}

function restartDelayMs(deaths: number): number {
  return deaths <= 1 ? 0 : Math.min(RESTART_DELAY_MS * 2 ** (deaths - 2), RESTART_DELAY_MS_MAX);
}

function closed(): LucidError {
  return new LucidError("SHUTTING_DOWN", "CPU threads are closed");
}

/** What `work` does goes on after the signal; its result is dropped. */
async function untilAborted<Result>(
  signal: AbortSignal | undefined,
  work: () => Promise<Result>,
): Promise<Result> {
  if (signal?.aborted === true) throw cancelled(signal);
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(cancelled(signal));
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work(), aborted]);
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}

function cancelled(signal: AbortSignal | undefined): LucidError {
  const reason: unknown = signal?.reason;
  if (reason instanceof LucidError) return reason;
  return new LucidError("SHUTTING_DOWN", "job was cancelled before its CPU thread finished", {
    cause: reason,
  });
}
