import { LucidError } from "../../src/core/errors.ts";

/** A running Redis or MongoDB and how to end it. */
export interface LocalServer {
  readonly url: string;
  /** What runs and where it came from, for reports: `redis-server 7.0.15 (PATH)`. */
  readonly label: string;
  /** True for what merely speaks MongoDB's protocol: fine for trying and testing, not for keeping data. */
  readonly standIn: boolean;
  /** The server's own process, where it is a child of this machine's and ours to end. */
  readonly pid?: number;
  /** Ends the server and waits for its end. Repeated calls are harmless. A server that was given is left alone. */
  stop(): Promise<void>;
}

/** What every source needs to look around and to tell what it does. */
export interface Surroundings {
  /** Receives one line of text per step, without a line end. */
  readonly say: (line: string) => void;
  readonly env: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal | undefined;
}

/** Why a source can't serve here. Its message is a clause that fits after "passed over: ". */
export class PassedOver extends Error {
  override readonly name = "PassedOver";
}

/** One place where a server may come from. */
export interface Source {
  /** Fits after "trying ". */
  readonly name: string;
  /** Throws PassedOver when it has none to offer. */
  readonly start: () => Promise<LocalServer>;
}

/** Whatever takes longer is said while it is tried: nobody must take the patience for a hang. */
const SLOW_MS = 500;

/**
 * Starts the first source that has a server and says which, and why those before it had none.
 * @throws LucidError LOCAL_SERVER_UNAVAILABLE when none has; a reason other than PassedOver goes up as it is
 */
export async function startFirst(
  kind: "Redis" | "MongoDB",
  sources: readonly Source[],
  remedy: string,
  { say, signal }: Pick<Surroundings, "say" | "signal">,
): Promise<LocalServer> {
  const reasons: string[] = [];
  for (const { name, start } of sources) {
    signal?.throwIfAborted();
    const because = reasons.length === 0 ? "" : `; passed over: ${reasons.join("; ")}`;
    const isSlow = setTimeout(() => say(`${kind}: trying ${name}${because}`), SLOW_MS);
    try {
      const server = await start();
      say(`${kind}: ${server.label}${because}`);
      return server;
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof PassedOver)) throw error;
      reasons.push(error.message);
    } finally {
      clearTimeout(isSlow);
    }
  }
  throw new LucidError("LOCAL_SERVER_UNAVAILABLE", `No ${kind}: ${reasons.join("; ")}. ${remedy}`);
}
