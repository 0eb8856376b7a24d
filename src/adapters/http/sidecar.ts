import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/*
 * The HTTP sidecar (contract §12): GET and HEAD of /health, /ready and /metrics, for an orchestrator and Prometheus.
 * It faces whatever the network sends: every wait, size and count has a limit, and nothing it answers holds a
 * stack, a driver's text or anything of the request but a sane request id.
 */

/** One line of /health or /ready. */
export interface Check {
  readonly name: string;
  readonly ok: boolean;
  /** Only required checks decide between 200 and 503. */
  readonly required: boolean;
  /** Fit to be shown to anyone who can reach the port. */
  readonly detail: string;
}

export interface SidecarSources {
  health(): Promise<readonly Check[]>;
  ready(): Promise<readonly Check[]>;
  /** The exposition in Prometheus' text format. */
  metrics(): Promise<string>;
}

export interface SidecarOptions {
  readonly bind: string;
  /** 0 takes a free one; `Sidecar.port` tells which. */
  readonly port: number;
  readonly service: string;
  readonly version: string;
  readonly metricsContentType: string;
  /** Called with what a source threw or a socket did; never reaches a client. */
  readonly onError: (error: unknown) => void;
  /** Absent: 2 s. After it a probe is answered with 503, whatever the source does. */
  readonly checkTimeoutMs?: number;
  /** Absent: 5 s. A client that has not sent its request by then is cut off. */
  readonly requestTimeoutMs?: number;
}

export interface Sidecar {
  readonly port: number;
  /** Stops listening, lets answers under way finish for half a second, then cuts what is left. Idempotent. */
  close(): Promise<void>;
}

const CHECK_TIMEOUT_MS = 2000;
const REQUEST_TIMEOUT_MS = 5000;
const KEEP_ALIVE_TIMEOUT_MS = 10_000;
const HEADER_BYTES_MAX = 8192;
const HEADERS_MAX = 64;
const CONNECTIONS_MAX = 64;
const REQUESTS_PER_SOCKET_MAX = 1000;
const BACKLOG_CONNECTIONS = 64;
const CLOSE_GRACE_MS = 500;

const METHODS_ALLOWED = "GET, HEAD";

/**
 * Starts listening.
 * @throws what `listen` does (EADDRINUSE, EACCES) when the address can't be had.
 */
export async function startSidecar(sources: SidecarSources, options: SidecarOptions): Promise<Sidecar> {
  const stop = new AbortController();
  const requestTimeout = options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS;
  const server = createServer(
    {
      maxHeaderSize: HEADER_BYTES_MAX,
      requestTimeout,
      headersTimeout: requestTimeout,
      keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
      // How often the two above are looked at: without it a slow client lives up to 30 s longer.
      connectionsCheckingInterval: Math.max(50, Math.floor(requestTimeout / 5)),
    },
    (request, response) => {
      answer(request, response, { sources, options, stopped: stop.signal, closing: !server.listening }).catch(
        (error: unknown) => {
          options.onError(error);
          response.destroy();
        },
      );
    },
  );
  server.maxHeadersCount = HEADERS_MAX;
  server.maxConnections = CONNECTIONS_MAX;
  server.maxRequestsPerSocket = REQUESTS_PER_SOCKET_MAX;
  server.on("clientError", (error, socket) => refuseUnreadable(error, socket as Socket, options));
  // An upgrade or a CONNECT that nobody answers would keep its socket; there is neither here.
  server.on("upgrade", (_request, socket) => socket.destroy());
  server.on("connect", (_request, socket) => socket.destroy());

  await listen(server, options);
  server.on("error", options.onError);
  return { port: (server.address() as AddressInfo).port, close: () => closeServer(server, stop) };
}

function listen(server: Server, { bind, port }: SidecarOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen({ host: bind, port, backlog: BACKLOG_CONNECTIONS }, () => {
      server.off("error", reject);
      resolve();
    });
  });
}

/** Keep-alive connections are open without anything under way: those go at once, answers get a moment. */
async function closeServer(server: Server, stop: AbortController): Promise<void> {
  if (!server.listening) return;
  const closed = new Promise<void>((resolve) => {
    server.close(() => resolve());
  });
  server.closeIdleConnections();
  const cutOff = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
  await closed;
  clearTimeout(cutOff);
  stop.abort();
}

interface Context {
  readonly sources: SidecarSources;
  readonly options: SidecarOptions;
  /** Fires when the sidecar has closed: nobody waits for an answer any more. */
  readonly stopped: AbortSignal;
  /** The connection is not kept after the answer. */
  readonly closing: boolean;
}

interface Answer {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const JSON_TYPE = "application/json; charset=utf-8";

async function answer(request: IncomingMessage, response: ServerResponse, context: Context): Promise<void> {
  // Bodies mean nothing here: read and dropped, so that the connection can be used again.
  request.resume();
  const requestId = requestIdOf(request);
  const { status, contentType, body, headers } = await route(request, requestId, context);
  if (response.destroyed) return;
  response.writeHead(status, {
    "Content-Type": contentType,
    "Content-Length": Buffer.byteLength(body),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Request-ID": requestId,
    ...(context.closing ? { Connection: "close" } : {}),
    ...headers,
  });
  // To a HEAD, node:http sends the headers only.
  response.end(body);
}

async function route(request: IncomingMessage, requestId: string, context: Context): Promise<Answer> {
  const { options } = context;
  const path = (request.url ?? "/").split("?", 1)[0];
  const known = path === "/health" || path === "/ready" || path === "/metrics";
  if (!known) return errorAnswer(404, "there are /health, /ready and /metrics", requestId, options);
  if (request.method !== "GET" && request.method !== "HEAD") {
    const refusal = errorAnswer(405, `only ${METHODS_ALLOWED}`, requestId, options);
    return { ...refusal, headers: { Allow: METHODS_ALLOWED } };
  }
  if (path === "/metrics") return metricsAnswer(requestId, context);
  return checksAnswer(path === "/health" ? "health" : "ready", context);
}

async function metricsAnswer(requestId: string, context: Context): Promise<Answer> {
  const { sources, options } = context;
  const body = await inTime(() => sources.metrics(), context);
  if (body === undefined) return errorAnswer(503, "metrics could not be collected", requestId, options);
  return { status: 200, contentType: options.metricsContentType, body };
}

async function checksAnswer(name: "health" | "ready", context: Context): Promise<Answer> {
  const { sources, options } = context;
  const checks = (await inTime(() => sources[name](), context)) ?? [unanswered(name)];
  const ok = checks.every((check) => check.ok || !check.required);
  const body = {
    status: ok ? "ok" : "unavailable",
    service: options.service,
    version: options.version,
    checks,
  };
  return { status: ok ? 200 : 503, contentType: JSON_TYPE, body: `${JSON.stringify(body)}\n` };
}

function unanswered(name: string): Check {
  return { name, ok: false, required: true, detail: "the check failed or did not answer in time" };
}

/** The source's value, or `undefined` when it throws or takes too long: a probe must not hang with a dependency. */
async function inTime<Value>(source: () => Promise<Value>, context: Context): Promise<Value | undefined> {
  const { options, stopped } = context;
  const done = new AbortController();
  const limit = { signal: AbortSignal.any([stopped, done.signal]) };
  const late = sleep(options.checkTimeoutMs ?? CHECK_TIMEOUT_MS, undefined, limit).catch(() => undefined);
  const value = Promise.resolve()
    .then(source)
    .catch((error: unknown) => {
      options.onError(error);
      return undefined;
    });
  try {
    return (await Promise.race([value, late])) ?? undefined;
  } finally {
    done.abort();
  }
}

/**
 * One check with a limit of its own, so that a hung dependency is named in the answer while the others keep theirs.
 * `probe` gives the detail; what it throws is replaced by `failure`.
 */
export async function boundedCheck(
  name: string,
  required: boolean,
  probe: () => Promise<string>,
  limits: { readonly timeoutMs?: number; readonly failure?: string } = {},
): Promise<Check> {
  const { timeoutMs = CHECK_TIMEOUT_MS * 0.75, failure = "not available" } = limits;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Check>((resolve) => {
    timer = setTimeout(
      () => resolve({ name, ok: false, required, detail: `no answer within ${timeoutMs} ms` }),
      timeoutMs,
    );
  });
  const result = Promise.resolve()
    .then(probe)
    .then(
      (detail): Check => ({ name, ok: true, required, detail }),
      (): Check => ({ name, ok: false, required, detail: failure }),
    );
  try {
    return await Promise.race([result, late]);
  } finally {
    clearTimeout(timer);
  }
}

const SANE_REQUEST_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** The caller's, if it can't break a log line or a header; otherwise one of our own. */
function requestIdOf(request: IncomingMessage): string {
  const given = request.headers["x-request-id"];
  return typeof given === "string" && SANE_REQUEST_ID.test(given) ? given : randomUUID();
}

function errorAnswer(status: number, message: string, requestId: string, options: SidecarOptions): Answer {
  const error = {
    code: `LUCID_ERR_${status}`,
    message,
    request_id: requestId,
    timestamp: new Date().toISOString(),
    service: options.service,
    version: options.version,
  };
  return { status, contentType: JSON_TYPE, body: `${JSON.stringify({ error })}\n` };
}

const UNREADABLE: Readonly<Record<string, readonly [number, string, string]>> = {
  HPE_HEADER_OVERFLOW: [431, "Request Header Fields Too Large", "the request's headers are too large"],
  ERR_HTTP_REQUEST_TIMEOUT: [408, "Request Timeout", "the request did not arrive in time"],
};

/** What never became a request: answered in the same form if the socket still takes it, then closed. */
function refuseUnreadable(
  error: Error & { readonly code?: string },
  socket: Socket,
  options: SidecarOptions,
): void {
  if (!socket.writable || socket.bytesWritten > 0 || error.code === "ECONNRESET") {
    socket.destroy();
    return;
  }
  const [status, phrase, message] = UNREADABLE[error.code ?? ""] ?? [
    400,
    "Bad Request",
    "the request can't be read",
  ];
  const { body } = errorAnswer(status, message, randomUUID(), options);
  const head = [
    `HTTP/1.1 ${status} ${phrase}`,
    `Content-Type: ${JSON_TYPE}`,
    `Content-Length: ${Buffer.byteLength(body)}`,
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "Connection: close",
  ];
  socket.end(`${head.join("\r\n")}\r\n\r\n${body}`, () => socket.destroy());
}
