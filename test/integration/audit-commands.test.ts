import { execFile } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadSigningKey } from "../../src/adapters/file/signing-key.ts";
import { signedHead } from "../../src/cli/signed-heads.ts";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { MongoServiceStateStore } from "../../src/adapters/mongo/service-state-store.ts";
import { LineThreads } from "../../src/adapters/threads/line-threads.ts";
import { asBuffer, toHex } from "../../src/core/bytes.ts";
import { isKekOf } from "../../src/core/encrypt/kek-check.ts";
import { kekFromText } from "../../src/core/encrypt/kek.ts";
import type { ChunkRun, ChunkRunRequest } from "../../src/core/manifest/chunk-run.ts";
import { parseInclusionProof } from "../../src/core/merkle/proof-json.ts";
import { verifyInclusion } from "../../src/core/merkle/proof.ts";
import { loadTree, proveConsistency, proveInclusion } from "../../src/pipeline/prove.ts";
import { verifySession } from "../../src/pipeline/verify-session.ts";
import { mongoStores, type Stores } from "../conformance/stores.ts";
import { REPOSITORY } from "../support/planted-tree.ts";
import {
  copyToStores,
  folderWith,
  KEK_TEXT,
  PINNED_KEY,
  type RecordedSession,
  recordSession,
  samplePayload,
} from "../support/recorded-session.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment } from "../support/worker-process.ts";

const servers = testServers();
const KEY = asBuffer(PINNED_KEY).toString("base64");
const CLI = join(REPOSITORY, "src/cli/session-processor.ts");
const folder = mkdtempSync(join(tmpdir(), "audit-commands-"));
let session: RecordedSession;
let manifest: string;
let connection: MongoConnection;
let stores: Stores;

beforeAll(async () => {
  const payloads = Array.from({ length: 300 }, (_, index) => samplePayload(index, 70 + (index % 60)));
  session = await recordSession(payloads, { id: servers.sessionId("audit") });
  manifest = join(folder, session.names.manifest);
  for (const [name, bytes] of session.files) writeFileSync(join(folder, name), bytes);
  mkdirSync(join(folder, "blobs"));
  for (const [index, blob] of session.blobs.entries())
    writeFileSync(join(folder, "blobs", `${index}.blob`), blob);
  connection = await connectMongo({ url: servers.mongodbUrl, appName: "audit" });
  await ensureIndexes(connection);
  stores = mongoStores(connection);
  await copyToStores(session, stores);
});
afterAll(async () => {
  await connection.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function run(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const options = {
      cwd: folder,
      env: { ...bareEnvironment(), MONGODB_URL: servers.mongodbUrl, ...env },
    };
    execFile(process.execPath, [CLI, ...args], options, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== "number")
        reject(new Error("the command did not run to its end", { cause: error }));
      else resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

async function json(args: readonly string[], env?: Readonly<Record<string, string>>) {
  const { code, stdout } = await run([...args, "--json"], env);
  return { exit: code, ...(JSON.parse(stdout) as object) };
}

describe("proofs over MongoDB", () => {
  const head = () => ({
    hashAlgorithm: session.record.hashAlgorithm,
    size: session.record.tree.size,
    root: session.record.tree.root as NonNullable<typeof session.record.tree.root>,
  });

  test("of an open session are those of the same session in memory", async () => {
    for (const index of [0, 255, 256, 299]) {
      const proof = await proveInclusion(stores, session.id, index);
      expect(toHex(proof.rootHash)).toBe(toHex(head().root));
      expect(proof.path.map(toHex)).toEqual(
        (await proveInclusion(session.stores, session.id, index)).path.map(toHex),
      );
    }
    const consistency = await proveConsistency(stores, session.id, 257);
    expect(toHex(consistency.root2)).toBe(toHex(head().root));
    expect((await loadTree(stores, session.id)).head.size).toBe(300);
  });

  test("`proof` prints the JSON form, which verifies", async () => {
    const { code, stdout } = await run(["proof", session.id, "7"]);
    expect(code).toBe(0);
    const parsed = parseInclusionProof(stdout);
    expect(parsed.ok && verifyInclusion(parsed.proof, head())).toEqual({ ok: true });
  });

  test("`proof` and `verify-proof` agree in both forms, and for consistency", async () => {
    const checkpoint = join(folder, session.names.checkpoint);
    expect((await run(["proof", session.id, "7", "-o", "p.json"])).code).toBe(0);
    expect((await run(["proof", session.id, "7", "--format", "tlog", "-o", "p.txt"])).code).toBe(0);
    expect((await run(["proof", session.id, "--consistency", "300", "-o", "c.json"])).code).toBe(0);
    const pinned = ["--key", KEY];
    const leafHash = toHex(session.chunks[7]?.leafHash ?? new Uint8Array(0));
    const verified = { exit: 0, verified: true, session_id: session.id };
    expect(await json(["verify-proof", "p.json", ...pinned, "--checkpoint", checkpoint])).toEqual(
      expect.objectContaining({ ...verified, leaf_index: 7, leaf_hash: leafHash }),
    );
    expect(await json(["verify-proof", "p.json", ...pinned, "--manifest", manifest])).toEqual(
      expect.objectContaining(verified),
    );
    expect(await json(["verify-proof", "p.txt", ...pinned])).toEqual(
      expect.objectContaining({ ...verified, chunk_id: session.chunks[7]?.chunkId, leaf_hash: leafHash }),
    );
    expect(await json(["verify-proof", "c.json", ...pinned, "--manifest", manifest])).toEqual(
      expect.objectContaining({ ...verified, kind: "consistency", size1: 300 }),
    );
    expect(await json(["verify-proof", "p.json", ...pinned, "--manifest", manifest, "--index", "8"])).toEqual(
      {
        exit: 1,
        verified: false,
        file: null,
        reason: "not-the-expected-index",
        code: "PROOF_INVALID",
        message: "it is of another chunk than --index",
        advice: "don't trust what it was to prove; get it again from its source",
      },
    );
  });

  test("`proof` refuses an index or size that the tree doesn't have, and doesn't overwrite a file", async () => {
    writeFileSync(join(folder, "there.json"), "mine");
    const wrong: readonly (readonly [readonly string[], string])[] = [
      [["300"], "the tree has 300 leaves: there is no leaf 300, but from 0 to 299"],
      [["200", "--size", "200"], "the tree has 200 leaves: there is no leaf 200, but from 0 to 199"],
      [["0", "--size", "301"], "the tree has 300 leaves: there is none of size 301, but from 1 to 300"],
      [["--consistency", "500"], "the tree has 300 leaves: there is none of size 500, but from 1 to 300"],
      [
        ["--consistency", "250", "--size", "200"],
        "the tree has 200 leaves: a consistency proof can't begin at 250",
      ],
      [["0", "--size", "200", "--format", "tlog"], "--size: the newest signed checkpoint is of 300 leaves"],
    ];
    for (const [args, words] of wrong) {
      const stderr = `error: ${words} [CONFIG_INVALID]\n`;
      expect(await run(["proof", session.id, ...args])).toEqual({ code: 2, stdout: "", stderr });
    }
    expect((await run(["proof", session.id, "0", "-o", "there.json"])).code).toBe(2);
    expect(readFileSync(join(folder, "there.json"), "utf8")).toBe("mine");
    expect((await run(["proof", session.id, "x"])).code).toBe(2);
  });

  test("`proof -o` says how to check the proof, with all that it takes", async () => {
    // The session is an open one here: no file that isn't there is named.
    const whole = await run(["proof", session.id, "7", "-o", "two words.json"]);
    expect(whole.stdout).toBe(
      "proof written to two words.json; to be checked, by verify-proof, it needs what was signed of the tree: of 300 chunks " +
        "the session's checkpoint, which has no file yet; `proof INDEX --format tlog` has it in the proof\n",
    );
    const grown = await run(["proof", session.id, "--consistency", "200", "-o", "grown.json"]);
    expect(grown.stdout).toContain(
      "of 200 chunks a checkpoint (--checkpoint FILE), if one was signed at that size and somebody has kept it; " +
        "the newest is of 300 chunks; of 300 chunks the session's checkpoint",
    );
    const tlog = await run(["proof", session.id, "7", "--format", "tlog", "-o", "seven.txt"]);
    expect(tlog.stdout).toContain("verify-proof seven.txt --key PUBLIC_KEY\n");
  });

  test("of a sealed session are checked with its manifest, where that is", () => {
    expect(session.record).toMatchObject({ state: "sealed", tree: { size: 300 } });
    expect(signedHead(session.record, 300, folder).options).toBe(`--manifest ${manifest}`);
    expect(signedHead(session.record, 300, join(folder, "blobs"))).toMatchObject({
      options: undefined,
      wanted: `the manifest ${session.names.manifest}, which is not (yet) in ${join(folder, "blobs")}`,
    });
    expect(signedHead(session.record, 200, folder).options).toBeUndefined();
  });

  test.each([
    [
      "is open, and nothing is signed",
      { checkpoint: undefined },
      "of 300 chunks nothing yet: a worker with a",
    ],
    ["is open, with a checkpoint", {}, "of 300 chunks the session's checkpoint, which has no file yet"],
    [
      "was sealed without a key",
      { state: "sealed", closed: true, checkpoint: undefined },
      "of 300 chunks nothing: ",
    ],
  ] as const)("what a proof is to be checked with is told where the session %s", (_, change, words) => {
    const record = { ...session.record, state: "open", closed: false, ...change } as const;
    const { options, wanted, size } = signedHead(record, 300, folder);
    expect(options).toBeUndefined();
    expect(`of ${size} chunks ${wanted}`).toContain(words);
  });
});

describe("verify-proof", () => {
  test("says in words why it refuses, with the code behind", async () => {
    await run(["proof", session.id, "9", "-o", "nine-again.json"]);
    const refusing = [
      "verify-proof",
      "nine-again.json",
      "--key",
      KEY,
      "--manifest",
      manifest,
      "--index",
      "8",
    ];
    expect(await run(refusing)).toEqual({
      code: 1,
      stdout: "REFUSED: the proof: it is of another chunk than --index [not-the-expected-index]\n",
      stderr: "",
    });
  });

  test("shows no default for what may be repeated", async () => {
    expect((await run(["verify-proof", "--help"])).stdout).not.toContain("default");
  });

  test("without a pinned key, or without a signed size, is wrong usage", async () => {
    await run(["proof", session.id, "9", "-o", "nine.json"]);
    expect(await run(["verify-proof", "nine.json", "--manifest", manifest])).toEqual(
      expect.objectContaining({ code: 2, stderr: expect.stringContaining("pin a public key") as unknown }),
    );
    expect((await run(["verify-proof", "nine.json", "--key", KEY])).code).toBe(2);
  });

  test("refuses a proof of an earlier size against the head of today", async () => {
    await run(["proof", session.id, "9", "--size", "100", "-o", "early.json"]);
    expect(await json(["verify-proof", "early.json", "--key", KEY, "--manifest", manifest])).toEqual(
      expect.objectContaining({ exit: 1, verified: false, reason: "no-trusted-head-of-this-size" }),
    );
  });
});

describe("threads that check lines", () => {
  test("give the verdict of the file as it is, and name the line of a changed one", async () => {
    const threads = new LineThreads(2);
    try {
      const name = session.names.chunks;
      const sound = session.files.get(name) ?? new Uint8Array(0);
      const changed = Uint8Array.from(sound);
      changed[sound.indexOf(0x0a) + 20] = 0x2d;
      const manifestBytes = readFileSync(manifest);
      const checks = {
        pinnedKeys: [PINNED_KEY],
        checkLines: (request: ChunkRunRequest): Promise<ChunkRun> => threads.check(request),
      };
      const verdicts = [sound, changed].map((bytes) =>
        verifySession(manifestBytes, folderWith(session.files, { [name]: bytes }), checks),
      );
      expect(await Promise.all(verdicts)).toEqual([
        expect.objectContaining({ ok: true }),
        { ok: false, refusal: expect.objectContaining({ part: "chunks file", place: "line 2" }) as unknown },
      ]);
    } finally {
      await threads.close();
    }
  });
});

describe("verify", () => {
  test("refuses lines that aren't of the signed tree as what they are to an auditor", async () => {
    const bytes = Buffer.from(session.files.get(session.names.chunks) ?? new Uint8Array(0));
    const [first = "", second = "", ...rest] = bytes.toString("latin1").split("\n");
    for (const lines of [
      [second, first, ...rest],
      [
        first.replace(/"leaf_hash":"./, (text) => `${text.slice(0, -1)}${text.endsWith("0") ? "1" : "0"}`),
        second,
        ...rest,
      ],
    ]) {
      const changed = Buffer.from(lines.join("\n"), "latin1");
      expect(changed.equals(bytes)).toBe(false);
      const files = folderWith(session.files, { [session.names.chunks]: changed });
      expect(await verifySession(readFileSync(manifest), files, { pinnedKeys: [PINNED_KEY] })).toEqual({
        ok: false,
        refusal: expect.objectContaining({
          part: "chunks file",
          place: "line 1",
          code: "MANIFEST_INVALID",
        }) as unknown,
      });
    }
  });

  test("accepts the session offline, with the key as text, in a file, or in a file of several", async () => {
    writeFileSync(join(folder, "key"), `${KEY}\n`);
    writeFileSync(join(folder, "keys"), `# auditors\n${"00".repeat(31)}01\n${KEY} # the worker\n`);
    for (const pinned of [
      ["--key", KEY],
      ["--key", "key"],
      ["--keys", "keys"],
    ]) {
      expect(await json(["verify", manifest, ...pinned], { MONGODB_URL: "" })).toEqual(
        expect.objectContaining({ exit: 0, verified: true, chunks: 300, blobs: "not checked" }),
      );
    }
  });

  test("says how to check the blobs too, with a folder or with MongoDB", async () => {
    const { stdout } = await run(["verify", manifest, "--key", KEY]);
    expect(stdout).toMatch(/^blobs +not checked \(--blobs FOLDER, or --data for those in MongoDB\)$/m);
  });

  test("without a pinned key it says so and exits with 2", async () => {
    expect(await run(["verify", manifest])).toEqual({
      code: 2,
      stdout: "",
      stderr: expect.stringContaining("pin a public key") as unknown,
    });
  });

  test("--blobs hashes a folder; --data hashes MongoDB's blobs, and opens them where the KEK is known", async () => {
    const blobBytes = session.blobs.reduce((total, blob) => total + blob.byteLength, 0);
    expect(await json(["verify", manifest, "--key", KEY, "--blobs", "blobs"])).toEqual(
      expect.objectContaining({ exit: 0, blobs: "hashed", blob_bytes: blobBytes }),
    );
    expect(await json(["verify", manifest, "--key", KEY, "--data"])).toEqual(
      expect.objectContaining({ exit: 0, blobs: "hashed", blob_bytes: blobBytes }),
    );
    expect(await json(["verify", manifest, "--key", KEY, "--data"], { ENCRYPTION_KEY: KEK_TEXT })).toEqual(
      expect.objectContaining({ exit: 0, blobs: "opened", blob_bytes: blobBytes }),
    );
  });

  test("names what is wrong and where, and exits with 1", async () => {
    const chunks = join(folder, session.names.chunks);
    const sound = readFileSync(chunks, "utf8");
    writeFileSync(chunks, sound.replace('"chunk_index":41,', '"chunk_index":42,'));
    expect(await json(["verify", manifest, "--key", KEY])).toEqual(
      expect.objectContaining({ exit: 1, verified: false, part: "chunks file", place: "line 42" }),
    );
    writeFileSync(chunks, sound);
    const blob = join(folder, "blobs", "17.blob");
    const bytes = readFileSync(blob);
    writeFileSync(blob, bytes.subarray(1));
    expect(await json(["verify", manifest, "--key", KEY, "--blobs", "blobs"])).toEqual(
      expect.objectContaining({ part: "blob", place: "chunk 17", exit: 1, code: "BLOB_MALFORMED" }),
    );
    writeFileSync(blob, bytes);
  });

  test("a blob that changed in MongoDB is found", async () => {
    const chunk = session.chunks[23];
    if (chunk === undefined) throw new Error("the session has 300 chunks");
    const blobs = connection.db.collection<{ _id: string; bytes: Uint8Array }>("chunk_blobs");
    const changed = Uint8Array.from(session.blobs[23] ?? []);
    changed[50] = (changed[50] ?? 0) ^ 1;
    await blobs.updateOne({ _id: chunk.blobId }, { $set: { bytes: changed } });
    for (const env of [undefined, { ENCRYPTION_KEY: KEK_TEXT }]) {
      expect(await json(["verify", manifest, "--key", KEY, "--data"], env)).toEqual(
        expect.objectContaining({ exit: 1, part: "blob", place: "chunk 23" }),
      );
    }
    await blobs.deleteOne({ _id: chunk.blobId });
    expect((await run(["verify", manifest, "--key", KEY, "--data"])).stdout).toContain("BLOB_MISSING");
  });
});

describe("another ENCRYPTION_KEY", () => {
  test.each(["restore", "verify"])("is what %s says, in the same words", async (name) => {
    const args =
      name === "restore" ? [name, session.id, "--from", "0"] : [name, manifest, "--key", KEY, "--data"];
    const other = { ENCRYPTION_KEY: "hW3nZ8tK1vQx5rYb0sMd7fJc2gLp9aUe4iOoTtRr=" };
    const { code, stdout, stderr } = await run(args, other);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    // No worker has claimed this database: its sessions say whose it is.
    expect(stderr).toMatch(
      /^error: ENCRYPTION_KEY opens none of the newest \d+ sessions' secrets: [^\n]* \[KEK_MISMATCH\]\n$/,
    );
  });
});

describe("keys generate --signing", () => {
  test("writes a key of mode 0600 that the worker can load, and prints its public forms", async () => {
    const generated = await json(["keys", "generate", "--signing", "-o", "signing.pem"]);
    expect(generated.exit).toBe(0);
    expect(statSync(join(folder, "signing.pem")).mode & 0o777).toBe(0o600);
    const { publicKey, keyId } = await loadSigningKey(join(folder, "signing.pem"));
    expect(generated).toEqual(
      expect.objectContaining({
        key_id: keyId,
        public_key: expect.objectContaining({ base64: asBuffer(publicKey).toString("base64") }) as unknown,
      }),
    );
  });

  test("overwrites nothing, and prints no private key", async () => {
    writeFileSync(join(folder, "kept.pem"), "kept");
    chmodSync(join(folder, "kept.pem"), 0o600);
    expect((await run(["keys", "generate", "--signing", "-o", "kept.pem"])).code).toBe(2);
    expect(readFileSync(join(folder, "kept.pem"), "utf8")).toBe("kept");
    const { stdout, stderr } = await run(["keys", "generate", "--signing"]);
    expect(stdout + stderr).not.toContain("PRIVATE");
    expect(existsSync(join(folder, "manifest-signing-key.pem"))).toBe(true);
  });

  test("without --signing is wrong usage", async () => {
    expect((await run(["keys", "generate"])).code).toBe(2);
  });
});

describe("keys adopt", () => {
  const other = { ENCRYPTION_KEY: "H7Zr2vXw9LkT4mBn8sPd1fGh6jYc3aUe5iOo0RtN=" };

  test("makes a key the database's only when it is told twice, and says what it opens", async () => {
    expect((await run(["keys", "adopt"], other)).code).toBe(2);
    const { code, stdout } = await run(["keys", "adopt", "--yes", "--json"], other);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ kek_version: 1, sessions_opened: 0 });
    const checks = await new MongoServiceStateStore(connection, "any").kekChecks();
    expect(isKekOf(checks.get(1) ?? "", kekFromText(other.ENCRYPTION_KEY), 1)).toBe(true);
    expect(stdout).not.toContain(other.ENCRYPTION_KEY);
  });
});
