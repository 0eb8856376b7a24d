import { basename, dirname, resolve } from "node:path";
import { Command } from "commander";
import { writeAtomically } from "../adapters/file/atomic-files.ts";
import { generateSigningKey } from "../adapters/file/signing-key.ts";
import { utf8 } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { newCommand, perform } from "./command.ts";
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
    .option("-o, --output <file>", "file for the private key, which must not exist", SIGNING_KEY_FILE)
    .action(({ json, output: file }: { json?: boolean; output: string }) =>
      perform(json, async (output) => {
        const path = resolve(file);
        const { privatePem, keyId, base64, pem, vkey } = generateSigningKey();
        const outcome = await writeAtomically(dirname(path), basename(path), utf8(privatePem), {
          mode: PRIVATE_FILE_MODE,
        });
        if (outcome === "differs") {
          throw new LucidError(
            "CONFIG_INVALID",
            `${file} exists and stays as it is; name another file with -o`,
          );
        }
        output.say(`private key written to ${file} (mode 0600): keep it secret, and keep a copy offline`);
        output.result(
          { file: path, key_id: keyId, public_key: { base64, pem, vkey } },
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
