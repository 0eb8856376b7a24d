import { writeSync } from "node:fs";
import type { Reporter, SerializedError, TestModule } from "vitest/node";

interface Outcome {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: readonly { readonly name: string; readonly reason: string }[];
}

const STDOUT = 1;

/**
 * Prints `N passed, N failed, N skipped` as the very last line of a run, and before it every skipped test with its
 * reason. A file that doesn't load, a hook that throws and an error outside of any test each count as one failed.
 */
export default class ClosingLineReporter implements Reporter {
  #outcome: Outcome | undefined;

  onInit(): void {
    // The servers of the global setup are stopped, and say so, after the last reporter ran: the line waits for the
    // process to end. Synchronous, because nothing else gets a turn by then.
    process.once("exit", () => {
      if (this.#outcome !== undefined) writeSync(STDOUT, closingText(this.#outcome));
    });
  }

  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly SerializedError[]): void {
    this.#outcome = outcomeOf(modules, unhandledErrors.length);
  }
}

function outcomeOf(modules: readonly TestModule[], unhandledErrors: number): Outcome {
  const skipped: { name: string; reason: string }[] = [];
  let passed = 0;
  let failed = unhandledErrors;
  for (const module of modules) {
    failed += module.errors().length;
    for (const suite of module.children.allSuites()) failed += suite.errors().length;
    for (const test of module.children.allTests()) {
      const result = test.result();
      if (result.state === "passed") passed += 1;
      else if (result.state === "failed") failed += 1;
      else {
        const reason = result.state === "skipped" ? result.note : "it never ran";
        skipped.push({
          name: `${module.relativeModuleId} > ${test.fullName}`,
          reason: reason ?? "no reason given",
        });
      }
    }
  }
  return { passed, failed, skipped };
}

function closingText({ passed, failed, skipped }: Outcome): string {
  const reasons = skipped.map(({ name, reason }) => `skipped: ${name}: ${reason}\n`).join("");
  return `${reasons}${passed} passed, ${failed} failed, ${skipped.length} skipped\n`;
}
