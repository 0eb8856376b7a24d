import { randomUUID } from "node:crypto";
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import type { z } from "zod";
import type { Secret } from "../../config.ts";
import { utf8 } from "../../core/bytes.ts";
import { LucidError } from "../../core/errors.ts";
import type { Clock } from "../../pipeline/ports.ts";
import { exchange, type WireFault, type WireOutcome, type WireRequest } from "./exchange.ts";

/*
 * The HTTP client of one neighbour (contract §10): time limits, retries, and answers that are checked before anybody
 * believes them. Its errors have constant texts: neither what the neighbour said, nor the URL, nor the token is in them.
 */

export interface ServiceClientOptions {
  /** For messages: "storage service". */
  readonly service: string;
  /** The setting that holds the URL, for messages. */
  readonly setting: string;
  /** http:// or https://, without user, query and fragment. */
  readonly url: string;
  /** Of one attempt, from the call to the last byte of the answer. */
  readonly timeoutMs: number;
  readonly connectTimeoutMs: number;
  /** Attempts of one call, 1 or more. */
  readonly attempts: number;
  /** First pause between attempts; the bound doubles with each one. */
  readonly retryDelayMs: number;
  readonly bearerToken: Secret | undefined;
  readonly clock: Clock;
  /** 0 ≤ x < 1, for the jitter. Absent: Math.random. */
  readonly jitter?: (() => number) | undefined;
  /** Told before each pause. */
  readonly onRetry?: ((retry: ServiceRetry) => void) | undefined;
}

export interface ServiceRetry {
  readonly service: string;
  /** The attempt that failed, from 1. */
  readonly attempt: number;
  readonly delayMs: number;
  readonly error: LucidError;
}

export interface ServiceRequest {
  /** For messages, as in "could not <operation>". */
  readonly operation: string;
  readonly method: WireRequest["method"];
  /** Segments after the base URL; each is encoded. */
  readonly path: readonly string[];
  readonly query?: Readonly<Record<string, string | number>>;
  /** Sent as JSON. */
  readonly body?: Readonly<Record<string, unknown>>;
  /** Absent with POST: the request id, so that the attempts of one call are one to the neighbour. */
  readonly idempotencyKey?: string;
  /** Absent: application/json. */
  readonly accept?: string;
  /** Statuses beside 2xx that mean something to the caller. */
  readonly answers?: readonly number[];
  /** Absent: 1 MiB. */
  readonly answerBytesMax?: number;
}

export interface ServiceAnswer {
  readonly status: number;
  /** Lowercase, without parameters; "" if there is none. */
  readonly contentType: string;
  readonly body: Uint8Array;
  /** The body as JSON of this form. Throws SERVICE_ANSWER_INVALID. */
  json<Output>(schema: z.ZodType<Output>): Output;
  /** SERVICE_ANSWER_INVALID, for the caller that finds something wrong with the answer. */
  invalid(what: string): LucidError;
}

export interface ServiceClient {
  /**
   * Sends the request until it is answered with 2xx or one of `answers`. 5xx, 408, 429 and network faults are retried, and
   * a POST that a lost answer repeats carries the same Idempotency-Key and X-Request-ID.
   *
   * Throws SERVICE_UNAVAILABLE when the attempts are used up (not known whether it happened), and at once for 401 and 403: a
   * wrong token is the operator's to mend, not a fault of what is sent. SERVICE_REJECTED for any other 4xx.
   * SERVICE_ANSWER_INVALID for what isn't an answer: a redirect, too many bytes, an unknown encoding.
   * SHUTTING_DOWN, or the signal's own LucidError, when the signal fires or the client is closed.
   */
  call(request: ServiceRequest, signal?: AbortSignal): Promise<ServiceAnswer>;
  /** GET /health, one attempt, without the token; never throws. */
  health(timeoutMs: number, signal?: AbortSignal): Promise<ServiceHealth>;
  /** Ends what is under way and closes the connections. Idempotent; later calls fail with SHUTTING_DOWN. */
  close(): void;
}

export interface ServiceHealth {
  readonly ok: boolean;
  /** Fit to be shown to anyone. */
  readonly detail: string;
}

/** Waits of a neighbour and of the backoff are held to these, whatever it asks for. */
const RETRY_AFTER_MAX_MS = 30_000;
const BACKOFF_MAX_MS = 30_000;
const ANSWER_BYTES_MAX = 1_048_576;
const CONNECTIONS_MAX = 16;
const IDLE_CONNECTIONS_MAX = 4;
/** Shorter than uvicorn's 5 s, so that it isn't the neighbour who closes a connection just when it is used again. */
const IDLE_CONNECTION_MS = 4_000;

/** Nothing is opened before the first call. */
export function createServiceClient(options: ServiceClientOptions): ServiceClient {
  const base = options.url.replace(/\/+$/, "");
  const closed = new AbortController();
  let agent: HttpAgent | undefined;

  const connections = (): HttpAgent => {
    agent ??= openAgent(base);
    return agent;
  };

  async function call(request: ServiceRequest, signal?: AbortSignal): Promise<ServiceAnswer> {
    const stop = signal === undefined ? closed.signal : AbortSignal.any([signal, closed.signal]);
    const wire = wireRequest(base, request, options.bearerToken);
    for (let attempt = 1; ; attempt++) {
      if (stop.aborted) throw stopped(stop.reason, options);
      const outcome = await exchange(connections(), wire, limitsOf(request, options), stop);
      const verdict = judge(outcome, request, options);
      if (verdict.kind === "answer") return verdict.answer;
      if (verdict.kind === "fail" || attempt >= options.attempts) throw verdict.error;
      const delayMs = backoffMs(attempt, options) + retryAfterMs(outcome, options.clock);
      options.onRetry?.({ service: options.service, attempt, delayMs, error: verdict.error });
      await options.clock.sleep(delayMs, stop);
    }
  }

  return {
    call,

    async health(timeoutMs, signal) {
      const stop = signal === undefined ? closed.signal : AbortSignal.any([signal, closed.signal]);
      const wire: WireRequest = {
        method: "GET",
        url: new URL(`${base}/health`),
        headers: { Accept: "application/json", "X-Request-ID": randomUUID() },
      };
      const limits = { timeoutMs, connectTimeoutMs: timeoutMs, answerBytesMax: 0, wantsBody: () => false };
      const outcome = await exchange(connections(), wire, limits, stop);
      if (outcome.kind === "failed") return { ok: false, detail: HEALTH_FAULTS[outcome.fault] };
      const ok = outcome.status >= 200 && outcome.status <= 299;
      return { ok, detail: ok ? "answers" : `answers with status ${outcome.status}` };
    },

    close() {
      if (closed.signal.aborted) return;
      closed.abort();
      agent?.destroy();
    },
  };
}

function openAgent(base: string): HttpAgent {
  const options = {
    keepAlive: true,
    maxSockets: CONNECTIONS_MAX,
    maxFreeSockets: IDLE_CONNECTIONS_MAX,
    timeout: IDLE_CONNECTION_MS,
  };
  return base.startsWith("https:") ? new HttpsAgent(options) : new HttpAgent(options);
}

function wireRequest(base: string, request: ServiceRequest, bearerToken: Secret | undefined): WireRequest {
  const { method, query, body } = request;
  const requestId = randomUUID();
  const url = new URL([base, ...request.path.map(segment)].join("/"));
  for (const [name, value] of Object.entries(query ?? {})) url.searchParams.set(name, String(value));
  const idempotencyKey = request.idempotencyKey ?? (method === "POST" ? requestId : undefined);
  return {
    method,
    url,
    headers: {
      Accept: request.accept ?? "application/json",
      "Accept-Encoding": "identity",
      "X-Request-ID": requestId,
      ...(idempotencyKey === undefined ? {} : { "Idempotency-Key": idempotencyKey }),
      ...(bearerToken === undefined ? {} : { Authorization: `Bearer ${bearerToken.reveal()}` }),
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
    },
    body: body === undefined ? undefined : utf8(JSON.stringify(body)),
  };
}

/** Encoded, so that no id becomes another path. Dots can't be encoded away: a URL's `..` climbs in any spelling. */
function segment(text: string): string {
  if (text === "" || text === "." || text === "..") {
    throw new LucidError("INTERNAL", "a path segment of a neighbour's URL is empty or dots");
  }
  return encodeURIComponent(text);
}

function limitsOf(request: ServiceRequest, { timeoutMs, connectTimeoutMs }: ServiceClientOptions) {
  return {
    timeoutMs,
    connectTimeoutMs,
    answerBytesMax: request.answerBytesMax ?? ANSWER_BYTES_MAX,
    wantsBody: (status: number) => isAnswer(status, request),
  };
}

function isAnswer(status: number, { answers }: ServiceRequest): boolean {
  return (status >= 200 && status <= 299) || (answers?.includes(status) ?? false);
}

type Verdict =
  | { readonly kind: "answer"; readonly answer: ServiceAnswer }
  | { readonly kind: "retry"; readonly error: LucidError }
  | { readonly kind: "fail"; readonly error: LucidError };

function judge(outcome: WireOutcome, request: ServiceRequest, options: ServiceClientOptions): Verdict {
  if (outcome.kind === "failed") return judgeFault(outcome.fault, outcome.cause, request, options);
  const { status, headers, body } = outcome;
  if (!isAnswer(status, request)) return judgeStatus(status, request, options);
  const invalid = (what: string): LucidError =>
    new LucidError("SERVICE_ANSWER_INVALID", `${could(request, options)}: ${what}; check ${options.setting}`);
  const encoding = headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") {
    return { kind: "fail", error: invalid("it answered with a content encoding that wasn't asked for") };
  }
  const contentType = (headers["content-type"] ?? "").split(";", 1)[0]?.trim().toLowerCase() ?? "";
  const json = <Output>(schema: z.ZodType<Output>): Output => {
    const parsed = schema.safeParse(parseJson(body));
    // Not zod's error as the cause: it may quote the answer.
    if (!parsed.success) throw invalid("its answer isn't JSON of the agreed form");
    return parsed.data;
  };
  return { kind: "answer", answer: { status, contentType, body, json, invalid } };
}

function judgeFault(
  fault: WireFault,
  cause: unknown,
  request: ServiceRequest,
  options: ServiceClientOptions,
): Verdict {
  if (fault === "aborted") return { kind: "fail", error: stopped(cause, options) };
  const what = `${could(request, options)}: ${FAULTS[fault]}`;
  if (fault === "too-large") {
    return {
      kind: "fail",
      error: new LucidError("SERVICE_ANSWER_INVALID", `${what}; check ${options.setting}`),
    };
  }
  const message = `${what}; see that it runs, and check ${options.setting}`;
  return { kind: "retry", error: new LucidError("SERVICE_UNAVAILABLE", message, { cause }) };
}

function judgeStatus(status: number, request: ServiceRequest, options: ServiceClientOptions): Verdict {
  const what = `${could(request, options)}: it answered with status ${status}`;
  if (status >= 500 || status === 408 || status === 429) {
    return {
      kind: "retry",
      error: new LucidError("SERVICE_UNAVAILABLE", `${what}; see its own log`),
    };
  }
  if (status === 401 || status === 403) {
    return {
      kind: "fail",
      error: new LucidError("SERVICE_UNAVAILABLE", `${what}; check JWT_SECRET_KEY`),
    };
  }
  if (status >= 400) {
    return { kind: "fail", error: new LucidError("SERVICE_REJECTED", `${what}; see its own log`) };
  }
  // A redirect could lead the token and the chunk to anyone.
  const hint = `redirects aren't followed; set ${options.setting} to where it answers`;
  return { kind: "fail", error: new LucidError("SERVICE_ANSWER_INVALID", `${what}; ${hint}`) };
}

const FAULTS: Readonly<Record<Exclude<WireFault, "aborted">, string>> = {
  "not-connected": "no connection in time",
  "too-slow": "no whole answer in time",
  broken: "the connection was refused or broke",
  "too-large": "its answer is too large",
};

const HEALTH_FAULTS: Readonly<Record<WireFault, string>> = {
  ...FAULTS,
  "too-slow": "no answer in time",
  aborted: "not asked",
};

function could({ operation }: ServiceRequest, { service }: ServiceClientOptions): string {
  return `the ${service} could not ${operation}`;
}

function stopped(reason: unknown, { service }: ServiceClientOptions): LucidError {
  if (reason instanceof LucidError) return reason;
  return new LucidError("SHUTTING_DOWN", `a call to the ${service} was ended`, { cause: reason });
}

/** Full jitter: callers that failed together don't come back together. `failed` counts from 1. */
function backoffMs(failed: number, { retryDelayMs, jitter = Math.random }: ServiceClientOptions): number {
  return Math.round(jitter() * Math.min(retryDelayMs * 2 ** (failed - 1), BACKOFF_MAX_MS));
}

const IMF_FIXDATE = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/;

/** RFC 9110 §10.2.3: seconds or a date. What can't be read is 0. The backoff comes on top, for its jitter. */
function retryAfterMs(outcome: WireOutcome, clock: Clock): number {
  if (outcome.kind === "failed") return 0;
  const after = outcome.headers["retry-after"]?.trim() ?? "";
  if (/^\d{1,9}$/.test(after)) return Math.min(Number(after) * 1000, RETRY_AFTER_MAX_MS);
  const until = dateMs(after);
  if (until === undefined) return 0;
  // By the neighbour's own clock if it tells it: ours may be an hour off.
  const now = dateMs(outcome.headers.date ?? "") ?? clock.now().getTime();
  return Math.max(0, Math.min(until - now, RETRY_AFTER_MAX_MS));
}

function dateMs(text: string): number | undefined {
  const ms = IMF_FIXDATE.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(ms) ? undefined : ms;
}

const strictUtf8 = new TextDecoder("utf-8", { fatal: true });

/** `undefined`, which no JSON text means, for anything else than JSON. */
function parseJson(body: Uint8Array): unknown {
  try {
    return JSON.parse(strictUtf8.decode(body)) as unknown;
  } catch {
    return undefined;
  }
}
