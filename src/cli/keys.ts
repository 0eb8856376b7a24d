import { resolve } from "node:path";
import { Command } from "commander";
import { generateSigningKey } from "../adapters/file/signing-key.ts";
import { systemRandomBytes } from "../adapters/system/random.ts";
import { loadProcessConfig } from "../config.ts";
import { utf8 } from "../core/bytes.ts";
import { keyRingOf } from "../key-ring.ts";
import { adoptKeyRing } from "../pipeline/check-key-ring.ts";
import { newCommand, perform } from "./command.ts";
import { refuseTaken, writeOutputFile } from "./files.ts";
import { openStores } from "./open-stores.ts";
import { formatTable, PROGRAM } from "./output.ts";

const SIGNING_KEY_FILE = "manifest-signing-key.pem";
const PRIVATE_FILE_MODE = 0o600;

export function keysCommand(): Command {
  // Without options of its own: it would take --json away from the command below it.
  return new Command("keys")
    .summary("make keys, and say whose a database is")
    .description("make keys, and say whose a database is")
    .addCommand(generateCommand())
    .addCommand(adoptCommand());
}

function generateCommand(): Command {
  return newCommand("generate", "make a key that signs manifests and checkpoints")
    .requiredOption("--signing", "an Ed25519 key for MANIFEST_SIGNING_KEY_FILE")
    .option("-o, --output <file>", "new file for the private key, mode 0600", SIGNING_KEY_FILE)
    .action(({ json, output: file }: { json?: boolean; output: string }) =>
      perform(json, async (output) => {
        await refuseTaken(file, {});
        const { privatePem, keyId, base64, pem, vkey } = generateSigningKey();
        // No --force: a private key that is overwritten is lost, with all that it could still sign.
        await writeOutputFile(file, utf8(privatePem), { mode: PRIVATE_FILE_MODE });
        output.say(`private key written to ${file} (mode 0600): keep it secret, and keep a copy offline`);
        await output.result(
          { file: resolve(file), key_id: keyId, public_key: { base64, pem, vkey } },
          [
            formatTable([
              ["private key", file],
              ["key id", keyId],
              ["public key", base64],
              ["C2SP vkey", vkey],
            ]),
            "",
            pem.trimEnd(),
            "",
            `The worker signs with it: MANIFEST_SIGNING_KEY_FILE=${file}`,
            `Auditors pin it: ${PROGRAM} verify <manifest> --key ${base64}`,
          ].join("\n"),
        );
        return 0;
      }),
    );
}

const ADOPT_HELP = `
For a worker that is refused with KEK_MISMATCH although its key is the right one: the database began with a wrong key, or
its newest sessions' secrets are damaged. Stop the workers that have another key first: they would go on with it. Sessions
that another key has wrapped stay closed to this one, and their jobs fail.`;

function adoptCommand(): Command {
  return newCommand("adopt", "make ENCRYPTION_KEY the key of this database, whatever it was")
    .requiredOption("--yes", "you know that it is the right one")
    .addHelpText("after", ADOPT_HELP)
    .action(({ json }: { json?: boolean }) =>
      perform(json, async (output) => {
        const { config } = loadProcessConfig({ needs: ["mongodb", "kek"] });
        const keyRing = keyRingOf(config);
        const stores = await openStores(config.mongodb.url.reveal());
        try {
          const ports = { ...stores, random: systemRandomBytes };
          const { opened, unopened } = await adoptKeyRing(ports, keyRing);
          await output.result(
            { kek_version: keyRing.activeVersion, sessions_opened: opened, sessions_not_opened: unopened },
            formatTable([
              ["key of the database", `ENCRYPTION_KEY, version ${keyRing.activeVersion}`],
              ["newest sessions that it opens", String(opened)],
              ["and that it doesn't open", String(unopened)],
            ]),
          );
          return 0;
        } finally {
          await stores.close();
        }
      }),
    );
}
