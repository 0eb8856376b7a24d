import type { KeyRing } from "../core/encrypt/kek.ts";
import type { CommittedStub } from "../schema/job.ts";
import type { ChunkRecord, HashAlgorithm, SessionRecord } from "../schema/record.ts";
import { AnchorClaims } from "./anchor-session.ts";
import { type ChunkStanding, chunkStanding, type NamedChunk } from "./chunk-standing.ts";
import { type Closing, closeSession } from "./close-session.ts";
import { finalizeSession } from "./finalize-session.ts";
import { OnePerSession } from "./integrate.ts";
import { LaterLooks, OwnGrowth } from "./own-growth.ts";
import type { ChunkTask } from "./parse-job.ts";
import { createPatience } from "./patience.ts";
import type {
  BlobStore,
  ChunkJob,
  ChunkStore,
  Clock,
  EventPublisher,
  FinalizeJob,
  KernelThreads,
  ManifestFiles,
  ManifestStore,
  Observer,
  PayloadStore,
  RandomBytes,
  ServiceStateStore,
  SessionStore,
  TileStore,
} from "./ports.ts";
import { SentMarks } from "./sent-marks.ts";
import { finishStub, processChunk } from "./process-chunk.ts";
import { BackgroundWork, relayNow } from "./relay-events.ts";
import { advanceSession } from "./seal-session.ts";
import { SessionDirectory } from "./session-directory.ts";
import { SessionKeys } from "./session-keys.ts";
import { SessionRoom } from "./session-room.ts";
import { Sweeper } from "./sweep.ts";
import type { LucidEvent } from "../schema/event.ts";

/** Everything outside the pipeline that it touches; a simulation passes its own. */
export interface Surroundings {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly blobs: BlobStore;
  readonly tiles: TileStore;
  readonly manifests: ManifestStore;
  readonly serviceState: ServiceStateStore;
  readonly files: ManifestFiles;
  readonly payloads: PayloadStore;
  readonly events: EventPublisher;
  readonly threads: KernelThreads;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly observer: Observer;
}

export interface PipelineOptions {
  readonly keyRing: KeyRing;
  readonly hashAlgorithm: HashAlgorithm;
  readonly chunkBytesMax: number;
  readonly sessionBytesMax: number;
  readonly compressionThresholdBytes: number;
  readonly epochAgeMaxMs: number;
  readonly eventPendingMs: number;
  readonly eventRetentionMs: number;
  readonly gapAlertMs: number;
  /** An attempt may commit for half of this; then its blob counts as an orphan. */
  readonly orphanBlobMs: number;
  /** 0: checkpoints are signed at the seal only. */
  readonly checkpointIntervalMs: number;
  readonly closing: Closing;
}

export interface Pipeline {
  processChunk(job: ChunkJob, signal: AbortSignal, isFirstDelivery?: boolean): Promise<ChunkRecord>;
  finishStub(stub: CommittedStub, signal: AbortSignal): Promise<ChunkRecord>;
  chunkStanding(task: ChunkTask | NamedChunk, signal: AbortSignal): Promise<ChunkStanding>;
  finalizeSession(job: FinalizeJob, signal: AbortSignal): Promise<SessionRecord>;
  /** Publishes an event that no record carries, such as `chunk.failed`. */
  announce(event: LucidEvent, signal: AbortSignal): Promise<void>;
  readonly sweeper: Sweeper;
  /** Resolves when the work that no job waits for has ended: `sent` marks, manifests. */
  settled(): Promise<void>;
}

/** `stopped` ends whatever waits for a server that is away; work that no single job owns runs under it. */
export function createPipeline(
  surroundings: Surroundings,
  options: PipelineOptions,
  stopped: AbortSignal,
): Pipeline {
  const { clock, observer, random, threads, sessions } = surroundings;
  const patience = createPatience(clock, observer);
  const background = new BackgroundWork();
  const { keyRing, epochAgeMaxMs, hashAlgorithm } = options;
  const keys = new SessionKeys({ keyRing, threads, clock, random, observer, epochAgeMaxMs });
  const directory = new SessionDirectory({ store: sessions, keys, clock, observer, patience, hashAlgorithm });
  const { closing } = options;
  const claims = new AnchorClaims(clock, random);
  const marks = new SentMarks({ ...surroundings, patience, background }, stopped);
  const ports = {
    ...surroundings,
    patience,
    background,
    marks,
    keys,
    directory,
    closing,
    claims,
    growth: new OwnGrowth(clock),
  };
  const close = new OnePerSession((session) => closeSession(ports, session, stopped));
  const looks = new LaterLooks(ports, stopped);
  const advance: OnePerSession = new OnePerSession(async (session) => {
    const advanced = await advanceSession(ports, session, stopped);
    if (advanced.state === "open") looks.request(session, (grown) => advance.request(grown));
    if (advanced.state === "open" || advanced.closed) return advanced;
    // Manifest and anchor take their time; the last chunk's job, which sealed the session, doesn't wait for them.
    background.add(close.request(session), (code) => {
      // What a shutdown cut short goes on at another replica, or at our next start.
      if (code !== "SHUTTING_DOWN") observer.report({ kind: "session-stuck", sessionId: session, code });
    });
    return advanced;
  });
  const chunkPipeline = {
    ...ports,
    advance,
    room: new SessionRoom(ports, options, stopped),
    limits: { ...options, attemptAgeMaxMs: options.orphanBlobMs / 2 },
  };
  return {
    processChunk: (job, signal, isFirst) => processChunk(chunkPipeline, job, signal, isFirst),
    finishStub: (stub, signal) => finishStub(chunkPipeline, stub, signal),
    chunkStanding: (task, signal) => chunkStanding(chunkPipeline, task, signal),
    finalizeSession: (job, signal) => finalizeSession(chunkPipeline, job, signal),
    announce: (event, signal) => relayNow(ports, event, signal),
    sweeper: new Sweeper({ ...ports, advance, close, limits: options }),
    settled: () => background.settled(),
  };
}
