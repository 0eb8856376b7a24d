/** npm run services [-- --json] [-- --folder DIR]: Redis and MongoDB for development, until Ctrl-C. */
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { onStopSignals } from "../../src/adapters/system/stop-signals.ts";
import { EXIT_INTERRUPTED, EXIT_USAGE } from "../../src/cli/command.ts";
import { LucidError } from "../../src/core/errors.ts";
import { type LocalServer, type LocalServers, startLocalServers } from "./servers.ts";

const HELP = `Usage: npm run services [-- --folder DIR] [-- --json]

Starts Redis and MongoDB for development, or takes those of REDIS_URL and MONGODB_URL, and prints their URLs as two lines
for a shell. They run until Ctrl-C; if one ends before that, so does the other, and this with exit code 1. Each start takes
new ports.

  --folder DIR  keep their data there, and find it again: one run's at a time, and never removed (default: a new folder
                that is removed at the end)
  --json        print one JSON object instead
  -h, --help    print this`;
const PROGRAM = "npm run services";
/** How often the servers' processes are looked for. */
const WATCH_MS = 500;

const flags = readFlags();
const asked = new AbortController();
onStopSignals({
  first: () => asked.abort(),
  again: (signal) => {
    // At once is safe too: the servers end with this process, however that ends. A second SIGTERM may be npm's.
    if (signal === "SIGINT") process.exit(EXIT_INTERRUPTED);
  },
});
process.on("SIGHUP", () => asked.abort());

const servers = await start();
if (servers !== undefined) {
  console.log(flags.json ? asJson(servers) : asExports(servers));
  console.error("Both run until Ctrl-C.");
  const ended = await firstEnd(servers);
  if (ended !== undefined) {
    process.exitCode = 1;
    console.error(`${ended} has ended by itself, or was killed; the other one ends too.`);
  }
  await servers.stop();
}

function readFlags(): { readonly json: boolean; readonly folder?: string | undefined } {
  try {
    const { values } = parseArgs({
      options: {
        json: { type: "boolean", default: false },
        folder: { type: "string" },
        help: { type: "boolean", short: "h", default: false },
      },
    });
    if (values.folder === "") throw new TypeError("--folder needs the name of a folder");
    if (!values.help) return values;
    console.log(HELP);
    process.exit(0);
  } catch (thrown) {
    const [reason = ""] = thrown instanceof TypeError ? thrown.message.split(". ") : [];
    console.error(`error: ${reason}\n\n${HELP}`);
    process.exit(EXIT_USAGE);
  }
}

async function start(): Promise<LocalServers | undefined> {
  try {
    return await startLocalServers({
      say: (line) => console.error(line),
      signal: asked.signal,
      ...(flags.folder === undefined ? {} : { folder: resolve(flags.folder), program: PROGRAM }),
    });
  } catch (error) {
    if (!asked.signal.aborted && !(error instanceof LucidError)) throw error;
    process.exitCode = 1;
    console.error(error instanceof LucidError ? `${error.code}: ${error.message}` : "stopped");
    return undefined;
  }
}

/**
 * Which of them isn't there any more. Keeps this process alive, which the servers alone don't. A server that was given, or that
 * Docker runs, has no process of ours to look at.
 */
async function firstEnd({ redis, mongodb }: LocalServers): Promise<string | undefined> {
  const named = [
    ["Redis", redis],
    ["MongoDB", mongodb],
  ] as const;
  while (!asked.signal.aborted) {
    const gone = named.find(([, { pid }]) => pid !== undefined && !isRunning(pid));
    if (gone !== undefined) return `${gone[0]} (${gone[1].label})`;
    await sleep(WATCH_MS, undefined, { signal: asked.signal }).catch(() => undefined);
  }
  return undefined;
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (thrown) {
    // EPERM: it is there, and somebody else's.
    return (thrown as NodeJS.ErrnoException).code !== "ESRCH";
  }
}

function asExports({ redis, mongodb }: LocalServers): string {
  return `export REDIS_URL=${shellWord(redis.url)}\nexport MONGODB_URL=${shellWord(mongodb.url)}`;
}

/** A URL that was given may hold `&` or `?`, which a shell would take for its own. */
function shellWord(text: string): string {
  return /^[\w:/.@-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function asJson({ redis, mongodb, folder }: LocalServers): string {
  return JSON.stringify({ redis: describe(redis), mongodb: describe(mongodb), folder });
}

function describe({ url, label, standIn, pid }: LocalServer) {
  return { url, label, stand_in: standIn, pid };
}
