import { createHash } from "node:crypto";
import { brotliDecompressSync, zstdDecompressSync } from "node:zlib";
import { compressFrameSync, decompressFrameSync } from "lz4-napi";
import { describe, expect, it } from "vitest";
import { asBuffer } from "../../src/core/bytes.ts";
import {
  type CodecName,
  compressChunk,
  decompressChunk,
  levelFor,
  levelRange,
  ORIGINAL_BYTES_MAX,
} from "../../src/core/compress/compress.ts";
import { xxh32 } from "../../src/core/compress/xxh32.ts";
import { Scratch } from "../../src/core/scratch.ts";

const text = Buffer.from('{"event":"mouse","x":12,"y":7}\n'.repeat(400));
/** SHA-256 in counter mode: the same bytes at every run, and nothing for a codec to find. */
const random = Buffer.concat(
  Array.from({ length: 160 }, (_, counter) => createHash("sha256").update(String(counter)).digest()),
);
const CODECS = ["zstd", "lz4", "brotli"] as const;

function compress(bytes: Uint8Array, algorithm: CodecName, thresholdBytes = 0) {
  return compressChunk(bytes, { algorithm, level: levelRange(algorithm).default, thresholdBytes });
}

describe("compressChunk", () => {
  for (const codec of CODECS) {
    it(`${codec}: makes compressible bytes smaller`, () => {
      const result = compress(text, codec);
      expect(result.codec).toBe(codec);
      expect(result.bytes.byteLength).toBeLessThan(text.byteLength / 4);
    });

    it(`${codec}: stores what does not get smaller as none, the input itself`, () => {
      const result = compress(random, codec);
      expect(result.codec).toBe("none");
      expect(result.bytes).toBe(random);
    });

    it(`${codec}: compresses at the threshold and not below it`, () => {
      expect(compress(text, codec, text.byteLength).codec).toBe(codec);
      const below = compress(text, codec, text.byteLength + 1);
      expect(below.codec).toBe("none");
      expect(below.bytes).toBe(text);
    });

    it(`${codec}: without a scratch the result is the caller's own`, () => {
      const first = compress(text, codec);
      const copy = Buffer.from(first.bytes);
      compress(Buffer.alloc(text.byteLength, "other"), codec);
      expect(Buffer.compare(first.bytes, copy)).toBe(0);
    });

    it(`${codec}: refuses a level that the codec does not have`, () => {
      const { min, max } = levelRange(codec);
      for (const level of [min - 1, max + 1, 0.5, Number.NaN]) {
        expect(() => compressChunk(text, { algorithm: codec, level, thresholdBytes: 0 })).toThrow(
          expect.objectContaining({ code: "JOB_INVALID" }),
        );
      }
    });
  }

  it("none: returns the input itself", () => {
    expect(compress(text, "none").bytes).toBe(text);
  });

  it("levelFor takes the codec's default when no level is asked for", () => {
    expect([levelFor("zstd", undefined), levelFor("brotli", undefined), levelFor("lz4", undefined)]).toEqual([
      3, 4, 0,
    ]);
    expect(levelFor("zstd", 22)).toBe(22);
  });
});

describe("frames are the standard's", () => {
  it("zstd: another decoder reads it; content size and checksum are on", () => {
    const frame = compress(text, "zstd").bytes;
    expect(zstdDecompressSync(frame)).toEqual(text);
    expect((frame[4] as number) & 0x04).toBe(0x04);
    const changed = new Uint8Array(frame);
    changed[frame.byteLength - 1] = (changed[frame.byteLength - 1] as number) ^ 1;
    expect(() => zstdDecompressSync(changed)).toThrow(/checksum/i);
  });

  it("lz4: the library's own frame decoder reads it", () => {
    expect(decompressFrameSync(asBuffer(compress(text, "lz4").bytes))).toEqual(text);
  });

  it("lz4: content of several 4 MiB blocks, one of them incompressible, survives both decoders", () => {
    const noise = Buffer.alloc(4 << 20);
    for (let at = 0; at < noise.byteLength; at += 4)
      noise.writeInt32LE(Math.imul(at + 1, 0x9e3779b1) ^ (at << 7), at);
    const long = Buffer.concat([Buffer.alloc(4 << 20, "abcd"), noise, text]);
    const { codec, bytes } = compress(long, "lz4");
    expect(codec).toBe("lz4");
    expect(decompressFrameSync(asBuffer(bytes)).equals(long)).toBe(true);
    expect(asBuffer(decompressChunk("lz4", bytes, long.byteLength)).equals(long)).toBe(true);
  });

  it("lz4: a frame of the library is read, with its checksum", () => {
    const frame = compressFrameSync(text, { contentChecksum: true });
    expect(asBuffer(decompressChunk("lz4", frame, text.byteLength))).toEqual(text);
  });

  it("brotli: another call reads it", () => {
    expect(brotliDecompressSync(compress(text, "brotli").bytes)).toEqual(text);
  });

  it("xxh32 gives the published values", () => {
    expect(xxh32(Buffer.from(""))).toBe(0x02cc5d05);
    expect(xxh32(Buffer.from("a"))).toBe(0x550d7456);
    expect(xxh32(Buffer.from("abc"))).toBe(0x32d153ff);
    expect(xxh32(Buffer.from("Nobody inspects the spammish repetition"))).toBe(0xe2293b2f);
  });

  it("xxh32 does not depend on where in memory the bytes lie", () => {
    const shifted = new Uint8Array(text.byteLength + 3);
    for (const offset of [0, 1, 2, 3]) {
      shifted.set(text, offset);
      expect(xxh32(shifted.subarray(offset, offset + text.byteLength))).toBe(xxh32(text));
    }
  });
});

describe("decompressChunk", () => {
  it("believes no recorded length above the limit, below 0 or between integers", () => {
    for (const length of [ORIGINAL_BYTES_MAX + 1, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => decompressChunk("zstd", compress(text, "zstd").bytes, length)).toThrow(
        expect.objectContaining({ code: "DECODE_FAILED" }),
      );
    }
  });

  it("keeps its cause and says nothing of the content", () => {
    const damaged = new Uint8Array(compress(text, "zstd").bytes);
    damaged[damaged.byteLength - 1] = (damaged[damaged.byteLength - 1] as number) ^ 1;
    try {
      decompressChunk("zstd", damaged, text.byteLength);
      expect.unreachable();
    } catch (thrown) {
      expect((thrown as Error).message).toBe("zstd: frame is damaged");
      expect((thrown as Error).cause).toBeInstanceOf(Error);
    }
  });

  for (const codec of CODECS) {
    it(`${codec}: a frame that holds more than the recorded length does not make memory grow`, () => {
      const bomb = compress(Buffer.alloc(64 << 20), codec).bytes;
      const before = process.memoryUsage().rss;
      expect(() => decompressChunk(codec, bomb, 1_000)).toThrow(
        expect.objectContaining({ code: "DECODE_LENGTH_MISMATCH" }),
      );
      expect(process.memoryUsage().rss - before).toBeLessThan(16 << 20);
    });
  }

  it("lz4: the library itself is told the cap, and stops at it", () => {
    const bomb = compressFrameSync(Buffer.alloc(4 << 20), { contentChecksum: true });
    expect(() => decompressChunk("lz4", bomb, 1 << 20)).toThrow(/holds more than the room for it$/);
  });

  it("works on after a failure, with the same scratch", () => {
    const scratch = new Scratch();
    const frame = compress(text, "zstd").bytes;
    expect(() => decompressChunk("zstd", frame.subarray(0, 30), text.byteLength, scratch)).toThrow(
      expect.objectContaining({ code: "DECODE_FAILED" }),
    );
    expect(asBuffer(decompressChunk("zstd", frame, text.byteLength, scratch)).equals(text)).toBe(true);
  });
});
