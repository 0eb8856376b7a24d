import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { claimFolder } from "../../deploy/local/folder-claim.ts";

const CLAIMS = ".in-use-by";
const lines: string[] = [];
const around = { program: "a test", say: (line: string) => void lines.push(line), signal: undefined };

function folderForTest(): string {
  const folder = mkdtempSync(join(tmpdir(), "session-processor-test-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A process that runs until it is killed. */
async function otherProcess() {
  const child = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000); console.log(1)"]);
  onTestFinished(() => void child.kill("SIGKILL"));
  await once(child.stdout, "data");
  const end = async (): Promise<void> => {
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  };
  return { pid: child.pid ?? Number.NaN, end };
}

describe("a claim of a folder", () => {
  test("refuses everybody else, by process and program, until it is released, and leaves nothing then", async () => {
    const folder = folderForTest();
    const claim = await claimFolder(folder, around);
    await expect(claimFolder(folder, around)).rejects.toMatchObject({
      code: "LOCAL_SERVER_UNAVAILABLE",
      message: expect.stringContaining(`${folder} is in use by process ${process.pid} (a test)`),
    });
    claim.release();
    claim.release();
    expect(readdirSync(folder)).toEqual([]);
    (await claimFolder(folder, around)).release();
  });

  test("of several processes at the same moment is one's at most", async () => {
    const folder = folderForTest();
    const script = `
      import { claimFolder } from ${JSON.stringify(new URL("../../deploy/local/folder-claim.ts", import.meta.url).href)};
      const around = { program: "one of them", say: () => {}, signal: undefined };
      const tried = claimFolder(${JSON.stringify(folder)}, around);
      tried.then(() => console.log("claimed"), ({ code }) => console.log(code));
      setInterval(() => {}, 1000);`;
    const said = await Promise.all(
      Array.from({ length: 4 }, async () => {
        const child = spawn(process.execPath, ["--input-type=module", "--eval", script]);
        onTestFinished(() => void child.kill("SIGKILL"));
        return String((await once(child.stdout, "data"))[0]).trim();
      }),
    );
    const claimed = said.filter((one) => one === "claimed");
    expect(claimed.length).toBeLessThanOrEqual(1);
    expect(said.filter((one) => one === "LOCAL_SERVER_UNAVAILABLE")).toHaveLength(4 - claimed.length);
  });

  test("waits for servers that a run has left behind, and says so", async () => {
    const folder = folderForTest();
    const server = await otherProcess();
    const claim = await claimFolder(folder, around);
    claim.add(server.pid, "redis-server");
    const [own = ""] = readdirSync(join(folder, CLAIMS)).filter((name) => name.startsWith(`${process.pid}-`));
    rmSync(join(folder, CLAIMS, own)); // As if this process were gone.
    lines.length = 0;
    const next = claimFolder(folder, around);
    setTimeout(() => void server.end(), 200);
    (await next).release();
    expect(lines).toEqual([
      expect.stringContaining(`process ${server.pid} (redis-server) of an earlier run`),
    ]);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("of a process that is gone counts for nothing, nor does one whose number is another's now", async () => {
    const folder = folderForTest();
    const gone = await otherProcess();
    await gone.end();
    mkdirSync(join(folder, CLAIMS));
    for (const name of [`${gone.pid}-1`, `${process.pid}-1`])
      writeFileSync(join(folder, CLAIMS, name), JSON.stringify({ program: "npm run services", isRun: true }));
    (await claimFolder(folder, around)).release();
    expect(existsSync(join(folder, CLAIMS))).toBe(false);
  });

  test("touches nothing that isn't its own", async () => {
    const folder = folderForTest();
    mkdirSync(join(folder, CLAIMS));
    writeFileSync(join(folder, CLAIMS, "notes.txt"), "mine");
    (await claimFolder(folder, around)).release();
    expect(readdirSync(join(folder, CLAIMS))).toEqual(["notes.txt"]);
  });
});
