import { readFileSync } from "node:fs";

// What Linux says of processes. Asking the worker instead, by /metrics, would add commands and CPU time to what is measured.

/** As USER_HZ is on every Linux that Node runs on. */
const TICK_SECONDS = 0.01;
const KIB = 1_024;

/** Undefined where there is no /proc. */
export function rssBytes(pid: number): number | undefined {
  return statusBytes(pid, "VmRSS");
}

/** The highest that the kernel has seen since the process began; undefined where there is no /proc. */
export function rssPeakBytes(pid: number): number | undefined {
  return statusBytes(pid, "VmHWM");
}

function statusBytes(pid: number, field: string): number | undefined {
  const kib = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(read(`/proc/${pid}/status`) ?? "")?.[1];
  return kib === undefined ? undefined : Number(kib) * KIB;
}

interface CpuSeconds {
  readonly machine: number;
  readonly own: number;
}

/**
 * Cores' worth of CPU time that others than the given processes used since this was made. Whoever else is at work takes from
 * the end-to-end rate, or from the kernel's, and so spoils their ratio in either direction.
 */
export class OutsideLoad {
  readonly #pids: readonly number[];
  readonly #startedMs = performance.now();
  readonly #before: CpuSeconds | undefined;

  constructor(pids: readonly (number | undefined)[]) {
    this.#pids = pids.filter((pid) => pid !== undefined);
    this.#before = cpuSeconds(this.#pids);
  }

  /** Undefined where there is no /proc. Never below 0: ticks are coarse. */
  cores(): number | undefined {
    const after = cpuSeconds(this.#pids);
    if (this.#before === undefined || after === undefined) return undefined;
    const seconds = (performance.now() - this.#startedMs) / 1000;
    return Math.max(
      0,
      (after.machine - this.#before.machine - (after.own - this.#before.own)) /
        Math.max(seconds, TICK_SECONDS),
    );
  }
}

/** Not a number where there is no /proc. */
export function processCpuSeconds(pid: number): number {
  return read(`/proc/${pid}/stat`) === undefined ? Number.NaN : ticksOf(pid) * TICK_SECONDS;
}

function cpuSeconds(pids: readonly number[]): CpuSeconds | undefined {
  const line = /^cpu +(.*)$/m.exec(read("/proc/stat") ?? "")?.[1];
  if (line === undefined) return undefined;
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = line.split(" ").map(Number);
  const own = pids.reduce((sum, pid) => sum + ticksOf(pid), 0);
  return { machine: (user + nice + system + irq + softirq) * TICK_SECONDS, own: own * TICK_SECONDS };
}

/** proc(5): utime and stime are the 14th and 15th field; the 2nd, in brackets, may hold spaces. */
function ticksOf(pid: number): number {
  const text = read(`/proc/${pid}/stat`) ?? "";
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11] ?? 0) + Number(fields[12] ?? 0);
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}
