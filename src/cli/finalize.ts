import { type Command, Option } from "commander";
import { createProducer } from "../adapters/bullmq/producer.ts";
import { createSystemClock } from "../adapters/system/clock.ts";
import { loadProcessConfig } from "../config.ts";
import type { SessionId } from "../core/ids.ts";
import { MANIFEST_TYPES } from "../core/manifest/names.ts";
import { parseCountFromOne, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { openStores } from "./open-stores.ts";

interface FinalizeFlags {
  readonly json?: boolean;
  readonly chunks?: number;
  readonly owner?: string;
  readonly type: (typeof MANIFEST_TYPES)[number];
  readonly startedAt?: string;
  readonly endedAt?: string;
}

export function finalizeCommand(): Command {
  return newCommand("finalize", "say how many chunks a session has, so that it is sealed when all are in")
    .argument("<session>", "session id", parseSession)
    .option("--chunks <count>", "number of chunks (default: those in the tree now)", parseCountFromOne)
    .option("--owner <address>", "owner address for the manifest")
    .addOption(
      new Option("--type <type>", "manifest type").choices([...MANIFEST_TYPES]).default("session_recording"),
    )
    .option("--started-at <time>", "ISO 8601")
    .option("--ended-at <time>", "ISO 8601")
    .action((session: SessionId, flags: FinalizeFlags) =>
      perform(flags.json, async (output, signal) => {
        const needs = flags.chunks === undefined ? (["redis", "mongodb"] as const) : (["redis"] as const);
        const { config } = loadProcessConfig({ needs: [...needs] });
        const count = flags.chunks ?? (await chunksInTree(config.mongodb.url.reveal(), session));
        const producer = createProducer({
          url: config.redis.url.reveal(),
          prefix: config.queues.prefix,
          queueSizeMax: config.queues.backPressureJobs,
          payloadTtlSeconds: config.queues.payloadTtlSeconds,
          clock: createSystemClock(),
          signal,
          onError: () => undefined,
        });
        try {
          await producer.finalize({
            session_id: session,
            chunk_count: count,
            manifest_type: flags.type,
            ...(flags.owner === undefined ? {} : { owner_address: flags.owner }),
            ...(flags.startedAt === undefined ? {} : { started_at: flags.startedAt }),
            ...(flags.endedAt === undefined ? {} : { ended_at: flags.endedAt }),
          });
        } finally {
          await producer.close();
        }
        await output.result(
          { session_id: session, chunk_count: count },
          `queued: ${session} is sealed when its ${count} chunks are in; see session-processor status ${session}`,
        );
        return 0;
      }),
    );
}

async function chunksInTree(mongodbUrl: string, session: SessionId): Promise<number> {
  const stores = await openStores(mongodbUrl);
  try {
    return (await stores.sessions.find(session))?.tree.size ?? 0;
  } finally {
    await stores.close();
  }
}
