import {
  type ClientSession,
  type ClusterTime,
  type Db,
  type DbOptions,
  type Document,
  MongoClient,
  type MongoClientOptions,
  ReadConcern,
  Timestamp,
} from "mongodb";
import { type Abortable, WatchedClient, type WatchedClientLimits } from "./watched-client.ts";
import { addressError, connectError, DUPLICATE_KEY, storeError, writeItemError } from "./errors.ts";

/** Contract §4: the database of a MONGODB_URL that names none. */
const DATABASE_DEFAULT = "lucid";
/** A server that is away is reported within this time; waiting longer is the caller's patience. */
const SERVER_SELECTION_MS = 3_000;
const CONNECT_MS = 5_000;
/** A server that accepts bytes and never answers (a black hole, a frozen machine) becomes STORE_UNAVAILABLE. */
const SOCKET_MS = 30_000;
const POOL_WAIT_MS = 10_000;
const HEARTBEAT_PAUSE_MS = 10_000;
const WATCH: WatchedClientLimits = {
  operationMs: SERVER_SELECTION_MS + POOL_WAIT_MS + SOCKET_MS + 2_000,
  // Its connection is closed by then, or answers.
  afterOutageMs: 5_000,
  // The driver gives connecting, the handshake and the answer so much time each.
  heartbeatMs: 2 * CONNECT_MS + 2_000,
  awaitedHeartbeatMs: CONNECT_MS + HEARTBEAT_PAUSE_MS + 2_000,
  // The same, and the messages of the authentication.
  handshakeMs: 4 * CONNECT_MS,
  closeMs: 5_000,
};
/**
 * MAX_WORKERS goes up to 50. Most calls are gathered (coalesce.ts), so only large blobs and tree heads of different
 * sessions want a connection each; connections are made when they are needed.
 */
const POOL_SIZE_MAX = 50;
/** A connection that one burst needed is given back after this time. */
const POOL_IDLE_MS = 60_000;

/** Contract §4: a write that returned survives a crash of the server and a change of the primary. */
const WRITE_CONCERN = { w: "majority", j: true } as const;

/** Of the database, where nothing in the URL (`readConcernLevel`, `journal`) has a say. */
const CONCERNS: DbOptions = {
  writeConcern: { w: "majority", journal: true },
  // For what the writes of a session decide on: nothing that a new primary could roll back.
  readConcern: new ReadConcern("majority"),
  readPreference: "primary",
};

const OPTIONS: MongoClientOptions = {
  readPreference: "primary",
  // Every write is one that may be applied twice, and the pipeline's patience repeats it: a second layer of retries
  // would hide outages from it, and needs sessions, which a standalone server has no use for.
  retryWrites: false,
  retryReads: false,
  serverSelectionTimeoutMS: SERVER_SELECTION_MS,
  connectTimeoutMS: CONNECT_MS,
  heartbeatFrequencyMS: HEARTBEAT_PAUSE_MS,
  socketTimeoutMS: SOCKET_MS,
  waitQueueTimeoutMS: POOL_WAIT_MS,
  maxPoolSize: POOL_SIZE_MAX,
  maxIdleTimeMS: POOL_IDLE_MS,
  // Ciphertext doesn't compress.
  compressors: ["none"],
  // Binary fields come as views of the reply, not as copies in a Binary.
  promoteBuffers: true,
  // Numbers, also where a counter has outgrown 32 bits: all that we keep are below 2^53.
  promoteValues: true,
  promoteLongs: true,
  useBigInt64: false,
};

export interface ConnectOptions {
  readonly url: string;
  /** Shown in the server's log and in currentOp. */
  readonly appName: string;
  /** Called with the name of each command that the driver sends, for counting; costs a second decoding of each reply. */
  readonly onCommand?: (name: string) => void;
  /** Called when the driver has stopped looking for a server and the client is connected anew. */
  readonly onDeaf?: () => void;
  /** For tests of a driver that doesn't answer. */
  readonly limits?: Partial<WatchedClientLimits>;
}

export interface ServerLabel {
  /** For people: program and version. */
  readonly text: string;
  /** True where something else than MongoDB answers: fine for trying and testing, not for keeping data. */
  readonly standIn: boolean;
}

/** One item's failure in a write command. */
export interface DuplicateKey {
  /** Position of the item in the command. */
  readonly index: number;
  /** The violated index's keys, where the server says them. */
  readonly keys: readonly string[] | undefined;
}

export interface WriteReply {
  /** Documents inserted, matched or deleted. */
  readonly n: number;
  readonly duplicates: readonly DuplicateKey[];
}

interface RawWriteError {
  readonly index: number;
  readonly code: number;
  readonly errmsg?: string;
  readonly keyPattern?: Document;
}

/**
 * Connects, or fails within seconds: STORE_UNAVAILABLE when no server answers, CONFIG_INVALID when the address or the
 * credentials can't be right. Options in the URL can't weaken the write and read concerns.
 */
export async function connectMongo(options: ConnectOptions): Promise<MongoConnection> {
  const { url, appName, onCommand, onDeaf = () => undefined, limits } = options;
  const open = (): MongoClient => {
    const client = newClient(url, { ...OPTIONS, appName, monitorCommands: onCommand !== undefined });
    if (onCommand !== undefined) client.on("commandStarted", ({ commandName }) => onCommand(commandName));
    return client;
  };
  const watched = new WatchedClient(open, { ...WATCH, ...limits }, onDeaf);
  try {
    await watched.connect();
    const connection = new MongoConnection(watched, databaseOf(url));
    // Tells, over a replica set, at what time of its history this process begins.
    await connection.ping();
    return connection;
  } catch (thrown) {
    // Its monitors would go on looking for the server and keep the process alive.
    await watched.close().catch(() => undefined);
    throw connectError(thrown);
  }
}

/** The constructor connects to nothing: whatever it throws is about the address. */
function newClient(url: string, options: MongoClientOptions): MongoClient {
  try {
    return new MongoClient(url, options);
  } catch (thrown) {
    throw addressError(thrown);
  }
}

/** Goes into the options of each operation of the driver. */
export interface ReadOptions extends Abortable {
  readonly session?: ClientSession;
}

/**
 * The one place that sends commands: counts them, and turns every failure into a LucidError.
 *
 * Reads are causally consistent with everything that this process has written or read before, on any connection: each asks for a
 * majority-committed state that isn't older (`afterClusterTime`). Read concern "majority" alone doesn't promise
 * that. A primary that doesn't know yet that it was replaced answers with the state that it has ("clients … may observe
 * stale data despite having requested read preference primary", MongoDB manual, *Read Concern*), and a new one may lag
 * behind what the old one had acknowledged. With it, and with write concern "majority", the manual's *Causal Consistency and Read and Write Concerns* has
 * read own writes, monotonic reads and writes, and writes follow reads, through network partitions as well. It costs no
 * command; on the primary that took the write there is nothing to wait for.
 *
 * Of two processes that each write and then look for the other's write, at least one sees it: both writes are in one history,
 * and whoever's is the later looks at a state that holds both. Over shards the cluster's clock orders them alike. This is what settleCount
 * and integrate rest on. A standalone server has no such times and needs none: it has one state.
 */
export class MongoConnection {
  readonly #watched: Pick<WatchedClient, "client" | "run" | "close">;
  readonly #database: string;
  #db: { readonly client: MongoClient; readonly db: Db } | undefined;
  #commands = 0;
  /** The latest time of the cluster's history that a reply has told; absent on a standalone server. */
  #latest: Timestamp | undefined;
  /** The latest reading of the cluster's clock, signed by it. */
  #clusterTime: ClusterTime | undefined;

  constructor(watched: Pick<WatchedClient, "client" | "run" | "close">, database: string) {
    this.#watched = watched;
    this.#database = database;
  }

  /** For one operation: the client may be another one for the next. */
  get db(): Db {
    const { client } = this.#watched;
    if (this.#db?.client !== client) this.#db = { client, db: client.db(this.#database, CONCERNS) };
    return this.#db.db;
  }

  /** Commands sent since the start, without the driver's own (handshakes, heartbeats). */
  get commands(): number {
    return this.#commands;
  }

  /** Runs an operation of the driver that is one command. */
  async run<Result>(operation: (abortable: Abortable) => Promise<Result>): Promise<Result> {
    this.#commands += 1;
    try {
      return await this.#watched.run(operation);
    } catch (thrown) {
      throw storeError(thrown);
    }
  }

  /** As `run`, for a read of one command: it sees at least what this process has written and read before. */
  async read<Result>(operation: (options: ReadOptions) => Promise<Result>): Promise<Result> {
    return this.run((abortable) => this.#inSession(true, abortable, operation));
  }

  /** `asksForLatest`: in a state of the data that is not older than what this process knows. */
  async #inSession<Result>(
    asksForLatest: boolean,
    { signal }: Abortable,
    operation: (options: ReadOptions) => Promise<Result>,
  ): Promise<Result> {
    if (this.#latest === undefined) return operation({ signal });
    // Of the client's pool of sessions: nothing is sent to begin or to end it.
    const session = this.#watched.client.startSession({ causalConsistency: asksForLatest });
    try {
      if (asksForLatest) session.advanceOperationTime(this.#latest);
      // The driver tells a server only the cluster time that it has heard on the same connection. One whose clock is behind
      // would refuse to wait for a time that it takes for the future.
      if (this.#clusterTime !== undefined) session.clusterTime = this.#clusterTime;
      return await operation({ session, signal });
    } finally {
      this.#hear(session.clusterTime);
      this.#advance(session.operationTime);
      await session.endSession();
    }
  }

  #hear(time: ClusterTime | undefined): void {
    if (time === undefined) return;
    const known = this.#clusterTime?.clusterTime;
    if (known === undefined || time.clusterTime.greaterThan(known)) this.#clusterTime = time;
  }

  /** Replies overtake each other: the latest time stays. */
  #advance(time: unknown): void {
    if (!(time instanceof Timestamp)) return;
    if (this.#latest === undefined || time.greaterThan(this.#latest)) this.#latest = time;
  }

  /**
   * Sends an `insert`, `update` or `delete` command. As a plain command, because the driver's insertMany and bulkWrite copy
   * the documents five times on the way to the socket and this copies them three times, and because its reply
   * tells the fate of each item. Duplicate keys are returned, any other failure of an item is thrown.
   */
  async write(command: Document): Promise<WriteReply> {
    const reply = await this.run((abortable) =>
      this.#inSession(false, abortable, (options) =>
        this.db.command({ ...command, writeConcern: WRITE_CONCERN }, options),
      ),
    );
    this.#advance(reply["operationTime"]);
    const errors = (reply["writeErrors"] ?? []) as readonly RawWriteError[];
    const other = errors.find(({ code }) => code !== DUPLICATE_KEY);
    if (other !== undefined) throw writeItemError(other.code, other);
    return {
      n: Number(reply["n"]),
      duplicates: errors.map((error) => ({ index: error.index, keys: violatedKeys(error) })),
    };
  }

  async ping(): Promise<void> {
    const reply = await this.run(({ signal }) => this.db.command({ ping: 1 }, { signal }));
    this.#advance(reply["operationTime"]);
  }

  async serverLabel(): Promise<ServerLabel> {
    const info = await this.run(({ signal }) => this.db.admin().command({ buildInfo: 1 }, { signal }));
    // mongo-java-server answers with the version that its launcher makes up, and without a build's commit.
    if (typeof info["gitVersion"] === "string") return { text: `MongoDB ${info["version"]}`, standIn: false };
    return { text: "mongo-java-server, a stand-in that loses its data and is no MongoDB", standIn: true };
  }

  /** Ends within seconds also when the server is gone; calls that are under way fail with STORE_UNAVAILABLE. */
  async close(): Promise<void> {
    try {
      await this.#watched.close();
    } catch (thrown) {
      throw storeError(thrown);
    }
  }
}

/** MongoDB ≥ 4.4 gives the key pattern; older servers and the stand-in only name the index in their text. */
function violatedKeys({ keyPattern, errmsg }: RawWriteError): readonly string[] | undefined {
  if (keyPattern !== undefined) return Object.keys(keyPattern);
  return errmsg !== undefined && /index: _id_ /.test(errmsg) ? ["_id"] : undefined;
}

function databaseOf(url: string): string {
  const name = /^mongodb(?:\+srv)?:\/\/[^/?]+\/([^?]+)/.exec(url)?.[1];
  return name === undefined ? DATABASE_DEFAULT : decodeURIComponent(name);
}
