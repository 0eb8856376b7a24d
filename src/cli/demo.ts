import type { Command } from "commander";
import { LucidError } from "../core/errors.ts";
import { newCommand, perform } from "./command.ts";
import { formatBytes, formatTable } from "./output.ts";

const PYTHON_VERDICTS: Readonly<Record<string, string>> = {
  verified: "a proof, against the signed manifest",
  refused: "REFUSED",
};

export function demoCommand(): Command {
  return newCommand("demo", "process a real file end to end with servers of its own, and prove the result")
    .argument("[file]", "file to process (default: the Node executable that runs this)")
    .option("--keep", "leave the servers' data and say how to look at it")
    .action((file: string | undefined, { json, keep }: { json?: boolean; keep?: boolean }) =>
      perform(json, async (output, signal) => {
        // Servers and test containers are no part of the service: they are loaded only where they are used.
        const { runDemo } = await import("../../deploy/local/demo.ts").catch((cause: unknown) => {
          throw new LucidError(
            "LOCAL_SERVER_UNAVAILABLE",
            "the demo runs from a clone of the repository only",
            {
              cause,
            },
          );
        });
        const report = await runDemo({ file: file ?? process.execPath, keep: keep ?? false, output, signal });
        await output.result(
          report,
          formatTable([
            ["file", report.file],
            ["chunks", String(report.chunks)],
            ["bytes in", `${formatBytes(report.bytes)} (${report.bytes})`],
            [
              "bytes stored",
              `${formatBytes(report.stored_bytes)}, ratio ${(report.bytes / report.stored_bytes).toFixed(2)}`,
            ],
            [
              "speed",
              `${report.mb_per_s.toFixed(1)} MB/s, ${report.seconds.toFixed(1)} s from first job to seal`,
            ],
            ["root", `${report.root_hash} (equal to the RFC 9162 recursion)`],
            ["events", `${report.events} (repeats dropped: ${report.repeats})`],
            ["restored", report.restored_identical ? "identical, bit for bit" : "DIFFERENT"],
            ["verified", report.verified ? "manifest, chunks file, checkpoint and every blob" : "REFUSED"],
            ["by Python", PYTHON_VERDICTS[report.python_verifier] ?? report.python_verifier],
            ["redis", report.redis],
            ["mongodb", report.mongodb],
          ]),
        );
        const isProven = report.restored_identical && report.verified && report.python_verifier !== "refused";
        return isProven ? 0 : 1;
      }),
    );
}
