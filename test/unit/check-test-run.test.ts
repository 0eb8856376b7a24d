import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { plantTree, REPOSITORY, type ToolResult } from "../support/planted-tree.ts";

/** A whole test run as a child, and up to 2 s in which a handle may still close. */
const CHILD_RUN_TIMEOUT_MS = 60_000;

const imports = `import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
`;

interface Leak {
  readonly thing: string;
  readonly file: string;
  /** What async_hooks calls it. */
  readonly type: string;
  readonly statement: string;
}

const leaks: readonly Leak[] = [
  { thing: "a timer", file: "timer", type: "Timeout", statement: "setTimeout(() => {}, 60_000);" },
  {
    thing: "a server",
    file: "server",
    type: "TCPSERVERWRAP",
    statement: 'createServer().listen(0, "127.0.0.1");',
  },
  {
    thing: "a socket",
    file: "socket",
    type: "TCPWRAP",
    statement: `const server = createServer().listen(0, "127.0.0.1");
      await once(server, "listening");
      connect(server.address().port);
      await once(server, "connection");
      server.close();`,
  },
  {
    thing: "a child process",
    file: "child",
    type: "PROCESSWRAP",
    statement: 'spawn(process.execPath, ["-e", "setTimeout(() => {}, 5000)"]);',
  },
  {
    thing: "a thread",
    file: "thread",
    type: "WORKER",
    statement: 'new Worker("setTimeout(() => {}, 60_000)", { eval: true });',
  },
];

interface Run extends ToolResult {
  readonly lines: readonly string[];
}

/** Runs vitest on planted test files (name → source) with this repository's leak check and reporter. */
async function runPlanted(files: Readonly<Record<string, string>>): Promise<Run> {
  const support = (name: string): string => JSON.stringify(join(REPOSITORY, "test/support", name));
  const config = `export default { test: {
    pool: "forks",
    maxWorkers: ${leaks.length},
    include: ["*.test.ts"],
    reporters: ["default", ${support("closing-line-reporter.ts")}],
    setupFiles: [${support("handle-leaks.ts")}],
  } };`;
  const sources = Object.entries(files).map(([name, text]) => [`${name}.test.ts`, `${imports}${text}`]);
  const tree = plantTree({
    ...Object.fromEntries(sources),
    "vitest.config.ts": config,
    "package.json": '{ "type": "module" }',
  });
  try {
    const result = await tree.run("vitest", ["run"]);
    return { ...result, lines: result.stdout.trimEnd().split("\n") };
  } finally {
    tree.remove();
  }
}

describe("a run of files that each leave something open", () => {
  let run: Run;

  beforeAll(async () => {
    const files = leaks.map(({ file, statement }) => [
      file,
      `test("leaves it", async () => { ${statement} expect(1).toBe(1); });`,
    ]);
    run = await runPlanted(Object.fromEntries(files));
  }, CHILD_RUN_TIMEOUT_MS);

  test("fails, although each test passed", () => {
    expect(run.exitCode).toBe(1);
    expect(run.lines.at(-1)).toBe(`${leaks.length} passed, ${leaks.length} failed, 0 skipped`);
  });

  test.each(leaks)("names $thing", ({ file, type }) => {
    const report = run.stderr.split("FAIL").find((part) => part.trim().startsWith(`${file}.test.ts`));
    expect(report).toMatch(new RegExp(`this file leaves \\d+ open:[^]*\\b${type} made by`));
  });
});

describe("a run of files that close what they open", { timeout: CHILD_RUN_TIMEOUT_MS }, () => {
  test("passes, also with an unreferenced timer left", async () => {
    const run = await runPlanted({
      closes: `test("closes it", async () => {
        const server = createServer().listen(0, "127.0.0.1");
        await once(server, "listening");
        server.close();
        await new Worker("0", { eval: true }).terminate();
        clearTimeout(setTimeout(() => {}, 60_000));
        setTimeout(() => {}, 60_000).unref();
        expect(1).toBe(1);
      });`,
    });
    expect(run.stderr).toBe("");
    expect(run.exitCode).toBe(0);
    expect(run.lines.at(-1)).toBe("1 passed, 0 failed, 0 skipped");
  });
});

describe("the closing lines of a run", { timeout: CHILD_RUN_TIMEOUT_MS }, () => {
  test("are each skipped test with its reason, then the counts", async () => {
    const run = await runPlanted({
      mixed: `
        test("passes", () => { expect(1).toBe(1); });
        test("fails", () => { expect(1).toBe(2); });
        test("needs more", (context) => { context.skip(true, "no such server here"); });
        test.skip("says nothing", () => {});`,
    });
    expect(run.exitCode).toBe(1);
    expect(run.lines.slice(-3)).toEqual([
      "skipped: mixed.test.ts > needs more: no such server here",
      "skipped: mixed.test.ts > says nothing: no reason given",
      "1 passed, 1 failed, 2 skipped",
    ]);
  });

  test("count a file that doesn't load and an error outside of any test as failures", async () => {
    const run = await runPlanted({
      broken: 'throw new Error("does not load");',
      stray: `test("passes", async () => {
        void Promise.reject(new Error("nobody waits for me"));
        expect(1).toBe(1);
      });`,
    });
    expect(run.exitCode).toBe(1);
    expect(run.lines.at(-1)).toBe("1 passed, 2 failed, 0 skipped");
  });
});
