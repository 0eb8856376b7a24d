import { BSON, Binary } from "mongodb";
import { describe, expect, test } from "vitest";
import {
  blobDocument,
  blobEntry,
  blobOwner,
  chunkDocument,
  chunkDocumentId,
  chunkRecord,
  newSessionDocument,
  type SessionDocument,
  sessionRecord,
  sessionUpdate,
  tileDocumentId,
  tileFields,
} from "../../src/adapters/mongo/documents.ts";
import type { LeafIndex, SessionId } from "../../src/core/ids.ts";
import { bytesOf, chunk, newSession, tile, treeHead } from "../support/memory/records.ts";

const id = "sess-1" as SessionId;
const key = (index: number) => ({ sessionId: id, index: index as LeafIndex });
/** As the driver reads with promoteBuffers. */
const overTheWire = <Document>(document: Document) =>
  BSON.deserialize(BSON.serialize(document as BSON.Document), { promoteBuffers: true }) as Document;
const rawTypes = (document: object) => BSON.deserialize(BSON.serialize(document), { promoteValues: false });

describe("ids", () => {
  test("ids are those of contract §4", () => {
    expect(chunkDocumentId(key(7))).toBe("sess-1:7");
    expect(chunkDocumentId(key(2 ** 32 - 1))).toBe("sess-1:4294967295");
    expect(tileDocumentId(id, 3, 12)).toBe("sess-1:3:12");
  });

  test("a blob id names its chunk", () => {
    expect(blobOwner("sess-1:7:a1")).toEqual(key(7));
    expect(blobOwner("sess-1:4294967295:x:y")).toEqual(key(4294967295));
  });

  test.each([
    "",
    "sess-1",
    "sess-1:7",
    "sess-1:7:",
    "sess-1:07:a",
    "sess-1:-1:a",
    "sess-1:1e3:a",
    ":7:a",
    "a b:7:a",
    "sess-1:99999999999:a",
  ])("%j is no blob id", (blobId) => {
    expect(blobOwner(blobId)).toBeUndefined();
    expect(blobEntry(blobId, new Map())).toBeUndefined();
  });

  test("a blob entry carries the committed blob of its chunk", () => {
    const committed = new Map([["sess-1:7", "sess-1:7:a1"]]);
    expect(blobEntry("sess-1:7:b2", committed)?.committedBlobId).toBe("sess-1:7:a1");
    expect(blobEntry("sess-1:8:b2", committed)?.committedBlobId).toBeUndefined();
  });
});

describe("sessions", () => {
  test("a new session is open, empty, at version 0, of format 1", () => {
    expect(newSessionDocument(newSession(id))).toEqual({
      _id: "sess-1",
      format: 1,
      state: "open",
      hash_algorithm: "blake3",
      tree: { size: 0, frontier: [], root: null, version: 0 },
      totals: { original_bytes: 0, stored_bytes: 0 },
      room_counted: false,
      expected_count: null,
      count_confirmed: false,
      finalize: null,
      keys: [{ key_version: 1, kek_version: 1, wrapped: bytesOf(7, 60) }],
      created_at: newSession(id).createdAt,
      sealed_at: null,
      sealed_event: null,
      checkpoint: null,
      anchor: null,
      anchored_event: null,
      closed: false,
    });
  });

  test("a record that went over the wire has the same fields", () => {
    const record = sessionRecord(overTheWire(newSessionDocument(newSession(id))));
    expect(record).toMatchObject({
      id,
      version: 0,
      state: "open",
      expectedCount: undefined,
      sealedAt: undefined,
    });
    expect(record.tree.root).toBeUndefined();
    expect(record.keys[0]?.wrapped).toBeInstanceOf(Uint8Array);
    expect([...(record.keys[0]?.wrapped ?? [])]).toEqual([...bytesOf(7, 60)]);
  });

  test("every change raises the version by one", () => {
    const changes = [
      { kind: "grow", tree: treeHead(3), addedOriginalBytes: 5, addedStoredBytes: 4 },
      { kind: "propose-count", count: 3, finalize: { manifestType: "session_data" } },
      { kind: "confirm-count" },
      { kind: "withdraw-count" },
      { kind: "seal", at: new Date(0) },
      { kind: "sealed-event-sent" },
    ] as const;
    for (const change of changes) expect(sessionUpdate(change).$inc).toMatchObject({ "tree.version": 1 });
  });

  test("growing keeps the empty root as null, because undefined would be left out", () => {
    const tree = { ...treeHead(0), frontier: [], root: undefined };
    const update = sessionUpdate({ kind: "grow", tree, addedOriginalBytes: 0, addedStoredBytes: 0 });
    expect(update.$set).toEqual({ "tree.size": 0, "tree.frontier": [], "tree.root": null });
  });

  test("a document of another format is refused", () => {
    const document: SessionDocument = { ...newSessionDocument(newSession(id)), format: 2 };
    expect(() => sessionRecord(document)).toThrow("a format this version doesn't know");
    expect(() => chunkRecord({ ...chunkDocument(chunk(id, 0)), format: 0 })).toThrow("a format");
  });
});

describe("chunks", () => {
  test("a chunk document has the names of contract §4", () => {
    expect(chunkDocument(chunk(id, 7))).toMatchObject({
      _id: "sess-1:7",
      format: 1,
      session_id: "sess-1",
      chunk_id: "sess-1-chunk-000007",
      chunk_index: 7,
      blob_id: "sess-1:7:a1",
      event: { id: "sess-1.chunk.7", state: "pending" },
    });
  });

  test("a chunk that went over the wire is the chunk that was stored", () => {
    const stored = chunk(id, 2 ** 32 - 1, {
      originalBytes: 2 ** 40,
      metadata: `{"$where":"x","__proto__":1}`,
      recordedAt: "2026-01-01T00:00:00Z",
    });
    const read = chunkRecord(overTheWire(chunkDocument(stored)));
    for (const [name, value] of Object.entries(stored)) {
      const found = read[name as keyof typeof read];
      expect(found instanceof Uint8Array ? [...found] : found, name).toEqual(
        value instanceof Uint8Array ? [...value] : value,
      );
    }
  });

  test("absent optional fields are left out of the document", () => {
    expect(chunkDocument(chunk(id, 0))).not.toHaveProperty("metadata");
    expect(chunkDocument(chunk(id, 0))).not.toHaveProperty("recorded_at");
  });
});

describe("bytes and numbers", () => {
  test("bytes are BSON Binary of subtype 0", () => {
    const { bytes } = rawTypes(blobDocument("sess-1:0:a", key(0), bytesOf(1, 40)));
    expect(bytes).toBeInstanceOf(Binary);
    expect(bytes).toMatchObject({ sub_type: 0 });
    expect(rawTypes(tileFields(tile(1, 0, 2)))["hashes"]).toMatchObject({ sub_type: 0 });
  });

  test("integers beyond 2^31 are doubles and exact, never cut to 32 bits", () => {
    const document = chunkDocument(chunk(id, 2 ** 32 - 1, { originalBytes: 2 ** 53 - 1 }));
    expect(rawTypes(document)["chunk_index"]).toMatchObject({ value: 2 ** 32 - 1 });
    expect(overTheWire(document).original_bytes).toBe(2 ** 53 - 1);
  });

  test("bytes read with promoteBuffers are a view of the reply, not a copy", () => {
    const reply = BSON.serialize(blobDocument("sess-1:0:a", key(0), bytesOf(1, 100_000)));
    const { bytes } = BSON.deserialize(reply, { promoteBuffers: true });
    expect((bytes as Uint8Array).buffer).toBe(reply.buffer);
  });
});
