import { execFile } from "node:child_process";
import { accessSync, constants, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, isAbsolute, join } from "node:path";

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;

export interface RunResult {
  /** The exit code; undefined when the program could not be started, or was ended by a signal or the deadline. */
  readonly code: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** The first of `names` that is an executable file on `env.PATH`. */
export function findOnPath(names: readonly string[], env: NodeJS.ProcessEnv): string | undefined {
  const folders = (env["PATH"] ?? "").split(delimiter).filter(isAbsolute);
  return names.flatMap((name) => folders.map((folder) => join(folder, name))).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** Runs a program to its end, or kills it at the deadline. Never rejects: a program that can't be run has no code. */
export function run(
  program: string,
  args: readonly string[],
  options: {
    readonly env: NodeJS.ProcessEnv;
    readonly deadlineMs: number;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<RunResult> {
  return new Promise((resolve) => {
    const { env, deadlineMs: timeout, signal } = options;
    execFile(
      program,
      args,
      { env, timeout, maxBuffer: OUTPUT_BYTES_MAX, ...(signal === undefined ? {} : { signal }) },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === "number" ? error.code : undefined;
        resolve({ code, stdout, stderr });
      },
    ).stdin?.end();
  });
}

/** The last line that says something, for messages: tools put their verdict there. */
export function lastLine(text: string): string {
  const lines = text.split("\n").map((line) => line.trim());
  return lines.findLast((line) => line.length > 0) ?? "no output";
}

/** Compares dotted versions number by number: is `version` at least `minimum`? */
export function isAtLeast(version: string, minimum: readonly number[]): boolean {
  const numbers = version.split(".").map(Number);
  for (const [place, least] of minimum.entries()) {
    const number = numbers[place] ?? 0;
    if (number !== least) return number > least;
  }
  return true;
}

/** This user's folder for what is fetched once (XDG base directories); not yet created. */
export function cacheFolder(env: NodeJS.ProcessEnv): string {
  const xdg = env["XDG_CACHE_HOME"] ?? "";
  const base = isAbsolute(xdg) ? xdg : join(env["HOME"] ?? homedir(), ".cache");
  return join(base, "session-processor");
}
