import net, { type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";
import {
  type ConnectOptions,
  connectMongo,
  type MongoConnection,
} from "../../src/adapters/mongo/connection.ts";
import { mongoStores } from "../conformance/stores.ts";
import { leafIndex, sessionId } from "../../src/core/ids.ts";
import { chunk, newSession } from "../support/memory/records.ts";
import { startFakeReplicaSet } from "../support/fake-replica-set.ts";
import { testServers } from "../support/servers.ts";

/*
 * The driver waits for ever for the `drain` of a socket that has closed without an error. Whether a close comes in that moment is a
 * matter of microseconds, so these tests bring it about inside the driver.
 */

const servers = testServers();
const LONG_MS = 60_000;
const SHORT_MS = 300;
const withCode = (code: string): unknown => expect.objectContaining({ code });

/** What the driver keeps to itself. */
interface DriverServer {
  readonly pool: { readonly connections: Set<{ readonly socket: Socket; destroy(): void }>; clear(): void };
  readonly monitor: {
    readonly s: { readonly state: string };
    readonly connection: { readonly socket: Socket };
    requestCheck(): void;
  };
}

const opened: MongoConnection[] = [];

async function connection({ url: to, ...options }: Partial<ConnectOptions> = {}): Promise<MongoConnection> {
  // Heartbeats of which the server answers each at once: when one is on its way can be known.
  const url = new URL(to ?? servers.mongodbUrl);
  url.searchParams.set("serverMonitoringMode", "poll");
  const mongo = await connectMongo({ url: url.href, appName: "deaf", ...options });
  opened.push(mongo);
  return mongo;
}

function driverServer(mongo: MongoConnection): DriverServer {
  const { client } = mongo.db as unknown as {
    readonly client: { readonly topology: { readonly s: { readonly servers: Map<string, DriverServer> } } };
  };
  const [server] = client.topology.s.servers.values();
  if (server === undefined) throw new Error("the driver knows no server");
  return server;
}

/** From now on what is written waits in the process, until the socket closes without a word. */
function stall(socket: Socket): void {
  socket.write = () => false;
}

function stallPool(mongo: MongoConnection): readonly Socket[] {
  const sockets = [...driverServer(mongo).pool.connections].map(({ socket }) => socket);
  for (const socket of sockets) stall(socket);
  return sockets;
}

/** Returns when the driver waits for an answer that doesn't come. */
async function loseHeartbeat(mongo: MongoConnection): Promise<void> {
  const { monitor } = driverServer(mongo);
  await vi.waitFor(() => expect(monitor.s.state).toBe("idle"));
  const { socket } = monitor.connection;
  stall(socket);
  await vi.waitFor(() => {
    monitor.requestCheck();
    expect(monitor.s.state).toBe("monitoring");
  }, 5_000);
  socket.destroy();
}

afterEach(async () => {
  await Promise.all(opened.splice(0).map((mongo) => mongo.close()));
});

test("an operation that the driver forgets is given up when its time is over, and the next one succeeds", async () => {
  const mongo = await connection({ limits: { operationMs: SHORT_MS } });
  const [socket] = stallPool(mongo);
  const lost = mongo.ping();
  socket?.destroy();
  await expect(lost).rejects.toThrow(withCode("STORE_UNAVAILABLE"));
  await expect(mongo.ping()).resolves.toBeUndefined();
});

test("every kind of operation can be given up", async () => {
  const mongo = await connection({ limits: { operationMs: SHORT_MS } });
  const { sessions, chunks, blobs, tiles } = mongoStores(mongo);
  const id = sessionId(servers.sessionId("given-up"));
  const operations = [
    () => sessions.find(id),
    () => sessions.create(newSession(id)),
    () => chunks.contiguousLeaves(id, leafIndex(0), 10),
    () => chunks.originalBytesFrom(id, 0),
    () => chunks.insert(chunk(id, 0)),
    () => blobs.read(`${id}:0:a`),
    () => tiles.read(id, 0, 0),
  ];
  for (const operation of operations) {
    await mongo.ping();
    const sockets = stallPool(mongo);
    await expect(operation(), operation.toString()).rejects.toThrow(withCode("STORE_UNAVAILABLE"));
    for (const socket of sockets) socket.destroy();
  }
});

test("one that is under way when the driver gives its connections up is not waited for much longer", async () => {
  const mongo = await connection({ limits: { operationMs: LONG_MS, afterOutageMs: SHORT_MS } });
  stallPool(mongo);
  const lost = mongo.ping();
  const outcome = Promise.allSettled([lost]);
  // It has its connection by then.
  await sleep(50);
  driverServer(mongo).pool.clear();
  expect(await Promise.race([outcome, sleep(SHORT_MS / 2, "waits")])).toBe("waits");
  await expect(lost).rejects.toThrow(withCode("STORE_UNAVAILABLE"));
});

test("a server that comes and goes doesn't give a forgotten operation more time", async () => {
  const mongo = await connection({ limits: { operationMs: 3 * SHORT_MS, afterOutageMs: 2 * SHORT_MS } });
  stallPool(mongo);
  const lost = Promise.allSettled([mongo.ping()]);
  await sleep(50);
  const startMs = performance.now();
  const clearing = setInterval(() => driverServer(mongo).pool.clear(), SHORT_MS / 2);
  await lost;
  clearInterval(clearing);
  expect(performance.now() - startMs).toBeGreaterThan(SHORT_MS);
  expect(performance.now() - startMs).toBeLessThan(10 * SHORT_MS);
  expect(await lost).toMatchObject([{ reason: { code: "STORE_UNAVAILABLE" } }]);
});

test("a client that forgets the handshake of a connection is left for another", async () => {
  const onDeaf = vi.fn<() => void>();
  const mongo = await connection({ onDeaf, limits: { operationMs: LONG_MS, handshakeMs: SHORT_MS } });
  const connect = net.createConnection;
  const forgetful = vi.spyOn(net, "createConnection").mockImplementation(((...args: [net.NetConnectOpts]) => {
    const socket = connect(...args);
    stall(socket);
    return socket.once("connect", () => setTimeout(() => socket.destroy(), 50));
  }) as typeof net.createConnection);
  try {
    for (const pooled of driverServer(mongo).pool.connections) pooled.destroy();
    const outcome = Promise.allSettled([mongo.ping()]);
    await vi.waitFor(() => expect(onDeaf).toHaveBeenCalled(), 10_000);
    expect(await outcome).toMatchObject([{ reason: { code: "STORE_UNAVAILABLE" } }]);
  } finally {
    forgetful.mockRestore();
  }
  await vi.waitFor(() => mongo.ping(), 15_000);
});

test("a client whose heartbeat is forgotten is connected anew, and its stores go on", async () => {
  const onDeaf = vi.fn<() => void>();
  const mongo = await connection({ onDeaf, limits: { operationMs: LONG_MS, heartbeatMs: SHORT_MS } });
  const stores = mongoStores(mongo);
  const id = sessionId(servers.sessionId("deaf"));
  await stores.sessions.create(newSession(id));
  const before = driverServer(mongo);
  await loseHeartbeat(mongo);
  await vi.waitFor(() => expect(onDeaf).toHaveBeenCalledTimes(1), 5_000);
  await vi.waitFor(async () => expect(await stores.sessions.find(id)).toMatchObject({ id }), 5_000);
  expect(driverServer(mongo)).not.toBe(before);
  expect(onDeaf).toHaveBeenCalledTimes(1);
});

test("the client that is left keeps nobody, though the server doesn't answer that its sessions end", async () => {
  const replicaSet = await startFakeReplicaSet();
  onTestFinished(() => replicaSet.close());
  const limits = { operationMs: LONG_MS, heartbeatMs: SHORT_MS, closeMs: SHORT_MS };
  const mongo = await connection({ url: replicaSet.url, limits });
  // The second one has a session, as the first has told the time of the cluster.
  await mongo.ping();
  await mongo.read(({ session }) => mongo.db.command({ ping: 1 }, session === undefined ? {} : { session }));
  const lost = Promise.allSettled([mongo.ping(), mongo.ping(), mongo.ping()]);
  replicaSet.freeze();
  await loseHeartbeat(mongo);
  for (const outcome of await lost) expect(outcome.status).toBe("rejected");
  await sleep(3 * SHORT_MS);
  replicaSet.thaw();
  await vi.waitFor(() => mongo.ping(), 10_000);
  await sleep(3 * SHORT_MS);
  await mongo.ping();
});

test("what is under way then fails with STORE_UNAVAILABLE", async () => {
  const mongo = await connection({ limits: { operationMs: LONG_MS, heartbeatMs: SHORT_MS } });
  stallPool(mongo);
  const lost = mongo.ping();
  const outcome = Promise.allSettled([lost]);
  await loseHeartbeat(mongo);
  expect(await outcome).toMatchObject([{ reason: { code: "STORE_UNAVAILABLE" } }]);
});

test("close ends a client that is being connected anew", async () => {
  const { promise: deaf, resolve } = Promise.withResolvers<void>();
  const mongo = await connection({
    onDeaf: resolve,
    limits: { operationMs: LONG_MS, heartbeatMs: SHORT_MS },
  });
  await loseHeartbeat(mongo);
  await deaf;
  await mongo.close();
  await expect(mongo.ping()).rejects.toThrow(withCode("STORE_UNAVAILABLE"));
});

test("heartbeats that are answered disturb nothing", async () => {
  const onDeaf = vi.fn<() => void>();
  const mongo = await connection({ onDeaf, limits: { heartbeatMs: 2_000 } });
  const { monitor } = driverServer(mongo);
  for (let at = 0; at < 5; at++) {
    await vi.waitFor(() => {
      expect(monitor.s.state).toBe("idle");
      monitor.requestCheck();
    });
    await mongo.ping();
  }
  expect(onDeaf).not.toHaveBeenCalled();
});
