import { generateKeyPairSync } from "node:crypto";
import canonicalize from "canonicalize";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { toHex, utf8 } from "../../src/core/bytes.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { ChunkId, LeafHash, LeafIndex, SessionId, TreeSize } from "../../src/core/ids.ts";
import { ManifestAccumulator } from "../../src/core/manifest/accumulator.ts";
import {
  chunkLine,
  leafHashOf,
  type ManifestChunk,
  parseChunkLine,
} from "../../src/core/manifest/chunk-line.ts";
import { ChunksFileVerifier } from "../../src/core/manifest/chunks-file.ts";
import { composeManifest, type Manifest } from "../../src/core/manifest/manifest.ts";
import { parsePublicKey } from "../../src/core/manifest/public-key.ts";
import { signManifest, verifyManifest } from "../../src/core/manifest/sign.ts";
import { ed25519PublicKey } from "../../src/core/merkle/checkpoint.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";

const session = "sess-1" as SessionId;
const { privateKey } = generateKeyPairSync("ed25519");
const pinned = [ed25519PublicKey(privateKey)];

const digest = fc.uint8Array({ minLength: 32, maxLength: 32 });
const bytes = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER });
const chunkFields = fc.record(
  {
    chunkId: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$/),
    codec: fc.constantFrom("none", "zstd", "lz4", "brotli"),
    level: fc.integer({ min: -131_072, max: 22 }),
    originalBytes: bytes,
    storedBytes: bytes,
    blobId: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_:.-]{0,255}$/),
    blobBlake3: digest,
    keyCommit: digest,
    plainMac: digest,
    keyVersion: fc.integer({ min: 1, max: 0xffff_ffff }),
    recordedAt: fc.stringMatching(/^[0-9][0-9T:.Z+-]{15,63}$/),
  },
  {
    requiredKeys: [
      "chunkId",
      "codec",
      "level",
      "originalBytes",
      "storedBytes",
      "blobId",
      "blobBlake3",
      "keyCommit",
      "plainMac",
      "keyVersion",
    ],
  },
);

function chunkAt(index: number, fields: object): ManifestChunk {
  const chunk = {
    ...fields,
    index: index as LeafIndex,
    encryptionFormat: 1,
    leafHash: new Uint8Array(32) as LeafHash,
  };
  const whole = chunk as ManifestChunk;
  return { ...whole, leafHash: leafHashOf(session, whole, treeHasher("blake3")) };
}

const smallChunks = Array.from({ length: 3 }, (_, index) =>
  chunkAt(index, {
    chunkId: `sess-1-chunk-00000${index}` as ChunkId,
    codec: "zstd",
    level: 3,
    originalBytes: 1_048_576,
    storedBytes: 400_060,
    blobId: `sess-1:${index}:a1`,
    blobBlake3: new Uint8Array(32).fill(index),
    keyCommit: new Uint8Array(32).fill(7),
    plainMac: new Uint8Array(32).fill(8),
    keyVersion: 1,
    recordedAt: "2026-01-02T03:04:05Z",
  }),
);

function signedText(chunks: readonly ManifestChunk[]): string {
  const accumulator = new ManifestAccumulator(session, "blake3");
  for (const chunk of chunks) accumulator.add(chunk);
  const summary = accumulator.summary();
  const unsigned = composeManifest(
    {
      id: session,
      hashAlgorithm: "blake3",
      treeSize: chunks.length as TreeSize,
      root: summary.root,
      sealedAt: "2026-01-02T03:04:05.678Z",
      manifestType: "session_recording",
      ownerAddress: "0xabc",
      startedAt: "2026-01-02T03:00:00Z",
      endedAt: "2026-01-02T04:00:00Z",
      durationSeconds: 3600,
      // A replacement character in its own right: decoding that mends UTF-8 would let other bytes pass for it.
      metadata: { name: "\ufffdé", nested: [1.5, null, { a: true }] },
    },
    summary,
  );
  return signManifest(unsigned, privateKey);
}

const manifestBytes = utf8(signedText(smallChunks));
const manifest = JSON.parse(signedText(smallChunks)) as Manifest;
const fileBytes = utf8(smallChunks.map(chunkLine).join(""));

function isAccepted(changed: Uint8Array): boolean {
  return verifyManifest(changed, pinned).ok;
}

/** False only for a refusal with one of our codes; anything else that is thrown passes through. */
function isChunksFile(changed: Uint8Array): boolean {
  try {
    const verifier = new ChunksFileVerifier(manifest);
    verifier.add(changed);
    verifier.finish();
    return true;
  } catch (thrown) {
    if (thrown instanceof LucidError && ["MANIFEST_INVALID", "TREE_CORRUPT"].includes(thrown.code))
      return false;
    throw thrown;
  }
}

/** Each bit of each byte, then each byte removed, then each prefix. */
function* smallChanges(original: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < original.byteLength; at++) {
    for (let bit = 0; bit < 8; bit++) {
      const flipped = new Uint8Array(original);
      flipped[at] = (flipped[at] ?? 0) ^ (1 << bit);
      yield flipped;
    }
    yield Buffer.concat([original.subarray(0, at), original.subarray(at + 1)]);
    yield original.subarray(0, at);
  }
}

function acceptedChanges(original: Uint8Array, accepts: (changed: Uint8Array) => boolean): number {
  let accepted = 0;
  for (const changed of smallChanges(original)) if (accepts(changed)) accepted += 1;
  return accepted;
}

/** Any other byte at any place, put in or put over. */
function expectRandomChangesRefused(original: Uint8Array, accepts: (changed: Uint8Array) => boolean): void {
  const place = fc.nat({ max: original.byteLength - 1 });
  fc.assert(
    fc.property(place, fc.nat({ max: 255 }), fc.boolean(), (at, byte, insert) => {
      fc.pre(insert || original[at] !== byte);
      const rest = original.subarray(insert ? at : at + 1);
      expect(accepts(Buffer.concat([original.subarray(0, at), Uint8Array.of(byte), rest]))).toBe(false);
    }),
    { numRuns: 5_000 },
  );
}

describe("a manifest", () => {
  test("is accepted unchanged, and refused after every flipped bit, removed byte and cut", () => {
    expect(isAccepted(manifestBytes)).toBe(true);
    expect(acceptedChanges(manifestBytes, isAccepted)).toBe(0);
  });

  test("is refused after any byte is replaced or put in", () => {
    expectRandomChangesRefused(manifestBytes, isAccepted);
  });

  test("of any bytes, text or JSON value is refused without an exception", () => {
    const anything = fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.string({ unit: "binary" }), fc.json());
    fc.assert(
      fc.property(anything, (given) => {
        expect(verifyManifest(given, pinned).ok).toBe(false);
      }),
    );
  });

  test("with any JSON value in place of a field is refused without an exception", () => {
    const names = Object.keys(manifest) as (keyof Manifest)[];
    fc.assert(
      fc.property(fc.constantFrom(...names), fc.jsonValue(), (name, value) => {
        const changed = canonicalize({ ...manifest, [name]: value }) ?? "";
        fc.pre(changed !== canonicalize(manifest));
        expect(verifyManifest(changed, pinned).ok).toBe(false);
      }),
    );
  });

  test("carries any metadata object unchanged", () => {
    const { signature: _, ...unsigned } = manifest;
    fc.assert(
      fc.property(
        fc.dictionary(fc.string({ unit: "grapheme" }), fc.jsonValue({ maxDepth: 4 })),
        (metadata) => {
          const given = JSON.parse(JSON.stringify(metadata)) as Record<string, unknown>;
          const session_metadata = { ...unsigned.session_metadata, metadata: given };
          fc.pre(JSON.stringify(given).isWellFormed() && !/\\ud[89a-f]/.test(JSON.stringify(given)));
          const verdict = verifyManifest(signManifest({ ...unsigned, session_metadata }, privateKey), pinned);
          expect(verdict).toMatchObject({ ok: true });
          expect(verdict.ok ? canonicalize(verdict.manifest.session_metadata.metadata) : undefined).toBe(
            canonicalize(given),
          );
        },
      ),
    );
  });
});

describe("a chunks file", () => {
  test("is accepted unchanged, and refused after every flipped bit, removed byte and cut", () => {
    expect(isChunksFile(fileBytes)).toBe(true);
    expect(acceptedChanges(fileBytes, isChunksFile)).toBe(0);
  });

  test("is refused after any byte is replaced or put in", () => {
    expectRandomChangesRefused(fileBytes, isChunksFile);
  });
});

describe("a chunk line", () => {
  test("of any chunk is RFC 8785 of its fields, and is read to the same chunk", () => {
    fc.assert(
      fc.property(chunkFields, fc.nat({ max: 0xffff_ffff }), (fields, index) => {
        const chunk = chunkAt(index, fields);
        const line = chunkLine(chunk);
        const value = {
          chunk_index: chunk.index,
          chunk_id: chunk.chunkId,
          codec: chunk.codec,
          level: chunk.level,
          original_bytes: chunk.originalBytes,
          stored_bytes: chunk.storedBytes,
          blob_id: chunk.blobId,
          blob_blake3: toHex(chunk.blobBlake3),
          key_commit: toHex(chunk.keyCommit),
          plain_mac: toHex(chunk.plainMac),
          leaf_hash: toHex(chunk.leafHash),
          encryption_format: 1,
          key_version: chunk.keyVersion,
          recorded_at: chunk.recordedAt,
        };
        expect(line).toBe(`${canonicalize(value)}\n`);
        const read = parseChunkLine(line);
        expect(chunkLine(read)).toBe(line);
        expect(read.recordedAt).toBe(chunk.recordedAt);
      }),
    );
  });

  test("of any text throws nothing but MANIFEST_INVALID", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.json()), (text) => {
        expect(() => parseChunkLine(text)).toThrow(expect.objectContaining({ code: "MANIFEST_INVALID" }));
      }),
    );
  });
});

test("reading a public key from any text throws nothing", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      expect(parsePublicKey(text)).toBeUndefined();
    }),
  );
});
