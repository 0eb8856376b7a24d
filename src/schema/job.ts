import { z } from "zod";
import { ID_PATTERN, LEAF_INDEX_MAX } from "../core/ids.ts";
import { MANIFEST_TYPES } from "../core/manifest/names.ts";

/** Queue and job names of contract §3; the wire is snake_case because the neighbours are Python. */
export const QUEUE_CHUNKS = "session-chunks";
export const QUEUE_CONTROL = "session-control";
export const JOB_PROCESS_CHUNK = "process-chunk";
export const JOB_FINALIZE_SESSION = "finalize-session";

/** Serialized size limit of a caller's `metadata` object, bytes of canonical JSON. */
export const METADATA_BYTES_MAX = 16 * 1024;
/** Nesting limit of `metadata`: deeper objects exhaust the stack of whoever walks them. */
export const METADATA_DEPTH_MAX = 32;

const id = (name: string) =>
  z
    .string()
    .max(100, `${name} has more than 100 characters`)
    .regex(ID_PATTERN, `${name} has a forbidden form`);
const hex64 = z.string().regex(/^[0-9a-f]{64}$/, "must be 64 lowercase hex digits");
const index = z.number().int().min(0).max(LEAF_INDEX_MAX);
const bytes = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER);
/** As long as a manifest can hold it. */
const isoTime = z.iso.datetime({ offset: true }).max(40);
/** A plain JSON object. Not walked here: its size and depth are checked, up to their limits, where it is made canonical. */
const jsonObject = z.custom<Readonly<Record<string, unknown>>>(
  (value) => typeof value === "object" && value !== null && !Array.isArray(value),
);

export const payloadRefSchema = z.discriminatedUnion("store", [
  z.strictObject({ store: z.literal("redis"), key: z.string().min(1).max(300) }),
  z.strictObject({ store: z.literal("file"), name: id("payload name") }),
]);
export type PayloadRef = z.infer<typeof payloadRefSchema>;

export const CODECS = ["zstd", "lz4", "brotli", "none"] as const;
const compressionSchema = z.strictObject({
  algorithm: z.enum(CODECS),
  level: z.number().int().min(-131072).max(22).optional(),
});

/** `process-chunk` data as it comes off the wire, before its aliases are settled. */
export const processChunkDataSchema = z.strictObject({
  session_id: id("session_id"),
  chunk_id: id("chunk_id"),
  chunk_index: index.optional(),
  sequence_number: index.optional(),
  chunk_data_base64: z.string().optional(),
  chunk_data: z.string().optional(),
  payload_ref: payloadRefSchema.optional(),
  size_bytes: bytes.optional(),
  blake3: hex64.optional(),
  sha256: hex64.optional(),
  compression: compressionSchema.optional(),
  recorded_at: isoTime.optional(),
  metadata: jsonObject.optional(),
});
export type ProcessChunkData = z.infer<typeof processChunkDataSchema>;

/** What replaces an inline job's data after the commit, so that no plaintext stays in Redis. */
export const committedStubSchema = z.strictObject({
  committed: z.literal(true),
  session_id: id("session_id"),
  chunk_id: id("chunk_id"),
  chunk_index: index,
  leaf_hash: hex64,
});
export type CommittedStub = z.infer<typeof committedStubSchema>;

export const finalizeSessionDataSchema = z.strictObject({
  session_id: id("session_id"),
  chunk_count: z
    .number()
    .int()
    .min(1)
    .max(LEAF_INDEX_MAX + 1),
  owner_address: z.string().min(1).max(200).optional(),
  manifest_type: z.enum(MANIFEST_TYPES).default("session_recording"),
  started_at: isoTime.optional(),
  ended_at: isoTime.optional(),
  metadata: jsonObject.optional(),
});

/** Small, because BullMQ copies it into the queue's event stream. */
export interface ProcessChunkReturn {
  readonly chunk_id: string;
  readonly chunk_index: number;
  readonly leaf_hash: string;
  readonly stored_bytes: number;
}
