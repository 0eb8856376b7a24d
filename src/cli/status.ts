import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { createQueueStats, type QueueFailures } from "../adapters/bullmq/queue-stats.ts";
import { type Config, loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { QUEUE_CHUNKS, QUEUE_CONTROL } from "../schema/job.ts";
import { parseSession } from "./arguments.ts";
import { EXIT_FAILURE, newCommand, perform } from "./command.ts";
import { openStores } from "./open-stores.ts";
import { formatTable, type Output, PROGRAM } from "./output.ts";
import { redisTarget } from "./redis-target.ts";
import { manifestIdOf, sessionReport } from "./session-report.ts";

/** Later chunks that a look for gaps takes in. */
const GAP_WINDOW_CHUNKS = 1_000;
const CONNECT_POLL_MS = 50;
const CONNECT_DEADLINE_MS = 5_000;

export function statusCommand(): Command {
  return newCommand("status", "show the queues, or how far a session is")
    .argument("[session]", "session id", parseSession)
    .action((session: SessionId | undefined, { json }: { json?: boolean }) =>
      perform(json, async (output) =>
        session === undefined
          ? queueStatus(output, loadProcessConfig({ needs: ["redis"] }).config)
          : sessionStatus(output, loadProcessConfig({ needs: ["mongodb"] }).config, session),
      ),
    );
}

async function queueStatus(output: Output, config: Config): Promise<number> {
  const stats = createQueueStats({
    ...redisTarget(config, output, CONNECT_DEADLINE_MS / 1_000),
    prefix: config.queues.prefix,
    queues: [QUEUE_CHUNKS, QUEUE_CONTROL, ...config.queues.events],
  });
  try {
    const deadlineMs = performance.now() + CONNECT_DEADLINE_MS;
    while (!stats.connected && performance.now() < deadlineMs) {
      await sleep(CONNECT_POLL_MS);
    }
    if (!stats.connected) {
      throw new LucidError("QUEUE_UNAVAILABLE", "Redis does not answer: check that it runs, and REDIS_URL");
    }
    const [queues, failures] = await Promise.all([stats.read(), stats.failures()]);
    const failuresOf = (name: string): QueueFailures =>
      failures.find(({ queue }) => queue === name) ?? { queue: name, lookedAt: 0, codes: [] };
    await output.result(
      {
        queues: queues.map(({ queue, depth, oldestWaitingSeconds }) => ({
          queue,
          ...depth,
          oldest_waiting_seconds: oldestWaitingSeconds,
          failed_codes: Object.fromEntries(failuresOf(queue).codes),
        })),
      },
      formatTable(
        queues.map(({ queue, depth, oldestWaitingSeconds }) => [
          queue,
          `${depth.waiting} waiting (oldest ${oldestWaitingSeconds.toFixed(0)} s), ${depth.active} active, ` +
            `${depth.delayed} delayed, ${depth.failed} failed${failedText(depth.failed, failuresOf(queue))}`,
        ]),
      ),
    );
    return 0;
  } finally {
    await stats.close();
  }
}

/** docs/errors.md says of each code what to do. */
function failedText(failed: number, { lookedAt, codes }: QueueFailures): string {
  if (codes.length === 0) return "";
  const text = codes.map(([code, count]) => `${code} ${count}`).join(", ");
  return failed > lookedAt ? ` (the newest ${lookedAt}: ${text})` : ` (${text})`;
}

async function sessionStatus(output: Output, config: Config, session: SessionId): Promise<number> {
  const stores = await openStores(config.mongodb.url.reveal());
  try {
    const record = await stores.sessions.find(session);
    if (record === undefined) {
      throw new LucidError(
        "SESSION_UNKNOWN",
        "there is no session of that id in this database; if its chunks are still queued, it is there as soon as a worker has " +
          `taken one: ${PROGRAM} status shows the queues`,
      );
    }
    const later =
      record.state === "open" ? await stores.chunks.beyond(session, record.tree.size, GAP_WINDOW_CHUNKS) : [];
    const id = manifestIdOf(record);
    const manifest = id === undefined ? undefined : await stores.manifests.find(id);
    const report = sessionReport({ record, later, manifest });
    await output.result(report.json, report.text);
    return report.healthy ? 0 : EXIT_FAILURE;
  } finally {
    await stores.close();
  }
}
