import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import type { ChunkId, LeafIndex, SessionId } from "../../src/core/ids.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { decodeLeaf, encodeLeaf, type Leaf, type LeafCodec } from "../../src/core/merkle/leaf.ts";
import vectors from "../vectors/merkle-leaf.json" with { type: "json" };

function leafOf(fields: (typeof vectors.valid)[number]["fields"]): Leaf {
  return {
    sessionId: fields.session_id as SessionId,
    index: fields.index as LeafIndex,
    chunkId: fields.chunk_id as ChunkId,
    codec: fields.codec as LeafCodec,
    originalLength: fields.original_len,
    storedLength: fields.stored_len,
    blobBlake3: Uint8Array.from(Buffer.from(fields.blob_blake3, "hex")),
    keyCommit: Uint8Array.from(Buffer.from(fields.key_commit, "hex")),
    plainMac: Uint8Array.from(Buffer.from(fields.plain_mac, "hex")),
  };
}

const sample = leafOf((vectors.valid[0] as (typeof vectors.valid)[number]).fields);

describe.each(vectors.valid)(
  "the leaf of vector $name",
  ({ fields, bytes, leaf_hash_blake3, leaf_hash_sha256 }) => {
    test("is encoded to the vector's bytes and has its leaf hashes", () => {
      const encoded = encodeLeaf(leafOf(fields));
      expect(toHex(encoded)).toBe(bytes);
      expect(toHex(treeHasher("blake3").leaf(encoded))).toBe(leaf_hash_blake3);
      expect(toHex(treeHasher("sha256").leaf(encoded))).toBe(leaf_hash_sha256);
    });

    test("is decoded to the vector's fields", () => {
      expect(decodeLeaf(Buffer.from(bytes, "hex"))).toEqual(leafOf(fields));
    });
  },
);

test.each(vectors.must_fail)("decoding refuses $name", ({ bytes }) => {
  expect(() => decodeLeaf(Buffer.from(bytes, "hex"))).toThrow(
    expect.objectContaining({ code: "PROOF_INVALID" }),
  );
});

test("decoding refuses a leaf cut at any byte", () => {
  const encoded = encodeLeaf(sample);
  for (let length = 0; length < encoded.byteLength; length++) {
    expect(() => decodeLeaf(encoded.subarray(0, length))).toThrow(
      expect.objectContaining({ code: "PROOF_INVALID" }),
    );
  }
});

test("a decoded leaf shares no memory with the bytes it came from", () => {
  const encoded = encodeLeaf(sample);
  const decoded = decodeLeaf(encoded);
  encoded.fill(0);
  expect(decoded).toEqual(sample);
});

test.each<[string, Partial<Leaf>]>([
  ["a session id with a slash", { sessionId: "a/b" as SessionId }],
  ["an empty chunk id", { chunkId: "" as ChunkId }],
  ["an unknown codec", { codec: "toString" as LeafCodec }],
  ["an index above 2^32 - 1", { index: (2 ** 32) as LeafIndex }],
  ["a fractional length", { originalLength: 1.5 }],
  ["a negative length", { storedLength: -1 }],
  ["a digest of 31 bytes", { plainMac: new Uint8Array(31) }],
])("encoding refuses %s", (_, change) => {
  expect(() => encodeLeaf({ ...sample, ...change })).toThrow(expect.objectContaining({ code: "INTERNAL" }));
});
