import type { EventEmitter } from "node:events";

/**
 * A terminal sends Ctrl-C to all of its foreground group, and npm, which is part of it, passes it on to its child besides: two
 * SIGINTs some milliseconds apart, for one press.
 */
const SAME_PRESS_MS = 500;

export interface StopRequested {
  /** Asks for an orderly end. */
  first(signal: NodeJS.Signals): void;
  /** Whoever asks again wants it at once. */
  again(signal: NodeJS.Signals): void;
}

/** Listens to SIGINT and SIGTERM, each call told which it was, until the function that it returns is called. */
export function onStopSignals(requested: StopRequested, source: EventEmitter = process): () => void {
  let first: { readonly signal: NodeJS.Signals; readonly atMs: number } | undefined;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (first === undefined) {
      first = { signal, atMs: performance.now() };
      requested.first(signal);
    } else if (!isSamePress(first, signal)) requested.again(signal);
  };
  source.on("SIGINT", onSignal);
  source.on("SIGTERM", onSignal);
  return () => {
    source.off("SIGINT", onSignal);
    source.off("SIGTERM", onSignal);
  };
}

/** No key sends SIGTERM: a second one is always meant. */
function isSamePress(first: { signal: NodeJS.Signals; atMs: number }, signal: NodeJS.Signals): boolean {
  return signal === "SIGINT" && first.signal === "SIGINT" && performance.now() - first.atMs < SAME_PRESS_MS;
}
