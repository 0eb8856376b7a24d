import { execFile, spawnSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { openExportFolder } from "../../src/adapters/file/export-folder.ts";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { asBuffer, utf8 } from "../../src/core/bytes.ts";
import { manifestId } from "../../src/core/manifest/names.ts";
import { exportSecrets, exportSession, findExportable } from "../../src/pipeline/export-session.ts";
import { integrate } from "../../src/pipeline/integrate.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { OwnGrowth } from "../../src/pipeline/own-growth.ts";
import type { SessionChange } from "../../src/pipeline/ports.ts";
import { mongoStores, type Stores } from "../conformance/stores.ts";
import { REPOSITORY } from "../support/planted-tree.ts";
import { pythonVerifier } from "../support/python-verifier.ts";
import {
  impatient,
  KEK_TEXT,
  KEY_RING,
  NEVER,
  PINNED_KEY,
  type RecordedSession,
  recordSession,
  samplePayload,
  silent,
} from "../support/recorded-session.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment } from "../support/worker-process.ts";

const servers = testServers();
const KEY = asBuffer(PINNED_KEY).toString("base64");
const CLI = join(REPOSITORY, "src/cli/session-processor.ts");
const CHUNKS = 60;
const folder = mkdtempSync(join(tmpdir(), "export-command-"));
const python = await pythonVerifier();
let session: RecordedSession;
let connection: MongoConnection;
let stores: Stores;

beforeAll(async () => {
  connection = await connectMongo({ url: servers.mongodbUrl, appName: "export" });
  await ensureIndexes(connection);
  stores = mongoStores(connection);
  session = await anchoredSession("export");
});
afterAll(async () => {
  await connection.close();
  rmSync(folder, { recursive: true, force: true });
});

/** Recorded in memory, and put into MongoDB as the pipeline leaves it: up to where `until` says. */
async function anchoredSession(
  name: string,
  until: "open" | "sealed" | "anchored" = "anchored",
): Promise<RecordedSession> {
  const payloads = Array.from({ length: CHUNKS }, (_, index) => samplePayload(index, 70 + 31 * index));
  const recorded = await recordSession(payloads, { id: servers.sessionId(name) });
  const { record, chunks, blobs, id, names, files } = recorded;
  const [key] = record.keys;
  if (key === undefined || record.checkpoint === undefined || record.sealedAt === undefined)
    throw new Error("a recorded session has all of them");
  const { hashAlgorithm, createdAt, checkpoint, sealedAt, finalize } = record;
  await stores.sessions.create({ id, hashAlgorithm, key, createdAt });
  for (const [at, chunk] of chunks.entries()) {
    await stores.blobs.insert(chunk.blobId, chunk, blobs[at] ?? new Uint8Array(0));
    await stores.chunks.insert(chunk);
  }
  let { version } = await integrate(
    { ...stores, observer: silent, patience: impatient, growth: new OwnGrowth(createSystemClock()) },
    id,
    NEVER,
  );
  const apply = async (...changes: readonly SessionChange[]): Promise<void> => {
    for (const change of changes)
      expect(await stores.sessions.replace(id, version++, change)).toBe("replaced");
  };
  if (until === "open") return recorded;
  const details = finalize ?? { manifestType: "session_recording" };
  await apply(
    { kind: "propose-count", count: CHUNKS, finalize: details },
    { kind: "confirm-count" },
    { kind: "seal", at: sealedAt },
  );
  if (until === "sealed") return recorded;
  await apply({ kind: "checkpoint", checkpoint });
  const manifest = {
    id: manifestId(id, "session_recording"),
    sessionId: id,
    type: "session_recording",
  } as const;
  await stores.manifests.publish(
    manifest,
    asBuffer(files.get(names.manifest) ?? new Uint8Array(0)).toString(),
  );
  await apply(
    { kind: "anchor-claimed", claim: "claim" },
    { kind: "anchor-submitted", anchoringId: "anc-1" },
    { kind: "anchored", transaction: "0xfeed", block: 812, at: sealedAt },
  );
  return recorded;
}

interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function run(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ran> {
  const options = {
    cwd: folder,
    env: { ...bareEnvironment(), MONGODB_URL: servers.mongodbUrl, ...env },
  };
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [CLI, ...args], options, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== "number")
        reject(new Error("the command did not run to its end", { cause: error }));
      else resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

/** What is left of a failed export: nothing by the folder's name, ever. */
async function expectFailure(
  args: readonly string[],
  code: string,
  env?: Record<string, string>,
): Promise<void> {
  const result = await run(["export", ...args, "--json"], env);
  expect({ ...result, stderr: JSON.parse(result.stderr) as unknown }).toEqual({
    // 2: for the caller to correct.
    code: code === "CONFIG_INVALID" || code === "JOB_INVALID" ? 2 : 1,
    stdout: "",
    stderr: { error: expect.objectContaining({ code }) as unknown },
  });
}

const blobsIn = (place: string): readonly string[] => readdirSync(join(place, "blobs"));
const partialOf = (name: string): string => join(folder, `${name}.${session.id}.partial`);

describe("export", () => {
  test("gives an auditor the worker's files, byte for byte, and every blob", async () => {
    const { code, stdout, stderr } = await run(["export", session.id, "-o", "handed-out", "--json"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const place = join(folder, "handed-out");
    expect(JSON.parse(stdout)).toEqual(
      expect.objectContaining({
        session_id: session.id,
        chunks: CHUNKS,
        blob_bytes: session.blobs.reduce((total, blob) => total + blob.byteLength, 0),
        anchored: true,
        secret: null,
        manifest: join("handed-out", session.names.manifest),
      }),
    );
    expect(readdirSync(place).toSorted()).toEqual(["blobs", ...session.files.keys()].toSorted());
    for (const [name, bytes] of session.files)
      expect(readFileSync(join(place, name)).equals(asBuffer(bytes))).toBe(true);
    expect(blobsIn(place).length).toBe(CHUNKS);
    for (const [index, blob] of session.blobs.entries())
      expect(readFileSync(join(place, "blobs", `${index}.blob`)).equals(asBuffer(blob))).toBe(true);
    const manifest = join(place, session.names.manifest);
    const verify = await run(["verify", manifest, "--key", KEY, "--blobs", join(place, "blobs")], {
      MONGODB_URL: "",
    });
    expect(verify).toMatchObject({ code: 0, stdout: expect.stringContaining("hashed") as unknown });
    expect(readdirSync(folder).filter((name) => name.endsWith(".partial"))).toEqual([]);
  });

  test("with --secret writes what opens the blobs to a file of mode 0600, and warns", async () => {
    const env = { ENCRYPTION_KEY: KEK_TEXT };
    const { code, stdout, stderr } = await run(["export", session.id, "-o", "with-secret", "--secret"], env);
    expect(code).toBe(0);
    expect(stderr).toMatch(/^warning: with-secret\/session-secret opens every chunk/m);
    expect(stdout + stderr).not.toContain(session.secret);
    const secret = join(folder, "with-secret", "session-secret");
    expect(readFileSync(secret, "utf8")).toBe(`1 ${session.secret}\n`);
    expect(statSync(secret).mode & 0o777).toBe(0o600);
    expect(statSync(join(folder, "with-secret")).mode & 0o777).toBe(0o700);
  });

  test("the Python verifier opens and compares every blob of it", async (ctx) => {
    if (typeof python !== "function") return ctx.skip(true, `needs the Python verifier: ${python.missing}`);
    const env = { ENCRYPTION_KEY: KEK_TEXT };
    expect((await run(["export", session.id, "-o", "for-python", "--secret"], env)).code).toBe(0);
    const place = join(folder, "for-python");
    const withBlobs = ["--blobs", join(place, "blobs"), "--secret", join(place, "session-secret")];
    const [result] = python([
      { argv: ["session", join(place, session.names.manifest), "--key", KEY, ...withBlobs] },
    ]);
    const counts = { hashed: CHUNKS, opened: CHUNKS, compared: CHUNKS };
    expect(result).toEqual(expect.objectContaining({ code: 0, blobs: counts }));
  });
});

describe("export refuses, and nothing appears under the folder's name:", () => {
  test("an unknown session, an open one, and one without a manifest", async () => {
    await anchoredSession("open", "open");
    await anchoredSession("sealed", "sealed");
    await expectFailure(["sess-nobody", "-o", "none"], "SESSION_UNKNOWN");
    await expectFailure([servers.sessionId("open"), "-o", "none"], "MANIFEST_INVALID");
    await expectFailure([servers.sessionId("sealed"), "-o", "none"], "MANIFEST_INVALID");
    expect(readdirSync(folder).filter((name) => name.startsWith("none"))).toEqual([]);
  });

  test("--secret without the KEK, with another one, and of a session whose secret is gone", async () => {
    const other = { ENCRYPTION_KEY: "H7Zr2vXw9LkT4mBn8sPd1fGh6jYc3aUe5iOo0RtN=" };
    await expectFailure([session.id, "-o", "none", "--secret"], "CONFIG_INVALID");
    await expectFailure([session.id, "-o", "none", "--secret"], "KEK_MISMATCH", other);
    expect(() => exportSecrets({ ...session.record, keys: [] }, KEY_RING)).toThrow(/shredded/);
    expect(readdirSync(folder).filter((name) => name.startsWith("none"))).toEqual([]);
  });

  test("a folder or file that exists, which stays as it is", async () => {
    mkdirSync(join(folder, "there"));
    writeFileSync(join(folder, "there", "mine"), "mine");
    writeFileSync(join(folder, "file"), "mine");
    await expectFailure([session.id, "-o", "there"], "CONFIG_INVALID");
    await expectFailure([session.id, "-o", "file"], "CONFIG_INVALID");
    expect(readdirSync(join(folder, "there"))).toEqual(["mine"]);
    expect(readFileSync(join(folder, "file"), "utf8")).toBe("mine");
  });

  test("a place that can't be written", async () => {
    writeFileSync(join(folder, "plain"), "");
    await expectFailure([session.id, "-o", "plain/below"], "OUTPUT_FAILED");
  });

  test("a partial folder that is a link, or that others may write to", async () => {
    mkdirSync(join(folder, "elsewhere"));
    symlinkSync(join(folder, "elsewhere"), partialOf("linked"));
    await expectFailure([session.id, "-o", "linked"], "CONFIG_INVALID");
    mkdirSync(partialOf("open-to-all"));
    chmodSync(partialOf("open-to-all"), 0o777);
    await expectFailure([session.id, "-o", "open-to-all"], "CONFIG_INVALID");
    expect(existsSync(join(folder, "linked"))).toBe(false);
  });

  test("a full disk, with what to do; with room the same command goes on", async (ctx) => {
    const mount = join(folder, "small-disk");
    mkdirSync(mount);
    const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=96k", "tmpfs", mount]).status === 0;
    ctx.skip(!mounted, "mounting a tmpfs is not permitted here");
    onTestFinished(() => {
      spawnSync("umount", [mount]);
    });
    const output = join(mount, "audit");
    const full = await run(["export", session.id, "-o", output]);
    expect(full).toMatchObject({ code: 1, stdout: "" });
    expect(full.stderr).toContain("the same command goes on with it");
    expect(full.stderr).toContain("the output folder is full");
    expect(existsSync(output)).toBe(false);
    expect(spawnSync("mount", ["-o", "remount,size=8m", mount]).status).toBe(0);
    const { code, stdout } = await run(["export", session.id, "-o", output, "--json"]);
    expect(code).toBe(0);
    expect((JSON.parse(stdout) as { found_chunks: number }).found_chunks).toBeGreaterThan(0);
    expect(readdirSync(mount)).toEqual(["audit"]);
  });

  test("a blob that changed in MongoDB, or is gone", async () => {
    const { id, chunks, blobs } = await anchoredSession("damaged");
    const collection = connection.db.collection<{ _id: string; bytes: Uint8Array }>("chunk_blobs");
    const _id = chunks[23]?.blobId ?? "";
    const changed = Uint8Array.from(blobs[23] ?? []);
    changed[50] = (changed[50] ?? 0) ^ 1;
    await collection.updateOne({ _id }, { $set: { bytes: changed } });
    await expectFailure([id, "-o", "damaged"], "BLOB_MALFORMED");
    await collection.deleteOne({ _id });
    await expectFailure([id, "-o", "damaged"], "BLOB_MISSING");
    expect(existsSync(join(folder, "damaged"))).toBe(false);
  });

  test("chunk documents that are not those of the signed manifest, before any blob is copied", async () => {
    const { id, chunks } = await anchoredSession("contradicted");
    const collection = connection.db.collection<{ _id: string; level: number }>("chunks");
    const outcome = await collection.updateOne({ _id: `${id}:0` }, { $set: { level: 9 } });
    expect({ outcome: outcome.modifiedCount, chunks: chunks.length }).toEqual({ outcome: 1, chunks: CHUNKS });
    await expectFailure([id, "-o", "contradicted"], "MANIFEST_INVALID");
    expect(blobsIn(join(folder, `contradicted.${id}.partial`))).toEqual([]);
  });
});

describe("an export that is interrupted", () => {
  async function interruptedAfter(blobs: number, name: string): Promise<void> {
    const interrupted = new AbortController();
    const target = await openExportFolder(join(folder, name), session.id);
    const exportable = await findExportable(stores, session.id);
    const exporting = exportSession(stores, exportable, target, {
      signal: interrupted.signal,
      onProgress: (through) => {
        if (through === blobs) interrupted.abort();
      },
    });
    await expect(exporting).rejects.toEqual(expect.objectContaining({ code: "SHUTTING_DOWN" }));
    expect(existsSync(join(folder, name))).toBe(false);
    expect(existsSync(join(partialOf(name), session.names.manifest))).toBe(false);
  }

  test("is gone on with: blobs that are whole stay, one that was cut short is written again", async () => {
    await interruptedAfter(20, "resumed");
    const written = blobsIn(partialOf("resumed")).length;
    expect(written).toBeGreaterThanOrEqual(20);
    truncateSync(join(partialOf("resumed"), "blobs", "3.blob"), 10);
    const { code, stdout } = await run(["export", session.id, "-o", "resumed", "--json"]);
    expect({ code, ...(JSON.parse(stdout) as object) }).toMatchObject({ code: 0, found_chunks: written - 1 });
    const blob = readFileSync(join(folder, "resumed", "blobs", "3.blob"));
    expect(blob.equals(asBuffer(session.blobs[3] ?? new Uint8Array(0)))).toBe(true);
    expect(existsSync(partialOf("resumed"))).toBe(false);
  });

  test("is not gone on with when its folder holds files of something else", async () => {
    await interruptedAfter(5, "mixed");
    writeFileSync(join(partialOf("mixed"), "blobs", `${CHUNKS}.blob`), "of a longer session");
    await expectFailure([session.id, "-o", "mixed"], "CONFIG_INVALID");
    expect(existsSync(join(folder, "mixed"))).toBe(false);
  });

  test("is not gone on with when its folder holds a file that no export writes", async () => {
    await interruptedAfter(5, "noted");
    writeFileSync(join(partialOf("noted"), "notes"), "mine");
    await expectFailure([session.id, "-o", "noted"], "CONFIG_INVALID");
    expect(readFileSync(join(partialOf("noted"), "notes"), "utf8")).toBe("mine");
    expect(existsSync(join(folder, "noted"))).toBe(false);
  });

  test("with --secret at its last step leaves none behind, and none is handed out without it", async () => {
    const env = { ENCRYPTION_KEY: KEK_TEXT };
    mkdirSync(join(partialOf("secretless"), "blobs"), { recursive: true });
    const stray = join(partialOf("secretless"), "blobs", "stray");
    writeFileSync(stray, "");
    await expectFailure([session.id, "-o", "secretless", "--secret"], "CONFIG_INVALID", env);
    expect(secretsOf("secretless")).toEqual([]);
    rmSync(stray);
    expect((await run(["export", session.id, "-o", "secretless"])).code).toBe(0);
    expect(readdirSync(join(folder, "secretless")).toSorted()).toEqual(
      ["blobs", ...session.files.keys()].toSorted(),
    );
  });

  test("by a version that left its secret doesn't get it into the next one's folder", async () => {
    mkdirSync(partialOf("left"));
    writeFileSync(join(partialOf("left"), "session-secret"), `1 ${session.secret}\n`);
    expect((await run(["export", session.id, "-o", "left"])).code).toBe(0);
    expect(secretsOf("left")).toEqual([]);
  });
});

describe("two exports to one folder at the same time", () => {
  const line = utf8("line\n".repeat(1000));
  async function ready(name: string) {
    const target = await openExportFolder(join(folder, name), session.id);
    await target.write("chunks.ndjson", line);
    await target.writeBlob(0, utf8("blob"));
    return target;
  }

  test("one hands out whole files while the other writes, and the other is told", async () => {
    const first = await ready("raced");
    const second = await openExportFolder(join(folder, "raced"), session.id);
    const gate = Promise.withResolvers<void>();
    const begun = Promise.withResolvers<void>();
    const writing = second.write(
      "chunks.ndjson",
      (async function* () {
        yield utf8("half a ");
        begun.resolve();
        await gate.promise;
        yield utf8("line");
      })(),
    );
    await begun.promise;
    await first.publish(1, undefined);
    gate.resolve();
    await expect(writing).rejects.toEqual(expect.objectContaining({ code: "OUTPUT_FAILED" }));
    expect(readFileSync(join(folder, "raced", "chunks.ndjson")).equals(asBuffer(line))).toBe(true);
    expect(readdirSync(join(folder, "raced")).toSorted()).toEqual(["blobs", "chunks.ndjson"]);
    expect(blobsIn(join(folder, "raced"))).toEqual(["0.blob"]);
  });

  test("the secret of one is never in the folder of the other", async () => {
    for (let round = 0; round < 20; round++) {
      const name = `secret-of-one-${round}-`;
      const [without, withSecret] = [await ready(name), await ready(name)];
      const outcomes = await Promise.allSettled([
        without.publish(1, undefined),
        withSecret.publish(1, utf8("1 secret\n")),
      ]);
      const published = outcomes.map(({ status }) => status === "fulfilled");
      expect(published.filter(Boolean).length).toBe(1);
      expect(secretsOf(name)).toEqual(published[1] === true ? [join(name, "session-secret")] : []);
    }
  });

  test("a name that is taken at the last moment stays, and no secret is left", async () => {
    const target = await ready("taken");
    mkdirSync(join(folder, "taken"));
    writeFileSync(join(folder, "taken", "mine"), "mine");
    const publishing = target.publish(1, utf8("1 secret\n"));
    await expect(publishing).rejects.toEqual(expect.objectContaining({ code: "CONFIG_INVALID" }));
    expect(secretsOf("taken")).toEqual([]);
    expect(existsSync(join(partialOf("taken"), "chunks.ndjson"))).toBe(true);
  });

  test("as commands: one folder, which verifies", async () => {
    const both = await Promise.all([1, 2].map(() => run(["export", session.id, "-o", "both"])));
    expect(both.filter(({ code }) => code === 0).length).toBe(1);
    const place = join(folder, "both");
    const args = [
      "verify",
      join(place, session.names.manifest),
      "--key",
      KEY,
      "--blobs",
      join(place, "blobs"),
    ];
    expect((await run(args, { MONGODB_URL: "" })).code).toBe(0);
    expect(readdirSync(place).toSorted()).toEqual(["blobs", ...session.files.keys()].toSorted());
  });
});

/** Wherever they are: in the folder, in what grows to it, or on the way from one to the other. */
function secretsOf(name: string): readonly string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" }).filter(
    (path) =>
      (path.startsWith(name) || path.startsWith(`${session.id}.`)) && path.endsWith("/session-secret"),
  );
}

test("a session id that is no id is refused before any path is made of it", async () => {
  await expectFailure(["../up", "-o", "none"], "JOB_INVALID");
});
