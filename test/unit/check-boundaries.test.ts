import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type PlantedTree, plantTree, REPOSITORY } from "../support/planted-tree.ts";

/** Type-aware lint builds a TypeScript program. */
const LINT_TIMEOUT_MS = 60_000;
const IMPORTS = "eslint(no-restricted-imports)";

interface Planted {
  readonly fact: string;
  readonly file: string;
  readonly source: string;
  /** The rule that must report it; absent where the lint must stay silent. */
  readonly rule?: string;
}

/** Each becomes one file with one import; `file` is made unique by its place in the list. */
const forbiddenImports: readonly (readonly [layer: string, specifier: string])[] = [
  ["src/core", "../pipeline/ports.ts"],
  ["src/core", "../adapters/mongo/store.ts"],
  ["src/core", "../schema/job.ts"],
  ["src/core", "../telemetry/log.ts"],
  ["src/core", "../config.ts"],
  ["src/core", "./../config.ts"],
  ["src/core", "./merkle/../../config.ts"],
  ["src/core", "node:fs"],
  ["src/core", "node:worker_threads"],
  ["src/core", "node:timers/promises"],
  ["src/core", "mongodb"],
  ["src/core", "zod"],
  ["src/core", "pino"],
  ["src/core/merkle", "../../schema/job.ts"],
  ["src/core/merkle", "../../../workers/kernel.ts"],
  ["src/core/merkle", "../encrypt/../../schema/job.ts"],
  ["src/core/merkle", "bullmq"],
  ["src/schema", "../pipeline/ports.ts"],
  ["src/schema", "../core/../config.ts"],
  ["src/schema", "node:fs"],
  ["src/schema", "mongodb"],
  ["src/pipeline", "../adapters/mongo/store.ts"],
  ["src/pipeline", "../telemetry/log.ts"],
  ["src/pipeline", "../config.ts"],
  ["src/pipeline", "../core/../config.ts"],
  ["src/pipeline", "../cli/run.ts"],
  ["src/pipeline", "mongodb"],
  ["src/pipeline", "bullmq"],
  ["src/pipeline", "ioredis"],
  ["src/pipeline", "pino"],
  ["src/pipeline", "prom-client"],
  ["src/pipeline", "node:fs"],
  ["src/pipeline", "node:net"],
  ["src/pipeline", "node:http"],
  ["src/pipeline", "node:crypto"],
  ["src/pipeline/seal", "../../adapters/mongo/store.ts"],
  ["src/adapters/mongo", "../../cli/run.ts"],
  ["src/adapters/mongo", "../../main.ts"],
  ["src/adapters/mongo", "../../config.ts"],
  ["src/adapters/mongo", "../../../deploy/local/servers.ts"],
  ["src/adapters/mongo", "../../../test/support/servers.ts"],
  ["src/adapters/mongo", "pino"],
  ["src/adapters/mongo", "prom-client"],
  ["src/adapters/mongo", "zstd-napi"],
  ["src/telemetry", "../schema/job.ts"],
  ["src/telemetry", "../pipeline/ports.ts"],
  ["src/telemetry", "../config.ts"],
  ["src/telemetry", "bullmq"],
  ["src/cli", "bullmq"],
  ["src/cli", "ioredis"],
  ["src/cli", "mongodb"],
  ["src/cli", "lz4-napi"],
  ["src/cli", "../main.ts"],
  ["src/cli", "node:process"],
  ["workers", "../src/pipeline/ports.ts"],
  ["workers", "../src/adapters/mongo/store.ts"],
  ["workers", "../src/core/../config.ts"],
  ["workers", "node:fs"],
  ["workers", "ioredis"],
  ["deploy/local", "../../test/support/servers.ts"],
];

const allowedImports: typeof forbiddenImports = [
  ["src/core", "./bytes.ts"],
  ["src/core", "./merkle/tree.ts"],
  ["src/core", "node:crypto"],
  ["src/core", "node:zlib"],
  ["src/core", "@noble/hashes/blake3.js"],
  ["src/core", "zstd-napi"],
  ["src/core", "lz4-napi"],
  ["src/core", "@napi-rs/blake-hash"],
  ["src/core", "canonicalize"],
  ["src/core/compress", "zstd-napi/binding.js"],
  ["src/core/merkle", "../bytes.ts"],
  ["src/core/merkle", "../encrypt/seal.ts"],
  ["src/core/merkle", "./tile.ts"],
  ["src/schema", "../core/ids.ts"],
  ["src/schema", "./job.ts"],
  ["src/schema", "zod"],
  ["src/pipeline", "./ports.ts"],
  ["src/pipeline", "../core/merkle/tree.ts"],
  ["src/pipeline", "../schema/job.ts"],
  ["src/pipeline/seal", "../ports.ts"],
  ["src/pipeline/seal", "../../core/ids.ts"],
  ["src/adapters/mongo", "mongodb"],
  ["src/adapters/bullmq", "bullmq"],
  ["src/adapters/redis", "ioredis"],
  ["src/adapters/file", "node:fs"],
  ["src/adapters/mongo", "../../pipeline/ports.ts"],
  ["src/adapters/mongo", "../../telemetry/log.ts"],
  ["src/telemetry", "pino"],
  ["src/telemetry", "prom-client"],
  ["src/telemetry", "../core/errors.ts"],
  ["src/cli", "../adapters/mongo/store.ts"],
  ["src/cli", "commander"],
  ["workers", "../src/core/kernel.ts"],
  ["workers", "../src/schema/thread-message.ts"],
  ["workers", "node:worker_threads"],
  ["deploy/local", "mongodb"],
  ["test/integration", "ioredis"],
];

const plantedCode: readonly Planted[] = [
  {
    fact: "an import() of another layer",
    file: "src/pipeline/dynamic.ts",
    source: 'export const later = () => import("mongodb");',
    rule: IMPORTS,
  },
  {
    fact: "a re-export from another layer",
    file: "src/core/re-export.ts",
    source: 'export * from "../schema/job.ts";',
    rule: IMPORTS,
  },
  {
    fact: "an import of a type from another layer",
    file: "src/core/type-only.ts",
    source: 'import type { Job } from "../schema/job.ts";\nexport type Copy = Job;',
    rule: IMPORTS,
  },
  {
    fact: "a cycle of imports",
    file: "src/cli/cycle-a.ts",
    source: 'import { b } from "./cycle-b.ts";\nexport const a = (): unknown => b;',
    rule: "import(no-cycle)",
  },
  {
    fact: "the other half of a cycle",
    file: "src/cli/cycle-b.ts",
    source: 'import { a } from "./cycle-a.ts";\nexport const b = (): unknown => a;',
    rule: "import(no-cycle)",
  },
  {
    fact: "a floating promise",
    file: "src/cli/floating.ts",
    source: "declare function write(): Promise<void>;\nexport function forget(): void {\n  write();\n}",
    rule: "typescript(no-floating-promises)",
  },
  {
    fact: "a promise where a condition is expected",
    file: "src/cli/misused.ts",
    source:
      "declare function ready(): Promise<boolean>;\nexport function go(): number {\n  if (ready()) return 1;\n  return 2;\n}",
    rule: "typescript(no-misused-promises)",
  },
  {
    fact: "an await of a value",
    file: "src/cli/await-value.ts",
    source: "export async function wait(): Promise<number> {\n  return (await 1) + 1;\n}",
    rule: "typescript(await-thenable)",
  },
  {
    fact: "a switch that forgets a variant",
    file: "src/cli/switch.ts",
    source:
      'export function name(state: "open" | "sealed"): string {\n  switch (state) {\n    case "open":\n      return "o";\n  }\n  return "";\n}',
    rule: "typescript(switch-exhaustiveness-check)",
  },
  {
    fact: "an explicit any",
    file: "src/cli/any.ts",
    source: "export const anything: any = 1;",
    rule: "typescript(no-explicit-any)",
  },
  {
    fact: "an unsafe use of parsed JSON",
    file: "src/cli/unsafe.ts",
    source: 'export const size: number = JSON.parse("1").size;',
    rule: "typescript(no-unsafe-member-access)",
  },
  {
    fact: "a type imported as a value",
    file: "src/cli/value-import.ts",
    source: 'import { Command } from "commander";\nexport type Alias = Command;',
    rule: "typescript(consistent-type-imports)",
  },
  {
    fact: "an error whose cause is dropped",
    file: "src/cli/cause.ts",
    source:
      'declare function read(): void;\nexport function load(): void {\n  try {\n    read();\n  } catch (thrown) {\n    if (thrown === 1) return;\n    throw new Error("unreadable");\n  }\n}',
    rule: "eslint(preserve-caught-error)",
  },
  {
    fact: "process.env in src/cli",
    file: "src/cli/environment.ts",
    source: 'export const home = process.env["HOME"];',
    rule: "node(no-process-env)",
  },
  {
    fact: "process.env in workers",
    file: "workers/environment.ts",
    source: 'export const home = process.env["HOME"];',
    rule: "node(no-process-env)",
  },
  {
    fact: "the console in src/adapters",
    file: "src/adapters/http/console.ts",
    source: 'console.log("here");',
    rule: "eslint(no-console)",
  },
  {
    fact: "the console in src/pipeline",
    file: "src/pipeline/console.ts",
    source: 'console.log("here");',
    rule: "eslint(no-console)",
  },
  {
    fact: "process.stdout in src/adapters",
    file: "src/adapters/http/stdout.ts",
    source: 'process.stdout.write("here");',
    rule: "eslint(no-restricted-properties)",
  },
  {
    fact: "process.exit in src/adapters",
    file: "src/adapters/http/exit.ts",
    source: "process.exit(1);",
    rule: "unicorn(no-process-exit)",
  },
  {
    fact: "an async function in src/core",
    file: "src/core/async.ts",
    source: "export async function later(): globalThis.Promise<void> {}",
    rule: "oxc(no-async-await)",
  },
  ...[
    "Promise.resolve(1)",
    "setTimeout(String, 1)",
    "fetch",
    "process.pid",
    "Date.now()",
    "performance.now()",
  ].map(
    (expression, place): Planted => ({
      fact: `${expression} in src/core`,
      file: `src/core/global-${place}.ts`,
      source: `export const value: unknown = ${expression};`,
      rule: "eslint(no-restricted-globals)",
    }),
  ),
  {
    fact: "Math.random in src/core",
    file: "src/core/random.ts",
    source: "export const value = Math.random();",
    rule: "eslint(no-restricted-properties)",
  },
  {
    fact: "the clock in src/pipeline",
    file: "src/pipeline/clock.ts",
    source: "export const value = Date.now();",
    rule: "eslint(no-restricted-properties)",
  },
  {
    fact: "a timer in src/pipeline",
    file: "src/pipeline/timer.ts",
    source: "export const value: unknown = setTimeout(String, 1);",
    rule: "eslint(no-restricted-globals)",
  },
  {
    fact: "a focused test",
    file: "test/unit/focused.test.ts",
    source:
      'import { expect, test } from "vitest";\ntest.only("one is one", () => {\n  expect(1).toBe(1);\n});',
    rule: "vitest(no-focused-tests)",
  },
  {
    fact: "a test skipped without a reason",
    file: "test/unit/skipped.test.ts",
    source:
      'import { expect, test } from "vitest";\ntest.skip("one is one", () => {\n  expect(1).toBe(1);\n});',
    rule: "vitest(no-disabled-tests)",
  },
  {
    fact: "a test that asserts nothing",
    file: "test/unit/empty.test.ts",
    source: 'import { test } from "vitest";\ntest("nothing", () => {});',
    rule: "vitest(expect-expect)",
  },
  {
    fact: "process.env in src/config.ts",
    file: "src/config.ts",
    source: 'export const home = process.env["HOME"];',
  },
  {
    fact: "process.env in test",
    file: "test/support/environment.ts",
    source: 'export const home = process.env["HOME"];',
  },
  {
    fact: "the type of the configuration in src/adapters",
    file: "src/adapters/http/settings.ts",
    source: 'import type { home } from "../../config.ts";\nexport type Home = typeof home;',
  },
  {
    fact: "the console in src/cli",
    file: "src/cli/console.ts",
    source: 'console.log("result");',
  },
  {
    fact: "a pure function in src/core",
    file: "src/core/clean.ts",
    source:
      'import { createHash } from "node:crypto";\n\nexport function digest(bytes: Uint8Array): Uint8Array {\n  return createHash("sha256").update(bytes).digest();\n}',
  },
];

const planted: readonly Planted[] = [
  ...forbiddenImports.map(([layer, specifier], place) =>
    importOf(layer, specifier, `forbidden-${place}`, IMPORTS),
  ),
  ...allowedImports.map(([layer, specifier], place) => importOf(layer, specifier, `allowed-${place}`)),
  ...plantedCode,
];

function importOf(layer: string, specifier: string, name: string, rule?: string): Planted {
  const source = `import ${JSON.stringify(specifier)};`;
  const fact = `${specifier} in ${layer}`;
  return { fact, file: `${layer}/${name}.ts`, source, ...(rule === undefined ? {} : { rule }) };
}

const Report = z.object({ diagnostics: z.array(z.object({ code: z.string(), filename: z.string() })) });

describe("the lint of this repository", () => {
  let tree: PlantedTree;
  let exitCode: number;
  const reported = new Map<string, Set<string>>();

  beforeAll(async () => {
    const sources = Object.fromEntries(planted.map(({ file, source }) => [file, `${source}\n`]));
    tree = plantTree(sources, [".oxlintrc.json", "tsconfig.json", "package.json"]);
    const args = ["--type-aware", "--format", "json", "src", "workers", "test", "deploy"];
    const result = await tree.run("oxlint", args);
    exitCode = result.exitCode;
    for (const { code, filename } of Report.parse(JSON.parse(result.stdout)).diagnostics) {
      const rules = reported.get(filename) ?? new Set();
      reported.set(filename, rules.add(code));
    }
  }, LINT_TIMEOUT_MS);

  afterAll(() => tree.remove());

  test("fails when there is a violation", () => {
    expect(exitCode).toBe(1);
  });

  test.each(planted.filter(({ rule }) => rule !== undefined))("reports $fact", ({ file, rule }) => {
    expect([...(reported.get(file) ?? [])]).toContain(rule);
  });

  test.each(planted.filter(({ rule }) => rule === undefined))("accepts $fact", ({ file }) => {
    expect([...(reported.get(file) ?? [])]).toEqual([]);
  });
});

test("the lint script is type-aware and names every folder that holds sources", () => {
  const { scripts } = z
    .object({ scripts: z.record(z.string(), z.string()) })
    .parse(JSON.parse(readFileSync(`${REPOSITORY}package.json`, "utf8")));
  expect(scripts["lint"]).toMatch(/^oxlint --type-aware .*src workers test deploy$/);
  expect(scripts["check"]).toContain("lint");
});
