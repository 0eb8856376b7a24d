import type { MongoClient } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import { createSystemClock } from "../system/clock.ts";

export interface WatchedClientLimits {
  /** Longest time of an operation. Above all that the driver allows it: what it takes so long for never ends. */
  readonly operationMs: number;
  /** For an operation that was under way when the driver gave a server's connections up. */
  readonly afterOutageMs: number;
  /** Longest time of a heartbeat: connecting, and the server's answer. */
  readonly heartbeatMs: number;
  /** Longest time of one that the server answers when something has changed. */
  readonly awaitedHeartbeatMs: number;
  readonly closeMs: number;
}

interface Attempt {
  readonly giveUp: () => void;
  timer: NodeJS.Timeout;
}

/** Goes into the options of each operation of the driver. */
export interface Abortable {
  readonly signal: AbortSignal;
}

const clock = createSystemClock();

const RECONNECT_PAUSE_MS = 500;
const TEXT_GIVEN_UP =
  "MongoDB's driver did not end an operation in its time; it is not known whether it was applied";

/**
 * A client whose driver may forget to settle what it was asked. mongodb 7.9 does so when a connection closes while a command is being
 * written to it: `Connection.writeCommand` then waits for `drain`, and hears of an error but not of `close`. If that
 * was a job's command, the job would keep its lock and its chunk for ever; if it was a heartbeat, the driver would never look for that server
 * again. So an operation is given up after a time, with its connection: its outcome is unknown then, as after a lost reply, but it doesn't
 * reach the server any more. And a client whose heartbeat doesn't end is connected anew.
 */
export class WatchedClient {
  readonly #client: MongoClient;
  readonly #limits: WatchedClientLimits;
  readonly #onDeaf: () => void;
  readonly #attempts = new Set<Attempt>();
  /** By address: fires when the heartbeat has taken too long. */
  readonly #heartbeats = new Map<string, NodeJS.Timeout>();
  readonly #closing = new AbortController();
  #reconnecting: Promise<void> | undefined;

  /** `onDeaf` hears of each time that the client is connected anew. */
  constructor(client: MongoClient, limits: WatchedClientLimits, onDeaf: () => void) {
    this.#client = client;
    this.#limits = limits;
    this.#onDeaf = onDeaf;
    client.on("connectionPoolCleared", () => this.#hurry());
    client.on("serverHeartbeatStarted", ({ connectionId, awaited }) => this.#watch(connectionId, awaited));
    client.on("serverHeartbeatSucceeded", ({ connectionId }) => this.#unwatch(connectionId));
    client.on("serverHeartbeatFailed", ({ connectionId }) => this.#unwatch(connectionId));
    client.on("serverClosed", ({ address }) => this.#unwatch(address));
  }

  /** Ends `operation` early with STORE_UNAVAILABLE, if it passes the signal to the driver. */
  async run<Result>(operation: (abortable: Abortable) => Promise<Result>): Promise<Result> {
    if (this.#reconnecting !== undefined) throw unavailable("MongoDB's driver is connecting anew");
    const controller = new AbortController();
    const giveUp = (): void => controller.abort(unavailable(TEXT_GIVEN_UP));
    const attempt: Attempt = { giveUp, timer: setTimeout(giveUp, this.#limits.operationMs) };
    this.#attempts.add(attempt);
    try {
      return await operation(controller);
    } finally {
      clearTimeout(attempt.timer);
      this.#attempts.delete(attempt);
    }
  }

  /** Ends within twice closeMs also when the server is gone; what is under way fails with STORE_UNAVAILABLE. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#closeClient();
    if (this.#reconnecting !== undefined) {
      await this.#reconnecting;
      await this.#closeClient();
    }
    for (const address of this.#heartbeats.keys()) this.#unwatch(address);
    this.#giveUpAll();
  }

  #hurry(): void {
    for (const attempt of this.#attempts) {
      clearTimeout(attempt.timer);
      attempt.timer = setTimeout(attempt.giveUp, this.#limits.afterOutageMs);
    }
  }

  #giveUpAll(): void {
    for (const { giveUp } of this.#attempts) giveUp();
  }

  #watch(address: string, awaited: boolean): void {
    this.#unwatch(address);
    const { heartbeatMs, awaitedHeartbeatMs } = this.#limits;
    // If the loop itself was held up, the answer may be here, unread: it is read in the rest of this turn.
    const timer = setTimeout(
      () => setImmediate(() => this.#heartbeats.get(address) === timer && this.#reconnect()),
      awaited ? awaitedHeartbeatMs : heartbeatMs,
    );
    this.#heartbeats.set(address, timer);
  }

  #unwatch(address: string): void {
    clearTimeout(this.#heartbeats.get(address));
    this.#heartbeats.delete(address);
  }

  #reconnect(): void {
    if (this.#closing.signal.aborted || this.#reconnecting !== undefined) return;
    this.#onDeaf();
    this.#reconnecting = this.#connectAnew().finally(() => {
      this.#reconnecting = undefined;
    });
  }

  async #connectAnew(): Promise<void> {
    this.#giveUpAll();
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#closeClient();
        await this.#client.connect();
        return;
      } catch {
        // The server is away: whoever needs it is told so meanwhile, and says it.
        await clock.sleep(RECONNECT_PAUSE_MS, signal);
      }
    }
  }

  /** The same client can be connected again afterwards. */
  async #closeClient(): Promise<void> {
    const over = new AbortController();
    try {
      await Promise.race([this.#client.close(), clock.sleep(this.#limits.closeMs, over.signal)]);
    } finally {
      over.abort();
    }
  }
}

function unavailable(message: string): LucidError {
  return new LucidError("STORE_UNAVAILABLE", message);
}
