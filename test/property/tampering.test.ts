import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { utf8 } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { plainMacKey } from "../../src/core/encrypt/commit.ts";
import { deriveKey } from "../../src/core/encrypt/derive.ts";
import { BLOB_OVERHEAD_BYTES, saltOf } from "../../src/core/encrypt/sealed-blob.ts";
import { errorCodeOf } from "../../src/core/errors.ts";
import type { ChunkId, LeafIndex, SessionId } from "../../src/core/ids.ts";
import { openChunk, type OpenRequest } from "../../src/core/kernel.ts";
import type { ManifestChunk } from "../../src/core/manifest/chunk-line.ts";
import { ChunkRunsVerifier, checkChunkRun } from "../../src/core/manifest/chunk-run.ts";
import { ChunksFileVerifier } from "../../src/core/manifest/chunks-file.ts";
import { signManifest } from "../../src/core/manifest/sign.ts";
import type { Manifest } from "../../src/core/manifest/manifest.ts";
import { signCheckpoint } from "../../src/core/merkle/checkpoint.ts";
import { encodeLeaf } from "../../src/core/merkle/leaf.ts";
import { consistencyProofToJson, inclusionProofToJson } from "../../src/core/merkle/proof-json.ts";
import { formatTlogProof } from "../../src/core/merkle/tlog-proof.ts";
import { proveConsistency, proveInclusion } from "../../src/pipeline/prove.ts";
import { headOfCheckpoint, verifyJsonProof, verifyTextProof } from "../../src/pipeline/verify-proof.ts";
import {
  hashingBlobCheck,
  openingBlobCheck,
  type SessionChecks,
  type SessionVerdict,
  verifySession,
} from "../../src/pipeline/verify-session.ts";
import {
  folderWith,
  KEY_RING,
  kernelHere,
  NEVER,
  PINNED_KEY,
  type RecordedSession,
  recordSession,
  SIGNING_KEY,
  samplePayload,
} from "../support/recorded-session.ts";

const pinnedKeys = [PINNED_KEY];
const stranger = generateKeyPairSync("ed25519").privateKey;
/** Every bit alone, and all of them. */
const FLIPS = [1, 2, 4, 8, 16, 32, 64, 128, 255];
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1");

let session: RecordedSession;
let other: RecordedSession;
beforeAll(async () => {
  session = await recordSession([0, 1, 2, 3].map((index) => samplePayload(index, 90 + index)));
  other = await recordSession(
    [0, 1, 2, 3].map((index) => samplePayload(index, 90 + index)),
    { id: "sess-2", seed: 2 },
  );
});

function fileOf({ files }: RecordedSession, name: string): Uint8Array {
  const bytes = files.get(name);
  if (bytes === undefined) throw new Error(`the session has a file ${name}`);
  return bytes;
}

/** The verdict on the session's files with some replaced, and with its blobs. */
function verify(
  changes: Readonly<Record<string, Uint8Array | undefined>> = {},
  blobs: readonly (Uint8Array | undefined)[] = session.blobs,
): Promise<SessionVerdict> {
  const manifest = changes[session.names.manifest] ?? fileOf(session, session.names.manifest);
  return verifySession(manifest, folderWith(session.files, changes), {
    pinnedKeys,
    checkBlob: hashingBlobCheck(async ({ index }) => blobs[index]),
  });
}

function flipped(bytes: Uint8Array, at: number, bits: number): Uint8Array {
  const changed = Uint8Array.from(bytes);
  changed[at] = (changed[at] ?? 0) ^ bits;
  return changed;
}

/** Positions and changes that pass; the list is what a failure shows. */
async function acceptedFlips(
  bytes: Uint8Array,
  accepts: (changed: Uint8Array) => boolean | Promise<boolean>,
): Promise<readonly string[]> {
  const accepted: string[] = [];
  for (let at = 0; at < bytes.byteLength; at++) {
    for (const bits of FLIPS) {
      if (await accepts(flipped(bytes, at, bits))) accepted.push(`byte ${at} xor ${bits}`);
    }
  }
  return accepted;
}

test("the untouched session is accepted, hashed and opened", async () => {
  expect(await verify()).toEqual(expect.objectContaining({ ok: true }));
  const opened = await verifySession(fileOf(session, session.names.manifest), folderWith(session.files), {
    pinnedKeys,
    checkBlob: openingBlobCheck(async ({ index }) => session.blobs[index], {
      threads: kernelHere,
      keyRing: KEY_RING,
      session: session.record,
      signal: NEVER,
    }),
  });
  const blobBytes = session.blobs.reduce((total, blob) => total + blob.byteLength, 0);
  expect(opened).toEqual({
    ok: true,
    verified: expect.objectContaining({ chunks: 4, blobBytes }) as unknown,
  });
});

describe("every single-byte change is refused, on a small session", () => {
  test.each(["manifest", "checkpoint"] as const)("%s", async (file) => {
    const name = session.names[file];
    const accepts = async (changed: Uint8Array): Promise<boolean> => (await verify({ [name]: changed })).ok;
    expect(await acceptedFlips(fileOf(session, name), accepts)).toEqual([]);
  });

  test("chunks", async () => {
    const manifest = JSON.parse(decoded(fileOf(session, session.names.manifest))) as Manifest;
    // The part of verifySession that looks at this file, without two signatures for each of 20 000 changes.
    const accepts = (changed: Uint8Array): boolean => {
      try {
        const verifier = new ChunksFileVerifier(manifest);
        verifier.add(changed);
        verifier.finish();
        return true;
      } catch {
        return false;
      }
    };
    // The same by runs of lines, as threads check them.
    const acceptsRuns = (changed: Uint8Array): boolean => {
      try {
        const verifier = new ChunkRunsVerifier(manifest);
        const { session_id: sessionId } = manifest.session_metadata;
        const request = { sessionId: sessionId as SessionId, hashAlgorithm: manifest.merkle.hash_algorithm };
        verifier.addBytes(changed);
        verifier.addRun(checkChunkRun({ ...request, lines: Uint8Array.from(changed) }));
        verifier.finish();
        return true;
      } catch {
        return false;
      }
    };
    const bytes = fileOf(session, session.names.chunks);
    expect([accepts(bytes), acceptsRuns(bytes)]).toEqual([true, true]);
    expect(await acceptedFlips(bytes, (changed) => accepts(changed) || acceptsRuns(changed))).toEqual([]);
  });

  test("anchor file, but for what only the chain can say", async () => {
    const bytes = fileOf(session, session.names.anchor);
    const accepts = async (changed: Uint8Array): Promise<boolean> =>
      (await verify({ [session.names.anchor]: changed })).ok;
    const content = text(bytes);
    const free = ["anc-1", "2026-01-02T03:04:05.678Z", "812", "0xfeed"].map((value) => {
      const from = content.indexOf(value);
      return { from, to: from + value.length };
    });
    const elsewhere = (await acceptedFlips(bytes, accepts)).filter((found) => {
      const at = Number(found.split(" ")[1]);
      return !free.some(({ from, to }) => at >= from && at < to);
    });
    expect(elsewhere).toEqual([]);
  });

  test("every blob: salt, nonce, ciphertext and tag, by its digest", async () => {
    for (const [index, blob] of session.blobs.entries()) {
      const chunk = session.chunks[index] as ManifestChunk;
      const accepts = (changed: Uint8Array): Promise<boolean> =>
        hashingBlobCheck(async () => changed)(chunk).then(
          () => true,
          () => false,
        );
      expect(await accepts(blob)).toBe(true);
      expect(await acceptedFlips(blob, accepts)).toEqual([]);
    }
  });

  test("every blob also without its digest: by key commitment and tag alone", async () => {
    for (const [index, blob] of session.blobs.entries()) {
      const accepts = (changed: Uint8Array): boolean =>
        opens(index, { blob: changed, blobBlake3: blake3(changed) });
      expect(await acceptedFlips(blob, accepts)).toEqual([]);
    }
  });

  test("an inclusion proof, in both forms", async () => {
    const { json, tlog } = await inclusionOf(2);
    const heads = [await headOf()];
    expect(await acceptedFlips(utf8(json), (changed) => verifyJsonProof(text(changed), heads).ok)).toEqual(
      [],
    );
    expect(
      await acceptedFlips(utf8(tlog), (changed) => verifyTextProof(decoded(changed), pinnedKeys).ok),
    ).toEqual([]);
  });

  test("a consistency proof", async () => {
    const proof = await proveConsistency(session.stores, session.id, 3);
    const { sessionId } = await headOf();
    const head1 = { sessionId, hashAlgorithm: proof.hashAlgorithm, size: proof.size1, root: proof.root1 };
    const heads = [head1, await headOf()];
    const json = consistencyProofToJson(proof);
    expect(verifyJsonProof(json, heads).ok).toBe(true);
    expect(await acceptedFlips(utf8(json), (changed) => verifyJsonProof(text(changed), heads).ok)).toEqual(
      [],
    );
  });
});

function decoded(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return text(bytes);
  }
}

async function headOf() {
  const verdict = headOfCheckpoint(decoded(fileOf(session, session.names.checkpoint)), pinnedKeys);
  if (!verdict.ok) throw new Error("the session's checkpoint is sound");
  return verdict.head;
}

async function inclusionOf(index: number): Promise<{ readonly json: string; readonly tlog: string }> {
  const proof = await proveInclusion(session.stores, session.id, index);
  const chunk = session.chunks[index];
  const note = session.record.checkpoint?.note;
  if (chunk === undefined || note === undefined)
    throw new Error("the session has this chunk, and a checkpoint");
  const leaf = encodeLeaf({ ...chunk, originalLength: chunk.originalBytes, storedLength: chunk.storedBytes });
  return { json: inclusionProofToJson(proof), tlog: formatTlogProof(proof, note, leaf) };
}

/** What a reader with the session's secret does to open chunk `index`. */
function openRequest(index: number): OpenRequest {
  const chunk = session.chunks[index];
  const blob = session.blobs[index];
  if (chunk === undefined || blob === undefined) throw new Error("the session has this chunk");
  return {
    ...chunk,
    originalLength: chunk.originalBytes,
    blob,
    key: derivedKey(blob),
    plainMacKey: plainMacKey(session.secret),
  };
}

const derived = new Map<string, Uint8Array>();

/** All blobs of the session have one salt: one derivation, not one a test case. */
function derivedKey(blob: Uint8Array): Uint8Array {
  const salt = saltOf(blob);
  const known = derived.get(text(salt)) ?? deriveKey(session.secret, salt);
  derived.set(text(salt), known);
  return known;
}

function opens(index: number, change: Partial<OpenRequest>): boolean {
  try {
    openChunk({ ...openRequest(index), ...change });
    return true;
  } catch (thrown) {
    if (errorCodeOf(thrown) === "INTERNAL") throw thrown;
    return false;
  }
}

describe("chunks in another place are refused", () => {
  test("a blob opens under its own index, session, chunk id, codec, length and key version, and no other", () => {
    expect(opens(0, {})).toBe(true);
    const moves: Partial<OpenRequest>[] = [
      { index: 1 as LeafIndex },
      { sessionId: "sess-2" as SessionId },
      { chunkId: "sess-1-chunk-000001" as ChunkId },
      { codec: "none" },
      { codec: "lz4" },
      { originalLength: 91 },
      { keyVersion: 2 },
    ];
    expect(moves.filter((move) => opens(0, move))).toEqual([]);
  });

  test("two blobs that change places are refused at the first", async () => {
    const [first, second] = session.blobs;
    expect(
      await verify({}, session.blobs.with(0, second as Uint8Array).with(1, first as Uint8Array)),
    ).toEqual(refusal("blob", "chunk 0"));
  });

  test("the blob of another session, and one that is missing", async () => {
    expect(await verify({}, session.blobs.with(2, other.blobs[2] as Uint8Array))).toEqual(
      refusal("blob", "chunk 2"),
    );
    const missing: readonly (Uint8Array | undefined)[] = [...session.blobs.slice(0, 3), undefined];
    expect(await verify({}, missing)).toEqual(refusal("blob", "chunk 3"));
  });

  test("lines that change places, are left out or doubled are refused with the line", async () => {
    const lines = text(fileOf(session, session.names.chunks)).split(/(?<=\n)/);
    const [a = "", b = "", c = "", d = ""] = lines;
    const withLines = (...kept: string[]) => verify({ [session.names.chunks]: utf8(kept.join("")) });
    expect(await withLines(b, a, c, d)).toEqual(refusal("chunks file", "line 1"));
    expect(await withLines(a, c, d)).toEqual(refusal("chunks file", "line 2"));
    expect(await withLines(a, b, b, c, d)).toEqual(refusal("chunks file", "line 3"));
    expect(await withLines(a, b, c)).toEqual(refusal("chunks file"));
    expect(await withLines(a, b, c.replace('"codec":"brotli"', '"codec":"none"'), d)).toEqual(
      refusal("chunks file", "line 3"),
    );
  });

  test("a line that nothing signed binds to the leaf, such as its level, is bound by the file's digest", async () => {
    const changed = text(fileOf(session, session.names.chunks)).replace('"level":3', '"level":4');
    expect(await verify({ [session.names.chunks]: utf8(changed) })).toEqual(refusal("chunks file"));
  });

  test("the files of another session of the same signer are refused", async () => {
    for (const file of ["chunks", "checkpoint", "anchor"] as const) {
      const verdict = await verify({ [session.names[file]]: fileOf(other, other.names[file]) });
      expect(verdict.ok).toBe(false);
    }
  });
});

function refusal(part: string, place?: string): unknown {
  const where = place === undefined ? {} : { place };
  return { ok: false, refusal: expect.objectContaining({ part, ...where }) as unknown };
}

describe("truncated and extended files are refused", () => {
  test.each(["manifest", "chunks", "checkpoint", "anchor"] as const)(
    "every prefix of the %s",
    async (file) => {
      const name = session.names[file];
      const bytes = fileOf(session, name);
      for (let length = 0; length < bytes.byteLength; length++) {
        expect((await verify({ [name]: bytes.subarray(0, length) })).ok).toBe(false);
      }
    },
  );

  test.each(["manifest", "chunks", "checkpoint", "anchor"] as const)(
    "%s with something behind it",
    async (file) => {
      const name = session.names[file];
      const bytes = fileOf(session, name);
      const additions = ["\n", " ", "\0", "{}", "\u2014 x AAAA\n\n", text(bytes)];
      for (const addition of additions) {
        expect((await verify({ [name]: Buffer.concat([bytes, utf8(addition)]) })).ok).toBe(false);
      }
    },
  );

  test.each(["chunks", "checkpoint"] as const)("without the %s nothing is verified", async (file) => {
    expect((await verify({ [session.names[file]]: undefined })).ok).toBe(false);
  });

  test("every prefix of a blob and of a proof", async () => {
    const blob = session.blobs[1] as Uint8Array;
    for (let length = 0; length < blob.byteLength; length++) {
      const cut = blob.slice(0, length);
      expect((await verify({}, session.blobs.with(1, cut))).ok).toBe(false);
      if (length >= BLOB_OVERHEAD_BYTES) expect(opens(1, { blob: cut, blobBlake3: blake3(cut) })).toBe(false);
    }
    const { json, tlog } = await inclusionOf(1);
    const heads = [await headOf()];
    for (let length = 0; length < json.length; length++) {
      expect(verifyJsonProof(json.slice(0, length), heads).ok).toBe(false);
    }
    for (let length = 0; length < tlog.length; length++) {
      expect(verifyTextProof(tlog.slice(0, length), pinnedKeys).ok).toBe(false);
    }
  });
});

describe("what another key has signed is refused", () => {
  test("the whole session, recorded again and signed by a stranger", async () => {
    const resigned = await recordSession(session.payloads, { signingKey: stranger });
    const verdict = await verifySession(
      fileOf(resigned, resigned.names.manifest),
      folderWith(resigned.files),
      { pinnedKeys },
    );
    expect(verdict).toEqual({
      ok: false,
      refusal: expect.objectContaining({ part: "manifest", code: "SIGNATURE_INVALID" }) as unknown,
    });
  });

  test("the manifest alone, and a manifest that names the pinned key beside a stranger's signature", async () => {
    const { signature, ...unsigned } = JSON.parse(
      Buffer.from(fileOf(session, session.names.manifest)).toString("utf8"),
    ) as Manifest;
    const resigned = signManifest(unsigned, stranger);
    expect(await verify({ [session.names.manifest]: utf8(resigned) })).toEqual(refusal("manifest"));
    const strangers = (JSON.parse(resigned) as Manifest).signature;
    const masked = resigned
      .replace(strangers.key_id, signature.key_id)
      .replace(strangers.public_key, signature.public_key);
    expect(await verify({ [session.names.manifest]: utf8(masked) })).toEqual({
      ok: false,
      refusal: expect.objectContaining({
        reason: expect.stringContaining("signature-invalid") as unknown,
      }) as unknown,
    });
  });

  test("the checkpoint alone; one of another size or session that the pinned key did sign", async () => {
    const head = await headOf();
    const name = session.names.checkpoint;
    const smaller = await proveConsistency(session.stores, session.id, 3);
    const notes = [
      signCheckpoint(head, stranger),
      signCheckpoint({ ...head, size: smaller.size1, root: smaller.root1 }, SIGNING_KEY),
      signCheckpoint({ ...head, sessionId: "sess-2" as SessionId }, SIGNING_KEY),
    ];
    for (const note of notes) expect(await verify({ [name]: utf8(note) })).toEqual(refusal("checkpoint"));
  });

  test("a tlog-proof whose checkpoint a stranger signed", async () => {
    const { tlog } = await inclusionOf(0);
    const own = session.record.checkpoint?.note ?? "";
    const strange = signCheckpoint(await headOf(), stranger);
    expect(verifyTextProof(tlog, pinnedKeys).ok).toBe(true);
    expect(verifyTextProof(tlog.replace(own, strange), pinnedKeys)).toEqual({
      ok: false,
      reason: "no-signature-of-a-pinned-key",
    });
  });

  test("without a pinned key nothing is believed", async () => {
    const files = folderWith(session.files);
    const verdict = await verifySession(fileOf(session, session.names.manifest), files, { pinnedKeys: [] });
    expect(verdict).toEqual(refusal("manifest"));
  });
});

describe("a proof of a size that no pinned key has signed", () => {
  test("is refused, although it leads to its own root", async () => {
    const proof = await proveInclusion(session.stores, session.id, 1, 3);
    expect(verifyJsonProof(inclusionProofToJson(proof), [await headOf()])).toEqual({
      ok: false,
      reason: "no-trusted-head-of-this-size",
    });
  });

  test("also with the signed root under another size", async () => {
    const { json } = await inclusionOf(0);
    for (const size of [2, 3, 5, 8]) {
      const claimed = json.replace('"tree_size":4', `"tree_size":${size}`);
      expect(verifyJsonProof(claimed, [await headOf()])).toEqual({
        ok: false,
        reason: "no-trusted-head-of-this-size",
      });
    }
  });

  test("and the leaf or index that the caller knows must be the one that is shown", async () => {
    const { json, tlog } = await inclusionOf(1);
    const heads = [await headOf()];
    const leafHash = session.chunks[0]?.leafHash as Uint8Array;
    expect(verifyJsonProof(json, heads, { index: 1 }).ok).toBe(true);
    expect(verifyJsonProof(json, heads, { index: 0 })).toEqual({
      ok: false,
      reason: "not-the-expected-index",
    });
    expect(verifyTextProof(tlog, pinnedKeys, { leafHash })).toEqual({
      ok: false,
      reason: "not-the-expected-leaf",
    });
  });
});

test("larger sessions: any byte of any file, changed, removed or added, is refused", async () => {
  const large = await recordSession(
    Array.from({ length: 270 }, (_, index) => samplePayload(index, 1 + (index % 40))),
    { id: "large", seed: 3, hashAlgorithm: "sha256" },
  );
  const { names, files } = large;
  const inThreads: SessionChecks = { pinnedKeys, checkLines: async (request) => checkChunkRun(request) };
  const verdictOn = async (name: string, changed: Uint8Array): Promise<SessionVerdict> => {
    const manifest = name === names.manifest ? changed : fileOf(large, names.manifest);
    const folder = folderWith(files, { [name]: changed });
    const verdict = await verifySession(manifest, folder, { pinnedKeys });
    // Checked by runs of lines the verdict is the same, place and reason included.
    expect(await verifySession(manifest, folder, inThreads)).toEqual(verdict);
    return verdict;
  };
  expect((await verdictOn(names.chunks, fileOf(large, names.chunks))).ok).toBe(true);
  for (const cut of [0, 1, 699, 700, 701]) {
    expect((await verdictOn(names.chunks, fileOf(large, names.chunks).subarray(0, cut))).ok).toBe(false);
    expect((await verdictOn(names.chunks, fileOf(large, names.chunks).subarray(0, -1 - cut))).ok).toBe(false);
  }
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(names.manifest, names.chunks, names.checkpoint),
      fc.nat(),
      fc.integer({ min: 1, max: 255 }),
      fc.constantFrom("change", "remove", "add"),
      async (name, place, bits, how) => {
        const bytes = fileOf(large, name);
        const at = place % bytes.byteLength;
        const cut = how === "add" ? at : at + 1;
        const between = how === "remove" ? [] : [((bytes[at] ?? 0) ^ bits) & 0xff];
        const changed = Buffer.concat([bytes.subarray(0, at), Uint8Array.from(between), bytes.subarray(cut)]);
        fc.pre(!changed.equals(bytes));
        expect((await verdictOn(name, changed)).ok).toBe(false);
      },
    ),
    { numRuns: 300 },
  );
});
