import { spawnSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, type TestContext, test } from "vitest";
import {
  createLeftoverSweep,
  probeDirectory,
  writeAtomically,
} from "../../src/adapters/file/atomic-files.ts";
import { generateSigningKey, loadSigningKey } from "../../src/adapters/file/signing-key.ts";
import { utf8 } from "../../src/core/bytes.ts";
import { LucidError } from "../../src/core/errors.ts";
import { parsePublicKey } from "../../src/core/manifest/public-key.ts";

const NOBODY_UID = 65_534;
const withCode = (code: string): unknown => expect.objectContaining({ code });
const unusableBecause = (words: RegExp): unknown =>
  expect.objectContaining({
    code: "MANIFEST_DIRECTORY_UNUSABLE",
    message: expect.stringMatching(words) as string,
  });

let directory: string;
let unmount: () => void;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "atomic-files-"));
  chmodSync(directory, 0o755);
  unmount = () => {};
});

afterEach(() => {
  unmount();
  rmSync(directory, { recursive: true, force: true });
});

function read(name: string): string {
  return readFileSync(join(directory, name), "utf8");
}

async function* blocksOf(...blocks: readonly string[]): AsyncGenerator<Uint8Array> {
  for (const block of blocks) yield utf8(block);
}

async function* failingAfter(block: Uint8Array, error: Error): AsyncGenerator<Uint8Array> {
  yield block;
  throw error;
}

/** A small file system of its own over the test's folder; the test is skipped, with the reason, where mounting isn't allowed. */
function mountTmpfs(context: TestContext, options: string): void {
  const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory]).status === 0;
  context.skip(!mounted, "mounting a tmpfs is not permitted here");
  unmount = () => {
    spawnSync("umount", [directory]);
  };
}

/** Root may do everything: as nobody, what a mode forbids is forbidden. */
async function asUnprivileged(body: () => Promise<void>): Promise<void> {
  const isRoot = process.geteuid?.() === 0;
  if (isRoot) process.seteuid?.(NOBODY_UID);
  try {
    await body();
  } finally {
    if (isRoot) process.seteuid?.(0);
  }
}

describe("writing a file atomically", () => {
  test("gives it whole, from bytes or from a stream, and leaves nothing beside it", async () => {
    expect(await writeAtomically(directory, "a.json", utf8("one"))).toBe("written");
    expect(await writeAtomically(directory, "b.ndjson", blocksOf("one\n", "", "two\n"))).toBe("written");
    expect([read("a.json"), read("b.ndjson")]).toEqual(["one", "one\ntwo\n"]);
    expect(readdirSync(directory).toSorted()).toEqual(["a.json", "b.ndjson"]);
  });

  test("takes the mode it is given, and else one that only its owner may write", async () => {
    await writeAtomically(directory, "a", utf8("x"));
    await writeAtomically(directory, "key", utf8("x"), { mode: 0o600 });
    expect(statSync(join(directory, "a")).mode & 0o733).toBe(0o600);
    expect(statSync(join(directory, "key")).mode & 0o777).toBe(0o600);
  });

  test("leaves a file with the same bytes alone", async () => {
    const large = new Uint8Array(200_000).fill(0x61);
    await writeAtomically(directory, "a", large);
    const { ino } = statSync(join(directory, "a"));
    expect(await writeAtomically(directory, "a", large)).toBe("identical");
    expect(statSync(join(directory, "a")).ino).toBe(ino);
    expect(readdirSync(directory)).toEqual(["a"]);
  });

  test.each([
    ["of the same length", `${"a".repeat(99_999)}b`],
    ["that is a beginning of it", "a".repeat(10)],
    ["that goes on after it", "a".repeat(100_001)],
    ["that is empty", ""],
  ])("reports a file %s with other bytes and doesn't touch it", async (_, existing) => {
    writeFileSync(join(directory, "a"), existing);
    expect(await writeAtomically(directory, "a", utf8("a".repeat(100_000)))).toBe("differs");
    expect(read("a")).toBe(existing);
    expect(readdirSync(directory)).toEqual(["a"]);
  });

  test("replaces a file when asked to, also through no link", async () => {
    writeFileSync(join(directory, "other"), "kept");
    symlinkSync(join(directory, "other"), join(directory, "a"));
    expect(await writeAtomically(directory, "a", utf8("new"), { existing: "replace" })).toBe("written");
    expect(lstatSync(join(directory, "a")).isFile()).toBe(true);
    expect([read("a"), read("other")]).toEqual(["new", "kept"]);
  });

  test("reports a link or a folder in its place as other bytes", async () => {
    writeFileSync(join(directory, "real"), "x");
    symlinkSync(join(directory, "real"), join(directory, "link"));
    symlinkSync(join(directory, "nowhere"), join(directory, "dangling"));
    mkdirSync(join(directory, "folder"));
    for (const name of ["link", "dangling", "folder"]) {
      expect(await writeAtomically(directory, name, utf8("x"))).toBe("differs");
    }
    expect(existsSync(join(directory, "nowhere"))).toBe(false);
  });

  test("has one winner among writers of different bytes, and only equals among writers of the same", async () => {
    const different = await Promise.all(
      Array.from({ length: 8 }, (_, writer) => writeAtomically(directory, "a", utf8(`writer ${writer}`))),
    );
    expect(different.filter((outcome) => outcome === "written")).toHaveLength(1);
    expect(different.filter((outcome) => outcome === "differs")).toHaveLength(7);
    const same = await Promise.all(
      Array.from({ length: 8 }, () => writeAtomically(directory, "b", utf8("the same"))),
    );
    expect(same.toSorted()).toEqual([...Array.from({ length: 7 }, () => "identical"), "written"]);
    expect(readdirSync(directory)).toEqual(["a", "b"]);
  });

  test("passes on what its content throws, and leaves nothing", async () => {
    const broken = failingAfter(utf8("half"), new LucidError("STORE_UNAVAILABLE", "no chunks now"));
    await expect(writeAtomically(directory, "a", broken)).rejects.toThrow(withCode("STORE_UNAVAILABLE"));
    expect(readdirSync(directory)).toEqual([]);
  });

  test("shows nothing under the name before the last block", async () => {
    const names: string[][] = [];
    async function* watched(): AsyncGenerator<Uint8Array> {
      yield utf8("a");
      names.push(readdirSync(directory));
      yield utf8("b");
    }
    await writeAtomically(directory, "a", watched());
    expect(names).toEqual([[expect.stringMatching(/^\.a\.[0-9a-f]{32}\.partial$/)]]);
  });

  test.each(["../a", "a/b", ".a", "", "a".repeat(201)])("refuses the name %j", async (name) => {
    await expect(writeAtomically(directory, name, utf8("x"))).rejects.toThrow(withCode("INTERNAL"));
  });

  test("fails when its partial file is taken away under it", async () => {
    async function* robbed(): AsyncGenerator<Uint8Array> {
      yield utf8("a");
      for (const name of readdirSync(directory)) unlinkSync(join(directory, name));
    }
    await expect(writeAtomically(directory, "a", robbed())).rejects.toThrow(unusableBecause(/went away/));
  });
});

describe("a directory that can't be written", () => {
  async function expectUnusable(path: string, words: RegExp, content: Uint8Array = utf8("x")): Promise<void> {
    await expect(writeAtomically(path, "new", content)).rejects.toThrow(unusableBecause(words));
    await expect(probeDirectory(path)).rejects.toThrow(unusableBecause(words));
  }

  test("is named as missing, and not made", async () => {
    await expectUnusable(join(directory, "nowhere"), /is missing/);
    expect(readdirSync(directory)).toEqual([]);
  });

  test("is named as a file", async () => {
    writeFileSync(join(directory, "file"), "");
    await expectUnusable(join(directory, "file"), /is not a folder/);
  });

  test("is named as forbidden", async () => {
    chmodSync(directory, 0o555);
    await asUnprivileged(() => expectUnusable(directory, /may not be written/));
    chmodSync(directory, 0o755);
    expect(readdirSync(directory)).toEqual([]);
  });

  test("is named as read-only, and is used again when it is writable again", async (context) => {
    mountTmpfs(context, "size=64k,ro");
    await expectUnusable(directory, /read-only/);
    spawnSync("mount", ["-o", "remount,rw", directory]);
    await probeDirectory(directory);
    expect(await writeAtomically(directory, "new", utf8("x"))).toBe("written");
  });

  test("is named as full, has no partial file, and is used again when there is room", async (context) => {
    mountTmpfs(context, "size=64k");
    await expect(writeAtomically(directory, "large", new Uint8Array(100_000))).rejects.toThrow(
      unusableBecause(/is full/),
    );
    expect(readdirSync(directory)).toEqual([]);
    writeFileSync(join(directory, "filler"), new Uint8Array(65_536));
    await expectUnusable(directory, /is full/);
    expect(readdirSync(directory)).toEqual(["filler"]);
    unlinkSync(join(directory, "filler"));
    await probeDirectory(directory);
    expect(await writeAtomically(directory, "new", new Uint8Array(10_000))).toBe("written");
  });

  test("is told from one that can: the probe leaves nothing", async () => {
    await probeDirectory(directory);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe("the sweep of leftovers", () => {
  const leftover = `.a.json.${"0a".repeat(16)}.partial`;
  let nowMs = 0;
  const sweepOf = () => createLeftoverSweep(directory, () => nowMs, 1_000);

  beforeEach(() => {
    nowMs = 5_000;
  });

  test("removes a partial file that it has seen unchanged for long enough, whatever its file time says", async () => {
    writeFileSync(join(directory, leftover), "half");
    for (const year of ["1970", "2099"]) {
      utimesSync(join(directory, leftover), new Date(`${year}-06-01`), new Date(`${year}-06-01`));
      const sweep = sweepOf();
      expect(await sweep.sweep()).toBe(0);
      nowMs += 999;
      expect(await sweep.sweep()).toBe(0);
      expect(existsSync(join(directory, leftover))).toBe(true);
    }
    const sweep = sweepOf();
    await sweep.sweep();
    nowMs += 1_000;
    expect(await sweep.sweep()).toBe(1);
    expect(readdirSync(directory)).toEqual([]);
  });

  test("leaves a partial file that still grows", async () => {
    const sweep = sweepOf();
    for (let size = 1; size <= 5; size++) {
      writeFileSync(join(directory, leftover), "x".repeat(size));
      expect(await sweep.sweep()).toBe(0);
      nowMs += 1_000;
    }
    expect(existsSync(join(directory, leftover))).toBe(true);
  });

  test("leaves files of any other name", async () => {
    const others = [
      "a.json",
      ".a.json.partial",
      `.a.json.${"0A".repeat(16)}.partial`,
      `a.${"0a".repeat(16)}.partial`,
    ];
    for (const name of others) writeFileSync(join(directory, name), "");
    const sweep = sweepOf();
    await sweep.sweep();
    nowMs += 10_000;
    expect(await sweep.sweep()).toBe(0);
    expect(readdirSync(directory).toSorted()).toEqual(others.toSorted());
  });

  test("recognises what a killed writer leaves", async () => {
    const script = `
      import { writeAtomically } from ${JSON.stringify(new URL("../../src/adapters/file/atomic-files.ts", import.meta.url).href)};
      async function* endless() { yield new Uint8Array(10); process.kill(process.pid, "SIGKILL"); await new Promise(() => {}); }
      await writeAtomically(${JSON.stringify(directory)}, "a.json", endless());`;
    const { signal } = spawnSync(process.execPath, ["--input-type=module", "-e", script]);
    expect(signal).toBe("SIGKILL");
    expect(readdirSync(directory)).toHaveLength(1);
    const sweep = sweepOf();
    await sweep.sweep();
    nowMs += 1_000;
    expect(await sweep.sweep()).toBe(1);
  });

  test("says that the directory is gone", async () => {
    const sweep = createLeftoverSweep(join(directory, "nowhere"), () => nowMs);
    await expect(sweep.sweep()).rejects.toThrow(unusableBecause(/is missing/));
  });
});

describe("the signing key file", () => {
  const generated = generateSigningKey();
  const path = () => join(directory, "signing.pem");
  const unusableKey = (words: RegExp): unknown =>
    expect.objectContaining({
      code: "SIGNING_KEY_UNUSABLE",
      message: expect.stringMatching(words) as string,
    });

  function writeKey(text: string, mode: number): void {
    writeFileSync(path(), text);
    chmodSync(path(), mode);
  }

  test.each([0o600, 0o400])(
    "of mode %o gives the key that was generated, in all its public forms",
    async (mode) => {
      writeKey(generated.privatePem, mode);
      const key = await loadSigningKey(path());
      expect(key.keyId).toBe(generated.keyId);
      for (const form of [generated.base64, generated.pem, generated.vkey]) {
        expect(parsePublicKey(form)).toEqual(key.publicKey);
      }
    },
  );

  test.each([0o640, 0o604, 0o660, 0o644, 0o777])("of one's own with mode %o is refused", async (mode) => {
    writeKey(generated.privatePem, mode);
    await expect(loadSigningKey(path())).rejects.toThrow(unusableKey(/chmod 0600/));
  });

  test("is followed through links, and it is the file whose mode counts", async () => {
    writeKey(generated.privatePem, 0o600);
    renameSync(path(), join(directory, "real.pem"));
    symlinkSync("real.pem", path());
    await expect(loadSigningKey(path())).resolves.toMatchObject({ keyId: generated.keyId });
    chmodSync(join(directory, "real.pem"), 0o644);
    await expect(loadSigningKey(path())).rejects.toThrow(unusableKey(/chmod 0600/));
  });

  test("of root may be readable by the service's group, and by nobody else", async (context) => {
    context.skip(process.geteuid?.() !== 0, "only root can make a file of root");
    writeKey(generated.privatePem, 0o440);
    const group = process.getegid?.() ?? 0;
    chownSync(path(), 0, group);
    await asUnprivileged(async () => {
      await expect(loadSigningKey(path())).resolves.toMatchObject({ keyId: generated.keyId });
    });
    chmodSync(path(), 0o444);
    await asUnprivileged(() => expect(loadSigningKey(path())).rejects.toThrow(unusableKey(/chmod 0600/)));
  });

  test("of another user is refused", async (context) => {
    context.skip(process.geteuid?.() !== 0, "only root can give a file away");
    writeKey(generated.privatePem, 0o600);
    chownSync(path(), NOBODY_UID, NOBODY_UID);
    await expect(loadSigningKey(path())).rejects.toThrow(unusableKey(/another user/));
  });

  test.each<[string, string, RegExp]>([
    ["is empty", "", /PKCS8 PEM/],
    ["holds a public key", generated.pem, /PKCS8 PEM/],
    ["is damaged", generated.privatePem.replace("MC4C", "MC5C"), /damaged/],
    [
      "holds an ECDSA key",
      generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({
        format: "pem",
        type: "pkcs8",
      }),
      /another kind of key/,
    ],
    ["is large", `${generated.privatePem}${" ".repeat(5_000)}`, /too large/],
  ])("that %s is refused, and its content stays out of the error", async (_, text, words) => {
    writeKey(text, 0o600);
    const error: unknown = await loadSigningKey(path()).catch((thrown: unknown) => thrown);
    expect(error).toEqual(unusableKey(words));
    const secretPart = generated.privatePem.split("\n")[1] as string;
    expect((error as Error).message).not.toContain(secretPart.slice(0, 16));
  });

  test("that is missing, a folder or a FIFO is refused at once", async () => {
    await expect(loadSigningKey(path())).rejects.toThrow(unusableKey(/can't be opened/));
    await expect(loadSigningKey(directory)).rejects.toThrow(unusableKey(/not a regular file/));
    spawnSync("mkfifo", ["-m", "600", path()]);
    await expect(loadSigningKey(path())).rejects.toThrow(unusableKey(/not a regular file/));
  });
});
