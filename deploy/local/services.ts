/** npm run services [-- --json] [-- --folder DIR]: Redis and MongoDB for development, until Ctrl-C. */
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { LucidError } from "../../src/core/errors.ts";
import { type LocalServer, type LocalServers, startLocalServers } from "./servers.ts";

const STOP_SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

const HELP = `Usage: npm run services [-- --folder DIR] [-- --json]

Starts Redis and MongoDB for development, or takes those of REDIS_URL and MONGODB_URL, and prints their URLs as two lines
for a shell. They run until Ctrl-C.

  --folder DIR  keep their data there, and find it again (default: a new folder that is removed at the end)
  --json        print one JSON object instead
  -h, --help    print this`;
const EXIT_USAGE = 2;

const flags = readFlags();
const asked = new AbortController();
const stopAsked = new Promise<void>((resolve) => {
  for (const signal of STOP_SIGNALS)
    process.on(signal, () => {
      asked.abort();
      resolve();
    });
});

const servers = await start();
if (servers !== undefined) {
  console.log(flags.json ? asJson(servers) : asExports(servers));
  console.error("Both run until Ctrl-C.");
  const running = setInterval(() => {}, 2 ** 30); // The servers alone don't keep this process alive.
  await stopAsked;
  clearInterval(running);
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
      ...(flags.folder === undefined ? {} : { folder: resolve(flags.folder) }),
    });
  } catch (error) {
    if (!asked.signal.aborted && !(error instanceof LucidError)) throw error;
    process.exitCode = 1;
    console.error(error instanceof LucidError ? `${error.code}: ${error.message}` : "stopped");
    return undefined;
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
