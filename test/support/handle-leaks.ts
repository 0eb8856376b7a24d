import { createHook } from "node:async_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll } from "vitest";

/**
 * Fails a test file that leaves something open which keeps a process alive: a socket, a server, a child process, a
 * worker thread, a timer. Loaded before each file; its `afterAll` is registered first and therefore runs last.
 */

/** What async_hooks calls the things that keep a process alive. Requests end by themselves and are left out. */
const WATCHED_TYPES: ReadonlySet<string> = new Set([
  "FSEVENTWRAP",
  "HTTP2SESSION",
  "MESSAGEPORT",
  "PIPESERVERWRAP",
  "PIPEWRAP",
  "PROCESSWRAP",
  "SIGNALWRAP",
  "STATWATCHER",
  "TCPSERVERWRAP",
  "TCPWRAP",
  "TTYWRAP",
  "Timeout",
  "UDPWRAP",
  "WORKER",
]);
/** A closed handle reports itself gone a few turns of the loop later. */
const SETTLE_MS_MAX = 2_000;
const SETTLE_STEP_MS = 20;
const STACK_FRAMES = 16;
const FRAMES_SHOWN = 4;
/** The runner's own timers and channels. */
const RUNNER_FRAME = /node_modules[\\/](?:vitest|@vitest|vite|tinypool|birpc)[\\/]/;

interface Handle {
  readonly type: string;
  readonly frames: readonly string[];
  readonly resource: WeakRef<object>;
}

const handles = new Map<number, Handle>();

const hook = createHook({
  init(asyncId, type, _triggerAsyncId, resource) {
    if (!WATCHED_TYPES.has(type)) return;
    const frames = callSites();
    // No frame at all: Node makes it on somebody's behalf, such as a listening socket after its name is looked up.
    if (RUNNER_FRAME.test(frames[0] ?? "")) return;
    const outside = frames.filter((frame) => !RUNNER_FRAME.test(frame));
    handles.set(asyncId, { type, frames: outside, resource: new WeakRef(resource) });
  },
  destroy(asyncId) {
    handles.delete(asyncId);
  },
});
// They are made when first read, which importing node:process does, and belong to the process.
void process.stdin;
void process.stdout;
void process.stderr;
hook.enable();

afterAll(async () => {
  const deadline = performance.now() + SETTLE_MS_MAX;
  let open: readonly Handle[];
  // At least one step: what the file began last (a server that is about to listen) shows itself in it.
  do {
    // Made while the hook is off: the check must not find its own timer.
    hook.disable();
    const step = sleep(SETTLE_STEP_MS);
    hook.enable();
    await step;
    open = openHandles();
  } while (open.length > 0 && performance.now() < deadline);
  hook.disable();
  if (open.length > 0)
    throw new Error(`this file leaves ${open.length} open:\n  ${open.map(describe).join("\n  ")}`);
});

function openHandles(): readonly Handle[] {
  return [...handles.values()].filter(({ resource }) => keepsProcessAlive(resource.deref()));
}

/** An unreferenced timer or socket doesn't keep a process alive and is no leak. */
function keepsProcessAlive(resource: object | undefined): boolean {
  if (resource === undefined) return false;
  if (!("hasRef" in resource) || typeof resource.hasRef !== "function") return true;
  return resource.hasRef() === true;
}

function describe({ type, frames }: Handle): string {
  const shown =
    frames.length === 0
      ? ["Node itself, on behalf of a server, socket or stream"]
      : frames.slice(0, FRAMES_SHOWN);
  return `${type} made by ${shown.join("\n    ")}`;
}

/** Outermost last; without Node's own frames, this file's, and whoever awaits (often the runner). */
function callSites(): readonly string[] {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = STACK_FRAMES;
  const stack = new Error("call sites").stack ?? "";
  Error.stackTraceLimit = limit;
  return stack
    .split("\n")
    .slice(1)
    .map((line) => line.trim().replace(/^at /, ""))
    .filter((line) => !/^async |node:|handle-leaks\.ts|\(<anonymous>\)/.test(line));
}
