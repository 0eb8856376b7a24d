/**
 * Redis and MongoDB for the demo, the tests, the bench and `npm run services`.
 *
 * Redis: REDIS_URL → redis-server or valkey-server on PATH → Docker → the Debian package.
 * MongoDB: MONGODB_URL → mongod on PATH → Docker → a downloaded mongod → mongo-java-server, a stand-in.
 *
 * What is started here listens on 127.0.0.1, ends with this process however that ends, and takes its data along.
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type LocalMongodbOptions, startMongodbIn } from "./mongodb.ts";
import { newFolder, type Placement, placementOf } from "./placement.ts";
import { type LocalRedisOptions, startRedisIn } from "./redis.ts";
import type { LocalServer } from "./source.ts";

export type { LocalMongodbOptions, LocalRedisOptions, LocalServer };

export interface LocalServers {
  readonly redis: LocalServer;
  readonly mongodb: LocalServer;
  /** Holds the data of both, as far as they are processes of ours; others may put theirs beside it. */
  readonly folder: string;
  /** Ends both and waits; removes `folder` unless the data is to be kept. Repeated calls are harmless. */
  stop(): Promise<void>;
}

/**
 * Starts both, at the same time.
 * @param options.keepData leave `folder` when they end (a container's data goes with the container all the same)
 * @param options.folder one that was kept: they go on with its data, and leave it there again
 * @throws LucidError LOCAL_SERVER_UNAVAILABLE when one can't be had, after the other has been stopped;
 *   the signal's reason when it was aborted
 */
export async function startLocalServers(options: {
  readonly say: (line: string) => void;
  readonly keepData?: boolean;
  readonly folder?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal;
}): Promise<LocalServers> {
  const folder = options.folder ?? newFolder();
  await mkdir(folder, { mode: 0o700, recursive: true });
  const keepData = options.keepData ?? options.folder !== undefined;
  const dirs = { redis: join(folder, "redis"), mongodb: join(folder, "mongodb") };
  const place = (dir: string, neighbour: string): Placement =>
    keepData ? { dir } : { dir, removal: { dir, root: folder, neighbours: [neighbour] } };

  // The one that can't be had ends the other's attempt, which may be in the middle of a download.
  const failure = new AbortController();
  const signals = [failure.signal, ...(options.signal === undefined ? [] : [options.signal])];
  const attempt = { ...options, signal: AbortSignal.any(signals) };
  const orFail = (error: unknown): never => {
    failure.abort(error);
    throw error;
  };
  const [redis, mongodb] = await Promise.allSettled([
    startRedisIn(place(dirs.redis, dirs.mongodb), attempt).catch(orFail),
    startMongodbIn(place(dirs.mongodb, dirs.redis), attempt).catch(orFail),
  ]);
  const stop = async (keep: boolean) => {
    const running = [redis, mongodb].flatMap((start) => (start.status === "fulfilled" ? [start.value] : []));
    await Promise.all(running.map((server) => server.stop()));
    if (!keep) await rm(folder, { recursive: true, force: true });
  };
  if (redis.status === "fulfilled" && mongodb.status === "fulfilled")
    return { redis: redis.value, mongodb: mongodb.value, folder, stop: () => stop(keepData) };

  await stop(false);
  throw failure.signal.reason;
}

/** One Redis. A fault test gives `port` and `dir`, kills `pid`, and starts it again on the same two. */
export async function startLocalRedis(options: LocalRedisOptions): Promise<LocalServer> {
  return startRedisIn(placementOf(options.dir), options);
}

/** One MongoDB, likewise. With `dir` the stand-in keeps its data in a file there, without it in memory. */
export async function startLocalMongodb(options: LocalMongodbOptions): Promise<LocalServer> {
  return startMongodbIn(placementOf(options.dir), options);
}
