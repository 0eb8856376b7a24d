import { LucidError } from "../../core/errors.ts";
import { toHex } from "../../core/bytes.ts";
import type { Observer, PipelineEvent } from "../../pipeline/ports.ts";
import type { Log } from "../../telemetry/log.ts";
import type { Metrics } from "../../telemetry/metrics.ts";
import { type BacklogGaugeOptions, createBacklogGauges } from "./backlog-gauges.ts";
import type { Outages } from "./outages.ts";

type Handlers = {
  readonly [Kind in PipelineEvent["kind"]]: (event: Extract<PipelineEvent, { readonly kind: Kind }>) => void;
};

/** Turns what the pipeline reports into log lines and metrics; one entry per kind, so that none is forgotten. */
export function createObserver(
  log: Log,
  metrics: Metrics,
  outages: Outages,
  options: BacklogGaugeOptions,
): Observer {
  const outbox = createBacklogGauges(
    metrics,
    { count: "outbox_pending_events", age: "outbox_oldest_event_age_seconds" },
    options,
  );
  const unanchored = createBacklogGauges(
    metrics,
    { count: "unanchored_sessions", age: "unanchored_oldest_age_seconds" },
    options,
  );
  const handlers: Handlers = {
    stage: ({ stage, seconds }) => metrics.observe("stage_seconds", { stage }, seconds),
    "chunk-committed": ({ chunk, seconds }) => {
      metrics.count("chunks_total", { outcome: "committed", codec: chunk.codec });
      metrics.observe("chunk_seconds", {}, seconds);
      metrics.count("chunk_original_bytes_total", {}, chunk.originalBytes);
      metrics.count("chunk_stored_bytes_total", {}, chunk.storedBytes);
      metrics.observe(
        "compression_ratio",
        { codec: chunk.codec },
        chunk.originalBytes / chunk.compressedBytes,
      );
      if (!log.enabled("chunk_committed")) return;
      log.event("chunk_committed", {
        session_id: chunk.sessionId,
        chunk_index: chunk.index,
        duration_ms: Math.round(seconds * 1000),
        codec: chunk.codec,
        key_version: chunk.keyVersion,
        original_bytes: chunk.originalBytes,
        stored_bytes: chunk.storedBytes,
      });
    },
    "chunk-adopted": ({ sessionId, index, codec }) => {
      metrics.count("chunks_total", { outcome: "adopted", codec });
      log.event("chunk_adopted", { session_id: sessionId, chunk_index: index });
    },
    "chunk-withdrawn": ({ sessionId, index }) =>
      log.event("chunk_withdrawn", { session_id: sessionId, chunk_index: index }),
    "tree-grown": ({ sessionId, size, added }) =>
      log.event("tree_grown", { session_id: sessionId, tree_size: size, count: added }),
    "tree-conflict": ({ sessionId }) => {
      metrics.count("tree_conflicts_total", {});
      log.event("tree_conflict", { session_id: sessionId });
    },
    "session-created": ({ sessionId }) => log.event("session_opened", { session_id: sessionId }),
    "session-sealed": ({ sessionId, size, root }) => {
      metrics.count("sessions_sealed_total", {});
      log.event("session_sealed", { session_id: sessionId, tree_size: size, root_hash: toHex(root) });
    },
    "session-gap": ({ sessionId, first, missing }) => {
      metrics.count("session_gaps_total", {});
      log.event("session_gap", { session_id: sessionId, chunk_index: first, count: missing });
    },
    "session-stuck": ({ sessionId, code }) => {
      metrics.count("sessions_stuck_total", { code });
      log.event("session_stuck", { session_id: sessionId, err: new LucidError(code, "see docs/errors.md") });
    },
    "epoch-started": ({ sessionId, keyVersion }) =>
      log.event("epoch_started", { session_id: sessionId, key_version: keyVersion }),
    "event-relayed": ({ type, eventId, swept }) => {
      metrics.count("events_relayed_total", { type, by: swept ? "sweeper" : "worker" });
      log.event("event_relayed", { event_id: eventId, event_type: type });
    },
    "manifest-written": ({ sessionId, seconds }) => {
      metrics.count("manifests_written_total", {});
      log.event("manifest_written", { session_id: sessionId, duration_ms: Math.round(seconds * 1000) });
    },
    "manifest-failed": ({ sessionId, code }) => {
      metrics.count("manifest_failures_total", { code });
      log.event("manifest_failed", { session_id: sessionId, err: new LucidError(code, "it is tried again") });
    },
    "checkpoint-signed": ({ sessionId, size }) => {
      metrics.count("checkpoints_signed_total", {});
      log.event("checkpoint_signed", { session_id: sessionId, tree_size: size });
    },
    "session-anchored": ({ sessionId, seconds }) => {
      metrics.count("sessions_anchored_total", {});
      log.event("session_anchored", { session_id: sessionId, duration_ms: Math.round(seconds * 1000) });
    },
    "anchor-delayed": ({ sessionId, code }) => {
      metrics.count("anchor_delays_total", { code });
      log.event("anchor_delayed", { session_id: sessionId, err: new LucidError(code, "it is tried again") });
    },
    unanchored: ({ sessions, oldestSeconds }) => unanchored(sessions, oldestSeconds),
    "redis-lost-data": ({ reopened }) => {
      metrics.count("redis_data_losses_total", {});
      log.event("redis_lost_data", { count: reopened });
    },
    "payload-left": ({ sessionId, code }) =>
      log.event("payload_cleanup_failed", {
        session_id: sessionId,
        err: new LucidError(code, "the payload stays until its time to live ends"),
      }),
    "mark-lost": ({ code }) =>
      log.event("relay_failed", {
        err: new LucidError(code, "an event stays pending; the sweeper announces it again"),
      }),
    outbox: ({ pending, oldestSeconds }) => outbox(pending, oldestSeconds),
    "events-swept": ({ count }) => log.event("sweep_events", { count }),
    "blobs-swept": ({ removed }) => {
      metrics.count("orphan_blobs_removed_total", {}, removed);
      log.event("sweep_blobs", { count: removed });
    },
    waiting: ({ operation, code, seconds }) => {
      metrics.count("dependency_waits_total", { code });
      const err = new LucidError(code, "the server does not answer, or refuses for now; waiting for it");
      const what = dependencyOf(code);
      outages.noticed(what, seconds);
      log.event("store_unavailable", {
        what,
        stage: operation,
        duration_ms: Math.round(seconds * 1000),
        err,
      });
    },
    resumed: ({ code, operation }) => outages.ended(dependencyOf(code), operation),
  };
  return {
    report(event) {
      (handlers[event.kind] as (event: PipelineEvent) => void)(event);
    },
  };
}

/** What an outage's code names: STORE_UNAVAILABLE is MongoDB, QUEUE_UNAVAILABLE Redis. */
function dependencyOf(code: string): string {
  return code === "STORE_UNAVAILABLE" ? "mongodb" : "redis";
}
