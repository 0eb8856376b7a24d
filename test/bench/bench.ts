/**
 * npm run bench [-- --json] [-- --quick]: what the worker does on this machine, as ratios within one run.
 *
 * Servers, worker, subscriber and this program share the machine, so the rates say what such a machine does with all of them
 * on it. Absolute figures of different machines can't be compared; the ratios can.
 */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { startLocalServers } from "../../deploy/local/servers.ts";
import { onStopSignals } from "../../src/adapters/system/stop-signals.ts";
import { EXIT_INTERRUPTED, EXIT_USAGE } from "../../src/cli/command.ts";
import { formatTable } from "../../src/cli/output.ts";
import { type Load, measureLatency, measureRival, measureThroughput, type Throughput } from "./end-to-end.ts";
import { type KernelLimit, measureKernel } from "./kernel-limit.ts";
import type { DataKind } from "./sample-data.ts";
import { measureTree } from "./tree.ts";

const MIB = 1_048_576;
const SMALL = 4_096;
/** MAX_WORKERS as README.md has it for chunks of a few KiB: the most that it may be. */
const SMALL_JOBS = 50;
/** Cores' worth of other programs from which on a run is called disturbed. */
const DISTURBED_CORES = 0.1;

const USAGE = `npm run bench [-- --quick] [-- --json]
  --quick  a fifth of the chunks: a minute instead of two or three, and figures that only tell that it works
  --json   one JSON object; with npm run --silent nothing else is on standard output`;
const flags = readFlags();
const scale = flags.quick ? 0.2 : 1;
const say = (line: string): void => void process.stderr.write(`${line}\n`);

const threads = availableParallelism();
const stopping = new AbortController();
onStopSignals({
  first: () => stopping.abort(new Error("interrupted")),
  again: () => process.exit(EXIT_INTERRUPTED),
});
const servers = await startLocalServers({ say, signal: stopping.signal });
try {
  await bench();
} catch (thrown) {
  if (!stopping.signal.aborted) throw thrown;
  say("interrupted");
  process.exitCode = EXIT_INTERRUPTED;
} finally {
  await servers.stop();
}

async function bench(): Promise<void> {
  const kernel = {
    random: await step("kernel alone, 1 MiB random", () => measureKernel("random", MIB, count(600), threads)),
  };
  const load = (kind: DataKind, chunkBytes: number, chunks: number, more: Partial<Load> = {}): Load => ({
    kind,
    chunkBytes,
    chunks: count(chunks),
    ...more,
  });
  const eventsKernel = (): Promise<KernelLimit> => measureKernel("events", MIB, count(300), threads);
  const before = await step("kernel alone, 1 MiB events", eventsKernel);
  const large = await step("end to end, 1 MiB events", () => throughput(load("events", MIB, 800)));
  const after = await step("kernel alone again", eventsKernel);
  const largeRival = await step("the rival, 1 MiB events", () =>
    measureRival(servers, load("events", MIB, 800)),
  );
  const limit = Math.max(before.mbPerS, after.mbPerS);
  const kernelCpuMs = (before.cpuMsPerChunk + after.cpuMsPerChunk) / 2;
  const largeRandom = await step("end to end, 1 MiB random", () => throughput(load("random", MIB, 300)));
  const small = await step("end to end, 4 KiB events", () =>
    throughput(load("events", SMALL, 12_000, { memoryAt: [count(1_000), count(10_000)] })),
  );
  const manyJobs = { jobs: SMALL_JOBS };
  const smallManyJobs = await step(`end to end, 4 KiB events, ${SMALL_JOBS} jobs`, () =>
    throughput(load("events", SMALL, 16_000, manyJobs)),
  );
  const smallRival = await step("the rival, 4 KiB events", () =>
    measureRival(servers, load("events", SMALL, 12_000)),
  );
  const smallRivalManyJobs = await step(`the rival, 4 KiB events, ${SMALL_JOBS} jobs`, () =>
    measureRival(servers, load("events", SMALL, 16_000, manyJobs)),
  );
  const smallRandom = await step("end to end, 4 KiB random", () => throughput(load("random", SMALL, 6_000)));
  const latency = await step("latency at half load, 1 MiB events", () =>
    measureLatency(servers, load("events", MIB, 400), large.chunksPerS / 2),
  );
  const tree = await step("tree of 10^6 leaves, proofs, verify", () =>
    measureTree(servers.mongodb.url, { full: !flags.quick }),
  );
  const runs = {
    kernel_before: before,
    kernel_after: after,
    events_1mib: large,
    random_1mib: largeRandom,
    events_4kib: small,
    events_4kib_50_jobs: smallManyJobs,
    random_4kib: smallRandom,
    rival_1mib: largeRival,
    rival_4kib: smallRival,
    rival_4kib_50_jobs: smallRivalManyJobs,
  };
  for (const [name, { outsideCores }] of Object.entries(runs)) {
    if ((outsideCores ?? 0) <= DISTURBED_CORES) continue;
    say(`${name}: disturbed, other programs used ${outsideCores?.toFixed(2)} cores meanwhile`);
  }
  const peaks = [large, largeRandom, small, smallManyJobs, smallRandom].map(({ rssMbPeak }) => rssMbPeak);
  const report = {
    kernel_mb_per_s: limit,
    end_to_end_mb_per_s: large.mbPerS,
    end_to_end_over_kernel: large.mbPerS / limit,
    worker_cpu_over_kernel: large.workerCpuMsPerChunk / kernelCpuMs,
    chunks_per_s_4k: smallManyJobs.chunksPerS,
    chunks_per_s_4k_10_jobs: small.chunksPerS,
    end_to_end_over_rival: large.mbPerS / largeRival.mbPerS,
    chunks_4k_over_rival: smallManyJobs.chunksPerS / smallRivalManyJobs.chunksPerS,
    chunks_4k_10_jobs_over_rival: small.chunksPerS / smallRival.chunksPerS,
    mongo_commands_per_chunk: large.mongoCommandsPerChunk,
    redis_commands_per_chunk: large.redisCommandsPerChunk,
    latency_ms: latency,
    rss_mb_peak: Math.max(...peaks),
    redis: servers.redis.label,
    mongodb: servers.mongodb.label,
    ...tree,
    more: {
      threads,
      kernel_cpu_ms_per_chunk: kernelCpuMs,
      disturbed: Object.values(runs).some(({ outsideCores = 0 }) => outsideCores > DISTURBED_CORES),
      kernel_random_mb_per_s: kernel.random.mbPerS,
      ...runs,
    },
  };
  if (flags.json) process.stdout.write(`${JSON.stringify(report)}\n`);
  else
    process.stdout.write(`${asText(report)}\n\n${explanation(servers.redis.label, servers.mongodb.label)}\n`);
}

function readFlags(): { readonly json: boolean; readonly quick: boolean } {
  const boolean = { type: "boolean", default: false } as const;
  try {
    const { help, ...values } = parseArgs({
      options: { json: boolean, quick: boolean, help: boolean },
    }).values;
    if (!help) return values;
    process.stdout.write(`${USAGE}\n`);
    process.exit(0);
  } catch (thrown) {
    process.stderr.write(`${thrown instanceof Error ? thrown.message : String(thrown)}\n${USAGE}\n`);
    process.exit(EXIT_USAGE);
  }
}

function count(chunks: number): number {
  return Math.ceil(chunks * scale);
}

function throughput(load: Load): Promise<Throughput> {
  return measureThroughput(servers, load);
}

async function step<Result>(name: string, work: () => Promise<Result>): Promise<Result> {
  stopping.signal.throwIfAborted();
  const startedMs = performance.now();
  const result = await work();
  say(`${name}: ${((performance.now() - startedMs) / 1000).toFixed(1)} s`);
  return result;
}

function asText(report: Readonly<Record<string, unknown>>): string {
  const rows: (readonly [string, string])[] = [];
  const add = (prefix: string, values: object): void => {
    for (const [name, value] of Object.entries(values) as [string, unknown][]) {
      if (value !== null && typeof value === "object") add(`${prefix}${name}.`, value);
      else rows.push([`${prefix}${name}`, typeof value === "number" ? rounded(value) : String(value)]);
    }
  };
  add("", report);
  return formatTable(rows);
}

function explanation(redis: string, mongodb: string): string {
  return `Measured with ${redis} and ${mongodb}, on ${threads} cores that servers, worker, subscriber and
bench share. Only ratios of one run can be compared, and only if it was not disturbed; repeat it if it was.
"events": lines of JSON, of which zstd 3 makes a quarter. "random": bytes that nothing compresses. Chunks of 1 MiB (1mib) and 4 KiB (4k, 4kib).
kernel_mb_per_s          more is better. The CPU threads alone, no I/O: digest, zstd 3, seal, open again and compare, leaf hash; the better of
                         a run before the end-to-end run and one after it. kernel_cpu_ms_per_chunk (cpuMsPerChunk): the mean of both
end_to_end_mb_per_s      more is better. All jobs queued beforehand, then the worker as its own process with its defaults; counted by events at
                         a subscriber, from a quarter of the chunks to the last (mbPerSToSeal: from ready to sealed)
end_to_end_over_kernel   of these two. At least 0.35 is what it is built for
worker_cpu_over_kernel   less is better. CPU time of the worker's process a chunk (workerCpuMsPerChunk), against kernel_cpu_ms_per_chunk; 2 at most
chunks_per_s_4k          more is better. The same with chunks of 4 KiB, and MAX_WORKERS ${SMALL_JOBS}, as README.md has it for such chunks; _10_jobs: with its default
*_over_rival             above 1: faster than test/bench/rival-worker.ts under the same load, with as many jobs at a time. The rival is the same kernel
                         between the same queue and database with the drivers as they come, and keeps none of the worker's promises
mongo_commands_per_chunk, redis_commands_per_chunk
                         less is better. As the worker counts what it sends, at 1 MiB; 4 at most to MongoDB. redisServerReadsPerChunk is Redis' own count
                         of payload reads: 1, but for those that were under way at the first look. redisServerCallsPerChunk
                         is all that it counted: the subscriber's too, and each command inside of BullMQ's scripts
latency_ms               less is better. From the time that a chunk was due to its event, at half of the end-to-end rate, after a quarter of the chunks that are sent
                         at once and waited for
rss_mb_peak, rssMbPeak   resident memory of the worker's process at its highest; 350 at most. rssMbAt: highest from the mark before to this one, by
                         chunks done; from 1 000 on it should stay
append_cost_1e6_over_1e3 an append to a tree of 10^6 leaves against one to 10^3: 1 is "no dearer". proof_ms_1e6, proof_tile_reads_1e6: an inclusion proof
verify_chunks_per_s      offline verification of a session's manifest and chunk lines. verify_data_over_open: with all blobs, against opening them
                         and nothing else (1: it costs no more). sealing_memory_mb: what the manifest of 10^5 chunks takes to write
outsideCores             what other programs used meanwhile; above ${DISTURBED_CORES} the run is called disturbed`;
}

function rounded(value: number): string {
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}
