import { Command } from "commander";
import { createOutput, type Output, printFailure } from "./output.ts";

export const EXIT_FAILURE = 1;
/** As a shell reports a program that SIGINT ended. */
const EXIT_INTERRUPTED = 130;

/** Every command has --json; parse errors exit with 2 (session-processor.ts). */
export function newCommand(name: string, summary: string): Command {
  return new Command(name)
    .summary(summary)
    .description(summary)
    .option("--json", "print the result as one JSON object");
}

/**
 * Runs a command's work with its output and a signal that Ctrl-C and SIGTERM fire, so that what it started can be ended in
 * order; a second Ctrl-C ends it at once. A failure is printed with its code and makes the exit code 1.
 */
export async function perform(
  json: boolean | undefined,
  work: (output: Output, signal: AbortSignal) => Promise<number | undefined>,
): Promise<void> {
  const output = createOutput(json ?? false);
  const interrupted = new AbortController();
  const onSignal = (): void => {
    if (interrupted.signal.aborted) process.exit(EXIT_INTERRUPTED);
    interrupted.abort();
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    process.exitCode = (await work(output, interrupted.signal)) ?? 0;
  } catch (thrown) {
    if (interrupted.signal.aborted) {
      output.say("interrupted");
      process.exitCode = EXIT_INTERRUPTED;
    } else {
      printFailure(thrown, output.json);
      process.exitCode = EXIT_FAILURE;
    }
  } finally {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}
