import { afterEach, describe, expect, test } from "vitest";
import { type AnchoringClient, createAnchoringClient } from "../../src/adapters/http/anchoring-client.ts";
import { type SessionId, sessionId } from "../../src/core/ids.ts";
import { anchorIdempotencyKey, type AnchorRequest } from "../../src/pipeline/anchoring-engine.ts";
import {
  clientOptions,
  cutShort,
  type FakeService,
  json,
  type Reply,
  reset,
  silence,
  startFakeService,
  text,
} from "../support/fake-service.ts";

const SESSION = sessionId("0c2f6f6e-3a57-4c11-9d5e-0f4c6a7b8d90");
const ROOT = "ab".repeat(32);
const OTHER_ROOT = "cd".repeat(32);
const KEY = anchorIdempotencyKey(SESSION, 3, ROOT);
const REQUEST: AnchorRequest = {
  sessionId: SESSION,
  merkleRoot: ROOT,
  chunkCount: 3,
  timestamp: "2026-01-02T03:04:05.000Z",
  manifestData: { manifest_id: "m", chunk_count: 3 },
  metadata: { room: "blue" },
};
/** As the older engine answers. */
const ACCEPTED = {
  anchoring_id: "a-1",
  status: "pending",
  submitted_at: "2026-01-02T03:04:06",
  estimated_confirmation_time: null,
};
const CONFIRMED = {
  session_id: SESSION,
  anchoring_id: "a-1",
  status: "confirmed",
  submitted_at: "2026-01-02T03:04:06",
  confirmed_at: "2026-01-02T03:05:06",
  block_height: 12345,
  transaction_id: "tx-1",
  merkle_root: ROOT,
};
const IN_BLOCK = { kind: "confirmed", transaction: "tx-1", block: 12345, merkleRoot: ROOT };

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function engine(
  ...replies: readonly Reply[]
): Promise<FakeService & { readonly client: AnchoringClient }> {
  const fake = await startFakeService();
  fake.answer(...replies);
  const client = createAnchoringClient({ ...clientOptions(fake.url), timeoutMs: 200 });
  open.push(fake, client);
  return Object.assign(fake, { client });
}

const withCode = (code: string) => expect.objectContaining({ name: "LucidError", code });

describe("the idempotency key", () => {
  test("is a pure function of session, size and root, and fits a header", () => {
    expect(anchorIdempotencyKey(SESSION, 3, ROOT)).toBe(KEY);
    const keys = [
      KEY,
      anchorIdempotencyKey(sessionId("other"), 3, ROOT),
      anchorIdempotencyKey(SESSION, 4, ROOT),
      anchorIdempotencyKey(SESSION, 3, OTHER_ROOT),
    ];
    expect(new Set(keys).size).toBe(keys.length);
    const longest = anchorIdempotencyKey(sessionId("s".repeat(100)), 2 ** 32, ROOT);
    expect(longest).toMatch(/^[A-Za-z0-9_.-]{176}$/);
  });
});

describe("submit", () => {
  test("posts what contract §9 says, under the key", async () => {
    const { client, requests } = await engine(json(202, ACCEPTED));
    expect(await client.submit(REQUEST, KEY)).toEqual({ kind: "accepted", anchoringId: "a-1" });
    expect(requests[0]).toMatchObject({ method: "POST", target: "/api/v1/anchoring/session" });
    expect(requests[0]?.headers["idempotency-key"]).toBe(KEY);
    expect(JSON.parse(requests[0]?.body ?? "")).toEqual({
      session_id: SESSION,
      merkle_root: ROOT,
      chunk_count: 3,
      timestamp: "2026-01-02T03:04:05.000Z",
      manifest_data: { manifest_id: "m", chunk_count: 3 },
      metadata: { room: "blue" },
    });
  });

  test.each([200, 201, 202])("takes status %i with `processing` for accepted", async (status) => {
    const { client } = await engine(json(status, { ...ACCEPTED, status: "PROCESSING" }));
    expect(await client.submit(REQUEST, KEY)).toEqual({ kind: "accepted", anchoringId: "a-1" });
  });

  test.each([200, 409])("tells an anchoring that is confirmed already, with status %i", async (status) => {
    const { client } = await engine(json(status, CONFIRMED));
    expect(await client.submit(REQUEST, KEY)).toEqual(IN_BLOCK);
  });

  test.each([
    ["words", json(409, { detail: "already submitted" })],
    ["an empty body", text(409, "")],
  ])("takes 409 with %s for accepted: `status` then tells", async (_name, reply) => {
    const { client, requests } = await engine(reply);
    expect(await client.submit(REQUEST, KEY)).toEqual({ kind: "accepted" });
    expect(requests).toHaveLength(1);
  });

  test.each([
    ["a reset connection", reset],
    ["an answer cut short", cutShort],
    ["no answer in time", silence],
    ["status 500", text(500, "Internal Server Error")],
  ])("repeats under the same key after %s", async (_name, trouble) => {
    const { client, requests } = await engine(trouble, json(202, ACCEPTED));
    expect(await client.submit(REQUEST, KEY)).toEqual({ kind: "accepted", anchoringId: "a-1" });
    expect(requests.map(({ headers }) => headers["idempotency-key"])).toEqual([KEY, KEY]);
    expect(requests[0]?.body).toBe(requests[1]?.body);
  });

  test("is SERVICE_UNAVAILABLE while the engine is down, and works again after", async () => {
    const down = await engine(text(503, ""));
    const { client, requests } = down;
    for (let hour = 0; hour < 3; hour++) {
      await expect(client.submit(REQUEST, KEY)).rejects.toEqual(withCode("SERVICE_UNAVAILABLE"));
    }
    down.answer(json(202, ACCEPTED));
    expect(await client.submit(REQUEST, KEY)).toMatchObject({ kind: "accepted" });
    expect(new Set(requests.map(({ headers }) => headers["idempotency-key"]))).toEqual(new Set([KEY]));
  });

  test("is SERVICE_REJECTED at once with 422", async () => {
    const { client, requests } = await engine(json(422, { detail: [{ loc: ["body", "session_id"] }] }));
    await expect(client.submit(REQUEST, KEY)).rejects.toEqual(withCode("SERVICE_REJECTED"));
    expect(requests).toHaveLength(1);
  });

  test.each([
    ["says that it failed", { ...ACCEPTED, status: "failed" }],
    ["has another root pending", { ...ACCEPTED, merkle_root: OTHER_ROOT }],
    ["has another root in a block", { ...CONFIRMED, merkle_root: OTHER_ROOT }],
  ])("is SERVICE_REJECTED when the engine %s", async (_name, body) => {
    const { client } = await engine(json(200, body));
    await expect(client.submit(REQUEST, KEY)).rejects.toEqual(withCode("SERVICE_REJECTED"));
  });

  test.each([
    ["no JSON", text(202, "<html>")],
    ["an empty body", text(202, "")],
    ["another form", json(202, { ok: true })],
    ["a bare text", json(202, "pending")],
    ["null", json(202, null)],
    ["no anchoring_id", json(202, { status: "pending" })],
    ["an empty anchoring_id", json(202, { anchoring_id: "", status: "pending" })],
    ["an anchoring_id that is a number", json(202, { ...ACCEPTED, anchoring_id: 7 })],
    ["an anchoring_id beyond the limit", json(202, { ...ACCEPTED, anchoring_id: "x".repeat(257) })],
    ["an anchoring_id with a line break", json(202, { ...ACCEPTED, anchoring_id: "a\nb" })],
    ["no status", json(202, { anchoring_id: "a-1" })],
    ["an unknown status", json(202, { ...ACCEPTED, status: "perhaps" })],
    ["a status that is an inherited name", json(202, { ...ACCEPTED, status: "constructor" })],
    ["another session", json(202, { ...ACCEPTED, session_id: "other" })],
  ])("is SERVICE_ANSWER_INVALID when the answer holds %s", async (_name, reply) => {
    const { client } = await engine(reply);
    await expect(client.submit(REQUEST, KEY)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });
});

describe("status", () => {
  test("asks for the session, and 404 is unknown", async () => {
    const { client, requests } = await engine(json(404, { detail: "Session anchoring not found" }));
    expect(await client.status(SESSION)).toEqual({ kind: "unknown" });
    expect(requests[0]).toMatchObject({ method: "GET", target: `/api/v1/anchoring/session/${SESSION}` });
  });

  test.each(["pending", "processing", "submitted", "queued"])("%s is pending", async (status) => {
    const { client } = await engine(
      json(200, { ...CONFIRMED, status, transaction_id: null, block_height: null }),
    );
    expect(await client.status(SESSION)).toEqual({ kind: "pending" });
  });

  test("goes from pending to confirmed", async () => {
    const { client } = await engine(json(200, { ...ACCEPTED, session_id: SESSION }), json(200, CONFIRMED));
    expect(await client.status(SESSION)).toEqual({ kind: "pending" });
    expect(await client.status(SESSION)).toEqual(IN_BLOCK);
  });

  test("takes a placeholder for the root as the older engine gives one, and says nothing about it", async () => {
    const { client } = await engine(json(200, { ...CONFIRMED, merkle_root: "merkle_root_123" }));
    expect(await client.status(SESSION)).toEqual({ kind: "confirmed", transaction: "tx-1", block: 12345 });
  });

  test("tells the root that the engine has in lowercase, also when it is another", async () => {
    const { client } = await engine(json(200, { ...CONFIRMED, merkle_root: OTHER_ROOT.toUpperCase() }));
    expect(await client.status(SESSION)).toMatchObject({ kind: "confirmed", merkleRoot: OTHER_ROOT });
  });

  test.each(["failed", "rejected", "reverted"])("%s is failed", async (status) => {
    const { client } = await engine(json(200, { ...CONFIRMED, status }));
    expect(await client.status(SESSION)).toEqual({ kind: "failed" });
  });

  test.each([
    [{ transaction_id: "a", tx_hash: "b", anchor_txid: "c", transaction_hash: "d" }, "a"],
    [{ transaction_id: null, tx_hash: "b", anchor_txid: "c", transaction_hash: "d" }, "b"],
    [{ transaction_id: "", anchor_txid: "c", transaction_hash: "d" }, "c"],
    [{ transaction_hash: "d" }, "d"],
  ])("the transaction of %j is %s", async (fields, transaction) => {
    const { client } = await engine(json(200, { status: "confirmed", ...fields }));
    expect(await client.status(SESSION)).toEqual({ kind: "confirmed", transaction });
  });

  test.each([
    [{ block_height: 1, block_number: 2 }, 1],
    [{ block_height: 0, block_number: 2 }, 0],
    [{ block_height: null, block_number: 2 }, 2],
    [{ block_number: 2 }, 2],
  ])("the block of %j is %i", async (fields, block) => {
    const { client } = await engine(json(200, { status: "anchored", transaction_id: "t", ...fields }));
    expect(await client.status(SESSION)).toEqual({ kind: "confirmed", transaction: "t", block });
  });

  test.each([
    ["confirmed without a transaction", { ...CONFIRMED, transaction_id: null }],
    ["a transaction that is a number", { ...CONFIRMED, transaction_id: 5 }],
    ["a block that is a text", { ...CONFIRMED, block_height: "12345" }],
    ["a block below 0", { ...CONFIRMED, block_height: -1 }],
    ["a block with a fraction", { ...CONFIRMED, block_height: 1.5 }],
    ["a block beyond exact integers", { ...CONFIRMED, block_height: 2 ** 60 }],
    ["another session", { ...CONFIRMED, session_id: "other" }],
    ["a list", [CONFIRMED]],
  ])("is SERVICE_ANSWER_INVALID with %s", async (_name, body) => {
    const { client } = await engine(json(200, body));
    await expect(client.status(SESSION)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });

  test("refuses what isn't a session id before anything is sent", async () => {
    const { client, requests } = await engine(json(200, CONFIRMED));
    await expect(client.status("../verify" as SessionId)).rejects.toEqual(withCode("INTERNAL"));
    expect(requests).toHaveLength(0);
  });

  test("ends with the signal", async () => {
    const { client } = await engine(silence);
    const call = client.status(SESSION, AbortSignal.timeout(20));
    await expect(call).rejects.toEqual(withCode("SHUTTING_DOWN"));
  });
});
