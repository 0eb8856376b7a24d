import { z } from "zod";
import { ERROR_DISPOSITIONS, type ErrorCode } from "../core/errors.ts";

export const EVENT_TYPES = [
  "chunk.completed",
  "chunk.failed",
  "session.sealed",
  "session.anchored",
  "session.gap",
] as const;

const header = {
  event_id: z.string().regex(/^[A-Za-z0-9_.-]{1,300}$/),
  version: z.literal(1),
  occurred_at: z.iso.datetime(),
};
const hex64 = z.string().regex(/^[0-9a-f]{64}$/);
const count = z.number().int().min(0);

export const chunkCompletedSchema = z.strictObject({
  ...header,
  type: z.literal("chunk.completed"),
  session_id: z.string(),
  chunk_id: z.string(),
  chunk_index: count,
  original_bytes: count,
  stored_bytes: count,
  compression: z.strictObject({ algorithm: z.string(), level: z.number().int(), ratio: z.number() }),
  encryption: z.strictObject({ format: z.literal(1), key_version: count, kek_version: count }),
  blob: z.strictObject({ collection: z.literal("chunk_blobs"), id: z.string(), blake3: hex64 }),
  leaf_hash: hex64,
  hash_algorithm: z.enum(["blake3", "sha256"]),
});

const errorCode = z.enum(Object.keys(ERROR_DISPOSITIONS) as [ErrorCode, ...ErrorCode[]]);

/** The ids are absent when the job gave none that may be repeated; `job_id` then names the job. */
export const chunkFailedSchema = z.strictObject({
  ...header,
  type: z.literal("chunk.failed"),
  session_id: z.string().optional(),
  chunk_id: z.string().optional(),
  chunk_index: count.optional(),
  job_id: z.string(),
  error: z.strictObject({ code: errorCode, message: z.string() }),
  attempts: count,
});

export const sessionSealedSchema = z.strictObject({
  ...header,
  type: z.literal("session.sealed"),
  session_id: z.string(),
  tree_size: count,
  root_hash: hex64,
  hash_algorithm: z.enum(["blake3", "sha256"]),
  original_bytes: count,
  stored_bytes: count,
});

export const sessionAnchoredSchema = z.strictObject({
  ...header,
  type: z.literal("session.anchored"),
  session_id: z.string(),
  tree_size: count,
  root_hash: hex64,
  anchoring_id: z.string().optional(),
  transaction: z.string().optional(),
  block: z.number().int().optional(),
});

/** `missing` holds closed ranges [first, last] of absent indexes, at most 100 of them. */
export const sessionGapSchema = z.strictObject({
  ...header,
  type: z.literal("session.gap"),
  session_id: z.string(),
  tree_size: count,
  missing: z
    .array(z.tuple([count, count]))
    .min(1)
    .max(100),
});

export const eventSchema = z.discriminatedUnion("type", [
  chunkCompletedSchema,
  chunkFailedSchema,
  sessionSealedSchema,
  sessionAnchoredSchema,
  sessionGapSchema,
]);
export type LucidEvent = z.infer<typeof eventSchema>;
export type ChunkCompletedEvent = z.infer<typeof chunkCompletedSchema>;
export type ChunkFailedEvent = z.infer<typeof chunkFailedSchema>;
export type SessionAnchoredEvent = z.infer<typeof sessionAnchoredSchema>;
export type SessionSealedEvent = z.infer<typeof sessionSealedSchema>;
export type SessionGapEvent = z.infer<typeof sessionGapSchema>;
