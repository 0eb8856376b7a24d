import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { fromHex, toHex } from "../../src/core/bytes.ts";
import type { CodecName } from "../../src/core/compress/compress.ts";
import { blake3 } from "../../src/core/digest.ts";
import { type ChunkIdentity, chunkAad } from "../../src/core/encrypt/aad.ts";
import { keyCommit, plainMac, plainMacKey } from "../../src/core/encrypt/commit.ts";
import { deriveKey } from "../../src/core/encrypt/derive.ts";
import { kekFromText, singleKeyRing } from "../../src/core/encrypt/kek.ts";
import { openLegacyBlob } from "../../src/core/encrypt/legacy.ts";
import { open, saltOf, seal } from "../../src/core/encrypt/sealed-blob.ts";
import { unwrapSecret, wrapSecret } from "../../src/core/encrypt/session-secret.ts";
import { chunkId, leafIndex, sessionId } from "../../src/core/ids.ts";

interface ChunkVector {
  readonly session_id: string;
  readonly index: number;
  readonly chunk_id: string;
  readonly codec: CodecName;
  readonly original_length: number;
  readonly key_version: number;
  readonly plaintext: string;
  readonly aad: string;
  readonly blob: string;
}

interface EncryptVectors {
  readonly session_secret: string;
  readonly salt: string;
  readonly nonce: string;
  readonly key: string;
  readonly chunks: readonly ChunkVector[];
  readonly key_commit: string;
  readonly plain_mac_key: string;
  readonly plain_mac: { readonly plaintext: string; readonly blake3: string; readonly mac: string };
  readonly wrapped_secret: {
    readonly kek_text: string;
    readonly kek: string;
    readonly session_id: string;
    readonly key_version: number;
    readonly nonce: string;
    readonly wrapped: string;
  };
  readonly legacy: { readonly encryption_key: string; readonly plaintext: string; readonly blob: string };
}

const vectors = JSON.parse(readFileSync(new URL("encrypt.json", import.meta.url), "utf8")) as EncryptVectors;
const bytesOf = (hex: string): Uint8Array => fromHex(hex) as Uint8Array;
const key = bytesOf(vectors.key);
const salt = bytesOf(vectors.salt);
const nonce = bytesOf(vectors.nonce);

function identityOf(chunk: ChunkVector): ChunkIdentity {
  return {
    sessionId: sessionId(chunk.session_id),
    index: leafIndex(chunk.index),
    chunkId: chunkId(chunk.chunk_id),
    codec: chunk.codec,
    originalLength: chunk.original_length,
    keyVersion: chunk.key_version,
  };
}

describe("the encryption of contract §7, held against another implementation", () => {
  it("derives the same key", () => {
    expect(toHex(deriveKey(vectors.session_secret, salt))).toBe(vectors.key);
  });

  for (const [number, chunk] of vectors.chunks.entries()) {
    it(`chunk ${number}: AAD of format 1 has the same bytes`, () => {
      expect(toHex(chunkAad(identityOf(chunk)))).toBe(chunk.aad);
    });

    it(`chunk ${number}: seals to the same blob, and opens it`, () => {
      const plaintext = bytesOf(chunk.plaintext);
      const aad = bytesOf(chunk.aad);
      expect(toHex(seal({ key, salt, nonce, aad, plaintext }))).toBe(chunk.blob);
      expect(toHex(open({ key, aad, blob: bytesOf(chunk.blob) }))).toBe(chunk.plaintext);
      expect(toHex(saltOf(bytesOf(chunk.blob)))).toBe(vectors.salt);
    });
  }

  it("commits to the same key and content", () => {
    expect(toHex(keyCommit(key, salt))).toBe(vectors.key_commit);
    expect(toHex(plainMacKey(vectors.session_secret))).toBe(vectors.plain_mac_key);
    const digest = blake3(bytesOf(vectors.plain_mac.plaintext));
    expect(toHex(digest)).toBe(vectors.plain_mac.blake3);
    expect(toHex(plainMac(bytesOf(vectors.plain_mac_key), digest))).toBe(vectors.plain_mac.mac);
  });

  it("wraps and unwraps a session secret the same way", () => {
    const vector = vectors.wrapped_secret;
    const kek = singleKeyRing(vector.kek_text).kek(1);
    expect(toHex(kek)).toBe(vector.kek);
    expect(toHex(kekFromText(vector.kek_text))).toBe(vector.kek);
    const place = { kek, sessionId: sessionId(vector.session_id), keyVersion: vector.key_version };
    expect(toHex(wrapSecret(vectors.session_secret, place, () => bytesOf(vector.nonce)))).toBe(vector.wrapped);
    expect(unwrapSecret(bytesOf(vector.wrapped), place)).toBe(vectors.session_secret);
  });

  it("opens a blob of the older service, and not with another key", () => {
    const { encryption_key: text, blob, plaintext } = vectors.legacy;
    expect(toHex(openLegacyBlob(text, bytesOf(blob)))).toBe(plaintext);
    expect(() => openLegacyBlob(`${text}x`, bytesOf(blob))).toThrow(
      expect.objectContaining({ code: "BLOB_AUTHENTICATION_FAILED" }),
    );
  });
});
