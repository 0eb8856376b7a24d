import { type Command, Option } from "commander";
import { type LoadedConfig, loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { MANIFEST_TYPES } from "../core/manifest/names.ts";
import { parseCountFromOne, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { foresee, type SessionForesight } from "./foreseen.ts";
import { openProducer } from "./open-producer.ts";
import { counted, type Output, PROGRAM } from "./output.ts";

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
        const loaded = loadProcessConfig({ needs: [...needs] });
        const { config } = loaded;
        const { count, foreseen } = await countFor(loaded, session, flags.chunks, output);
        const result = { session_id: session, chunk_count: count, session_checked: foreseen.checked };
        if (foreseen.session !== undefined && foreseen.session.state !== "open") {
          const sealed = `${session} is sealed already, with its ${counted(count, "chunk")}, and stays as it is`;
          await output.result({ ...result, queued: false }, `${sealed}: nothing was queued`);
          return 0;
        }
        const producer = openProducer(config, output, { signal });
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
          { ...result, queued: true },
          `queued: ${session} is sealed when its ${count} ${count === 1 ? "chunk is" : "chunks are"} in` +
            `${waitText(count, foreseen)}; see ${PROGRAM} status ${session}`,
        );
        return 0;
      }),
    );
}

/** The count that was given, unless the session can't have it; else that of the chunks in its tree. */
async function countFor(
  loaded: LoadedConfig,
  session: SessionId,
  given: number | undefined,
  output: Output,
): Promise<{ readonly count: number; readonly foreseen: SessionForesight }> {
  const foreseen = await foresee(loaded, session, output);
  try {
    const count = given ?? chunksInTree(session, foreseen);
    await foreseen.checkCount(count);
    return { count, foreseen };
  } finally {
    await foreseen.close();
  }
}

/** The rest may be under way. If it doesn't exist, this is the last moment to hear of it: the first count that is confirmed stays. */
function waitText(count: number, { session }: SessionForesight): string {
  if (session === undefined || session.tree.size >= count) return "";
  return `, and waits for them: ${session.tree.size} are in its tree now, and the count is final`;
}

function chunksInTree(id: SessionId, { checked, session }: SessionForesight): number {
  if (!checked)
    throw new LucidError("STORE_UNAVAILABLE", "without --chunks the session is asked, in MongoDB");
  if (session === undefined) {
    throw new LucidError(
      "SESSION_UNKNOWN",
      `there is no session ${id} in this database; if its chunks are still queued, say how many with --chunks`,
    );
  }
  if (session.tree.size > 0) return session.tree.size;
  throw new LucidError(
    "SESSION_UNKNOWN",
    `${id} has no chunk in its tree yet; say how many it gets with --chunks`,
  );
}
