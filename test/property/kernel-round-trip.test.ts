import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { asBuffer } from "../../src/core/bytes.ts";
import {
  type CodecName,
  compressChunk,
  decompressChunk,
  levelRange,
} from "../../src/core/compress/compress.ts";
import { canonicalChunkId, leafIndex, sessionId } from "../../src/core/ids.ts";
import { kernelScratch, openChunk, type SealRequest, sealChunk } from "../../src/core/kernel.ts";

const CODECS: readonly CodecName[] = ["none", "zstd", "lz4", "brotli"];
/** Edges of: a byte, the zstd content-size fields (256, 65 792), the threshold, a GCM piece, blocks of 64 and 128 KiB. */
const EDGES = [
  1, 2, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 65_535, 65_536, 65_537, 65_791, 65_792, 131_072, 131_073,
];
/** One for the whole file, as a thread has one: what a run leaves in it must not show in the next. */
const scratch = kernelScratch();
const session = sessionId("sess-property");

/** From all the same to nothing alike: `variety` is the number of distinct values a byte takes. */
function content(size: number, variety: number, seed: number): Uint8Array {
  let state = seed | 1;
  return Uint8Array.from({ length: size }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % variety;
  });
}

const anySize = fc.oneof(fc.constantFrom(...EDGES), fc.integer({ min: 1, max: 5_000 }));
const anyContent = fc.record({
  size: anySize,
  variety: fc.constantFrom(1, 2, 16, 256),
  seed: fc.integer(),
});
const anyCompression = fc.constantFrom(...CODECS).chain((algorithm) => {
  const { min, max } = levelRange(algorithm);
  // zstd's last levels take seconds of table set-up in total; the codec tests pass through them once.
  const level = fc.integer({ min, max: Math.min(max, 12) });
  return fc.record({ algorithm: fc.constant(algorithm), level, thresholdBytes: fc.constantFrom(0, 1024) });
});

describe("round trips", () => {
  it("opening what was sealed gives the payload, at any size, codec, level and threshold", () => {
    fc.assert(
      fc.property(
        anyContent,
        anyCompression,
        fc.nat(0xffff_ffff),
        ({ size, variety, seed }, compression, index) => {
          const payload = content(size, variety, seed);
          const request: SealRequest = {
            sessionId: session,
            index: leafIndex(index),
            chunkId: canonicalChunkId(session, leafIndex(index)),
            payload,
            compression,
            hashAlgorithm: "blake3",
            keyVersion: 1,
            key: content(32, 256, seed),
            salt: content(32, 256, seed + 1),
            nonce: content(12, 256, seed + 2),
            plainMacKey: content(32, 256, seed + 3),
          };
          const sealed = sealChunk(request, () => 0, scratch);
          expect(sealed.compressedLength).toBeLessThanOrEqual(size);
          const opened = openChunk({ ...request, ...sealed });
          expect(asBuffer(opened.payload).compare(payload)).toBe(0);
        },
      ),
      { numRuns: 200 },
    );
  });

  for (const algorithm of CODECS) {
    it(`${algorithm}: every edge size round trips`, () => {
      const level = levelRange(algorithm).default;
      for (const size of [0, ...EDGES]) {
        for (const variety of [1, 16, 256]) {
          const bytes = content(size, variety, size + 1);
          const { codec, bytes: encoded } = compressChunk(bytes, { algorithm, level, thresholdBytes: 0 });
          expect(encoded.byteLength).toBeLessThanOrEqual(size);
          expect(asBuffer(decompressChunk(codec, encoded, size)).compare(bytes)).toBe(0);
        }
      }
    });

    it(`${algorithm}: every level round trips`, () => {
      const { min, max } = levelRange(algorithm);
      const bytes = content(20_000, 16, 1);
      for (let level = min; level <= max; level += 1) {
        const { codec, bytes: encoded } = compressChunk(bytes, { algorithm, level, thresholdBytes: 0 });
        expect(codec).toBe(algorithm);
        expect(asBuffer(decompressChunk(codec, encoded, bytes.byteLength)).compare(bytes)).toBe(0);
      }
    });
  }

  it("no damaged frame is decoded to anything but the content, or makes the decoder throw anything but a refusal", () => {
    const anyDamage = fc.array(fc.record({ at: fc.nat(10_000), value: fc.integer({ min: 0, max: 255 }) }), {
      minLength: 1,
      maxLength: 4,
    });
    const bytes = content(8_000, 16, 7);
    fc.assert(
      fc.property(fc.constantFrom("zstd", "lz4"), anyDamage, (algorithm, damage) => {
        const options = { algorithm, level: levelRange(algorithm).default, thresholdBytes: 0 };
        const damaged = new Uint8Array(compressChunk(bytes, options).bytes);
        for (const { at, value } of damage) damaged[at % damaged.byteLength] = value;
        try {
          expect(asBuffer(decompressChunk(algorithm, damaged, bytes.byteLength)).compare(bytes)).toBe(0);
        } catch (thrown) {
          expect(["DECODE_FAILED", "DECODE_LENGTH_MISMATCH"]).toContain((thrown as { code?: string }).code);
        }
      }),
      { numRuns: 300 },
    );
  });
});
