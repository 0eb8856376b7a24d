import { LucidError } from "../../core/errors.ts";
import type { OpenedChunk, OpenRequest, SealedChunk, SealRequest } from "../../core/kernel.ts";
import type { ThreadReply, ThreadResults, ThreadTask, ThreadTaskKind } from "../../schema/thread.ts";
import { unlessAborted } from "../system/unless-aborted.ts";
import { CpuThread } from "./cpu-thread.ts";
import { GatheredSeals, isGathered } from "./gathered-seals.ts";
import { portableTask } from "./portable-task.ts";

const KERNEL_URL = new URL("../../../workers/kernel.ts", import.meta.url);
/** Far above MAX_WORKERS' 50 jobs at a time: reached only if a caller forgets to wait. */
const QUEUED_MAX = 1_024;
/**
 * Of the time that a job is given, and at least. A thread that takes longer is set aside with it, and another one takes its place: one job
 * that hangs costs the others this much of a thread, and not all of its WORKER_TIMEOUT.
 */
const SET_ASIDE_SHARE = 1 / 6;
const SET_ASIDE_MS_MIN = 1_000;
/** A thread that begins no other item of its job for so long holds the rest of them up. */
const HELD_UP_MS = 250;
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
  /** For a job of several items: the position of one at which its thread has stood for HELD_UP_MS. At most once. */
  readonly onHeldUp?: (at: number) => void;
  /** Likewise, before the job fails: the position at which its thread ended, or its time. */
  readonly onEndedAt?: (at: number) => void;
}

interface Job {
  readonly id: number;
  readonly task: ThreadTask;
  readonly timeoutMs: number;
  readonly onHeldUp: ((at: number) => void) | undefined;
  readonly onEndedAt: ((at: number) => void) | undefined;
  /** Both have no effect after the first call of either. */
  readonly resolve: (result: ThreadResults[ThreadTaskKind]) => void;
  readonly reject: (reason: unknown) => void;
}

/** A job in its thread. */
interface Run {
  readonly job: Job;
  readonly timeout: NodeJS.Timeout;
  readonly setAside: NodeJS.Timeout;
  heldUp: NodeJS.Timeout | undefined;
}

/** One thread, in its slot or set aside. */
interface Post {
  /** Of the slot. */
  readonly number: number;
  readonly thread: CpuThread;
  ready: boolean;
  run: Run | undefined;
}

/** A place for one thread at a time. Without `post` it waits to start the next one. */
interface Slot {
  readonly number: number;
  post: Post | undefined;
  restartTimer: NodeJS.Timeout | undefined;
  /** Since a job last finished here. */
  deaths: number;
}

/**
 * A fixed number of worker threads that run the kernel, one job each at a time, first come first served. A thread that dies or
 * takes too long is replaced; its job fails with THREAD_CRASHED or THREAD_TIMEOUT, every other job goes on. One that takes long
 * makes room for its successor before that: up to as many as there are slots are set aside.
 */
export class CpuThreads {
  readonly #options: CpuThreadsOptions;
  readonly #slots: readonly Slot[];
  readonly #waiting: Job[] = [];
  readonly #gathered: GatheredSeals;
  /** Threads without a slot, each with the job that took too long. */
  readonly #aside = new Set<Post>();
  /** Threads on their way out; `close` waits for them. */
  readonly #ending = new Set<Promise<void>>();
  #hasBeenUp = false;
  #nextId = 0;
  #replaced = 0;
  #closing: Promise<void> | undefined;

  constructor(options: CpuThreadsOptions) {
    this.#options = options;
    this.#slots = Array.from({ length: options.threads }, (_, number) => ({
      number,
      post: undefined,
      restartTimer: undefined,
      deaths: 0,
    }));
    this.#gathered = new GatheredSeals(this, options);
    for (const slot of this.#slots) this.#start(slot);
  }

  /** Jobs that wait for a thread; what is sealed together is one. */
  get queued(): number {
    return this.#waiting.length;
  }

  /** Threads that run a job, without those that are set aside. */
  get busy(): number {
    return this.#slots.filter(({ post }) => post?.run !== undefined).length;
  }

  /**
   * None is up yet, and one of them may still come up for the first time. Ends by itself: a thread that isn't up within START_MS_MAX
   * (cpu-thread.ts) is replaced, and its successor isn't the first.
   */
  get isStarting(): boolean {
    if (this.#closing !== undefined || this.#hasBeenUp) return false;
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
  async seal(request: SealRequest, signal?: AbortSignal): Promise<SealedChunk> {
    if (!isGathered(request)) {
      return this.run({ kind: "seal", request }, { signal });
    }
    if (signal === undefined) return this.#gathered.seal(request);
    const abandon = (): never => {
      throw cancelled(signal);
    };
    if (signal.aborted) return abandon();
    return unlessAborted(this.#gathered.seal(request), signal, abandon);
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
    const { signal, onHeldUp, onEndedAt, timeoutMs = this.#options.timeoutMs } = options;
    if (signal?.aborted === true) throw cancelled(signal);
    const { promise, ...settle } = Promise.withResolvers<ThreadResults[ThreadTaskKind]>();
    const job: Job = { id: this.#nextId++, task, timeoutMs, onHeldUp, onEndedAt, ...settle };
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
    const ready = this.#slots.flatMap(({ post }) => (post?.ready ? [post] : []));
    const idle = ready.filter(({ run }) => run === undefined);
    const answers = await Promise.allSettled(idle.map((post) => this.#pingIdle(post)));
    return ready.length > 0 && answers.every((answer) => answer.status === "fulfilled");
  }

  /** Ends every thread and rejects what waits and runs with SHUTTING_DOWN. Resolves when no thread is left. */
  close(): Promise<void> {
    this.#closing ??= this.#endAll();
    return this.#closing;
  }

  #pingIdle(post: Post): Promise<unknown> {
    const { promise, ...settle } = Promise.withResolvers<unknown>();
    const timeoutMs = Math.min(PING_MS_MAX, this.#options.timeoutMs);
    const task: ThreadTask = { kind: "ping", request: {} };
    this.#assign(post, {
      id: this.#nextId++,
      task,
      timeoutMs,
      onHeldUp: undefined,
      onEndedAt: undefined,
      ...settle,
    });
    return promise;
  }

  #start(slot: Slot): void {
    slot.restartTimer = undefined;
    const thread = new CpuThread(this.#options.workerUrl ?? KERNEL_URL, {
      onReady: () => this.#becomeReady(post),
      onReply: (reply) => this.#settle(post, reply),
      onDeath: (error) => this.#replace(post, error),
    });
    const post: Post = { number: slot.number, thread, ready: false, run: undefined };
    slot.post = post;
  }

  // No job is given to a thread before it is ready: one that can't even start must not take jobs down with it.
  #becomeReady(post: Post): void {
    post.ready = true;
    this.#hasBeenUp = true;
    this.#options.log?.({ kind: "thread-ready", thread: post.number });
    this.#dispatch();
  }

  #dispatch(): void {
    for (const slot of this.#slots) {
      // Until one is under way: a job that can't be sent leaves its thread idle.
      while (slot.post?.ready && slot.post.run === undefined) {
        const job = this.#waiting.shift();
        if (job === undefined) return;
        this.#assign(slot.post, job);
      }
    }
  }

  // One job per thread, not one running and one posted ahead: that one's payload would be gone with the thread that a poison
  // job kills, and a job would fail that did nothing.
  #assign(post: Post, job: Job): void {
    try {
      const { task, transfer } = portableTask(job.task);
      post.thread.post({ id: job.id, task }, transfer);
    } catch (cause) {
      // The thread has seen nothing of it and stays idle.
      job.reject(new LucidError("INTERNAL", "job can't be sent to a CPU thread", { cause }));
      return;
    }
    const run: Run = {
      job,
      timeout: this.#whenStillRunning(post, job, job.timeoutMs, () => this.#onTimeout(post, job)),
      setAside: this.#whenStillRunning(post, job, setAsideMs(job), () => this.#setAside(post)),
      heldUp: undefined,
    };
    post.run = run;
    if (job.onHeldUp !== undefined) this.#watchItems(post, run, job.onHeldUp, -1);
  }

  /**
   * If the loop itself was held up, the answer may be here, unread: a turn of the loop runs timers first, then messages, then
   * immediates. So the thread gets the rest of this turn.
   */
  #whenStillRunning(post: Post, job: Job, ms: number, act: () => void): NodeJS.Timeout {
    return setTimeout(() => setImmediate(() => post.run?.job === job && act()), ms);
  }

  #watchItems(post: Post, run: Run, onHeldUp: (at: number) => void, seenAt: number): void {
    run.heldUp = this.#whenStillRunning(post, run.job, HELD_UP_MS, () => {
      const at = post.thread.itemAt;
      // One that hasn't begun may only lack a core: setting it aside and its timeout are for that.
      if (at >= 0 && at === seenAt) onHeldUp(at);
      else this.#watchItems(post, run, onHeldUp, at);
    });
  }

  #settle(post: Post, reply: Exclude<ThreadReply, { state: "ready" }>): void {
    const job = post.run?.job;
    if (job === undefined || reply.id !== job.id) {
      this.#replace(
        post,
        new LucidError("THREAD_CRASHED", "CPU thread answered a job that it was not given"),
      );
      return;
    }
    release(post);
    if (this.#aside.delete(post)) this.#comeBack(post);
    const slot = this.#slotOf(post);
    if (slot !== undefined) slot.deaths = 0;
    if (reply.state === "failed") job.reject(new LucidError(reply.code, reply.message));
    else job.resolve(reply.result);
    this.#dispatch();
  }

  #onTimeout(post: Post, job: Job): void {
    const text = `job took longer than ${job.timeoutMs} ms in its CPU thread, which is replaced`;
    this.#replace(post, new LucidError("THREAD_TIMEOUT", text));
  }

  /** The thread keeps its job, until it answers or the job's time is over; a successor comes into its slot. */
  #setAside(post: Post): void {
    const slot = this.#slotOf(post);
    if (slot === undefined || this.#aside.size >= this.#slots.length) return;
    this.#aside.add(post);
    this.#start(slot);
  }

  /** It was slow, and no more than that: of itself and a successor that has nothing to do yet, the one with the warm code stays. */
  #comeBack(post: Post): void {
    const slot = this.#slots[post.number];
    const successor = slot?.post;
    if (slot === undefined || successor?.run !== undefined) return this.#end(post.thread);
    clearTimeout(slot.restartTimer);
    if (successor !== undefined) this.#end(successor.thread);
    slot.post = post;
  }

  #replace(post: Post, error: LucidError): void {
    const job = post.run?.job;
    release(post);
    this.#replaced += 1;
    this.#end(post.thread);
    this.#aside.delete(post);
    const slot = this.#slotOf(post);
    const delayMs = slot === undefined ? 0 : this.#restart(slot);
    job?.onEndedAt?.(Math.max(0, post.thread.itemAt));
    job?.reject(error);
    this.#options.log?.({ kind: "thread-replaced", thread: post.number, error, delayMs });
  }

  /** Returns the milliseconds after which another thread is started here. */
  #restart(slot: Slot): number {
    slot.post = undefined;
    slot.deaths += 1;
    const delayMs = restartDelayMs(slot.deaths);
    slot.restartTimer = setTimeout(() => this.#start(slot), delayMs);
    return delayMs;
  }

  #slotOf(post: Post): Slot | undefined {
    return this.#slots.find((slot) => slot.post === post);
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
    for (const slot of this.#slots) clearTimeout(slot.restartTimer);
    const posts = [...this.#slots.flatMap(({ post }) => (post === undefined ? [] : [post])), ...this.#aside];
    for (const post of posts) {
      post.run?.job.reject(closed());
      release(post);
      this.#end(post.thread);
    }
    for (const slot of this.#slots) slot.post = undefined;
    this.#aside.clear();
    await Promise.all(this.#ending);
  }
}

function setAsideMs({ timeoutMs }: Job): number {
  return Math.max(timeoutMs * SET_ASIDE_SHARE, SET_ASIDE_MS_MIN);
}

function release(post: Post): void {
  clearTimeout(post.run?.timeout);
  clearTimeout(post.run?.setAside);
  clearTimeout(post.run?.heldUp);
  post.run = undefined;
}

function restartDelayMs(deaths: number): number {
  return deaths <= 1 ? 0 : Math.min(RESTART_DELAY_MS * 2 ** (deaths - 2), RESTART_DELAY_MS_MAX);
}

function closed(): LucidError {
  return new LucidError("SHUTTING_DOWN", "CPU threads are closed");
}

function cancelled(signal: AbortSignal | undefined): LucidError {
  const reason: unknown = signal?.reason;
  if (reason instanceof LucidError) return reason;
  return new LucidError("SHUTTING_DOWN", "job was cancelled before its CPU thread finished", {
    cause: reason,
  });
}
