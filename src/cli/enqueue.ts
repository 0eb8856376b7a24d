import { stat } from "node:fs/promises";
import { type Command, Option } from "commander";
import type { ChunkToEnqueue, PayloadPlace } from "../adapters/bullmq/producer.ts";
import { createFilePayloadStore } from "../adapters/file/payload-store.ts";
import { loadProcessConfig } from "../config.ts";
import { levelFor } from "../core/compress/codec.ts";
import { asLucidError, LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { CODECS } from "../schema/job.ts";
import { parseCount, parseCountFromOne, parseIndex, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { foresee, type SessionForesight } from "./foreseen.ts";
import { unreadable } from "./files.ts";
import { openProducer } from "./open-producer.ts";
import { counted, formatBytes, PROGRAM, untilAborted } from "./output.ts";
import { openInput, splitStream } from "./split-file.ts";

interface EnqueueFlags {
  readonly json?: boolean;
  readonly chunkSize?: number;
  readonly firstIndex: number;
  readonly store: PayloadPlace;
  readonly algorithm?: (typeof CODECS)[number];
  readonly level?: number;
  readonly finalize?: boolean;
}

export function enqueueCommand(): Command {
  return newCommand("enqueue", "split a file into chunks and queue one job for each")
    .argument("<session>", "session id", parseSession)
    .argument("<file>", "file to read, or - for standard input")
    .option("--chunk-size <bytes>", "bytes a chunk (default: LUCID_MAX_CHUNK_SIZE)", parseCountFromOne)
    .option("--first-index <index>", "index of the first chunk, to go on with a session", parseIndex, 0)
    .addOption(
      new Option("--store <place>", "where the worker finds the bytes")
        .choices(["redis", "file", "inline"])
        .default("redis"),
    )
    .addOption(new Option("--algorithm <codec>", "compression of these chunks").choices([...CODECS]))
    .option(
      "--level <level>",
      "compression level of --algorithm: zstd 1–22, brotli 0–11, others 0",
      parseCount,
    )
    .option("--finalize", "also finalize the session with the number of chunks")
    .action((session: SessionId, file: string, flags: EnqueueFlags) =>
      perform(flags.json, async (output, signal) => {
        if (flags.level !== undefined && flags.algorithm === undefined) {
          throw new LucidError("CONFIG_INVALID", "--level needs --algorithm");
        }
        // As the worker would refuse it, for each chunk.
        if (flags.algorithm !== undefined) levelFor(flags.algorithm, flags.level);
        const loaded = loadProcessConfig({ needs: ["redis"] });
        const { config } = loaded;
        const chunkBytes = flags.chunkSize ?? config.limits.chunkBytesMax;
        if (chunkBytes > config.limits.chunkBytesMax) {
          throw new LucidError(
            "CONFIG_INVALID",
            `--chunk-size must be from 1 to ${config.limits.chunkBytesMax} (LUCID_MAX_CHUNK_SIZE)`,
          );
        }
        const size = await sizeOf(file);
        const total = size === undefined ? 0 : Math.ceil(size / chunkBytes);
        const foreseen = await foresee(loaded, session, output);
        const producer = openProducer(config, output, {
          files: createFilePayloadStore(config.paths.payloads),
          signal,
        });
        const bar = output.progress(`enqueue ${session}`, total, "chunks");
        const queued = new QueuedChunks(flags.firstIndex);
        let committedBefore = 0;
        try {
          // Before anything is queued, where the file's length tells how many there will be.
          if (size !== undefined && total > 0) {
            const last = flags.firstIndex + total - 1;
            await foreseen.checkChunk(last, size - (total - 1) * chunkBytes);
            if (flags.finalize) await foreseen.checkCount(last + 1);
          }
          const chunks = toChunks(
            session,
            splitStream(untilAborted(openInput(file), signal), chunkBytes),
            flags,
          );
          const onCommitted = (): void => void committedBefore++;
          const result = await producer.enqueueAll(possible(chunks, foreseen, onCommitted), ({ index }) => {
            queued.add(index);
            bar.update(queued.count);
          });
          const chunkCount = flags.firstIndex + result.chunks;
          // One that is sealed stays as it is.
          const finalizes = flags.finalize === true && (foreseen.session?.state ?? "open") === "open";
          if (flags.finalize) await foreseen.checkCount(chunkCount);
          if (finalizes) await producer.finalize({ session_id: session, chunk_count: chunkCount });
          bar.stop();
          await output.result(
            {
              session_id: session,
              ...result,
              chunk_count: chunkCount,
              finalized: finalizes,
              session_checked: foreseen.checked,
              committed_before: foreseen.checked ? committedBefore : null,
            },
            `queued ${counted(result.chunks, "chunk")}, ${formatBytes(result.bytes)}; ` +
              whatStays(committedBefore, result.chunks) +
              (await whatFollows(session, foreseen, chunkCount, flags)),
          );
          return 0;
        } catch (thrown) {
          bar.stop();
          if (queued.count > 0) output.say(howToGoOn(session, file, queued, chunkBytes, thrown));
          throw thrown;
        } finally {
          bar.stop();
          await foreseen.close();
          await producer.close();
        }
      }),
    );
}

/** Which chunks are known to be queued; they become so in any order. */
class QueuedChunks {
  readonly #beyond = new Set<number>();
  readonly first: number;
  /** The first index that isn't known to be queued. */
  next: number;

  constructor(first: number) {
    this.first = first;
    this.next = first;
  }

  get count(): number {
    return this.next - this.first + this.#beyond.size;
  }

  add(index: number): void {
    this.#beyond.add(index);
    while (this.#beyond.delete(this.next)) this.next += 1;
  }
}

/** After a failure, with chunks queued. What comes from standard input mostly can't be had again, and is gone on with. */
function howToGoOn(
  id: SessionId,
  file: string,
  queued: QueuedChunks,
  chunkBytes: number,
  failure: unknown,
): string {
  const had = `${counted(queued.count, "chunk")} had been queued`;
  // What the session can't take it won't take later.
  if (asLucidError(failure).disposition === "unrecoverable")
    return `${had}; sending the same again does no harm`;
  if (file !== "-") return `${had}; to go on, give the same command again: what is queued twice does no harm`;
  const skipped = (queued.next - queued.first) * chunkBytes;
  return (
    `${had}, all below index ${queued.next}; to go on, leave out the first ${skipped} bytes of that input and send the rest: ` +
    `${PROGRAM} enqueue ${id} - --first-index ${queued.next} --chunk-size ${chunkBytes}, with the other options as before`
  );
}

/** Of a sealed session `whatFollows` says it. */
function whatStays(committedBefore: number, chunks: number): string {
  if (committedBefore === 0) return "";
  const [which, stay] = chunks === 1 ? ["it was", "stays"] : [`${committedBefore} of them were`, "stay"];
  return `${which} committed already and ${stay}: any with other bytes fails with CHUNK_CONFLICT (${PROGRAM} status); `;
}

async function whatFollows(
  id: SessionId,
  foreseen: SessionForesight,
  chunkCount: number,
  { finalize }: EnqueueFlags,
): Promise<string> {
  const record = foreseen.session;
  if (record !== undefined && record.state !== "open") {
    return `${id} is sealed already, with ${counted(record.tree.size, "chunk")}, and stays as it is`;
  }
  const count = record?.countConfirmed ? record.expectedCount : finalize ? chunkCount : undefined;
  if (count !== undefined) return `${id} is sealed when all its ${counted(count, "chunk")} are in`;
  const next = `next: ${PROGRAM} finalize ${id} --chunks`;
  const known = await foreseen.countKnown(chunkCount);
  if (known !== undefined) return `${next} ${known}`;
  return (
    `${next} COUNT, with the number of all its chunks: ${chunkCount}, if there is none beyond these; ` +
    "the session could not be looked at"
  );
}

async function* possible(
  chunks: AsyncIterable<ChunkToEnqueue>,
  foreseen: SessionForesight,
  onCommitted: () => void,
): AsyncGenerator<ChunkToEnqueue> {
  for await (const chunk of chunks) {
    if (await foreseen.checkChunk(chunk.index, chunk.bytes.byteLength)) onCommitted();
    yield chunk;
  }
}

async function* toChunks(
  session: string,
  pieces: AsyncIterable<Uint8Array>,
  { firstIndex, store, algorithm, level }: EnqueueFlags,
): AsyncGenerator<ChunkToEnqueue> {
  let index = firstIndex;
  for await (const bytes of pieces) {
    yield {
      sessionId: session,
      index: index++,
      bytes,
      store,
      ...(algorithm === undefined
        ? {}
        : { compression: { algorithm, ...(level === undefined ? {} : { level }) } }),
    };
  }
}

/** `undefined` for standard input and other things without a length. */
async function sizeOf(file: string): Promise<number | undefined> {
  if (file === "-") return undefined;
  const found = await stat(file).catch((cause: unknown) => {
    throw unreadable(file, cause);
  });
  if (found.isDirectory()) throw new LucidError("CONFIG_INVALID", `${file} is a directory: name a file`);
  return found.isFile() ? found.size : undefined;
}
