import { type Command, Option } from "commander";
import { loadProcessConfig } from "../config.ts";
import { LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import { MANIFEST_TYPES } from "../core/manifest/names.ts";
import { parseChunkCount, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { foresee, type SessionForesight } from "./foreseen.ts";
import { openProducer } from "./open-producer.ts";
import { counted, PROGRAM } from "./output.ts";

interface FinalizeFlags {
  readonly json?: boolean;
  readonly chunks?: number;
  readonly owner?: string;
  readonly type: (typeof MANIFEST_TYPES)[number];
  readonly startedAt?: string;
  readonly endedAt?: string;
}

const HELP = `
A count is final once a worker has confirmed it: the session is sealed when it has so many chunks, takes none beyond them, and waits
for as long as one is missing. Give the number that was sent, which enqueue prints, also while chunks are still queued.`;

export function finalizeCommand(): Command {
  return newCommand("finalize", "say how many chunks a session has, so that it is sealed when all are in")
    .argument("<session>", "session id", parseSession)
    .option("--chunks <count>", "number of chunks that were sent: required, and final", parseChunkCount)
    .option("--owner <address>", "owner address for the manifest")
    .addOption(
      new Option("--type <type>", "manifest type").choices([...MANIFEST_TYPES]).default("session_recording"),
    )
    .option("--started-at <time>", "ISO 8601")
    .option("--ended-at <time>", "ISO 8601")
    .addHelpText("after", HELP)
    .action((session: SessionId, flags: FinalizeFlags) =>
      perform(flags.json, async (output, signal) => {
        if (flags.chunks === undefined) throw await countMissing(session);
        const count = flags.chunks;
        const loaded = loadProcessConfig({ needs: ["redis"] });
        const { config } = loaded;
        const foreseen = await foresee(loaded, session, output);
        try {
          await foreseen.checkCount(count);
        } finally {
          await foreseen.close();
        }
        const result = {
          session_id: session,
          chunk_count: count,
          session_checked: foreseen.checked,
          session_exists: foreseen.checked ? foreseen.session !== undefined : null,
        };
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
            `${waitText(session, count, foreseen)}; see ${PROGRAM} status ${session}`,
        );
        return 0;
      }),
    );
}

/**
 * The chunks in the tree are no count to go by: more may be queued, and the first count that is confirmed stays. How many there are
 * is told, as far as it is known.
 */
async function countMissing(id: SessionId): Promise<LucidError> {
  const wanted = "give the number of chunks that were sent with --chunks, which is final";
  const foreseen = await foresee(loadProcessConfig({ needs: [] }), id, { say() {} });
  await foreseen.close();
  return new LucidError("CONFIG_INVALID", `${wanted}${knownText(id, foreseen)}`);
}

function knownText(id: SessionId, { checked, session }: SessionForesight): string {
  if (!checked) return "";
  if (session === undefined) return `; ${id} is not in the database yet`;
  const size = counted(session.tree.size, "chunk");
  return session.state === "open"
    ? `; the tree of ${id} has ${size} now, and more may be queued`
    : `; ${id} is sealed already, with ${size}`;
}

/** The rest may be under way. If it doesn't exist, this is the last moment to hear of it: the first count that is confirmed stays. */
function waitText(id: SessionId, count: number, { checked, session }: SessionForesight): string {
  if (!checked) return "";
  if (session === undefined) {
    return `; ${id} is not in the database yet: if its chunks aren't queued either, check the id, as the count is final`;
  }
  if (session.tree.size >= count) return "";
  return `, and waits for them: ${session.tree.size} are in its tree now, and the count is final`;
}
