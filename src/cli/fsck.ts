import { existsSync } from "node:fs";
import type { Command } from "commander";
import { createManifestFiles } from "../adapters/file/manifest-files.ts";
import { loadSigningKey } from "../adapters/file/signing-key.ts";
import { createSystemClock } from "../adapters/system/clock.ts";
import { CpuThreads } from "../adapters/threads/cpu-threads.ts";
import { type Config, loadProcessConfig } from "../config.ts";
import type { SessionId } from "../core/ids.ts";
import { keyRingOf } from "../key-ring.ts";
import { type FsckOptions, type FsckReport, fsck } from "../pipeline/fsck.ts";
import { type Finding, placeText, type Worst } from "../pipeline/fsck-findings.ts";
import { parseSession } from "./arguments.ts";
import { EXIT_USAGE, exitCodeOf, newCommand, perform } from "./command.ts";
import { manifestFolder } from "./files.ts";
import { openStores } from "./open-stores.ts";
import { counted, type Output, type Progress, printFailure } from "./output.ts";
import { type KeyFlags, pinnedKeys, withKeyOptions } from "./pinned-keys.ts";
import { requireKeyOf } from "./require-key.ts";

/**
 * 2 is wrong usage (session-processor.ts). As fsck(8) does, "could not look" has a number of its own: a script that finds
 * MongoDB away must take it neither for damage nor for health.
 */
const EXIT_CODES: Readonly<Record<Worst, number>> = { clean: 0, info: 0, warning: 1, error: 3 };
const EXIT_NOT_CHECKED = 8;

/** Shorter sessions are through before a bar would be seen. */
const BAR_CHUNKS_MIN = 2_000;
const SESSIONS_PER_LINE = 500;

const HELP = `
Checks, in this order: blobs, chunk documents, leaf hashes, tiles, root, checkpoint, manifest, anchor; then blobs that
no document names, events that are still pending, and states that a session should have left. Safe beside running
workers: what is on its way is an info, not a warning. So are chunks that were announced and aren't there yet, until none
has come for GAP_ALERT_SECONDS.

--repair writes tiles that are missing or wrong, and manifest files that are missing, where they follow from the
committed documents and these make the root that the session has; the files, which are signed, only if the signatures
are those of a key that is pinned (--key, or MANIFEST_SIGNING_KEY_FILE). It never changes a chunk, a blob, a root, a
signature or a file that is there.
Pending events and orphan blobs are left to the workers' sweeper: an orphan's age is known only to who has seen it for
ORPHAN_BLOB_SECONDS. Of a session that is open, or was sealed since, an orphan is an info.

Exit codes:
  0  clean (infos only)
  1  warnings: unfinished for too long, or repaired; the sweeper of a running worker mends the former, except that chunks
     which are missing have to be sent
  2  wrong usage or configuration
  3  errors: something is lost, changed or contradicts itself
  8  could not be checked: MongoDB is away, another ENCRYPTION_KEY (--data), no such session, no room for the report`;

interface FsckFlags extends KeyFlags {
  readonly json?: boolean;
  readonly data?: boolean;
  readonly repair?: boolean;
}

/**
 * `fsck [session]`: holds what is stored against itself. Exit code 0 clean, 1 warnings, 2 usage, 3 errors, 8 not checked;
 * with --json one object {sessions, chunks, blobs, findings[], omitted, worst}.
 */
export function fsckCommand(): Command {
  return withKeyOptions(newCommand("fsck", "check what is stored of one session, or of all, against itself"))
    .argument("[session]", "session id; all sessions when left out", parseSession)
    .option("--data", "also read every blob: length and BLAKE3; with a key (ENCRYPTION_KEY …) open it too")
    .option("--repair", "write again what follows from the committed documents, and say what was done")
    .addHelpText("after", HELP)
    .action((session: SessionId | undefined, flags: FsckFlags) =>
      perform(flags.json, async (output, signal) => {
        try {
          return EXIT_CODES[await check(output, session, flags, signal)];
        } catch (thrown) {
          if (signal.aborted) throw thrown;
          printFailure(thrown, output.json);
          return exitCodeOf(thrown) === EXIT_USAGE ? EXIT_USAGE : EXIT_NOT_CHECKED;
        }
      }),
    );
}

async function check(
  output: Output,
  session: SessionId | undefined,
  flags: FsckFlags,
  signal: AbortSignal,
): Promise<Worst> {
  const { config } = loadProcessConfig({ needs: ["mongodb"] });
  const keys = await keysToBelieve(flags, config);
  const stores = await openStores(config.mongodb.url.reveal());
  let threads: CpuThreads | undefined;
  const progress = new SessionProgress(output);
  try {
    const keyRing = opensBlobs(flags, config) ? await requireKeyOf(stores, keyRingOf(config)) : undefined;
    threads = keyRing === undefined ? undefined : cpuThreads(config);
    const report = await fsck(
      {
        ...stores,
        ...filesOf(config.paths.manifests),
        opening: threads === undefined || keyRing === undefined ? undefined : { threads, keyRing },
        clock: createSystemClock(),
      },
      optionsOf(flags, config, keys, progress, signal),
      session,
    );
    progress.stop();
    await output.result(reportJson(report), reportText(report, session));
    return report.worst;
  } finally {
    progress.stop();
    await threads?.close();
    await stores.close();
  }
}

function optionsOf(
  { data, repair }: FsckFlags,
  { sweep }: Config,
  keys: readonly Uint8Array[],
  progress: SessionProgress,
  signal: AbortSignal,
): FsckOptions {
  return {
    data: data ?? false,
    repair: repair ?? false,
    pinnedKeys: keys,
    eventPendingMs: sweep.eventPendingMs,
    gapAlertMs: sweep.gapAlertMs,
    orphanBlobMs: sweep.orphanBlobMs,
    onProgress: (id, chunks, total) => progress.update(id, chunks, total),
    signal,
  };
}

/** Those that are given; without any, that of the key we sign with ourselves. */
async function keysToBelieve(flags: KeyFlags, { manifest }: Config): Promise<readonly Uint8Array[]> {
  const given = await pinnedKeys(flags);
  if (given.length > 0 || manifest.signingKeyFile === undefined) return given;
  return [(await loadSigningKey(manifest.signingKeyFile)).publicKey];
}

function opensBlobs({ data }: FsckFlags, { encryption }: Config): boolean {
  return data === true && encryption.kek.kind !== "none";
}

function cpuThreads({ kernel }: Config): CpuThreads {
  return new CpuThreads({ threads: kernel.threads, timeoutMs: kernel.workerTimeoutMs });
}

function filesOf(directory: string) {
  if (!existsSync(directory)) return { folder: undefined, files: undefined };
  return { folder: manifestFolder(directory), files: createManifestFiles(directory) };
}

/** A bar for each session that is long enough for one, and a line for every so many sessions. */
class SessionProgress {
  readonly #output: Output;
  #session: SessionId | undefined;
  #begun = 0;
  #bar: Progress | undefined;

  constructor(output: Output) {
    this.#output = output;
  }

  update(session: SessionId, chunks: number, total: number): void {
    if (session !== this.#session) {
      this.stop();
      this.#session = session;
      this.#begun += 1;
      if (this.#begun % SESSIONS_PER_LINE === 0) this.#output.say(`${this.#begun} sessions`);
      if (total >= BAR_CHUNKS_MIN) {
        this.#output.say(`checking ${session}: ${total} chunks`);
        this.#bar = this.#output.progress("fsck", total, "chunks");
      }
    }
    this.#bar?.update(Math.min(chunks, total));
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }
}

// ---- the report --------------------------------------------------------------------------------------------

function reportJson({ sessions, chunks, blobs, findings, omitted, worst }: FsckReport): object {
  return { sessions, chunks, blobs, findings: findings.map(findingJson), omitted, worst };
}

function findingJson({ kind, severity, session, place, problem, action, repaired }: Finding): object {
  return { kind, severity, session_id: session ?? null, place, problem, action, repaired: repaired ?? null };
}

function reportText(report: FsckReport, session: string | undefined): string {
  const { findings, omitted, worst, sessions, chunks, blobs } = report;
  const read = blobs === "present" ? "blobs present (--data reads them)" : `blobs ${blobs}`;
  const checked = `${session ?? counted(sessions, "session")}, ${counted(chunks, "chunk")}, ${read}`;
  const left = findings.filter(({ repaired }) => repaired === undefined);
  const counts = [
    ...(["error", "warning", "info"] as const).map((severity) =>
      counted(left.filter((finding) => finding.severity === severity).length, severity),
    ),
    ...(left.length === findings.length ? [] : [`${findings.length - left.length} repaired`]),
  ];
  const more = omitted === 0 ? "" : `, and ${omitted} more that are not listed`;
  const summary = worst === "clean" ? `clean: ${checked}` : `${counts.join(", ")}${more}; checked ${checked}`;
  return [...findings.flatMap(findingText), summary].join("\n");
}

function findingText({
  kind,
  severity,
  session,
  place,
  problem,
  action,
  repaired,
}: Finding): readonly string[] {
  const where = session === undefined ? "" : `${session}, ${placeText(place)}: `;
  const done = repaired === undefined ? `to do: ${action}` : `repaired: ${repaired}`;
  return [`${severity.toUpperCase()} ${where}${problem} [${kind}]`, `  ${done}`];
}
