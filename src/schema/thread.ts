import { z } from "zod";
import { levelRange } from "../core/compress/codec.ts";
import { ERROR_DISPOSITIONS, type ErrorCode } from "../core/errors.ts";
import {
  type ChunkId,
  isId,
  LEAF_INDEX_MAX,
  type LeafHash,
  type LeafIndex,
  type SessionId,
} from "../core/ids.ts";
import {
  type OpenedChunk,
  type OpenRequest,
  type SealedChunk,
  type SealRequest,
  STAGES,
} from "../core/kernel.ts";

// What passes between the main thread and a CPU thread, by structured clone.

/** Given to a thread when it starts. */
export interface ThreadData {
  /** Of one element, in shared memory: the thread writes the position of the item that it begins. */
  readonly itemAt: Int32Array<SharedArrayBuffer>;
}

const U32_MAX = 0xffff_ffff;
const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array);
const bytesOf = (length: number): z.ZodType<Uint8Array> =>
  bytes.refine((value) => value.byteLength === length, `must be ${length} bytes`);
const ownBytes = z.custom<Uint8Array<ArrayBuffer>>((value) => value instanceof Uint8Array);
const digest = bytesOf(32);
const byteCount = z.int().min(0);

const place = {
  sessionId: z.custom<SessionId>(isId),
  index: z.custom<LeafIndex>(
    (value) => Number.isInteger(value) && Number(value) >= 0 && Number(value) <= LEAF_INDEX_MAX,
  ),
  chunkId: z.custom<ChunkId>(isId),
  keyVersion: z.int().min(0).max(U32_MAX),
};
const codec = z.enum(["none", "zstd", "lz4", "brotli"]);

const compression = z
  .object({ algorithm: codec, level: z.int(), thresholdBytes: byteCount })
  .refine(
    ({ algorithm, level }) => level >= levelRange(algorithm).min && level <= levelRange(algorithm).max,
    {
      message: "level is not one of the codec's",
    },
  );

const sealRequest = z.object({
  ...place,
  payload: bytes,
  declaredSha256: digest.optional(),
  declaredBlake3: digest.optional(),
  compression,
  hashAlgorithm: z.enum(["blake3", "sha256"]),
  key: bytesOf(32),
  salt: bytesOf(32),
  nonce: bytesOf(12),
  plainMacKey: bytesOf(32),
}) satisfies z.ZodType<SealRequest>;

/** Of small chunks, whose passing to a thread costs more than their sealing. */
const sealManyRequest = z.object({ requests: z.array(sealRequest).min(1) });

const openRequest = z.object({
  ...place,
  codec,
  originalLength: byteCount,
  blob: bytes,
  blobBlake3: digest,
  keyCommit: digest,
  plainMac: digest,
  key: bytesOf(32),
  plainMacKey: bytesOf(32),
}) satisfies z.ZodType<OpenRequest>;

/** PBKDF2 takes 15 ms: it never runs on the loop that renews job locks. */
const deriveRequest = z.object({ password: z.string().min(1), salt: bytesOf(32) });

const pingRequest = z.strictObject({});

/** What a CPU thread does, without the number that the pool adds. */
export const threadTask = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("seal"), request: sealRequest }),
  z.object({ kind: z.literal("seal-many"), request: sealManyRequest }),
  z.object({ kind: z.literal("open"), request: openRequest }),
  z.object({ kind: z.literal("derive"), request: deriveRequest }),
  z.object({ kind: z.literal("ping"), request: pingRequest }),
]);
export type ThreadTask = z.infer<typeof threadTask>;
export type ThreadTaskKind = ThreadTask["kind"];

export const threadJob = z.object({ id: z.int().min(0), task: threadTask });
export type ThreadJob = z.infer<typeof threadJob>;

const sealedChunk = z.object({
  blob: ownBytes,
  blobBlake3: digest,
  plainMac: digest,
  keyCommit: digest,
  leafHash: z.custom<LeafHash>((value) => value instanceof Uint8Array && value.byteLength === 32),
  codec,
  level: z.int(),
  originalLength: byteCount,
  compressedLength: byteCount,
  storedLength: byteCount,
  stageSeconds: z.record(z.enum(STAGES), z.number()),
}) satisfies z.ZodType<SealedChunk>;

const errorCode = z.custom<ErrorCode>(
  (value) => typeof value === "string" && Object.hasOwn(ERROR_DISPOSITIONS, value),
);

/** One chunk's, of many: those that can't be sealed don't keep the others. */
const sealOutcome = z.discriminatedUnion("state", [
  z.object({ state: z.literal("sealed"), chunk: sealedChunk }),
  z.object({ state: z.literal("failed"), code: errorCode, message: z.string() }),
]);
export type SealOutcome = z.infer<typeof sealOutcome>;

const results = {
  seal: sealedChunk,
  "seal-many": z.object({ outcomes: z.array(sealOutcome) }),
  open: z.object({ payload: ownBytes }) satisfies z.ZodType<OpenedChunk>,
  derive: z.object({ key: bytesOf(32) }),
  ping: z.strictObject({}),
};
export type ThreadResults = { readonly [Kind in ThreadTaskKind]: z.infer<(typeof results)[Kind]> };

const done = <Kind extends ThreadTaskKind>(kind: Kind) =>
  z.object({ state: z.literal("done"), id: z.int(), kind: z.literal(kind), result: results[kind] });

/** `ready` once, when the thread's modules are loaded; then one `done` or `failed` for each job, in order. */
export const threadReply = z.union([
  z.object({ state: z.literal("ready") }),
  z.object({ state: z.literal("failed"), id: z.int(), code: errorCode, message: z.string() }),
  done("seal"),
  done("seal-many"),
  done("open"),
  done("derive"),
  done("ping"),
]);
export type ThreadReply = z.infer<typeof threadReply>;
