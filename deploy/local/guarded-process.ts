import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { lastLine } from "./programs.ts";
import { PassedOver } from "./source.ts";

/** From SIGTERM to SIGKILL. */
const GRACE_MS = 10_000;
/** How long a stopped guard may take beyond that before it is killed itself. */
const GUARD_SLACK_MS = 5_000;
const READY_POLL_MS = 20;
const LOG_LINES_READ = 60;

/** What is removed once the server has ended. */
export interface Removal {
  readonly dir: string;
  /** Removed as well once none of `neighbours` exists. */
  readonly root?: string | undefined;
  readonly neighbours: readonly string[];
}

/** What the guard is told on its command line, as JSON. */
export interface GuardOrder {
  readonly program: string;
  readonly args: readonly string[];
  /** The server's folder and working directory; it exists. */
  readonly dir: string;
  /** Receives the server's standard error. */
  readonly logFile: string;
  /** Receives its standard output too, which then tells this process nothing. */
  readonly logsOutput?: boolean | undefined;
  readonly graceMs: number;
  /** Absent: the data is kept. */
  readonly removal?: Removal | undefined;
}

export interface ServerCommand {
  /** For messages: `redis-server`. */
  readonly name: string;
  readonly program: string;
  readonly args: readonly string[];
  readonly dir: string;
  /** What it prints is its log, and nothing that `valueAfter` is asked for. */
  readonly logsOutput?: boolean | undefined;
  readonly removal?: Removal | undefined;
  readonly onGuard?: ((pid: number, name: string) => void) | undefined;
  readonly env: NodeJS.ProcessEnv;
}

/**
 * A server that ends when this process does, however that ends; guard.ts says how.
 * It does not keep this process alive, and the terminal's Ctrl-C does not reach it.
 */
export class GuardedProcess {
  readonly #name: string;
  readonly #guard: ChildProcess;
  readonly #guardEnded: Promise<void>;
  readonly #logFile: string;
  readonly #lines: string[] = [];
  #stopping: Promise<void> | undefined;

  constructor(command: ServerCommand) {
    const { name, program, args, dir, logsOutput, removal } = command;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    this.#name = name;
    this.#logFile = join(dir, `${name}.log`);
    const logFile = this.#logFile;
    const order: GuardOrder = { program, args, dir, logFile, logsOutput, graceMs: GRACE_MS, removal };
    // Flags and hooks meant for this process (a debugger's port, a test runner's loader) are not the guard's.
    const { NODE_OPTIONS: _options, NODE_V8_COVERAGE: _coverage, ...env } = command.env;
    this.#guard = spawn(
      process.execPath,
      [fileURLToPath(new URL("guard.ts", import.meta.url)), JSON.stringify(order)],
      { env, detached: true, stdio: ["pipe", "pipe", "ignore"], cwd: dir },
    );
    if (this.#guard.pid !== undefined) command.onGuard?.(this.#guard.pid, name);
    this.#guardEnded = new Promise((resolve) => {
      this.#guard.once("exit", () => resolve()).once("error", () => resolve());
    });
    this.#guard.stdin?.on("error", () => {});
    if (this.#guard.stdout !== null)
      createInterface({ input: this.#guard.stdout }).on("line", (line) => this.#lines.push(line));
    this.#letProcessEnd();
  }

  /** The server's process id; undefined until the guard has started it. */
  get pid(): number | undefined {
    const pid = this.valueAfter("guard pid ");
    return pid === undefined ? undefined : Number(pid);
  }

  /** What the server, or the guard, printed after `prefix` on its first line that begins so. */
  valueAfter(prefix: string): string | undefined {
    return this.#lines.find((line) => line.startsWith(prefix))?.slice(prefix.length);
  }

  /**
   * Polls until `answers` gives a value, and returns that.
   * @throws PassedOver when the server ends first or `deadlineMs` passes; the server is stopped then
   */
  async untilReady<T>(
    answers: (pid: number) => Promise<T | undefined>,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const givesUpAt = performance.now() + deadlineMs;
    try {
      for (;;) {
        signal?.throwIfAborted();
        const ended = this.valueAfter("guard ended ");
        if (ended !== undefined) throw new PassedOver(`${this.#name} ended (${ended}): ${this.#logged()}`);
        if (this.#guard.exitCode !== null || this.#guard.signalCode !== null)
          throw new PassedOver(`${this.#name}'s guard could not start`);
        const answer = this.pid === undefined ? undefined : await answers(this.pid);
        if (answer !== undefined) return answer;
        if (performance.now() > givesUpAt)
          throw new PassedOver(
            `${this.#name} did not answer within ${deadlineMs / 1000} s: ${this.#logged()}`,
          );
        await sleep(READY_POLL_MS);
      }
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  /** Ends the server and waits until it, its guard and, unless kept, its folder are gone. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    this.#guard.ref();
    this.#guard.stdin?.end();
    const lastResort = setTimeout(() => this.#killGroup(), GRACE_MS + GUARD_SLACK_MS);
    await this.#guardEnded;
    clearTimeout(lastResort);
  }

  #killGroup(): void {
    const { pid } = this.#guard;
    try {
      if (pid !== undefined) process.kill(-pid, "SIGKILL");
    } catch {
      // Gone in the meantime, which is all that was wanted.
    }
  }

  /** Why the server failed, as far as it says: a taken port is named before other complaints come of it. */
  #logged(): string {
    try {
      const tail = readFileSync(this.#logFile, "utf8").split("\n").slice(-LOG_LINES_READ).join("\n");
      return /address already in use/i.test(tail) ? "the port is in use" : lastLine(tail);
    } catch {
      return "no log";
    }
  }

  #letProcessEnd(): void {
    this.#guard.unref();
    for (const stream of [this.#guard.stdin, this.#guard.stdout])
      if (stream !== null && "unref" in stream && typeof stream.unref === "function") stream.unref();
  }
}
