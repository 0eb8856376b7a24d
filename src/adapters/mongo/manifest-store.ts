import type { Collection } from "mongodb";
import { LucidError } from "../../core/errors.ts";
import type { SessionId } from "../../core/ids.ts";
import type { ManifestType } from "../../core/manifest/names.ts";
import type { ManifestKey, ManifestStore } from "../../pipeline/ports.ts";
import type { ManifestRecord, ManifestStatus } from "../../schema/manifest.ts";
import type { MongoConnection } from "./connection.ts";
import { COLLECTIONS } from "./documents.ts";

interface ManifestDocument {
  readonly _id: string;
  readonly session_id: string;
  readonly type: ManifestType;
  readonly status: ManifestStatus;
  readonly text?: string;
  readonly reason?: string;
}

/** What the statuses may replace: those that are final are never taken back. */
const REPLACEABLE: Readonly<Record<ManifestStatus, readonly ManifestStatus[]>> = {
  pending: ["pending", "generating", "error"],
  generating: ["pending", "generating", "error"],
  error: ["pending", "generating", "error"],
  generated: ["pending", "generating", "error", "generated"],
  anchored: ["pending", "generating", "error", "generated", "anchored"],
};

export class MongoManifestStore implements ManifestStore {
  readonly #connection: MongoConnection;

  constructor(connection: MongoConnection) {
    this.#connection = connection;
  }

  get #manifests(): Collection<ManifestDocument> {
    return this.#connection.db.collection<ManifestDocument>(COLLECTIONS.manifests);
  }

  async find(id: string): Promise<ManifestRecord | undefined> {
    const document = await this.#connection.read((options) => this.#manifests.findOne({ _id: id }, options));
    if (document === null) return undefined;
    const { session_id, type, status, text, reason } = document;
    return { id, sessionId: session_id as SessionId, type, status, text, reason };
  }

  async mark(manifest: ManifestKey, status: ManifestStatus, reason?: string): Promise<void> {
    await this.#upsert(
      manifest,
      { status: { $in: [...REPLACEABLE[status]] } },
      {
        $set: { type: manifest.type, status, ...(reason === undefined ? {} : { reason }) },
        ...(reason === undefined ? { $unset: { reason: "" } } : {}),
      },
    );
  }

  async publish(manifest: ManifestKey, text: string): Promise<string> {
    // `null` matches a document without a text; with one, the upsert's insert meets the `_id` and changes nothing.
    await this.#upsert(
      manifest,
      { text: null },
      {
        $set: { type: manifest.type, text },
        $setOnInsert: { status: "generating" },
      },
    );
    const stored = await this.find(manifest.id);
    if (stored?.text === undefined) {
      throw new LucidError(
        "INTERNAL",
        "a manifest was stored and can't be read; check that nothing removes manifests",
      );
    }
    return stored.text;
  }

  /**
   * Where the filter fails on a document that is there, the insert is a duplicate: it stays as it is. A first duplicate may
   * also be another worker's insert in the same moment, which the filter would take: so it is asked once more.
   */
  async #upsert(manifest: ManifestKey, filter: object, update: object): Promise<void> {
    const command = {
      update: COLLECTIONS.manifests,
      updates: [
        { q: { _id: manifest.id, session_id: manifest.sessionId, ...filter }, u: update, upsert: true },
      ],
    };
    const { duplicates } = await this.#connection.write(command);
    if (duplicates.length > 0) await this.#connection.write(command);
  }
}
