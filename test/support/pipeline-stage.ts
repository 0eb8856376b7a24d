import { setImmediate as turn } from "node:timers/promises";
import { blake3 } from "../../src/core/digest.ts";
import { canonicalChunkId, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import type { PipelineOptions } from "../../src/pipeline/pipeline.ts";
import type { ChunkJob, FinalizeJob, PipelineEvent } from "../../src/pipeline/ports.ts";
import type { LucidEvent } from "../../src/schema/event.ts";
import type { ChunkRecord, SessionRecord } from "../../src/schema/record.ts";
import { type Fault, PipelineWorld, SIMULATED_OPTIONS, type SimulatedWorker } from "./pipeline-world.ts";

/** One call of a port, as `chunks.insert`. */
export type CallName = `${string}.${string}`;

const LATENCY_MS = 1;
const NEVER = new AbortController().signal;

/** A small world for one fact at a time: what goes wrong, and when, is said by the test. */
export class PipelineStage {
  readonly world: PipelineWorld;
  readonly session: SessionId;
  readonly reports: PipelineEvent[] = [];
  /** Every call in order, as far as it was made. */
  readonly calls: CallName[] = [];
  readonly #faults: { readonly call: CallName; readonly fault: Fault }[] = [];
  readonly #hooks: { readonly call: CallName; readonly effect: () => void | Promise<void> }[] = [];
  #payloads = 0;

  constructor(workers = 1, options: Partial<PipelineOptions> = {}, session = "sess-1") {
    this.session = session as SessionId;
    this.world = new PipelineWorld(
      7,
      workers,
      {
        fault: ({ port, method }) => {
          const call: CallName = `${port}.${method}`;
          this.calls.push(call);
          return this.#take(this.#faults, call)?.fault;
        },
        after: ({ port, method }) => this.#take(this.#hooks, `${port}.${method}`)?.effect(),
        latencyMs: () => LATENCY_MS,
        reported: (_worker, event) => this.reports.push(event),
      },
      { ...SIMULATED_OPTIONS, ...options },
    );
  }

  /** The next such call has this fault. */
  fail(call: CallName, fault: Fault): void {
    this.#faults.push({ call, fault });
  }

  /** After the next such call took effect, and before its caller knows. */
  once(call: CallName, effect: () => void | Promise<void>): void {
    this.#hooks.push({ call, effect });
  }

  #take<Planned extends { readonly call: CallName }>(
    planned: Planned[],
    call: CallName,
  ): Planned | undefined {
    const at = planned.findIndex((one) => one.call === call);
    return at < 0 ? undefined : planned.splice(at, 1)[0];
  }

  worker(at = 0): SimulatedWorker {
    const worker = this.world.workers[at];
    if (worker === undefined) throw new Error(`no worker ${at}`);
    return worker;
  }

  chunkJob(index: number, change: Partial<ChunkJob> & { readonly text?: string } = {}): ChunkJob {
    const { text = `chunk ${index}`, ...fields } = change;
    const leaf = index as LeafIndex;
    return {
      sessionId: this.session,
      chunkId: canonicalChunkId(this.session, leaf),
      index: leaf,
      source: { kind: "inline", bytes: new Uint8Array(Buffer.from(text)) },
      declared: {},
      compression: { algorithm: "none", level: 0 },
      ...fields,
    };
  }

  /** The same with its bytes left in the payload store. */
  referenceJob(index: number, text = `chunk ${index}`): ChunkJob {
    const bytes = Buffer.from(text);
    const ref = { store: "file", name: `payload-${(this.#payloads += 1)}` } as const;
    this.world.stores.payloads.put(this.session, ref, bytes);
    return this.chunkJob(index, {
      source: { kind: "reference", ref },
      declared: { sizeBytes: bytes.byteLength, blake3: blake3(bytes) },
    });
  }

  finalizeJob(chunkCount: number): FinalizeJob {
    return { sessionId: this.session, chunkCount, details: { manifestType: "session_recording" } };
  }

  process(job: ChunkJob, worker = this.worker(), signal: AbortSignal = NEVER): Promise<ChunkRecord> {
    return this.run(worker.pipeline.processChunk(job, signal));
  }

  /** As a job that the queue has never handed out before. */
  processFirst(job: ChunkJob, worker = this.worker()): Promise<ChunkRecord> {
    return this.run(worker.pipeline.processChunk(job, NEVER, true));
  }

  finalize(chunkCount: number, worker = this.worker()): Promise<SessionRecord> {
    return this.run(worker.pipeline.finalizeSession(this.finalizeJob(chunkCount), NEVER));
  }

  sweep(worker = this.worker()): Promise<void> {
    return this.run(worker.pipeline.sweeper.sweep(NEVER));
  }

  /** Lets time pass until `work` has settled. Throws if it never will, because its worker died. */
  async run<Result>(work: Promise<Result>): Promise<Result> {
    const state = { isSettled: false };
    const settle = (): void => {
      state.isSettled = true;
    };
    work.then(settle, settle);
    // It may have a few promises to go through before its first call.
    await turn();
    while (!state.isSettled) if (!(await this.world.time.step())) throw new WorkerDied();
    return work;
  }

  /** Lets everything that is under way come to its end. */
  async rest(): Promise<void> {
    while (await this.world.time.step());
  }

  async wait(ms: number): Promise<void> {
    const state = { isOver: false };
    this.world.time.after(ms, () => {
      state.isOver = true;
    });
    while (!state.isOver) await this.world.time.step();
  }

  committed(index: number): ChunkRecord | undefined {
    return this.world.stores.chunks.committed({ sessionId: this.session, index: index as LeafIndex });
  }

  record(): Promise<SessionRecord | undefined> {
    return this.world.stores.sessions.find(this.session);
  }

  async blobIds(): Promise<readonly string[]> {
    const page = await this.world.stores.blobs.page(undefined, 1_000);
    return page.map(({ id }) => id);
  }

  events(type?: LucidEvent["type"]): readonly LucidEvent[] {
    const all = this.world.stores.events.waiting("storage-events");
    return type === undefined ? all : all.filter((event) => event.type === type);
  }

  count(call: CallName): number {
    return this.calls.filter((made) => made === call).length;
  }
}

export class WorkerDied extends Error {
  override readonly name = "WorkerDied";
}
