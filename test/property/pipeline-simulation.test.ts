import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { PIPELINE_MUTANTS } from "../support/pipeline-mutants.ts";
import { simulatePipeline } from "../support/pipeline-simulation.ts";
import type { SimulationSummary } from "../support/simulate-pipeline.ts";

/** `SIMULATION_SEEDS=100000 SIMULATION_FIRST_SEED=5000` for a long run; a failure names the seed that repeats it. */
const SEEDS = Number(process.env["SIMULATION_SEEDS"] ?? 1_000);
const FIRST_SEED = Number(process.env["SIMULATION_FIRST_SEED"] ?? 1);
const SEED_MS_MAX = 150;
/** What the mutants are given: what a normal run has, so that the normal run is known to find them. */
const MUTANT_SEEDS = 1_000;
const MUTANTS_MS_MAX = 300_000;

const FAULTS = ["crash-before", "crash-after", "reply-lost", "refused", "ghost", "freeze"];
const OUTCOMES = [
  "completed",
  "lost",
  "CHUNK_CONFLICT",
  "CHUNK_ID_CONFLICT",
  "CHUNK_BEYOND_END",
  "SESSION_SEALED",
  "SESSION_TOO_LARGE",
  "FINALIZE_COUNT_CONFLICT",
  "FINALIZE_COUNT_BELOW_CHUNKS",
];

test(
  `the write path keeps its promises in ${SEEDS} histories of crashes, lost replies, freezes and repeats`,
  async () => {
    const summary = JSON.parse(await run("simulate-pipeline.ts", [FIRST_SEED, SEEDS])) as SimulationSummary;
    expect(summary.broken).toEqual([]);
    expect(summary.seeds).toBe(SEEDS);
    // A history in which nothing happens keeps every promise.
    expect(summary.sealed).toBeGreaterThan(0);
    for (const fault of FAULTS) expect(summary.faults, fault).toHaveProperty(fault);
    for (const outcome of OUTCOMES) expect(summary.outcomes, outcome).toHaveProperty(outcome);
  },
  60_000 + SEEDS * SEED_MS_MAX,
);

test("one seed gives one history, call by call", async () => {
  for (const seed of [3, 8, 175]) {
    const first = await simulatePipeline(seed);
    expect(await simulatePipeline(seed)).toEqual(first);
    expect((await simulatePipeline(seed + 1)).digest).not.toBe(first.digest);
  }
});

interface MutantVerdict {
  readonly mutant: string;
  /** The seed that found it; null: none did. */
  readonly seed: number | null;
}

test(
  "the simulation finds every planted bug",
  async () => {
    const lines = (await run("mutation-score.ts", [MUTANT_SEEDS])).trim().split("\n");
    const verdicts = lines.map((line) => JSON.parse(line) as MutantVerdict);
    expect(verdicts.map(({ mutant }) => mutant)).toEqual(PIPELINE_MUTANTS.map(({ name }) => name));
    expect(verdicts.filter(({ seed }) => seed === null)).toEqual([]);
  },
  MUTANTS_MS_MAX,
);

/** What the program prints, also if it ends with 1: then the output says why. */
function run(program: string, args: readonly (number | string)[]): Promise<string> {
  const path = fileURLToPath(new URL(`../support/${program}`, import.meta.url));
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [path, ...args.map(String)], (error, stdout, stderr) => {
      if (error === null || (error.code === 1 && stderr === "")) resolve(stdout);
      else reject(new Error(`${program} did not run: ${stderr.slice(0, 2_000)}`, { cause: error }));
    });
  });
}
