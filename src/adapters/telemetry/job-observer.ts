import { LucidError } from "../../core/errors.ts";
import { QUEUE_CHUNKS } from "../../schema/job.ts";
import type { JobObserver } from "../bullmq/job-worker.ts";
import type { Log } from "../../telemetry/log.ts";
import type { Metrics } from "../../telemetry/metrics.ts";
import type { Outages } from "./outages.ts";

/** What the queues report, as log lines and metrics. */
export function createJobObserver(log: Log, metrics: Metrics, outages: Outages): JobObserver {
  return {
    onError(where, code) {
      // Every connection says so when Redis is away: the same line as the pipeline's, so that all share its rate.
      if (code === "QUEUE_UNAVAILABLE") {
        const err = new LucidError(code, "the server does not answer, or refuses for now; waiting for it");
        outages.disconnected("redis");
        log.event("store_unavailable", { what: "redis", stage: where, err });
        return;
      }
      if (code === "JOB_LOCK_LOST") {
        // Follows from an outage or a pause, and may come for every job at once.
        const err = new LucidError(code, "the job is another worker's, or will be");
        log.event("job_lock_lost", { queue: where, err });
        return;
      }
      log.event("queue_error", { queue: where, err: new LucidError(code, "redis or its connection failed") });
    },
    onStalled(queue, jobId) {
      metrics.count("jobs_stalled_total", { queue });
      log.event("job_stalled", { queue, job_id: jobId });
    },
    onOutcome(report) {
      const { queue, jobId, attempt, outcome, error: err } = report;
      if (err === undefined) return;
      const { code } = err;
      const session = report.sessionId === undefined ? {} : { session_id: report.sessionId };
      const chunk = report.chunkIndex === undefined ? {} : { chunk_index: report.chunkIndex };
      switch (outcome) {
        case "completed":
          log.event("chunk_kept", { job_id: jobId, attempt, err, ...session, ...chunk });
          return;
        case "released":
          log.event("job_released", { queue, job_id: jobId, err });
          return;
        case "retried":
          metrics.count("job_retries_total", { code });
          log.event("job_retry", { queue, job_id: jobId, attempt, err, ...session, ...chunk });
          return;
        case "failed":
          metrics.count("job_failures_total", { code });
          if (queue !== QUEUE_CHUNKS) {
            log.event("job_failed", { queue, job_id: jobId, attempt, err, ...session });
            return;
          }
          metrics.count("chunks_total", { outcome: "failed", codec: "none" });
          log.event("chunk_failed", { job_id: jobId, attempt, err, ...session, ...chunk });
      }
    },
  };
}
