import { describe, expect, test } from "vitest";
import { asLucidError, type ErrorCode, LucidError } from "../../src/core/errors.ts";
import {
  chunkCompletedEventId,
  chunkFailedEventId,
  repeatableJobId,
  sessionAnchoredEventId,
  sessionGapEventId,
  sessionSealedEventId,
} from "../../src/pipeline/event-ids.ts";
import {
  failureIdentity,
  type JobLimits,
  parseChunkJob,
  parseFinalizeJob,
} from "../../src/pipeline/parse-job.ts";
import type { ChunkJob } from "../../src/pipeline/ports.ts";

const LIMITS: JobLimits = { chunkBytesMax: 1024, defaultCompression: { algorithm: "zstd", level: 5 } };
const HEX = "ab".repeat(32);
const MIB_OF_TEXT = "A".repeat(1024 * 1024);

const inline = {
  session_id: "sess-a",
  chunk_id: "sess-a-chunk-000007",
  chunk_index: 7,
  chunk_data_base64: "aGVsbG8=",
};
const { chunk_data_base64: _, ...withoutBytes } = inline;
const byKey = {
  ...withoutBytes,
  payload_ref: { store: "redis", key: "lucid:payload:{sess-a}:p7" },
  size_bytes: 5,
  blake3: HEX,
};

function parse(data: unknown, limits = LIMITS): ChunkJob {
  const task = parseChunkJob(data, limits);
  if (task.kind !== "chunk") throw new TypeError("expected a chunk");
  return task.job;
}

function refusalOf(parse: () => unknown): LucidError {
  try {
    parse();
  } catch (thrown) {
    if (thrown instanceof LucidError) return thrown;
    throw thrown;
  }
  throw new Error("it was accepted");
}

function codeOf(data: unknown): ErrorCode {
  return refusalOf(() => parseChunkJob(data, LIMITS)).code;
}

/** As it comes off the wire: `__proto__` is an own key then. */
function json(text: string): unknown {
  return JSON.parse(text);
}

describe("process-chunk data", () => {
  test("an inline job gives its bytes in memory of their own", () => {
    const job = parse(inline);
    if (job.source.kind !== "inline") throw new TypeError("expected inline");
    expect(Buffer.from(job.source.bytes).toString()).toBe("hello");
    expect(job.source.bytes.buffer.byteLength).toBe(5);
    expect(job).toMatchObject({ sessionId: "sess-a", chunkId: "sess-a-chunk-000007", index: 7 });
  });

  test("chunk_data is an alias of chunk_data_base64", () => {
    expect(parse({ ...withoutBytes, chunk_data: "aGVsbG8=" }).source).toEqual(parse(inline).source);
  });

  test("optional fields are kept: digests as bytes, time as text, metadata as canonical JSON", () => {
    const job = parse({
      ...inline,
      size_bytes: 5,
      blake3: HEX,
      sha256: HEX,
      recorded_at: "2026-01-02T03:04:05.678+01:00",
      metadata: { b: 1, a: [1.0, "é"] },
    });
    expect(job.declared).toEqual({
      sizeBytes: 5,
      blake3: new Uint8Array(32).fill(0xab),
      sha256: new Uint8Array(32).fill(0xab),
    });
    expect(job.recordedAt).toBe("2026-01-02T03:04:05.678+01:00");
    expect(job.metadata).toBe('{"a":[1,"é"],"b":1}');
  });

  test.each([
    ["sess-a-chunk-12", 12],
    ["sess-a-chunk-000012", 12],
    ["rec_chunk_3", 3],
    ["rec-9", 9],
    ["rec-4294967295", 4294967295],
  ])("without chunk_index the index comes from the chunk id %s", (id, index) => {
    const { chunk_index: _index, ...rest } = inline;
    expect(parse({ ...rest, chunk_id: id }).index).toBe(index);
  });

  test("sequence_number is taken before the chunk id, and must agree with chunk_index", () => {
    const { chunk_index: _index, ...rest } = inline;
    expect(parse({ ...rest, sequence_number: 3 }).index).toBe(3);
    expect(parse({ ...inline, sequence_number: 7 }).index).toBe(7);
    expect(codeOf({ ...inline, sequence_number: 8 })).toBe("JOB_INVALID");
  });

  test.each(["rec", "rec9", "rec-", "rec-4294967296", "rec-99999999999", "rec-9x"])(
    "the chunk id %s gives no index",
    (id) => {
      const { chunk_index: _index, ...rest } = inline;
      expect(codeOf({ ...rest, chunk_id: id })).toBe("JOB_INVALID");
    },
  );

  test("a job's own compression overrides the default; its level is the codec's own where none is named", () => {
    expect(parse(inline).compression).toEqual({ algorithm: "zstd", level: 5 });
    expect(parse({ ...inline, compression: { algorithm: "zstd" } }).compression).toEqual({
      algorithm: "zstd",
      level: 5,
    });
    expect(parse({ ...inline, compression: { algorithm: "brotli" } }).compression).toEqual({
      algorithm: "brotli",
      level: 4,
    });
    expect(parse({ ...inline, compression: { algorithm: "brotli", level: 11 } }).compression.level).toBe(11);
  });

  test.each([
    { algorithm: "brotli", level: 12 },
    { algorithm: "zstd", level: 23 },
    { algorithm: "zstd", level: 1.5 },
    { algorithm: "lz4", level: 3 },
    { algorithm: "gzip" },
    { algorithm: "zstd", level: 3, extra: 1 },
    { level: 3 },
    "zstd",
  ])("compression %j is refused", (compression) => {
    expect(codeOf({ ...inline, compression })).toBe("JOB_INVALID");
  });

  test.each([null, undefined, 1, "text", true, [], [inline], {}])("%j is no job", (data) => {
    expect(codeOf(data)).toBe("JOB_INVALID");
  });

  test.each([
    ["an unknown field", { ...inline, evil: 1 }],
    ["__proto__ as a field", json(`{"__proto__":{"x":1},${JSON.stringify(inline).slice(1)}`)],
    ["constructor as a field", { ...inline, constructor: 1 }],
    ["null for a field", { ...inline, metadata: null }],
    ["a text as index", { ...inline, chunk_index: "7" }],
    ["a negative index", { ...inline, chunk_index: -1 }],
    ["an index of 2^32", { ...inline, chunk_index: 2 ** 32 }],
    ["half an index", { ...inline, chunk_index: 0.5 }],
    ["uppercase digits in a digest", { ...inline, blake3: HEX.toUpperCase() }],
    ["a short digest", { ...inline, sha256: "ab" }],
    ["a time without an offset", { ...inline, recorded_at: "2026-01-02T03:04:05" }],
    ["a time with a thousand digits", { ...inline, recorded_at: `2026-01-02T03:04:05.${"0".repeat(1000)}Z` }],
    ["an object for an id", { ...inline, session_id: { $ne: null } }],
    ["a missing session id", { ...inline, session_id: undefined }],
  ])("%s makes the job invalid", (_name, data) => {
    expect(codeOf(data)).toBe("JOB_INVALID");
  });

  test.each([
    "../../etc/passwd",
    "a\0b",
    "$where",
    "__proto__",
    "a:b",
    "a.b",
    "a b",
    "",
    "-a",
    "é",
    "a".repeat(101),
    MIB_OF_TEXT,
  ])("a hostile id is refused as session and as chunk id, and not repeated (%#)", (id) => {
    for (const data of [
      { ...inline, session_id: id },
      { ...inline, chunk_id: id },
    ]) {
      const { code, message } = refusalOf(() => parseChunkJob(data, LIMITS));
      expect(code).toBe("JOB_INVALID");
      expect(message).toMatch(/^(session|chunk)_id must match/);
      expect(message.length).toBeLessThan(300);
    }
  });

  test("no refusal repeats an unknown field's name, a value or a payload", () => {
    const secret = "s3cr3t-value";
    const refused = [
      { ...inline, [secret]: 1 },
      { ...inline, chunk_data_base64: `${secret}!` },
      { ...inline, compression: { algorithm: secret } },
      { ...withoutBytes, payload_ref: { store: secret } },
      { ...byKey, payload_ref: { store: "redis", key: secret } },
      { ...byKey, payload_ref: { store: "redis", key: "x", [secret]: 1 } },
      { ...inline, metadata: secret },
      { ...inline, recorded_at: secret },
      { committed: secret },
    ];
    for (const data of refused) {
      const { message } = refusalOf(() => parseChunkJob(data, LIMITS));
      expect(message).not.toContain(secret);
    }
  });
});

describe("bytes of a job", () => {
  test("exactly one source is needed", () => {
    expect(codeOf(withoutBytes)).toBe("JOB_INVALID");
    expect(codeOf({ ...inline, chunk_data: "aGVsbG8=" })).toBe("JOB_INVALID");
    expect(codeOf({ ...byKey, chunk_data_base64: "aGVsbG8=" })).toBe("JOB_INVALID");
  });

  test.each(["aGVsbG8", "aGVsbG8=\n", " aGVsbG8=", "aGVs_G8=", "aGVsbG9=", "====", "a", "aGVsbG8=aGVs"])(
    "%j is no strict base64",
    (text) => {
      expect(codeOf({ ...inline, chunk_data_base64: text })).toBe("PAYLOAD_BASE64_INVALID");
    },
  );

  test("the limit holds to the byte, and what is too long is refused before it is decoded", () => {
    const at = Buffer.alloc(1024).toString("base64");
    expect(parse({ ...inline, chunk_data_base64: at }).source.kind).toBe("inline");
    expect(codeOf({ ...inline, chunk_data_base64: Buffer.alloc(1025).toString("base64") })).toBe(
      "PAYLOAD_TOO_LARGE",
    );
    // Not base64 at all, and still "too large": nothing looked at it.
    expect(codeOf({ ...inline, chunk_data_base64: "!".repeat(4096) })).toBe("PAYLOAD_TOO_LARGE");
    expect(codeOf({ ...byKey, size_bytes: 1025 })).toBe("PAYLOAD_TOO_LARGE");
  });

  test("empty is an error of its own, inline and declared", () => {
    expect(codeOf({ ...inline, chunk_data_base64: "" })).toBe("PAYLOAD_EMPTY");
    expect(codeOf({ ...byKey, size_bytes: 0 })).toBe("PAYLOAD_EMPTY");
  });

  test("a declared size that isn't that of the inline bytes is refused", () => {
    expect(parse({ ...inline, size_bytes: 5 }).declared.sizeBytes).toBe(5);
    expect(codeOf({ ...inline, size_bytes: 4 })).toBe("PAYLOAD_SIZE_MISMATCH");
  });

  test("a reference needs size and digest", () => {
    const { size_bytes: _size, ...withoutSize } = byKey;
    const { blake3: _digest, ...withoutDigest } = byKey;
    expect(parse(byKey).source).toEqual({ kind: "reference", ref: byKey.payload_ref });
    expect(codeOf(withoutSize)).toBe("JOB_INVALID");
    expect(codeOf(withoutDigest)).toBe("JOB_INVALID");
  });

  test.each([
    "lucid:payload:{sess-b}:p7",
    "lucid:payload:{sess-a}:",
    "lucid:payload:{sess-a}:../x",
    "lucid:payload:{sess-a}:a:b",
    "lucid:payload:{sess-a}:p7\n",
    "lucid:payload:{sess-a}x:p7",
    "lucid:payload:sess-a:p7",
    "{lucid}:session-chunks:meta",
    "x".repeat(301),
  ])("the key %j is not the session's own", (key) => {
    expect(codeOf({ ...byKey, payload_ref: { store: "redis", key } })).toBe("PAYLOAD_REF_FORBIDDEN");
  });

  test.each(["../x", "/etc/passwd", "a/b", "a\0b", ".hidden", "", "a".repeat(101)])(
    "the file name %j is refused",
    (name) => {
      expect(codeOf({ ...byKey, payload_ref: { store: "file", name } })).toBe("PAYLOAD_REF_FORBIDDEN");
    },
  );

  test("a plain file name is accepted", () => {
    const ref = { store: "file", name: "p7" };
    expect(parse({ ...byKey, payload_ref: ref }).source).toEqual({ kind: "reference", ref });
  });

  test.each([{ store: "s3", key: "x" }, { store: "redis" }, { store: "redis", key: 7 }, "p7", []])(
    "payload_ref %j has no known form",
    (ref) => {
      expect(codeOf({ ...byKey, payload_ref: ref })).toBe("JOB_INVALID");
    },
  );
});

describe("metadata", () => {
  const withMetadata = (metadata: unknown) => ({ ...inline, metadata });

  test("hostile keys stay text, and reach no object", () => {
    const job = parse(
      json(`${JSON.stringify(inline).slice(0, -1)},"metadata":{"__proto__":{"polluted":1},"$where":"x"}}`),
    );
    expect(job.metadata).toBe('{"$where":"x","__proto__":{"polluted":1}}');
    expect({}).not.toHaveProperty("polluted");
  });

  test("16 KiB of canonical JSON is the limit, in bytes", () => {
    const filler = "x".repeat(16 * 1024 - '{"a":""}'.length);
    expect(parse(withMetadata({ a: filler })).metadata).toHaveLength(16 * 1024);
    expect(codeOf(withMetadata({ a: `${filler}x` }))).toBe("JOB_INVALID");
    // Half as many characters, two bytes each.
    expect(codeOf(withMetadata({ a: "é".repeat(9000) }))).toBe("JOB_INVALID");
  });

  test("a hundred thousand levels are refused without a deep stack", () => {
    const deep = json(`{"a":${"[".repeat(100_000)}${"]".repeat(100_000)}}`);
    expect(codeOf(withMetadata(deep))).toBe("JOB_INVALID");
    const levels = (count: number): unknown => (count === 0 ? 1 : { a: levels(count - 1) });
    expect(parse(withMetadata(levels(32))).metadata).toBeDefined();
    expect(codeOf(withMetadata(levels(33)))).toBe("JOB_INVALID");
  });

  test("a million small values are refused", () => {
    expect(codeOf(withMetadata({ a: Array.from({ length: 1_000_000 }, () => 0) }))).toBe("JOB_INVALID");
  });

  test.each(['{"a":1e999}', '{"a":"\\ud800"}', '{"\\udc00":1}'])("%s can't be said in RFC 8785", (text) => {
    expect(codeOf(withMetadata(json(text)))).toBe("JOB_INVALID");
  });

  test.each([[[]], ["text"], [1], [true]])("%j is no object", (metadata) => {
    expect(codeOf(withMetadata(metadata))).toBe("JOB_INVALID");
  });
});

describe("the stub of a committed chunk", () => {
  const stub = { committed: true, session_id: "sess-a", chunk_id: "c-1", chunk_index: 1, leaf_hash: HEX };

  test("is told from a chunk", () => {
    expect(parseChunkJob(stub, LIMITS)).toEqual({ kind: "stub", stub });
  });

  test.each([
    { ...stub, committed: false },
    { ...stub, chunk_data: "aGVsbG8=" },
    { ...stub, session_id: "../x" },
    { ...stub, leaf_hash: "00" },
    { ...inline, committed: true },
  ])("is refused in any other form (%#)", (data) => {
    expect(codeOf(data)).toBe("JOB_INVALID");
  });
});

describe("finalize-session data", () => {
  const data = { session_id: "sess-a", chunk_count: 3 };

  test("is kept, with session_recording as the default type", () => {
    expect(parseFinalizeJob(data)).toEqual({
      sessionId: "sess-a",
      chunkCount: 3,
      details: { manifestType: "session_recording" },
    });
    const full = {
      ...data,
      owner_address: "0xabc",
      manifest_type: "session_data",
      started_at: "2026-01-02T03:04:05Z",
      ended_at: "2026-01-02T03:05:05Z",
      metadata: { b: 1, a: 2 },
    };
    expect(parseFinalizeJob(full).details).toEqual({
      ownerAddress: "0xabc",
      manifestType: "session_data",
      startedAt: "2026-01-02T03:04:05Z",
      endedAt: "2026-01-02T03:05:05Z",
      metadata: '{"a":2,"b":1}',
    });
  });

  test.each([
    { session_id: "sess-a" },
    { ...data, chunk_count: 0 },
    { ...data, chunk_count: 2 ** 32 + 1 },
    { ...data, manifest_type: "other" },
    { ...data, evil: 1 },
    { ...data, owner_address: "" },
    { ...data, session_id: MIB_OF_TEXT },
    null,
  ])("is refused in any other form (%#)", (bad) => {
    const { code, message } = refusalOf(() => parseFinalizeJob(bad));
    expect(code).toBe("JOB_INVALID");
    expect(message.length).toBeLessThan(400);
  });
});

describe("what a refused job may be called by", () => {
  test("its ids, each only if it has its form", () => {
    expect(failureIdentity(inline)).toEqual({
      sessionId: "sess-a",
      chunkId: "sess-a-chunk-000007",
      chunkIndex: 7,
    });
    expect(failureIdentity({ ...inline, session_id: "../x" })).toEqual({
      chunkId: "sess-a-chunk-000007",
      chunkIndex: 7,
    });
    expect(failureIdentity({ session_id: "sess-a", chunk_id: MIB_OF_TEXT, chunk_index: -1 })).toEqual({
      sessionId: "sess-a",
    });
    expect(failureIdentity({ session_id: "sess-a", chunk_id: "c-5" })).toEqual({
      sessionId: "sess-a",
      chunkId: "c-5",
      chunkIndex: 5,
    });
  });

  test.each([null, undefined, 1, "x", [], { session_id: { $ne: 1 } }])("%j has none", (data) => {
    expect(failureIdentity(data)).toEqual({});
  });
});

describe("event ids", () => {
  test("are deterministic, without colon, and never an integer", () => {
    const ids = [
      chunkCompletedEventId("sess-a", 7),
      chunkFailedEventId({ jobId: "1", sessionId: "sess-a", chunkIndex: 7, code: "CHUNK_CONFLICT" }),
      chunkFailedEventId({ jobId: "1", code: "JOB_INVALID" }),
      sessionSealedEventId("sess-a"),
      sessionAnchoredEventId("sess-a"),
      sessionGapEventId("sess-a", 3),
    ];
    expect(ids).toEqual([
      "chunk.completed.sess-a.7",
      "chunk.failed.sess-a.7.CHUNK_CONFLICT",
      // printf 1 | sha256sum
      "chunk.failed.job.6b86b273ff34fce19d6b804eff5a3f57.JOB_INVALID",
      "session.sealed.sess-a",
      "session.anchored.sess-a",
      "session.gap.sess-a.3",
    ]);
    for (const id of ids) expect(id).toMatch(/^[A-Za-z0-9_.-]{1,300}$/);
  });

  test("a job without usable ids is named by the digest of its own id, whatever that holds", () => {
    const id = chunkFailedEventId({
      jobId: `a:b\n${MIB_OF_TEXT}`,
      sessionId: "../x",
      chunkIndex: 1,
      code: "JOB_INVALID",
    });
    expect(id).toMatch(/^chunk\.failed\.job\.[0-9a-f]{32}\.JOB_INVALID$/);
  });

  test("a job id is repeated only if it is short and plain", () => {
    expect(repeatableJobId("42")).toBe("42");
    expect(repeatableJobId("sess-a.5.0011223344556677")).toBe("sess-a.5.0011223344556677");
    for (const id of ["a:b", "a\nb", "", "x".repeat(151), "{}"])
      expect(repeatableJobId(id)).toMatch(/^sha256-[0-9a-f]{32}$/);
  });
});

test("whatever a producer writes, the refusal is a LucidError with an unrecoverable code", () => {
  const hostile: unknown[] = [
    Number.NaN,
    Symbol.iterator,
    () => 1,
    new Map(),
    Object.create(null),
    new Date(0),
    10n,
  ];
  for (const data of hostile) {
    try {
      parseChunkJob(data, LIMITS);
      expect.unreachable();
    } catch (thrown) {
      expect(asLucidError(thrown)).toBe(thrown);
      expect(asLucidError(thrown).disposition).toBe("unrecoverable");
    }
  }
});
