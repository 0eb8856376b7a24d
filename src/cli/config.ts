import type { Command } from "commander";
import { loadSigningKey } from "../adapters/file/signing-key.ts";
import { type LoadedConfig, loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import { keyRingOf } from "../key-ring.ts";
import { EXIT_FAILURE, newCommand, perform } from "./command.ts";
import { renderConfig } from "./render-config.ts";

const HELP = `
Exit codes:
  0  run would start with this, as far as can be seen without the servers
  1  printed, and run would refuse it: a required setting is missing, or a key can't be used; the last lines say which
  2  nothing printed but what is wrong: a value, or a file that a setting names, can't be taken as it is; run refuses that too`;

export function configCommand(): Command {
  return newCommand(
    "config",
    "print the effective configuration and where each value came from; fails if run would refuse it",
  )
    .addHelpText("after", HELP)
    .action(({ json }: { json?: boolean }) =>
      perform(json, async (output) => {
        const loaded = loadProcessConfig({ needs: [] });
        const refusals = await refusalsOfRun(loaded);
        await output.print(`${renderConfig(loaded, { json: json ?? false, refusals })}\n`);
        return refusals.length === 0 ? 0 : EXIT_FAILURE;
      }),
    );
}

/** All that `run` would end with at once: it needs settings that `config` can do without, and its keys. */
async function refusalsOfRun({ config }: LoadedConfig): Promise<readonly string[]> {
  const { signingKeyFile } = config.manifest;
  const refusals = await Promise.all([
    refusalOf(async () => keyRingOf(loadProcessConfig().config)),
    refusalOf(async () => signingKeyFile === undefined || loadSigningKey(signingKeyFile)),
  ]);
  return refusals.filter((refusal) => refusal !== undefined);
}

async function refusalOf(check: () => Promise<unknown>): Promise<string | undefined> {
  try {
    await check();
    return undefined;
  } catch (thrown) {
    if (thrown instanceof LucidError && thrown.disposition === "fatal") return thrown.message;
    throw thrown;
  }
}
