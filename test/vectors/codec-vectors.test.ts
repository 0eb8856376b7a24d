import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { fromHex, utf8 } from "../../src/core/bytes.ts";
import { type CodecName, decompressChunk } from "../../src/core/compress/compress.ts";
import { errorCodeOf } from "../../src/core/errors.ts";

interface CodecVectors {
  readonly content: string;
  readonly decodes: readonly { readonly name: string; readonly codec: CodecName; readonly bytes: string }[];
  readonly must_fail: readonly {
    readonly name: string;
    readonly codec: CodecName;
    readonly bytes: string;
    readonly original_length: number;
    readonly code: string;
  }[];
}

const vectors = JSON.parse(readFileSync(new URL("codecs.json", import.meta.url), "utf8")) as CodecVectors;
const content = utf8(vectors.content);
const bytesOf = (hex: string): Uint8Array => fromHex(hex) as Uint8Array;

/** `decoded`, or the code of the error. */
function outcome(codec: CodecName, bytes: Uint8Array, originalLength: number): string {
  try {
    decompressChunk(codec, bytes, originalLength);
    return "decoded";
  } catch (thrown) {
    return errorCodeOf(thrown);
  }
}

const REFUSALS = ["DECODE_FAILED", "DECODE_LENGTH_MISMATCH"];

describe("frames of another implementation", () => {
  for (const { name, codec, bytes } of vectors.decodes) {
    it(`${name} decodes to the content`, () => {
      expect(Buffer.from(decompressChunk(codec, bytesOf(bytes), content.byteLength))).toEqual(Buffer.from(content));
    });

    it(`${name}, cut off after any byte, is refused`, () => {
      const whole = bytesOf(bytes);
      for (let length = 0; length < whole.byteLength; length += 1) {
        expect(REFUSALS).toContain(outcome(codec, whole.subarray(0, length), content.byteLength));
      }
    });

    it(`${name} with a byte after it is refused`, () => {
      for (const last of [0, 1, 255]) {
        expect(REFUSALS).toContain(outcome(codec, Buffer.concat([bytesOf(bytes), Buffer.of(last)]), content.byteLength));
      }
    });
  }

  for (const { name, codec, bytes } of vectors.decodes.filter((vector) => ["zstd", "lz4"].includes(vector.codec))) {
    it(`${name} with any bit flipped is refused, or decodes to the content (a bit that means nothing)`, () => {
      const whole = bytesOf(bytes);
      let accepted = 0;
      for (let bit = 0; bit < whole.byteLength * 8; bit += 1) {
        const flipped = new Uint8Array(whole);
        flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
        if (outcome(codec, flipped, content.byteLength) !== "decoded") continue;
        accepted += 1;
        expect(Buffer.from(decompressChunk(codec, flipped, content.byteLength))).toEqual(Buffer.from(content));
      }
      // The unused bit of the frame header, and those of the entropy tables' padding.
      expect(accepted).toBeLessThanOrEqual(8);
    });
  }

  for (const { name, codec, bytes, original_length: length, code } of vectors.must_fail) {
    it(`${name} is refused with ${code}`, () => {
      expect(outcome(codec, bytesOf(bytes), length)).toBe(code);
    });
  }
});
