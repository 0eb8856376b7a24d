/**
 * npm run bench [-- --json] [-- --quick]: what the worker does on this machine, as ratios within one run.
 *
 * Servers, worker, subscriber and this program share the machine, so the rates say what such a machine does with all of them
 * on it. Absolute figures of different machines can't be compared; the ratios can.
 */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { startLocalServers } from "../../deploy/local/servers.ts";
import { formatTable } from "../../src/cli/output.ts";
import { type Load, measureLatency, measureRival, measureThroughput, type Throughput } from "./end-to-end.ts";
import { type KernelLimit, measureKernel } from "./kernel-limit.ts";
import type { DataKind } from "./sample-data.ts";
import { measureTree } from "./tree.ts";

const MIB = 1_048_576;
const SMALL = 4_096;
/** The most that MAX_WORKERS may be. */
const JOBS_MAX = 50;
/** Cores' worth of other programs from which on a run is called disturbed. */
const DISTURBED_CORES = 0.1;

const { values: flags } = parseArgs({
  options: { json: { type: "boolean", default: false }, quick: { type: "boolean", default: false } },
});
const scale = flags.quick ? 0.2 : 1;
const say = (line: string): void => void process.stderr.write(`${line}\n`);

const threads = availableParallelism();
const stopping = new AbortController();
process.once("SIGINT", () => stopping.abort(new Error("interrupted")));
const servers = await startLocalServers({ say, signal: stopping.signal });
try {
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
  const largeRival = await step("the rival, 1 MiB events", () =>
    measureRival(servers, load("events", MIB, 400)),
  );
  const after = await step("kernel alone again", eventsKernel);
  const limit = Math.max(before.mbPerS, after.mbPerS);
  const kernelCpuMs = (before.cpuMsPerChunk + after.cpuMsPerChunk) / 2;
  const largeRandom = await step("end to end, 1 MiB random", () => throughput(load("random", MIB, 300)));
  const small = await step("end to end, 4 KiB events", () =>
    throughput(load("events", SMALL, 12_000, { memoryAt: [count(1_000), count(10_000)] })),
  );
  const smallMoreJobs = await step(`end to end, 4 KiB events, MAX_WORKERS ${JOBS_MAX}`, () =>
    throughput(load("events", SMALL, 12_000, { env: { MAX_WORKERS: String(JOBS_MAX) } })),
  );
  const smallRival = await step("the rival, 4 KiB events", () =>
    measureRival(servers, load("events", SMALL, 6_000)),
  );
  const smallRandom = await step("end to end, 4 KiB random", () => throughput(load("random", SMALL, 6_000)));
  const latency = await step("latency at half load, 1 MiB events", () =>
    measureLatency(servers, load("events", MIB, 200), large.chunksPerS / 2),
  );
  const tree = await step("tree of 10^6 leaves, proofs, verify", () =>
    measureTree(servers.mongodb.url, { full: !flags.quick }),
  );
  const runs = {
    kernelBefore: before,
    kernelAfter: after,
    large,
    largeRandom,
    small,
    smallMoreJobs,
    smallRandom,
  };
  for (const [name, { outsideCores }] of Object.entries(runs)) {
    if ((outsideCores ?? 0) <= DISTURBED_CORES) continue;
    say(`${name}: disturbed, other programs used ${outsideCores?.toFixed(2)} cores meanwhile`);
  }
  const peaks = [large, largeRandom, small, smallRandom].map(({ rssMbPeak }) => rssMbPeak);
  const report = {
    kernel_mb_per_s: limit,
    end_to_end_mb_per_s: large.mbPerS,
    end_to_end_over_kernel: large.mbPerS / limit,
    worker_cpu_over_kernel: large.workerCpuMsPerChunk / kernelCpuMs,
    chunks_per_s_4k: small.chunksPerS,
    chunks_per_s_4k_50_jobs: smallMoreJobs.chunksPerS,
    end_to_end_over_rival: large.mbPerS / largeRival.mbPerS,
    chunks_4k_over_rival: small.chunksPerS / smallRival.chunksPerS,
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
      kernel_before: before,
      kernel_after: after,
      disturbed: Object.values(runs).some(({ outsideCores = 0 }) => outsideCores > DISTURBED_CORES),
      kernel_random_mb_per_s: kernel.random.mbPerS,
      events_1mib: large,
      random_1mib: largeRandom,
      events_4kib: small,
      events_4kib_50_jobs: smallMoreJobs,
      random_4kib: smallRandom,
      rival_1mib: largeRival,
      rival_4kib: smallRival,
    },
  };
  if (flags.json) process.stdout.write(`${JSON.stringify(report)}\n`);
  else
    process.stdout.write(`${asText(report)}\n\n${explanation(servers.redis.label, servers.mongodb.label)}\n`);
} finally {
  await servers.stop();
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
bench share. Ratios of one run can be compared, absolute figures of different machines can't.
kernel_mb_per_s          the CPU threads alone, no I/O: digest, zstd 3, seal, open again and compare, leaf hash; the better of
                         a run before and one after the end-to-end run
end_to_end_mb_per_s      all jobs queued beforehand, then the worker as its own process with its defaults; counted by events at a
                         subscriber, from a quarter of the chunks to the last (mbPerSToSeal: from ready to sealed)
*_over_rival             the same load through test/bench/rival-worker.ts: kernel, queue and drivers as the worker has them, with 10 jobs
                         at a time, and none of its promises
worker_cpu_over_kernel   CPU time of the worker's process a chunk, against that of the kernel alone
*_commands_per_chunk     as the worker counts what it sends, at 1 MiB; redisServerReadsPerChunk is Redis' own count of payload
                         reads: 1, but for those that were under way at the first look
latency_ms               from the time that a chunk was due to its event, at half of the end-to-end rate
rssMbAt                  highest resident memory from the mark before to this one, by chunks done
outsideCores             what other programs used meanwhile; above ${DISTURBED_CORES} the run is called disturbed, repeat it`;
}

function rounded(value: number): string {
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}
