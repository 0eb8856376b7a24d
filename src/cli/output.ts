import { SingleBar } from "cli-progress";
import { asLucidError } from "../core/errors.ts";

/** Where a command writes: its result to stdout, everything else to stderr. */
export interface Output {
  readonly json: boolean;
  /** A line for people about what is going on; not printed with --json. */
  say(line: string): void;
  /** The result, once: one JSON object with --json, else the text. */
  result(json: object, text: string): void;
  /** A bar on stderr when that is a terminal; else nothing. `unit` is what is counted. */
  progress(label: string, total: number, unit: string): Progress;
}

export interface Progress {
  update(done: number): void;
  stop(): void;
}

const SILENT: Progress = { update() {}, stop() {} };

export function createOutput(json: boolean): Output {
  return {
    json,
    say(line) {
      if (!json) process.stderr.write(`${line}\n`);
    },
    result(object, text) {
      process.stdout.write(json ? `${JSON.stringify(object)}\n` : `${text}\n`);
    },
    progress(label, total, unit) {
      if (json || !process.stderr.isTTY) return SILENT;
      const bar = new SingleBar({
        format: `${label} {bar} {percentage}% {value}/{total} ${unit}, {eta_formatted} left`,
        hideCursor: false,
        clearOnComplete: true,
        stream: process.stderr,
        etaBuffer: 50,
      });
      bar.start(total, 0);
      return { update: (done) => bar.update(done), stop: () => bar.stop() };
    },
  };
}

/** One clear line (or JSON object) on stderr, with the code that docs/errors.md explains. */
export function printFailure(thrown: unknown, json: boolean): void {
  const { code, message } = asLucidError(thrown);
  process.stderr.write(
    json ? `${JSON.stringify({ error: { code, message } })}\n` : `error: ${message} [${code}]\n`,
  );
}

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

/** Rows of label and value, aligned. */
export function formatTable(rows: readonly (readonly [label: string, value: string])[]): string {
  const width = Math.max(...rows.map(([label]) => label.length));
  return rows.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join("\n");
}
