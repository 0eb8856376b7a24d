import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The root of the repository. */
export const REPOSITORY: string = fileURLToPath(new URL("../../", import.meta.url));

export interface ToolResult {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * A folder outside of the repository that holds planted sources and the repository's real settings: a check of the
 * checks must not be one of the things checked.
 */
export interface PlantedTree {
  readonly folder: string;
  /** Runs a program of node_modules/.bin in the folder; resolves with any exit code. */
  run(program: string, args: readonly string[]): Promise<ToolResult>;
  remove(): void;
}

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;

export function plantTree(
  sources: Readonly<Record<string, string>>,
  settings: readonly string[] = [],
): PlantedTree {
  const folder = mkdtempSync(join(tmpdir(), "planted-"));
  symlinkSync(join(REPOSITORY, "node_modules"), join(folder, "node_modules"));
  for (const name of settings) cpSync(join(REPOSITORY, name), join(folder, name));
  for (const [name, text] of Object.entries(sources)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), text);
  }
  return {
    folder,
    run: (program, args) => runIn(folder, program, args),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}

function runIn(folder: string, program: string, args: readonly string[]): Promise<ToolResult> {
  return new Promise((resolve, reject) => {
    // Without the variables by which a test runner tells its children that they are inside a run.
    const { VITEST: _vitest, VITEST_MODE: _mode, VITEST_WORKER_ID: _worker, ...env } = process.env;
    const options = { cwd: folder, env: { ...env, NO_COLOR: "1" }, maxBuffer: OUTPUT_BYTES_MAX };
    execFile(join(REPOSITORY, "node_modules/.bin", program), args, options, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== "number")
        reject(new Error(`${program} did not run to its end`, { cause: error }));
      else resolve({ exitCode: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}
