import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { Removal } from "./guarded-process.ts";
import type { Surroundings } from "./source.ts";

/** Where a server's data lies and what becomes of it. */
export interface Placement {
  readonly dir: string;
  /** Absent: the data outlives the server. */
  readonly removal?: Removal | undefined;
  /** Told of the process that ends the server, as soon as there is one. */
  readonly onGuard?: ((pid: number, name: string) => void) | undefined;
}

/** What a caller may ask of one server. With `port` or `dir` it gets a process of its own, never one that was given. */
export interface LocalServerOptions {
  /** Receives one line per step: what was chosen, and why what comes before it was passed over. */
  readonly say: (line: string) => void;
  readonly env?: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal | undefined;
  /** A port on 127.0.0.1. Default: a free one. */
  readonly port?: number;
  /** The data's folder, created if missing and never removed: a server started on it later finds the data. */
  readonly dir?: string;
}

export function surroundingsOf(options: LocalServerOptions): Surroundings {
  return { say: options.say, env: options.env ?? process.env, signal: options.signal };
}

export function placementOf(dir: string | undefined): Placement {
  if (dir !== undefined) return { dir: resolve(dir) };
  const own = newFolder();
  return { dir: own, removal: { dir: own, neighbours: [] } };
}

/** The path of a folder that does not exist yet: whoever starts a server in it creates it, readable by this user only. */
export function newFolder(): string {
  return join(tmpdir(), `session-processor-${randomBytes(8).toString("hex")}`);
}

export function wantsOwnProcess(options: LocalServerOptions): boolean {
  return options.port !== undefined || options.dir !== undefined;
}
