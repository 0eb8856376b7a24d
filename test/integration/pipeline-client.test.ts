import { afterEach, describe, expect, test } from "vitest";
import { createPipelineClient, type PipelineClient } from "../../src/adapters/http/pipeline-client.ts";
import { chunkId, leafIndex, type SessionId, sessionId } from "../../src/core/ids.ts";
import {
  clientOptions,
  type FakeService,
  json,
  type Reply,
  startFakeService,
  text,
} from "../support/fake-service.ts";

const SESSION = sessionId("sess-1");

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function pipeline(
  ...replies: readonly Reply[]
): Promise<FakeService & { readonly client: PipelineClient }> {
  const fake = await startFakeService();
  fake.answer(...replies);
  const client = createPipelineClient(clientOptions(fake.url));
  open.push(fake, client);
  return Object.assign(fake, { client });
}

const withCode = (code: string) => expect.objectContaining({ name: "LucidError", code });

describe("the pipeline client", () => {
  test("creates, and tells a pipeline that is there already", async () => {
    const { client, requests } = await pipeline(json(201, { session_id: SESSION }), json(409, {}));
    expect(await client.create(SESSION, { room: "blue" })).toBe("created");
    expect(await client.create(SESSION, {})).toBe("exists");
    expect(requests[0]).toMatchObject({ method: "POST", target: "/pipelines?session_id=sess-1" });
    expect(JSON.parse(requests[0]?.body ?? "")).toEqual({ session_id: SESSION, metadata: { room: "blue" } });
  });

  test("starts and stops", async () => {
    const { client, requests } = await pipeline(json(200, {}), text(204, ""));
    await client.start(SESSION);
    await client.stop(SESSION);
    expect(requests.map(({ method, target, body }) => `${method} ${target} ${body}`)).toEqual([
      "POST /pipelines/sess-1/start ",
      "POST /pipelines/sess-1/stop ",
    ]);
    expect(requests[0]?.headers["content-length"]).toBe("0");
  });

  test("tells the status in the pipeline's own word, and 404 as unknown", async () => {
    const { client, requests } = await pipeline(
      json(200, { session_id: SESSION, status: "active", stages: {} }),
      json(200, { state: "stopped" }),
      json(404, {}),
    );
    expect(await client.status(SESSION)).toEqual({ kind: "known", state: "active" });
    expect(await client.status(SESSION)).toEqual({ kind: "known", state: "stopped" });
    expect(await client.status(SESSION)).toEqual({ kind: "unknown" });
    expect(requests[0]).toMatchObject({ method: "GET", target: "/pipelines/sess-1/status" });
  });

  test("sends a chunk in base64", async () => {
    const { client, requests } = await pipeline(json(202, {}));
    const chunk = {
      sessionId: SESSION,
      chunkId: chunkId("c-1"),
      index: leafIndex(1),
      bytes: Buffer.from("abc"),
    };
    await client.sendChunk({ ...chunk, metadata: { fps: 30 } });
    expect(requests[0]).toMatchObject({ method: "POST", target: "/pipelines/sess-1/chunks" });
    expect(JSON.parse(requests[0]?.body ?? "")).toEqual({
      chunk_data: "YWJj",
      chunk_metadata: { fps: 30, chunk_id: "c-1", chunk_index: 1 },
    });
  });

  test.each([
    ["a web page", text(200, "<html>")],
    ["another session", json(200, { session_id: "other", status: "active" })],
    ["a status that is a number", json(200, { status: 1 })],
  ])("doesn't believe 200 with %s", async (_name, reply) => {
    const { client } = await pipeline(reply);
    await expect(client.start(SESSION)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
    await expect(client.status(SESSION)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });

  test("tells a status without a word as SERVICE_ANSWER_INVALID", async () => {
    const { client } = await pipeline(json(200, {}));
    await expect(client.status(SESSION)).rejects.toEqual(withCode("SERVICE_ANSWER_INVALID"));
  });

  test("refuses an id that isn't one before anything is sent", async () => {
    const { client, requests } = await pipeline(json(200, {}));
    await expect(client.stop("../admin" as SessionId)).rejects.toEqual(withCode("JOB_INVALID"));
    await expect(client.create("" as SessionId, {})).rejects.toEqual(withCode("JOB_INVALID"));
    expect(requests).toHaveLength(0);
  });

  test("is SERVICE_REJECTED for a pipeline that can't be started", async () => {
    const { client, requests } = await pipeline(json(404, {}));
    await expect(client.start(SESSION)).rejects.toEqual(withCode("SERVICE_REJECTED"));
    expect(requests).toHaveLength(1);
  });

  test("healthCheck tells whether the pipeline answers", async () => {
    const { client } = await pipeline(json(200, {}), text(500, ""));
    expect((await client.healthCheck()).ok).toBe(true);
    expect((await client.healthCheck()).ok).toBe(false);
  });
});
