import type { Command } from "commander";
import { loadProcessConfig } from "../config.ts";
import { asLucidError } from "../core/errors.ts";
import { runService } from "../main.ts";
import { EXIT_FAILURE, newCommand } from "./command.ts";
import { printFailure } from "./output.ts";

export function runCommand(): Command {
  return newCommand(
    "run",
    "run the worker until SIGTERM (configuration: environment, then CONFIG_FILE)",
    "say why it doesn't start as one JSON object; its log is JSON lines in any case",
  ).action(async ({ json }: { json?: boolean }) => {
    try {
      // What is still open then, such as a connection to a server that is away, must not hold the exit up.
      process.exit(await runService(loadProcessConfig()));
    } catch (thrown) {
      printFailure(asLucidError(thrown), json ?? false);
      process.exit(EXIT_FAILURE);
    }
  });
}
