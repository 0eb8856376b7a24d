import type { TestProject } from "vitest/node";
import { startLocalServers } from "../../deploy/local/servers.ts";
import type { ProvidedServers } from "./servers.ts";

type RunningServers = Awaited<ReturnType<typeof startLocalServers>>;

/**
 * One Redis and one MongoDB for all projects of a run. Each project loads this module anew, in the same process, so what
 * they share hangs on globalThis; the last project to end stops the servers.
 */
interface Shared {
  users: number;
  readonly servers: Promise<RunningServers>;
}

const holder = globalThis as typeof globalThis & { sessionProcessorTestServers?: Shared };

export async function setup(project: TestProject): Promise<void> {
  holder.sessionProcessorTestServers ??= { users: 0, servers: startLocalServers({ say }) };
  const shared = holder.sessionProcessorTestServers;
  shared.users += 1;
  const { redis, mongodb } = await shared.servers;
  const provided: ProvidedServers = {
    redis: { url: redis.url, label: redis.label, standIn: redis.standIn },
    mongodb: { url: mongodb.url, label: mongodb.label, standIn: mongodb.standIn },
  };
  project.provide("servers", provided);
}

export async function teardown(): Promise<void> {
  const shared = holder.sessionProcessorTestServers;
  if (shared === undefined) return;
  shared.users -= 1;
  if (shared.users > 0) return;
  delete holder.sessionProcessorTestServers;
  const servers = await shared.servers;
  await servers.stop();
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}
