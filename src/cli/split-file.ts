import { createReadStream } from "node:fs";
import { LucidError } from "../core/errors.ts";

const READ_BYTES = 1_048_576;

/** The stream in pieces of `chunkBytes`, the last one shorter; each owns its memory. Throws PAYLOAD_EMPTY. */
export async function* splitStream(
  stream: AsyncIterable<Uint8Array>,
  chunkBytes: number,
): AsyncGenerator<Uint8Array> {
  let pending = new Uint8Array(chunkBytes);
  let filled = 0;
  let total = 0;
  for await (const piece of stream) {
    for (let at = 0; at < piece.byteLength; ) {
      const taken = piece.subarray(at, at + chunkBytes - filled);
      pending.set(taken, filled);
      filled += taken.byteLength;
      at += taken.byteLength;
      total += taken.byteLength;
      if (filled < chunkBytes) continue;
      yield pending;
      pending = new Uint8Array(chunkBytes);
      filled = 0;
    }
  }
  if (total === 0) throw new LucidError("PAYLOAD_EMPTY", "the input is empty: there is nothing to enqueue");
  if (filled > 0) yield pending.slice(0, filled);
}

/** `-` is standard input. */
export function openInput(file: string): AsyncIterable<Uint8Array> {
  const stream = file === "-" ? process.stdin : createReadStream(file, { highWaterMark: READ_BYTES });
  return stream as AsyncIterable<Buffer>;
}
