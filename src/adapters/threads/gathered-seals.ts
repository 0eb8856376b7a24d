import { asLucidError, errorCodeOf, LucidError } from "../../core/errors.ts";
import type { SealedChunk, SealRequest } from "../../core/kernel.ts";
import type { SealOutcome } from "../../schema/thread.ts";
import { coalesce } from "../coalesce.ts";
import type { CpuThreads, RunOptions } from "./cpu-threads.ts";

/**
 * Chunks go to a thread together if passing them costs more than the work: 0.15 ms each at most, on the machine of `npm run bench`. What
 * takes longer goes alone, to any thread. By codec, up to which level and size.
 */
const GATHERED = {
  none: [{ levelMax: 0, bytesMax: 16 * 1024 }],
  lz4: [{ levelMax: 0, bytesMax: 16 * 1024 }],
  zstd: [
    { levelMax: 3, bytesMax: 16 * 1024 },
    { levelMax: 9, bytesMax: 4 * 1024 },
  ],
  brotli: [{ levelMax: 5, bytesMax: 4 * 1024 }],
} as const;
const ITEMS_MAX = 64;
/**
 * They all go to one thread, as long as it answers: two would take them in smaller groups, and wake each other's cores. At 4 KiB
 * and 50 jobs at a time that costs an eighth of the chunks a second.
 */
const LANE_DELAY_MS = 50;
/** Of the time that a job is given. They take milliseconds, so that much less than for a large chunk means that one hangs. */
const TIMEOUT_SHARE = 1 / 6;
/** A thread may be slow rather than hang: what is sent again and again makes the machine slower. */
const RESENT_MAX = 3;

export interface GatheredSealsOptions {
  readonly threads: number;
  /** Of a job alone. */
  readonly timeoutMs: number;
}

export function isGathered({ payload, compression: { algorithm, level } }: SealRequest): boolean {
  return GATHERED[algorithm].some(
    ({ levelMax, bytesMax }) => level <= levelMax && payload.byteLength <= bytesMax,
  );
}

/** Whichever answer comes first counts: the work is pure, but for the nonce, and the other's result goes nowhere. */
interface Sealing {
  readonly request: SealRequest;
  readonly resolve: (chunk: SealedChunk) => void;
  readonly reject: (reason: Error) => void;
  isSettled: boolean;
  /** Times that it was sent again because another one held its thread up. */
  resent: number;
}

/** Seals small chunks together. One that can't be sealed, that hangs its thread or ends it, fails alone. */
export class GatheredSeals {
  readonly #pool: Pick<CpuThreads, "run">;
  readonly #timeoutMs: number;
  readonly #gather: (sealing: Sealing) => Promise<void>;

  constructor(pool: Pick<CpuThreads, "run">, { threads, timeoutMs }: GatheredSealsOptions) {
    this.#pool = pool;
    this.#timeoutMs = timeoutMs * TIMEOUT_SHARE;
    this.#gather = coalesce({
      lanes: threads,
      laneDelayMs: LANE_DELAY_MS,
      itemsMax: ITEMS_MAX,
      send: (sealings) => this.#send(sealings),
    });
  }

  /** Errors of sealChunk, CpuThreads.run. */
  seal(request: SealRequest): Promise<SealedChunk> {
    return new Promise((resolve, reject) => {
      const sealing: Sealing = {
        request,
        resolve(chunk) {
          sealing.isSettled = true;
          resolve(chunk);
        },
        reject(reason) {
          sealing.isSettled = true;
          reject(reason);
        },
        isSettled: false,
        resent: 0,
      };
      this.#submit(sealing);
    });
  }

  #submit(sealing: Sealing): void {
    this.#gather(sealing).catch((thrown: unknown) => sealing.reject(asLucidError(thrown)));
  }

  #submitAlone(sealing: Sealing): void {
    this.#send([sealing]).catch((thrown: unknown) => sealing.reject(asLucidError(thrown)));
  }

  /** Resolves when the thread has answered, or keeps only what holds it up; rejects if it took none of them. */
  async #send(sealings: readonly Sealing[]): Promise<readonly void[]> {
    const open = sealings.filter(({ isSettled }) => !isSettled);
    if (open.length > 0) {
      const free = Promise.withResolvers<void>();
      this.#sealTogether(open, free.resolve).then(free.resolve, free.reject);
      await free.promise;
    }
    return sealings.map(() => undefined);
  }

  async #sealTogether(sealings: readonly Sealing[], setFree: () => void): Promise<void> {
    /** Which no other group has. */
    const kept = new Set(sealings);
    let last: Sealing | undefined;
    const onHeldUp = (at: number): void => {
      for (const [position, sealing] of sealings.entries()) {
        if (position === at || sealing.isSettled || sealing.resent >= RESENT_MAX) continue;
        kept.delete(sealing);
        sealing.resent += 1;
        this.#submit(sealing);
      }
      setFree();
    };
    const onEndedAt = (at: number): void => {
      last = sealings[at];
    };
    try {
      const outcomes = await this.#run(sealings, { onHeldUp, onEndedAt });
      for (const [at, sealing] of sealings.entries()) settle(sealing, outcomes[at]);
    } catch (thrown) {
      // It was given to no thread, or none of them was as it should be.
      if (last === undefined) throw thrown;
      // Whether it was this one that ended its thread shows when it is alone; the time of one that hangs is over.
      const isDecided = sealings.length === 1 || errorCodeOf(thrown) === "THREAD_TIMEOUT";
      // Each alone: were there more of its kind among them, a group would end one thread after another.
      for (const sealing of kept) {
        if (isDecided && sealing === last) sealing.reject(asLucidError(thrown));
        else this.#submitAlone(sealing);
      }
    }
  }

  async #run(
    sealings: readonly Sealing[],
    heard: Pick<RunOptions, "onHeldUp" | "onEndedAt">,
  ): Promise<readonly SealOutcome[]> {
    const { outcomes } = await this.#pool.run(
      { kind: "seal-many", request: { requests: sealings.map(({ request }) => request) } },
      { timeoutMs: this.#timeoutMs, ...heard },
    );
    return outcomes;
  }
}

function settle(sealing: Sealing, outcome: SealOutcome | undefined): void {
  if (outcome === undefined) sealing.reject(missing());
  else if (outcome.state === "sealed") sealing.resolve(outcome.chunk);
  else sealing.reject(new LucidError(outcome.code, outcome.message));
}

function missing(): LucidError {
  return new LucidError("INTERNAL", "a CPU thread answered another number of chunks than it was sent");
}
