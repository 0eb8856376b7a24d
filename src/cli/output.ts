import { SingleBar } from "cli-progress";
import { unlessAborted } from "../adapters/system/unless-aborted.ts";
import { asLucidError, LucidError } from "../core/errors.ts";
import { outputFailed } from "./files.ts";

/** Where a command writes: its result to stdout, everything else to stderr. */
export interface Output {
  readonly json: boolean;
  /** A line for people about what is going on; with --json only where people see it: on a terminal. */
  say(line: string): void;
  /** The result, once: one JSON object with --json, else the text. Throws as `print`. */
  result(json: object, text: string): Promise<void>;
  /**
   * To standard output as it is; returns when the system has taken it. Throws OUTPUT_FAILED when it doesn't (a full disk, a
   * reader that has gone), SHUTTING_DOWN when the command is interrupted while the reader lets it wait.
   */
  print(data: string | Uint8Array): Promise<void>;
  /** What is to be known should the command fail, or be interrupted, from here on: with --json also in the error object. */
  keepInMind(fact: Readonly<Record<string, string>>): void;
  /** The same facts, for whoever prints the failure. */
  readonly facts: Readonly<Record<string, string>>;
  /** A bar on stderr when that is a terminal; else nothing. `unit` is what is counted. */
  progress(label: string, total: number, unit: string): Progress;
}

export interface Progress {
  update(done: number): void;
  stop(): void;
}

/** ECMA-48: to the line's beginning, and erase to its end. */
const CLEAR_LINE = "\r\x1b[K";
const SILENT: Progress = { update() {}, stop() {} };

export function createOutput(json: boolean, signal: AbortSignal): Output {
  surviveClosedStreams();
  const print = (data: string | Uint8Array): Promise<void> =>
    unlessAborted(writeOut(data), signal, interrupted);
  const bars = new Set<SingleBar>();
  const facts: Record<string, string> = {};
  return {
    json,
    facts,
    keepInMind: (fact) => void Object.assign(facts, fact),
    say(line) {
      if (json && !process.stderr.isTTY) return;
      // A bar that is there is drawn again below the line.
      process.stderr.write(bars.size === 0 ? `${line}\n` : `${CLEAR_LINE}${line}\n`);
    },
    result: (object, text) => print(json ? `${JSON.stringify(object)}\n` : `${text}\n`),
    print,
    progress(label, total, unit) {
      if (!process.stderr.isTTY) return SILENT;
      const bar = new SingleBar({
        format: `${label} {bar} {percentage}% {value}/{total} ${unit}, {eta_formatted} left`,
        hideCursor: false,
        clearOnComplete: true,
        stream: process.stderr,
        etaBuffer: 50,
      });
      bar.start(total, 0);
      bars.add(bar);
      const stop = (): void => {
        bar.stop();
        bars.delete(bar);
      };
      return { update: (done) => bar.update(done), stop };
    },
  };
}

function writeOut(data: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(data, (error) => {
      if (error) reject(outputFailed("standard output", error));
      else resolve();
    });
  });
}

/** The items of a stream, or SHUTTING_DOWN as soon as the signal fires: a step that hangs is left behind. */
export async function* untilAborted<Item>(
  items: AsyncIterable<Item>,
  signal: AbortSignal,
): AsyncGenerator<Item> {
  const iterator = items[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await unlessAborted(iterator.next(), signal, interrupted);
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    // It would wait for a step that hangs.
    const returned = iterator.return?.();
    if (signal.aborted) returned?.catch(() => undefined);
    else await returned;
  }
}

function interrupted(): never {
  throw new LucidError("SHUTTING_DOWN", "interrupted");
}

/** A write's failure comes to its callback; without a listener it would end the process besides, with a stack. */
function surviveClosedStreams(): void {
  for (const stream of [process.stdout, process.stderr]) {
    if (stream.listenerCount("error") === 0) stream.on("error", () => undefined);
  }
}

/** One clear line, or a headline and its list, or a JSON object, on stderr, with the code that docs/errors.md explains. */
export function printFailure(
  thrown: unknown,
  json: boolean,
  facts: Readonly<Record<string, string>> = {},
): void {
  const { code, message } = asLucidError(thrown);
  process.stderr.write(
    json
      ? `${JSON.stringify({ error: { code, message, ...facts } })}\n`
      : `error: ${withCode(message, code)}\n`,
  );
}

/** The code is that of the whole list, and not of its last item. */
function withCode(message: string, code: string): string {
  const end = message.search(/:?\n/);
  return end < 0 ? `${message} [${code}]` : `${message.slice(0, end)} [${code}]${message.slice(end)}`;
}

/** How the README has people run a command: a hint is there to be copied. */
export const PROGRAM = "npx session-processor";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** `122 683 392` → `117.0 MiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${bytes} B` : `${value.toFixed(1)} ${UNITS[unit] ?? ""}`;
}

/** `1 chunk`, `2 chunks`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Rows of label and value, aligned. */
export function formatTable(rows: readonly (readonly [label: string, value: string])[]): string {
  const width = Math.max(...rows.map(([label]) => label.length));
  return rows.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join("\n");
}

/** As one word of a shell's command line. */
export function shellWord(text: string): string {
  return /^[\w:/.@=+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
