import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { LucidError } from "../../src/core/errors.ts";
import { onFreePort } from "./free-port.ts";
import { GuardedProcess } from "./guarded-process.ts";
import { PassedOver } from "./source.ts";

const PROGRAM = fileURLToPath(new URL("../../src/cli/session-processor.ts", import.meta.url));
/** As the program's first line, the start script and the image have it: V8 keeps garbage in at most 3 × 8 MiB. */
export const NODE_FLAGS = ["--max-semi-space-size=8"];
const READY_DEADLINE_MS = 60_000;
const PROBE_DEADLINE_MS = 2_000;

export interface LocalWorkerOptions {
  /** Its working directory and its log, `worker.log`, are in a folder of this one. */
  readonly dir: string;
  /** The worker's whole environment; HTTP_BIND and SESSION_PROCESSOR_PORT are set here. */
  readonly env: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal | undefined;
}

export interface LocalWorker {
  readonly pid: number;
  /** Of /health, /ready and /metrics, on 127.0.0.1. */
  readonly port: number;
  /** SIGTERM, and waits for its end. */
  stop(): Promise<void>;
}

/**
 * The worker as its own process, started as in production (`session-processor run`); ends with this process, however that
 * ends. Resolves when it is ready. Throws LOCAL_SERVER_UNAVAILABLE when it doesn't become that.
 */
export async function startLocalWorker(options: LocalWorkerOptions): Promise<LocalWorker> {
  try {
    return await onFreePort(undefined, (port) => start(port, options));
  } catch (thrown) {
    if (!(thrown instanceof PassedOver)) throw thrown;
    throw new LucidError("LOCAL_SERVER_UNAVAILABLE", `the worker did not start: ${thrown.message}`);
  }
}

async function start(port: number, { dir, env, signal }: LocalWorkerOptions): Promise<LocalWorker> {
  const worker = new GuardedProcess({
    name: "worker",
    program: process.execPath,
    args: [...NODE_FLAGS, PROGRAM, "run"],
    dir: join(dir, "worker"),
    logsOutput: true,
    env: { ...env, HTTP_BIND: "127.0.0.1", SESSION_PROCESSOR_PORT: String(port) },
  });
  const pid = await worker.untilReady(
    async (running) => ((await isReady(port)) ? running : undefined),
    READY_DEADLINE_MS,
    signal,
  );
  return { pid, port, stop: () => worker.stop() };
}

async function isReady(port: number): Promise<boolean> {
  try {
    const answer = await fetch(`http://127.0.0.1:${port}/ready`, {
      signal: AbortSignal.timeout(PROBE_DEADLINE_MS),
    });
    await answer.arrayBuffer();
    return answer.ok;
  } catch {
    // Not listening yet: the caller asks again until its deadline.
    return false;
  }
}
