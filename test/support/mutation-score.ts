import { readFileSync } from "node:fs";
import { registerHooks } from "node:module";
import { fileURLToPath } from "node:url";
import { PIPELINE_MUTANTS, type Mutant } from "./pipeline-mutants.ts";
import type * as Simulation from "./pipeline-simulation.ts";

/*
 * `node test/support/mutation-score.ts [seeds] [name part]`: runs the simulation against each planted bug until it is
 * found, or the seeds are used up. No file is changed: the source is edited on its way into the process. Prints one JSON
 * line for each mutant; exit code 1 if one survives.
 */

const SEEDS_DEFAULT = 1_000;
const ROOT = new URL("../../", import.meta.url).href;
/** Only these are loaded anew for each mutant; the rest is shared. */
const MUTABLE = [`${ROOT}src/pipeline/`, `${ROOT}test/support/`];
const MUTANT_PARAMETER = "mutant";

function mutantOf(url: string | undefined): number | undefined {
  const value =
    url === undefined || !url.startsWith("file:") ? null : new URL(url).searchParams.get(MUTANT_PARAMETER);
  return value === null ? undefined : Number(value);
}

/** The file as the mutant has it. Throws if an edit doesn't fit any more: then the mutant must be written anew. */
function editedSource(mutant: Mutant, url: string): string | undefined {
  const edits = mutant.edits.filter(({ file }) => url.startsWith(`${ROOT}${file}?`));
  if (edits.length === 0) return undefined;
  let text = readFileSync(fileURLToPath(url.slice(0, url.indexOf("?"))), "utf8");
  for (const { file, from, to } of edits) {
    if (text.split(from).length !== 2) {
      throw new Error(
        `mutant "${mutant.name}": its text stands not exactly once in ${file}; bring the mutant up to date`,
      );
    }
    text = text.replace(from, () => to);
  }
  return text;
}

registerHooks({
  resolve(specifier, context, next) {
    const resolved = next(specifier, context);
    const number = mutantOf(context.parentURL);
    if (number === undefined || !MUTABLE.some((folder) => resolved.url.startsWith(folder))) return resolved;
    return { ...resolved, url: `${resolved.url}?${MUTANT_PARAMETER}=${number}` };
  },
  load(url, context, next) {
    const number = mutantOf(url);
    const mutant = number === undefined ? undefined : PIPELINE_MUTANTS[number];
    const source = mutant === undefined ? undefined : editedSource(mutant, url);
    if (source === undefined) return next(url, context);
    return { format: "module-typescript", source, shortCircuit: true };
  },
});

async function seedThatFinds(number: number, seeds: number): Promise<readonly [number, string] | undefined> {
  const url = `./pipeline-simulation.ts?${MUTANT_PARAMETER}=${number}`;
  const { simulatePipeline } = (await import(url)) as typeof Simulation;
  for (let seed = 1; seed <= seeds; seed++) {
    const [violation] = (await simulatePipeline(seed)).violations;
    if (violation !== undefined) return [seed, violation];
  }
  return undefined;
}

const seeds = Number(process.argv[2] ?? SEEDS_DEFAULT);
const namePart = process.argv[3] ?? "";
let survivors = 0;
for (const [number, { name }] of PIPELINE_MUTANTS.entries()) {
  if (!name.includes(namePart)) continue;
  const found = await seedThatFinds(number, seeds);
  if (found === undefined) survivors += 1;
  const [seed, violation] = found ?? [null, null];
  process.stdout.write(`${JSON.stringify({ mutant: name, seed, violation })}\n`);
}
process.exitCode = survivors === 0 ? 0 : 1;
