import { createCipheriv, createHash, randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { asBuffer, utf8 } from "../../src/core/bytes.ts";
import { type ChunkIdentity, chunkAad } from "../../src/core/encrypt/aad.ts";
import { gcmDecryptInto, gcmEncryptInto } from "../../src/core/encrypt/aes-gcm.ts";
import { keyCommit, plainMac, plainMacKey } from "../../src/core/encrypt/commit.ts";
import { deriveKey } from "../../src/core/encrypt/derive.ts";
import { kekFromText, keyWeakness, singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { openLegacyBlob } from "../../src/core/encrypt/legacy.ts";
import { BLOB_OVERHEAD_BYTES, open, saltOf, seal } from "../../src/core/encrypt/sealed-blob.ts";
import { makeSessionSecret, unwrapSecret, wrapSecret } from "../../src/core/encrypt/session-secret.ts";
import { canonicalChunkId, leafIndex, sessionId } from "../../src/core/ids.ts";

const fill = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);
const key = fill(32, 1);
const salt = fill(32, 2);
const nonce = fill(12, 3);
const aad = utf8("aad");
const plaintext = utf8("the plaintext of this chunk");
const blob = seal({ key, salt, nonce, aad, plaintext });
const withCode = (code: string): unknown => expect.objectContaining({ code });

function flipped(bytes: Uint8Array, at: number): Uint8Array {
  const copy = new Uint8Array(bytes);
  copy[at] = (copy[at] as number) ^ 0x80;
  return copy;
}

describe("seal", () => {
  it("lays out salt ‖ nonce ‖ ciphertext ‖ tag, alone in an ArrayBuffer of that size", () => {
    expect(blob.byteLength).toBe(plaintext.byteLength + BLOB_OVERHEAD_BYTES);
    expect(blob.buffer.byteLength).toBe(blob.byteLength);
    expect(asBuffer(blob.subarray(0, 44))).toEqual(Buffer.concat([salt, nonce]));
    const moved = structuredClone(blob, { transfer: [seal({ key, salt, nonce, aad, plaintext }).buffer] });
    expect(moved.byteLength).toBe(blob.byteLength);
  });

  it("equals one call of the cipher, also over many of its pieces", () => {
    const long = Uint8Array.from({ length: 3 * 65_536 + 17 }, (_, at) => at % 251);
    const cipher = createCipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 }).setAAD(aad);
    const expected = Buffer.concat([salt, nonce, cipher.update(long), cipher.final(), cipher.getAuthTag()]);
    const sealed = seal({ key, salt, nonce, aad, plaintext: long });
    expect(asBuffer(sealed).equals(expected)).toBe(true);
    expect(asBuffer(open({ key, aad, blob: sealed })).equals(long)).toBe(true);
  });

  it("refuses a key, salt or nonce of another length", () => {
    const good = { key, salt, nonce, aad, plaintext };
    expect(() => seal({ ...good, key: fill(31, 1) })).toThrow(RangeError);
    expect(() => seal({ ...good, salt: fill(33, 1) })).toThrow(RangeError);
    expect(() => seal({ ...good, nonce: fill(16, 1) })).toThrow(RangeError);
  });
});

describe("open", () => {
  it("returns the plaintext", () => {
    expect(asBuffer(open({ key, aad, blob }))).toEqual(asBuffer(plaintext));
    expect(open({ key, aad, blob: seal({ key, salt, nonce, aad, plaintext: fill(0, 0) }) }).byteLength).toBe(
      0,
    );
  });

  it("rejects a blob changed in any byte behind the salt", () => {
    for (let at = 32; at < blob.byteLength; at += 1) {
      expect(() => open({ key, aad, blob: flipped(blob, at) })).toThrow(
        withCode("BLOB_AUTHENTICATION_FAILED"),
      );
    }
  });

  it("rejects a blob cut off or extended anywhere", () => {
    for (let length = 0; length < blob.byteLength; length += 1) {
      const code = length < BLOB_OVERHEAD_BYTES ? "BLOB_MALFORMED" : "BLOB_AUTHENTICATION_FAILED";
      expect(() => open({ key, aad, blob: blob.subarray(0, length) })).toThrow(withCode(code));
    }
    const longer = new Uint8Array([...blob, 0]);
    expect(() => open({ key, aad, blob: longer })).toThrow(withCode("BLOB_AUTHENTICATION_FAILED"));
  });

  it("rejects another key and another AAD", () => {
    expect(() => open({ key: fill(32, 9), aad, blob })).toThrow(withCode("BLOB_AUTHENTICATION_FAILED"));
    expect(() => open({ key, aad: utf8("aae"), blob })).toThrow(withCode("BLOB_AUTHENTICATION_FAILED"));
  });

  it("a changed salt shows in the derived key and its commitment, not in the tag", () => {
    const other = flipped(blob, 0);
    expect(asBuffer(open({ key, aad, blob: other }))).toEqual(asBuffer(plaintext));
    expect(keyCommit(key, saltOf(other))).not.toEqual(keyCommit(key, saltOf(blob)));
  });

  it("saltOf is the first 32 bytes, and refuses what is too short", () => {
    expect(asBuffer(saltOf(blob))).toEqual(asBuffer(salt));
    expect(() => saltOf(blob.subarray(0, 59))).toThrow(withCode("BLOB_MALFORMED"));
  });
});

describe("gcmDecryptInto", () => {
  it("leaves zeros, and no unverified plaintext, when the tag is wrong", () => {
    const sealed = new Uint8Array(plaintext.byteLength + 16);
    gcmEncryptInto(sealed, { key, nonce, aad }, plaintext);
    const target = fill(plaintext.byteLength, 0xff);
    expect(gcmDecryptInto(target, { key, nonce, aad }, flipped(sealed, sealed.byteLength - 1))).toBe(false);
    expect(target).toEqual(fill(plaintext.byteLength, 0));
    expect(gcmDecryptInto(target, { key, nonce, aad }, sealed)).toBe(true);
    expect(asBuffer(target)).toEqual(asBuffer(plaintext));
  });
});

describe("chunkAad", () => {
  const chunk: ChunkIdentity = {
    sessionId: sessionId("sess-1"),
    index: leafIndex(1),
    chunkId: canonicalChunkId(sessionId("sess-1"), leafIndex(1)),
    codec: "zstd",
    originalLength: 100,
    keyVersion: 1,
  };
  const others: readonly ChunkIdentity[] = [
    { ...chunk, sessionId: sessionId("sess-2") },
    { ...chunk, index: leafIndex(2) },
    { ...chunk, chunkId: canonicalChunkId(sessionId("sess-1"), leafIndex(2)) },
    { ...chunk, codec: "lz4" },
    { ...chunk, originalLength: 101 },
    { ...chunk, keyVersion: 2 },
  ];

  it("open rejects a chunk moved to another session, index, chunk id, codec, length or key version", () => {
    const sealed = seal({ key, salt, nonce, aad: chunkAad(chunk), plaintext });
    expect(open({ key, aad: chunkAad(chunk), blob: sealed }).byteLength).toBe(plaintext.byteLength);
    for (const other of others) {
      expect(() => open({ key, aad: chunkAad(other), blob: sealed })).toThrow(
        withCode("BLOB_AUTHENTICATION_FAILED"),
      );
    }
  });

  it("does not run fields into each other", () => {
    const left = {
      ...chunk,
      sessionId: sessionId("ab"),
      chunkId: canonicalChunkId(sessionId("c"), leafIndex(1)),
    };
    const right = {
      ...chunk,
      sessionId: sessionId("a"),
      chunkId: canonicalChunkId(sessionId("bc"), leafIndex(1)),
    };
    expect(chunkAad(left)).not.toEqual(chunkAad(right));
  });
});

describe("key material", () => {
  it("one plain mac key per secret, one mac per content", () => {
    const macKey = plainMacKey("secret one");
    const digest = createHash("sha256").update("x").digest();
    expect(plainMacKey("secret two")).not.toEqual(macKey);
    expect(plainMac(macKey, digest)).toEqual(plainMac(macKey, digest));
    expect(plainMac(macKey, flipped(digest, 0))).not.toEqual(plainMac(macKey, digest));
  });

  it("one derived key per password and salt", () => {
    expect(deriveKey("p", salt)).toEqual(deriveKey("p", salt));
    expect(deriveKey("p", fill(32, 7))).not.toEqual(deriveKey("p", salt));
    expect(deriveKey("q", salt)).not.toEqual(deriveKey("p", salt));
  });

  it("opens the older service's blob with its ENCRYPTION_KEY and not with another", () => {
    const legacyKey = "an encryption key of the older service";
    const legacy = seal({ key: deriveKey(legacyKey, salt), salt, nonce, aad: fill(0, 0), plaintext });
    expect(asBuffer(openLegacyBlob(legacyKey, legacy))).toEqual(asBuffer(plaintext));
    expect(() => openLegacyBlob("another", legacy)).toThrow(withCode("BLOB_AUTHENTICATION_FAILED"));
    expect(() => openLegacyBlob(legacyKey, fill(40, 0))).toThrow(withCode("BLOB_MALFORMED"));
  });
});

describe("session secret", () => {
  const place = { kek: kekFromText("kek one"), sessionId: sessionId("sess-1"), keyVersion: 1 };
  const secret = makeSessionSecret(() => fill(32, 5));
  const wrapped = wrapSecret(secret, place, () => nonce);

  it("is base64 text of 32 bytes of the given random source", () => {
    expect(Buffer.from(secret, "base64")).toEqual(Buffer.from(fill(32, 5)));
    expect(secret).toHaveLength(44);
  });

  it("unwraps to what was wrapped", () => {
    expect(unwrapSecret(wrapped, place)).toBe(secret);
    expect(wrapped.byteLength).toBe(12 + 44 + 16);
  });

  it("does not unwrap for another KEK, session or key version, nor changed or cut off", () => {
    const others = [
      { ...place, kek: kekFromText("kek two") },
      { ...place, sessionId: sessionId("sess-2") },
      { ...place, keyVersion: 2 },
    ];
    for (const other of others) {
      expect(() => unwrapSecret(wrapped, other)).toThrow(withCode("SECRET_UNWRAP_FAILED"));
    }
    for (let at = 0; at < wrapped.byteLength; at += 1) {
      expect(() => unwrapSecret(flipped(wrapped, at), place)).toThrow(withCode("SECRET_UNWRAP_FAILED"));
      expect(() => unwrapSecret(wrapped.subarray(0, at), place)).toThrow(withCode("SECRET_UNWRAP_FAILED"));
    }
  });

  it("does not unwrap to a text that is no secret", () => {
    const notBase64 = wrapSecret("!".repeat(44), place, () => nonce);
    expect(() => unwrapSecret(notBase64, place)).toThrow(withCode("SECRET_UNWRAP_FAILED"));
  });
});

describe("key ring of one key", () => {
  it("has version 1 and no other", () => {
    const ring = singleKeyRing("a key text");
    expect(ring.activeVersion).toBe(1);
    expect(ring.kek(1)).toEqual(kekFromText("a key text"));
    expect(() => ring.kek(2)).toThrow(withCode("KEK_UNKNOWN"));
  });
});

describe("keyWeakness", () => {
  const weak = [
    "",
    "brief",
    "x".repeat(31),
    "0".repeat(64),
    "a".repeat(32),
    "abababababababababababababababab",
    "passwordpasswordpasswordpassword",
    "12345678123456781234567812345678",
    "0123456789012345678901234567890123456789",
    "0123456789abcdefghijklmnopqrstuvwxyz",
    "abcdefghijklmnopqrstuvwxyz0123456789",
    "zyxwvutsrqponmlkjihgfedcba9876543210",
    "0123456789abcdef0123456789abcdef",
    "aaaaaaaaaaaaaaaabbbbbbbbcccccccc",
    "change-me-in-production-please-32chars",
    "CHANGE_ME_to_a_random_64_character_hex_string_before_deploying",
    "your-encryption-key-32-characters-long!",
    "your-secret-key-here-at-least-32-chars",
    "your-256-bit-encryption-key-goes-here-ok",
    "placeholder-placeholder-for-a-real-one",
    "secret-example-key-for-test-and-dummy-use",
    "this-is-a-password-of-32-characters",
    "<replace with 32 random bytes please>",
    " 8f3kQ0z7LrT5vN2yW9xB4mC6dH1jP8sGaE",
  ];
  for (const text of weak) {
    it(`refuses ${JSON.stringify(text)} and does not quote it`, () => {
      const answer = keyWeakness(text);
      expect(answer).toBeTypeOf("string");
      if (text.length > 0) expect(answer).not.toContain(text);
    });
  }

  it("accepts random text in base64, base64url and hex", () => {
    for (let round = 0; round < 200; round += 1) {
      for (const encoding of ["base64", "base64url", "hex"] as const) {
        expect(keyWeakness(randomBytes(32).toString(encoding))).toBeUndefined();
      }
    }
  });

  it("accepts a long passphrase", () => {
    expect(keyWeakness("oxide marble tangent seven quietly harbour")).toBeUndefined();
  });
});
