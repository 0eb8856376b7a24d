import { fromBase64, fromHex } from "../core/bytes.ts";
import { canonicalJson } from "../core/canonical-json.ts";
import { levelFor } from "../core/compress/codec.ts";
import { type ErrorCode, LucidError } from "../core/errors.ts";
import {
  type ChunkId,
  chunkId,
  isId,
  LEAF_INDEX_MAX,
  type LeafIndex,
  leafIndex,
  type SessionId,
  sessionId,
} from "../core/ids.ts";
import {
  CODECS,
  type CommittedStub,
  committedStubSchema,
  finalizeSessionDataSchema,
  METADATA_BYTES_MAX,
  METADATA_DEPTH_MAX,
  type PayloadRef,
  type ProcessChunkData,
  processChunkDataSchema,
} from "../schema/job.ts";
import { MANIFEST_TYPES } from "../core/manifest/names.ts";
import { base64Chars } from "./job-text.ts";
import type { ChunkJob, ChunkSource, FinalizeJob } from "./ports.ts";

/*
 * Contract §2 and §3: the form of jobs. Whatever a producer wrote comes in as `unknown`; what comes out is checked,
 * or a LucidError whose message names the field and what it allows. A message never repeats a value: it goes into
 * Redis, events and logs, and a value may be a payload, a secret or a megabyte.
 */

export interface JobLimits {
  readonly chunkBytesMax: number;
  readonly defaultCompression: ChunkJob["compression"];
}

/** A chunk to process, or what was left of an inline job that was committed and not yet taken off the queue. */
export type ChunkTask =
  | { readonly kind: "chunk"; readonly job: ChunkJob }
  /** Not to be believed without a look at the store: a producer may have forged it. */
  | { readonly kind: "stub"; readonly stub: CommittedStub };

/**
 * `process-chunk` data. Digests are not checked here but in the kernel, off the event loop.
 * Throws JOB_INVALID, PAYLOAD_BASE64_INVALID, PAYLOAD_EMPTY, PAYLOAD_TOO_LARGE, PAYLOAD_SIZE_MISMATCH,
 * PAYLOAD_REF_FORBIDDEN.
 */
export function parseChunkJob(data: unknown, limits: JobLimits): ChunkTask {
  if (isObject(data) && Object.hasOwn(data, "committed")) {
    return { kind: "stub", stub: checked(committedStubSchema, data, STUB_RULES) };
  }
  const fields = checked(processChunkDataSchema, data, CHUNK_RULES);
  const session = sessionId(fields.session_id);
  return {
    kind: "chunk",
    job: {
      sessionId: session,
      chunkId: chunkId(fields.chunk_id),
      index: indexOf(fields),
      source: sourceOf(fields, session, limits),
      declared: declaredOf(fields),
      compression: compressionOf(fields, limits),
      ...recordedAtOf(fields),
      ...metadataOf(data),
    },
  };
}

/** `finalize-session` data. Throws JOB_INVALID. */
export function parseFinalizeJob(data: unknown): FinalizeJob {
  const fields = checked(finalizeSessionDataSchema, data, FINALIZE_RULES);
  return {
    sessionId: sessionId(fields.session_id),
    chunkCount: fields.chunk_count,
    details: {
      manifestType: fields.manifest_type,
      ...(fields.owner_address === undefined ? {} : { ownerAddress: fields.owner_address }),
      ...(fields.started_at === undefined ? {} : { startedAt: boundedTime("started_at", fields.started_at) }),
      ...(fields.ended_at === undefined ? {} : { endedAt: boundedTime("ended_at", fields.ended_at) }),
      ...metadataOf(data),
    },
  };
}

export interface FailureIdentity {
  readonly sessionId?: SessionId;
  readonly chunkId?: ChunkId;
  readonly chunkIndex?: LeafIndex;
}

/** The ids that a refused job names, each only if it has its form: they go into a `chunk.failed` event. */
export function failureIdentity(data: unknown): FailureIdentity {
  if (!isObject(data)) return {};
  const { session_id: session, chunk_id: chunk } = data;
  const index = indexIn(data);
  return {
    ...(isId(session) ? { sessionId: sessionId(session) } : {}),
    ...(isId(chunk) ? { chunkId: chunkId(chunk) } : {}),
    ...(index === undefined ? {} : { chunkIndex: index }),
  };
}

/** Own properties only: `data.session_id` of a JSON object can't come from a prototype. */
function isObject(data: unknown): data is Readonly<Record<string, unknown>> {
  return typeof data === "object" && data !== null && !Array.isArray(data);
}

// Index

/** Contract §2: `-chunk-N`, `_chunk_N` or `-N` at the end of a chunk id. */
const INDEX_IN_CHUNK_ID = /(?:-chunk-|_chunk_|-)(\d{1,10})$/;

function indexOf(fields: ProcessChunkData): LeafIndex {
  const { chunk_index: index, sequence_number: sequence } = fields;
  if (index !== undefined && sequence !== undefined && index !== sequence) {
    throw invalid("chunk_index and sequence_number differ: give one of them");
  }
  const found = index ?? sequence ?? indexInChunkId(fields.chunk_id);
  if (found === undefined) {
    throw invalid("chunk_index is missing, and chunk_id doesn't end in -chunk-N, _chunk_N or -N");
  }
  return leafIndex(found);
}

function indexIn(data: Readonly<Record<string, unknown>>): LeafIndex | undefined {
  const { chunk_index: index, sequence_number: sequence, chunk_id: chunk } = data;
  const found = index ?? sequence ?? (isId(chunk) ? indexInChunkId(chunk) : undefined);
  const valid = typeof found === "number" && Number.isInteger(found) && found >= 0 && found <= LEAF_INDEX_MAX;
  return valid ? leafIndex(found) : undefined;
}

function indexInChunkId(chunk: string): number | undefined {
  const digits = INDEX_IN_CHUNK_ID.exec(chunk)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

// Bytes

function sourceOf(fields: ProcessChunkData, session: SessionId, limits: JobLimits): ChunkSource {
  const { chunk_data_base64: base64, chunk_data: alias, payload_ref: ref } = fields;
  const given = [base64, alias, ref].filter((source) => source !== undefined);
  if (given.length !== 1) {
    throw invalid(
      `exactly one of chunk_data_base64, chunk_data and payload_ref is needed, not ${given.length}`,
    );
  }
  const declaredBytes = fields.size_bytes;
  if (declaredBytes !== undefined && declaredBytes > limits.chunkBytesMax) throw tooLarge(limits);
  if (ref === undefined)
    return { kind: "inline", bytes: inlineBytes(base64 ?? alias ?? "", declaredBytes, limits) };
  if (declaredBytes === undefined || fields.blake3 === undefined) {
    throw invalid("payload_ref needs size_bytes and blake3 beside it");
  }
  return { kind: "reference", ref: allowedRef(ref, session) };
}

function inlineBytes(base64: string, declaredBytes: number | undefined, limits: JobLimits): Uint8Array {
  if (base64.length === 0)
    throw new LucidError("PAYLOAD_EMPTY", "chunk_data_base64 is empty: a chunk has 1 byte or more");
  // Before decoding: what is too long isn't worth the memory of its bytes.
  if (base64.length > base64Chars(limits.chunkBytesMax)) throw tooLarge(limits);
  const bytes = fromBase64(base64);
  if (bytes === undefined) {
    throw new LucidError(
      "PAYLOAD_BASE64_INVALID",
      "chunk_data_base64 must be RFC 4648 §4 base64 with padding, and nothing else",
    );
  }
  if (bytes.byteLength > limits.chunkBytesMax) throw tooLarge(limits);
  if (declaredBytes !== undefined && declaredBytes !== bytes.byteLength) {
    throw new LucidError(
      "PAYLOAD_SIZE_MISMATCH",
      "size_bytes is not the number of bytes in chunk_data_base64",
    );
  }
  return ownedBytes(bytes);
}

/** Small Buffers lie in Node's shared pool, which must never be transferred to a thread. */
function ownedBytes(bytes: Uint8Array): Uint8Array {
  const whole = bytes.byteOffset === 0 && bytes.byteLength === bytes.buffer.byteLength;
  return whole ? bytes : new Uint8Array(bytes);
}

/** Contract §3: only the session's own keys. Without it a job could read, and delete, any key of the database. */
function allowedRef(ref: PayloadRef, session: SessionId): PayloadRef {
  if (ref.store === "file") return ref;
  const prefix = `lucid:payload:{${session}}:`;
  if (!ref.key.startsWith(prefix) || !isId(ref.key.slice(prefix.length))) throw forbiddenRef("key");
  return ref;
}

const FORBIDDEN_REF = {
  key: "payload_ref.key must be lucid:payload:{<session_id>}:<name> with the job's own session_id and a name of the same form",
  name: "payload_ref.name must be a plain file name that matches ^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$",
} as const;

function forbiddenRef(field: keyof typeof FORBIDDEN_REF): LucidError {
  return new LucidError("PAYLOAD_REF_FORBIDDEN", FORBIDDEN_REF[field]);
}

function tooLarge({ chunkBytesMax }: JobLimits): LucidError {
  return new LucidError(
    "PAYLOAD_TOO_LARGE",
    `a chunk has at most ${chunkBytesMax} bytes (LUCID_MAX_CHUNK_SIZE)`,
  );
}

function declaredOf({ size_bytes: size, blake3, sha256 }: ProcessChunkData): ChunkJob["declared"] {
  return {
    ...(size === undefined ? {} : { sizeBytes: size }),
    ...digest("blake3", blake3),
    ...digest("sha256", sha256),
  };
}

function digest<Name extends string>(
  name: Name,
  hex: string | undefined,
): { readonly [Key in Name]?: Uint8Array } {
  const bytes = hex === undefined ? undefined : fromHex(hex);
  return (bytes === undefined ? {} : { [name]: bytes }) as { readonly [Key in Name]?: Uint8Array };
}

// The rest

function compressionOf(
  { compression }: ProcessChunkData,
  { defaultCompression }: JobLimits,
): ChunkJob["compression"] {
  if (compression === undefined) return defaultCompression;
  const { algorithm, level } = compression;
  if (level === undefined && algorithm === defaultCompression.algorithm) return defaultCompression;
  return { algorithm, level: levelFor(algorithm, level) };
}

/** Fractions of a second may have any number of digits; no clock has this many. */
const TIME_CHARS_MAX = 40;

function boundedTime(name: string, time: string): string {
  if (time.length > TIME_CHARS_MAX) throw invalid(`${name} has more than ${TIME_CHARS_MAX} characters`);
  return time;
}

function recordedAtOf({ recorded_at: at }: ProcessChunkData): { readonly recordedAt?: string } {
  return at === undefined ? {} : { recordedAt: boundedTime("recorded_at", at) };
}

/** From the job itself, as the schema leaves it alone: the first that walks it is `canonicalJson`, which stops at the limits. */
function metadataOf(data: unknown): { readonly metadata?: string } {
  const metadata = isObject(data) ? data["metadata"] : undefined;
  if (metadata === undefined) return {};
  const limits = { bytesMax: METADATA_BYTES_MAX, depthMax: METADATA_DEPTH_MAX };
  return { metadata: canonicalJson("metadata", metadata, limits) };
}

// What fields allow, in words

type Rules = Readonly<Record<string, string>>;

const ID_RULE = "must match ^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$";
const INDEX_RULE = `must be an integer from 0 to ${LEAF_INDEX_MAX}`;
const HEX_RULE = "must be 64 lowercase hex digits";
const TIME_RULE = "must be an ISO 8601 date and time with Z or an offset";
const METADATA_RULE = "must be a JSON object";

const CHUNK_RULES: Rules = {
  session_id: ID_RULE,
  chunk_id: ID_RULE,
  chunk_index: INDEX_RULE,
  sequence_number: INDEX_RULE,
  chunk_data_base64: "must be a text",
  chunk_data: "must be a text",
  payload_ref: 'must be {store: "redis", key} or {store: "file", name}, and nothing else',
  size_bytes: "must be an integer of 1 or more",
  blake3: HEX_RULE,
  sha256: HEX_RULE,
  compression: `must be {algorithm, level?} with one of ${CODECS.join(", ")} and an integer, and nothing else`,
  recorded_at: TIME_RULE,
  metadata: METADATA_RULE,
};

const FINALIZE_RULES: Rules = {
  session_id: ID_RULE,
  chunk_count: `must be an integer from 1 to ${LEAF_INDEX_MAX + 1}`,
  owner_address: "must be a text of 1 to 200 characters",
  manifest_type: `must be one of ${MANIFEST_TYPES.join(", ")}`,
  started_at: TIME_RULE,
  ended_at: TIME_RULE,
  metadata: METADATA_RULE,
};

const STUB_RULES: Rules = {
  committed: "must be true; only the worker itself writes it",
  session_id: ID_RULE,
  chunk_id: ID_RULE,
  chunk_index: INDEX_RULE,
  leaf_hash: HEX_RULE,
};

/** What is used of a zod schema. */
interface Schema<Data> {
  safeParse(data: unknown): { readonly data?: Data; readonly error?: { readonly issues: readonly Issue[] } };
}

interface Issue {
  readonly code?: string | undefined;
  readonly path: readonly PropertyKey[];
}

function checked<Data>(schema: Schema<Data>, data: unknown, rules: Rules): Data {
  const { data: fields, error } = schema.safeParse(data);
  if (error === undefined && fields !== undefined) return fields;
  const first = error?.issues[0];
  throw refusal(first?.code, first?.path ?? [], data, rules);
}

/** zod's own messages stay out: those about unknown fields and unions repeat what the job said. */
function refusal(
  code: string | undefined,
  path: readonly PropertyKey[],
  data: unknown,
  rules: Rules,
): LucidError {
  const [field, part] = path;
  if (field === "payload_ref" && (part === "key" || part === "name") && typeof at(data, path) === "string") {
    return forbiddenRef(part);
  }
  if (field === "size_bytes" && at(data, path) === 0) {
    return new LucidError("PAYLOAD_EMPTY", "size_bytes is 0: a chunk has 1 byte or more");
  }
  const rule = typeof field === "string" && Object.hasOwn(rules, field) ? rules[field] : undefined;
  if (rule !== undefined) return invalid(`${String(field)} ${rule}`);
  const known = Object.keys(rules).join(", ");
  return code === "unrecognized_keys"
    ? invalid(`unknown field; allowed are ${known}`)
    : invalid(`the job's data must be a JSON object with ${known}`);
}

function at(data: unknown, path: readonly PropertyKey[]): unknown {
  let value = data;
  for (const key of path) value = isObject(value) ? value[String(key)] : undefined;
  return value;
}

function invalid(message: string): LucidError {
  return new LucidError("JOB_INVALID" satisfies ErrorCode, message);
}
