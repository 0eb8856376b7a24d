import type { Config } from "../../config.ts";
import type { Clock } from "../../pipeline/ports.ts";
import { createServiceClient, type ServiceClient } from "./service-client.ts";
import type { Check } from "./sidecar.ts";

/*
 * The health of the services around this one, for /ready (contract §10, §12): shown, never required. Whoever asks is not
 * kept waiting by a neighbour that hangs, and a busy prober doesn't become a flood of requests to all of them.
 */

export interface Neighbour {
  /** As shown in /ready. */
  readonly name: string;
  readonly url: string;
}

export interface NeighbourChecksOptions {
  readonly clock: Clock;
  /** Absent: 2 s. For each neighbour, all of them at once. */
  readonly timeoutMs?: number;
  /** Absent: 5 s. How long a result is shown before the neighbours are asked again. */
  readonly cacheMs?: number;
  /** Absent: 1 s. How long a caller waits for new results before it gets the last ones. */
  readonly waitMs?: number;
}

export interface NeighbourChecks {
  /** One line a neighbour, in their order; never throws, and never takes longer than `waitMs`. */
  checks(): Promise<readonly Check[]>;
  /** Ends what is under way and closes the connections. Idempotent. */
  close(): Promise<void>;
}

const TIMEOUT_MS = 2_000;
const CACHE_MS = 5_000;
/** Less than the second and a half that /ready gives one check. */
const WAIT_MS = 1_000;

/** The neighbours that have a URL, in the order of the settings. */
export function configuredNeighbours(services: Config["services"]): readonly Neighbour[] {
  const known: readonly (readonly [string, string | undefined])[] = [
    ["storage", services.storageUrl],
    ["pipeline", services.pipelineUrl],
    ["blockchain", services.blockchainUrl],
    ["recorder", services.recorderUrl],
    ["session-api", services.sessionApiUrl],
    ["node-management", services.nodeManagementUrl],
    ["gateway", services.gatewayUrl],
    ["auth", services.authUrl],
  ];
  return known.flatMap(([name, url]) => (url === undefined ? [] : [{ name, url }]));
}

/** Nothing is asked or opened before the first call of `checks`. */
export function createNeighbourChecks(
  neighbours: readonly Neighbour[],
  options: NeighbourChecksOptions,
): NeighbourChecks {
  const { clock, timeoutMs = TIMEOUT_MS, cacheMs = CACHE_MS, waitMs = WAIT_MS } = options;
  const asked = neighbours.map(({ name, url }) => ({
    name,
    client: healthClient(name, url, timeoutMs, clock),
  }));
  let shown: readonly Check[] = asked.map(({ name }) => check(name, { ok: false, detail: "no answer yet" }));
  let shownSinceMs = Number.NEGATIVE_INFINITY;
  let refreshing: Promise<void> | undefined;

  async function refresh(): Promise<void> {
    const askOne = async ({ name, client }: { readonly name: string; readonly client: ServiceClient }) =>
      check(name, await client.health(timeoutMs));
    shown = await Promise.all(asked.map(askOne));
    shownSinceMs = clock.monotonicMs();
    refreshing = undefined;
  }

  return {
    async checks() {
      if (clock.monotonicMs() - shownSinceMs < cacheMs) return shown;
      refreshing ??= refresh();
      const done = new AbortController();
      await Promise.race([refreshing, clock.sleep(waitMs, done.signal)]);
      done.abort();
      return shown;
    },

    async close() {
      for (const { client } of asked) client.close();
      await refreshing;
    },
  };
}

function check(name: string, health: { readonly ok: boolean; readonly detail: string }): Check {
  return { name, ok: health.ok, required: false, detail: health.detail };
}

/** Without the token: a service that is asked for its health only has no business with it. */
function healthClient(name: string, url: string, timeoutMs: number, clock: Clock): ServiceClient {
  return createServiceClient({
    service: name,
    setting: "its URL",
    url,
    timeoutMs,
    connectTimeoutMs: timeoutMs,
    attempts: 1,
    retryDelayMs: 0,
    bearerToken: undefined,
    clock,
  });
}
