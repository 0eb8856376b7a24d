import { afterEach, describe, expect, test } from "vitest";
import { z } from "zod";
import {
  createServiceClient,
  type ServiceClient,
  type ServiceClientOptions,
  type ServiceRequest,
  type ServiceRetry,
} from "../../src/adapters/http/service-client.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import { LucidError } from "../../src/core/errors.ts";
import {
  clientOptions,
  closedPort,
  cutShort,
  endless,
  everythingOf,
  type FakeService,
  garbage,
  impatientClock,
  json,
  reset,
  type Reply,
  silence,
  startFakeService,
  startMuteServer,
  text,
  TOKEN,
  trickle,
} from "../support/fake-service.ts";

const ASK: ServiceRequest = { operation: "do the thing", method: "GET", path: ["things", "one"] };
const SEND: ServiceRequest = {
  operation: "take the thing",
  method: "POST",
  path: ["things"],
  body: { a: 1 },
};
const OK = json(200, { ok: true });

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function service(...replies: readonly Reply[]): Promise<FakeService> {
  const fake = await startFakeService();
  open.push(fake);
  if (replies.length > 0) fake.answer(...replies);
  return fake;
}

interface Running extends ServiceClient {
  /** Milliseconds of each pause between attempts. */
  readonly sleeps: readonly number[];
  readonly retries: readonly ServiceRetry[];
}

function client(url: string, options: Partial<ServiceClientOptions> = {}): Running {
  const sleeps: number[] = [];
  const retries: ServiceRetry[] = [];
  const made = createServiceClient({
    service: "thing service",
    setting: "THING_URL",
    ...clientOptions(url, sleeps),
    onRetry: (retry) => retries.push(retry),
    ...options,
  });
  open.push(made);
  return { ...made, sleeps, retries };
}

async function failureOf(promise: Promise<unknown>): Promise<LucidError> {
  const thrown: unknown = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!(thrown instanceof LucidError)) throw new Error("expected a LucidError", { cause: thrown });
  return thrown;
}

describe("a call", () => {
  test("sends method, path, query, JSON, token and ids", async () => {
    const fake = await service(OK);
    const answer = await client(`${fake.url}/base/`).call({
      ...SEND,
      path: ["things", "a b/../ä?#%"],
      query: { limit: 5, of: "x&y=z" },
      idempotencyKey: "key-1",
    });
    expect(answer.json(z.object({ ok: z.boolean() }))).toEqual({ ok: true });
    const [request] = fake.requests;
    expect(request?.method).toBe("POST");
    expect(request?.target).toBe("/base/things/a%20b%2F..%2F%C3%A4%3F%23%25?limit=5&of=x%26y%3Dz");
    expect(JSON.parse(request?.body ?? "")).toEqual({ a: 1 });
    expect(request?.headers).toMatchObject({
      authorization: `Bearer ${TOKEN}`,
      "content-type": "application/json",
      accept: "application/json",
      "idempotency-key": "key-1",
      "content-length": "7",
    });
    expect(request?.headers["x-request-id"]).toMatch(/^[0-9a-f-]{36}$/);
  });

  test("sends no token when there is none, and no Idempotency-Key with GET", async () => {
    const fake = await service(OK);
    await client(fake.url, { bearerToken: undefined }).call(ASK);
    expect(fake.requests[0]?.headers).not.toHaveProperty("authorization");
    expect(fake.requests[0]?.headers).not.toHaveProperty("idempotency-key");
  });

  test.each(["", ".", ".."])("refuses the path segment %j before anything is sent", async (segment) => {
    const fake = await service(OK);
    expect((await failureOf(client(fake.url).call({ ...ASK, path: ["things", segment] }))).code).toBe(
      "INTERNAL",
    );
    expect(fake.requests).toHaveLength(0);
  });

  test("opens a connection when first needed, keeps it, and close ends it", async () => {
    const fake = await service(OK);
    const running = client(fake.url);
    expect(fake.connections).toBe(0);
    for (let call = 0; call < 5; call++) await running.call(ASK);
    expect(fake.connections).toBe(1);
    running.close();
    running.close();
    await expect.poll(() => fake.openConnections).toBe(0);
    expect((await failureOf(running.call(ASK))).code).toBe("SHUTTING_DOWN");
  });
});

describe("retries", () => {
  test.each([500, 502, 503, 504, 408, 429])("status %i is retried until it is answered", async (status) => {
    const fake = await service(text(status, "no"), text(status, "no"), OK);
    const running = client(fake.url);
    expect((await running.call(ASK)).status).toBe(200);
    expect(fake.requests).toHaveLength(3);
    expect(running.retries.map(({ attempt, error }) => [attempt, error.code])).toEqual([
      [1, "SERVICE_UNAVAILABLE"],
      [2, "SERVICE_UNAVAILABLE"],
    ]);
  });

  test.each([
    ["a reset connection", reset],
    ["an answer cut short", cutShort],
    ["something that isn't HTTP", garbage],
  ])("%s is retried", async (_name, broken) => {
    const fake = await service(broken, OK);
    expect((await client(fake.url).call(SEND)).status).toBe(200);
    expect(fake.requests).toHaveLength(2);
  });

  test("end after the configured attempts with SERVICE_UNAVAILABLE", async () => {
    const fake = await service(text(503, "no"));
    const running = client(fake.url, { attempts: 4 });
    expect((await failureOf(running.call(ASK))).code).toBe("SERVICE_UNAVAILABLE");
    expect(fake.requests).toHaveLength(4);
    expect(running.sleeps).toHaveLength(3);
  });

  test("a port that nobody listens on is SERVICE_UNAVAILABLE", async () => {
    const running = client(`http://127.0.0.1:${await closedPort()}`);
    expect((await failureOf(running.call(ASK))).code).toBe("SERVICE_UNAVAILABLE");
    expect(running.sleeps).toHaveLength(2);
  });

  test("carry one request id and one Idempotency-Key, and another call has others", async () => {
    const fake = await service(reset, text(500, ""), OK);
    const running = client(fake.url);
    await running.call(SEND);
    await running.call(SEND);
    const ids = fake.requests.map(({ headers }) => headers["x-request-id"]);
    const keys = fake.requests.map(({ headers }) => headers["idempotency-key"]);
    expect(new Set(ids.slice(0, 3)).size).toBe(1);
    expect(new Set(keys.slice(0, 3)).size).toBe(1);
    expect(ids[3]).not.toBe(ids[0]);
    expect(keys[3]).not.toBe(keys[0]);
  });

  test("back off exponentially within a bound, with full jitter", async () => {
    const fake = await service(text(500, ""));
    const half = client(fake.url, { attempts: 9 });
    await failureOf(half.call(ASK));
    expect(half.sleeps).toEqual([500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    const least = client(fake.url, { attempts: 3, jitter: () => 0 });
    await failureOf(least.call(ASK));
    expect(least.sleeps).toEqual([0, 0]);
  });

  test.each([
    ["seconds", { "Retry-After": "7" }, 7_000],
    [
      "a date, by the neighbour's clock",
      { "Retry-After": "Tue, 01 Jan 2030 00:00:09 GMT", Date: "Tue, 01 Jan 2030 00:00:00 GMT" },
      9_000,
    ],
    ["a date in the past", { "Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT" }, 0],
    ["more than the bound", { "Retry-After": "86400" }, 30_000],
    ["a far date", { "Retry-After": "Tue, 01 Jan 2999 00:00:00 GMT" }, 30_000],
    ["nonsense", { "Retry-After": "soon" }, 0],
    ["a negative number", { "Retry-After": "-5" }, 0],
  ])("Retry-After with %s", async (_name, headers: Record<string, string>, expectedMs) => {
    const fake = await service(text(429, "", headers), OK);
    const running = client(fake.url, { jitter: () => 0 });
    await running.call(ASK);
    expect(running.sleeps).toEqual([expectedMs]);
  });

  test("Retry-After with a date uses our clock when the neighbour tells no time", async () => {
    const fake = await service((_request, response) => {
      response.sendDate = false;
      response.writeHead(503, { "Retry-After": "Tue, 01 Jan 2030 00:00:04 GMT" }).end();
    }, OK);
    const sleeps: number[] = [];
    const clock = impatientClock(sleeps, () => new Date("2030-01-01T00:00:00Z"));
    await client(fake.url, { clock, jitter: () => 0 }).call(ASK);
    expect(sleeps).toEqual([4_000]);
  });
});

describe("what isn't retried", () => {
  test.each([400, 404, 405, 409, 413, 422, 451])("status %i is SERVICE_REJECTED at once", async (status) => {
    const fake = await service(text(status, "no"));
    expect((await failureOf(client(fake.url).call(ASK))).code).toBe("SERVICE_REJECTED");
    expect(fake.requests).toHaveLength(1);
  });

  test.each([401, 403])(
    "status %i is SERVICE_UNAVAILABLE at once: the token is the operator's",
    async (status) => {
      const fake = await service(text(status, "no"));
      const error = await failureOf(client(fake.url).call(ASK));
      expect(error.code).toBe("SERVICE_UNAVAILABLE");
      expect(error.message).toContain("JWT_SECRET_KEY");
      expect(fake.requests).toHaveLength(1);
    },
  );

  test("a status that the caller asked for is an answer", async () => {
    const fake = await service(json(404, { detail: "none" }));
    expect((await client(fake.url).call({ ...ASK, answers: [404] })).status).toBe(404);
  });

  test.each([301, 302, 303, 307, 308])("redirect %i is not followed", async (status) => {
    const elsewhere = await service(OK);
    const fake = await service(text(status, "", { Location: `${elsewhere.url}/stolen` }));
    expect((await failureOf(client(fake.url).call(SEND))).code).toBe("SERVICE_ANSWER_INVALID");
    expect(fake.requests).toHaveLength(1);
    expect(elsewhere.requests).toHaveLength(0);
  });
});

describe("time limits", () => {
  const quick = { attempts: 1, timeoutMs: 150, connectTimeoutMs: 5_000 };

  test.each([
    ["never answers", silence],
    ["sends a byte now and then", trickle],
  ])("a neighbour that %s is given up after the total time", async (_name, slow) => {
    const fake = await service(slow);
    const error = await failureOf(client(fake.url, quick).call(ASK));
    expect(error.code).toBe("SERVICE_UNAVAILABLE");
    expect(error.message).toContain("in time");
    await expect.poll(() => fake.openConnections).toBe(0);
  });

  test("each attempt has the whole time, and a slow one is retried", async () => {
    const fake = await service(silence, OK);
    expect((await client(fake.url, { ...quick, attempts: 2 }).call(ASK)).status).toBe(200);
  });

  test("a connection that doesn't come about is given up after the connect time", async () => {
    const mute = await startMuteServer();
    open.push(mute);
    const running = client(`https://127.0.0.1:${mute.port}`, {
      attempts: 1,
      timeoutMs: 60_000,
      connectTimeoutMs: 100,
    });
    const error = await failureOf(running.call(ASK));
    expect(error.code).toBe("SERVICE_UNAVAILABLE");
    expect(error.message).toContain("no connection");
  });

  test("the connect time doesn't count once connected", async () => {
    const fake = await service((request, response) => {
      setTimeout(() => OK(request, response), 150);
    });
    const running = client(fake.url, { connectTimeoutMs: 50, attempts: 1 });
    expect((await running.call(ASK)).status).toBe(200);
    // The second goes over the kept connection.
    expect((await running.call(ASK)).status).toBe(200);
    expect(fake.connections).toBe(1);
  });

  test("more calls than connections wait for one and all succeed", async () => {
    const fake = await service(OK);
    const running = client(fake.url);
    const answers = await Promise.all(Array.from({ length: 60 }, () => running.call(ASK)));
    expect(answers.every(({ status }) => status === 200)).toBe(true);
    expect(fake.connections).toBeLessThanOrEqual(16);
  });
});

describe("size limits", () => {
  test("an answer that announces more is refused, and not retried", async () => {
    const fake = await service(json(200, { filler: "x".repeat(2_000_000) }));
    expect((await failureOf(client(fake.url).call(ASK))).code).toBe("SERVICE_ANSWER_INVALID");
    expect(fake.requests).toHaveLength(1);
  });

  test("an endless answer is cut at the limit", async () => {
    const sent = { bytes: 0 };
    const fake = await service(endless(sent));
    const running = client(fake.url);
    expect((await failureOf(running.call(ASK))).code).toBe("SERVICE_ANSWER_INVALID");
    await expect.poll(() => fake.openConnections).toBe(0);
    // What lies in socket buffers comes on top of the 1 MiB.
    expect(sent.bytes).toBeLessThan(32 * 1_048_576);
  });

  test("an answer of exactly the limit is whole, one byte more is refused", async () => {
    const fake = await service(text(200, "x".repeat(1000)));
    const running = client(fake.url);
    expect((await running.call({ ...ASK, answerBytesMax: 1000 })).body.byteLength).toBe(1000);
    const error = await failureOf(running.call({ ...ASK, answerBytesMax: 999 }));
    expect(error.code).toBe("SERVICE_ANSWER_INVALID");
  });

  test("a body of several megabytes arrives whole", async () => {
    const fake = await service(OK);
    await client(fake.url).call({ ...SEND, body: { filler: "y".repeat(5_000_000) } });
    expect(fake.requests[0]?.body.length).toBe(5_000_000 + '{"filler":""}'.length);
  });
});

describe("an answer", () => {
  const form = z.object({ ok: z.literal(true) });

  test.each([
    ["a web page", text(200, "<html>welcome</html>", { "Content-Type": "text/html" })],
    ["nothing", text(200, "")],
    ["JSON cut off", text(200, '{"ok":true')],
    ["JSON of another form", json(200, { ok: "yes" })],
    ["an array", json(200, [true])],
    ["bytes that aren't UTF-8", text(200, Buffer.from([0x22, 0xff, 0x22]))],
    ["very deep JSON", text(200, "[".repeat(500_000))],
  ])("of %s is SERVICE_ANSWER_INVALID", async (_name, reply) => {
    const fake = await service(reply);
    const answer = await client(fake.url).call(ASK);
    expect(() => answer.json(form)).toThrow(expect.objectContaining({ code: "SERVICE_ANSWER_INVALID" }));
  });

  test("in an encoding that wasn't asked for is SERVICE_ANSWER_INVALID", async () => {
    const fake = await service(json(200, { ok: true }, { "Content-Encoding": "gzip" }));
    expect((await failureOf(client(fake.url).call(ASK))).code).toBe("SERVICE_ANSWER_INVALID");
    expect(fake.requests[0]?.headers["accept-encoding"]).toBe("identity");
  });

  test("tells its type without parameters", async () => {
    const fake = await service(text(200, "x", { "Content-Type": "Application/Octet-Stream; q=1" }));
    expect((await client(fake.url).call(ASK)).contentType).toBe("application/octet-stream");
  });
});

describe("an error", () => {
  const MARK = "secret-of-the-body";

  test.each([
    ["a refusal", text(422, MARK)],
    ["a failure", text(500, MARK)],
    ["a redirect", text(302, MARK, { Location: `http://127.0.0.1:1/${MARK}` })],
    ["a forbidden call", text(403, MARK)],
    ["a reset", reset],
  ])("of %s shows neither the body, the token nor the URL", async (_name, reply) => {
    const fake = await service(reply);
    const error = await failureOf(client(fake.url).call({ ...SEND, body: { field: MARK } }));
    expect(everythingOf(error)).not.toContain(MARK);
    expect(everythingOf(error)).not.toContain(TOKEN);
    expect(error.message).not.toContain("127.0.0.1");
    expect(error.message).toContain("thing service");
  });

  test("of an unreadable answer doesn't quote it", async () => {
    const fake = await service(json(200, { [MARK]: MARK }));
    const answer = await client(fake.url).call(ASK);
    let thrown: unknown;
    try {
      answer.json(z.object({ needed: z.enum(["a"]) }));
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(LucidError);
    expect(everythingOf(thrown)).not.toContain(MARK);
  });
});

describe("a signal", () => {
  test("that has fired stops a call before anything is sent", async () => {
    const fake = await service(OK);
    const error = await failureOf(client(fake.url).call(ASK, AbortSignal.abort()));
    expect(error.code).toBe("SHUTTING_DOWN");
    expect(fake.requests).toHaveLength(0);
  });

  test("ends a call that waits for its answer, with its own LucidError", async () => {
    const fake = await service(silence);
    const stop = new AbortController();
    const failed = failureOf(client(fake.url).call(ASK, stop.signal));
    await expect.poll(() => fake.requests.length).toBe(1);
    stop.abort(new LucidError("ATTEMPT_EXPIRED", "too late"));
    expect((await failed).code).toBe("ATTEMPT_EXPIRED");
    await expect.poll(() => fake.openConnections).toBe(0);
  });

  test("ends the pause between attempts", async () => {
    const fake = await service(text(503, ""));
    const stop = new AbortController();
    const running = client(fake.url, {
      clock: createSystemClock(),
      retryDelayMs: 600_000,
      onRetry: () => setImmediate(() => stop.abort()),
    });
    expect((await failureOf(running.call(ASK, stop.signal))).code).toBe("SHUTTING_DOWN");
    expect(fake.requests).toHaveLength(1);
  });

  test("isn't needed: close ends what is under way", async () => {
    const fake = await service(silence);
    const running = client(fake.url);
    const failed = failureOf(running.call(ASK));
    await expect.poll(() => fake.requests.length).toBe(1);
    running.close();
    expect((await failed).code).toBe("SHUTTING_DOWN");
  });
});

describe("health", () => {
  test("asks once, without the token, and tells what came", async () => {
    const fake = await service(OK, json(503, { status: "unhealthy" }), reset, silence);
    const running = client(fake.url);
    expect(await running.health(2_000)).toEqual({ ok: true, detail: "answers" });
    expect(await running.health(2_000)).toEqual({ ok: false, detail: "answers with status 503" });
    expect(await running.health(2_000)).toMatchObject({ ok: false });
    expect(await running.health(100)).toEqual({ ok: false, detail: "no answer in time" });
    expect(fake.requests.map(({ target }) => target)).toEqual(["/health", "/health", "/health", "/health"]);
    expect(fake.requests[0]?.headers).not.toHaveProperty("authorization");
  });
});
