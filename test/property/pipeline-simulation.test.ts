import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { PIPELINE_MUTANTS } from "../support/pipeline-mutants.ts";
import { type SimulationResult, simulatePipeline } from "../support/pipeline-simulation.ts";

/** `SIMULATION_SEEDS=100000 SIMULATION_FIRST_SEED=5000` for a long run; a failure names the seed that repeats it. */
const SEEDS = Number(process.env["SIMULATION_SEEDS"] ?? 1_000);
const FIRST_SEED = Number(process.env["SIMULATION_FIRST_SEED"] ?? 1);
const SEED_MS_MAX = 100;
/** What the mutants are given; that of a normal run, so that the normal run is known to find them. */
const MUTANT_SEEDS = 1_000;
const MUTATION_SCORE = fileURLToPath(new URL("../support/mutation-score.ts", import.meta.url));

describe("the write path under crashes, lost replies, freezes, repeats and reordering", () => {
  const results: SimulationResult[] = [];

  test(
    `keeps its promises in ${SEEDS} histories`,
    async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
        const result = await simulatePipeline(seed);
        expect(result.violations, `seed ${seed}`).toEqual([]);
        results.push(result);
      }
    },
    60_000 + SEEDS * SEED_MS_MAX,
  );

  test("the histories hold every kind of fault and every kind of end", () => {
    const total = (count: (result: SimulationResult) => number | undefined): number =>
      results.reduce((sum, result) => sum + (count(result) ?? 0), 0);
    for (const fault of [
      "crash-before",
      "crash-after",
      "reply-lost",
      "refused",
      "ghost",
      "freeze",
    ] as const) {
      expect(
        total(({ faults }) => faults[fault]),
        fault,
      ).toBeGreaterThan(0);
    }
    for (const outcome of [
      "completed",
      "lost",
      "CHUNK_CONFLICT",
      "CHUNK_ID_CONFLICT",
      "CHUNK_BEYOND_END",
      "SESSION_SEALED",
      "FINALIZE_COUNT_CONFLICT",
      "FINALIZE_COUNT_BELOW_CHUNKS",
    ]) {
      expect(
        total(({ outcomes }) => outcomes[outcome]),
        outcome,
      ).toBeGreaterThan(0);
    }
    expect(total(({ sealed }) => sealed)).toBeGreaterThan(0);
  });

  test("one seed gives one history, call by call", async () => {
    for (const seed of [3, 8, 175]) {
      const first = await simulatePipeline(seed);
      expect(await simulatePipeline(seed)).toEqual(first);
      expect((await simulatePipeline(seed + 1)).digest).not.toBe(first.digest);
    }
  });
});

interface MutantVerdict {
  readonly mutant: string;
  /** The seed that found it; null: none did. */
  readonly seed: number | null;
}

test("the simulation finds every planted bug", async () => {
  const verdicts = await mutationScore();
  expect(verdicts.map(({ mutant }) => mutant)).toEqual(PIPELINE_MUTANTS.map(({ name }) => name));
  expect(verdicts.filter(({ seed }) => seed === null)).toEqual([]);
}, 300_000);

/** In a process of its own, because the bugs are planted in the modules while they are loaded. */
function mutationScore(): Promise<readonly MutantVerdict[]> {
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [MUTATION_SCORE, String(MUTANT_SEEDS)], (error, stdout, stderr) => {
      // Exit code 1 says that one survived, which the caller sees for itself; without lines it is another trouble.
      if (error !== null && (error.code !== 1 || stderr !== "")) {
        reject(new Error(`the mutants did not run: ${stderr.slice(0, 2_000)}`, { cause: error }));
        return;
      }
      const lines = stdout.trim().split("\n");
      resolve(lines.map((line) => JSON.parse(line) as MutantVerdict));
    });
  });
}
