import { createHash } from "node:crypto";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Job } from "bullmq";
import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import type { ErrorCode } from "../../src/core/errors.ts";
import { ERROR_DISPOSITIONS } from "../../src/core/errors.ts";
import type { ChunkFailedEvent } from "../../src/schema/event.ts";
import {
  blobIds,
  chunksOf,
  Deployment,
  expectEveryEffectOnce,
  finalizeAll,
  payloadOf,
  untilSealed,
} from "../support/deployment.ts";
import { testServers } from "../support/servers.ts";
import { until } from "../support/worker-process.ts";

const servers = testServers();

const CHUNK_BYTES_MAX = 65_536;
const SESSION_BYTES_MAX = 200_000;
const GOOD_CHUNKS = 100;
/** In every hostile text, so that it can be looked for wherever it must not be. */
const HOSTILE = "hostile0marker";
const ATTEMPTS = 3;

type JobData = Readonly<Record<string, unknown>>;

interface BadJob {
  readonly name: string;
  readonly code: ErrorCode;
  readonly data: unknown;
  readonly jobName?: string;
  readonly jobId?: string;
}

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const bytes = Buffer.from("some bytes of a chunk");
const other = Buffer.from("other bytes of a chunk");

/** Sessions as they are when the bad jobs come: one has a chunk, one is sealed, one has its count, one is full. */
const prepared = {
  open: { id: servers.sessionId("open"), sizes: [1_000, 1_000] },
  sealed: { id: servers.sessionId("sealed"), sizes: [1_000] },
  counted: { id: servers.sessionId("counted"), sizes: [1_000, 1_000] },
  full: { id: servers.sessionId("full"), sizes: [65_000, 65_000, 65_000] },
} as const;

/** A chunk job with nothing wrong, in a session of its own; `change` then makes it wrong. */
function badJob(name: string, code: ErrorCode, change: JobData, without: readonly string[] = []): BadJob {
  const session = servers.sessionId(`bad-${name}`);
  const good = { session_id: session, chunk_id: `${session}-chunk-000000`, chunk_index: 0 };
  const source = { chunk_data_base64: base64(bytes) };
  const data: Record<string, unknown> = { ...good, ...source, ...change };
  for (const field of without) delete data[field];
  return { name, code, data };
}

const PAYLOAD = ["chunk_data_base64"] as const;
const INDEX = ["chunk_index"] as const;
const reference = (ref: JobData, declared: JobData = {}): JobData => ({
  payload_ref: ref,
  size_bytes: bytes.byteLength,
  blake3: toHex(blake3(bytes)),
  ...declared,
});
const redisKey = (name: string): string => `lucid:payload:{${servers.sessionId(`bad-${name}`)}}:p`;
const inRedis = (name: string, declared: JobData = {}): JobData =>
  reference({ store: "redis", key: redisKey(name) }, declared);

const BAD_FORM: readonly BadJob[] = [
  badJob("unknown-field", "JOB_INVALID", { [HOSTILE]: HOSTILE }),
  badJob("proto-field", "JOB_INVALID", JSON.parse(`{"__proto__": {"${HOSTILE}": 1}}`) as JobData),
  badJob("no-source", "JOB_INVALID", {}, PAYLOAD),
  badJob("two-sources", "JOB_INVALID", { chunk_data: base64(bytes) }),
  badJob("ref-without-size", "JOB_INVALID", { payload_ref: { store: "redis", key: redisKey("x") } }, PAYLOAD),
  badJob("index-beyond-limit", "JOB_INVALID", { chunk_index: 2 ** 32 }),
  badJob("index-negative", "JOB_INVALID", { chunk_index: -1 }),
  badJob("index-fraction", "JOB_INVALID", { chunk_index: 0.5 }),
  badJob("index-text", "JOB_INVALID", { chunk_index: HOSTILE }),
  badJob("index-nowhere", "JOB_INVALID", { chunk_id: "no_index_here" }, INDEX),
  badJob("index-in-id-beyond", "JOB_INVALID", { chunk_id: "a-chunk-4294967296" }, INDEX),
  badJob("compression-unknown", "JOB_INVALID", { compression: { algorithm: HOSTILE } }),
  badJob("compression-level", "JOB_INVALID", { compression: { algorithm: "brotli", level: 12 } }),
  badJob("metadata-large", "JOB_INVALID", { metadata: { a: HOSTILE.repeat(2_000) } }),
  badJob("metadata-list", "JOB_INVALID", { metadata: [HOSTILE] }),
  badJob("time", "JOB_INVALID", { recorded_at: HOSTILE }),
  badJob("digest-form", "JOB_INVALID", { sha256: HOSTILE }),
  { name: "not-an-object-text", code: "JOB_INVALID", data: HOSTILE },
  { name: "not-an-object-null", code: "JOB_INVALID", data: null },
  { name: "not-an-object-list", code: "JOB_INVALID", data: [HOSTILE] },
  { name: "not-json", code: "JOB_INVALID", data: {} },
  { ...badJob("job-name", "JOB_NAME_UNKNOWN", {}), jobName: `${HOSTILE}-job` },
  { ...badJob("job-id", "JOB_INVALID", { chunk_index: -1 }), jobId: `../${HOSTILE} \u0000 $where` },
  { ...badJob("forged-stub", "PAYLOAD_MISSING", {}), data: stubOf("forged-stub") },
];

function stubOf(name: string): JobData {
  const session = servers.sessionId(`bad-${name}`);
  return {
    committed: true,
    session_id: session,
    chunk_id: "x-0",
    chunk_index: 0,
    leaf_hash: "0".repeat(64),
  };
}

const HOSTILE_IDS: readonly (readonly [name: string, id: unknown])[] = [
  ["path", `../../${HOSTILE}`],
  ["nul", `${HOSTILE}\u0000`],
  ["dollar", `$${HOSTILE}`],
  ["proto", "__proto__"],
  ["dot", `${HOSTILE}.x`],
  ["object", { $ne: HOSTILE }],
  ["empty", ""],
  ["one-mebibyte", HOSTILE.repeat(75_000)],
];

const BAD_IDS: readonly BadJob[] = HOSTILE_IDS.flatMap(([name, id]) => [
  badJob(`session-id-${name}`, "JOB_INVALID", { session_id: id }),
  badJob(`chunk-id-${name}`, "JOB_INVALID", { chunk_id: id }),
]);

const BAD_BYTES: readonly BadJob[] = [
  badJob("base64-alphabet", "PAYLOAD_BASE64_INVALID", { chunk_data_base64: `${HOSTILE}-_` }),
  badJob("base64-padding", "PAYLOAD_BASE64_INVALID", { chunk_data_base64: "YQ" }),
  badJob("base64-line-break", "PAYLOAD_BASE64_INVALID", { chunk_data_base64: "YWFh\nYWFh" }),
  badJob("base64-spare-bits", "PAYLOAD_BASE64_INVALID", { chunk_data_base64: "YR==" }),
  badJob("empty", "PAYLOAD_EMPTY", { chunk_data_base64: "" }),
  badJob("empty-ref", "PAYLOAD_EMPTY", inRedis("empty-ref", { size_bytes: 0 }), PAYLOAD),
  badJob("oversized", "PAYLOAD_TOO_LARGE", { chunk_data_base64: base64(Buffer.alloc(CHUNK_BYTES_MAX + 1)) }),
  badJob("oversized-ref", "PAYLOAD_TOO_LARGE", inRedis("y", { size_bytes: CHUNK_BYTES_MAX + 1 }), PAYLOAD),
  badJob("size", "PAYLOAD_SIZE_MISMATCH", { size_bytes: bytes.byteLength + 1 }),
  badJob("truncated-ref", "PAYLOAD_SIZE_MISMATCH", inRedis("truncated-ref"), PAYLOAD),
  badJob("long-ref", "PAYLOAD_SIZE_MISMATCH", inRedis("long-ref"), PAYLOAD),
  badJob("blake3", "PAYLOAD_DIGEST_MISMATCH", { blake3: toHex(blake3(other)) }),
  badJob("sha256", "PAYLOAD_DIGEST_MISMATCH", { sha256: sha256(other) }),
  badJob("blake3-ref", "PAYLOAD_DIGEST_MISMATCH", inRedis("blake3-ref"), PAYLOAD),
  badJob("missing-ref", "PAYLOAD_MISSING", inRedis("missing-ref"), PAYLOAD),
  badJob("not-a-value-ref", "PAYLOAD_MISSING", inRedis("not-a-value-ref"), PAYLOAD),
  badJob("missing-file", "PAYLOAD_MISSING", reference({ store: "file", name: "nothing" }), PAYLOAD),
  badJob(
    "foreign-key",
    "PAYLOAD_REF_FORBIDDEN",
    reference({ store: "redis", key: redisKey("owner") }),
    PAYLOAD,
  ),
  badJob(
    "any-key",
    "PAYLOAD_REF_FORBIDDEN",
    reference({ store: "redis", key: `${HOSTILE}:session-chunks:meta` }),
    PAYLOAD,
  ),
  badJob("file-path", "PAYLOAD_REF_FORBIDDEN", reference({ store: "file", name: `../${HOSTILE}` }), PAYLOAD),
  badJob("file-link", "PAYLOAD_REF_FORBIDDEN", reference({ store: "file", name: "link" }), PAYLOAD),
];

/** Jobs of sessions that exist: these keep everything they have. */
function inSession(name: string, code: ErrorCode, session: { id: string }, change: JobData): BadJob {
  const { data } = badJob(name, code, { session_id: session.id, ...change });
  return { name, code, data };
}

const BAD_FOR_SESSION: readonly BadJob[] = [
  inSession("other-bytes", "CHUNK_CONFLICT", prepared.open, {
    chunk_id: `${prepared.open.id}-chunk-000000`,
  }),
  inSession("other-id", "CHUNK_CONFLICT", prepared.open, {
    chunk_id: "quite-another-id",
    chunk_index: 1,
    chunk_data_base64: base64(payloadOf(prepared.open.id, 1, 1_000)),
  }),
  inSession("id-elsewhere", "CHUNK_ID_CONFLICT", prepared.open, {
    chunk_id: `${prepared.open.id}-chunk-000000`,
    chunk_index: 7,
  }),
  inSession("after-seal", "SESSION_SEALED", prepared.sealed, { chunk_id: "late-1", chunk_index: 1 }),
  inSession("beyond-end", "CHUNK_BEYOND_END", prepared.counted, { chunk_id: "late-2", chunk_index: 2 }),
  inSession("session-too-large", "SESSION_TOO_LARGE", prepared.full, {
    chunk_id: "more-3",
    chunk_index: 3,
    chunk_data_base64: base64(Buffer.alloc(65_000, 1)),
  }),
];

const BAD = [...BAD_FORM, ...BAD_IDS, ...BAD_BYTES, ...BAD_FOR_SESSION];

const BAD_FINALIZE: readonly BadJob[] = [
  {
    name: "count-conflict",
    code: "FINALIZE_COUNT_CONFLICT",
    data: { session_id: prepared.sealed.id, chunk_count: 9 },
  },
  {
    name: "count-below",
    code: "FINALIZE_COUNT_BELOW_CHUNKS",
    data: { session_id: prepared.open.id, chunk_count: 1 },
  },
  { name: "count-form", code: "JOB_INVALID", data: { session_id: prepared.open.id, chunk_count: HOSTILE } },
  { name: "control-job-name", code: "JOB_NAME_UNKNOWN", data: {}, jobName: HOSTILE },
];

const jobIdOf = ({ name, jobId }: BadJob): string => jobId ?? `bad-job-${name}`;

describe("bad jobs among a hundred good chunks", () => {
  test("each fails with its code, says so once everywhere, writes nothing, and harms no good chunk", async () => {
    const deployment = new Deployment({
      ...servers,
      env: {
        LUCID_MAX_CHUNK_SIZE: String(CHUNK_BYTES_MAX),
        MAX_SESSION_SIZE: String(SESSION_BYTES_MAX),
        RETRY_ATTEMPTS: String(ATTEMPTS),
        LOG_LEVEL: "trace",
      },
    });
    const heard = deployment.listen();
    const producer = deployment.producer();
    const chunkQueue = deployment.queue("session-chunks");
    const controlQueue = deployment.queue("session-control");
    const redis = deployment.redis();
    const stores = await deployment.stores();
    const db = await deployment.db();

    await prepareSessions(deployment);
    const blobsBefore = await Promise.all(Object.values(prepared).map(({ id }) => blobIds(deployment, id)));

    // The payloads that bad references meet.
    const owner = redisKey("owner");
    await redis.set(owner, HOSTILE);
    await redis.set(redisKey("truncated-ref"), bytes.subarray(1));
    await redis.set(redisKey("long-ref"), Buffer.concat([bytes, bytes]));
    await redis.set(redisKey("blake3-ref"), Buffer.alloc(bytes.byteLength, 7));
    await redis.hset(redisKey("not-a-value-ref"), HOSTILE, HOSTILE);
    const folder = join(deployment.folder, "payloads", servers.sessionId("bad-file-link"));
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "target"), bytes);
    symlinkSync(join(folder, "target"), join(folder, "link"));

    const good = { id: servers.sessionId("good"), sizes: Array.from({ length: GOOD_CHUNKS }, () => 900) };
    await chunkQueue.pause();
    const bad = BAD[Symbol.iterator]();
    for (const chunk of chunksOf(good)) {
      await producer.enqueueChunk(chunk);
      const { value } = bad.next();
      if (value !== undefined) await addBad(chunkQueue, value);
    }
    expect(bad.next().done).toBe(true);
    for (const job of BAD_FINALIZE) await addBad(controlQueue, job);
    await redis.hset(chunkQueue.toKey("bad-job-not-json"), "data", `{"session_id": ${HOSTILE}`);

    const worker = await deployment.readyWorker();
    await chunkQueue.resume();
    await finalizeAll(producer, [good]);
    await untilSealed(deployment, [good], 30_000);
    const hasFailed = async () =>
      (await chunkQueue.getFailedCount()) >= BAD.length &&
      (await controlQueue.getFailedCount()) >= BAD_FINALIZE.length;
    await until("all bad jobs have failed", hasFailed, 20_000, 200);

    // The good ones.
    await expectEveryEffectOnce(deployment, heard, [good]);
    // The dead letters.
    const failed = (await chunkQueue.getFailed(0, -1)) as Job[];
    const reasons = new Map(failed.map((job) => [job.id, job]));
    for (const one of BAD) {
      const job = reasons.get(jobIdOf(one));
      expect(job?.failedReason.split(":")[0], one.name).toBe(one.code);
      const tries = ERROR_DISPOSITIONS[one.code] === "retryable" ? ATTEMPTS : 1;
      expect(job?.attemptsMade, `attempts of ${one.name}`).toBe(tries);
      expect(job?.stacktrace, one.name).toEqual([]);
    }
    expect(reasons.size).toBe(BAD.length);
    const control = (await controlQueue.getFailed(0, -1)) as Job[];
    expect(control.map((job) => `${job.id} ${job.failedReason.split(":")[0]}`).sort()).toEqual(
      BAD_FINALIZE.map((one) => `${jobIdOf(one)} ${one.code}`).sort(),
    );
    expect([...failed, ...control].map((job) => job.failedReason).join()).not.toContain(HOSTILE);

    // The events: one each, of its code, with nothing hostile in it.
    const isFailure = (event: { type: string }): event is ChunkFailedEvent => event.type === "chunk.failed";
    await until("the failures are told", () => heard.all.filter(isFailure).length >= BAD.length, 5_000).catch(
      () => undefined,
    );
    const told = heard.all.filter(isFailure);
    expect(told.map(({ error }) => error.code).sort()).toEqual(BAD.map(({ code }) => code).sort());
    for (const one of BAD.filter(({ jobId }) => jobId === undefined)) {
      const events = told.filter(({ job_id: id }) => id === jobIdOf(one));
      expect(
        events.map(({ error }) => `${error.code}: ${error.message}`),
        one.name,
      ).toEqual([reasons.get(jobIdOf(one))?.failedReason]);
    }
    expect(JSON.stringify(heard.all)).not.toContain(HOSTILE);

    // The log, and the metrics.
    const lines = worker.linesOf("chunk_failed");
    for (const one of BAD.filter(({ jobId }) => jobId === undefined)) {
      const line = lines.filter(({ job_id: id }) => id === jobIdOf(one));
      // The same words everywhere: what is wrong, and never its value.
      const message = reasons.get(jobIdOf(one))?.failedReason.slice(`${one.code}: `.length);
      expect(line, one.name).toMatchObject([{ err: { code: one.code, message } }]);
    }
    expect(lines.length).toBe(BAD.length);
    expect(
      worker
        .linesOf("job_failed")
        .map(({ job_id: id }) => String(id))
        .sort(),
    ).toEqual(BAD_FINALIZE.map(jobIdOf).sort());
    expect(worker.output).not.toContain(HOSTILE);
    const all = [...BAD, ...BAD_FINALIZE];
    for (const code of new Set(all.map((one) => one.code))) {
      const expected = all.filter((one) => one.code === code).length;
      expect(await worker.metric(`lucid_job_failures_total{code="${code}"}`), code).toBe(expected);
    }

    // Nothing written.
    const badSessions = BAD.map(({ name }) => servers.sessionId(`bad-${name}`));
    const sessions = await db
      .collection<{ _id: string }>("sessions")
      .find({}, { projection: { _id: 1 } })
      .toArray();
    const preparedIds = Object.values(prepared).map(({ id }) => id);
    expect(sessions.map(({ _id }) => _id).sort()).toEqual([...preparedIds, good.id].sort());
    expect(await db.collection("chunks").countDocuments({ session_id: { $in: badSessions } })).toBe(0);
    expect(await db.collection("chunk_blobs").countDocuments({ session_id: { $in: badSessions } })).toBe(0);
    // The blob of a refused chunk_id waits for the sweeper: by then no late insert can name it any more.
    const blobsNow = () => Promise.all(preparedIds.map((id) => blobIds(deployment, id)));
    const isSwept = async () => (await blobsNow()).flat().length <= blobsBefore.flat().length;
    await until("no orphan is left", isSwept, 20_000, 200).catch(() => undefined);
    expect(await blobsNow()).toEqual(blobsBefore);
    const kept = await stores.sessions.find(prepared.open.id as never);
    expect(kept).toMatchObject({ state: "open", tree: { size: 2 } });
    expect(kept?.expectedCount).toBeUndefined();
    expect(await redis.get(owner)).toBe(HOSTILE);
  });
});

async function addBad(queue: ReturnType<Deployment["queue"]>, job: BadJob): Promise<void> {
  const usual = queue.name === "session-chunks" ? "process-chunk" : "finalize-session";
  await queue.add(job.jobName ?? usual, job.data, { jobId: jobIdOf(job) });
}

/** By a worker that has ended again, so that the counters of the one under test are of the bad jobs. */
async function prepareSessions(deployment: Deployment): Promise<void> {
  const worker = await deployment.readyWorker();
  const producer = deployment.producer();
  const { open, sealed, counted, full } = prepared;
  await producer.enqueueAll([
    ...chunksOf(open),
    ...chunksOf(sealed),
    ...chunksOf(counted, 0, 1),
    ...chunksOf(full),
  ]);
  await finalizeAll(producer, [sealed, counted]);
  await untilSealed(deployment, [sealed], 20_000);
  const { sessions } = await deployment.stores();
  const isPrepared = async () => {
    const records = await Promise.all([open, counted, full].map(({ id }) => sessions.find(id as never)));
    return records.map((record) => record?.tree.size).join() === "2,1,3" && records[1]?.countConfirmed;
  };
  await until("the sessions are prepared", isPrepared, 20_000, 100);
  await worker.terminate();
}
