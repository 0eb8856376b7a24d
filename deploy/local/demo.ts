import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createEventConsumer } from "../../src/adapters/bullmq/event-consumer.ts";
import { type ChunkToEnqueue, createProducer } from "../../src/adapters/bullmq/producer.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { CpuThreads } from "../../src/adapters/threads/cpu-threads.ts";
import { unreadable } from "../../src/cli/files.ts";
import { type OpenStores, openStores } from "../../src/cli/open-stores.ts";
import { formatBytes, type Output } from "../../src/cli/output.ts";
import { openInput, splitStream } from "../../src/cli/split-file.ts";
import { toHex } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { LucidError } from "../../src/core/errors.ts";
import { type SessionId, sessionId } from "../../src/core/ids.ts";
import { encodeLeaf } from "../../src/core/merkle/leaf.ts";
import { textbookLeafHash, textbookRoot } from "../../src/core/merkle/textbook.ts";
import { findRestorable, restoreChunks } from "../../src/pipeline/restore-session.ts";
import type { LucidEvent } from "../../src/schema/event.ts";
import type { SessionRecord } from "../../src/schema/record.ts";
import { type AuditReport, verifyAsAuditor } from "./demo-audit.ts";
import { newFolder } from "./placement.ts";
import { dropTrial, type Trial, trialOn } from "./trial.ts";
import { type LocalServers, startLocalServers } from "./servers.ts";
import { startLocalWorker } from "./worker.ts";

const CHUNK_BYTES = 1_048_576;
const QUEUE_SIZE = 64;
const PAYLOAD_TTL_SECONDS = 3_600;
const VERIFY_TIMEOUT_MS = 30_000;
/** Without any event for this long the run has failed. */
const SILENCE_MAX_MS = 120_000;
/** Seconds: what a sweep does is part of what is shown, and the default lets people wait for it. */
const SWEEP_INTERVAL = "1";
/** It takes about four seconds. */
const CLOSED_DEADLINE_MS = 30_000;
const CLOSED_POLL_MS = 50;
const EVENT_CONCURRENCY = 16;

export interface DemoReport extends AuditReport {
  /** Absolute path of what was processed. */
  readonly file: string;
  readonly chunks: number;
  readonly bytes: number;
  readonly stored_bytes: number;
  readonly root_hash: string;
  /** Different events that a subscriber heard. */
  readonly events: number;
  readonly repeats: number;
  readonly restored_identical: boolean;
  /** From the first job to the seal. */
  readonly seconds: number;
  readonly mb_per_s: number;
  /** The folder with all that --keep keeps; null without it. */
  readonly kept: string | null;
  readonly redis: string;
  readonly mongodb: string;
}

export interface DemoOptions {
  readonly file: string;
  readonly keep: boolean;
  readonly output: Output;
  readonly signal: AbortSignal;
}

/** The main job from a file to a proven session, on servers that are started for it and ended after it. */
export async function runDemo({ file, keep, output, signal }: DemoOptions): Promise<DemoReport> {
  const bytes = await sizeOf(file);
  const say = (line: string): void => output.say(line);
  say(`file: ${resolve(file)}, ${formatBytes(bytes)}`);
  const sayEnding = (): void => say("ending the worker and the servers; Ctrl-C again ends this at once");
  signal.addEventListener("abort", sayEnding, { once: true });
  const folder = keep ? newFolder() : undefined;
  if (folder !== undefined) {
    output.keepInMind({ kept: folder });
    say(`folder: ${folder}, which stays also if this is interrupted or fails`);
  }
  const servers = await startLocalServers({ say, signal, folder, program: "session-processor demo" }).catch(
    (thrown: unknown) => {
      if (folder !== undefined) say(`kept: ${folder} (as far as its servers had started)`);
      throw thrown;
    },
  );
  const trial = await trialOn(servers, "demo");
  try {
    const report = await processAndProve({
      file: resolve(file),
      bytes,
      keep,
      trial,
      servers,
      output,
      signal,
    });
    if (keep) {
      await sayHowToLook(say, servers, trial);
      say("and then the commands above, and the others of npx session-processor; --help lists them");
    }
    return report;
  } catch (thrown) {
    // Interrupted or failed: what there is by now is kept all the same.
    if (keep) await sayHowToLook(say, servers, trial).catch(() => say(`kept: ${servers.folder}`));
    throw thrown;
  } finally {
    if (!keep) await dropTrial(trial);
    await servers.stop();
  }
}

interface DemoRun {
  readonly file: string;
  readonly bytes: number;
  readonly keep: boolean;
  readonly trial: Trial;
  readonly servers: LocalServers;
  readonly output: Output;
  readonly signal: AbortSignal;
}

async function processAndProve(run: DemoRun): Promise<DemoReport> {
  const { trial, servers, output, signal } = run;
  const session = sessionId(`sess-demo-${randomBytes(6).toString("hex")}`);
  const env = { ...trial.env, SWEEP_INTERVAL };
  const worker = await startLocalWorker({ dir: servers.folder, env, signal });
  output.say(`worker: process ${worker.pid}, http://127.0.0.1:${worker.port}/health`);
  const stores = await openStores(trial.mongodbUrl);
  const storage = new StorageService(trial, signal);
  try {
    const startedMs = performance.now();
    const chunks = await enqueueFile(run, session);
    await storage.untilSealed(session, chunks, output);
    const seconds = (performance.now() - startedMs) / 1000;
    const record = await findRestorable(stores.sessions, session);
    await checkRoot(stores, record);
    output.say("root: equal to the recursion of RFC 9162, from the stored chunks");
    const restoredIdentical = await isRestoredIdentical(run, stores, record);
    const audit = await verifyAsAuditor(session, chunks, { trial, output, signal });
    await untilClosed(stores, session, signal);
    output.say("closed: announced for good, and nothing is left to be done for it");
    return {
      file: run.file,
      chunks,
      bytes: run.bytes,
      stored_bytes: record.totals.storedBytes,
      root_hash: toHex(record.tree.root),
      events: storage.events,
      repeats: storage.repeats,
      restored_identical: restoredIdentical,
      ...audit,
      seconds,
      mb_per_s: run.bytes / 1e6 / seconds,
      kept: run.keep ? servers.folder : null,
      redis: servers.redis.label,
      mongodb: servers.mongodb.label,
    };
  } finally {
    await storage.close();
    await stores.close();
    await worker.stop();
  }
}

/** Some seconds after the seal: a session is closed at the sweep after its events have been in Redis long enough to survive it. */
async function untilClosed({ sessions }: OpenStores, session: SessionId, signal: AbortSignal): Promise<void> {
  const givesUpAtMs = performance.now() + CLOSED_DEADLINE_MS;
  for (;;) {
    const record = await sessions.find(session);
    if (record?.closed === true) return;
    if (signal.aborted) throw new LucidError("SHUTTING_DOWN", "interrupted");
    if (performance.now() > givesUpAtMs) {
      const text = `the session was not closed within ${CLOSED_DEADLINE_MS / 1000} s; run with --keep and look at the worker's log`;
      throw new LucidError("INTERNAL", text);
    }
    await sleep(CLOSED_POLL_MS);
  }
}

/** The code that `enqueue` uses, then `finalize-session`. */
async function enqueueFile(
  { file, bytes, trial, output, signal }: DemoRun,
  session: SessionId,
): Promise<number> {
  const producer = createProducer({
    url: trial.redisUrl,
    prefix: trial.queuePrefix,
    queueSizeMax: QUEUE_SIZE,
    payloadTtlSeconds: PAYLOAD_TTL_SECONDS,
    clock: createSystemClock(),
    signal,
    onError: () => undefined,
  });
  const bar = output.progress("process", Math.ceil(bytes / CHUNK_BYTES), "chunks");
  let added = 0;
  try {
    const chunks = numbered(session, splitStream(openInput(file), CHUNK_BYTES));
    const result = await producer.enqueueAll(chunks, () => bar.update(++added));
    await producer.finalize({ session_id: session, chunk_count: result.chunks });
    return result.chunks;
  } finally {
    bar.stop();
    await producer.close();
  }
}

async function* numbered(
  session: SessionId,
  pieces: AsyncIterable<Uint8Array>,
): AsyncGenerator<ChunkToEnqueue> {
  let index = 0;
  for await (const bytes of pieces) yield { sessionId: session, index: index++, bytes };
}

/** Listens as a storage service would: at-least-once delivery, repeats dropped by event id. */
class StorageService {
  readonly #seen = new Set<string>();
  readonly #completed = new Set<number>();
  readonly #signal: AbortSignal;
  readonly #consumer;
  readonly #sealed = Promise.withResolvers<void>();
  #repeats = 0;
  #lastEventMs = performance.now();

  constructor(trial: Trial, signal: AbortSignal) {
    this.#signal = signal;
    this.#consumer = createEventConsumer({
      url: trial.redisUrl,
      prefix: trial.queuePrefix,
      queue: trial.eventQueue,
      concurrency: EVENT_CONCURRENCY,
      onError: () => undefined,
      onEvent: (event) => this.#take(event),
    });
  }

  get events(): number {
    return this.#seen.size;
  }

  get repeats(): number {
    return this.#repeats;
  }

  async untilSealed(session: SessionId, chunks: number, output: Output): Promise<void> {
    const isQuiet = setInterval(() => {
      if (this.#signal.aborted) this.#sealed.reject(new LucidError("SHUTTING_DOWN", "interrupted"));
      if (performance.now() - this.#lastEventMs < SILENCE_MAX_MS) return;
      const text = `no event for ${SILENCE_MAX_MS / 1000} s; run with --keep and look at the worker's log`;
      this.#sealed.reject(new LucidError("INTERNAL", text));
    }, 250);
    try {
      await this.#sealed.promise;
    } finally {
      clearInterval(isQuiet);
    }
    if (this.#completed.size !== chunks) {
      throw new LucidError("INTERNAL", `${this.#completed.size} of ${chunks} chunk.completed events came`);
    }
    output.say(`sealed: ${session}, ${chunks} chunks, each announced once`);
  }

  close(): Promise<void> {
    this.#sealed.promise.catch(() => undefined);
    return this.#consumer.close();
  }

  #take(event: LucidEvent): void {
    this.#lastEventMs = performance.now();
    if (this.#seen.has(event.event_id)) {
      this.#repeats += 1;
      return;
    }
    this.#seen.add(event.event_id);
    if (event.type === "chunk.completed") this.#completed.add(event.chunk_index);
    if (event.type === "chunk.failed") {
      this.#sealed.reject(new LucidError(event.error.code, `a chunk failed: ${event.error.message}`));
    }
    // The last chunk's own event may come after the seal's: both are waited for.
    if (event.type === "session.sealed") this.#sealedSize = event.tree_size;
    if (this.#sealedSize !== undefined && this.#completed.size >= this.#sealedSize) this.#sealed.resolve();
  }

  #sealedSize: number | undefined;
}

/** The root again, by an implementation that shares no code with the first, from the blobs as they are stored. */
async function checkRoot(stores: OpenStores, record: SessionRecord): Promise<void> {
  const leaves: Uint8Array[] = [];
  for (let next = 0; next < record.tree.size; ) {
    const page = await stores.chunks.beyond(record.id, next, 64);
    if (page.length === 0) throw new LucidError("TREE_CORRUPT", `chunk ${next} is missing`);
    for (const chunk of page) {
      const blob = await stores.blobs.read(chunk.blobId);
      if (blob === undefined)
        throw new LucidError("BLOB_MISSING", `the blob of chunk ${chunk.index} is missing`);
      const leaf = encodeLeaf({
        sessionId: chunk.sessionId,
        index: chunk.index,
        chunkId: chunk.chunkId,
        codec: chunk.codec,
        originalLength: chunk.originalBytes,
        storedLength: blob.byteLength,
        blobBlake3: blake3(blob),
        keyCommit: chunk.keyCommit,
        plainMac: chunk.plainMac,
      });
      leaves.push(textbookLeafHash(leaf, record.hashAlgorithm));
      next += 1;
    }
  }
  const root = toHex(textbookRoot(leaves, record.hashAlgorithm));
  if (record.tree.root === undefined || root !== toHex(record.tree.root)) {
    throw new LucidError("TREE_CORRUPT", "the recursion gives another root than the session has");
  }
}

/** Reads every blob back, opens and decompresses it, and compares the bytes with the file's. */
async function isRestoredIdentical(
  run: DemoRun,
  stores: OpenStores,
  record: SessionRecord,
): Promise<boolean> {
  const { output, trial, signal, file } = run;
  const threads = new CpuThreads({ threads: trial.threads, timeoutMs: VERIFY_TIMEOUT_MS });
  const bar = output.progress("restore", record.tree.size, "chunks");
  try {
    const restored = createHash("sha256");
    const range = { from: 0, to: record.tree.size };
    const ports = { ...stores, threads, keyRing: singleKeyRing(trial.encryptionKey) };
    for await (const { chunk, payload } of restoreChunks(ports, record, range, signal)) {
      restored.update(payload);
      bar.update(chunk.index + 1);
    }
    const original = createHash("sha256");
    for await (const piece of createReadStream(file)) original.update(piece as Buffer);
    return restored.digest("hex") === original.digest("hex");
  } finally {
    bar.stop();
    await threads.close();
  }
}

async function sizeOf(file: string): Promise<number> {
  const found = await stat(file).catch((cause: unknown) => {
    throw unreadable(file, cause);
  });
  if (!found.isFile()) throw new LucidError("CONFIG_INVALID", `${file} is not a regular file`);
  if (found.size === 0)
    throw new LucidError("PAYLOAD_EMPTY", `${file} is empty: there is nothing to process`);
  return found.size;
}

/** What is needed to look at the kept data: the servers again, and the names and keys of this run. */
async function sayHowToLook(
  say: (line: string) => void,
  { folder }: LocalServers,
  trial: Trial,
): Promise<void> {
  const file = join(folder, "demo.env");
  // Servers of ours get other ports when they start again; those that were given stay, with a database of this run's own.
  const urls = SERVER_URLS.filter((name) => (process.env[name] ?? "") !== "");
  const lines = Object.entries(trial.env)
    .filter(([name, value]) => value !== undefined && (urls.includes(name) || OWN_SETTINGS.test(name)))
    .map(([name, value]) => `export ${name}='${value}'`);
  if (!urls.includes("MONGODB_URL")) lines.push(`export MONGODB_URL="\${MONGODB_URL%/*}/${trial.database}"`);
  await writeFile(file, `${lines.join("\n")}\n`, { mode: 0o600 });
  say(`kept: ${folder} (data of both servers, manifests, worker/worker.log, keys of this run)`);
  if (urls.length < SERVER_URLS.length) {
    say(`to look at it:  npm run services -- --folder ${folder}`);
    say(`then, in another terminal, its two export lines, and:  . ${file}`);
  } else say(`to look at it:  . ${file}`);
}

const SERVER_URLS: readonly string[] = ["REDIS_URL", "MONGODB_URL"];
const OWN_SETTINGS = /^(?:LUCID_|ENCRYPTION_|QUEUE_|MANIFEST_)/;
