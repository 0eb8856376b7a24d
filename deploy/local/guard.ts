/**
 * Stands between a program and a server that must not outlive it. Runs in a session of its own, so that the
 * terminal's Ctrl-C reaches neither guard nor server: the program decides when its servers end.
 *
 * Standard input is a pipe whose other end only the program holds. The kernel closes it when the program ends,
 * however that happens, SIGKILL included; its end is the order to end the server and to remove its data.
 * Standard output reports `guard pid N` and `guard ended REASON`; the server's own output goes there too, unless it is what the log is made of.
 */
import { spawn } from "node:child_process";
import { existsSync, openSync, rmSync } from "node:fs";
import type { GuardOrder } from "./guarded-process.ts";

const order = JSON.parse(process.argv[2] ?? "") as GuardOrder;
const log = openSync(order.logFile, "a", 0o600);
const server = spawn(order.program, order.args, {
  cwd: order.dir,
  stdio: ["pipe", order.logsOutput === true ? log : "inherit", log],
});
let serverEnded = false;
let ending = false;

// The program may be gone: a report that nobody reads must not end the guard before its work is done.
process.stdout.on("error", () => {});
server.stdin?.on("error", () => {});

server.once("spawn", () => report(`pid ${server.pid}`));
server.once("error", (error) => noteServerEnd(error.message));
server.once("exit", (code, signal) => noteServerEnd(signal ?? `code ${code}`));

process.stdin.once("end", end).once("error", end).resume();
for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) process.on(signal, end);

function report(line: string): void {
  process.stdout.write(`guard ${line}\n`);
}

/** A server that ended by itself keeps its data until the program lets go: a fault test starts another on it. */
function noteServerEnd(reason: string): void {
  if (serverEnded) return;
  serverEnded = true;
  report(`ended ${reason}`);
  if (ending) removeData();
}

function end(): void {
  if (ending) return;
  ending = true;
  if (serverEnded) return removeData();
  server.stdin?.end();
  server.kill("SIGTERM");
  setTimeout(() => server.kill("SIGKILL"), order.graceMs);
}

/** Removes the server's own folder, and the one around it when no other server has a folder in it any more. */
function removeData(): void {
  const { removal } = order;
  if (removal !== undefined) {
    remove(removal.dir);
    if (removal.root !== undefined && !removal.neighbours.some((folder) => existsSync(folder)))
      remove(removal.root);
  }
  process.exit(0);
}

function remove(folder: string): void {
  rmSync(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
}
