import { createPrivateKey, type KeyObject } from "node:crypto";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { canonicalChunkId, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import { leafHashOf } from "../../src/core/manifest/chunk-line.ts";
import { type ManifestFileNames, manifestFileNames, manifestId } from "../../src/core/manifest/names.ts";
import { ed25519PublicKey } from "../../src/core/merkle/checkpoint.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { AnchorClaims } from "../../src/pipeline/anchor-session.ts";
import type { AnchoringEngine } from "../../src/pipeline/anchoring-engine.ts";
import { type ClosePorts, closeSession } from "../../src/pipeline/close-session.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import { createPatience } from "../../src/pipeline/patience.ts";
import { createPipeline, type Pipeline } from "../../src/pipeline/pipeline.ts";
import type {
  ChunkStore,
  KernelThreads,
  ManifestFiles,
  ManifestStore,
  PipelineEvent,
  SessionStore,
  TileStore,
} from "../../src/pipeline/ports.ts";
import { BackgroundWork } from "../../src/pipeline/relay-events.ts";
import type { ChunkRecord, FinalizeDetails, HashAlgorithm, SessionRecord } from "../../src/schema/record.ts";
import { Lifeline } from "./lifeline.ts";
import { ManualClock } from "./manual-clock.ts";
import { MemoryAnchoringEngine } from "./memory/anchoring-engine.ts";
import { MemoryBlobStore } from "./memory/blob-store.ts";
import { MemoryChunkStore } from "./memory/chunk-store.ts";
import { MemoryEventPublisher } from "./memory/event-publisher.ts";
import { MemoryManifestFiles, MemoryManifestStore } from "./memory/manifest-store.ts";
import { MemoryServiceStateStore } from "./memory/service-state-store.ts";
import { SentMarks } from "../../src/pipeline/sent-marks.ts";
import { MemoryPayloadStore } from "./memory/payload-store.ts";
import { bytesOf, chunk, newSession } from "./memory/records.ts";
import { MemorySessionStore } from "./memory/session-store.ts";
import { MemoryTileStore } from "./memory/tile-store.ts";

const PKCS8_PREFIX = Buffer.from("302e020100300506032b657004220420", "hex");
/** RFC 8410 §10.3. */
export const SIGNING_KEY: KeyObject = privateKeyOf(
  "d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842",
);
export const OTHER_SIGNING_KEY: KeyObject = privateKeyOf("01".repeat(32));
export const PINNED_KEY: Uint8Array = ed25519PublicKey(SIGNING_KEY);
export const SWEEP_MS = 15_000;
export const TAKE_OVER_MS = 60_000;
const SEALED_AT = new Date("2026-01-02T03:10:00.000Z");

function privateKeyOf(seedHex: string): KeyObject {
  const key = Buffer.concat([PKCS8_PREFIX, Buffer.from(seedHex, "hex")]);
  return createPrivateKey({ key, format: "der", type: "pkcs8" });
}

/** A committed chunk whose leaf hash is that of its fields. */
export function leafChunk(
  session: SessionId,
  index: number,
  algorithm: HashAlgorithm = "blake3",
): ChunkRecord {
  const record = chunk(session, index, {
    chunkId: canonicalChunkId(session, index as LeafIndex),
    blobBlake3: bytesOf(index % 251),
    hashAlgorithm: algorithm,
    eventState: "sent",
    ...(index % 2 === 0 ? { recordedAt: "2026-01-02T03:00:00Z" } : {}),
  });
  return { ...record, leafHash: leafHashOf(session, record, treeHasher(algorithm)) };
}

/** What the workers share: stores, folder, queue, engine. */
export interface Shared {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly tiles: TileStore;
  readonly manifests: ManifestStore;
  readonly files: ManifestFiles;
  readonly events: MemoryEventPublisher;
  readonly engine: MemoryAnchoringEngine;
  readonly clock: ManualClock;
}

export interface MemoryShared extends Shared {
  readonly chunks: MemoryChunkStore;
  readonly manifests: MemoryManifestStore;
  readonly files: MemoryManifestFiles;
}

export function sharedInMemory(): MemoryShared {
  return {
    sessions: new MemorySessionStore(),
    chunks: new MemoryChunkStore(),
    tiles: new MemoryTileStore(),
    manifests: new MemoryManifestStore(),
    files: new MemoryManifestFiles(),
    events: new MemoryEventPublisher(),
    engine: new MemoryAnchoringEngine(),
    clock: new ManualClock(),
  };
}

export interface WorkerOptions {
  readonly lifeline?: Lifeline;
  /** `null`: none is configured. */
  readonly signingKey?: KeyObject | null;
  readonly engine?: AnchoringEngine | null;
  readonly checkpointIntervalMs?: number;
}

export interface Worker {
  readonly ports: ClosePorts;
  readonly lifeline: Lifeline;
  readonly reports: PipelineEvent[];
  readonly pipeline: Pipeline;
  /** closeSession, once, and the marks of the events that it has told. */
  close(session: SessionId): Promise<SessionRecord>;
  /** Until the session is closed, as a sweeper would, a sweep interval apart; at most `times`. */
  drive(session: SessionId, times?: number): Promise<SessionRecord>;
  sweep(): Promise<void>;
}

const REDIS_MARKER = "redis-1";
let workers = 0;

/** One process: its own claims, counters and reports over what all share. */
export function startWorker(shared: Shared, options: WorkerOptions = {}): Worker {
  const lifeline = options.lifeline ?? new Lifeline();
  const reports: PipelineEvent[] = [];
  const observer = { report: (event: PipelineEvent) => void reports.push(event) };
  const { clock } = shared;
  workers += 1;
  const worker = workers;
  let drawn = 0;
  const random = (length: number): Uint8Array => {
    const bytes = new Uint8Array(length);
    new DataView(bytes.buffer).setUint32(0, worker);
    new DataView(bytes.buffer).setUint32(4, (drawn += 1));
    return bytes;
  };
  const stores = {
    sessions: lifeline.through("sessions", shared.sessions),
    chunks: lifeline.through("chunks", shared.chunks),
    tiles: lifeline.through("tiles", shared.tiles),
    manifests: lifeline.through("manifests", shared.manifests),
    files: lifeline.through("files", shared.files),
    events: lifeline.through("events", shared.events),
  };
  const engine = options.engine === null ? undefined : (options.engine ?? shared.engine);
  const closing = {
    signingKey: options.signingKey === null ? undefined : (options.signingKey ?? SIGNING_KEY),
    engine: engine === undefined ? undefined : lifeline.through("engine", engine),
  };
  const signal = new AbortController().signal;
  const background = new BackgroundWork();
  const patience = createPatience(clock, observer);
  // As in an installation that has been running for a while.
  void shared.events.claimMarker(REDIS_MARKER);
  const marks = new SentMarks({ ...stores, clock, patience, background, observer }, signal);
  marks.remember(REDIS_MARKER);
  const ports: ClosePorts = {
    ...stores,
    clock,
    observer,
    patience,
    background,
    marks,
    claims: new AnchorClaims(clock, random),
    closing,
  };
  const pipeline = createPipeline(
    {
      ...stores,
      blobs: new MemoryBlobStore(new MemoryChunkStore()),
      payloads: new MemoryPayloadStore(),
      serviceState: new MemoryServiceStateStore(),
      threads: NO_THREADS,
      clock,
      random,
      observer,
    },
    {
      keyRing: singleKeyRing("q7Zr2vXw9LkT4mBn8sPd1fGh6jYc3aUe5iOo0RtN="),
      hashAlgorithm: "blake3",
      chunkBytesMax: 1024,
      sessionBytesMax: 1_000_000,
      compressionThresholdBytes: 64,
      epochAgeMaxMs: 3_600_000,
      eventPendingMs: 60_000,
      eventRetentionMs: 86_400_000,
      gapAlertMs: 60_000,
      orphanBlobMs: 3_600_000,
      checkpointIntervalMs: options.checkpointIntervalMs ?? 0,
      closing,
    },
    signal,
  );
  const close = async (session: SessionId): Promise<SessionRecord> => {
    const closed = await closeSession(ports, session, signal);
    await background.settled();
    lifeline.requireAlive();
    return closed;
  };
  return {
    ports,
    lifeline,
    reports,
    pipeline,
    close,
    async drive(session, times = 12) {
      for (let time = 0; time < times; time++) {
        await close(session);
        const record = await recordOf(shared, session);
        if (record.closed) return record;
        clock.advance(SWEEP_MS);
      }
      return recordOf(shared, session);
    },
    async sweep() {
      await pipeline.sweeper.sweepPendingEvents(signal);
      await pipeline.sweeper.sweepSessions(signal);
      await pipeline.settled();
    },
  };
}

const NO_THREADS: KernelThreads = {
  seal: () => Promise.reject(new Error("nothing is sealed here")),
  open: () => Promise.reject(new Error("nothing is opened here")),
  deriveKey: () => Promise.reject(new Error("nothing is derived here")),
};

export async function recordOf(
  { sessions }: Pick<Shared, "sessions">,
  session: SessionId,
): Promise<SessionRecord> {
  const record = await sessions.find(session);
  if (record === undefined) throw new Error("the session is not there");
  return record;
}

/** An open session with `count` chunks in its tree, or with that many more. */
export async function grow(
  shared: Shared,
  session: SessionId,
  count: number,
  algorithm: HashAlgorithm = "blake3",
): Promise<SessionRecord> {
  const { tree } = await shared.sessions.create(newSession(session, { hashAlgorithm: algorithm }));
  for (let index: number = tree.size; index < tree.size + count; index++) {
    await shared.chunks.insert(leafChunk(session, index, algorithm));
  }
  return integrateNow(shared, session);
}

/** Moves the tree on over what is committed. */
function integrateNow(shared: Shared, session: SessionId): Promise<SessionRecord> {
  const observer = { report: () => undefined };
  const patience = createPatience(shared.clock, observer);
  return integrate(
    { ...shared, observer, patience, growth: new OwnGrowth(createSystemClock()) },
    session,
    new AbortController().signal,
  );
}

/** As a worker leaves it that died right after the seal: the event is pending, and nothing has followed. */
export async function seal(
  shared: Shared,
  session: SessionId,
  details: FinalizeDetails = { manifestType: "session_recording" },
): Promise<SessionRecord> {
  const { sessions } = shared;
  const { version, tree } = await recordOf(shared, session);
  await sessions.replace(session, version, { kind: "propose-count", count: tree.size, finalize: details });
  await sessions.replace(session, version + 1, { kind: "confirm-count" });
  await sessions.replace(session, version + 2, { kind: "seal", at: SEALED_AT });
  return recordOf(shared, session);
}

export const namesOf = (session: SessionId): ManifestFileNames =>
  manifestFileNames(session, "session_recording");
export const manifestIdOf = (session: SessionId): string => manifestId(session, "session_recording");

/** The reports of one kind. */
export function reported<Kind extends PipelineEvent["kind"]>(
  { reports }: Worker,
  kind: Kind,
): readonly Extract<PipelineEvent, { readonly kind: Kind }>[] {
  return reports.filter(
    (event): event is Extract<PipelineEvent, { readonly kind: Kind }> => event.kind === kind,
  );
}
