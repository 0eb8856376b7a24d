import { fromBase64 } from "../bytes.ts";
import { isId, LEAF_INDEX_MAX } from "../ids.ts";
import { isHashAlgorithm } from "../merkle/hash.ts";
import { ENCRYPTION_ALGORITHM, GENERATED_BY, type JsonObject, MANIFEST_VERSION } from "./manifest.ts";
import { isManifestType } from "./names.ts";
import { PUBLIC_KEY_BYTES } from "./public-key.ts";

/** What is wrong with a value, in words that follow the field's name; `undefined` when nothing is. */
type Check = (value: unknown) => string | undefined;

const SIGNATURE_BYTES = 64;
const OWNER_CHARS_MAX = 200;
const TIME_PATTERN = /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,40}(?:Z|[+-][0-9]{2}:?[0-9]{2})$/;
const UTC_TIME_PATTERN = /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$/;

function that(holds: (value: unknown) => boolean): Check {
  return (value) => (holds(value) ? undefined : " is missing or not of its form");
}

function orNull(check: Check): Check {
  return (value) => (value === null ? undefined : check(value));
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Exactly these fields. The name of an unknown one is not repeated: it may be anything. */
function fields(checks: Readonly<Record<string, Check>>): Check {
  const names = Object.keys(checks);
  return (value) => {
    if (!isObject(value)) return " is missing or not an object";
    for (const name of names) {
      const fault = checks[name]?.(Object.hasOwn(value, name) ? value[name] : undefined);
      if (fault !== undefined) return `.${name}${fault}`;
    }
    return Object.keys(value).length === names.length ? undefined : " has an unknown field";
  };
}

const text = (pattern: RegExp) => that((value) => typeof value === "string" && pattern.test(value));
const literal = (expected: string) => that((value) => value === expected);
const integer = (max: number) =>
  that((value) => Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= max);
const base64 = (bytes: number) =>
  that((value) => typeof value === "string" && fromBase64(value)?.byteLength === bytes);

const count = integer(LEAF_INDEX_MAX + 1);
const hex64 = text(/^[0-9a-f]{64}$/);
const someText = that((value) => typeof value === "string" && value.length <= OWNER_CHARS_MAX);
const codecs = that((value) => {
  if (!Array.isArray(value) || value.length === 0) return false;
  const known = value.every((codec) => ["brotli", "lz4", "none", "zstd"].includes(codec as string));
  return known && value.every((codec: string, at) => at === 0 || (value[at - 1] as string) < codec);
});

const checkManifest = fields({
  manifest_id: someText,
  manifest_version: literal(MANIFEST_VERSION),
  manifest_type: that(isManifestType),
  session_metadata: fields({
    session_id: that(isId),
    owner_address: orNull(someText),
    session_type: someText,
    started_at: orNull(text(TIME_PATTERN)),
    ended_at: orNull(text(TIME_PATTERN)),
    duration_seconds: orNull(that((value) => typeof value === "number" && value >= 0)),
    total_size: integer(Number.MAX_SAFE_INTEGER),
    chunk_count: count,
    compression_algorithms: codecs,
    encryption_algorithm: literal(ENCRYPTION_ALGORITHM),
    metadata: that(isObject),
  }),
  merkle: fields({ hash_algorithm: that(isHashAlgorithm), tree_size: count, root_hash: hex64 }),
  merkle_root: hex64,
  chunks_file: fields({ name: someText, count, blake3: hex64 }),
  total_checksum: hex64,
  generated_at: text(UTC_TIME_PATTERN),
  generated_by: literal(GENERATED_BY),
  signature: fields({
    algorithm: literal("Ed25519"),
    key_id: text(/^[0-9a-f]{16}$/),
    public_key: base64(PUBLIC_KEY_BYTES),
    value: base64(SIGNATURE_BYTES),
  }),
});

/** What keeps a parsed value from being a `Manifest`, in words, with the field; `undefined` when it is one. */
export function formFaultOf(value: unknown): string | undefined {
  const fault = checkManifest(value);
  return fault === undefined ? undefined : `manifest${fault}`;
}
