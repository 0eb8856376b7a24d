import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Output } from "../../src/cli/output.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { manifestFileNames } from "../../src/core/manifest/names.ts";
import {
  findPythonVerifier,
  type PythonVerifier,
  pythonEnvironment,
  VERIFIER_FOLDER,
} from "./python-verifier.ts";
import { PassedOver } from "./source.ts";
import type { Trial } from "./trial.ts";

const PROGRAM = fileURLToPath(new URL("../../src/cli/session-processor.ts", import.meta.url));
const MANIFEST_DEADLINE_MS = 60_000;
const MANIFEST_POLL_MS = 50;
const COMMAND_DEADLINE_MS = 120_000;
const OUTPUT_BYTES_MAX = 1_048_576;

export interface Audit {
  readonly trial: Trial;
  readonly output: Output;
  readonly signal: AbortSignal;
}

export interface AuditReport {
  /** By `verify --data`, with nothing trusted but the public key. */
  readonly verified: boolean;
  /** What the Python verifier says of a proof: `verified`, `refused`, or `skipped: …` with the reason why it can't be had. */
  readonly python_verifier: string;
}

/** What a stranger would do: the commands as they would type them, believing nothing but the pinned public key. */
export async function verifyAsAuditor(
  session: SessionId,
  chunks: number,
  audit: Audit,
): Promise<AuditReport> {
  const { trial } = audit;
  const manifest = join(trial.manifestDirectory, manifestFileNames(session, "session_recording").manifest);
  await untilThere(manifest, audit);
  const verify = ["verify", manifest, "--key", trial.publicKey, "--data"];
  const verdict = await runProgram(verify, audit);
  const verified = verdict.verified === true;
  tell(audit, programLine(verify), verified ? `verified: blobs ${verdict.blobs}` : "REFUSED");
  return { verified, python_verifier: await proveToPython(session, manifest, Math.floor(chunks / 2), audit) };
}

/** One proof of ours, checked by a program that shares nothing with ours but docs/formats.md. */
async function proveToPython(
  session: SessionId,
  manifest: string,
  index: number,
  audit: Audit,
): Promise<string> {
  const { trial, output, signal } = audit;
  const proof = join(dirname(trial.manifestDirectory), `proof-${index}.json`);
  // So that it can be repeated as it is printed: by then the file is there.
  const prove = ["proof", session, String(index), "-o", proof, "--force"];
  await runProgram(prove, audit);
  tell(audit, programLine(prove), "written");
  let verifier: PythonVerifier;
  try {
    verifier = await findPythonVerifier({ env: process.env, say: (line) => output.say(line), signal });
  } catch (thrown) {
    if (!(thrown instanceof PassedOver)) throw thrown;
    output.say(`audit: the Python verifier (deploy/verify) is skipped: ${thrown.message}`);
    return `skipped: ${thrown.message}`;
  }
  const script = join(VERIFIER_FOLDER, "verify.py");
  const check = ["proof", proof, "--key", trial.publicKey, "--manifest", manifest, "--index", String(index)];
  const env = pythonEnvironment(verifier, process.env);
  const { verified, reason } = await runVerdict(verifier.python, [script, ...check], env, audit);
  const packages = verifier.packages === undefined ? [] : [`PYTHONPATH=${shellWord(verifier.packages)}`];
  const command = [...packages, "python3", ...[relative(process.cwd(), script), ...check].map(shellWord)];
  const isVerified = verified === true;
  tell(
    audit,
    command.join(" "),
    isVerified ? `verified: chunk ${index} is in the signed tree` : `REFUSED: ${reason}`,
  );
  return isVerified ? "verified" : "refused";
}

function tell({ output }: Audit, command: string, result: string): void {
  output.say(`audit: ${command}`);
  output.say(`       ${result}`);
}

function programLine(args: readonly string[]): string {
  return ["npx session-processor", ...args.map(shellWord)].join(" ");
}

function shellWord(text: string): string {
  return /^[\w./:@=+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

async function untilThere(file: string, { signal }: Audit): Promise<void> {
  const deadlineMs = performance.now() + MANIFEST_DEADLINE_MS;
  while (!existsSync(file)) {
    if (signal.aborted) throw new LucidError("SHUTTING_DOWN", "interrupted");
    if (performance.now() > deadlineMs) {
      throw new LucidError("INTERNAL", "no manifest appeared; run with --keep and look at the worker's log");
    }
    await sleep(MANIFEST_POLL_MS);
  }
}

interface Verdict {
  readonly verified?: boolean;
  readonly blobs?: string;
  readonly reason?: string;
}

function runProgram(args: readonly string[], audit: Audit): Promise<Verdict> {
  return runVerdict(process.execPath, [PROGRAM, ...args, "--json"], audit.trial.env, audit);
}

function runVerdict(
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  { signal }: Audit,
): Promise<Verdict> {
  const options = { env, signal, timeout: COMMAND_DEADLINE_MS, maxBuffer: OUTPUT_BYTES_MAX };
  return new Promise((resolve, reject) => {
    execFile(program, args, options, (error, stdout, stderr) => {
      // Exit code 1 with a verdict is an answer; without one it is a failure.
      if (stdout !== "") resolve(JSON.parse(stdout) as Verdict);
      else reject(new LucidError("INTERNAL", `${args[1]} failed: ${stderr.trim()}`, { cause: error }));
    });
  });
}
