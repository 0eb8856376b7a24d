import type { Command } from "commander";
import { loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import { keyRingOf } from "../key-ring.ts";
import { newCommand, perform } from "./command.ts";
import { renderConfig } from "./render-config.ts";

export function configCommand(): Command {
  return newCommand("config", "print the effective configuration and where each value came from").action(
    ({ json }: { json?: boolean }) =>
      perform(json, async (output) => {
        const loaded = loadProcessConfig({ needs: [] });
        const refusal = refusalOfRun();
        await output.print(`${renderConfig(loaded, { json: json ?? false, refusal })}\n`);
        return 0;
      }),
  );
}

/** What `run` would end with at once: it needs settings that `config` can do without. */
function refusalOfRun(): string | undefined {
  try {
    keyRingOf(loadProcessConfig().config);
    return undefined;
  } catch (thrown) {
    if (thrown instanceof LucidError && thrown.code === "CONFIG_INVALID") return thrown.message;
    throw thrown;
  }
}
