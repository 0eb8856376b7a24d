import { createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import type { Writable } from "node:stream";
import { InvalidArgumentError, type Command } from "commander";
import { CpuThreads } from "../adapters/threads/cpu-threads.ts";
import { loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import { sessionId } from "../core/ids.ts";
import { keyRingOf } from "../key-ring.ts";
import { findRestorable, type RestoreRange, restoreChunks } from "../pipeline/restore-session.ts";
import { newCommand, perform } from "./command.ts";
import { openStores } from "./open-stores.ts";
import { formatBytes } from "./output.ts";

interface RestoreFlags {
  readonly json?: boolean;
  readonly output?: string;
  readonly from?: number;
  readonly to?: number;
}

export function restoreCommand(): Command {
  return newCommand("restore", "read a session back, checking every chunk before it is written")
    .argument("<session>", "session id")
    .option("-o, --output <file>", "write to this file, whole or not at all (default: standard output)")
    .option("--from <index>", "first chunk", parseIndex)
    .option("--to <index>", "last chunk", parseIndex)
    .action((session: string, flags: RestoreFlags) =>
      perform(flags.json, async (output, signal) => {
        if (flags.json && flags.output === undefined) {
          throw new LucidError("CONFIG_INVALID", "--json needs -o FILE: standard output can't hold both");
        }
        const { config } = loadProcessConfig({ needs: ["mongodb", "kek"] });
        const stores = await openStores(config.mongodb.url.reveal());
        const threads = new CpuThreads({
          threads: config.kernel.threads,
          timeoutMs: config.kernel.workerTimeoutMs,
        });
        try {
          const record = await findRestorable(stores.sessions, sessionId(session));
          const range = rangeOf(flags, record.tree.size);
          const bar = output.progress("restore", range.to - range.from, "chunks");
          const target = flags.output === undefined ? standardOutput() : await atomicFile(flags.output);
          let bytes = 0;
          try {
            const ports = { ...stores, threads, keyRing: keyRingOf(config) };
            for await (const { chunk, payload } of restoreChunks(ports, record, range, signal)) {
              await target.write(payload);
              bytes += payload.byteLength;
              bar.update(chunk.index + 1 - range.from);
            }
            await target.commit();
          } catch (thrown) {
            await target.abandon();
            throw thrown;
          } finally {
            bar.stop();
          }
          const chunks = range.to - range.from;
          if (flags.output === undefined) output.say(`restored ${chunks} chunks, ${formatBytes(bytes)}`);
          else {
            output.result(
              { session_id: session, chunks, bytes, file: flags.output, state: record.state },
              `restored ${chunks} chunks, ${formatBytes(bytes)}, to ${flags.output}`,
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

function parseIndex(text: string): number {
  if (!/^\d{1,10}$/.test(text)) throw new InvalidArgumentError("must be a chunk index, 0 or more");
  return Number(text);
}

function rangeOf({ from = 0, to }: RestoreFlags, size: number): RestoreRange {
  const last = to ?? size - 1;
  if (from > last || last >= size) {
    throw new LucidError("CONFIG_INVALID", `--from and --to must lie within the ${size} chunks of the tree`);
  }
  return { from, to: last + 1 };
}

interface Target {
  write(bytes: Uint8Array): Promise<void>;
  commit(): Promise<void>;
  abandon(): Promise<void>;
}

function standardOutput(): Target {
  return { write: (bytes) => write(process.stdout, bytes), commit: async () => {}, abandon: async () => {} };
}

/** Bytes appear under the name only when all of them are there, and stay there through a power cut. */
async function atomicFile(path: string): Promise<Target> {
  const temporary = `${path}.${process.pid}.partial`;
  const stream = createWriteStream(temporary, { flags: "wx", mode: 0o600, flush: true });
  const end = async (): Promise<void> => {
    stream.end();
    await new Promise<void>((resolve, reject) => {
      stream.once("close", resolve).once("error", reject);
    });
  };
  await new Promise<void>((resolve, reject) => {
    stream.once("open", () => resolve()).once("error", reject);
  }).catch((cause: unknown) => {
    throw new LucidError("CONFIG_INVALID", "the output file can't be written; choose another with -o", {
      cause,
    });
  });
  return {
    write: (bytes) => write(stream, bytes),
    async commit() {
      await end();
      await rename(temporary, path);
    },
    async abandon() {
      await end().catch(() => undefined);
      await rm(temporary, { force: true });
    },
  };
}

function write(stream: Writable, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    stream.write(bytes, (error) => (error ? reject(error) : resolve()));
  });
}
