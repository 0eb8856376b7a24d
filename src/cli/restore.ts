import type { Command } from "commander";
import { CpuThreads } from "../adapters/threads/cpu-threads.ts";
import { loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { keyRingOf } from "../key-ring.ts";
import { findRestorable, type RestoreRange, restoreChunks } from "../pipeline/restore-session.ts";
import { parseIndex, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { refuseTaken, writeOutputFile } from "./files.ts";
import { openStores } from "./open-stores.ts";
import { formatBytes, untilAborted } from "./output.ts";

interface RestoreFlags {
  readonly json?: boolean;
  readonly output?: string;
  readonly force?: boolean;
  readonly from?: number;
  readonly to?: number;
}

export function restoreCommand(): Command {
  return newCommand("restore", "read a session back, checking every chunk before it is written")
    .argument("<session>", "session id", parseSession)
    .option(
      "-o, --output <file>",
      "write to this new file, whole or not at all, mode 0600 (default: standard output)",
    )
    .option("--force", "let -o replace a file")
    .option("--from <index>", "first chunk", parseIndex)
    .option("--to <index>", "last chunk", parseIndex)
    .action((session: SessionId, flags: RestoreFlags) =>
      perform(flags.json, async (output, signal) => {
        const { output: file, force } = flags;
        if (flags.json && file === undefined) {
          throw new LucidError("CONFIG_INVALID", "--json needs -o FILE: standard output can't hold both");
        }
        const options = { force: force ?? false };
        if (file !== undefined) await refuseTaken(file, options);
        const { config } = loadProcessConfig({ needs: ["mongodb", "kek"] });
        const stores = await openStores(config.mongodb.url.reveal());
        const threads = new CpuThreads({
          threads: config.kernel.threads,
          timeoutMs: config.kernel.workerTimeoutMs,
        });
        try {
          const record = await findRestorable(stores.sessions, session);
          const range = rangeOf(flags, record.tree.size);
          const bar = output.progress("restore", range.to - range.from, "chunks");
          let bytes = 0;
          const payloads = async function* (): AsyncGenerator<Uint8Array> {
            const ports = { ...stores, threads, keyRing: keyRingOf(config) };
            const restored = restoreChunks(ports, record, range, signal);
            for await (const { chunk, payload } of untilAborted(restored, signal)) {
              yield payload;
              bytes += payload.byteLength;
              bar.update(chunk.index + 1 - range.from);
            }
          };
          try {
            if (file !== undefined) await writeOutputFile(file, payloads(), options);
            else for await (const payload of payloads()) await output.print(payload);
          } finally {
            bar.stop();
          }
          const chunks = range.to - range.from;
          if (file === undefined) output.say(`restored ${chunks} chunks, ${formatBytes(bytes)}`);
          else {
            await output.result(
              { session_id: session, chunks, bytes, file, state: record.state },
              `restored ${chunks} chunks, ${formatBytes(bytes)}, to ${file}`,
            );
          }
          return 0;
        } finally {
          await threads.close();
          await stores.close();
        }
      }),
    );
}

function rangeOf({ from = 0, to }: RestoreFlags, size: number): RestoreRange {
  const last = to ?? size - 1;
  if (from > last || last >= size) {
    throw new LucidError("CONFIG_INVALID", `--from and --to must lie within the ${size} chunks of the tree`);
  }
  return { from, to: last + 1 };
}
