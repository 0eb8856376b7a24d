import { generateKeyPairSync } from "node:crypto";
import { blake3 as nobleBlake3 } from "@noble/hashes/blake3.js";
import { describe, expect, test } from "vitest";
import { toHex, utf8 } from "../../src/core/bytes.ts";
import type { LeafIndex, NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import { type ChunksSummary, ManifestAccumulator } from "../../src/core/manifest/accumulator.ts";
import {
  CHUNK_LINE_CHARS_MAX,
  chunkLine,
  leafHashOf,
  type ManifestChunk,
  parseChunkLine,
} from "../../src/core/manifest/chunk-line.ts";
import { ChunksFileVerifier } from "../../src/core/manifest/chunks-file.ts";
import { composeManifest, type Manifest } from "../../src/core/manifest/manifest.ts";
import { MANIFEST_TYPES, manifestFileNames, manifestId } from "../../src/core/manifest/names.ts";
import { MANIFEST_BYTES_MAX, signManifest, verifyManifest } from "../../src/core/manifest/sign.ts";
import { ed25519PublicKey } from "../../src/core/merkle/checkpoint.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { textbookRoot } from "../../src/core/merkle/textbook.ts";
import { sealedSession } from "../../src/schema/manifest.ts";
import type { ChunkRecord, SessionRecord } from "../../src/schema/record.ts";
import { bytesOf, chunk as chunkRecord } from "../support/memory/records.ts";

const session = "sess-1" as SessionId;
const hasher = treeHasher("blake3");
const { privateKey } = generateKeyPairSync("ed25519");
const pinned = [ed25519PublicKey(privateKey)];
const withCode = (code: string): unknown => expect.objectContaining({ code });

function chunkOf(index: number, change: Partial<ChunkRecord> = {}): ChunkRecord {
  const chunk = chunkRecord(session, index, { blobBlake3: bytesOf(index % 251), ...change });
  return { ...chunk, leafHash: change.leafHash ?? leafHashOf(session, chunk, hasher) };
}

function chunksOf(count: number): readonly ChunkRecord[] {
  return Array.from({ length: count }, (_, index) => chunkOf(index));
}

function summaryOf(chunks: readonly ManifestChunk[]): ChunksSummary {
  const accumulator = new ManifestAccumulator(session, "blake3");
  for (const chunk of chunks) accumulator.add(chunk);
  return accumulator.summary();
}

function recordOf(chunks: readonly ManifestChunk[], change: Partial<SessionRecord> = {}): SessionRecord {
  return {
    id: session,
    state: "sealed",
    hashAlgorithm: "blake3",
    version: 9,
    tree: { size: chunks.length as TreeSize, frontier: [], root: summaryOf(chunks).root },
    totals: { originalBytes: 0, storedBytes: 0 },
    roomCounted: false,
    expectedCount: chunks.length,
    countConfirmed: true,
    finalize: { manifestType: "session_data" },
    keys: [],
    createdAt: new Date("2026-01-02T03:00:00.000Z"),
    sealedAt: new Date("2026-01-02T03:04:05.678Z"),
    sealedEvent: "pending",
    checkpoint: undefined,
    anchor: undefined,
    anchoredEvent: undefined,
    closed: false,
    ...change,
  };
}

function signed(count: number): { readonly manifest: Manifest; readonly file: string } {
  const chunks = chunksOf(count);
  const text = signManifest(composeManifest(sealedSession(recordOf(chunks)), summaryOf(chunks)), privateKey);
  return { manifest: JSON.parse(text) as Manifest, file: chunks.map(chunkLine).join("") };
}

describe("a chunk line", () => {
  test("with the longest fields is below the limit and is read again", () => {
    const longest = chunkOf(0xffff_ffff, {
      chunkId: "c".repeat(100) as ChunkRecord["chunkId"],
      blobId: "b".repeat(256),
      codec: "brotli",
      level: -131_072,
      originalBytes: Number.MAX_SAFE_INTEGER,
      storedBytes: Number.MAX_SAFE_INTEGER,
      keyVersion: 0xffff_ffff,
      recordedAt: `2026-01-02T03:04:05.${"6".repeat(43)}Z`,
    });
    const line = chunkLine(longest);
    expect(line.length).toBeLessThanOrEqual(CHUNK_LINE_CHARS_MAX);
    expect(chunkLine(parseChunkLine(line))).toBe(line);
  });

  test.each<[string, Partial<ChunkRecord>]>([
    ["a quote in the blob id", { blobId: 'a"b' }],
    ["a recorded_at of 65 characters", { recordedAt: `2026-01-02T03:04:05.${"6".repeat(44)}Z` }],
    ["an empty chunk", { originalBytes: 0 }],
    ["a fraction of a level", { level: 0.5 }],
    ["a digest of 31 bytes", { plainMac: bytesOf(1, 31) }],
  ])("is not written for %s", (_, change) => {
    const chunk = { ...chunkOf(0), ...change };
    expect(() => chunkLine(chunk)).toThrow(withCode("MANIFEST_INVALID"));
  });
});

describe("the accumulator", () => {
  // Sizes around the blocks in which leaves (256), digests (2048) and lines are hashed.
  test.each([1, 2, 255, 256, 257, 2047, 2048, 2049])("sums up %i chunks as the definitions say", (count) => {
    const chunks = chunksOf(count);
    const accumulator = new ManifestAccumulator(session, "blake3");
    const lines = chunks.map((chunk) => accumulator.add(chunk)).join("");
    const summary = accumulator.summary();
    const digests = Buffer.concat(chunks.map((chunk) => chunk.blobBlake3));
    const leaves = chunks.map((chunk) => chunk.leafHash);
    expect(toHex(summary.totalChecksum)).toBe(toHex(nobleBlake3(digests)));
    expect(toHex(summary.chunksFileBlake3)).toBe(toHex(nobleBlake3(utf8(lines))));
    expect(toHex(summary.root)).toBe(toHex(textbookRoot(leaves, "blake3")));
    expect(summary).toMatchObject({ count, originalBytes: count * 1_048_576, codecs: ["zstd"] });
  });

  test("gives the same summary when asked twice, and goes on after it", () => {
    const accumulator = new ManifestAccumulator(session, "blake3");
    accumulator.add(chunkOf(0));
    expect(accumulator.summary()).toEqual(accumulator.summary());
    accumulator.add(chunkOf(1));
    expect(accumulator.summary()).toEqual(summaryOf(chunksOf(2)));
  });

  test("names each codec once, in order", () => {
    const codecs = ["zstd", "none", "lz4", "zstd", "brotli"] as const;
    const chunks = codecs.map((codec, index) => chunkOf(index, { codec }));
    expect(summaryOf(chunks).codecs).toEqual(["brotli", "lz4", "none", "zstd"]);
  });

  test.each<[string, ManifestChunk]>([
    ["a chunk that is not the next", chunkOf(1)],
    ["a leaf hash that is not that of the fields", { ...chunkOf(0), storedBytes: 1 }],
    [
      "a chunk of another session",
      { ...chunkOf(0), leafHash: leafHashOf("x" as SessionId, chunkOf(0), hasher) },
    ],
  ])("refuses %s", (_, chunk) => {
    const accumulator = new ManifestAccumulator(session, "blake3");
    expect(() => accumulator.add(chunk)).toThrow(withCode("TREE_CORRUPT"));
  });

  test("has no summary of no chunks", () => {
    const accumulator = new ManifestAccumulator(session, "blake3");
    expect(() => accumulator.summary()).toThrow(withCode("TREE_CORRUPT"));
  });
});

describe("a manifest", () => {
  const chunks = chunksOf(3);
  const summary = summaryOf(chunks);

  test("takes everything from the sealed session and its chunks", () => {
    const record = recordOf(chunks, {
      finalize: {
        manifestType: "session_compression",
        ownerAddress: "owner \ud800",
        startedAt: "2026-01-02T03:00:00Z",
        endedAt: "2026-01-02T04:00:01.5+01:00",
        metadata: '{"__proto__":{"a":1},"b":2}',
      },
    });
    const manifest = composeManifest(sealedSession(record), summary);
    expect(manifest).toMatchObject({
      manifest_id: "sess-1-compression-manifest",
      manifest_type: "session_compression",
      generated_at: "2026-01-02T03:04:05.678Z",
      generated_by: "session-processor",
      session_metadata: { owner_address: "owner \ufffd", session_type: "compression", duration_seconds: 1.5 },
    });
    const text = signManifest(manifest, privateKey);
    expect(text).toContain('"metadata":{"__proto__":{"a":1},"b":2}');
    expect(verifyManifest(text, pinned)).toMatchObject({ ok: true });
  });

  test("is the same text from two workers", () => {
    const make = () =>
      signManifest(composeManifest(sealedSession(recordOf(chunks)), summaryOf(chunks)), privateKey);
    expect(make()).toBe(make());
  });

  test("of a session without details is a recording with nulls", () => {
    const manifest = composeManifest(sealedSession(recordOf(chunks, { finalize: undefined })), summary);
    expect(manifest).toMatchObject({
      manifest_type: "session_recording",
      session_metadata: { owner_address: null, started_at: null, duration_seconds: null, metadata: {} },
    });
  });

  test("has no duration when the end is before the start", () => {
    const finalize = {
      manifestType: "session_data",
      startedAt: "2026-01-02T03:00:01Z",
      endedAt: "2026-01-02T03:00:00Z",
    };
    expect(sealedSession(recordOf(chunks, { finalize })).durationSeconds).toBeNull();
  });

  test.each<[string, Partial<SessionRecord>]>([
    ["is open", { state: "open" }],
    ["has no time of its seal", { sealedAt: undefined }],
    ["has no root", { tree: { size: 0 as TreeSize, frontier: [], root: undefined } }],
  ])("is not made of a session that %s", (_, change) => {
    expect(() => sealedSession(recordOf(chunks, change))).toThrow(withCode("TREE_CORRUPT"));
  });

  test.each<[string, Partial<SessionRecord["tree"]>]>([
    ["another root", { root: bytesOf(9) as NodeHash }],
    ["another size", { size: 4 as TreeSize }],
  ])("is not made of chunks for a session with %s", (_, change) => {
    const record = recordOf(chunks);
    const other = sealedSession({ ...record, tree: { ...record.tree, ...change } });
    expect(() => composeManifest(other, summary)).toThrow(withCode("TREE_CORRUPT"));
  });

  test("that nobody could verify is not signed", () => {
    const manifest = composeManifest(sealedSession(recordOf(chunks)), summary);
    const other = { ...manifest, merkle_root: "00".repeat(32) };
    expect(() => signManifest(other, privateKey)).toThrow(withCode("MANIFEST_INVALID"));
    const lone = {
      ...manifest,
      session_metadata: { ...manifest.session_metadata, metadata: { a: "\ud800" } },
    };
    expect(() => signManifest(lone, privateKey)).toThrow(withCode("MANIFEST_INVALID"));
  });

  test("is not signed with another kind of key", () => {
    const rsa = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
    const manifest = composeManifest(sealedSession(recordOf(chunks)), summary);
    expect(() => signManifest(manifest, rsa)).toThrow(withCode("CONFIG_INVALID"));
  });

  test("above the size limit is refused unread", () => {
    expect(verifyManifest(" ".repeat(MANIFEST_BYTES_MAX + 1), pinned)).toMatchObject({ reason: "too-large" });
    expect(verifyManifest(new Uint8Array(MANIFEST_BYTES_MAX + 1), pinned)).toMatchObject({
      reason: "too-large",
    });
  });

  test("with metadata nested to the byte limit is refused and not walked to the end of the stack", () => {
    const { manifest } = signed(1);
    const nested = JSON.stringify(manifest).replace(
      '"metadata":{}',
      `"metadata":{"a":${"[".repeat(30_000)}${"]".repeat(30_000)}}`,
    );
    expect(verifyManifest(nested, pinned)).toMatchObject({ ok: false });
  });
});

describe("manifest names", () => {
  test("share a stem, and differ for every session and type", () => {
    expect(manifestFileNames(session, "session_recording")).toEqual({
      manifest: "sess-1_recording_manifest.json",
      chunks: "sess-1_recording_manifest.chunks.ndjson",
      checkpoint: "sess-1_recording_manifest.checkpoint",
      anchor: "sess-1_recording_manifest.anchor.json",
    });
    const sessions = ["a", "a_data_manifest", "a_data"] as SessionId[];
    const names = sessions.flatMap((id) =>
      MANIFEST_TYPES.flatMap((type) => Object.values(manifestFileNames(id, type))),
    );
    expect(new Set(names).size).toBe(names.length);
    const ids = sessions.flatMap((id) => MANIFEST_TYPES.map((type) => manifestId(id, type)));
    expect(new Set(ids).size).toBe(ids.length);
  });
});

describe("the chunks file", () => {
  const { manifest, file } = signed(300);

  test.each([1, 7, 556, 65_536, 1_000_000])(
    "is verified in blocks of %i bytes, and gives every chunk",
    (blockBytes) => {
      const verifier = new ChunksFileVerifier(manifest);
      const bytes = utf8(file);
      const found: LeafIndex[] = [];
      for (let at = 0; at < bytes.byteLength; at += blockBytes) {
        found.push(...verifier.add(bytes.subarray(at, at + blockBytes)).map((chunk) => chunk.index));
      }
      expect(() => verifier.finish()).not.toThrow();
      expect(found).toEqual(Array.from({ length: 300 }, (_, index) => index));
    },
  );

  test("with a line that never ends is refused before it fills the memory", () => {
    const verifier = new ChunksFileVerifier(manifest);
    expect(() => verifier.add(new Uint8Array(CHUNK_LINE_CHARS_MAX + 1).fill(0x20))).toThrow(
      withCode("MANIFEST_INVALID"),
    );
  });
});
