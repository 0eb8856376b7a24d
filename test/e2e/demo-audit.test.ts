import { generateKeyPairSync, randomBytes } from "node:crypto";
import { cpSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { dropTrial } from "../../deploy/local/trial.ts";
import { asBuffer } from "../../src/core/bytes.ts";
import { ed25519PublicKey } from "../../src/core/merkle/checkpoint.ts";
import { type PythonCall, type PythonVerifier, pythonVerifier } from "../support/python-verifier.ts";
import { testServers } from "../support/servers.ts";
import { bareEnvironment, type ProgramResult, runProgramToEnd } from "../support/worker-process.ts";

/*
 * What the demo leaves, handed to an auditor and checked by the Python verifier: as it is, and tampered with.
 */

const servers = testServers();
const CHUNKS = 3;
const PROVEN_INDEX = 1;
const DEMO_TIMEOUT_MS = 120_000;
const found = await pythonVerifier();
const python: PythonVerifier = typeof found === "function" ? found : () => [];
const folder = mkdtempSync(join(tmpdir(), "demo-audit-"));
/** Of the demo's run: names, keys, and where its servers are. */
let env: NodeJS.ProcessEnv = {};
let key = "";
/** What the auditor gets: the exported folder with both forms of a proof in it. */
const given = join(folder, "given");
let manifest = "";

beforeAll(async () => {
  if (typeof found !== "function") return;
  const file = join(folder, "recording");
  // Text in two chunks, and one that doesn't compress.
  writeFileSync(file, Buffer.concat([Buffer.alloc(2_097_152, "a small file\n"), randomBytes(300)]));
  const urls = { REDIS_URL: servers.redisUrl, MONGODB_URL: servers.mongodbUrl };
  const demo = await orThrow(["demo", file, "--keep"], { ...bareEnvironment(), ...urls, TMPDIR: folder });
  env = { ...bareEnvironment(), ...exportsOf(/\. (\S+demo\.env)/.exec(demo.stderr)?.[1] ?? "") };
  key = /--key ([\w+/=]{44})/.exec(demo.stderr)?.[1] ?? "";
  const session = /sealed: (sess-demo-[0-9a-f]{12})/.exec(demo.stderr)?.[1] ?? "";
  manifest = `${session}_recording_manifest.json`;
  for (const args of [
    ["export", session, "-o", given, "--secret"],
    ["proof", session, `${PROVEN_INDEX}`, "-o", join(given, "proof.json")],
    ["proof", session, `${PROVEN_INDEX}`, "--format", "tlog", "-o", join(given, "proof.tlog")],
  ]) {
    await orThrow(args, env);
  }
}, DEMO_TIMEOUT_MS);
beforeEach((ctx) => {
  if (typeof found !== "function") ctx.skip(true, `needs the Python verifier: ${found.missing}`);
});
afterAll(async () => {
  const { MONGODB_URL: mongodbUrl, REDIS_URL: redisUrl, QUEUE_PREFIX: queuePrefix } = env;
  if (mongodbUrl !== undefined && redisUrl !== undefined && queuePrefix !== undefined)
    await dropTrial({ mongodbUrl, redisUrl, queuePrefix });
  rmSync(folder, { recursive: true, force: true });
});

function run(args: readonly string[], environment: NodeJS.ProcessEnv): Promise<ProgramResult> {
  return runProgramToEnd(args, { env: environment, cwd: folder });
}

async function orThrow(args: readonly string[], environment: NodeJS.ProcessEnv): Promise<ProgramResult> {
  const result = await run(args, environment);
  if (result.code === 0) return result;
  throw new Error(`${args[0]} ended with ${result.code}: ${result.stderr.slice(-2_000)}`);
}

/** As a shell reads them. */
function exportsOf(file: string): NodeJS.ProcessEnv {
  const lines = readFileSync(file, "utf8").trimEnd().split("\n");
  return Object.fromEntries(
    lines.map((line) => {
      const [, name = "", value = ""] = /^export (\w+)='([^']*)'$/.exec(line) ?? [];
      return [name, value];
    }),
  );
}

/** The session's files, and with `open` every blob opened. */
function sessionCall(place: string, pinned = key, blobs: "open" | "leave" = "open"): PythonCall {
  const opened = ["--blobs", join(place, "blobs"), "--secret", join(place, "session-secret")];
  return { argv: ["session", join(place, manifest), "--key", pinned, ...(blobs === "open" ? opened : [])] };
}

function proofCall(place: string, file: string, index = PROVEN_INDEX): PythonCall {
  const heads = file === "proof.json" ? ["--manifest", join(place, manifest)] : [];
  return { argv: ["proof", join(place, file), "--key", key, ...heads, "--index", String(index)] };
}

function copy(name: string): string {
  const place = join(folder, name);
  cpSync(given, place, { recursive: true });
  return place;
}

const chunksFile = (): string => manifest.replace(/\.json$/, ".chunks.ndjson");
const checkpoint = (): string => manifest.replace(/\.json$/, ".checkpoint");

describe("of what the demo leaves, the Python verifier", () => {
  test("accepts the session, opens and compares every blob, and accepts both forms of a proof", () => {
    const results = python([
      sessionCall(given),
      proofCall(given, "proof.json"),
      proofCall(given, "proof.tlog"),
    ]);
    expect(results).toEqual([
      expect.objectContaining({
        code: 0,
        chunks: CHUNKS,
        blobs: { hashed: CHUNKS, opened: CHUNKS, compared: CHUNKS },
      }),
      expect.objectContaining({ code: 0, leaf_index: PROVEN_INDEX }),
      expect.objectContaining({ code: 0, leaf_index: PROVEN_INDEX }),
    ]);
  });

  test("and our own verifier accept the same, with nothing but the pinned key", async () => {
    const stranger = { PATH: process.env["PATH"] };
    const pinned = ["--key", key];
    const blobs = ["--blobs", join(given, "blobs")];
    const heads = ["--manifest", join(given, manifest)];
    for (const args of [
      ["verify", join(given, manifest), ...pinned, ...blobs],
      ["verify-proof", join(given, "proof.json"), ...pinned, ...heads],
      ["verify-proof", join(given, "proof.tlog"), ...pinned],
    ])
      expect(await run(args, stranger)).toMatchObject({ code: 0 });
  });

  test.each([
    ["manifest", () => manifest],
    ["chunks file", chunksFile],
    ["checkpoint", checkpoint],
    ["blob", () => "blobs/1.blob"],
    ["blob that is not compressed", () => "blobs/2.blob"],
    ["proof, JSON", () => "proof.json"],
    ["proof, tlog", () => "proof.tlog"],
  ])("refuses any changed byte of the %s", (name, fileOf) => {
    const place = copy(`bytes of the ${name}`);
    const file = join(place, fileOf());
    const blobs = name.startsWith("blob") ? "open" : "leave";
    const call = name.startsWith("proof") ? proofCall(place, fileOf()) : sessionCall(place, key, blobs);
    const flips = Array.from(
      readFileSync(file),
      (_, at): PythonCall => ({ ...call, file, flip: [at, 1 << (at % 7)] }),
    );
    const [sound, ...changed] = python([call, ...flips]);
    expect(sound).toMatchObject({ code: 0 });
    expect(changed.length).toBe(flips.length);
    const accepted = changed.flatMap(({ code }, at) => (code === 0 ? at : []));
    expect(accepted).toEqual([]);
  });

  test("refuses swapped, missing and foreign parts", () => {
    const places: string[] = [];
    const tampered = (name: string, change: (place: string) => void): PythonCall => {
      const place = copy(name);
      places.push(name);
      change(place);
      return sessionCall(place);
    };
    const stranger = asBuffer(ed25519PublicKey(generateKeyPairSync("ed25519").publicKey)).toString("base64");
    const results = python([
      tampered("swapped blobs", (place) => {
        const blob = (name: string): string => join(place, "blobs", name);
        renameSync(blob("0.blob"), blob("x"));
        renameSync(blob("1.blob"), blob("0.blob"));
        renameSync(blob("x"), blob("1.blob"));
      }),
      tampered("blob gone", (place) => rmSync(join(place, "blobs", "2.blob"))),
      tampered("blob with a byte more", (place) => {
        const blob = join(place, "blobs", "2.blob");
        writeFileSync(blob, Buffer.concat([readFileSync(blob), Buffer.alloc(1)]));
      }),
      tampered("swapped lines", (place) => {
        const file = join(place, chunksFile());
        const [first, second, ...rest] = readFileSync(file, "utf8").split("\n");
        writeFileSync(file, [second, first, ...rest].join("\n"));
      }),
      tampered("line gone", (place) => {
        const file = join(place, chunksFile());
        writeFileSync(file, readFileSync(file, "utf8").split("\n").slice(1).join("\n"));
      }),
      tampered("checkpoint gone", (place) => rmSync(join(place, checkpoint()))),
      tampered("another secret", (place) =>
        writeFileSync(join(place, "session-secret"), `1 ${randomBytes(32).toString("base64")}\n`),
      ),
      sessionCall(given, stranger),
      proofCall(given, "proof.json", PROVEN_INDEX + 1),
      proofCall(given, "proof.tlog", PROVEN_INDEX + 1),
    ]);
    places.push("a key that isn't pinned", "another index", "another index, tlog");
    const accepted = results.flatMap(({ code }, at) => (code === 0 ? (places[at] ?? at) : []));
    expect({ accepted, refused: results.length }).toEqual({ accepted: [], refused: places.length });
  });
});

test("the export holds what docs/formats.md names, and nothing else", () => {
  expect(readdirSync(given).toSorted()).toEqual(
    ["blobs", "proof.json", "proof.tlog", manifest, chunksFile(), checkpoint(), "session-secret"].toSorted(),
  );
});
