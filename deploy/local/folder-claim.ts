/**
 * A folder of data is one run's at a time. Each process that uses it has a file of its own in `.in-use-by`, named by what no other
 * process ever has: its number and the time of its start. A file whose process is gone counts for nothing, so a kill -9 leaves no
 * folder locked; and since nobody else's file can have that name, anybody may remove it.
 *
 * Whoever wants the folder writes its file first and looks for others then. Of two at the same moment the one that looks later
 * sees the other, so never do both go on; both may step back, and try again.
 */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { LucidError } from "../../src/core/errors.ts";
import type { Surroundings } from "./source.ts";

const CLAIMS = ".in-use-by";
const TRIES_MAX = 5;
const STEP_BACK_MS_MAX = 200;
/** More than a guard takes to end its server, killing it if it must. */
const LEFTOVER_DEADLINE_MS = 20_000;
const LEFTOVER_POLL_MS = 50;

interface Claim {
  /** Name of its file. */
  readonly name: string;
  readonly pid: number;
  readonly program: string;
  /** Of the program that uses the folder; else of a server's guard, which ends soon after that program. */
  readonly isRun: boolean;
}

export interface FolderClaim {
  /** Another process of this run that uses the folder, and may outlive this one by some seconds. */
  add(pid: number, program: string): void;
  /** Repeated calls are harmless. */
  release(): void;
}

/**
 * Waits for servers that a run left behind when it was killed.
 * @throws LucidError LOCAL_SERVER_UNAVAILABLE when another run uses the folder, which is as it was then
 */
export async function claimFolder(
  folder: string,
  { program, say, signal }: Pick<Surroundings, "say" | "signal"> & { readonly program: string },
): Promise<FolderClaim> {
  const own = new Set<string>();
  for (let attempt = 1; ; attempt++) {
    // Before anything is written: what is refused has changed nothing.
    await untilFree(folder, { say, signal });
    own.add(write(folder, process.pid, program, true));
    const other = living(folder).find(({ name }) => !own.has(name));
    if (other === undefined) break;
    release(folder, own);
    if (attempt === TRIES_MAX) throw inUse(folder, other);
    await sleep(Math.random() * STEP_BACK_MS_MAX);
  }
  return {
    add: (pid, name) => void own.add(write(folder, pid, name, false)),
    release: () => release(folder, own),
  };
}

async function untilFree(
  folder: string,
  { say, signal }: Pick<Surroundings, "say" | "signal">,
): Promise<void> {
  const givesUpAt = performance.now() + LEFTOVER_DEADLINE_MS;
  for (let isSaid = false; ; ) {
    const claims = living(folder);
    const user = claims.find(({ isRun }) => isRun) ?? claims[0];
    if (user === undefined) return;
    if (user.isRun || performance.now() > givesUpAt) throw inUse(folder, user);
    if (!isSaid) say(`waiting until process ${user.pid} (${user.program}) of an earlier run has ended`);
    isSaid = true;
    await sleep(LEFTOVER_POLL_MS);
    signal?.throwIfAborted();
  }
}

function inUse(folder: string, { pid, program }: Claim): LucidError {
  const text = `${folder} is in use by process ${pid} (${program}); end that first, or name another folder`;
  return new LucidError("LOCAL_SERVER_UNAVAILABLE", text);
}

/** Returns the file's name. Throws as claimFolder when it is there: this very process uses the folder already. */
function write(folder: string, pid: number, program: string, isRun: boolean): string {
  const name = `${pid}-${startOf(pid) ?? 0}`;
  const text = JSON.stringify({ program, isRun });
  for (let attempt = 1; ; attempt++) {
    try {
      mkdirSync(join(folder, CLAIMS), { recursive: true, mode: 0o700 });
      writeFileSync(join(folder, CLAIMS, name), text, { flag: "wx", mode: 0o600 });
      return name;
    } catch (thrown) {
      const { code } = thrown as NodeJS.ErrnoException;
      if (code === "EEXIST") throw inUse(folder, { name, pid, program, isRun });
      // Whoever was the last to release it has removed the folder in between.
      if (code !== "ENOENT" || attempt === TRIES_MAX) throw thrown;
    }
  }
}

function release(folder: string, own: Set<string>): void {
  for (const name of own) rmSync(join(folder, CLAIMS, name), { force: true });
  own.clear();
  try {
    rmdirSync(join(folder, CLAIMS));
  } catch {
    // Somebody else's file is in it.
  }
}

/** The claims whose processes live; the files of the others are removed. */
function living(folder: string): readonly Claim[] {
  return namesIn(join(folder, CLAIMS)).flatMap((name) => {
    const [, pid, start] = /^(\d+)-(\d+)$/.exec(name) ?? [];
    if (pid === undefined) return [];
    if (startOf(Number(pid)) === Number(start)) return [{ name, pid: Number(pid), ...read(folder, name) }];
    rmSync(join(folder, CLAIMS, name), { force: true });
    return [];
  });
}

function namesIn(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw thrown;
  }
}

function read(folder: string, name: string): Pick<Claim, "program" | "isRun"> {
  try {
    return JSON.parse(readFileSync(join(folder, CLAIMS, name), "utf8")) as Pick<Claim, "program" | "isRun">;
  } catch {
    // It is being written, or removed.
    return { program: "it has just started, or just ends", isRun: true };
  }
}

/** When a process began, in ticks since the machine did; 0 where the system doesn't tell; undefined when there is no such process. */
function startOf(pid: number): number | undefined {
  try {
    process.kill(pid, 0);
  } catch (thrown) {
    // EPERM: it is there, and somebody else's.
    if ((thrown as NodeJS.ErrnoException).code === "ESRCH") return undefined;
  }
  try {
    // proc(5): the second field, a name in parentheses, may hold anything; the third is the state, the 22nd the start.
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const hasEnded = fields[0] === "Z" || fields[0] === "X";
    return hasEnded ? undefined : Number(fields[19] ?? 0);
  } catch {
    return 0;
  }
}
