import { join } from "node:path";
import type { Command } from "commander";
import { openExportFolder, SECRET_FILE } from "../adapters/file/export-folder.ts";
import { loadProcessConfig } from "../config.ts";
import { sessionId } from "../core/ids.ts";
import { keyRingOf } from "../key-ring.ts";
import { requireKeyOf } from "./require-key.ts";
import {
  type ExportableSession,
  type ExportedSession,
  exportSecrets,
  exportSession,
  findExportable,
} from "../pipeline/export-session.ts";
import { newCommand, perform } from "./command.ts";
import { openStores } from "./open-stores.ts";
import { formatBytes, formatTable, type Output, PROGRAM } from "./output.ts";

interface ExportFlags {
  readonly json?: boolean;
  readonly output: string;
  readonly secret?: boolean;
}

const SECRET_WARNING =
  "opens every chunk of this session, for ever: give it only to whom you would give the recording, " +
  "and not on the way that the folder takes";

export function exportCommand(): Command {
  return newCommand("export", "write a sealed session's manifest files and blobs for an auditor")
    .argument("<session>", "session id")
    .requiredOption("-o, --output <folder>", "folder to make; it appears when everything is in it")
    .option("--secret", `also write the session secret, which opens the blobs, to ${SECRET_FILE}`)
    .action((session: string, flags: ExportFlags) =>
      perform(flags.json, async (output, signal) => {
        const { config } = loadProcessConfig({ needs: flags.secret ? ["mongodb", "kek"] : ["mongodb"] });
        const stores = await openStores(config.mongodb.url.reveal());
        try {
          const exportable = await findExportable(stores, sessionId(session));
          const { session: record } = exportable;
          // Before anything is written: a secret that can't be had is known at once.
          const secret = flags.secret
            ? exportSecrets(record, await requireKeyOf(stores, keyRingOf(config)))
            : undefined;
          const folder = await openExportFolder(flags.output, record.id);
          const bar = output.progress("export", record.tree.size, "chunks");
          try {
            const onProgress = (blobs: number): void => bar.update(blobs);
            const exported = await exportSession(stores, exportable, folder, { signal, onProgress });
            await folder.publish(record.tree.size, secret);
            bar.stop();
            await report(output, flags, exportable, exported);
          } catch (thrown) {
            bar.stop();
            output.say(`not complete: ${folder.partial} stays, and the same command goes on with it`);
            throw thrown;
          }
          return 0;
        } finally {
          await stores.close();
        }
      }),
    );
}

async function report(
  output: Output,
  { output: folder, secret }: ExportFlags,
  { manifest }: ExportableSession,
  { names, blobBytes, found }: ExportedSession,
): Promise<void> {
  const secretFile = secret === true ? join(folder, SECRET_FILE) : null;
  if (secretFile !== null) process.stderr.write(`warning: ${secretFile} ${SECRET_WARNING}\n`);
  const { session_metadata: session, merkle, signature } = manifest;
  const chunks = merkle.tree_size;
  await output.result(
    {
      session_id: session.session_id,
      chunks,
      blob_bytes: blobBytes,
      found_chunks: found,
      root_hash: merkle.root_hash,
      key_id: signature.key_id,
      folder,
      manifest: join(folder, names.manifest),
      anchored: names.anchor !== undefined,
      secret: secretFile,
    },
    formatTable([
      ["folder", folder],
      ["manifest", `${names.manifest}, signed by key ${signature.key_id}`],
      [
        "blobs",
        `${chunks}, ${formatBytes(blobBytes)}${found === 0 ? "" : `, ${found} of them there already`}`,
      ],
      ["anchor", names.anchor === undefined ? "none yet" : names.anchor],
      ["secret", secretFile ?? "not written (--secret)"],
      [
        "check it",
        `${PROGRAM} verify ${join(folder, names.manifest)} --key PUBLIC_KEY --blobs ${join(folder, "blobs")}`,
      ],
    ]),
  );
}
