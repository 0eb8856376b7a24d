import { afterAll, beforeAll, describe } from "vitest";
import { connectMongo, type MongoConnection } from "../../src/adapters/mongo/connection.ts";
import { MongoBlobStore } from "../../src/adapters/mongo/blob-store.ts";
import { MongoChunkStore } from "../../src/adapters/mongo/chunk-store.ts";
import { ensureIndexes } from "../../src/adapters/mongo/indexes.ts";
import { MongoManifestStore } from "../../src/adapters/mongo/manifest-store.ts";
import { MongoSessionStore } from "../../src/adapters/mongo/session-store.ts";
import { MongoTileStore } from "../../src/adapters/mongo/tile-store.ts";
import type { SessionId } from "../../src/core/ids.ts";
import type {
  BlobPresence,
  BlobStore,
  ChunkStore,
  ManifestStore,
  SessionListing,
  SessionStore,
  TileRepair,
  TileStore,
} from "../../src/pipeline/ports.ts";
import { MemoryBlobStore } from "../support/memory/blob-store.ts";
import { MemoryChunkStore } from "../support/memory/chunk-store.ts";
import { MemoryManifestStore } from "../support/memory/manifest-store.ts";
import { MemorySessionStore } from "../support/memory/session-store.ts";
import { MemoryTileStore } from "../support/memory/tile-store.ts";
import type { TestServers } from "../support/servers.ts";

export interface Stores {
  readonly sessions: SessionStore & SessionListing;
  readonly chunks: ChunkStore;
  readonly blobs: BlobStore & BlobPresence;
  readonly tiles: TileStore & TileRepair;
  readonly manifests: ManifestStore;
}

/** Two workers on the same data: with MongoDB each has a connection and gathers its own commands. */
export interface StoresOfTwoWorkers {
  readonly first: () => Stores;
  readonly second: () => Stores;
  /** A session id that no other test uses. */
  readonly session: () => SessionId;
}

/** Runs the suite once in memory and once over the wire: a port is what both do alike. */
export function describeStores(servers: TestServers, suite: (stores: StoresOfTwoWorkers) => void): void {
  describe("in memory", () => {
    const stores = memoryStores();
    suite({ first: () => stores, second: () => stores, session: sessionNames("mem") });
  });
  describe("over MongoDB", () => {
    const connections: MongoConnection[] = [];
    const stores: Stores[] = [];
    beforeAll(async () => {
      for (const appName of ["conformance-1", "conformance-2"]) {
        const connection = await connectMongo({ url: servers.mongodbUrl, appName });
        connections.push(connection);
        await ensureIndexes(connection);
        stores.push(mongoStores(connection));
      }
    });
    afterAll(async () => {
      for (const connection of connections) await connection.close();
    });
    suite({ first: () => nth(stores, 0), second: () => nth(stores, 1), session: sessionNames("mdb") });
  });
}

export function mongoStores(connection: MongoConnection): Stores {
  return {
    sessions: new MongoSessionStore(connection),
    chunks: new MongoChunkStore(connection),
    blobs: new MongoBlobStore(connection),
    tiles: new MongoTileStore(connection),
    manifests: new MongoManifestStore(connection),
  };
}

function memoryStores(): Stores {
  const chunks = new MemoryChunkStore();
  return {
    sessions: new MemorySessionStore(),
    chunks,
    blobs: new MemoryBlobStore(chunks),
    tiles: new MemoryTileStore(),
    manifests: new MemoryManifestStore(),
  };
}

function sessionNames(prefix: string): () => SessionId {
  let count = 0;
  return () => `${prefix}-${String((count += 1)).padStart(3, "0")}` as SessionId;
}

function nth(stores: readonly Stores[], at: number): Stores {
  const found = stores[at];
  if (found === undefined) throw new Error("the stores are opened before each suite");
  return found;
}
