import { MongoBlobStore } from "../adapters/mongo/blob-store.ts";
import { MongoChunkStore } from "../adapters/mongo/chunk-store.ts";
import { connectMongo } from "../adapters/mongo/connection.ts";
import { MongoManifestStore } from "../adapters/mongo/manifest-store.ts";
import { MongoServiceStateStore } from "../adapters/mongo/service-state-store.ts";
import { MongoSessionStore } from "../adapters/mongo/session-store.ts";
import { MongoTileStore } from "../adapters/mongo/tile-store.ts";
import { SERVICE } from "../version.ts";

export interface OpenStores {
  readonly sessions: MongoSessionStore;
  readonly chunks: MongoChunkStore;
  readonly blobs: MongoBlobStore;
  readonly tiles: MongoTileStore;
  readonly manifests: MongoManifestStore;
  /** For what belongs to the database; no command reads what belongs to an installation's queues. */
  readonly serviceState: MongoServiceStateStore;
  close(): Promise<void>;
}

/** The stores for a command; fails within seconds when MongoDB doesn't answer. */
export async function openStores(mongodbUrl: string): Promise<OpenStores> {
  const mongo = await connectMongo({ url: mongodbUrl, appName: `${SERVICE} command` });
  return {
    sessions: new MongoSessionStore(mongo),
    chunks: new MongoChunkStore(mongo),
    blobs: new MongoBlobStore(mongo),
    tiles: new MongoTileStore(mongo),
    manifests: new MongoManifestStore(mongo),
    serviceState: new MongoServiceStateStore(mongo, ""),
    close: () => mongo.close(),
  };
}
