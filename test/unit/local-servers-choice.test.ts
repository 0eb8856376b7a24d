import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { onFreePort } from "../../deploy/local/free-port.ts";
import { STAND_IN_VERSION } from "../../deploy/local/mongo-standin.ts";
import { cacheFolder, findOnPath, isAtLeast, lastLine } from "../../deploy/local/programs.ts";
import { type LocalServer, PassedOver, type Source, startFirst } from "../../deploy/local/source.ts";

const server: LocalServer = { url: "redis://given", label: "redis 7", standIn: false, stop: async () => {} };

function passOver(reason: string) {
  return async (): Promise<LocalServer> => {
    throw new PassedOver(reason);
  };
}

function sourcesOf(...starts: readonly Source["start"][]): readonly Source[] {
  return starts.map((start, index) => ({ name: `source ${index + 1}`, start }));
}

describe("startFirst", () => {
  test("takes the first source that has a server, and says in one line why not the ones before", async () => {
    const lines: string[] = [];
    const never = async () => expect.unreachable("a later source was asked");
    const starts = [passOver("REDIS_URL is not set"), passOver("no Docker"), async () => server, never];
    const started = await startFirst("Redis", sourcesOf(...starts), "", { say: (line) => lines.push(line) });
    expect(started).toBe(server);
    expect(lines).toEqual(["Redis: redis 7; passed over: REDIS_URL is not set; no Docker"]);
  });

  test("says what it tries as soon as that takes a while, and why not the ones before", async () => {
    const lines: string[] = [];
    const slowly = async (): Promise<LocalServer> => {
      await sleep(700);
      throw new PassedOver("no answer");
    };
    const sources = sourcesOf(passOver("no Docker"), slowly, async () => server);
    await startFirst("Redis", sources, "", { say: (line) => lines.push(line) });
    expect(lines).toEqual([
      "Redis: trying source 2; passed over: no Docker",
      "Redis: redis 7; passed over: no Docker; no answer",
    ]);
  });

  test("without any server gives every reason and what to do", async () => {
    const start = startFirst("MongoDB", sourcesOf(passOver("no A"), passOver("no B")), "Install B.", {
      say: () => {},
    });
    await expect(start).rejects.toMatchObject({
      code: "LOCAL_SERVER_UNAVAILABLE",
      message: "No MongoDB: no A; no B. Install B.",
    });
  });

  test("does not hide a failure that is no reason to pass over", async () => {
    const broken = async () => {
      throw new RangeError("a bug");
    };
    const start = startFirst(
      "Redis",
      sourcesOf(broken, async () => server),
      "",
      { say: () => {} },
    );
    await expect(start).rejects.toThrow(RangeError);
  });

  test("asks no further source once it is called off", async () => {
    const calledOff = new AbortController();
    const first = async () => {
      calledOff.abort(new Error("called off"));
      throw new PassedOver("cut short");
    };
    const { signal } = calledOff;
    const start = startFirst(
      "Redis",
      sourcesOf(first, async () => server),
      "",
      { say: () => {}, signal },
    );
    await expect(start).rejects.toThrow("called off");
  });
});

describe("onFreePort", () => {
  const taken = new PassedOver("redis-server ended (code 1): the port is in use");

  test("chooses again when somebody took the port first", async () => {
    const ports: number[] = [];
    const started = await onFreePort(undefined, async (port) => {
      ports.push(port);
      if (ports.length < 3) throw taken;
      return port;
    });
    expect(ports).toHaveLength(3);
    expect(started).toBe(ports[2]);
  });

  test("gives up on a port that was asked for, and on other failures, at once", async () => {
    let tries = 0;
    const fail = (error: Error) => async () => {
      tries += 1;
      throw error;
    };
    await expect(onFreePort(1234, fail(taken))).rejects.toBe(taken);
    await expect(onFreePort(undefined, fail(new PassedOver("bad option")))).rejects.toThrow("bad option");
    expect(tries).toBe(2);
  });

  test("gives up in the end", async () => {
    let tries = 0;
    const start = onFreePort(undefined, async () => {
      tries += 1;
      throw taken;
    });
    await expect(start).rejects.toBe(taken);
    expect(tries).toBe(5);
  });
});

describe("findOnPath", () => {
  let folder = "";
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "session-processor-test-"));
    writeFileSync(join(folder, "readable"), "");
    writeFileSync(join(folder, "program"), "");
    chmodSync(join(folder, "program"), 0o755);
    mkdirSync(join(folder, "folder"));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test("finds the first name that is an executable file", () => {
    const env = { PATH: `/nonexistent:${folder}` };
    expect(findOnPath(["absent", "program"], env)).toBe(join(folder, "program"));
  });

  test("finds neither folders nor files that can't be run, nor anything in relative folders", () => {
    expect(findOnPath(["readable", "folder"], { PATH: folder })).toBeUndefined();
    expect(findOnPath(["sh"], { PATH: ".:bin" })).toBeUndefined();
    expect(findOnPath(["sh"], {})).toBeUndefined();
  });
});

test("versions are compared number by number, not as text", () => {
  expect(isAtLeast("7.0.15", [6, 2])).toBe(true);
  expect(isAtLeast("10.0", [6, 2])).toBe(true);
  expect(isAtLeast("6.2", [6, 2])).toBe(true);
  expect(isAtLeast("17", [17])).toBe(true);
  expect(isAtLeast("6.0.16", [6, 2])).toBe(false);
  expect(isAtLeast("1.8.0", [17])).toBe(false);
});

test("the cache is the user's, and a relative XDG_CACHE_HOME is ignored", () => {
  expect(cacheFolder({ XDG_CACHE_HOME: "/cache", HOME: "/home/u" })).toBe("/cache/session-processor");
  expect(cacheFolder({ XDG_CACHE_HOME: "cache", HOME: "/home/u" })).toBe("/home/u/.cache/session-processor");
  expect(cacheFolder({ HOME: "/home/u" })).toBe("/home/u/.cache/session-processor");
});

test("the last line is the last that says something", () => {
  expect(lastLine("first\n last \n\n")).toBe("last");
  expect(lastLine("\n")).toBe("no output");
});

test("the stand-in's cache folder is named by the version that Maven fetches", () => {
  const pom = readFileSync(new URL("../../deploy/local/mongo-standin/pom.xml", import.meta.url), "utf8");
  const versions = [
    ...pom.matchAll(/<artifactId>mongo-java-server.*<\/artifactId>\s*<version>(.*)<\/version>/g),
  ];
  expect(versions.map((match) => match[1])).toEqual([STAND_IN_VERSION, STAND_IN_VERSION]);
});
