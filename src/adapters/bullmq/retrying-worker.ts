import { setTimeout as sleep } from "node:timers/promises";
import { type Job, type Processor, Worker, type WorkerOptions } from "bullmq";
import { LucidError } from "../../core/errors.ts";
import { leadingFields, plainFields, refusalOfText, type TextLimits } from "../../pipeline/job-text.ts";
import { isVerdict } from "./verdicts.ts";

/** Pause after Redis refused to hand out a job (out of memory, for one): without it BullMQ asks again at once. */
const REFUSED_PAUSE_MS = 500;
/** Pause after the check for stalled jobs failed. */
const CHECK_PAUSE_MS = 1_000;
/** A producer may ask for more attempts than RETRY_ATTEMPTS, but for no more than this. */
const ATTEMPTS_ASKED_MAX = 5;
const RETRY_PAUSE_MAX_MS = 10 * 60_000;

export interface Retention {
  readonly ageSeconds: number;
  readonly count: number;
}

export interface JobPolicy {
  readonly retryAttempts: number;
  /** First pause before a retry, milliseconds; doubles with each, with jitter. */
  readonly retryDelayMs: number;
  readonly retentionCompleted: Retention;
  readonly retentionFailed: Retention;
}

type RawJob = Parameters<Worker["createJob"]>[0];

/**
 * BullMQ's Worker with its gaps closed: a job's own options can't switch off retries and retention, a job that isn't
 * JSON or is too long to be parsed reaches the processor, a completion that Redis refuses isn't a failure of the job, and
 * a Redis that refuses to hand out jobs isn't asked in a hot loop.
 */
export class RetryingWorker extends Worker<unknown, unknown, string> {
  readonly #policy: JobPolicy;
  readonly #textLimits: TextLimits;
  readonly #closed = new AbortController();
  /** Jobs that lost their worker too often; the processor gives the verdict, so that its event comes first. */
  readonly #stalledTooOften = new WeakSet<Job>();
  readonly #unread = new WeakMap<Job, LucidError>();

  constructor(
    queue: string,
    processor: Processor<unknown, unknown>,
    options: WorkerOptions,
    policy: JobPolicy,
    textLimits: TextLimits,
  ) {
    super(queue, processor, {
      ...options,
      autorun: false,
      removeOnComplete: keepJobs(policy.retentionCompleted),
      removeOnFail: keepJobs(policy.retentionFailed),
      settings: { backoffStrategy: (attemptsMade) => retryPauseMs(attemptsMade, policy.retryDelayMs) },
    });
    this.#policy = policy;
    this.#textLimits = textLimits;
  }

  hasStalledTooOften(job: Job): boolean {
    return this.#stalledTooOften.has(job);
  }

  /** Why the job's data in Redis wasn't parsed, if it wasn't; `job.data` is then no more than what tells whose job it is. */
  refusalOf(job: Job): LucidError | undefined {
    return this.#unread.get(job);
  }

  /** Ends lock renewal and its timer when `close` can't get that far, because Redis is away. */
  async abandon(): Promise<void> {
    await this.lockManager.close();
  }

  /** Every delivery passes here. The Python client sets neither attempts nor retention unless it is told to. */
  protected override createJob(raw: RawJob, jobId: string): Job<unknown, unknown, string> {
    const job = this.#readJob(raw, jobId);
    const { retryAttempts, retentionCompleted, retentionFailed } = this.#policy;
    Object.assign(job.opts, {
      attempts: Math.max(retryAttempts, Math.min(job.opts.attempts ?? 0, ATTEMPTS_ASKED_MAX)),
      backoff: { type: "exponential-with-jitter" },
      removeOnComplete: keepJobs(retentionCompleted),
      removeOnFail: keepJobs(retentionFailed),
      // A stack holds messages, and messages of unforeseen errors may hold anything.
      stackTraceLimit: 0,
    });
    if (job.deferredFailure !== undefined) {
      this.#stalledTooOften.add(job);
      delete (job as { deferredFailure?: string }).deferredFailure;
    }
    return job;
  }

  /**
   * Replies come one after the other over one connection, and what is refused is let go of here: however many jobs run at
   * a time, one text that is too long is held, and none is parsed.
   */
  #readJob(raw: RawJob, jobId: string): Job<unknown, unknown, string> {
    const refusal = refusalOfText(raw.data, this.#textLimits);
    if (refusal !== undefined)
      return this.#withoutData(raw, jobId, refusal, plainFields(leadingFields(raw.data)));
    try {
      return super.createJob(raw, jobId);
    } catch {
      // Data that isn't JSON, which only a hand can have written: BullMQ would stumble over it again and again.
      const notJson = new LucidError("JOB_INVALID", "the job's data is not JSON");
      return this.#withoutData(raw, jobId, notJson, null);
    }
  }

  #withoutData(
    raw: RawJob,
    jobId: string,
    refusal: LucidError,
    data: unknown,
  ): Job<unknown, unknown, string> {
    const job = super.createJob({ ...raw, data: JSON.stringify(data) }, jobId);
    this.#unread.set(job, refusal);
    return job;
  }

  protected override async moveToActive(
    token: string,
    name?: string,
  ): Promise<Job<unknown, unknown, string>> {
    try {
      return await super.moveToActive(token, name);
    } catch (thrown) {
      await this.#pauseUnlessClosing(REFUSED_PAUSE_MS);
      throw thrown;
    }
  }

  /** Around the check for stalled jobs. BullMQ's own pause is 5 s and goes on after `close`. */
  protected override async checkConnectionError<Result>(
    check: () => Promise<Result>,
  ): Promise<Result | undefined> {
    try {
      return await check();
    } catch (thrown) {
      this.emit("error", thrown as Error);
      await this.#pauseUnlessClosing(CHECK_PAUSE_MS);
      return undefined;
    }
  }

  override close(force?: boolean): Promise<void> {
    this.#closed.abort();
    return super.close(force);
  }

  async #pauseUnlessClosing(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#closed.signal }).catch(() => undefined);
  }

  /**
   * BullMQ also comes here when Redis refused the *completion* of a job that went well. Failing it would cost an
   * attempt and put the driver's text into Redis. We leave it: its lock runs out, it is delivered again, and the
   * store says that it is done.
   */
  protected override async handleFailed(
    ...[thrown, ...rest]: Parameters<Worker<unknown, unknown, string>["handleFailed"]>
  ): Promise<Job<unknown, unknown, string>> {
    if (isVerdict(thrown)) return super.handleFailed(thrown, ...rest);
    this.emit("error", thrown);
    return undefined as never;
  }
}

export function keepJobs({ ageSeconds, count }: Retention): { age: number; count: number } {
  return { age: ageSeconds, count };
}

/** Exponential, between half and all of the step: jobs that failed together don't come back together. */
function retryPauseMs(attemptsMade: number, firstMs: number): number {
  const step = Math.min(firstMs * 2 ** (attemptsMade - 1), RETRY_PAUSE_MAX_MS);
  return Math.max(1, Math.round(step * (0.5 + Math.random() / 2)));
}
