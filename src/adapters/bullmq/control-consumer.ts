import { parseFinalizeJob } from "../../pipeline/parse-job.ts";
import type { FinalizeJob } from "../../pipeline/ports.ts";
import { JOB_FINALIZE_SESSION, QUEUE_CONTROL } from "../../schema/job.ts";
import { type Consumer, type ConsumerOptions, createConsumer, type JobContext } from "./job-worker.ts";

export interface ControlConsumerOptions extends ConsumerOptions {
  /** Records the expected count, and seals if the session is complete. Throws LucidErrors. */
  finalize(job: FinalizeJob, context: JobContext): Promise<void>;
}

/**
 * Consumes `session-control` (contract §3). The contract has no event for a finalize-session that failed: it stays in
 * the queue's failed set with its code, and the observer hears of it.
 */
export function createControlConsumer(options: ControlConsumerOptions): Consumer {
  return createConsumer(
    {
      queue: QUEUE_CONTROL,
      jobName: JOB_FINALIZE_SESSION,
      textLimits: { payloadCharsMax: 0 },
      async run(job, context) {
        await options.finalize(parseFinalizeJob(job.data), context);
      },
      // Nobody is told of a failure, and a retry of a count that was recorded is harmless.
      standing: () => Promise.resolve({ kind: "none" }),
      announceFailure: () => Promise.resolve(),
      isRefusedForEver: (code) => code === "JOB_INVALID",
    },
    options,
  );
}
