import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import type { ChunkId, LeafIndex, SessionId } from "../../src/core/ids.ts";
import { HASH_ALGORITHMS } from "../../src/core/merkle/hash.ts";
import { decodeLeaf, encodeLeaf, type Leaf, type LeafCodec } from "../../src/core/merkle/leaf.ts";
import {
  consistencyProof,
  inclusionProof,
  verifyConsistency,
  verifyInclusion,
} from "../../src/core/merkle/proof.ts";
import {
  consistencyProofToJson,
  inclusionProofToJson,
  parseConsistencyProof,
  parseInclusionProof,
} from "../../src/core/merkle/proof-json.ts";
import {
  textbookConsistencyPath,
  textbookInclusionPath,
  textbookRoot,
} from "../../src/core/merkle/textbook.ts";
import { requireFrontierOfTiles } from "../../src/core/merkle/tiles.ts";
import { MerkleTreeInMemory, sampleLeaves, sizedRoot } from "../support/merkle-tree-in-memory.ts";

const LARGE_SIZE_MAX = 100_000;
const leaves = sampleLeaves(LARGE_SIZE_MAX);
const algorithms = fc.constantFrom(...HASH_ALGORITHMS);

/** A size, and the lengths of the appends that lead to it. */
const splits = fc
  .array(fc.oneof(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 300 })), { maxLength: 12 })
  .map((counts) => ({ counts, size: counts.reduce((sum, count) => sum + count, 0) }));

function built(algorithm: (typeof HASH_ALGORITHMS)[number], counts: readonly number[]): MerkleTreeInMemory {
  const tree = new MerkleTreeInMemory(algorithm, leaves);
  for (const count of counts) tree.append(count);
  return tree;
}

test("any split of the same leaves into appends gives one frontier, one root and one set of tiles", () => {
  fc.assert(
    fc.property(algorithms, splits, (algorithm, { counts, size }) => {
      const split = built(algorithm, counts);
      const whole = built(algorithm, [size]);
      expect(split.frontier).toEqual(whole.frontier);
      expect(split.head()).toEqual(whole.head());
      expect(split.tiles).toEqual(whole.tiles);
    }),
    { numRuns: 30 },
  );
});

test("a tile write that arrives late takes no hashes away, and the tree goes on from the wider tile", () => {
  fc.assert(
    fc.property(splits, splits, (first, second) => {
      const loser = built("blake3", first.counts);
      const winner = built("blake3", [...first.counts, ...second.counts]);
      const expected = built("blake3", [winner.frontier.size]);
      // The loser of the race appends again what the winner's tiles already hold.
      for (const [key, tile] of winner.tiles) loser.tiles.set(key, tile);
      loser.append(second.size);
      expect(loser.head()).toEqual(expected.head());
      expect(loser.tiles).toEqual(expected.tiles);
    }),
    { numRuns: 20 },
  );
});

describe.each(HASH_ALGORITHMS)("%s", (algorithm) => {
  test("roots and proofs equal the textbook recursion at random sizes to 100 000", () => {
    fc.assert(
      fc.property(fc.integer({ min: 601, max: LARGE_SIZE_MAX }), fc.nat(), fc.nat(), (size, pick1, pick2) => {
        const tree = built(algorithm, [Math.floor(size / 3), size - Math.floor(size / 3)]);
        const head = tree.head();
        const used = leaves.slice(0, size);
        expect(toHex(head.root)).toBe(toHex(textbookRoot(used, algorithm)));
        requireFrontierOfTiles(tree.frontier, tree.read, tree.hasher);
        const index = (pick1 % size) as LeafIndex;
        expect(inclusionProof(index, head, tree.read).path.map(toHex)).toEqual(
          textbookInclusionPath(index, used, algorithm).map(toHex),
        );
        const size1 = 1 + (pick2 % size);
        const head1 = sizedRoot(algorithm, size1, textbookRoot(used, algorithm, 0, size1));
        expect(consistencyProof(head1, head, tree.read).path.map(toHex)).toEqual(
          textbookConsistencyPath(size1, used, algorithm).map(toHex),
        );
      }),
      { numRuns: 2 },
    );
  });
});

describe("a change of one bit", () => {
  const flip = (bytes: Uint8Array, bit: number): Uint8Array => {
    const changed = Uint8Array.from(bytes);
    const at = (bit >>> 3) % changed.byteLength;
    changed[at] = (changed[at] ?? 0) ^ (1 << (bit & 7));
    return changed;
  };

  test("anywhere in the JSON of an inclusion proof is refused", () => {
    fc.assert(
      fc.property(
        algorithms,
        fc.integer({ min: 1, max: 700 }),
        fc.nat(),
        fc.nat(),
        (algorithm, size, pick, bit) => {
          const tree = built(algorithm, [size]);
          const text = inclusionProofToJson(
            inclusionProof((pick % size) as LeafIndex, tree.head(), tree.read),
          );
          const changed = parseInclusionProof(Buffer.from(flip(Buffer.from(text), bit)).toString("latin1"));
          expect(changed.ok && verifyInclusion(changed.proof, tree.head()).ok).toBe(false);
          const same = parseInclusionProof(text);
          expect(same.ok && verifyInclusion(same.proof, tree.head()).ok).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });

  test("anywhere in the JSON of a consistency proof is refused", () => {
    fc.assert(
      fc.property(
        algorithms,
        fc.integer({ min: 1, max: 700 }),
        fc.nat(),
        fc.nat(),
        (algorithm, size, pick, bit) => {
          const tree = built(algorithm, [1 + (pick % size)]);
          const head1 = tree.head();
          tree.append(size - head1.size);
          const head2 = tree.head();
          const text = consistencyProofToJson(consistencyProof(head1, head2, tree.read));
          const changed = parseConsistencyProof(Buffer.from(flip(Buffer.from(text), bit)).toString("latin1"));
          expect(changed.ok && verifyConsistency(changed.proof, head1, head2).ok).toBe(false);
          const same = parseConsistencyProof(text);
          expect(same.ok && verifyConsistency(same.proof, head1, head2).ok).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });

  test("exhaustively, at 11 leaves, in every bit of every inclusion proof", () => {
    const tree = built("blake3", [11]);
    const head = tree.head();
    const accepted: string[] = [];
    for (let index = 0; index < head.size; index++) {
      const text = Buffer.from(inclusionProofToJson(inclusionProof(index as LeafIndex, head, tree.read)));
      for (let bit = 0; bit < text.byteLength * 8; bit++) {
        const changed = parseInclusionProof(Buffer.from(flip(text, bit)).toString("latin1"));
        if (changed.ok && verifyInclusion(changed.proof, head).ok)
          accepted.push(`index ${index}, bit ${bit}`);
      }
    }
    expect(accepted).toEqual([]);
  });
});

test("verifiers and parsers answer, and never throw, for anything", () => {
  const tree = built("sha256", [9]);
  const head = tree.head();
  const proof = inclusionProof(4 as LeafIndex, head, tree.read);
  const consistency = consistencyProof(head, head, tree.read);
  const fields = fc.constantFrom("hashAlgorithm", "treeSize", "leafIndex", "leafHash", "path", "rootHash");
  const consistencyFields = fc.constantFrom("hashAlgorithm", "size1", "size2", "root1", "root2", "path");
  fc.assert(
    fc.property(
      fields,
      consistencyFields,
      fc.anything({ withTypedArray: true, withBigInt: true }),
      (a, b, value) => {
        expect(verifyInclusion({ ...proof, [a]: value }, head).ok).toBe(Object.is(proof[a as "path"], value));
        expect(typeof verifyConsistency({ ...consistency, [b]: value }, head, head).ok).toBe("boolean");
        expect(typeof verifyInclusion(proof, value as typeof head).ok).toBe("boolean");
        expect(parseInclusionProof(fc.stringify(value)).ok).toBe(false);
        expect(parseInclusionProof(value as string).ok).toBe(false);
      },
    ),
    { numRuns: 300 },
  );
});

describe("leaves", () => {
  const ids = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$/);
  const digests = fc.uint8Array({ minLength: 32, maxLength: 32 });
  const leaf: fc.Arbitrary<Leaf> = fc.record({
    sessionId: ids.map((id) => id as SessionId),
    index: fc.integer({ min: 0, max: 2 ** 32 - 1 }).map((index) => index as LeafIndex),
    chunkId: ids.map((id) => id as ChunkId),
    codec: fc.constantFrom<LeafCodec>("none", "zstd", "lz4", "brotli"),
    originalLength: fc.maxSafeNat(),
    storedLength: fc.maxSafeNat(),
    blobBlake3: digests,
    keyCommit: digests,
    plainMac: digests,
  });

  test("are what they were after encoding and decoding", () => {
    fc.assert(
      fc.property(leaf, (value) => {
        expect(decodeLeaf(encodeLeaf(value))).toEqual(value);
      }),
    );
  });

  test("are decoded from no bytes but the ones they encode to", () => {
    fc.assert(
      fc.property(leaf, fc.nat(), fc.integer({ min: 1, max: 255 }), (value, pick, xor) => {
        const bytes = Uint8Array.from(encodeLeaf(value));
        const at = pick % bytes.byteLength;
        bytes[at] = (bytes[at] ?? 0) ^ xor;
        let decoded: Leaf;
        try {
          decoded = decodeLeaf(bytes);
        } catch (error) {
          expect(error).toMatchObject({ code: "PROOF_INVALID" });
          return;
        }
        expect(toHex(encodeLeaf(decoded))).toBe(toHex(bytes));
      }),
    );
  });
});
