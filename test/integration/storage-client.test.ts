import { afterEach, describe, expect, test } from "vitest";
import {
  type ChunkToStore,
  createStorageClient,
  type StorageClient,
} from "../../src/adapters/http/storage-client.ts";
import { type ChunkId, chunkId, leafIndex, type SessionId, sessionId } from "../../src/core/ids.ts";
import {
  clientOptions,
  cutShort,
  type FakeService,
  json,
  type Reply,
  reset,
  startFakeService,
  text,
} from "../support/fake-service.ts";

const SESSION = sessionId("sess-1");
const CHUNK = chunkId("sess-1-chunk-000007");
const BLOB = Uint8Array.from({ length: 1000 }, (_none, at) => at % 251);
const SHA256 = "12".repeat(32);
const TO_STORE: ChunkToStore = {
  sessionId: SESSION,
  chunkId: CHUNK,
  index: leafIndex(7),
  blob: BLOB,
  sha256: SHA256,
  timestamp: "2026-01-02T03:04:05.000Z",
};
const BYTES_MAX = 2_000_000;

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function storage(
  ...replies: readonly Reply[]
): Promise<FakeService & { readonly client: StorageClient }> {
  const fake = await startFakeService();
  fake.answer(...replies);
  const client = createStorageClient(clientOptions(fake.url));
  open.push(fake, client);
  return Object.assign(fake, { client });
}

const withCode = (code: string) => expect.objectContaining({ name: "LucidError", code });
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

describe("storeChunk", () => {
  test("posts the sealed bytes in base64 with their metadata", async () => {
    const { client, requests } = await storage(json(201, { chunk_id: CHUNK }));
    const metadata = { codec: "zstd", chunk_id: "can't replace it" };
    expect(await client.storeChunk({ ...TO_STORE, metadata })).toBe("stored");
    expect(requests[0]).toMatchObject({ method: "POST", target: "/sessions/sess-1/chunks" });
    expect(requests[0]?.headers["idempotency-key"]).toBe(`sess-1.7.${SHA256}`);
    expect(JSON.parse(requests[0]?.body ?? "")).toEqual({
      chunk_data: base64(BLOB),
      chunk_metadata: {
        codec: "zstd",
        chunk_id: CHUNK,
        chunk_index: 7,
        hash_sha256: SHA256,
        timestamp: "2026-01-02T03:04:05.000Z",
      },
    });
  });

  test.each([
    ["an object", json(200, { status: "ok" })],
    ["no content", text(204, "")],
  ])("takes %s for stored", async (_name, reply) => {
    expect(await (await storage(reply)).client.storeChunk(TO_STORE)).toBe("stored");
  });

  test("tells 409 apart: storage has a chunk of that id", async () => {
    expect(await (await storage(json(409, {}))).client.storeChunk(TO_STORE)).toBe("exists");
  });

  test.each([
    ["a web page", text(200, "<html>It works!</html>")],
    ["nothing", text(200, "")],
    ["another chunk", json(200, { chunk_id: "other" })],
    ["another session", json(200, { session_id: "other" })],
  ])("doesn't take 200 with %s for stored", async (_name, reply) => {
    const { client } = await storage(reply);
    await expect(client.storeChunk(TO_STORE)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });

  test("repeats the same chunk under the same key after a lost answer", async () => {
    const { client, requests } = await storage(reset, text(503, ""), json(200, {}));
    expect(await client.storeChunk(TO_STORE)).toBe("stored");
    const sent = requests.map(({ body, headers }) => JSON.stringify([headers["idempotency-key"], body]));
    expect(new Set(sent).size).toBe(1);
    expect(requests).toHaveLength(3);
  });

  test.each([400, 413, 422])("is SERVICE_REJECTED at once with status %i", async (status) => {
    const { client, requests } = await storage(text(status, ""));
    await expect(client.storeChunk(TO_STORE)).rejects.toEqual(withCode("SERVICE_REJECTED"));
    expect(requests).toHaveLength(1);
  });
});

describe("getChunk", () => {
  test.each([
    ["data", json(200, { data: base64(BLOB) })],
    ["chunk_data", json(200, { chunk_data: base64(BLOB), chunk_metadata: {} })],
    ["raw bytes", text(200, BLOB, { "Content-Type": "application/octet-stream" })],
  ])("reads %s", async (_name, reply) => {
    const { client, requests } = await storage(reply);
    expect(Buffer.from((await client.getChunk(SESSION, CHUNK, BYTES_MAX)) ?? [])).toEqual(Buffer.from(BLOB));
    expect(requests[0]).toMatchObject({ method: "GET", target: `/sessions/sess-1/chunks/${CHUNK}` });
  });

  test("reads chunks larger than the limit of other answers", async () => {
    const large = Buffer.alloc(BYTES_MAX, 7);
    const { client } = await storage(json(200, { data: base64(large) }));
    expect((await client.getChunk(SESSION, CHUNK, BYTES_MAX))?.byteLength).toBe(BYTES_MAX);
  });

  test("tells 404 as undefined", async () => {
    const { client } = await storage(json(404, {}));
    expect(await client.getChunk(SESSION, CHUNK, BYTES_MAX)).toBeUndefined();
  });

  test.each([
    ["more bytes than allowed", text(200, Buffer.alloc(101), { "Content-Type": "application/octet-stream" })],
    ["more bytes in base64 than allowed", json(200, { data: base64(Buffer.alloc(101)) })],
    [
      "far more than allowed",
      text(200, Buffer.alloc(1_000_000), { "Content-Type": "application/octet-stream" }),
    ],
    ["base64 with a line break", json(200, { data: "AAAA\nAAAA" })],
    ["base64 of the URL alphabet", json(200, { data: "-_-_" })],
    ["an empty text", json(200, { data: "" })],
    ["no bytes", json(200, { chunk_metadata: {} })],
    ["a number", json(200, { data: 5 })],
    ["a web page", text(200, "<html>", { "Content-Type": "text/html" })],
  ])("is SERVICE_ANSWER_INVALID with %s", async (_name, reply) => {
    const { client } = await storage(reply);
    await expect(client.getChunk(SESSION, CHUNK, 100)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });

  test("reads again what broke off", async () => {
    const { client } = await storage(cutShort, json(200, { data: base64(BLOB) }));
    expect((await client.getChunk(SESSION, CHUNK, BYTES_MAX))?.byteLength).toBe(BLOB.byteLength);
  });
});

describe("listChunks", () => {
  test("asks for a page and reads what is known of each chunk", async () => {
    const chunks = [
      { chunk_id: CHUNK, chunk_index: 7, hash_sha256: SHA256.toUpperCase(), timestamp: "t", size: 5 },
      { chunk_id: "other", chunk_index: null },
    ];
    const { client, requests } = await storage(json(200, { chunks, total: 2 }));
    expect(await client.listChunks(SESSION, { limit: 9999, offset: 20 })).toEqual([
      { chunkId: CHUNK, index: 7, sha256: SHA256, timestamp: "t" },
      { chunkId: "other", index: undefined, sha256: undefined, timestamp: undefined },
    ]);
    expect(requests[0]?.target).toBe("/sessions/sess-1/chunks?limit=1000&offset=20");
  });

  test("is empty for a session that storage doesn't know", async () => {
    const { client } = await storage(json(404, {}));
    expect(await client.listChunks(SESSION, { limit: 10, offset: 0 })).toEqual([]);
  });

  test.each([
    ["no list", {}],
    ["a chunk without an id", { chunks: [{}] }],
    ["a hostile id", { chunks: [{ chunk_id: "../../etc" }] }],
    ["an index that is a text", { chunks: [{ chunk_id: "a", chunk_index: "1" }] }],
  ])("is SERVICE_ANSWER_INVALID with %s", async (_name, body) => {
    const { client } = await storage(json(200, body));
    const listing = client.listChunks(SESSION, { limit: 10, offset: 0 });
    await expect(listing).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });
});

describe("deleteChunk", () => {
  test("deletes, and tells what wasn't there", async () => {
    const { client, requests } = await storage(text(204, ""), json(404, {}));
    expect(await client.deleteChunk(SESSION, CHUNK)).toBe("deleted");
    expect(await client.deleteChunk(SESSION, CHUNK)).toBe("absent");
    expect(requests[0]).toMatchObject({ method: "DELETE", target: `/sessions/sess-1/chunks/${CHUNK}` });
  });
});

describe("every call", () => {
  const BAD = "a/../b";

  test("refuses an id that isn't one before anything is sent", async () => {
    const { client, requests } = await storage(json(200, {}));
    const session = BAD as SessionId;
    const chunk = BAD as ChunkId;
    const calls = [
      client.storeChunk({ ...TO_STORE, sessionId: session }),
      client.storeChunk({ ...TO_STORE, chunkId: chunk }),
      client.getChunk(session, CHUNK, 10),
      client.getChunk(SESSION, chunk, 10),
      client.listChunks(session, { limit: 1, offset: 0 }),
      client.deleteChunk(SESSION, chunk),
    ];
    for (const call of calls) await expect(call).rejects.toEqual(withCode("JOB_INVALID"));
    expect(requests).toHaveLength(0);
  });

  test("healthCheck tells whether storage answers", async () => {
    const { client } = await storage(json(200, {}), text(500, ""));
    expect((await client.healthCheck()).ok).toBe(true);
    expect((await client.healthCheck()).ok).toBe(false);
  });
});
