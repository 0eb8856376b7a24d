import { Command } from "commander";
import { VERSION } from "../version.ts";
import { EXIT_USAGE } from "./command.ts";
import { configCommand } from "./config.ts";
import { demoCommand } from "./demo.ts";
import { enqueueCommand } from "./enqueue.ts";
import { exportCommand } from "./export.ts";
import { finalizeCommand } from "./finalize.ts";
import { fsckCommand } from "./fsck.ts";
import { keysCommand } from "./keys.ts";
import { proofCommand } from "./proof.ts";
import { restoreCommand } from "./restore.ts";
import { runCommand } from "./run.ts";
import { statusCommand } from "./status.ts";
import { verifyCommand } from "./verify.ts";
import { verifyProofCommand } from "./verify-proof.ts";

const program = new Command("session-processor")
  .description("Compresses, encrypts and Merkle-hashes recorded session chunks, exactly once, verifiably.")
  .version(VERSION)
  .addCommand(runCommand())
  .addCommand(demoCommand())
  .addCommand(enqueueCommand())
  .addCommand(finalizeCommand())
  .addCommand(statusCommand())
  .addCommand(restoreCommand())
  .addCommand(proofCommand())
  .addCommand(verifyProofCommand())
  .addCommand(verifyCommand())
  .addCommand(exportCommand())
  .addCommand(fsckCommand())
  .addCommand(keysCommand())
  .addCommand(configCommand());

for (const command of [
  program,
  ...program.commands,
  ...program.commands.flatMap(({ commands }) => commands),
]) {
  // Commands that are added take over nothing of the program's own settings.
  command.configureOutput({ outputError: (text, write) => write(reworded(text)) });
  command.showHelpAfterError("(--help shows what is allowed)");
  command.exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_USAGE));
}
await program.parseAsync();

/** The parser's words around those of arguments.ts: `command-argument value 'x' is invalid for argument 'session'. must be …` */
function reworded(text: string): string {
  return text
    .replace(
      /^error: command-argument value ('.*') is invalid for argument '([^']*)'\. /s,
      "error: $1 is no valid $2: it ",
    )
    .replace(
      /^error: option '([^']*)' argument ('.*') is invalid\. (?=must )/s,
      "error: $2 is not valid for $1: it ",
    );
}
