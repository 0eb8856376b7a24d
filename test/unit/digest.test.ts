import { blake3 as referenceBlake3 } from "@noble/hashes/blake3.js";
import { sha256 as referenceSha256 } from "@noble/hashes/sha2.js";
import { describe, expect, it } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import { blake3, sha256 } from "../../src/core/digest.ts";

/** Around SHA-256's and BLAKE3's blocks (64), BLAKE3's chunks (1024), and its tree's SIMD widths. */
const SIZES = [
  0,
  1,
  55,
  56,
  63,
  64,
  65,
  1023,
  1024,
  1025,
  2047,
  2048,
  2049,
  8191,
  8192,
  8193,
  16385,
  65536,
  1 << 20,
];
const bytes = Uint8Array.from({ length: (1 << 20) + 8 }, (_, at) => (at * 2_654_435_761) >>> 13);

describe("native digests equal the portable implementation's", () => {
  for (const size of SIZES) {
    it(`for ${size} bytes, also in the middle of a buffer`, () => {
      const view = bytes.subarray(5, 5 + size);
      expect(toHex(blake3(view))).toBe(toHex(referenceBlake3(view)));
      expect(toHex(sha256(view))).toBe(toHex(referenceSha256(view)));
    });
  }
});
