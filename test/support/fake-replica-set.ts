import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { Binary, BSON, ObjectId, Timestamp } from "mongodb";

/*
 * As much of a replica set's primary as the driver needs to send commands to it: the stand-in of MongoDB knows neither sessions
 * nor the time of a cluster. It keeps no documents; it shows what was asked of it.
 */

const HEADER_BYTES = 16;
const OP_REPLY = 1;
const OP_QUERY = 2_004;
const OP_MSG = 2_013;
/** After its header an OP_MSG has 4 bytes of flags and 1 byte that says "one document follows". */
const MSG_PREFIX_BYTES = 5;
const REPLY_PREFIX_BYTES = 20;

const START = new Timestamp({ t: 10, i: 1 });

export interface FakeReplicaSet {
  readonly url: string;
  /** Without handshakes, in the order of their arrival. */
  readonly commands: readonly BSON.Document[];
  /** What the next replies tell about the time: of the operation, and of the cluster's clock. */
  tellTime(seconds: number): void;
  /** From now on no answer, until `thaw`, which brings those that are due. */
  freeze(): void;
  thaw(): void;
  /** Open ones, with those that watch the server. */
  connections(): number;
  close(): Promise<void>;
}

export async function startFakeReplicaSet(): Promise<FakeReplicaSet> {
  const commands: BSON.Document[] = [];
  const sockets = new Set<Socket>();
  /** While it is frozen. */
  let due: (() => void)[] | undefined;
  let time = START;
  let address = "";
  const reply = (command: BSON.Document): BSON.Document => {
    const [name] = Object.keys(command);
    if (name === "hello" || name === "isMaster" || name === "ismaster")
      return { ...helloOf(address), $clusterTime: clusterTimeOf(START) };
    if (name !== "ping" && name !== "endSessions") commands.push(command);
    const told = { operationTime: time, $clusterTime: clusterTimeOf(time) };
    if (name === "insert" || name === "update" || name === "delete") return { ok: 1, n: 1, ...told };
    return { ok: 1, cursor: { id: 0n, ns: "lucid.x", firstBatch: [] }, ...told };
  };
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => sockets.delete(socket));
    let pending: Buffer = Buffer.alloc(0);
    socket.on("data", (bytes: Buffer) => {
      pending = Buffer.concat([pending, bytes]);
      while (pending.length >= HEADER_BYTES && pending.length >= pending.readInt32LE(0)) {
        const message = pending.subarray(0, pending.readInt32LE(0));
        pending = pending.subarray(message.length);
        const send = (): void => void socket.write(answer(message, reply));
        if (due === undefined) send();
        else due.push(send);
      }
    });
  });
  address = `127.0.0.1:${await listen(server)}`;
  return {
    url: `mongodb://${address}/lucid?replicaSet=rs`,
    commands,
    tellTime: (seconds) => {
      time = new Timestamp({ t: seconds, i: 1 });
    },
    freeze: () => {
      due ??= [];
    },
    thaw: () => {
      const answers = due ?? [];
      due = undefined;
      for (const send of answers) send();
    },
    connections: () => sockets.size,
    close: () =>
      new Promise((resolve) => {
        for (const socket of sockets) socket.destroy();
        server.close(() => resolve());
      }),
  };
}

/** Unsigned, as without authentication. */
function clusterTimeOf(clusterTime: Timestamp): BSON.Document {
  return { clusterTime, signature: { hash: new Binary(Buffer.alloc(20)), keyId: 0 } };
}

function helloOf(address: string): BSON.Document {
  return {
    ok: 1,
    helloOk: true,
    isWritablePrimary: true,
    ismaster: true,
    setName: "rs",
    setVersion: 1,
    electionId: new ObjectId("7fffffff0000000000000001"),
    hosts: [address],
    primary: address,
    me: address,
    minWireVersion: 0,
    maxWireVersion: 21,
    maxBsonObjectSize: 16_777_216,
    maxMessageSizeBytes: 48_000_000,
    maxWriteBatchSize: 100_000,
    logicalSessionTimeoutMinutes: 30,
  };
}

function answer(message: Buffer, reply: (command: BSON.Document) => BSON.Document): Buffer {
  const isQuery = message.readInt32LE(12) === OP_QUERY;
  const from = isQuery ? message.indexOf(0, HEADER_BYTES + 4) + 1 + 8 : HEADER_BYTES + MSG_PREFIX_BYTES;
  const length = message.readInt32LE(from);
  const command = BSON.deserialize(message.subarray(from, from + length));
  const prefix = Buffer.alloc(isQuery ? REPLY_PREFIX_BYTES : MSG_PREFIX_BYTES);
  // One document is returned.
  if (isQuery) prefix.writeInt32LE(1, REPLY_PREFIX_BYTES - 4);
  const body = BSON.serialize(reply(command));
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeInt32LE(HEADER_BYTES + prefix.length + body.length, 0);
  header.writeInt32LE(message.readInt32LE(4), 8);
  header.writeInt32LE(isQuery ? OP_REPLY : OP_MSG, 12);
  return Buffer.concat([header, prefix, body]);
}

function listen(server: Server): Promise<number> {
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
  });
}
