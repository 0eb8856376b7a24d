import { generateKeyPairSync } from "node:crypto";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { asBuffer, fromHex, utf8 } from "../../src/core/bytes.ts";
import type { NodeHash, SessionId, TreeSize } from "../../src/core/ids.ts";
import { ed25519PublicKey, signCheckpoint } from "../../src/core/merkle/checkpoint.ts";
import type { HashAlgorithm } from "../../src/core/merkle/hash.ts";
import { encodeLeaf } from "../../src/core/merkle/leaf.ts";
import { consistencyProofToJson, inclusionProofToJson } from "../../src/core/merkle/proof-json.ts";
import { formatTlogProof } from "../../src/core/merkle/tlog-proof.ts";
import { proveConsistency, proveInclusion } from "../../src/pipeline/prove.ts";
import { headOfCheckpoint, verifyJsonProof, verifyTextProof } from "../../src/pipeline/verify-proof.ts";
import { hashingBlobCheck, verifySession } from "../../src/pipeline/verify-session.ts";
import { type PythonCall, type PythonVerifier, pythonVerifier } from "../support/python-verifier.ts";
import {
  folderWith,
  PINNED_KEY,
  type RecordedSession,
  recordSession,
  SIGNING_KEY,
  samplePayload,
} from "../support/recorded-session.ts";
import manifestVectors from "../vectors/manifest.json" with { type: "json" };
import proofVectors from "../vectors/merkle-proof.json" with { type: "json" };

const KEY = asBuffer(PINNED_KEY).toString("base64");
const found = await pythonVerifier();
const python: PythonVerifier = typeof found === "function" ? found : () => [];
const folder = mkdtempSync(join(tmpdir(), "python-verifier-"));
let session: RecordedSession;
let sealedPath: string;
/** Of two chunks: what every byte is changed of. */
let small: RecordedSession;
let smallPath: string;

beforeAll(async () => {
  session = await recordSession(
    Array.from({ length: 9 }, (_, index) => samplePayload(index, 90 + 40 * index)),
    { id: "sess-py" },
  );
  sealedPath = writeSession("sound", session);
  small = await recordSession([samplePayload(0, 90), samplePayload(1, 300)], { id: "sess-small", seed: 6 });
  smallPath = writeSession("small", small);
});
beforeEach((ctx) => {
  if (typeof found !== "function") ctx.skip(true, `needs the Python verifier: ${found.missing}`);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The session's files, blobs and secret in a folder of their own; returns the manifest's path. */
function writeSession(name: string, recorded: RecordedSession): string {
  const place = join(folder, name);
  mkdirSync(join(place, "blobs"), { recursive: true });
  for (const [file, bytes] of recorded.files) writeFileSync(join(place, file), bytes);
  for (const [index, blob] of recorded.blobs.entries())
    writeFileSync(join(place, "blobs", `${index}.blob`), blob);
  writeFileSync(join(place, "secret"), recorded.secret);
  return join(place, recorded.names.manifest);
}

function sessionCall(manifest: string, withBlobs = false): PythonCall {
  const place = join(manifest, "..");
  const blobs = withBlobs ? ["--blobs", join(place, "blobs"), "--secret", join(place, "secret")] : [];
  return { argv: ["session", manifest, "--key", KEY, ...blobs] };
}

function verdicts(calls: readonly PythonCall[]): readonly boolean[] {
  return python(calls).map(({ code, verified }) => {
    expect(verified).toBe(code === 0);
    return verified;
  });
}

describe("the Python verifier, written from docs/formats.md,", () => {
  test("accepts a session of this program, and opens and compares every blob of all four codecs", () => {
    const [result] = python([sessionCall(sealedPath, true)]);
    expect(result).toEqual(
      expect.objectContaining({ code: 0, blobs: { hashed: 9, opened: 9, compared: 9 } }),
    );
  });

  test("accepts SHA-256 trees and larger sessions", async () => {
    const payloads = Array.from({ length: 300 }, (_, index) => samplePayload(index, 1 + (index % 90)));
    const large = await recordSession(payloads, { id: "sess-large", hashAlgorithm: "sha256", seed: 5 });
    const [result] = python([sessionCall(writeSession("large", large), true)]);
    expect(result).toEqual(
      expect.objectContaining({ code: 0, blobs: { hashed: 300, opened: 300, compared: 300 } }),
    );
  });

  test("refuses without the pinned key, and a wrong session secret", () => {
    const other = asBuffer(ed25519PublicKey(generateKeyPairSync("ed25519").publicKey)).toString("base64");
    const wrongSecret = join(folder, "wrong-secret");
    writeFileSync(wrongSecret, Buffer.alloc(32, 1).toString("base64"));
    const blobs = join(sealedPath, "..", "blobs");
    const results = python([
      { argv: ["session", sealedPath, "--key", other] },
      { argv: ["session", sealedPath, "--key", KEY, "--blobs", blobs, "--secret", wrongSecret] },
    ]);
    expect(results.map(({ reason }) => reason)).toEqual([
      "manifest: key not pinned",
      "blob of chunk 0: another key than it commits to",
    ]);
  });

  test.each(["manifest", "chunks", "checkpoint"] as const)("refuses any changed byte of the %s", (file) => {
    const place = join(folder, `bytes-${file}`);
    cpSync(join(smallPath, ".."), place, { recursive: true });
    const manifest = join(place, small.names.manifest);
    const changed = join(place, small.names[file]);
    const calls = Array.from(readFileSync(changed), (_, at): PythonCall => {
      return { ...sessionCall(manifest), file: changed, flip: [at, 1 << (at % 8)] };
    });
    const results = verdicts([sessionCall(manifest), ...calls]);
    expect(results[0]).toBe(true);
    expect(results.flatMap((verified, at) => (verified && at > 0 ? `byte ${at - 1}` : []))).toEqual([]);
  });

  test("refuses any changed byte of a blob", () => {
    const place = join(folder, "bytes-blob");
    cpSync(join(smallPath, ".."), place, { recursive: true });
    const call = sessionCall(join(place, small.names.manifest), true);
    const blob = join(place, "blobs", "1.blob");
    const calls = Array.from(
      readFileSync(blob),
      (_, at): PythonCall => ({ ...call, file: blob, flip: [at, 128] }),
    );
    expect(verdicts(calls)).not.toContain(true);
  });
});

/** Name → which files of the session become what; `undefined` removes one. */
async function tamperings(): Promise<
  Readonly<Record<string, Readonly<Record<string, Uint8Array | undefined>>>>
> {
  const { manifest, chunks, checkpoint, anchor } = session.names;
  const bytesOf = (name: string): Buffer => asBuffer(session.files.get(name) ?? new Uint8Array(0));
  const lines = bytesOf(chunks)
    .toString("latin1")
    .split(/(?<=\n)/);
  const joined = (...kept: readonly (string | undefined)[]): Uint8Array => utf8(kept.join(""));
  const replaced = (name: string, from: string, to: string): Record<string, Uint8Array> => ({
    [name]: asBuffer(Buffer.from(bytesOf(name).toString("utf8").replace(from, to))),
  });
  const resigned = await recordSession(session.payloads, {
    id: session.id,
    signingKey: generateKeyPairSync("ed25519").privateKey,
  });
  const strange = (name: string): Record<string, Uint8Array | undefined> => ({
    [name]: resigned.files.get(name),
  });
  return {
    "manifest cut": { [manifest]: bytesOf(manifest).subarray(0, -1) },
    "manifest with a line feed": { [manifest]: Buffer.concat([bytesOf(manifest), utf8("\n")]) },
    "manifest with a byte order mark": { [manifest]: Buffer.concat([utf8("\ufeff"), bytesOf(manifest)]) },
    "manifest with white space": replaced(manifest, '"merkle":', '"merkle": '),
    "manifest with a repeated name": replaced(manifest, '{"chunks_file"', '{"merkle_root":"","chunks_file"'),
    "manifest with another owner": replaced(manifest, "Zoë", "Zoe"),
    "manifest with another size": replaced(manifest, '"tree_size":9', '"tree_size":8'),
    "manifest of a stranger": strange(manifest),
    "checkpoint of a stranger": strange(checkpoint),
    "everything of a stranger": { ...strange(manifest), ...strange(checkpoint), ...strange(chunks) },
    "checkpoint gone": { [checkpoint]: undefined },
    "checkpoint cut": { [checkpoint]: bytesOf(checkpoint).subarray(0, -1) },
    "checkpoint with a line feed": { [checkpoint]: Buffer.concat([bytesOf(checkpoint), utf8("\n")]) },
    "checkpoint of another size": replaced(checkpoint, "\n9\n", "\n8\n"),
    "checkpoint of an earlier size": {
      [checkpoint]: utf8(
        signCheckpoint(
          {
            sessionId: session.id,
            hashAlgorithm: "blake3",
            size: 8 as TreeSize,
            root: (await proveInclusion(session.stores, session.id, 0, 8)).rootHash,
          },
          SIGNING_KEY,
        ),
      ),
    },
    "chunks file gone": { [chunks]: undefined },
    "chunks file cut in a line": { [chunks]: bytesOf(chunks).subarray(0, -1) },
    "chunks file without its last line": { [chunks]: joined(...lines.slice(0, -1)) },
    "chunks file with a line twice": { [chunks]: joined(...lines, lines.at(-1)) },
    "chunks file with swapped lines": { [chunks]: joined(lines[1], lines[0], ...lines.slice(2)) },
    "chunks file with an empty line": { [chunks]: joined(...lines, "\n") },
    "chunks file with another codec": replaced(chunks, '"codec":"zstd"', '"codec":"lz4"'),
    "chunks file with another level": replaced(chunks, '"level":3', '"level":4'),
    "chunks file with another time": replaced(chunks, "2026-01-02T03:00:00Z", "2026-01-02T03:00:01Z"),
    "chunks file with CR LF": replaced(chunks, "\n", "\r\n"),
    "anchor of another root": replaced(anchor, '"root_hash":"', '"root_hash":"0'),
    "anchor of another size": replaced(anchor, '"tree_size":9', '"tree_size":8'),
    "anchor with a field more": replaced(anchor, '{"', '{"a":1,"'),
    "anchor with white space": replaced(anchor, ":", ": "),
    "anchor cut": { [anchor]: bytesOf(anchor).subarray(0, -1) },
  };
}

describe("a tampered copy is refused by both verifiers:", () => {
  test("files", async () => {
    const cases = Object.entries(await tamperings());
    const calls = cases.map(([name, changes]) => {
      const manifest = writeSession(name, session);
      for (const [file, bytes] of Object.entries(changes)) {
        if (bytes === undefined) rmSync(join(manifest, "..", file));
        else writeFileSync(join(manifest, "..", file), bytes);
      }
      return sessionCall(manifest);
    });
    const byPython = verdicts(calls);
    const byProgram = await Promise.all(
      cases.map(async ([, changes]) => {
        const manifest = changes[session.names.manifest] ?? session.files.get(session.names.manifest);
        const verdict = await verifySession(
          manifest ?? new Uint8Array(0),
          folderWith(session.files, changes),
          {
            pinnedKeys: [PINNED_KEY],
          },
        );
        return verdict.ok;
      }),
    );
    const accepted = cases.flatMap(([name], at) => [
      ...(byPython[at] === false ? [] : [`Python: ${name}`]),
      ...(byProgram[at] === false ? [] : [`program: ${name}`]),
    ]);
    expect(accepted).toEqual([]);
  });

  test("blobs: cut, extended, swapped, missing", async () => {
    const [first = new Uint8Array(0), second = new Uint8Array(0)] = session.blobs;
    const changes: readonly Readonly<Record<number, Uint8Array | undefined>>[] = [
      { 0: first.subarray(0, -1) },
      { 0: Buffer.concat([first, Uint8Array.of(0)]) },
      { 0: second, 1: first },
      { 1: undefined },
      { 1: new Uint8Array(0) },
    ];
    const calls = changes.map((change, at) => {
      const manifest = writeSession(`blobs-${at}`, session);
      for (const [index, blob] of Object.entries(change)) {
        const path = join(manifest, "..", "blobs", `${index}.blob`);
        if (blob === undefined) rmSync(path);
        else writeFileSync(path, blob);
      }
      return sessionCall(manifest, true);
    });
    expect(verdicts(calls)).not.toContain(true);
    for (const change of changes) {
      const verdict = await verifySession(
        session.files.get(session.names.manifest) ?? new Uint8Array(0),
        folderWith(session.files),
        {
          pinnedKeys: [PINNED_KEY],
          checkBlob: hashingBlobCheck(async ({ index }) =>
            Object.hasOwn(change, index) ? change[index] : session.blobs[index],
          ),
        },
      );
      expect(verdict.ok).toBe(false);
    }
  });
});

describe("proofs", () => {
  const proofFile = (name: string, text: string): string => {
    const path = join(folder, name);
    writeFileSync(path, text);
    return path;
  };

  async function proofs() {
    const checkpoint = join(sealedPath, "..", session.names.checkpoint);
    const older = await proveInclusion(session.stores, session.id, 0, 5);
    const olderHead = { sessionId: session.id, hashAlgorithm: older.hashAlgorithm, size: older.treeSize };
    const olderNote = proofFile(
      "older.checkpoint",
      signCheckpoint({ ...olderHead, root: older.rootHash }, SIGNING_KEY),
    );
    const chunk = session.chunks[4];
    if (chunk === undefined) throw new Error("the session has nine chunks");
    const leaf = encodeLeaf({
      ...chunk,
      originalLength: chunk.originalBytes,
      storedLength: chunk.storedBytes,
    });
    const inclusion = await proveInclusion(session.stores, session.id, 4);
    return {
      checkpoint,
      olderNote,
      inclusion: inclusionProofToJson(inclusion),
      consistency: consistencyProofToJson(await proveConsistency(session.stores, session.id, 5)),
      tlog: formatTlogProof(inclusion, readFileSync(checkpoint, "utf8"), leaf),
    };
  }

  test("of all three forms are accepted, against checkpoint or manifest", async () => {
    const { checkpoint, olderNote, inclusion, consistency, tlog } = await proofs();
    const key = ["--key", KEY];
    const results = verdicts([
      { argv: ["proof", proofFile("i.json", inclusion), ...key, "--checkpoint", checkpoint, "--index", "4"] },
      { argv: ["proof", proofFile("i.json", inclusion), ...key, "--manifest", sealedPath] },
      { argv: ["proof", proofFile("t.txt", tlog), ...key] },
      {
        argv: [
          "proof",
          proofFile("c.json", consistency),
          ...key,
          "--checkpoint",
          olderNote,
          "--manifest",
          sealedPath,
        ],
      },
    ]);
    expect(results).toEqual([true, true, true, true]);
  });

  test("any changed byte, another index, and a size that nothing signed are refused by both", async () => {
    const { checkpoint, olderNote, inclusion, consistency, tlog } = await proofs();
    const heads = [checkpoint, olderNote].map((path) =>
      headOfCheckpoint(readFileSync(path, "utf8"), [PINNED_KEY]),
    );
    const trusted = heads.flatMap((verdict) => (verdict.ok ? verdict.head : []));
    expect(trusted.length).toBe(2);
    const flags = ["--key", KEY, "--checkpoint", checkpoint, "--checkpoint", olderNote];
    const forms = [inclusion, consistency, tlog].map((text, at) => ({
      text,
      path: proofFile(`form-${at}`, text),
    }));
    const calls = forms.flatMap(({ text, path }) =>
      Array.from(
        utf8(text),
        (_, at): PythonCall => ({
          argv: ["proof", path, ...flags],
          file: path,
          flip: [at, 1 << (at % 7)],
        }),
      ),
    );
    expect(verdicts(calls)).not.toContain(true);
    for (const { text } of forms) {
      for (const [at] of utf8(text).entries()) {
        const changed = Buffer.from(text);
        changed[at] = (changed[at] ?? 0) ^ (1 << (at % 7));
        const changedText = changed.toString("utf8");
        const verdict = changedText.startsWith("c2sp")
          ? verifyTextProof(changedText, [PINNED_KEY])
          : verifyJsonProof(changedText, trusted);
        expect(verdict.ok).toBe(false);
      }
    }
    expect(
      verdicts([
        { argv: ["proof", proofFile("i.json", inclusion), ...flags, "--index", "3"] },
        { argv: ["proof", proofFile("i.json", inclusion), "--key", KEY] },
        { argv: ["proof", proofFile("i.json", inclusion), "--key", KEY, "--checkpoint", olderNote] },
      ]),
    ).toEqual([false, false, false]);
  });

  test("the vectors: valid ones accepted, and those that must fail refused", () => {
    const vectorKey = ["--key", KEY];
    const noteOf = (algorithm: string, size: number, root: string): string => {
      const head = {
        sessionId: "vector" as SessionId,
        hashAlgorithm: algorithm as HashAlgorithm,
        size: size as TreeSize,
        root: (fromHex(root) ?? new Uint8Array(32)) as NodeHash,
      };
      return proofFile(
        `${algorithm}-${size}-${root.slice(0, 8)}.checkpoint`,
        signCheckpoint(head, SIGNING_KEY),
      );
    };
    const inclusions = proofVectors.inclusion.map((proof, at): PythonCall => {
      const note = noteOf(proof.hash_algorithm, proof.tree_size, proof.root_hash);
      return {
        argv: ["proof", proofFile(`vi-${at}`, JSON.stringify(proof)), ...vectorKey, "--checkpoint", note],
      };
    });
    const consistencies = proofVectors.consistency.map((proof, at): PythonCall => {
      const notes = [
        noteOf(proof.hash_algorithm, proof.size1, proof.root1),
        noteOf(proof.hash_algorithm, proof.size2, proof.root2),
      ].flatMap((note) => ["--checkpoint", note]);
      return { argv: ["proof", proofFile(`vc-${at}`, JSON.stringify(proof)), ...vectorKey, ...notes] };
    });
    expect(verdicts([...inclusions, ...consistencies])).not.toContain(false);
    const trusted = [...inclusions, ...consistencies].flatMap(({ argv }) => argv.slice(4));
    const failing = [...proofVectors.inclusion_must_fail, ...proofVectors.consistency_must_fail].map(
      ({ text }, at): PythonCall => ({
        argv: ["proof", proofFile(`vf-${at}`, text), ...vectorKey, ...trusted],
      }),
    );
    expect(failing.length).toBe(94);
    expect(verdicts(failing)).not.toContain(true);
  });

  test("the manifest vectors: every manifest that must fail is refused", () => {
    const place = join(folder, "manifest-vectors");
    mkdirSync(place);
    const path = (name: string, content: string | Uint8Array): string => {
      writeFileSync(join(place, name), content);
      return join(place, name);
    };
    const proof = proofFile("any.json", "{}");
    const failing = manifestVectors.must_fail.manifests.map((vector, at): PythonCall => {
      const manifest = path(`${at}`, Buffer.from(vector.base64, "base64"));
      return { argv: ["proof", proof, "--key", manifestVectors.pinned.base64, "--manifest", manifest] };
    });
    const reasons = python(failing).map(({ reason }) => reason);
    // A sound manifest gets as far as the proof, which is then found malformed.
    expect(reasons.filter((reason) => reason?.startsWith("proof") === true)).toEqual([]);
    const valid = manifestVectors.valid.map(({ manifest }, at): PythonCall => {
      return {
        argv: ["proof", proof, "--key", manifestVectors.pinned.hex, "--manifest", path(`v${at}`, manifest)],
      };
    });
    expect(python(valid).every(({ reason }) => reason?.startsWith("proof") === true)).toBe(true);
  });
});
