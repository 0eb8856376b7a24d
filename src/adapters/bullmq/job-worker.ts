import type { Job } from "bullmq";
import { asLucidError, type ErrorCode, LucidError } from "../../core/errors.ts";
import { repeatableJobId } from "../../pipeline/event-ids.ts";
import { type FailureIdentity, failureIdentity } from "../../pipeline/parse-job.ts";
import type { Clock } from "../../pipeline/ports.ts";
import { closeClient, type OwnedRedis, type RedisTarget, waitingClient } from "../redis/client.ts";
import { redisErrorCode, throwRedisError } from "../redis/errors.ts";
import { plainFields, type TextLimits } from "../../pipeline/job-text.ts";
import { countOf, pauseAfter } from "./put-off.ts";
import { type JobPolicy, RetryingWorker } from "./retrying-worker.ts";
import { failAttempt, failForGood, isLostLock, isVerdict, released } from "./verdicts.ts";

/** How long an idle worker blocks for a job, seconds; a new job ends it at once, this only bounds a lost wake-up. */
const DRAIN_DELAY_SECONDS = 5;
/** BullMQ's pause after a lost connection; its default of 15 s is longer than the outage may cost. */
const RUN_RETRY_DELAY_MS = 500;
/** In an outage: the pause, in the job's own place, keeps all the jobs from going round and round. */
const RELEASE_PAUSE_MS = 1_000;
/** A job that is put off for its own sake stays away for this long, doubled each time in a row. */
const PUT_OFF = { firstMs: 1_000, maxMs: 60_000 };
/** Times in a row, three minutes in all, that a job is put off because its chunk's fate isn't decided. */
const UNDECIDED_ROUNDS_MAX = 8;
/** Released for what every job meets, or every job of this process; what else releases a job is its own trouble, or its session's. */
const EVERYBODYS: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "STORE_UNAVAILABLE",
  "QUEUE_UNAVAILABLE",
  "SHUTTING_DOWN",
  "KEK_MISMATCH",
  "MANIFEST_DIRECTORY_UNUSABLE",
]);
/** After the deadline, for aborted jobs to go back to the queue. */
const RELEASE_GRACE_MS = 1_500;
/** With no job running, how long Redis may take to say goodbye. */
const IDLE_CLOSE_MS = 1_000;
const IDLE_POLL_MS = 20;

export interface JobContext {
  /** As it may be shown: the queue's own id, or its digest if that could hold anything. */
  readonly jobId: string;
  /** 1 for the first. */
  readonly attempt: number;
  /** Nobody was given the job before. Of another job for the same thing it says nothing. */
  readonly isFirstDelivery: boolean;
  /** Fires when the job must end now, to be released. */
  readonly signal: AbortSignal;
}

/** One delivery of a job, told once it has ended. `failed` is final; `retried` comes back; `released` isn't counted. */
export interface JobOutcome extends FailureIdentity {
  readonly queue: string;
  readonly jobId: string;
  readonly attempt: number;
  readonly outcome: "completed" | "retried" | "failed" | "released";
  /** Why it didn't go well. With `completed`: the job was about to fail for it, but its effect is there. */
  readonly error?: LucidError;
  readonly seconds: number;
}

export interface JobObserver {
  /** Errors of connections and of BullMQ. May come thousands of times a minute: limit the rate where it is logged. */
  onError(where: string, code: ErrorCode): void;
  onOutcome(outcome: JobOutcome): void;
  /** A worker lost its lock on this job: it died, or its event loop hung. */
  onStalled(queue: string, jobId: string): void;
}

export interface ConsumerOptions extends JobPolicy {
  readonly redisUrl: string;
  readonly prefix: string;
  /** Jobs at a time. */
  readonly concurrency: number;
  readonly lockDurationMs: number;
  readonly stalledIntervalMs: number;
  /** How often a job may lose its worker before it is a dead letter. */
  readonly stalledCountMax: number;
  readonly clock: Clock;
  readonly observer: JobObserver;
}

export interface Consumer {
  /** Begins to fetch jobs. Doesn't wait for Redis: that may come later. */
  start(): void;
  setConcurrency(jobs: number): void;
  /** Jobs being worked on. */
  readonly running: number;
  /** Deliveries taken off the queue since the start; stands still while jobs wait → nothing is being picked up. */
  readonly deliveries: number;
  /** Redis commands sent so far, of both connections' shared half. */
  readonly commands: number;
  readonly connected: boolean;
  /**
   * Stops fetching at once, lets running jobs finish, and aborts at the deadline those that haven't, so that they go back
   * to the queue with no attempt used. Ends at most `RELEASE_GRACE_MS` after the deadline, also without Redis.
   * A second call doesn't wait any more. Never rejects.
   */
  stop(options: { readonly deadlineMs: number }): Promise<void>;
}

/** What is there of a job's effect. */
export type JobStanding<Result = unknown> =
  /** All of it, or what is left is made up for without the job: it is completed with this result. */
  | { readonly kind: "done"; readonly result: Result }
  | { readonly kind: "none" }
  /** It will be known in a moment; asked again, but not for ever: then it is as good as unclear. */
  | { readonly kind: "undecided" }
  /** Nobody can tell. */
  | { readonly kind: "unclear" };

/** What a kind of job does. */
export interface JobKind {
  readonly queue: string;
  readonly jobName: string;
  /** Data beyond them is refused before it is parsed. */
  readonly textLimits: TextLimits;
  run(job: Job<unknown, unknown, string>, context: JobContext): Promise<unknown>;
  /**
   * Asked before a job fails for good, whatever for: some verdicts are given without a look at the store, and some after
   * what mattered was done. May throw what releases the job.
   */
  standing(job: Job<unknown, unknown, string>, context: JobContext): Promise<JobStanding>;
  /** Before a job fails for good: tell the neighbours. May throw QUEUE_UNAVAILABLE: the job then stays. */
  announceFailure(job: Job<unknown, unknown, string>, context: JobContext, error: LucidError): Promise<void>;
  /** No retry of a job that was refused with this code can succeed: of its data, which may be anything, only the ids stay. */
  isRefusedForEver(code: ErrorCode): boolean;
}

type Tell = (outcome: JobOutcome["outcome"], error?: LucidError) => void;

const UNCLEAR: JobStanding = { kind: "unclear" };

export function createConsumer(kind: JobKind, options: ConsumerOptions): Consumer {
  return new JobConsumer(kind, options);
}

class JobConsumer implements Consumer {
  readonly #kind: JobKind;
  readonly #options: ConsumerOptions;
  readonly #client: OwnedRedis;
  readonly #worker: RetryingWorker;
  readonly #stopping = new AbortController();
  #running = 0;
  #deliveries = 0;
  #isStarted = false;
  #stopped: Promise<void> | undefined;
  #cut = Promise.withResolvers<void>();

  constructor(kind: JobKind, options: ConsumerOptions) {
    this.#kind = kind;
    this.#options = options;
    const target: RedisTarget = {
      url: options.redisUrl,
      onError: (where, code) => options.observer.onError(where, code),
    };
    this.#client = waitingClient(target, kind.queue);
    this.#worker = new RetryingWorker(
      kind.queue,
      // Three parameters, or BullMQ makes no signal.
      (job, token, signal) => this.#process(job, token ?? "", signal ?? new AbortController().signal),
      {
        connection: this.#client,
        prefix: options.prefix,
        concurrency: options.concurrency,
        lockDuration: options.lockDurationMs,
        stalledInterval: options.stalledIntervalMs,
        maxStalledCount: options.stalledCountMax,
        drainDelay: DRAIN_DELAY_SECONDS,
        runRetryDelay: RUN_RETRY_DELAY_MS,
      },
      options,
      kind.textLimits,
    );
    this.#listen();
  }

  get running(): number {
    return this.#running;
  }

  get deliveries(): number {
    return this.#deliveries;
  }

  get commands(): number {
    return this.#client.commands;
  }

  get connected(): boolean {
    return this.#client.status === "ready";
  }

  start(): void {
    if (this.#isStarted || this.#stopped !== undefined) return;
    this.#isStarted = true;
    this.#worker.run().catch((thrown: unknown) => this.#report(thrown));
  }

  setConcurrency(jobs: number): void {
    this.#worker.concurrency = jobs;
  }

  stop({ deadlineMs }: { readonly deadlineMs: number }): Promise<void> {
    if (this.#stopped === undefined) {
      this.#stopped = this.#stop(deadlineMs);
    } else {
      this.#worker.cancelAllJobs();
      this.#cutOff();
    }
    return this.#stopped;
  }

  async #stop(deadlineMs: number): Promise<void> {
    this.#stopping.abort();
    // From here on nothing is fetched; it resolves when all jobs have ended, which it can't tell while Redis is away.
    const closing = this.#worker.close().catch((thrown: unknown) => this.#report(thrown));
    const closed = Promise.race([closing, this.#cut.promise]);
    const hasClosed = await endsWithin(closed, deadlineMs, () => this.#isOnlyWaitingForRedis());
    if (!hasClosed && this.#running > 0) {
      this.#worker.cancelAllJobs();
      await endsWithin(closed, RELEASE_GRACE_MS, () => this.#isOnlyWaitingForRedis());
    }
    if (this.connected) await closeClient(this.#client);
    this.#cutOff();
    await this.#worker.abandon();
  }

  #cutOff(): void {
    this.#client.cut();
    this.#cut.resolve();
  }

  #isOnlyWaitingForRedis(): boolean {
    return this.#running === 0 && !this.connected;
  }

  async #process(job: Job<unknown, unknown, string>, token: string, signal: AbortSignal): Promise<unknown> {
    const startedMs = this.#options.clock.monotonicMs();
    const context: JobContext = {
      jobId: repeatableJobId(job.id ?? ""),
      attempt: job.attemptsMade + 1,
      isFirstDelivery: job.attemptsStarted === 1,
      signal,
    };
    const tell: Tell = (outcome, error) =>
      this.#options.observer.onOutcome({
        queue: this.#kind.queue,
        jobId: context.jobId,
        attempt: context.attempt,
        ...failureIdentity(job.data),
        outcome,
        ...(error === undefined ? {} : { error }),
        seconds: (this.#options.clock.monotonicMs() - startedMs) / 1000,
      });
    this.#running += 1;
    this.#deliveries += 1;
    try {
      const result = await this.#attempt(job, context);
      tell("completed");
      return result;
    } catch (thrown) {
      return await this.#verdict(job, token, context, asLucidError(thrown), tell);
    } finally {
      this.#running -= 1;
    }
  }

  async #attempt(job: Job<unknown, unknown, string>, context: JobContext): Promise<unknown> {
    const refusal = this.#worker.refusalOf(job);
    if (refusal !== undefined) throw refusal;
    if (this.#worker.hasStalledTooOften(job)) {
      throw new LucidError(
        "JOB_STALLED_TOO_OFTEN",
        "the job lost its worker too often; look for crashes, then retry it",
      );
    }
    if (job.name !== this.#kind.jobName) {
      throw new LucidError("JOB_NAME_UNKNOWN", `jobs of this queue are named ${this.#kind.jobName}`);
    }
    return this.#kind.run(job, context);
  }

  /** The table of core/errors.ts: throws what tells BullMQ what to do, or returns the result of a job that is done after all. */
  async #verdict(
    job: Job<unknown, unknown, string>,
    token: string,
    context: JobContext,
    error: LucidError,
    tell: Tell,
  ): Promise<unknown> {
    const release = async (reason: LucidError): Promise<never> => {
      tell("released", reason);
      const isEverybodys = EVERYBODYS.has(reason.code) || context.signal.aborted;
      throw await (isEverybodys ? this.#release(job, token, context.signal) : this.#putOff(job, token));
    };
    if (error.disposition === "released" || error.disposition === "fatal") return release(error);
    if (error.disposition === "retryable" && context.attempt < (job.opts.attempts ?? 1)) {
      tell("retried", error);
      throw failAttempt(error);
    }
    let standing: JobStanding;
    try {
      standing = await this.#beforeFailure(job, context, error);
    } catch (thrown) {
      return release(asLucidError(thrown));
    }
    if (standing.kind === "undecided") {
      tell("released", error);
      throw await this.#putOff(job, token);
    }
    tell(standing.kind === "done" ? "completed" : "failed", error);
    if (standing.kind === "done") return standing.result;
    throw failForGood(error);
  }

  /**
   * A look for what the job has done, then the event, then the data, then (by the caller) the verdict. If we die after the
   * event, the job comes back and tells it again under the same id. If we die after the data, the job comes back without
   * its bytes: it is refused again, as JOB_INVALID. Throws only what releases the job.
   */
  async #beforeFailure(
    job: Job<unknown, unknown, string>,
    context: JobContext,
    error: LucidError,
  ): Promise<JobStanding> {
    const found =
      (await this.#unlessReleased("standing", () => this.#kind.standing(job, context))) ?? UNCLEAR;
    const isGivenUp = found.kind === "undecided" && countOf(job, "put_off") >= UNDECIDED_ROUNDS_MAX;
    const standing = isGivenUp ? UNCLEAR : found;
    if (standing.kind === "done" || standing.kind === "undecided") return standing;
    // A dead letter that is retried begins anew.
    if (isGivenUp) await this.#unlessReleased("dead letter", () => this.#countPutOff(job, 0));
    if (standing.kind === "none") {
      // An event that can't be told at all must not keep a dead job alive.
      await this.#unlessReleased("failure event", () => this.#kind.announceFailure(job, context, error));
    }
    if (this.#worker.refusalOf(job) !== undefined || this.#kind.isRefusedForEver(error.code)) {
      const kept = plainFields(job.data);
      // What fails here is, for one, a job that a hand has removed meanwhile: there is no data left to change.
      await this.#unlessReleased("dead letter", () => job.updateData(kept).catch(throwRedisError));
    }
    return standing;
  }

  /** Errors that release a job are thrown; others are reported, and end here. */
  async #unlessReleased<Result>(what: string, step: () => Promise<Result>): Promise<Result | undefined> {
    try {
      return await step();
    } catch (thrown) {
      const { code, disposition } = asLucidError(thrown);
      if (disposition === "released") throw thrown;
      this.#options.observer.onError(`${this.#kind.queue} ${what}`, code);
      return undefined;
    }
  }

  /**
   * Back to the waiting jobs, with no attempt used, at their head: whoever is free takes it at once. Right where the others
   * would fare no better; for a job's own trouble see `#putOff`. Not by way of the delayed ones: their time is a wall
   * clock's, and an hour's step of that would keep all jobs away for an hour.
   */
  async #release(job: Job<unknown, unknown, string>, token: string, signal: AbortSignal): Promise<Error> {
    await this.#options.clock.sleep(RELEASE_PAUSE_MS, AbortSignal.any([signal, this.#stopping.signal]));
    try {
      await job.moveToWait(token);
    } catch (thrown) {
      // Redis is away, or the lock was lost: either way the stalled check gives the job back.
      this.#report(thrown, "release");
    }
    return released();
  }

  /**
   * Away for a while, with no attempt used, and then behind all that wait: a job that can't go on must not stand in the
   * way of those that can. It takes up no place meanwhile. The count lies in Redis, so that all workers go on counting.
   */
  async #putOff(job: Job<unknown, unknown, string>, token: string): Promise<Error> {
    const times = countOf(job, "put_off");
    const pauseMs = pauseAfter(times, PUT_OFF);
    try {
      await this.#countPutOff(job, times + 1);
      // Dies here: counted, and still ours until the stalled check gives it back.
      await job.moveToDelayed(Date.now() + pauseMs, token);
    } catch (thrown) {
      // As in #release. A lock that was lost is another worker's by now, and so is the job.
      this.#report(thrown, "put off");
    }
    return released();
  }

  async #countPutOff(job: Job<unknown, unknown, string>, times: number): Promise<void> {
    await job.updateProgress({ put_off: times }).catch(throwRedisError);
  }

  #listen(): void {
    const { observer } = this.#options;
    this.#worker.on("error", (thrown) => this.#report(thrown));
    this.#worker.on("stalled", (jobId) => observer.onStalled(this.#kind.queue, repeatableJobId(jobId)));
  }

  #report(thrown: unknown, what = "worker"): void {
    if (isVerdict(thrown)) return;
    const code = isLostLock(thrown) ? "JOB_LOCK_LOST" : redisErrorCode(thrown);
    this.#options.observer.onError(`${this.#kind.queue} ${what}`, code);
  }
}

/** True if `end` came in time. With nothing left to wait for but a lost connection, `IDLE_CLOSE_MS` is enough. */
async function endsWithin(
  end: Promise<unknown>,
  timeoutMs: number,
  isHopeless: () => boolean,
): Promise<boolean> {
  const { promise: gaveUp, resolve: giveUp } = Promise.withResolvers<false>();
  const startedMs = performance.now();
  let hopelessMs = 0;
  const poll = setInterval(() => {
    hopelessMs = isHopeless() ? hopelessMs + IDLE_POLL_MS : 0;
    if (performance.now() - startedMs >= timeoutMs || hopelessMs >= IDLE_CLOSE_MS) giveUp(false);
  }, IDLE_POLL_MS);
  try {
    return await Promise.race([end.then(() => true), gaveUp]);
  } finally {
    clearInterval(poll);
  }
}
