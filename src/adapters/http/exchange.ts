import {
  type Agent as HttpAgent,
  type IncomingHttpHeaders,
  type IncomingMessage,
  request as httpRequest,
} from "node:http";
import { request as httpsRequest } from "node:https";
import type { Socket } from "node:net";

/*
 * One HTTP request and its answer, on the wire: no retry, no redirect, no meaning. Node's own client instead of its fetch,
 * because fetch has neither a time limit for connecting nor a connection pool that can be closed, and follows redirects
 * with the bearer token unless told not to.
 */

export interface WireRequest {
  readonly method: "GET" | "POST" | "DELETE";
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | undefined;
}

export interface WireLimits {
  /** From the call to the last byte of the answer. */
  readonly timeoutMs: number;
  /** Name lookup, TCP and TLS. */
  readonly connectTimeoutMs: number;
  readonly answerBytesMax: number;
  /** Bodies of other statuses aren't read; they could be anything, and nobody may see them. */
  readonly wantsBody: (status: number) => boolean;
}

export type WireFault =
  /** No connection within its time. */
  | "not-connected"
  /** No whole answer within its time. */
  | "too-slow"
  /** Refused, reset, cut short, not HTTP, no such host, a bad certificate. */
  | "broken"
  | "too-large"
  | "aborted";

export type WireOutcome =
  | {
      readonly kind: "answered";
      readonly status: number;
      readonly headers: IncomingHttpHeaders;
      readonly body: Uint8Array;
    }
  | { readonly kind: "failed"; readonly fault: WireFault; readonly cause?: unknown };

const EMPTY = new Uint8Array(0);

/** Settles once, always within `timeoutMs`, and leaves neither timer, listener nor half-read connection behind. */
export function exchange(
  agent: HttpAgent,
  request: WireRequest,
  limits: WireLimits,
  signal: AbortSignal,
): Promise<WireOutcome> {
  if (signal.aborted) return Promise.resolve(abortedBy(signal));
  return new Promise((resolve) => {
    const { method, url, headers, body } = request;
    const issue = url.protocol === "https:" ? httpsRequest : httpRequest;
    const outgoing = issue(url, { method, agent, headers: { ...headers, ...lengthOf(request) } });

    let connectTimer: NodeJS.Timeout | undefined;
    const settle = (outcome: WireOutcome): void => {
      clearTimeout(timer);
      clearTimeout(connectTimer);
      signal.removeEventListener("abort", onAbort);
      resolve(outcome);
    };
    const fail = (fault: WireFault, cause?: unknown): void => {
      settle({ kind: "failed", fault, cause });
      outgoing.destroy();
    };
    const onAbort = (): void => {
      settle(abortedBy(signal));
      outgoing.destroy();
    };
    const timer = setTimeout(() => fail("too-slow"), limits.timeoutMs);
    signal.addEventListener("abort", onAbort, { once: true });

    // Kept for good: a destroyed request may still have an error to tell, and nobody else listens.
    outgoing.on("error", (cause) => fail("broken", cause));
    outgoing.on("socket", (socket) => {
      // Only now: before, it may have waited for a free connection, which isn't the other side's fault.
      connectTimer = watchConnecting(socket, url.protocol, limits.connectTimeoutMs, () =>
        fail("not-connected"),
      );
    });
    outgoing.on("response", (response) => {
      clearTimeout(connectTimer);
      const status = response.statusCode ?? 0;
      const answer = (bytes: Uint8Array): void =>
        settle({ kind: "answered", status, headers: response.headers, body: bytes });
      if (limits.wantsBody(status)) {
        collect(response, limits.answerBytesMax, { done: answer, fail });
      } else {
        response.on("error", () => {});
        answer(EMPTY);
        outgoing.destroy();
      }
    });
    outgoing.end(body);
  });
}

function abortedBy(signal: AbortSignal): WireOutcome {
  const cause: unknown = signal.reason;
  return { kind: "failed", fault: "aborted", cause };
}

/** A POST without a body says so, or some servers wait for one. */
function lengthOf({ method, body }: WireRequest): Readonly<Record<string, string>> {
  if (body === undefined && method !== "POST") return {};
  return { "Content-Length": String(body?.byteLength ?? 0) };
}

/** Undefined for a connection that is kept from an earlier request. */
function watchConnecting(
  socket: Socket,
  protocol: string,
  limitMs: number,
  onLate: () => void,
): NodeJS.Timeout | undefined {
  if (!socket.connecting) return undefined;
  const timer = setTimeout(onLate, limitMs);
  socket.once(protocol === "https:" ? "secureConnect" : "connect", () => clearTimeout(timer));
  return timer;
}

function collect(
  response: IncomingMessage,
  bytesMax: number,
  {
    done,
    fail,
  }: {
    readonly done: (bytes: Uint8Array) => void;
    readonly fail: (fault: WireFault, cause?: unknown) => void;
  },
): void {
  // Believed only to refuse early; what arrives is counted all the same.
  if (Number(response.headers["content-length"]) > bytesMax) {
    response.on("error", () => {});
    fail("too-large");
    return;
  }
  const parts: Uint8Array[] = [];
  let bytes = 0;
  response.on("data", (part: Uint8Array) => {
    bytes += part.byteLength;
    if (bytes > bytesMax) fail("too-large");
    else parts.push(part);
  });
  response.on("error", (cause) => fail("broken", cause));
  response.on("end", () => {
    if (response.complete)
      done(parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts));
    else fail("broken");
  });
}
