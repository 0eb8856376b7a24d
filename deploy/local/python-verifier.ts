import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder, findOnPath, lastLine, run } from "./programs.ts";
import { PassedOver, type Surroundings } from "./source.ts";

export const VERIFIER_FOLDER: string = fileURLToPath(new URL("../verify", import.meta.url));

/** What deploy/verify/requirements.txt names: what it imports at its start, and what it decompresses blobs with. */
const MODULES = ["blake3", "cryptography", "rfc8785", "brotli", "lz4.frame", "zstandard"];
const PYTHON_CHECK_DEADLINE_MS = 20_000;
const INSTALL_DEADLINE_MS = 90_000;
/** One try on a connection that doesn't answer: without a package index it is known in seconds. */
const PIP_OPTIONS = ["--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"];
const PIP_PATIENCE = ["--retries=1", "--timeout=5"];

export interface PythonVerifier {
  /** Path of the interpreter. */
  readonly python: string;
  /** To be set as PYTHONPATH; absent where the interpreter has the packages itself. */
  readonly packages?: string;
}

/**
 * A Python that runs deploy/verify/verify.py: python3 with the packages it has, or else with those of requirements.txt in a
 * folder of this user's cache, fetched once. Nothing is installed into the system.
 * @throws PassedOver when it can't be had here; its message says why
 */
export async function findPythonVerifier(around: Surroundings): Promise<PythonVerifier> {
  const python = findOnPath(["python3"], around.env);
  if (python === undefined) throw new PassedOver("there is no python3 on PATH");
  const { code, stdout } = await ask(
    python,
    "import sys; print(sys.version); sys.exit(sys.version_info < (3, 9))",
    around,
  );
  around.signal?.throwIfAborted();
  if (code === undefined) throw new PassedOver("python3 does not run");
  if (code !== 0)
    throw new PassedOver(`it needs Python 3.9, and python3 is ${stdout.split(" ")[0] ?? "older"}`);
  if (await hasModules({ python }, around)) return { python };
  const verifier = { python, packages: await findOrFetchPackages(python, stdout, around) };
  if (await hasModules(verifier, around)) return verifier;
  around.signal?.throwIfAborted();
  throw new PassedOver("its Python packages were fetched and can't be imported");
}

export function pythonEnvironment({ packages }: PythonVerifier, env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return packages === undefined ? env : { ...env, PYTHONPATH: packages };
}

async function hasModules(verifier: PythonVerifier, around: Surroundings): Promise<boolean> {
  const env = pythonEnvironment(verifier, around.env);
  const { code } = await ask(verifier.python, `import ${MODULES.join(", ")}`, { ...around, env });
  return code === 0;
}

function ask(python: string, program: string, { env, signal }: Surroundings) {
  return run(python, ["-c", program], { env, deadlineMs: PYTHON_CHECK_DEADLINE_MS, signal });
}

/** By the versions that are wanted and the Python that they are for; the folder is there once it is complete. */
async function findOrFetchPackages(python: string, version: string, around: Surroundings): Promise<string> {
  const requirements = join(VERIFIER_FOLDER, "requirements.txt");
  const digest = createHash("sha256")
    .update(await readFile(requirements))
    .update(version)
    .digest("hex");
  const packages = join(cacheFolder(around.env), `verify-packages-${digest.slice(0, 16)}`);
  if (existsSync(packages)) return packages;
  around.say("fetching the Python verifier's packages (15 MB), once");
  await mkdir(dirname(packages), { recursive: true });
  const partial = await mkdtemp(`${packages}.partial-`);
  try {
    await installInto(join(partial, "packages"), requirements, { python, partial }, around);
    await rename(join(partial, "packages"), packages).catch((error: unknown) => {
      // Another process may have been faster: same content.
      if (!existsSync(packages)) throw error;
    });
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  return packages;
}

/** A virtual environment only for its pip: Debian's python3 has none. */
async function installInto(
  target: string,
  requirements: string,
  { python, partial }: { readonly python: string; readonly partial: string },
  { env, signal }: Surroundings,
): Promise<void> {
  const options = { env, deadlineMs: INSTALL_DEADLINE_MS, signal };
  const venv = await run(python, ["-m", "venv", join(partial, "venv")], options);
  signal?.throwIfAborted();
  if (venv.code !== 0) throw new PassedOver("python3 -m venv does not work here (Debian: python3-venv)");
  const args = ["install", ...PIP_OPTIONS, ...PIP_PATIENCE, "--target", target, "-r", requirements];
  const pip = await run(join(partial, "venv/bin/pip"), args, options);
  signal?.throwIfAborted();
  if (pip.code === 0) return;
  const complaint = lastLine(pip.stderr).slice(0, 120);
  throw new PassedOver(`its Python packages can't be fetched: is a package index in reach? (${complaint})`);
}
