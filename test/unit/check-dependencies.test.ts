import { accessSync, constants, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { z } from "zod";
import { REPOSITORY } from "../support/planted-tree.ts";

const EXACT_VERSION = /^\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?$/;

const Versions = z.record(z.string(), z.string());

const manifest = z
  .object({
    dependencies: Versions,
    devDependencies: Versions,
    allowScripts: z.record(z.string(), z.boolean()),
  })
  .parse(JSON.parse(readFileSync(`${REPOSITORY}package.json`, "utf8")));

const lock = z
  .object({
    packages: z.record(
      z.string(),
      z.object({
        version: z.string().optional(),
        resolved: z.string().optional(),
        integrity: z.string().optional(),
        optional: z.boolean().optional(),
        os: z.array(z.string()).optional(),
        optionalDependencies: Versions.optional(),
        hasInstallScript: z.boolean().optional(),
        dependencies: Versions.optional(),
        devDependencies: Versions.optional(),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(`${REPOSITORY}package-lock.json`, "utf8")));

/** Every locked package but the repository itself. */
const locked = Object.entries(lock.packages).filter(([path]) => path !== "");

/** `node_modules/a/node_modules/@b/c` → `@b/c` */
function packageName(path: string): string {
  return path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
}

test("every dependency has an exact version", () => {
  const all = Object.entries({ ...manifest.dependencies, ...manifest.devDependencies });
  expect(all.length).toBeGreaterThan(0);
  expect(all.filter(([, version]) => !EXACT_VERSION.test(version))).toEqual([]);
});

test("the lockfile locks the versions that package.json asks for", () => {
  expect(lock.packages[""]?.dependencies).toEqual(manifest.dependencies);
  expect(lock.packages[""]?.devDependencies).toEqual(manifest.devDependencies);
});

test("the lockfile holds no download address", () => {
  expect(locked.filter(([, { resolved }]) => resolved !== undefined)).toEqual([]);
});

test("the lockfile holds a digest of every package that isn't a platform's own", () => {
  // A registry that mirrors only some platforms gives no digest for the others' binaries.
  const pinned = locked.filter(([, { optional, os }]) => !(optional === true && os !== undefined));
  expect(pinned.length).toBeGreaterThan(0);
  const unpinned = pinned.filter(
    ([, { integrity }]) => integrity === undefined || !integrity.startsWith("sha512-"),
  );
  expect(unpinned.map(([path]) => path)).toEqual([]);
});

test("the lockfile names the binary of every platform", () => {
  // `npm ci` refuses a lockfile without them, and arm64 would be without its native code.
  const missing = locked.flatMap(([path, { optionalDependencies }]) =>
    Object.entries(optionalDependencies ?? {})
      .filter(
        ([name]) =>
          !(`node_modules/${name}` in lock.packages || `${path}/node_modules/${name}` in lock.packages),
      )
      .map(([name, version]) => `${name}@${version}`),
  );
  expect(missing).toEqual([]);
});

test("allowScripts decides on each package with an install script, and on no other", () => {
  const withScript = locked
    .filter(([, entry]) => entry.hasInstallScript === true)
    .map(([path]) => packageName(path));
  expect(Object.keys(manifest.allowScripts).toSorted()).toEqual([...new Set(withScript)].toSorted());
});

test("the script of a clean clone is executable, and runs the tests last", () => {
  const path = `${REPOSITORY}.ci/run`;
  expect(() => accessSync(path, constants.X_OK)).not.toThrow();
  const commands = readFileSync(path, "utf8").match(/^(?:exec )?npm (?:ci|test|run --silent check)/gm);
  expect(commands).toEqual(["npm ci", "npm run --silent check", "exec npm test"]);
});
