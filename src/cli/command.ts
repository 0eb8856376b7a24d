import { Command } from "commander";
import { onStopSignals } from "../adapters/system/stop-signals.ts";
import { type ErrorCode, errorCodeOf, LucidError } from "../core/errors.ts";
import { createOutput, type Output, printFailure } from "./output.ts";

export const EXIT_FAILURE = 1;
/** Wrong usage, as most programs report it: the command line or the configuration has to be corrected. */
export const EXIT_USAGE = 2;
/** As a shell reports a program that SIGINT ended. */
export const EXIT_INTERRUPTED = 130;

const USAGE_CODES: ReadonlySet<ErrorCode> = new Set(["CONFIG_INVALID", "JOB_INVALID"]);

/** Every command has --json; parse errors exit with EXIT_USAGE too (session-processor.ts). */
export function newCommand(
  name: string,
  summary: string,
  jsonMeans = "print the result as one JSON object",
): Command {
  return new Command(name).summary(summary).description(summary).option("--json", jsonMeans);
}

/**
 * Runs a command's work with its output and a signal that Ctrl-C and SIGTERM fire, so that what it started can be ended in
 * order; a second Ctrl-C ends it at once. A failure is printed with its code, and is the exit code of `exitCodeOf`.
 */
export async function perform(
  json: boolean | undefined,
  work: (output: Output, signal: AbortSignal) => Promise<number | undefined>,
): Promise<void> {
  const interrupted = new AbortController();
  const output = createOutput(json ?? false, interrupted.signal);
  const interrupt = (): never => {
    if (output.json) printFailure(new LucidError("SHUTTING_DOWN", "interrupted"), true, output.facts);
    else output.say("interrupted");
    // What it was waiting for, such as a pipe that nobody reads, must not hold the exit up.
    process.exit(EXIT_INTERRUPTED);
  };
  const release = onStopSignals({ first: () => interrupted.abort(), again: interrupt });
  try {
    process.exitCode = (await work(output, interrupted.signal)) ?? 0;
  } catch (thrown) {
    if (interrupted.signal.aborted) interrupt();
    printFailure(thrown, output.json, output.facts);
    process.exitCode = exitCodeOf(thrown);
  } finally {
    release();
  }
}

/** EXIT_USAGE for what a corrected command line or configuration mends, else EXIT_FAILURE. */
export function exitCodeOf(thrown: unknown): number {
  return USAGE_CODES.has(errorCodeOf(thrown)) ? EXIT_USAGE : EXIT_FAILURE;
}
