import type { Job } from "bullmq";

/*
 * Jobs and events that are put off: delayed with no attempt used, then behind all that wait. How often lies in the job's
 * progress, in Redis, as another worker may have it next.
 */

/** A count in a job's progress; 0 if there is none, as in anything that a hand has written there. */
export function countOf({ progress }: Pick<Job, "progress">, name: string): number {
  const counts: unknown = progress;
  if (typeof counts !== "object" || counts === null || !Object.hasOwn(counts, name)) return 0;
  const count = (counts as Readonly<Record<string, unknown>>)[name];
  return typeof count === "number" && Number.isSafeInteger(count) && count > 0 ? count : 0;
}

/** Doubled with each time before. */
export function pauseAfter(
  times: number,
  { firstMs, maxMs }: Readonly<Record<"firstMs" | "maxMs", number>>,
): number {
  return Math.min(firstMs * 2 ** times, maxMs);
}
