/** What `work` gives; or, as soon as the signal fires, what `aborted` gives or throws, whatever becomes of the work then. */
export async function unlessAborted<Result, Aborted>(
  work: Promise<Result>,
  signal: AbortSignal,
  aborted: () => Aborted,
): Promise<Result | Aborted> {
  // Whichever comes second isn't met by anybody.
  work.catch(() => undefined);
  if (signal.aborted) return aborted();
  const fired = Promise.withResolvers<void>();
  const onAbort = (): void => fired.resolve();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, fired.promise.then(aborted)]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
