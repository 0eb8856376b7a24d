import { Redis, type RedisOptions } from "ioredis";
import type { ErrorCode } from "../../core/errors.ts";
import { asRedisError, redisErrorCode } from "./errors.ts";
import { ringConnector } from "./ring-connector.ts";

/** Hears of every error that a connection, queue or worker emits; often, so the listener limits the rate. */
export type OnError = (where: string, code: ErrorCode) => void;

export interface RedisTarget {
  /** redis:// or rediss://; may hold a password and is never logged. */
  readonly url: string;
  readonly onError: OnError;
  /** Hears of every connection that is usable, for the first time or again. */
  readonly onReady?: () => void;
}

const RECONNECT_FIRST_MS = 50;
/** Short, because the reliability bar wants work to go on within 10 s of Redis coming back. */
const RECONNECT_MAX_MS = 1_000;
const CONNECT_TIMEOUT_MS = 5_000;
const DISCONNECT_TIMEOUT_MS = 200;
/** A reply that takes longer is taken as lost. Far above the time of the largest payload. */
const COMMAND_TIMEOUT_MS = 10_000;
/**
 * A connection that brings nothing for this long, though a reply is due, is given up and made anew: a NAT or load balancer that has
 * forgotten it tells neither side. A long reply isn't cut, as each of its bytes counts, nor is a connection that waits for none.
 */
const SILENCE_MS_MAX = COMMAND_TIMEOUT_MS;
/** Of a connection on which BullMQ blocks for a job: for 10 s at most, and after another one it gives the command up itself. */
const BLOCKING_SILENCE_MS_MAX = 15_000;
/** How often a connection that may be idle asks for a reply: so that nothing between forgets it, or its loss is known before it is needed. */
const PING_INTERVAL_MS = 5_000;
/** A failover can leave us connected to what is a replica now: reconnect, and send the command again, or tell whoever sent it. */
const RECONNECT_AND_RESEND = 2;
const RECONNECT = 1;
/** Where it is a replica again, the next connection is: reads get through meanwhile. */
const RECONNECT_INTERVAL_MS = 5_000;

type ClientOptions = Omit<RedisOptions, "replyMapping">;

const COMMON: ClientOptions = {
  // ioredis keeps a timer of this length after every disconnect of a connection that was lost already.
  disconnectTimeout: DISCONNECT_TIMEOUT_MS,
  connectTimeout: CONNECT_TIMEOUT_MS,
  retryStrategy: (times) => Math.min(RECONNECT_FIRST_MS * 2 ** Math.min(times - 1, 10), RECONNECT_MAX_MS),
};

/**
 * Commands wait for Redis as long as it takes: what BullMQ's workers need. Those without a reply when a connection is lost are sent again, and
 * may be applied twice: BullMQ's scripts then find the job not theirs any more.
 */
const WAITS: ClientOptions = {
  ...COMMON,
  maxRetriesPerRequest: null,
  reconnectOnError: (error) => (isReadOnly(error) ? RECONNECT_AND_RESEND : false),
};

/**
 * Commands fail at once while Redis is away, and those in flight when it goes. The pipeline waits by itself
 * (patience.ts), can be told to stop, and reports that it waits; a command in a client's queue can't.
 */
const FAILS_FAST: ClientOptions = {
  ...COMMON,
  maxRetriesPerRequest: 0,
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  commandTimeout: COMMAND_TIMEOUT_MS,
};

/** Of a client of its own: how long ago it was made anew. */
function failsFast(): ClientOptions {
  let reconnectedMs = Number.NEGATIVE_INFINITY;
  return {
    ...FAILS_FAST,
    reconnectOnError(error) {
      const nowMs = performance.now();
      if (!isReadOnly(error) || nowMs - reconnectedMs < RECONNECT_INTERVAL_MS) return false;
      reconnectedMs = nowMs;
      return RECONNECT;
    },
  };
}

function isReadOnly({ message }: Error): boolean {
  return message.startsWith("READONLY");
}

/** A connection that knows the copies which BullMQ makes of it, so that all can be counted and cut. */
export class OwnedRedis extends Redis {
  readonly #where: string;
  readonly #target: RedisTarget;
  readonly #copies: Redis[] = [];
  /** Runs while a reply is due; every command of a while asks again. */
  #silence: NodeJS.Timeout | undefined;
  #commands = 0;

  constructor(target: RedisTarget, where: string, options: ClientOptions) {
    super(target.url, options);
    this.#where = where;
    this.#target = target;
    this.#listen(this);
  }

  /** Commands sent by this connection, a script call or a command in a pipeline counting as one each. */
  get commands(): number {
    return this.#commands;
  }

  override sendCommand(...[command, stream]: Parameters<Redis["sendCommand"]>): unknown {
    this.#commands += 1;
    this.#gatherWrites();
    const reply: unknown = super.sendCommand(command, stream);
    this.#expectData();
    return reply;
  }

  /**
   * As the option `socketTimeout`, which a loop that was held up for so long, or a process that was frozen, would make cut a connection whose
   * reply is there and unread: the loop gets the rest of the turn to read it.
   */
  #expectData(): void {
    if (this.#silence !== undefined || this.status !== "ready") return;
    const { stream } = this;
    const end = (): void => {
      clearTimeout(timer);
      stream.off("data", end).off("close", end);
      if (this.#silence === timer) this.#silence = undefined;
    };
    const cut = (): void => {
      if (this.#silence !== timer) return;
      end();
      stream.destroy(new Error(`Socket timeout: no data in ${SILENCE_MS_MAX} ms`));
    };
    const timer = setTimeout(() => setImmediate(cut), SILENCE_MS_MAX);
    this.#silence = timer;
    stream.on("data", end).on("close", end);
  }

  /** What is sent in one turn of the event loop leaves as one write, at its end: each alone would be a system call. */
  #gatherWrites(): void {
    const { stream } = this;
    if (this.status !== "ready" || stream.writableCorked > 0) return;
    stream.cork();
    setImmediate(() => stream.uncork());
  }

  /** What BullMQ blocks on: to have waited twice for the same does no harm there. */
  override duplicate(override?: Partial<RedisOptions>): Redis {
    const copy = super.duplicate({ socketTimeout: BLOCKING_SILENCE_MS_MAX, ...override });
    this.#listen(copy);
    this.#copies.push(copy);
    return copy;
  }

  /** From now on, until the connection ends for good. BullMQ's workers need none: they are never idle for long. */
  pingRegularly(): this {
    const timer = setInterval(() => {
      // Whether it is answered is for the connection to notice.
      if (this.status === "ready") this.ping().catch(() => undefined);
    }, PING_INTERVAL_MS);
    timer.unref();
    this.once("end", () => clearInterval(timer));
    return this;
  }

  /** Cuts the connections: what waits for a reply is rejected. */
  cut(): void {
    // To disconnect one that has ended would only leave ioredis' timer behind, for two seconds.
    for (const client of [this, ...this.#copies]) if (client.status !== "end") client.disconnect();
  }

  #listen(client: Redis): void {
    client.on("error", (thrown: unknown) => {
      this.#target.onError(this.#where, redisErrorCode(thrown));
    });
    client.on("ready", () => this.#target.onReady?.());
  }
}

export function waitingClient(target: RedisTarget, where: string): OwnedRedis {
  return new OwnedRedis(target, where, WAITS);
}

export function failFastClient(target: RedisTarget, where: string): OwnedRedis {
  return new OwnedRedis(target, where, failsFast()).pingRegularly();
}

/**
 * As failFastClient, for values of up to `valueBytesMax` bytes, at the cost of that much memory and 512 KiB. A value is to be
 * copied in the turn that brings it, unless it is alone in its ArrayBuffer.
 */
export function valueClient(target: RedisTarget, where: string, valueBytesMax: number): OwnedRedis {
  const options = isPlainTcp(target.url)
    ? { ...failsFast(), Connector: ringConnector(valueBytesMax) }
    : failsFast();
  return new OwnedRedis(target, where, options).pingRegularly();
}

/** As ioredis reads the URL, whose query may name a socket in the file system, or ask for TLS. */
function isPlainTcp(url: string): boolean {
  const { path, tls, sentinels } = new Redis(url, { lazyConnect: true }).options;
  return !path && !tls && !sentinels;
}

const CHECK_MS = 2_000;

/** Returns true when Redis answers and has loaded its data; else throws QUEUE_UNAVAILABLE, within 2 s. */
export async function checkRedis(url: string): Promise<true> {
  let last: unknown = new Error("Connection timed out");
  const client = new Redis(url, { ...FAILS_FAST, connectTimeout: CHECK_MS });
  client.on("error", (thrown: unknown) => {
    last = thrown;
  });
  try {
    if (await waitUntilReady(client, CHECK_MS)) return true;
    throw asRedisError(last);
  } finally {
    client.disconnect();
  }
}

/** Resolves true when the connection is usable, false when that took longer than `timeoutMs`. Never rejects. */
export async function waitUntilReady(client: Redis, timeoutMs: number): Promise<boolean> {
  if (client.status === "ready") return true;
  return new Promise((resolve) => {
    const end = (ready: boolean): void => {
      clearTimeout(timer);
      client.off("ready", onReady);
      resolve(ready);
    };
    const onReady = (): void => end(true);
    const timer = setTimeout(end, timeoutMs, false);
    client.on("ready", onReady);
  });
}

const QUIT_TIMEOUT_MS = 1_000;

/** Lets replies that are under way arrive, within a second, and never waits for a Redis that is away. */
export async function closeClient(client: OwnedRedis): Promise<void> {
  if (client.status === "ready") {
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    client.once("end", end);
    client.quit().catch(end);
    const timer = setTimeout(end, QUIT_TIMEOUT_MS);
    await ended;
    clearTimeout(timer);
    client.off("end", end);
  }
  client.cut();
}
