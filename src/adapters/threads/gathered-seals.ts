import { errorCodeOf, LucidError } from "../../core/errors.ts";
import type { SealedChunk, SealRequest } from "../../core/kernel.ts";
import type { SealOutcome } from "../../schema/thread.ts";
import { coalesce } from "../coalesce.ts";
import type { CpuThreads } from "./cpu-threads.ts";

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

/** Not settled yet for a chunk that its thread hangs at, whose company has been sent again. */
interface Sealing {
  readonly chunk: Promise<SealedChunk>;
}

/** Seals small chunks together. One that can't be sealed, that hangs its thread or ends it, fails alone. */
export class GatheredSeals {
  readonly #pool: Pick<CpuThreads, "run">;
  readonly #timeoutMs: number;
  readonly #gather: (request: SealRequest) => Promise<Sealing>;

  constructor(pool: Pick<CpuThreads, "run">, { threads, timeoutMs }: GatheredSealsOptions) {
    this.#pool = pool;
    this.#timeoutMs = timeoutMs * TIMEOUT_SHARE;
    this.#gather = coalesce({
      lanes: threads,
      laneDelayMs: LANE_DELAY_MS,
      itemsMax: ITEMS_MAX,
      send: (requests) => this.#send(requests),
    });
  }

  /** Errors of sealChunk, CpuThreads.run. */
  async seal(request: SealRequest): Promise<SealedChunk> {
    const { chunk } = await this.#gather(request);
    return chunk;
  }

  /** Resolves when the thread has answered, or keeps nobody but the chunk that holds it up; rejects if it took none of them. */
  async #send(requests: readonly SealRequest[]): Promise<readonly Sealing[]> {
    const sealings = requests.map(() => Promise.withResolvers<SealedChunk>());
    const free = Promise.withResolvers<void>();
    this.#sealTogether(requests, sealings, free.resolve).then(free.resolve, free.reject);
    await free.promise;
    return sealings.map(({ promise }) => ({ chunk: promise }));
  }

  async #sealTogether(
    requests: readonly SealRequest[],
    sealings: readonly PromiseWithResolvers<SealedChunk>[],
    setFree: () => void,
  ): Promise<void> {
    const kept = new Set(requests.keys());
    let heldUpAt: number | undefined;
    const sendAgain = (
      positions: readonly number[],
      seal: (request: SealRequest) => Promise<SealedChunk>,
    ) => {
      for (const at of positions) {
        const request = requests[at];
        if (request !== undefined && kept.delete(at)) sealings[at]?.resolve(seal(request));
      }
    };
    const onHeldUp = (at: number): void => {
      heldUpAt = at;
      sendAgain(
        [...kept].filter((position) => position !== at),
        (request) => this.seal(request),
      );
      setFree();
    };
    try {
      const outcomes = await this.#run(requests, onHeldUp);
      for (const at of kept) settle(sealings[at], outcomes[at]);
    } catch (thrown) {
      // It was given to no thread, or none of them was as it should be.
      if (heldUpAt === undefined) throw thrown;
      // Whether it was this one that ended its thread shows when it is alone; the time of one that hangs is over.
      const isDecided = requests.length === 1 || errorCodeOf(thrown) === "THREAD_TIMEOUT";
      if (isDecided && kept.has(heldUpAt)) sealings[heldUpAt]?.reject(thrown);
      else sendAgain([...kept], (request) => this.#sealAlone(request));
    }
  }

  async #sealAlone(request: SealRequest): Promise<SealedChunk> {
    const [sealing] = await this.#send([request]);
    if (sealing === undefined) throw missing();
    return sealing.chunk;
  }

  async #run(
    requests: readonly SealRequest[],
    onHeldUp: (at: number) => void,
  ): Promise<readonly SealOutcome[]> {
    const { outcomes } = await this.#pool.run(
      { kind: "seal-many", request: { requests: [...requests] } },
      { timeoutMs: this.#timeoutMs, onHeldUp },
    );
    return outcomes;
  }
}

function settle(
  sealing: PromiseWithResolvers<SealedChunk> | undefined,
  outcome: SealOutcome | undefined,
): void {
  if (outcome === undefined) sealing?.reject(missing());
  else if (outcome.state === "sealed") sealing?.resolve(outcome.chunk);
  else sealing?.reject(new LucidError(outcome.code, outcome.message));
}

function missing(): LucidError {
  return new LucidError("INTERNAL", "a CPU thread answered another number of chunks than it was sent");
}
