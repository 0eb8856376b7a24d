import { createPrivateKey } from "node:crypto";
import { readFileSync } from "node:fs";
import canonicalize from "canonicalize";
import { describe, expect, test } from "vitest";
import { toHex, utf8 } from "../../src/core/bytes.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { ManifestAccumulator } from "../../src/core/manifest/accumulator.ts";
import { chunkLine, type ManifestChunk, parseChunkLine } from "../../src/core/manifest/chunk-line.ts";
import { ChunksFileVerifier } from "../../src/core/manifest/chunks-file.ts";
import {
  composeManifest,
  type Manifest,
  type SealedSession,
  type UnsignedManifest,
} from "../../src/core/manifest/manifest.ts";
import { keyIdOf, parsePublicKey, publicKeyForms } from "../../src/core/manifest/public-key.ts";
import { signManifest, verifyManifest } from "../../src/core/manifest/sign.ts";

interface ValidVector {
  readonly name: string;
  readonly chunks: readonly Readonly<Record<string, string | number>>[];
  readonly unsigned: UnsignedManifest;
  readonly chunks_file: string;
  readonly manifest: string;
}

interface Vectors {
  readonly private_key_pkcs8: string;
  readonly pinned: Readonly<Record<"key_id" | "hex" | "base64" | "pem" | "vkey", string>>;
  readonly valid: readonly ValidVector[];
  readonly must_fail: {
    readonly manifests: readonly {
      readonly name: string;
      readonly reason: string;
      readonly base64: string;
    }[];
    readonly chunk_lines: readonly { readonly name: string; readonly line: string }[];
    readonly chunks_files: readonly { readonly name: string; readonly code: string; readonly file: string }[];
  };
}

// Not an import: as a module, the `__proto__` key of one vector would become a prototype.
const vectors = JSON.parse(
  readFileSync(new URL("../vectors/manifest.json", import.meta.url), "utf8"),
) as Vectors;
const privateKey = createPrivateKey({
  key: Buffer.from(vectors.private_key_pkcs8, "base64"),
  format: "der",
  type: "pkcs8",
});
const publicKey = Uint8Array.from(Buffer.from(vectors.pinned.hex, "hex"));

function linesOf(file: string): readonly string[] {
  return file.split(/(?<=\n)/);
}

function accumulate({ unsigned, chunks_file }: ValidVector): ManifestAccumulator {
  const { session_metadata, merkle } = unsigned;
  const accumulator = new ManifestAccumulator(
    session_metadata.session_id as SessionId,
    merkle.hash_algorithm,
  );
  for (const line of linesOf(chunks_file)) accumulator.add(parseChunkLine(line));
  return accumulator;
}

function sealedSessionOf(vector: ValidVector): SealedSession {
  const { session_metadata: session, merkle, manifest_type, generated_at } = vector.unsigned;
  return {
    id: session.session_id as SessionId,
    hashAlgorithm: merkle.hash_algorithm,
    treeSize: merkle.tree_size as SealedSession["treeSize"],
    root: Buffer.from(merkle.root_hash, "hex") as Uint8Array as SealedSession["root"],
    sealedAt: generated_at,
    manifestType: manifest_type,
    ownerAddress: session.owner_address,
    startedAt: session.started_at,
    endedAt: session.ended_at,
    durationSeconds: session.duration_seconds,
    metadata: session.metadata,
  };
}

function snakeCase(chunk: ManifestChunk): unknown {
  return {
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
    encryption_format: chunk.encryptionFormat,
    key_version: chunk.keyVersion,
    ...(chunk.recordedAt === undefined ? {} : { recorded_at: chunk.recordedAt }),
  };
}

function readWhole(manifest: Manifest, file: string): void {
  const verifier = new ChunksFileVerifier(manifest);
  verifier.add(utf8(file));
  verifier.finish();
}

describe.each(vectors.valid)("the vector: $name", (vector) => {
  test("has chunk lines that are read to the vector's fields and written again to the same characters", () => {
    const chunks = linesOf(vector.chunks_file).map(parseChunkLine);
    expect(chunks.map(snakeCase)).toEqual(vector.chunks);
    expect(chunks.map(chunkLine).join("")).toBe(vector.chunks_file);
    expect(chunks.map((chunk) => `${canonicalize(snakeCase(chunk))}\n`).join("")).toBe(vector.chunks_file);
  });

  test("is composed from the session and the chunks", () => {
    const composed = composeManifest(sealedSessionOf(vector), accumulate(vector).summary());
    expect(canonicalize(composed)).toBe(canonicalize(vector.unsigned));
  });

  test("is signed to the same text", () => {
    expect(signManifest(vector.unsigned, privateKey)).toBe(vector.manifest);
  });

  test("is verified with the pinned key, as bytes and as text, together with its chunks file", () => {
    const verdict = verifyManifest(utf8(vector.manifest), [new Uint8Array(32), publicKey]);
    expect(verdict).toEqual({ ok: true, manifest: JSON.parse(vector.manifest) as Manifest });
    expect(verifyManifest(vector.manifest, [publicKey])).toEqual(verdict);
    expect(() => readWhole(JSON.parse(vector.manifest) as Manifest, vector.chunks_file)).not.toThrow();
  });

  test("is refused without pinned keys", () => {
    expect(verifyManifest(vector.manifest, [])).toMatchObject({ ok: false, reason: "key-not-pinned" });
  });
});

test.each(vectors.must_fail.manifests)("a manifest is refused as $reason: $name", ({ base64, reason }) => {
  expect(verifyManifest(Buffer.from(base64, "base64"), [publicKey])).toMatchObject({ ok: false, reason });
});

test.each(vectors.must_fail.chunk_lines)("a chunk line is refused: $name", ({ line }) => {
  expect(() => parseChunkLine(line)).toThrow(expect.objectContaining({ code: "MANIFEST_INVALID" }));
});

test.each(vectors.must_fail.chunks_files)("a chunks file is refused as $code: $name", ({ file, code }) => {
  const manifest = JSON.parse((vectors.valid[0] as ValidVector).manifest) as Manifest;
  expect(() => readWhole(manifest, file)).toThrow(expect.objectContaining({ code }));
});

describe("a public key", () => {
  test.each(["hex", "base64", "pem", "vkey"] as const)("is read from its %s form", (form) => {
    expect(parsePublicKey(`${vectors.pinned[form]}\n`)).toEqual(publicKey);
  });

  test("is written in the vector's forms and has the vector's key id", () => {
    const { base64, pem, vkey, key_id } = vectors.pinned;
    expect(publicKeyForms(publicKey)).toEqual({ base64, pem, vkey });
    expect(keyIdOf(publicKey)).toBe(key_id);
  });

  test.each([
    ["no text", ""],
    ["31 bytes of hex", "00".repeat(31)],
    ["33 bytes of base64", Buffer.alloc(33).toString("base64")],
    ["base64 without padding", vectors.pinned.base64.slice(0, -1)],
    ["a private key", privateKey.export({ format: "pem", type: "pkcs8" })],
    ["a damaged PEM", vectors.pinned.pem.replace("MCow", "MCox")],
    ["two PEMs", vectors.pinned.pem.repeat(2)],
    ["a vkey with another key id", vectors.pinned.vkey.replace(/\+[0-9a-f]{8}\+/, "+00000000+")],
    ["a text that is too long", `${vectors.pinned.hex}${" ".repeat(2_000)}`],
  ])("is not read from %s", (_, text) => {
    expect(parsePublicKey(text)).toBeUndefined();
  });
});
