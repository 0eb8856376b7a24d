import { connect, type Socket } from "node:net";
import { Agent, request } from "node:http";
import { afterEach, describe, expect, test } from "vitest";
import {
  boundedCheck,
  type Check,
  type Sidecar,
  type SidecarOptions,
  type SidecarSources,
  startSidecar,
} from "../../src/adapters/http/sidecar.ts";

const OK: Check = { name: "mongodb", ok: true, required: true, detail: "answers" };
const DOWN: Check = { name: "redis", ok: false, required: true, detail: "not available" };
const OPTIONAL_DOWN: Check = { name: "storage", ok: false, required: false, detail: "not available" };

const started: Sidecar[] = [];
const sockets: Socket[] = [];
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  await Promise.all(started.splice(0).map((sidecar) => sidecar.close()));
});

interface Running extends Sidecar {
  readonly url: string;
  readonly errors: readonly unknown[];
}

async function start(
  sources: Partial<SidecarSources> = {},
  options: Partial<SidecarOptions> = {},
): Promise<Running> {
  const errors: unknown[] = [];
  const sidecar = await startSidecar(
    { health: async () => [OK], ready: async () => [OK], metrics: async () => "lucid_ready 1\n", ...sources },
    {
      bind: "127.0.0.1",
      port: 0,
      service: "session-processor",
      version: "1.2.3",
      metricsContentType: "text/plain; version=0.0.4; charset=utf-8",
      onError: (error) => errors.push(error),
      ...options,
    },
  );
  started.push(sidecar);
  return { ...sidecar, url: `http://127.0.0.1:${sidecar.port}`, errors };
}

interface Body {
  readonly checks?: readonly Check[];
  readonly error?: { readonly code: string; readonly request_id: string };
}

async function bodyOf(response: Response): Promise<Body> {
  return (await response.json()) as Body;
}

/** Sends raw bytes and collects what comes back until the other side closes. */
function raw(port: number, bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1", () => socket.write(bytes));
    sockets.push(socket);
    let received = "";
    socket.setEncoding("utf8").on("data", (text: string) => {
      received += text;
    });
    socket.on("close", () => resolve(received)).on("error", reject);
  });
}

describe("probes", () => {
  test("answer 200 with the checks, the service and its version", async () => {
    const { url } = await start({ ready: async () => [OK, OPTIONAL_DOWN] });
    const response = await fetch(`${url}/ready`);
    expect(response.status).toBe(200);
    expect(await response.json()).toEqual({
      status: "ok",
      service: "session-processor",
      version: "1.2.3",
      checks: [OK, OPTIONAL_DOWN],
    });
    expect((await fetch(`${url}/health?verbose=1`)).status).toBe(200);
  });

  test("answer 503 when a required check fails", async () => {
    const { url } = await start({ ready: async () => [OK, DOWN] });
    const response = await fetch(`${url}/ready`);
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ status: "unavailable", checks: [OK, DOWN] });
    expect((await fetch(`${url}/health`)).status).toBe(200);
  });

  test("answer 503 when a check hangs, in time", async () => {
    const { url } = await start({ ready: () => new Promise(() => {}) }, { checkTimeoutMs: 100 });
    const response = await fetch(`${url}/ready`, { signal: AbortSignal.timeout(1500) });
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ checks: [{ name: "ready", ok: false, required: true }] });
  });

  test("answer 503 when a check throws, and keep what it threw to the operator", async () => {
    const failure = new Error("mongodb://user:password@host refused");
    const { url, errors } = await start({
      health: () => {
        throw failure;
      },
      metrics: async () => {
        throw failure;
      },
    });
    for (const path of ["/health", "/metrics"]) {
      const response = await fetch(`${url}${path}`);
      expect(response.status).toBe(503);
      expect(await response.text()).not.toMatch(/password|at .*sidecar/);
    }
    expect(errors).toEqual([failure, failure]);
  });

  test("name the one check that hangs and keep the others", async () => {
    const { url } = await start({
      ready: () =>
        Promise.all([
          boundedCheck("mongodb", true, async () => "answers"),
          boundedCheck("redis", true, () => new Promise(() => {}), { timeoutMs: 50 }),
          boundedCheck("storage", false, () => Promise.reject(new Error("SECRET"))),
        ]),
    });
    const response = await fetch(`${url}/ready`);
    expect(response.status).toBe(503);
    expect((await bodyOf(response)).checks).toEqual([
      OK,
      { name: "redis", ok: false, required: true, detail: "no answer within 50 ms" },
      OPTIONAL_DOWN,
    ]);
  });

  test("are never cached or sniffed", async () => {
    const { url } = await start();
    for (const path of ["/health", "/ready", "/metrics", "/nothing"]) {
      const { headers } = await fetch(`${url}${path}`);
      expect(headers.get("cache-control")).toBe("no-store");
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("x-powered-by")).toBeNull();
      expect(headers.get("server")).toBeNull();
    }
  });
});

describe("metrics", () => {
  test("come as Prometheus text", async () => {
    const { url } = await start();
    const response = await fetch(`${url}/metrics`);
    expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
    expect(await response.text()).toBe("lucid_ready 1\n");
  });
});

describe("other requests", () => {
  test("HEAD has the status and headers of GET and no body", async () => {
    const { port } = await start({ ready: async () => [DOWN] });
    const ask = (method: string): Promise<string> =>
      raw(port, `${method} /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: same\r\n\r\n`);
    const withoutDate = (text: string): string => text.replace(/^Date: .*\r\n/m, "");
    const [head, get] = [withoutDate(await ask("HEAD")), withoutDate(await ask("GET"))];
    expect(head).toMatch(/^HTTP\/1\.1 503 /);
    expect(head).toMatch(/Content-Length: [1-9]/);
    expect(head).toBe(get.slice(0, get.indexOf("\r\n\r\n") + 4));
  });

  test.each(["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])(
    "%s is 405 and says what is allowed",
    async (method) => {
      const { url } = await start();
      const response = await fetch(`${url}/ready`, { method });
      expect(response.status).toBe(405);
      expect(response.headers.get("allow")).toBe("GET, HEAD");
      expect((await bodyOf(response)).error?.code).toBe("LUCID_ERR_405");
    },
  );

  test.each([
    "/",
    "/healthz",
    "/health/",
    "//health",
    "/../health",
    "/metrics%00",
    "/constructor",
    "/__proto__",
  ])("%s is 404 in the common form", async (path) => {
    const { port } = await start();
    const text = await raw(
      port,
      `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: req-1\r\n\r\n`,
    );
    expect(text).toMatch(/^HTTP\/1\.1 404 /);
    expect(JSON.parse(text.slice(text.indexOf("\r\n\r\n")))).toEqual({
      error: {
        code: "LUCID_ERR_404",
        message: expect.any(String),
        request_id: "req-1",
        timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
        service: "session-processor",
        version: "1.2.3",
      },
    });
  });

  test("a request id that could do harm is replaced", async () => {
    const { url } = await start();
    for (const id of ["a b", '{"x":1}', "x".repeat(200), "<script>"]) {
      const response = await fetch(`${url}/nothing`, { headers: { "X-Request-ID": id } });
      const { error } = await bodyOf(response);
      expect(error?.request_id).toMatch(/^[0-9a-f-]{36}$/);
      expect(response.headers.get("x-request-id")).toBe(error?.request_id);
    }
  });

  test("a URL or headers beyond 8 KiB are 431, what is no HTTP is 400", async () => {
    const { port } = await start();
    expect(await raw(port, `GET /${"a".repeat(20_000)} HTTP/1.1\r\nHost: x\r\n\r\n`)).toMatch(
      /^HTTP\/1\.1 431 [\s\S]*LUCID_ERR_431/,
    );
    expect(
      await raw(port, `GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ${"a".repeat(20_000)}\r\n\r\n`),
    ).toMatch(/^HTTP\/1\.1 431 /);
    expect(await raw(port, "\u0016\u0003\u0001 nonsense\r\n\r\n")).toMatch(
      /^HTTP\/1\.1 400 [\s\S]*LUCID_ERR_400/,
    );
  });

  test("an upgrade is cut off", async () => {
    const { port } = await start();
    const text = await raw(
      port,
      "GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    expect(text).not.toContain("101");
  });
});

describe("slow and many clients", () => {
  test("one that never finishes its headers, or trickles them, is cut off with 408", async () => {
    const { port } = await start({}, { requestTimeoutMs: 250 });
    const silent = raw(port, "GET /health HTTP/1.1\r\nHost: x\r\n");
    const trickling = raw(port, "GET /health HTTP/1.1\r\n");
    const trickle = setInterval(() => sockets.at(-1)?.write("X-A: b\r\n"), 40);
    expect(await silent).toMatch(/^HTTP\/1\.1 408 /);
    expect(await trickling).toMatch(/^HTTP\/1\.1 408 /);
    clearInterval(trickle);
  });

  test("don't keep a probe from being answered", async () => {
    const { port, url } = await start({}, { requestTimeoutMs: 2000 });
    for (let i = 0; i < 40; i++) void raw(port, "GET /health HTTP/1.1\r\nX-").catch(() => {});
    expect((await fetch(`${url}/health`, { signal: AbortSignal.timeout(1500) })).status).toBe(200);
  });
});

describe("starting and closing", () => {
  test("a port that is taken is an error, not a crash", async () => {
    const { port } = await start();
    await expect(start({}, { port })).rejects.toMatchObject({ code: "EADDRINUSE" });
  });

  test("closing takes less than a second with keep-alive, half-sent and hanging requests open, and twice is once", async () => {
    const sidecar = await start({ health: () => new Promise(() => {}) }, { checkTimeoutMs: 60_000 });
    const agent = new Agent({ keepAlive: true });
    await new Promise<void>((resolve, reject) => {
      request(`${sidecar.url}/ready`, { agent }, (response) => response.resume().on("end", resolve))
        .on("error", reject)
        .end();
    });
    const half = raw(sidecar.port, "GET /ready HTTP/1.1\r\nHost").catch(() => "");
    const hanging = fetch(`${sidecar.url}/health`).catch(() => "cut");
    await fetch(`${sidecar.url}/ready`);

    const startedAt = performance.now();
    await Promise.all([sidecar.close(), sidecar.close()]);
    await sidecar.close();
    expect(performance.now() - startedAt).toBeLessThan(1000);
    await expect(fetch(`${sidecar.url}/ready`)).rejects.toThrow("fetch failed");
    expect(await hanging).toBe("cut");
    await half;
    agent.destroy();
  });

  test("a quick answer under way is finished when it closes", async () => {
    let release: (checks: readonly Check[]) => void = () => {};
    const asked = Promise.withResolvers<void>();
    const sidecar = await start({
      ready: () => {
        asked.resolve();
        return new Promise((resolve) => {
          release = resolve;
        });
      },
    });
    const answer = fetch(`${sidecar.url}/ready`);
    await asked.promise;
    const closing = sidecar.close();
    release([OK]);
    expect((await answer).status).toBe(200);
    await closing;
  });
});
