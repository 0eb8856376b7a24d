/**
 * Redis and MongoDB for the demo, the tests, the bench and `npm run services`.
 *
 * Redis: REDIS_URL → redis-server or valkey-server on PATH → Docker → the Debian package.
 * MongoDB: MONGODB_URL → mongod on PATH → Docker → a downloaded mongod → mongo-java-server, a stand-in.
 *
 * What is started here listens on 127.0.0.1, ends with this process however that ends, and takes its data along, unless a folder
 * for it was named: that one stays whatever happens.
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { LucidError } from "../../src/core/errors.ts";
import { claimFolder } from "./folder-claim.ts";
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
  /** Ends both and waits; removes `folder` if nobody named it. Repeated calls are harmless. */
  stop(): Promise<void>;
}

/**
 * Starts both, at the same time.
 * @param options.folder where the data is, or will be, and stays, whatever happens (a container's goes with the container all the
 *   same). Without it: a new one, which is removed
 * @param options.program for whoever else wants that folder meanwhile
 * @throws LucidError LOCAL_SERVER_UNAVAILABLE when one can't be had, after the other has been stopped, or another run uses `folder`;
 *   the signal's reason when it was aborted
 */
export async function startLocalServers(options: {
  readonly say: (line: string) => void;
  readonly folder?: string | undefined;
  readonly program?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal;
}): Promise<LocalServers> {
  const { program = "session-processor", say, signal } = options;
  const folder = options.folder ?? newFolder();
  // Only a folder that this call has made is ever removed: one that was named, and what is in it, is somebody's.
  const isOwn = options.folder === undefined;
  signal?.throwIfAborted();
  if (isOwn) await mkdir(folder, { mode: 0o700 });
  else await makeNamedFolder(folder);
  const claim = await claimFolder(folder, { program, say, signal });
  const onGuard = (pid: number, name: string): void => claim.add(pid, name);
  const dirs = { redis: join(folder, "redis"), mongodb: join(folder, "mongodb") };
  const place = (dir: string, neighbour: string): Placement =>
    isOwn ? { dir, onGuard, removal: { dir, root: folder, neighbours: [neighbour] } } : { dir, onGuard };

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
  const stop = async (): Promise<void> => {
    const running = [redis, mongodb].flatMap((start) => (start.status === "fulfilled" ? [start.value] : []));
    await Promise.all(running.map((server) => server.stop()));
    if (isOwn) await rm(folder, { recursive: true, force: true });
    claim.release();
  };
  if (redis.status === "fulfilled" && mongodb.status === "fulfilled")
    return { redis: redis.value, mongodb: mongodb.value, folder, stop };

  await stop();
  throw failure.signal.reason;
}

async function makeNamedFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { mode: 0o700, recursive: true });
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const isFile = code === "EEXIST" || code === "ENOTDIR";
    const text = isFile ? `${folder} is no folder` : `${folder} can't be made (${code})`;
    throw new LucidError("LOCAL_SERVER_UNAVAILABLE", `${text}; name another one`, { cause });
  }
}

/** One Redis. A fault test gives `port` and `dir`, kills `pid`, and starts it again on the same two. */
export async function startLocalRedis(options: LocalRedisOptions): Promise<LocalServer> {
  return startRedisIn(placementOf(options.dir), options);
}

/** One MongoDB, likewise. With `dir` the stand-in keeps its data in a file there, without it in memory. */
export async function startLocalMongodb(options: LocalMongodbOptions): Promise<LocalServer> {
  return startMongodbIn(placementOf(options.dir), options);
}
