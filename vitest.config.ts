import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

/** A second of patience for pure code; what waits for servers or a process says so by its project. */
const UNIT_TIMEOUT_MS = 10_000;
const PROPERTY_TIMEOUT_MS = 60_000;
const INTEGRATION_TIMEOUT_MS = 60_000;
const E2E_TIMEOUT_MS = 300_000;

const handleLeaks = "./test/support/handle-leaks.ts";
const startServersOnce = "./test/support/start-servers-once.ts";

export default defineConfig({
  test: {
    reporters: ["default", "./test/support/closing-line-reporter.ts"],
    // A process per file: a native crash or a leaked handle stays with the file that caused it.
    pool: "forks",
    isolate: true,
    maxWorkers: 2,
    // The tests start the program some hundred times: compiled once, that takes a third of the time.
    env: { NODE_COMPILE_CACHE: fileURLToPath(new URL("node_modules/.cache/compiled", import.meta.url)) },
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: ["test/unit/**/*.test.ts", "test/vectors/**/*.test.ts"],
          setupFiles: [handleLeaks],
          testTimeout: UNIT_TIMEOUT_MS,
        },
      },
      {
        extends: true,
        test: {
          name: "property",
          include: ["test/property/**/*.test.ts"],
          setupFiles: [handleLeaks],
          testTimeout: PROPERTY_TIMEOUT_MS,
        },
      },
      {
        extends: true,
        test: {
          name: "integration",
          include: [
            "test/integration/**/*.test.ts",
            "test/conformance/**/*.test.ts",
            "test/fault/**/*.test.ts",
          ],
          setupFiles: [handleLeaks],
          globalSetup: [startServersOnce],
          testTimeout: INTEGRATION_TIMEOUT_MS,
          hookTimeout: INTEGRATION_TIMEOUT_MS,
        },
      },
      {
        extends: true,
        test: {
          name: "e2e",
          include: ["test/e2e/**/*.test.ts"],
          setupFiles: [handleLeaks],
          globalSetup: [startServersOnce],
          // Whole processes under load: after everything else.
          sequence: { groupOrder: 1 },
          testTimeout: E2E_TIMEOUT_MS,
          hookTimeout: E2E_TIMEOUT_MS,
        },
      },
    ],
  },
});
