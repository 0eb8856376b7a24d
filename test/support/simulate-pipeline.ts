import { simulatePipeline } from "./pipeline-simulation.ts";

/*
 * `node test/support/simulate-pipeline.ts [first seed] [seeds]`: runs the simulation and prints one JSON object, with the
 * seeds at which a promise was broken; exit code 1 if there are any. A program of its own, because the test runner's
 * hooks make every promise ten times as slow.
 */

const SEEDS_DEFAULT = 1_000;
/** More broken seeds than this say nothing new. */
const BROKEN_MAX = 20;

export interface SimulationSummary {
  readonly seeds: number;
  readonly crashes: number;
  readonly calls: number;
  readonly sealed: number;
  readonly faults: Readonly<Record<string, number>>;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly broken: readonly { readonly seed: number; readonly violations: readonly string[] }[];
}

function add(sums: Record<string, number>, counts: Readonly<Record<string, number>>): void {
  for (const [name, count] of Object.entries(counts)) sums[name] = (sums[name] ?? 0) + count;
}

async function simulate(first: number, seeds: number): Promise<SimulationSummary> {
  const broken: { seed: number; violations: readonly string[] }[] = [];
  const faults: Record<string, number> = {};
  const outcomes: Record<string, number> = {};
  const sums = { crashes: 0, calls: 0, sealed: 0 };
  let done = 0;
  for (; done < seeds && broken.length < BROKEN_MAX; done++) {
    const { seed, violations, ...result } = await simulatePipeline(first + done);
    if (violations.length > 0) broken.push({ seed, violations });
    add(faults, result.faults);
    add(outcomes, result.outcomes);
    add(sums, { crashes: result.crashes, calls: result.calls, sealed: result.sealed });
  }
  return { seeds: done, ...sums, faults, outcomes, broken };
}

const [, , first = 1, seeds = SEEDS_DEFAULT] = process.argv;
const summary = await simulate(Number(first), Number(seeds));
process.stdout.write(`${JSON.stringify(summary, null, 2)}\n`);
process.exitCode = summary.broken.length === 0 ? 0 : 1;
