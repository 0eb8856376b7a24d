import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { asBuffer } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { keyCommit, plainMac } from "../../src/core/encrypt/commit.ts";
import { canonicalChunkId, leafIndex, sessionId } from "../../src/core/ids.ts";
import {
  kernelScratch,
  type OpenRequest,
  openChunk,
  type SealedChunk,
  type SealRequest,
  sealChunk,
  verifySealed,
} from "../../src/core/kernel.ts";
import { treeHasher } from "../../src/core/merkle/hash.ts";
import { encodeLeaf } from "../../src/core/merkle/leaf.ts";

const fill = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);
const withCode = (code: string): unknown => expect.objectContaining({ code });
const nowMs = (): number => 0;
const session = sessionId("sess-kernel");
const index = leafIndex(3);
const payload = Buffer.from('{"event":"key","code":65}\n'.repeat(100));

const request: SealRequest = {
  sessionId: session,
  index,
  chunkId: canonicalChunkId(session, index),
  payload,
  compression: { algorithm: "zstd", level: 3, thresholdBytes: 1024 },
  hashAlgorithm: "blake3",
  keyVersion: 1,
  key: fill(32, 1),
  salt: fill(32, 2),
  nonce: fill(12, 3),
  plainMacKey: fill(32, 4),
};

function openRequest(sealed: SealedChunk, changes: Partial<OpenRequest> = {}): OpenRequest {
  return { ...request, ...sealed, ...changes };
}

describe("sealChunk", () => {
  const sealed = sealChunk(request, nowMs);

  it("is pure: the same request gives the same result, with or without a used scratch", () => {
    const scratch = kernelScratch();
    sealChunk({ ...request, payload: Buffer.alloc(9_000, "something longer") }, nowMs, scratch);
    expect(sealChunk(request, nowMs, scratch)).toEqual(sealed);
  });

  it("says what it did", () => {
    expect(sealed.codec).toBe("zstd");
    expect(sealed.level).toBe(3);
    expect(sealed.originalLength).toBe(payload.byteLength);
    expect(sealed.storedLength).toBe(sealed.blob.byteLength);
    expect(sealed.storedLength).toBe(sealed.compressedLength + 60);
    expect(sealed.compressedLength).toBeLessThan(payload.byteLength / 10);
  });

  it("says level 0 where it stored the payload as it is", () => {
    const small = sealChunk({ ...request, payload: payload.subarray(0, 100) }, nowMs);
    expect([small.codec, small.level, small.compressedLength]).toEqual(["none", 0, 100]);
  });

  it("binds blob, key and content into the leaf of each hash algorithm", () => {
    expect(sealed.blobBlake3).toEqual(blake3(sealed.blob));
    expect(sealed.keyCommit).toEqual(keyCommit(request.key, request.salt));
    expect(sealed.plainMac).toEqual(plainMac(request.plainMacKey, blake3(payload)));
    for (const hashAlgorithm of ["blake3", "sha256"] as const) {
      const again = sealChunk({ ...request, hashAlgorithm }, nowMs);
      const leaf = encodeLeaf({ ...request, ...again });
      expect(again.leafHash).toEqual(treeHasher(hashAlgorithm).leaf(leaf));
    }
  });

  it("measures each stage with the clock it was given", () => {
    let ticks = 0;
    const measured = sealChunk(request, () => (ticks += 1_000));
    expect(measured.stageSeconds).toEqual({ digest: 1, compress: 1, seal: 1, verify: 1, hash: 1 });
  });

  it("opens again what it sealed, and fails if that is no longer the payload", () => {
    const failing = Buffer.from(payload);
    let calls = 0;
    // The clock is read between the stages: here, memory goes bad after the fourth reading, when the chunk is sealed.
    const clock = (): number => {
      calls += 1;
      if (calls === 4) failing[7] = 0;
      return calls;
    };
    expect(() => sealChunk({ ...request, payload: failing }, clock)).toThrow(
      withCode("VERIFY_AFTER_SEAL_FAILED"),
    );
  });

  it("hands out a blob that can be transferred", () => {
    const { blob } = sealChunk(request, nowMs);
    expect(blob.buffer.byteLength).toBe(blob.byteLength);
  });

  it("accepts right declared digests and refuses wrong ones", () => {
    const declaredSha256 = createHash("sha256").update(payload).digest();
    const declaredBlake3 = blake3(payload);
    expect(sealChunk({ ...request, declaredSha256, declaredBlake3 }, nowMs).leafHash).toEqual(
      sealed.leafHash,
    );
    expect(() => sealChunk({ ...request, declaredSha256: declaredBlake3 }, nowMs)).toThrow(
      withCode("PAYLOAD_DIGEST_MISMATCH"),
    );
    expect(() => sealChunk({ ...request, declaredBlake3: declaredSha256 }, nowMs)).toThrow(
      withCode("PAYLOAD_DIGEST_MISMATCH"),
    );
  });

  it("refuses a level that the codec does not have", () => {
    const compression = { algorithm: "brotli", level: 12, thresholdBytes: 0 } as const;
    expect(() => sealChunk({ ...request, compression }, nowMs)).toThrow(withCode("JOB_INVALID"));
  });
});

describe("verifySealed", () => {
  const sealed = sealChunk(request, nowMs);
  const place = { ...request, codec: sealed.codec, originalLength: sealed.originalLength, blob: sealed.blob };

  it("passes what opens to the payload", () => {
    expect(() => verifySealed(payload, place)).not.toThrow();
  });

  it("fails for a blob with a flipped bit, another payload, another codec or another place", () => {
    const damaged = new Uint8Array(sealed.blob);
    damaged[50] = (damaged[50] as number) ^ 1;
    const other = Buffer.from(payload);
    other[5] = 0;
    const failures = [
      () => verifySealed(payload, { ...place, blob: damaged }),
      () => verifySealed(other, place),
      () => verifySealed(payload, { ...place, codec: "lz4" }),
      () => verifySealed(payload, { ...place, index: leafIndex(4) }),
    ];
    for (const failure of failures) expect(failure).toThrow(withCode("VERIFY_AFTER_SEAL_FAILED"));
  });
});

describe("openChunk", () => {
  const sealed = sealChunk(request, nowMs);

  it("returns the payload, alone in its buffer, for every codec", () => {
    for (const algorithm of ["none", "zstd", "lz4", "brotli"] as const) {
      const level = algorithm === "zstd" || algorithm === "brotli" ? 3 : 0;
      const each = sealChunk({ ...request, compression: { algorithm, level, thresholdBytes: 0 } }, nowMs);
      const opened = openChunk(openRequest(each));
      expect(asBuffer(opened.payload).equals(payload)).toBe(true);
      expect(opened.payload.buffer.byteLength).toBe(payload.byteLength);
    }
  });

  const wrong: readonly (readonly [string, Partial<OpenRequest>, string])[] = [
    ["another recorded blob digest", { blobBlake3: fill(32, 0) }, "BLOB_MALFORMED"],
    ["another key", { key: fill(32, 9) }, "BLOB_AUTHENTICATION_FAILED"],
    ["another key commitment", { keyCommit: fill(32, 0) }, "BLOB_AUTHENTICATION_FAILED"],
    ["another index", { index: leafIndex(4) }, "BLOB_AUTHENTICATION_FAILED"],
    ["another session", { sessionId: sessionId("sess-other") }, "BLOB_AUTHENTICATION_FAILED"],
    ["another original length", { originalLength: payload.byteLength + 1 }, "BLOB_AUTHENTICATION_FAILED"],
    ["another key version", { keyVersion: 2 }, "BLOB_AUTHENTICATION_FAILED"],
    ["another plain mac", { plainMac: fill(32, 0) }, "BLOB_AUTHENTICATION_FAILED"],
    ["another plain mac key", { plainMacKey: fill(32, 0) }, "BLOB_AUTHENTICATION_FAILED"],
  ];
  for (const [what, changes, code] of wrong) {
    it(`refuses ${what} with ${code}`, () => {
      expect(() => openChunk(openRequest(sealed, changes))).toThrow(withCode(code));
    });
  }

  it("refuses a blob that is too short, though its digest is as recorded", () => {
    const blob = fill(59, 0);
    expect(() => openChunk(openRequest(sealed, { blob, blobBlake3: blake3(blob) }))).toThrow(
      withCode("BLOB_MALFORMED"),
    );
  });
});
