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
  /** Longest time from a connection's start until it can be used. */
  readonly handshakeMs: number;
  readonly closeMs: number;
}

interface Attempt {
  readonly giveUp: () => void;
  dueMs: number;
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

/** Serve no operation of ours, which all go to the primary: their outages are no reason to give one up. */
const UNUSED_KINDS: ReadonlySet<string> = new Set(["RSSecondary", "RSArbiter", "RSOther", "RSGhost"]);

/**
 * A client whose driver may forget to settle what it was asked. mongodb 7.9 does so when a connection closes while a command is being
 * written to it: `Connection.writeCommand` then waits for `drain`, and hears of an error but not of `close`. If that
 * was a job's command, the job would keep its lock and its chunk for ever; if it was a heartbeat, the driver would never look for that server
 * again; if it was a connection's handshake, no other would be made in its place. So an operation is given up after a time, with its connection,
 * and its outcome is unknown then, as after a lost reply. And a client whose heartbeat or handshake doesn't end is left, for a new one: to close
 * it may take as long.
 */
export class WatchedClient {
  readonly #open: () => MongoClient;
  readonly #limits: WatchedClientLimits;
  readonly #onDeaf: () => void;
  readonly #attempts = new Set<Attempt>();
  /** Heartbeats by address, and handshakes by address and number: fires when one has taken too long. */
  readonly #awaited = new Map<string, NodeJS.Timeout>();
  /** Of each server, as it was last known. */
  readonly #kinds = new Map<string, string>();
  readonly #closing = new AbortController();
  /** Clients that were left, until they have closed, if they ever do. */
  readonly #left = new Set<Promise<void>>();
  #client: MongoClient;
  #reconnecting: Promise<void> | undefined;

  /** `open` makes a client that isn't connected yet; `onDeaf` hears of each time that one is left for another. */
  constructor(open: () => MongoClient, limits: WatchedClientLimits, onDeaf: () => void) {
    this.#open = open;
    this.#limits = limits;
    this.#onDeaf = onDeaf;
    this.#client = this.#openWatched();
  }

  /** For one operation: it may be another one for the next. */
  get client(): MongoClient {
    return this.#client;
  }

  /** The first time. Throws the driver's error when the server doesn't answer within seconds. */
  async connect(): Promise<void> {
    await this.#client.connect();
  }

  /** Ends `operation` early with STORE_UNAVAILABLE: where it passes the signal to the driver, with its connection. */
  async run<Result>(operation: (abortable: Abortable) => Promise<Result>): Promise<Result> {
    if (this.#reconnecting !== undefined) throw unavailable("MongoDB's driver is connecting anew");
    const controller = new AbortController();
    const { promise: givenUp, reject } = Promise.withResolvers<never>();
    const giveUp = (): void => {
      const reason = unavailable(TEXT_GIVEN_UP);
      controller.abort(reason);
      reject(reason);
    };
    const { operationMs } = this.#limits;
    const attempt = {
      giveUp,
      dueMs: performance.now() + operationMs,
      timer: setTimeout(giveUp, operationMs),
    };
    this.#attempts.add(attempt);
    try {
      return await Promise.race([operation(controller), givenUp]);
    } finally {
      clearTimeout(attempt.timer);
      this.#attempts.delete(attempt);
    }
  }

  /** Ends within closeMs also when the server is gone; what is under way fails with STORE_UNAVAILABLE. */
  async close(): Promise<void> {
    this.#closing.abort();
    const over = new AbortController();
    try {
      await Promise.race([this.#closeAll(), clock.sleep(this.#limits.closeMs, over.signal)]);
    } finally {
      over.abort();
      this.#unwatchAll();
      this.#giveUpAll();
    }
  }

  async #closeAll(): Promise<void> {
    await this.#client.close();
    if (this.#reconnecting !== undefined) {
      await this.#reconnecting;
      // It may have been about to connect.
      await this.#client.close();
    }
    await Promise.all(this.#left);
  }

  #openWatched(): MongoClient {
    const client = this.#open();
    const unlessLeft =
      <Event>(hear: (event: Event) => unknown) =>
      (event: Event): void => {
        if (client === this.#client) hear(event);
      };
    const { handshakeMs, heartbeatMs, awaitedHeartbeatMs } = this.#limits;
    client.on(
      "serverDescriptionChanged",
      unlessLeft(
        ({ address, newDescription: { type } }) => type !== "Unknown" && this.#kinds.set(address, type),
      ),
    );
    client.on(
      "connectionPoolCleared",
      unlessLeft(({ address }) => this.#hurry(address)),
    );
    client.on(
      "serverHeartbeatStarted",
      unlessLeft(({ connectionId, awaited }) =>
        this.#watch(connectionId, awaited ? awaitedHeartbeatMs : heartbeatMs),
      ),
    );
    client.on(
      "serverHeartbeatSucceeded",
      unlessLeft(({ connectionId }) => this.#unwatch(connectionId)),
    );
    client.on(
      "serverHeartbeatFailed",
      unlessLeft(({ connectionId }) => this.#unwatch(connectionId)),
    );
    client.on(
      "serverClosed",
      unlessLeft(({ address }) => this.#unwatch(address)),
    );
    const nameOf = (event: {
      readonly address: string;
      readonly connectionId: number | "<monitor>";
    }): string => `${event.address} ${event.connectionId}`;
    client.on(
      "connectionCreated",
      unlessLeft((event) => this.#watch(nameOf(event), handshakeMs)),
    );
    client.on(
      "connectionReady",
      unlessLeft((event) => this.#unwatch(nameOf(event))),
    );
    client.on(
      "connectionClosed",
      unlessLeft((event) => this.#unwatch(nameOf(event))),
    );
    return client;
  }

  /** Never to give more time than there was: a server may come and go again and again. */
  #hurry(address: string): void {
    if (UNUSED_KINDS.has(this.#kinds.get(address) ?? "")) return;
    const nowMs = performance.now();
    for (const attempt of this.#attempts) {
      attempt.dueMs = Math.min(attempt.dueMs, nowMs + this.#limits.afterOutageMs);
      clearTimeout(attempt.timer);
      attempt.timer = setTimeout(attempt.giveUp, attempt.dueMs - nowMs);
    }
  }

  #giveUpAll(): void {
    for (const { giveUp } of this.#attempts) giveUp();
  }

  #watch(name: string, limitMs: number): void {
    this.#unwatch(name);
    // If the loop itself was held up, the answer may be here, unread: it is read in the rest of this turn.
    const timer = setTimeout(
      () => setImmediate(() => this.#awaited.get(name) === timer && this.#reconnect()),
      limitMs,
    );
    this.#awaited.set(name, timer);
  }

  #unwatch(name: string): void {
    clearTimeout(this.#awaited.get(name));
    this.#awaited.delete(name);
  }

  #unwatchAll(): void {
    for (const name of this.#awaited.keys()) this.#unwatch(name);
  }

  #reconnect(): void {
    if (this.#closing.signal.aborted || this.#reconnecting !== undefined) return;
    this.#onDeaf();
    this.#reconnecting = this.#connectAnother().finally(() => {
      this.#reconnecting = undefined;
    });
  }

  async #connectAnother(): Promise<void> {
    this.#giveUpAll();
    this.#unwatchAll();
    this.#leave(this.#client);
    this.#client = this.#openWatched();
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#client.connect();
        return;
      } catch {
        // The server is away: whoever needs it is told so meanwhile, and says it.
        await clock.sleep(RECONNECT_PAUSE_MS, signal);
      }
    }
  }

  /** Nobody waits for it: it asks a server that may not answer to end its sessions, and may be forgotten as well. */
  #leave(client: MongoClient): void {
    const closed = client.close().then(
      () => undefined,
      () => undefined,
    );
    this.#left.add(closed);
    void closed.finally(() => this.#left.delete(closed));
  }
}

function unavailable(message: string): LucidError {
  return new LucidError("STORE_UNAVAILABLE", message);
}
