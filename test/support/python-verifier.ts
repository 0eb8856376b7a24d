import { spawnSync } from "node:child_process";
import { join } from "node:path";
import {
  findPythonVerifier,
  pythonEnvironment,
  VERIFIER_FOLDER,
} from "../../deploy/local/python-verifier.ts";
import { PassedOver } from "../../deploy/local/source.ts";
import { REPOSITORY } from "./planted-tree.ts";

const DRIVER = join(REPOSITORY, "test/support/run-python-verifier.py");
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

/** deploy/verify/verify.py with the packages that the demo uses too; or why it can't be had here. */
export async function pythonVerifier(): Promise<PythonVerifier | { readonly missing: string }> {
  try {
    const found = await findPythonVerifier({ env: process.env, say: () => undefined });
    return (calls) => {
      const { status, stdout, stderr } = spawnSync(found.python, [DRIVER, VERIFIER_FOLDER], {
        input: JSON.stringify(calls),
        env: pythonEnvironment(found, process.env),
        encoding: "utf8",
        timeout: RUN_DEADLINE_MS,
        maxBuffer: OUTPUT_BYTES_MAX,
      });
      if (status !== 0) throw new Error(`the Python verifier did not run to its end: ${stderr}`);
      return JSON.parse(stdout) as readonly PythonResult[];
    };
  } catch (thrown) {
    if (!(thrown instanceof PassedOver)) throw thrown;
    return { missing: thrown.message };
  }
}
