import type { Command } from "commander";
import { loadProcessConfig } from "../config.ts";
import { newCommand, perform } from "./command.ts";
import { renderConfig } from "./render-config.ts";

export function configCommand(): Command {
  return newCommand("config", "print the effective configuration and where each value came from").action(
    ({ json }: { json?: boolean }) =>
      perform(json, async (output) => {
        const loaded = loadProcessConfig({ needs: [] });
        await output.print(`${renderConfig(loaded, { json: json ?? false })}\n`);
        return 0;
      }),
  );
}
