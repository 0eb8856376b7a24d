import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";

const PROGRAM = fileURLToPath(new URL("../../src/cli/session-processor.ts", import.meta.url));
const READY_MS = 30_000;
const POLL_MS = 20;

/** One JSON line of the worker's log. */
export interface LogLine {
  readonly level: string;
  readonly event: string;
  readonly time: string;
  readonly [field: string]: unknown;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Milliseconds from the last signal that was sent to the end. */
  readonly afterSignalMs: number;
}

export interface ProgramResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Polls until `fact` gives a value other than `undefined` and `false`; throws, naming `what`, when it doesn't in time. */
export async function until<Value>(
  what: string,
  fact: () => Value | Promise<Value>,
  timeoutMs: number,
  pollMs = POLL_MS,
): Promise<Exclude<Value, undefined | false>> {
  const givesUpAt = performance.now() + timeoutMs;
  for (;;) {
    const value = await fact();
    if (value !== undefined && value !== false) return value as Exclude<Value, undefined | false>;
    if (performance.now() > givesUpAt) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await sleep(pollMs);
  }
}

/** The variables that a program needs of its surroundings, and nothing by which the test runner is known. */
export function bareEnvironment(): NodeJS.ProcessEnv {
  const { PATH, HOME, TMPDIR, JAVA_HOME, NODE_COMPILE_CACHE } = process.env;
  return { PATH, HOME, TMPDIR, JAVA_HOME, NODE_COMPILE_CACHE, NODE_ENV: "production" };
}

export interface ProgramOptions {
  readonly env: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly stdin?: string | Uint8Array;
}

/** Runs `session-processor` with these arguments to its end; it ends with the test at the latest. */
export function runProgram(args: readonly string[], options: ProgramOptions): Promise<ProgramResult> {
  return runProgramToEnd(args, options, (child) => onTestFinished(() => endNow(child)));
}

/** As runProgram, for hooks: outside a test there is none that it could end with. */
export async function runProgramToEnd(
  args: readonly string[],
  { env, cwd, stdin = "" }: ProgramOptions,
  onStart: (child: ChildProcess) => void = () => undefined,
): Promise<ProgramResult> {
  const child = spawn(process.execPath, [PROGRAM, ...args], { env, cwd });
  onStart(child);
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (text: string) => {
      output[name] += text;
    });
  }
  child.stdin.on("error", () => undefined);
  child.stdin.end(stdin);
  const [code] = (await once(child, "close")) as [number | null];
  return { code, ...output };
}

/**
 * `session-processor run` as its own process, started as in production. It ends with the test at the latest. Its
 * sidecar listens on 127.0.0.1, on a free port unless the environment names one.
 */
export class WorkerProcess {
  readonly #child: ChildProcess;
  readonly #lines: LogLine[] = [];
  readonly #exited: Promise<Exit>;
  #output = "";
  #exit: Exit | undefined;
  #signalledMs = Number.NaN;

  constructor(env: NodeJS.ProcessEnv, cwd?: string) {
    this.#child = spawn(process.execPath, [PROGRAM, "run"], {
      env: { HTTP_BIND: "127.0.0.1", SESSION_PROCESSOR_PORT: "0", ...env },
      cwd,
      stdio: ["ignore", "pipe", "pipe"],
    });
    const { stdout, stderr } = this.#child;
    if (stdout === null || stderr === null) throw new TypeError("both are pipes");
    createInterface({ input: stdout }).on("line", (line) => this.#take(line));
    stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#output += text;
    });
    this.#exited = new Promise((resolve) => {
      this.#child.once("close", (code, signal) => {
        this.#exit = { code, signal, afterSignalMs: performance.now() - this.#signalledMs };
        resolve(this.#exit);
      });
    });
    onTestFinished(() => endNow(this.#child));
  }

  get pid(): number {
    if (this.#child.pid === undefined) throw new Error("the process did not start");
    return this.#child.pid;
  }

  /** Everything it printed, on both streams. */
  get output(): string {
    return this.#output;
  }

  get lines(): readonly LogLine[] {
    return this.#lines;
  }

  get exited(): Promise<Exit> {
    return this.#exited;
  }

  get hasExited(): boolean {
    return this.#exit !== undefined;
  }

  linesOf(event: string): readonly LogLine[] {
    return this.#lines.filter((line) => line.event === event);
  }

  /** Of the sidecar, as the line tells it that says whether it is ready. */
  get port(): number {
    const port = [...this.linesOf("ready"), ...this.linesOf("not_ready")][0]?.["port"];
    if (typeof port !== "number") throw new Error("the worker has not said whether it is ready");
    return port;
  }

  async untilReady(): Promise<this> {
    await this.untilLine("ready", READY_MS);
    return this;
  }

  /** Until it has printed `count` lines of this event. */
  async untilLine(event: string, timeoutMs: number, count = 1): Promise<void> {
    const fact = () => {
      if (this.linesOf(event).length >= count) return true;
      if (this.#exit !== undefined) throw new Error(`the worker ended before "${event}": ${this.tail()}`);
      return false;
    };
    await until(`${count} "${event}" of the worker; it printed ${this.tail()}`, fact, timeoutMs, 5);
  }

  signal(signal: NodeJS.Signals): void {
    this.#signalledMs = performance.now();
    this.#child.kill(signal);
  }

  /** SIGKILL by its id, and until it is gone. */
  async kill(): Promise<void> {
    process.kill(this.pid, "SIGKILL");
    await this.#exited;
  }

  /** SIGTERM, and until it is gone. */
  async terminate(): Promise<Exit> {
    this.signal("SIGTERM");
    return this.#exited;
  }

  /** GET on the sidecar. */
  async get(path: "/health" | "/ready" | "/metrics", port: number = this.port): Promise<HttpAnswer> {
    const answer = await fetch(`http://127.0.0.1:${port}${path}`, {
      signal: AbortSignal.timeout(5_000),
      headers: { connection: "close" },
    });
    return { status: answer.status, body: await answer.text() };
  }

  /** The value of a counter or gauge line of /metrics; 0 when there is none. */
  async metric(line: string): Promise<number> {
    const { body } = await this.get("/metrics");
    const found = body.split("\n").find((one) => one.startsWith(`${line} `));
    return found === undefined ? 0 : Number(found.slice(line.length + 1));
  }

  tail(): string {
    return this.#output.slice(-2_000);
  }

  #take(line: string): void {
    this.#output += `${line}\n`;
    this.#lines.push(JSON.parse(line) as LogLine);
  }
}

export interface HttpAnswer {
  readonly status: number;
  readonly body: string;
}

/** A frozen process takes SIGKILL too; one that has ended already is left alone. */
async function endNow(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const closed = once(child, "close");
  child.kill("SIGKILL");
  await closed;
}
