import { resolve } from "node:path";
import { Command } from "commander";
import { generateSigningKey } from "../adapters/file/signing-key.ts";
import { utf8 } from "../core/bytes.ts";
import { newCommand, perform } from "./command.ts";
import { refuseTaken, writeOutputFile } from "./files.ts";
import { formatTable } from "./output.ts";

const SIGNING_KEY_FILE = "manifest-signing-key.pem";
const PRIVATE_FILE_MODE = 0o600;

export function keysCommand(): Command {
  // Without options of its own: it would take --json away from the command below it.
  return new Command("keys").summary("make keys").description("make keys").addCommand(generateCommand());
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
            `Auditors pin it: session-processor verify <manifest> --key ${base64}`,
          ].join("\n"),
        );
        return 0;
      }),
    );
}
