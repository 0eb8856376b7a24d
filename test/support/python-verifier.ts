import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { REPOSITORY } from "./planted-tree.ts";

const VERIFIER = join(REPOSITORY, "deploy/verify");
const DRIVER = join(REPOSITORY, "test/support/run-python-verifier.py");
const CACHE = join(REPOSITORY, ".local");
const INSTALL_DEADLINE_MS = 120_000;
const RUN_DEADLINE_MS = 120_000;
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;

export interface PythonCall {
  readonly argv: readonly string[];
  /** A file to change for this call, and how: the byte at the offset is xored. */
  readonly file?: string;
  readonly flip?: readonly [offset: number, bits: number];
}

export interface PythonResult {
  readonly code: number;
  readonly verified: boolean;
  readonly reason?: string;
  readonly blobs?: { readonly hashed: number; readonly opened: number; readonly compared: number };
}

export type PythonVerifier = (calls: readonly PythonCall[]) => readonly PythonResult[];

/** deploy/verify/verify.py with its packages, installed once below .local; or why it can't be had here. */
export function pythonVerifier(): PythonVerifier | { readonly missing: string } {
  const python = spawnSync("python3", ["--version"]);
  if (python.error !== undefined || python.status !== 0) return { missing: "there is no python3 on PATH" };
  const requirements = join(VERIFIER, "requirements.txt");
  const digest = createHash("sha256").update(readFileSync(requirements)).update(python.stdout).digest("hex");
  const packages = join(CACHE, `verify-packages-${digest.slice(0, 16)}`);
  const missing = existsSync(packages) ? undefined : install(requirements, packages);
  if (missing !== undefined) return { missing };
  return (calls) => {
    const { status, stdout, stderr } = spawnSync("python3", [DRIVER, VERIFIER], {
      input: JSON.stringify(calls),
      env: { PATH: process.env["PATH"], PYTHONPATH: packages },
      encoding: "utf8",
      timeout: RUN_DEADLINE_MS,
      maxBuffer: OUTPUT_BYTES_MAX,
    });
    if (status !== 0) throw new Error(`the Python verifier did not run to its end: ${stderr}`);
    return JSON.parse(stdout) as readonly PythonResult[];
  };
}

/** Into a folder of its own that gets its name when it is complete: two runs at once don't meet half of it. */
function install(requirements: string, packages: string): string | undefined {
  mkdirSync(CACHE, { recursive: true });
  const folder = mkdtempSync(join(CACHE, "verify-install-"));
  try {
    // A virtual environment only for its pip: Debian's python3 has none.
    if (!ran("python3", ["-m", "venv", join(folder, "venv")]))
      return "python3 -m venv doesn't work here (python3-venv)";
    const options = [
      "--quiet",
      "--disable-pip-version-check",
      "--no-input",
      "--only-binary=:all:",
      "--retries=1",
    ];
    const target = join(folder, "packages");
    const pip = ["install", ...options, "--target", target, "-r", requirements];
    if (!ran(join(folder, "venv/bin/pip"), pip))
      return "its Python packages can't be installed (no package index?)";
    if (!existsSync(packages)) renameSync(target, packages);
    return undefined;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function ran(program: string, args: readonly string[]): boolean {
  return spawnSync(program, args, { timeout: INSTALL_DEADLINE_MS, stdio: "ignore" }).status === 0;
}
