import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Output } from "../../src/cli/output.ts";
import { LucidError } from "../../src/core/errors.ts";
import type { SessionId } from "../../src/core/ids.ts";
import { manifestFileNames } from "../../src/core/manifest/names.ts";
import type { Trial } from "./trial.ts";

const PROGRAM = fileURLToPath(new URL("../../src/cli/session-processor.ts", import.meta.url));
const MANIFEST_DEADLINE_MS = 60_000;
const MANIFEST_POLL_MS = 50;
const COMMAND_DEADLINE_MS = 120_000;
const OUTPUT_BYTES_MAX = 1_048_576;

export interface Audit {
  readonly keep: boolean;
  readonly trial: Trial;
  readonly output: Output;
  readonly signal: AbortSignal;
}

/** What a stranger would do: the commands as they would type them, believing nothing but the pinned public key. */
export async function verifyAsAuditor(session: SessionId, audit: Audit): Promise<boolean> {
  const { trial, output, keep } = audit;
  const names = manifestFileNames(session, "session_recording");
  const manifest = join(trial.manifestDirectory, names.manifest);
  await untilThere(manifest, audit);
  const verify = ["verify", manifest, "--key", trial.publicKey, "--data"];
  const verdict = await runCommand(verify, audit);
  const word = verdict.verified === true ? "verified" : "REFUSED";
  output.say(`audit: ${word} with nothing but the public key; blobs ${verdict.blobs ?? "refused"}`);
  // Without --keep there is nothing left to type it for.
  if (keep) output.say(`       npx session-processor ${verify.join(" ")}`);
  return verdict.verified === true;
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
}

function runCommand(args: readonly string[], { trial, signal }: Audit): Promise<Verdict> {
  const options = { env: trial.env, signal, timeout: COMMAND_DEADLINE_MS, maxBuffer: OUTPUT_BYTES_MAX };
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [PROGRAM, ...args, "--json"], options, (error, stdout, stderr) => {
      // Exit code 1 with a verdict is an answer; without one it is a failure.
      if (stdout !== "") resolve(JSON.parse(stdout) as Verdict);
      else reject(new LucidError("INTERNAL", `${args[0]} failed: ${stderr.trim()}`, { cause: error }));
    });
  });
}
