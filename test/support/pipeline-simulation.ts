import { blake3 } from "../../src/core/digest.ts";
import { errorCodeOf, ERROR_DISPOSITIONS, type ErrorCode } from "../../src/core/errors.ts";
import {
  canonicalChunkId,
  type ChunkId,
  type LeafHash,
  type LeafIndex,
  type SessionId,
} from "../../src/core/ids.ts";
import { emptyFrontier } from "../../src/core/merkle/frontier.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { type AppendResult, applyAppend, planAppend, tileKey } from "../../src/core/merkle/tiles.ts";
import { chunkCompletedEventId } from "../../src/pipeline/event-ids.ts";
import type { PipelineOptions } from "../../src/pipeline/pipeline.ts";
import type { ChunkJob, FinalizeJob } from "../../src/pipeline/ports.ts";
import { chunk as chunkRecord } from "./memory/records.ts";
import { PipelineWitness } from "./pipeline-witness.ts";
import {
  type Fault,
  PipelineWorld,
  type PortCall,
  SIMULATED_OPTIONS,
  type SimulatedWorker,
  type WorldHooks,
} from "./pipeline-world.ts";
import { type SeededRandom, seededRandom } from "./seeded-random.ts";

/*
 * One seed: a session or two, their jobs in any order with repeats, forgeries and latecomers, a queue that delivers at
 * least once, workers that die, and the witness. Whatever happens, the witness must see nothing wrong, and in the end
 * every job must have an outcome that the history explains.
 */

/** A lock that is not renewed any more is given to somebody else after this. */
const LOCK_MS = 1_500;
const RELEASE_MS = 300;
const BACKOFF_MS = 400;
const JOBS_PER_WORKER = 4;
/** Far more than the faults of one seed can cause: more tries than this are a job that goes round and round. */
const TRIES_MAX = 40;
const STEPS_MAX = 60_000;
const RUSH_MS = 250;
const CALM_CHANCE = 0.25;
/** For a look at what a tree that grew unread has passed over, and for the run after it, at the slowest. */
const LATER_LOOKS_MS = 10_000;
/** From burst to burst of a calm history: a burst and what follows it. */
const CALM_PAUSE_MS = 15_000;
const CALM_BURST_CHUNKS = 6;
const CALM_BURSTS_MAX = 4;
/** The commit point has the most to lose. */
const COMMIT_FAULT_FACTOR = 4;
/** Histories in which the sessions have a limit that some of their chunks are above. */
const LIMITED_CHANCE = 0.2;
/** No payload is longer. */
const PAYLOAD_BYTES_MAX = 90;
/** Leaves that a tall session has from the beginning. */
const TALL_LEAVES = 800;

/** At a random time of this span. */
interface Arrival {
  readonly fromMs?: number;
  readonly withinMs: number;
}

interface SimulatedJob {
  readonly name: string;
  readonly work:
    | { readonly kind: "chunk"; readonly job: ChunkJob; readonly bytes: Uint8Array }
    | { readonly kind: "finalize"; readonly job: FinalizeJob };
  /** `lost`: the queue forgot it, as a Redis does that loses its data. */
  state: "waiting" | "active" | "completed" | "failed" | "lost";
  tries: number;
  /** The delivery that holds the lock. */
  lock: number;
  holder: SimulatedWorker | undefined;
  code: ErrorCode | undefined;
}

export interface SimulationResult {
  readonly seed: number;
  readonly violations: readonly string[];
  readonly crashes: number;
  readonly calls: number;
  readonly faults: Readonly<Partial<Record<Fault, number>>>;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly sealed: number;
  /** Everything that was called, in order: two runs of one seed must have the same. */
  readonly digest: string;
}

export async function simulatePipeline(seed: number): Promise<SimulationResult> {
  return new Simulation(seed).run();
}

class Simulation {
  readonly #seed: number;
  readonly #emptiesRedis: boolean;
  /** Nobody dies or freezes, and nobody sweeps before the workers have had time to leave nothing behind. */
  readonly #isCalm: boolean;
  readonly #random: SeededRandom;
  readonly #world: PipelineWorld;
  readonly #witness: PipelineWitness;
  readonly #jobs: SimulatedJob[] = [];
  readonly #faults: Partial<Record<Fault, number>> = {};
  readonly #faultRate: number;
  readonly #sweepMs: number;
  readonly #trace: string[] = [];
  #faultsLeft: number;
  #submissionsLeft = 0;
  #payloads = 0;
  #resting = false;

  constructor(seed: number) {
    this.#seed = seed;
    // Two streams: what is submitted doesn't change when the pipeline makes a call more or less.
    this.#random = seededRandom(seed);
    const chance = seededRandom(seed ^ 0x5eed);
    this.#isCalm = seededRandom(seed ^ 0xca1f).chance(CALM_CHANCE);
    this.#faultsLeft = chance.between(this.#isCalm ? 0 : 1, 14);
    this.#faultRate = chance.pick([0.01, 0.03, 0.1]);
    this.#sweepMs = chance.between(700, 2_500);
    this.#emptiesRedis = seededRandom(seed ^ 0xf1a5).chance(0.3);
    // Alone, a worker leaves nothing of others behind.
    const workers = chance.between(this.#isCalm ? 2 : 1, 3);
    const hooks: WorldHooks = {
      fault: (call) => {
        this.#trace.push(`${this.#world.time.nowMs} ${call.worker.name} ${call.port}.${call.method}`);
        return this.#nextFault(chance, call);
      },
      after: (call) => this.#witness.after(call),
      reported: (_worker, event) => {
        if (event.kind === "session-stuck")
          this.#witness.violation(`${event.sessionId} is stuck: ${event.code}`);
      },
      crashed: (worker) => this.#takeBackFrom(worker),
    };
    // A third stream: the histories without a limit are the same as before there were any with one.
    this.#world = new PipelineWorld(seed + 1, workers, hooks, optionsOf(seededRandom(seed ^ 0x51fe)));
    this.#witness = new PipelineWitness(this.#world);
  }

  get #isLimited(): boolean {
    return this.#world.options.sessionBytesMax !== SIMULATED_OPTIONS.sessionBytesMax;
  }

  async run(): Promise<SimulationResult> {
    await this.#plan();
    if (this.#isCalm) this.#checkBeforeBursts();
    else this.#sweepForever();
    await this.#until(() => this.#submissionsLeft === 0 && this.#jobs.every(isDone), "the jobs");
    if (this.#isCalm) {
      let areLooksOver = false;
      this.#world.time.after(LATER_LOOKS_MS, () => {
        areLooksOver = true;
      });
      await this.#until(() => areLooksOver, "the later looks");
      this.#witness.checkNothingLeftBehind();
      this.#sweepForever();
    }
    // Nothing goes wrong any more, and nobody sends anything: now the sweepers have to clear up what is left.
    this.#faultsLeft = 0;
    const { eventPendingMs, orphanBlobMs } = this.#world.options;
    const restMs = this.#world.time.nowMs + 20_000 + 2 * (eventPendingMs + orphanBlobMs) + 4 * this.#sweepMs;
    await this.#until(() => this.#world.time.nowMs >= restMs, "the rest");
    this.#resting = true;
    if (this.#witness.violations.length === 0) {
      await this.#witness.checkRest();
      this.#checkOutcomes();
    }
    return this.#result();
  }

  #checkBeforeBursts(): void {
    for (let burst = 1; burst < CALM_BURSTS_MAX; burst++) {
      this.#world.time.after(burst * CALM_PAUSE_MS - 1, () => {
        if (this.#jobs.every(isDone)) this.#witness.checkNothingLeftBehind();
      });
    }
  }

  #result(): SimulationResult {
    const outcomes: Record<string, number> = {};
    for (const { state, code } of this.#jobs) {
      const outcome = code ?? state;
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    }
    const sessions = new Set(this.#jobs.map(({ work }) => work.job.sessionId));
    const sealed = [...sessions].filter((id) => this.#witness.session(id)?.state === "sealed").length;
    return {
      seed: this.#seed,
      violations: this.#witness.violations,
      crashes: this.#world.crashes,
      calls: this.#world.calls,
      faults: this.#faults,
      outcomes,
      sealed,
      digest: Buffer.from(blake3(Buffer.from(this.#trace.join("\n")))).toString("hex"),
    };
  }

  async #until(isOver: () => boolean, what: string): Promise<void> {
    for (let steps = 0; !isOver(); steps++) {
      if (this.#witness.violations.length > 0) return;
      if (steps >= STEPS_MAX || !(await this.#world.time.step())) {
        this.#witness.violation(`${what} don't come to an end`);
        return;
      }
    }
  }

  #nextFault(chance: SeededRandom, { port, method }: PortCall): Fault | undefined {
    const isCommit = port === "chunks" && method === "insert";
    const rate = this.#faultRate * (isCommit ? COMMIT_FAULT_FACTOR : 1);
    if (this.#faultsLeft === 0 || !chance.chance(rate)) return undefined;
    this.#faultsLeft -= 1;
    const kinds: readonly Fault[] = this.#isCalm
      ? ["reply-lost", "refused", "ghost"]
      : ["crash-before", "crash-after", "reply-lost", "refused", "ghost", "freeze"];
    const fault = chance.pick(kinds);
    this.#faults[fault] = (this.#faults[fault] ?? 0) + 1;
    return fault;
  }

  // What is sent

  async #plan(): Promise<void> {
    await this.#planSession("sess-a" as SessionId);
    if (this.#random.chance(0.15)) await this.#planSession("sess-b" as SessionId);
    // What is planted in a tall session was never in Redis, so it can't be lost there; and it is larger than a limited one.
    if (this.#emptiesRedis) this.#planEmptiedRedis();
    else if (this.#random.chance(0.08) && !this.#isLimited)
      await this.#planTallSession("sess-tall" as SessionId);
  }

  async #planSession(session: SessionId): Promise<void> {
    const random = this.#random;
    // A rush: the end is announced while chunks within and beyond it are under way everywhere.
    const isRush = random.chance(0.3);
    const isLong = this.#isCalm && random.chance(0.6);
    const chunks = isLong
      ? random.between(2, CALM_BURSTS_MAX * CALM_BURST_CHUNKS)
      : random.between(1, isRush ? 4 : 9);
    for (let index = 0; index < chunks; index++) {
      this.#submitChunk(session, index, {
        // In a calm history in bursts: what was looked at after one of them has to be looked at again after the next.
        fromMs: this.#isCalm ? CALM_PAUSE_MS * Math.floor(index / CALM_BURST_CHUNKS) : 0,
        withinMs: isRush ? RUSH_MS : 2_000,
        copies: random.chance(0.3) ? random.between(2, 4) : 1,
      });
    }
    this.#planTrouble(session, chunks, isRush);
    this.#planEnd(session, chunks, isRush);
  }

  /** FLUSHALL, with no connection broken: only the marker tells. Jobs are left alone, they have their own ways to be lost. */
  #planEmptiedRedis(): void {
    const times = this.#random.between(1, 2);
    for (let count = 0; count < times; count++) {
      this.#world.time.after(this.#random.between(4_000, 14_000), () => this.#world.stores.events.empty());
    }
  }

  /** What no honest producer sends. */
  #planTrouble(session: SessionId, chunks: number, isRush: boolean): void {
    const random = this.#random;
    const some = (): number => random.between(0, chunks - 1);
    if (random.chance(0.25)) this.#submitChunk(session, some(), { withinMs: 2_000, forged: "bytes" });
    if (random.chance(0.15)) {
      const index = random.between(0, chunks + 1);
      this.#submitChunk(session, index, { withinMs: 2_000, forged: "id", idOf: some() });
    }
    const late = isRush ? random.between(2, 5) : random.between(0, 1);
    for (let count = 0; count < late; count++) {
      this.#submitChunk(session, chunks + random.between(0, 2), { withinMs: isRush ? RUSH_MS : 4_000 });
    }
  }

  #planEnd(session: SessionId, chunks: number, isRush: boolean): void {
    const random = this.#random;
    const when = {
      fromMs: this.#isCalm ? CALM_PAUSE_MS * random.between(0, CALM_BURSTS_MAX - 1) : 0,
      withinMs: isRush ? RUSH_MS : random.pick([1_000, 2_500, 6_000]),
    };
    if (random.chance(0.9)) this.#submitFinalize(session, chunks, when);
    if (random.chance(0.2)) this.#submitFinalize(session, chunks, when);
    if (random.chance(0.3)) this.#submitFinalize(session, random.between(1, chunks), when);
    if (random.chance(0.1)) this.#submitFinalize(session, chunks + random.between(1, 2), when);
  }

  /**
   * A session whose tree is about to fill tiles, with a few holes among its committed chunks: each chunk that fills one
   * brings hundreds of leaves in.
   */
  async #planTallSession(session: SessionId): Promise<void> {
    const random = this.#random;
    const { stores, options } = this.#world;
    const size = random.pick([250, 509, 511]);
    const holes = new Set([size, random.between(size + 1, 600), random.between(601, 767)]);
    await stores.sessions.create({
      id: session,
      hashAlgorithm: options.hashAlgorithm,
      key: this.#world.wrappedKey(session),
      createdAt: new Date(0),
    });
    const { head, leaves } = tallTree(size);
    await stores.tiles.write(session, head.tileWrites);
    const tree = { size: head.frontier.size, frontier: head.frontier.hashes, root: head.root };
    await stores.sessions.replace(session, 0, {
      kind: "grow",
      tree,
      addedOriginalBytes: size,
      addedStoredBytes: size,
    });
    const record = await stores.sessions.find(session);
    if (record !== undefined) this.#witness.plantSession(record);
    for (const [index, leafHash] of leaves.entries()) {
      if (holes.has(index)) continue;
      const planted = chunkRecord(session, index, {
        leafHash,
        originalBytes: 1,
        storedBytes: 61,
        eventState: "sent",
        eventId: chunkCompletedEventId(session, index),
        hashAlgorithm: options.hashAlgorithm,
      });
      await stores.chunks.insert(planted);
      this.#witness.plantChunk(planted);
    }
    for (const hole of holes)
      this.#submitChunk(session, hole, { withinMs: 1_000, copies: random.between(1, 3) });
    if (random.chance(0.5)) this.#submitFinalize(session, TALL_LEAVES, { withinMs: 2_000 });
  }

  #submitChunk(
    session: SessionId,
    index: number,
    how: Arrival & {
      readonly copies?: number;
      readonly forged?: "bytes" | "id";
      readonly idOf?: number;
    },
  ): void {
    const random = this.#random;
    const name = `${session}:${index}${how.forged === undefined ? "" : ` forged ${how.forged}`}`;
    const leaf = index as LeafIndex;
    const bytes = payloadOf(name);
    const isReference = random.chance(0.5);
    const shared: Omit<ChunkJob, "source"> = {
      sessionId: session,
      chunkId: canonicalChunkId(session, (how.idOf ?? index) as LeafIndex),
      index: leaf,
      declared: isReference ? { sizeBytes: bytes.byteLength, blake3: blake3(bytes) } : {},
      compression: random.chance(0.1) ? { algorithm: "zstd", level: 3 } : { algorithm: "none", level: 0 },
    };
    // Copies with payloads of their own are what a producer sends again; with one, it is a job that was added twice.
    const isResent = random.chance(0.5);
    for (let copy = 0; copy < (how.copies ?? 1); copy++) {
      if (copy === 0 || isResent) this.#payloads += 1;
      const ref = { store: "file", name: `payload-${this.#payloads}` } as const;
      const job: ChunkJob = {
        ...shared,
        source: isReference ? { kind: "reference", ref } : { kind: "inline", bytes },
      };
      this.#submit({ kind: "chunk", job, bytes }, `${name} #${copy}`, how, () => {
        if (!isReference || (copy > 0 && !isResent)) return;
        this.#world.stores.payloads.put(session, ref, bytes);
        this.#witness.payloadOf(ref, job);
      });
    }
  }

  #submitFinalize(session: SessionId, chunkCount: number, when: Arrival): void {
    const job: FinalizeJob = {
      sessionId: session,
      chunkCount,
      details: { manifestType: "session_recording" },
    };
    this.#submit({ kind: "finalize", job }, `${session} finalize ${chunkCount}`, when);
  }

  #submit(
    work: SimulatedJob["work"],
    name: string,
    { fromMs = 0, withinMs }: Arrival,
    arrive?: () => void,
  ): void {
    const job: SimulatedJob = {
      name,
      work,
      state: "waiting",
      tries: 0,
      lock: 0,
      holder: undefined,
      code: undefined,
    };
    this.#submissionsLeft += 1;
    this.#world.time.after(fromMs + this.#random.between(0, withinMs), () => {
      this.#submissionsLeft -= 1;
      this.#jobs.push(job);
      arrive?.();
      this.#deliverLater(job, 0);
    });
  }

  // The queue

  #deliverLater(job: SimulatedJob, delayMs: number): void {
    job.state = "waiting";
    job.holder = undefined;
    this.#world.time.after(delayMs, () => this.#deliver(job));
  }

  #deliver(job: SimulatedJob): void {
    if (isDone(job) || job.holder !== undefined) return;
    const free = this.#world.workers.filter((worker) => this.#running(worker) < JOBS_PER_WORKER);
    if (free.length === 0) {
      this.#world.time.after(100, () => this.#deliver(job));
      return;
    }
    const worker = this.#random.pick(free);
    job.tries += 1;
    job.state = "active";
    job.holder = worker;
    job.lock += 1;
    const { lock } = job;
    const cut = new AbortController();
    this.#startTrouble(job, lock, cut);
    this.#run(job, worker, cut.signal).then(
      () => this.#settle(job, lock, undefined),
      (thrown: unknown) => this.#settle(job, lock, errorCodeOf(thrown), thrown),
    );
  }

  #running(worker: SimulatedWorker): number {
    return this.#jobs.filter(({ state, holder }) => state === "active" && holder === worker).length;
  }

  /** A lock that is lost while the worker goes on, or a worker that is told to put the job back. */
  #startTrouble(job: SimulatedJob, lock: number, cut: AbortController): void {
    if (this.#faultsLeft === 0) return;
    const afterMs = this.#random.between(1, 1_000);
    const losesLock = this.#random.chance(0.04);
    const isPutBack = !losesLock && this.#random.chance(0.04);
    if (losesLock) {
      this.#world.time.after(afterMs, () => {
        if (job.lock === lock && job.state === "active") this.#deliverLater(job, 0);
      });
    } else if (isPutBack) {
      this.#world.time.after(afterMs, () => cut.abort());
    }
    if (this.#random.chance(0.02) && job.holder !== undefined) this.#world.stepWallClock(job.holder);
  }

  async #run(job: SimulatedJob, worker: SimulatedWorker, signal: AbortSignal): Promise<void> {
    const { work } = job;
    if (work.kind === "finalize") {
      await worker.pipeline.finalizeSession(work.job, signal);
      this.#witness.finalized(work.job.sessionId);
      return;
    }
    const { source } = work.job;
    this.#witness.begun(worker, work.job);
    const delivered: ChunkJob =
      source.kind === "inline"
        ? { ...work.job, source: { kind: "inline", bytes: work.bytes.slice() } }
        : work.job;
    // What the queue says of it must not matter: it is wrong now and then.
    const isFirstDelivery = (job.tries === 1) !== this.#random.chance(0.2);
    const chunk = await worker.pipeline.processChunk(delivered, signal, isFirstDelivery);
    this.#witness.returned(chunk);
    if (!this.#witness.holds(work.job, work.bytes))
      this.#witness.violation(`${job.name}: done, with other bytes`);
  }

  /** `lock`: only who still holds it has a say. */
  #settle(job: SimulatedJob, lock: number, code: ErrorCode | undefined, thrown?: unknown): void {
    if (job.lock !== lock || job.state !== "active") return;
    if (code === undefined) {
      // The completion that doesn't reach the queue: the job comes once more.
      if (this.#faultsLeft > 0 && this.#random.chance(0.03)) this.#deliverLater(job, LOCK_MS);
      else job.state = "completed";
      return;
    }
    const disposition = ERROR_DISPOSITIONS[code];
    if (job.tries >= TRIES_MAX || disposition === "fatal") {
      this.#witness.violation(`${job.name}: goes round and round with ${code}: ${String(thrown)}`);
      job.state = "failed";
    }
    if (disposition === "unrecoverable") {
      job.state = "failed";
      job.code = code;
      job.holder = undefined;
    } else {
      this.#deliverLater(job, disposition === "released" ? RELEASE_MS : BACKOFF_MS);
    }
  }

  #takeBackFrom(worker: SimulatedWorker): void {
    for (const job of this.#jobs) {
      if (job.state !== "active" || job.holder !== worker) continue;
      if (this.#random.chance(0.25)) job.state = "lost";
      else this.#deliverLater(job, LOCK_MS);
    }
  }

  // Sweeps

  #sweepForever(): void {
    this.#world.time.after(this.#sweepMs, () => {
      if (this.#resting) return;
      for (const worker of this.#world.workers) void this.#sweep(worker);
      this.#sweepForever();
    });
  }

  async #sweep(worker: SimulatedWorker): Promise<void> {
    if (worker.isSweeping) return;
    worker.isSweeping = true;
    try {
      await worker.pipeline.sweeper.sweep(worker.stopped.signal);
    } catch (thrown) {
      this.#witness.violation(`a sweep failed: ${String(thrown)}`);
    }
    worker.isSweeping = false;
  }

  // What may have become of a job

  #checkOutcomes(): void {
    for (const job of this.#jobs) {
      if (job.state === "lost") continue;
      const reason = job.code === undefined ? this.#whyNotDone(job) : this.#whyNotRefused(job, job.code);
      if (reason !== undefined) this.#witness.violation(`${job.name}: ${reason}`);
    }
  }

  #whyNotDone({ work }: SimulatedJob): string | undefined {
    if (work.kind === "chunk") {
      return this.#witness.holds(work.job, work.bytes)
        ? undefined
        : "completed, but its bytes are not committed";
    }
    const session = this.#witness.session(work.job.sessionId);
    const isBound = session?.countConfirmed === true && session.expectedCount === work.job.chunkCount;
    return isBound ? undefined : "completed, but the session has not that count";
  }

  #whyNotRefused({ work }: SimulatedJob, code: ErrorCode): string | undefined {
    const session = this.#witness.session(work.job.sessionId);
    const count = session?.countConfirmed === true ? session.expectedCount : undefined;
    if (work.kind === "finalize") {
      if (code === "FINALIZE_COUNT_CONFLICT") {
        return count !== undefined && count !== work.job.chunkCount
          ? undefined
          : "refused for a count that doesn't stand";
      }
      const isBelow =
        code === "FINALIZE_COUNT_BELOW_CHUNKS" &&
        this.#witness.committedFrom(work.job.sessionId, work.job.chunkCount) > 0;
      return isBelow ? undefined : `refused with ${code}`;
    }
    const { index, chunkId } = work.job;
    const isLeftOut = count !== undefined && index >= count;
    if (code === "SESSION_TOO_LARGE") {
      return this.#witness.hadRoomFor(work.job.sessionId, work.bytes.byteLength)
        ? "refused as too large by a session that always had room for it"
        : undefined;
    }
    if (code === "CHUNK_BEYOND_END" || code === "SESSION_SEALED") {
      return isLeftOut ? undefined : `refused with ${code} by a session that ends at ${count}`;
    }
    if (code === "CHUNK_CONFLICT") {
      return this.#hasRival(work.job, index, chunkId) ? undefined : "in conflict with nothing";
    }
    if (code === "CHUNK_ID_CONFLICT") {
      return this.#hasRival(work.job, undefined, chunkId) ? undefined : "its id is in conflict with nothing";
    }
    return `refused with ${code}`;
  }

  /** Another submission for that place, with other content. */
  #hasRival(own: ChunkJob, index: number | undefined, id: ChunkId): boolean {
    return this.#jobs.some(({ name, work }) => {
      if (work.kind !== "chunk" || work.job.sessionId !== own.sessionId) return false;
      if (index !== undefined)
        return work.job.index === index && (name.includes("forged") || isForged(own, id));
      return work.job.chunkId === id && work.job.index !== own.index;
    });
  }
}

function optionsOf(random: SeededRandom): PipelineOptions {
  if (!random.chance(LIMITED_CHANCE)) return SIMULATED_OPTIONS;
  // Of a few chunks; where they may be larger than they are, less of it is vouched for by the index.
  const chunkBytesMax = random.pick([PAYLOAD_BYTES_MAX, 2 * PAYLOAD_BYTES_MAX]);
  return { ...SIMULATED_OPTIONS, chunkBytesMax, sessionBytesMax: random.between(chunkBytesMax, 400) };
}

function isForged(job: ChunkJob, id: ChunkId): boolean {
  return canonicalChunkId(job.sessionId, job.index) !== id;
}

function isDone({ state }: SimulatedJob): boolean {
  return state === "completed" || state === "failed" || state === "lost";
}

/** Of the name alone, so that two submissions of one chunk have the same bytes. */
function payloadOf(name: string): Uint8Array {
  const digest = blake3(Buffer.from(name));
  const length = 1 + ((digest[0] ?? 0) % PAYLOAD_BYTES_MAX);
  return new Uint8Array(Buffer.concat([digest, digest, digest]).subarray(0, length));
}

const tallTrees = new Map<number, { readonly head: AppendResult; readonly leaves: readonly LeafHash[] }>();

/** Made once for each size: hashing 800 leaves takes longer than the rest of a history. */
function tallTree(size: number): { readonly head: AppendResult; readonly leaves: readonly LeafHash[] } {
  const known = tallTrees.get(size);
  if (known !== undefined) return known;
  const hasher = treeHasher("blake3");
  const leaves = Array.from({ length: TALL_LEAVES }, (_, index) => hasher.leaf(Buffer.from(`leaf ${index}`)));
  const plan = planAppend(emptyFrontier().size, size);
  const head = applyAppend(
    emptyFrontier(),
    { from: plan.leavesNeededFrom, hashes: leaves.slice(0, size) },
    (level, n) => {
      throw new Error(`an empty tree has no tile ${tileKey(level, n)}`);
    },
    hasher,
  );
  const tree = { head, leaves };
  tallTrees.set(size, tree);
  return tree;
}
