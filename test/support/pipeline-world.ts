import { blake3 } from "../../src/core/digest.ts";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { makeSessionSecret, wrapSecret } from "../../src/core/encrypt/session-secret.ts";
import type { SessionId } from "../../src/core/ids.ts";
import type { WrappedSecret } from "../../src/schema/record.ts";
import { type ErrorCode, LucidError } from "../../src/core/errors.ts";
import { type KernelScratch, kernelScratch, openChunk, sealChunk } from "../../src/core/kernel.ts";
import { createPipeline, type Pipeline, type PipelineOptions } from "../../src/pipeline/pipeline.ts";
import type { Clock, KernelThreads, PipelineEvent } from "../../src/pipeline/ports.ts";
import { MemoryBlobStore } from "./memory/blob-store.ts";
import { MemoryChunkStore } from "./memory/chunk-store.ts";
import { MemoryEventPublisher } from "./memory/event-publisher.ts";
import { MemoryManifestFiles, MemoryManifestStore } from "./memory/manifest-store.ts";
import { MemoryPayloadStore } from "./memory/payload-store.ts";
import { MemoryServiceStateStore } from "./memory/service-state-store.ts";
import { MemorySessionStore } from "./memory/session-store.ts";
import { MemoryTileStore } from "./memory/tile-store.ts";
import { type SeededRandom, seededRandom } from "./seeded-random.ts";
import { VirtualTime } from "./virtual-time.ts";

/*
 * Several workers of the real pipeline over shared stores in memory, in virtual time, with everything that can go wrong
 * between a worker and its surroundings. One seed gives one history, event by event.
 */

/** Of the real values about a hundredth, so that a history of a minute holds every kind of sweep. */
export const SIMULATED_OPTIONS: PipelineOptions = {
  keyRing: singleKeyRing("d5Yt0pMZ3kQm8sVx2bHc7nRw4jLf9gTa"),
  hashAlgorithm: "blake3",
  chunkBytesMax: 1_024,
  sessionBytesMax: 1_048_576,
  compressionThresholdBytes: 40,
  epochAgeMaxMs: 20_000,
  eventPendingMs: 2_000,
  eventRetentionMs: 86_400_000,
  gapAlertMs: 3_000,
  orphanBlobMs: 8_000,
  checkpointIntervalMs: 0,
  closing: { signingKey: undefined, engine: undefined },
};
/** A request that was given up may still be applied this much later: less than what an attempt is given to commit. */
const GHOST_MS_MAX = 3_000;
/** Longer than attemptAgeMaxMs and than orphanBlobMs: whoever wakes up from this holds nothing that is still true. */
const FREEZE_MS_MAX = 20_000;
const RESTART_MS_MAX = 2_000;
const WALL_CLOCK_STEP_MS = 3_600_000;
const WALL_CLOCK_START_MS = Date.parse("2026-01-02T03:04:05.678Z");

export type PortName =
  | "sessions"
  | "chunks"
  | "blobs"
  | "tiles"
  | "payloads"
  | "events"
  | "threads"
  | "serviceState";

export type Fault =
  /** The worker dies and the request never left it. */
  | "crash-before"
  /** The worker dies, but what it asked for is done. */
  | "crash-after"
  /** Done, and the worker is told that it may not be. */
  | "reply-lost"
  /** Not done. */
  | "refused"
  /** Not done yet: the worker is told that it may not be, and it happens later. */
  | "ghost"
  /** The worker stands still before it learns the answer, for longer than any of its leases. */
  | "freeze";

export interface PortCall {
  readonly worker: SimulatedWorker;
  readonly port: PortName;
  readonly method: string;
  readonly args: readonly unknown[];
}

export interface WorldHooks {
  /** The fault of this call, if any; asked once for each call, in order. */
  fault(call: PortCall): Fault | undefined;
  /** Before and after a call takes effect; nothing else happens between the two. */
  before?(call: PortCall): void | Promise<void>;
  after?(call: PortCall): void | Promise<void>;
  /** How long a request or an answer is under way; otherwise mostly short, sometimes long. */
  latencyMs?(): number;
  reported?(worker: SimulatedWorker, event: PipelineEvent): void;
  crashed?(worker: SimulatedWorker): void;
}

/** Calls whose effect may come after they were given up; reads have none. */
const GHOST_METHODS: ReadonlySet<string> = new Set([
  "insert",
  "replace",
  "create",
  "write",
  "markSent",
  "withdraw",
  "remove",
  "publish",
  "reopenEvents",
  "claimMarker",
  "replaceRedis",
]);

export class SimulatedWorker {
  readonly name: string;
  readonly pipeline: Pipeline;
  readonly stopped = new AbortController();
  isAlive = true;
  /** Until then nothing that it waits for reaches it. */
  frozenUntilMs = 0;
  /** Milliseconds by which its wall clock is wrong. */
  wallSkewMs = 0;
  isSweeping = false;
  readonly #bootMs: number;

  constructor(world: PipelineWorld, name: string, options: PipelineOptions) {
    this.name = name;
    this.#bootMs = world.random.between(0, 1_000_000);
    this.pipeline = createPipeline(
      {
        sessions: world.port(this, "sessions", world.stores.sessions),
        chunks: world.port(this, "chunks", world.stores.chunks),
        blobs: world.port(this, "blobs", world.stores.blobs),
        tiles: world.port(this, "tiles", world.stores.tiles),
        payloads: world.port(this, "payloads", world.stores.payloads),
        events: world.port(this, "events", world.stores.events),
        threads: world.port(this, "threads", world.threads),
        manifests: new MemoryManifestStore(),
        serviceState: world.port(this, "serviceState", world.serviceState),
        files: new MemoryManifestFiles(),
        clock: this.#clock(world),
        random: (length) => world.random.bytes(length),
        observer: { report: (event) => world.hooks.reported?.(this, event) },
      },
      options,
      this.stopped.signal,
    );
  }

  #clock(world: PipelineWorld): Clock {
    return {
      now: () => new Date(WALL_CLOCK_START_MS + world.time.nowMs + this.wallSkewMs),
      // Processes began at different times: a reading says nothing to another process.
      monotonicMs: () => this.#bootMs + world.time.nowMs,
      sleep: (ms, signal) =>
        new Promise((resolve) => {
          if (signal.aborted) {
            resolve();
            return;
          }
          const wake = (): void => {
            callOff();
            signal.removeEventListener("abort", wake);
            resolve();
          };
          const callOff = world.time.after(ms, () => world.whenAwake(this, wake));
          signal.addEventListener("abort", wake, { once: true });
        }),
    };
  }
}

export interface WorldStores {
  readonly sessions: MemorySessionStore;
  readonly chunks: MemoryChunkStore;
  readonly blobs: MemoryBlobStore;
  readonly tiles: MemoryTileStore;
  readonly payloads: MemoryPayloadStore;
  readonly events: MemoryEventPublisher;
}

export class PipelineWorld {
  readonly time = new VirtualTime();
  readonly random: SeededRandom;
  readonly stores: WorldStores;
  readonly threads: KernelThreads;
  readonly serviceState = new MemoryServiceStateStore();
  readonly hooks: WorldHooks;
  readonly options: PipelineOptions;
  /** The living ones. */
  workers: readonly SimulatedWorker[] = [];
  crashes = 0;
  /** Given up by their worker, and still to arrive. */
  readonly ghosts = new Set<PortCall>();
  calls = 0;
  readonly #scratch: KernelScratch = kernelScratch();
  #named = 0;

  constructor(
    seed: number,
    workers: number,
    hooks: WorldHooks,
    options: PipelineOptions = SIMULATED_OPTIONS,
  ) {
    this.random = seededRandom(seed);
    this.hooks = hooks;
    this.options = options;
    const chunks = new MemoryChunkStore();
    this.stores = {
      chunks,
      sessions: new MemorySessionStore(),
      blobs: new MemoryBlobStore(chunks),
      tiles: new MemoryTileStore(),
      payloads: new MemoryPayloadStore(),
      events: new MemoryEventPublisher(),
    };
    this.threads = {
      seal: async (request) => sealChunk(request, () => 0, this.#scratch),
      open: async (request) => openChunk(request),
      deriveKey: async (password, salt) => fastKey(password, salt),
    };
    for (let count = 0; count < workers; count++) this.startWorker();
  }

  startWorker(): SimulatedWorker {
    const worker = new SimulatedWorker(this, `worker-${(this.#named += 1)}`, this.options);
    this.workers = [...this.workers, worker];
    return worker;
  }

  /** Whatever the worker waits for never comes; another takes its place. */
  crash(worker: SimulatedWorker): void {
    if (!worker.isAlive) return;
    worker.isAlive = false;
    this.crashes += 1;
    this.workers = this.workers.filter((other) => other !== worker);
    this.hooks.crashed?.(worker);
    this.time.after(this.random.between(0, RESTART_MS_MAX), () => void this.startWorker());
  }

  /** The wrapped secret of a session that a scenario plants. */
  wrappedKey(id: SessionId): WrappedSecret {
    const { keyRing } = this.options;
    const kekVersion = keyRing.activeVersion;
    const place = { kek: keyRing.kek(kekVersion), sessionId: id, keyVersion: 1 };
    const random = (length: number): Uint8Array => this.random.bytes(length);
    return { keyVersion: 1, kekVersion, wrapped: wrapSecret(makeSessionSecret(random), place, random) };
  }

  stepWallClock(worker: SimulatedWorker): void {
    worker.wallSkewMs += this.random.pick([-WALL_CLOCK_STEP_MS, WALL_CLOCK_STEP_MS]);
  }

  /** `real` as a worker sees it: over a wire that delays, loses and repeats. */
  port<Port extends object>(worker: SimulatedWorker, port: PortName, real: Port): Port {
    const methods = new Map<PropertyKey, unknown>();
    return new Proxy(real, {
      get: (target, method) => {
        const member = target[method as keyof Port];
        if (typeof member !== "function") return member;
        if (!methods.has(method)) {
          methods.set(method, (...args: unknown[]) =>
            this.#call({ worker, port, method: String(method), args }, () =>
              (target[method as keyof Port] as (...args: unknown[]) => Promise<unknown>).apply(target, args),
            ),
          );
        }
        return methods.get(method);
      },
    });
  }

  /** Runs `happen` now, or when the worker isn't frozen any more; never for one that is dead. */
  whenAwake(worker: SimulatedWorker, happen: () => void): void {
    if (!worker.isAlive) return;
    const frozenMs = worker.frozenUntilMs - this.time.nowMs;
    if (frozenMs > 0) this.time.after(frozenMs, () => this.whenAwake(worker, happen));
    else happen();
  }

  #call(call: PortCall, apply: () => Promise<unknown>): Promise<unknown> {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const { worker } = call;
    // Code of a dead worker runs on until it waits for something: here.
    if (!worker.isAlive) return promise;
    this.calls += 1;
    const fault = this.hooks.fault(call);
    const answer = (happen: () => void): void => {
      this.time.after(this.#latencyMs(), () => this.whenAwake(worker, happen));
    };
    this.time.after(this.#latencyMs(), async () => {
      if (fault === "crash-before") {
        this.crash(worker);
        return;
      }
      if (fault === "refused" || fault === "ghost") {
        answer(() => reject(unavailable(call)));
        if (fault === "ghost" && GHOST_METHODS.has(call.method)) {
          this.ghosts.add(call);
          const effect = async (): Promise<void> => {
            this.ghosts.delete(call);
            await this.#effect(call, apply);
          };
          this.time.after(this.random.between(0, GHOST_MS_MAX), effect);
        }
        return;
      }
      // The request is on its way also if its worker has died since.
      const outcome = await this.#effect(call, apply);
      if (fault === "crash-after") this.crash(worker);
      if (fault === "freeze") worker.frozenUntilMs = this.time.nowMs + this.random.between(1, FREEZE_MS_MAX);
      if (fault === "reply-lost") answer(() => reject(unavailable(call)));
      else if (outcome.kind === "done") answer(() => resolve(outcome.value));
      else answer(() => reject(outcome.error));
    });
    return promise;
  }

  async #effect(call: PortCall, apply: () => Promise<unknown>): Promise<Outcome> {
    await this.hooks.before?.(call);
    let outcome: Outcome;
    try {
      outcome = { kind: "done", value: await apply() };
    } catch (error) {
      outcome = { kind: "failed", error };
    }
    await this.hooks.after?.(call);
    return outcome;
  }

  /** Mostly short; sometimes long enough for everything else to overtake it. */
  #latencyMs(): number {
    if (this.hooks.latencyMs !== undefined) return this.hooks.latencyMs();
    return this.random.chance(0.05) ? this.random.between(20, 400) : this.random.between(0, 12);
  }
}

type Outcome =
  | { readonly kind: "done"; readonly value: unknown }
  | { readonly kind: "failed"; readonly error: unknown };

function unavailable({ port, method }: PortCall): LucidError {
  const code: ErrorCode =
    port === "threads"
      ? "THREAD_CRASHED"
      : port === "events" || port === "payloads"
        ? "QUEUE_UNAVAILABLE"
        : "STORE_UNAVAILABLE";
  return new LucidError(code, `simulated: ${port}.${method}`);
}

/** In place of PBKDF2, which would take most of the time: also a function of both, and of nothing else. */
export function fastKey(password: string, salt: Uint8Array): Uint8Array {
  return blake3(Buffer.concat([Buffer.from(password), salt]));
}
