import type { Command } from "commander";
import { CpuThreads } from "../adapters/threads/cpu-threads.ts";
import { loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { keyRingOf } from "../key-ring.ts";
import { findRestorable, type RestoreRange, restoreChunks } from "../pipeline/restore-session.ts";
import { missingRanges } from "../pipeline/sweep.ts";
import type { SessionRecord } from "../schema/record.ts";
import { parseIndex, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { refuseTaken, writeOutputFile } from "./files.ts";
import { type OpenStores, openStores } from "./open-stores.ts";
import { counted, formatBytes, untilAborted } from "./output.ts";
import { requireKeyOf } from "./require-key.ts";
import { rangeText } from "./session-report.ts";

/** Later chunks that a look for what is missing takes in. */
const GAP_WINDOW_CHUNKS = 1_000;

interface RestoreFlags {
  readonly json?: boolean;
  readonly output?: string;
  readonly force?: boolean;
  readonly from?: number;
  readonly to?: number;
  readonly partial?: boolean;
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
    .option("--partial", "of a session that isn't sealed, what is in its tree")
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
          const shortage = await shortageOf(stores, record);
          if (shortage !== undefined && isWhole(flags)) {
            if (flags.partial !== true) throw refusedAsPartial(record, shortage);
            output.say(`warning: ${shortageText(record, shortage)}`);
          }
          const keyRing = await requireKeyOf(stores, keyRingOf(config));
          const bar = output.progress("restore", range.to - range.from, "chunks");
          let bytes = 0;
          const payloads = async function* (): AsyncGenerator<Uint8Array> {
            const ports = { ...stores, threads, keyRing };
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
          const done = `restored ${counted(chunks, "chunk")}, ${formatBytes(bytes)}`;
          if (file === undefined) output.say(done);
          else {
            await output.result(
              {
                session_id: session,
                chunks,
                bytes,
                file,
                state: record.state,
                ...shortageJson(record, shortage),
              },
              `${done}, to ${file}`,
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
  if (from >= size || last >= size) {
    throw new LucidError(
      "CONFIG_INVALID",
      `the tree has ${counted(size, "chunk")}: --from and --to must lie from 0 to ${size - 1}`,
    );
  }
  if (from > last) throw new LucidError("CONFIG_INVALID", `--from ${from} comes after --to ${last}`);
  return { from, to: last + 1 };
}

/** Whoever names a range has said that a part will do. */
function isWhole({ from, to }: RestoreFlags): boolean {
  return from === undefined && to === undefined;
}

/** What keeps an open session's tree from being the recording. */
interface Shortage {
  /** Ranges of indexes, both ends included; what may follow the last known chunk isn't in it. */
  readonly missing: readonly (readonly [number, number])[];
  /** Committed chunks behind what is missing. */
  readonly later: number;
}

/** `undefined` for a sealed session: its tree is whole. */
async function shortageOf({ chunks }: OpenStores, record: SessionRecord): Promise<Shortage | undefined> {
  if (record.state !== "open") return undefined;
  const { id, tree, expectedCount } = record;
  const later = await chunks.beyond(id, tree.size, GAP_WINDOW_CHUNKS);
  return { missing: missingRanges(tree.size, later, expectedCount), later: later.length };
}

function refusedAsPartial(record: SessionRecord, shortage: Shortage): LucidError {
  const size = counted(record.tree.size, "chunk");
  return new LucidError(
    "CONFIG_INVALID",
    `${shortageText(record, shortage)}; --partial restores the ${size} in the tree, --from and --to some of them`,
  );
}

function shortageText({ id, tree, expectedCount }: SessionRecord, { missing, later }: Shortage): string {
  const of =
    expectedCount === undefined ? counted(tree.size, "chunk") : `${tree.size} of ${expectedCount} chunks`;
  const facts = [
    `${id} is not sealed: its tree has ${of}`,
    missing.length === 0 ? "none is known to be missing" : `missing: ${missing.map(rangeText).join(", ")}`,
    ...(later === 0
      ? []
      : [`${later === GAP_WINDOW_CHUNKS ? `${later} or more` : later} wait behind the tree`]),
    ...(expectedCount === undefined ? ["nobody has said how many there are (finalize)"] : []),
  ];
  return facts.join("; ");
}

function shortageJson({ expectedCount }: SessionRecord, shortage: Shortage | undefined): object {
  return {
    partial: shortage !== undefined,
    expected_count: expectedCount ?? null,
    missing: shortage?.missing ?? [],
    waiting_for_gap: shortage?.later ?? 0,
  };
}
