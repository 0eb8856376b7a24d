import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Socket } from "node:net";
import { inspect } from "node:util";
import { Secret } from "../../src/config.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import type { Clock } from "../../src/pipeline/ports.ts";

/** A neighbour on loopback that answers as it is told: a real node:http server, so that what is tested is what goes over the wire. */

export interface ReceivedRequest {
  readonly method: string;
  /** Path and query, as sent. */
  readonly target: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export type Reply = (request: ReceivedRequest, response: ServerResponse) => void;

export interface FakeService {
  readonly url: string;
  readonly requests: readonly ReceivedRequest[];
  /** TCP connections that were ever opened. */
  readonly connections: number;
  /** TCP connections that are open now. */
  readonly openConnections: number;
  /** One for each of the next requests; the last one stays for all that follow. */
  answer(...replies: readonly Reply[]): void;
  close(): Promise<void>;
}

export async function startFakeService(): Promise<FakeService> {
  const requests: ReceivedRequest[] = [];
  const sockets = new Set<Socket>();
  let connections = 0;
  let replies: Reply[] = [text(500, "nothing was scripted")];

  const server = createServer((request, response) => {
    // A client that gives up while it sends is part of what is tested.
    request.on("error", () => {});
    response.on("error", () => {});
    bodyOf(request).then(
      (body) => {
        const received = {
          method: request.method ?? "",
          target: request.url ?? "",
          headers: request.headers,
          body,
        };
        requests.push(received);
        const reply = replies.length > 1 ? replies.shift() : replies[0];
        reply?.(received, response);
      },
      () => {},
    );
  });
  server.on("connection", (socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });

  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    get connections() {
      return connections;
    },
    get openConnections() {
      return sockets.size;
    },
    answer(...next) {
      replies = [...next];
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  request.setEncoding("utf8");
  let body = "";
  for await (const part of request) body += part as string;
  return body;
}

export function json(status: number, value: unknown, headers: Readonly<Record<string, string>> = {}): Reply {
  return text(status, JSON.stringify(value), { "Content-Type": "application/json", ...headers });
}

export function text(
  status: number,
  body: string | Uint8Array,
  headers: Readonly<Record<string, string>> = {},
): Reply {
  return (_request, response) => {
    response.writeHead(status, { "Content-Length": Buffer.byteLength(body), ...headers });
    response.end(body);
  };
}

/** Ends the connection instead of answering. */
export const reset: Reply = (_request, response) => {
  response.socket?.resetAndDestroy();
};

/** Never answers. */
export const silence: Reply = () => {};

/** Promises more than it sends, then ends the connection. */
export const cutShort: Reply = (_request, response) => {
  response.writeHead(200, { "Content-Type": "application/json", "Content-Length": 1000 });
  response.write('{"anchoring_id":', () => response.destroy());
};

/** A byte now and then, for ever: each is progress, the whole never comes. */
export const trickle: Reply = (_request, response) => {
  response.writeHead(200, { "Content-Type": "application/json" });
  const timer = setInterval(() => response.write(" "), 10);
  response.on("close", () => clearInterval(timer));
};

const ENDLESS_PART_BYTES = 65_536;
/** Where even the endless ends, so that a client that doesn't stop fails its test and not the machine. */
const ENDLESS_BYTES_MAX = 128 * 1_048_576;

/** A body without a length that doesn't end by itself; `sent` counts. */
export function endless(sent: { bytes: number }): Reply {
  const part = Buffer.alloc(ENDLESS_PART_BYTES, 0x20);
  return (_request, response) => {
    response.writeHead(200, { "Content-Type": "application/json" });
    const push = (): void => {
      if (response.destroyed || response.socket === null || sent.bytes >= ENDLESS_BYTES_MAX) return;
      sent.bytes += part.byteLength;
      // By way of the event loop: the client under test lives in the same one.
      if (response.write(part)) setImmediate(push);
      else response.once("drain", push);
    };
    push();
  };
}

/** Not HTTP at all. */
export const garbage: Reply = (_request, response) => {
  response.socket?.end("\u0000\u0001 this is not HTTP\r\n\r\n");
};

export interface MuteServer {
  readonly port: number;
  close(): Promise<void>;
}

/** Accepts TCP connections and says nothing: to a TLS client it is a connection that never comes about. */
export async function startMuteServer(): Promise<MuteServer> {
  const sockets = new Set<Socket>();
  const server = createTcpServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}

/** A port that nobody listens on. */
export async function closedPort(): Promise<number> {
  const server = await startMuteServer();
  await server.close();
  return server.port;
}

/** Real time, but for the sleeps: they are noted down and over at once. */
export function impatientClock(sleeps: number[], now: () => Date = () => new Date()): Clock {
  return {
    ...createSystemClock(),
    now,
    sleep: async (ms) => {
      sleeps.push(ms);
    },
  };
}

export const TOKEN = "token-that-must-not-show";

/** Options of a client whose retries take no time. */
export function clientOptions(url: string, sleeps: number[] = []) {
  return {
    url,
    timeoutMs: 5_000,
    connectTimeoutMs: 5_000,
    attempts: 3,
    retryDelayMs: 1_000,
    bearerToken: new Secret(TOKEN),
    clock: impatientClock(sleeps),
    jitter: () => 0.5,
  };
}

/** Everything of an error that could end in a log line, causes too. */
export function everythingOf(error: unknown): string {
  return `${inspect(error, { depth: 10, showHidden: true })} ${JSON.stringify(error)}`;
}
