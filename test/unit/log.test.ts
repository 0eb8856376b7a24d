import { pino } from "pino";
import { describe, expect, test, vi } from "vitest";
import { LucidError } from "../../src/core/errors.ts";
import {
  createLineLimiter,
  createLog,
  LOG_EVENTS,
  loggedError,
  type Log,
  type LogOptions,
  REDACTION,
} from "../../src/telemetry/log.ts";

interface Captured {
  readonly log: Log;
  readonly lines: () => readonly Readonly<Record<string, unknown>>[];
  readonly text: () => string;
  readonly clock: { ms: number };
}

function capture(options: Partial<LogOptions> = {}): Captured {
  const written: string[] = [];
  const clock = { ms: 0 };
  const destination = { write: (line: string) => void written.push(line) };
  const log = createLog({
    level: "trace",
    service: "session-processor",
    version: "1.2.3",
    destination,
    now: () => clock.ms,
    ...options,
  });
  return {
    log,
    clock,
    text: () => written.join(""),
    lines: () => written.map((line) => JSON.parse(line) as Record<string, unknown>),
  };
}

describe("a line", () => {
  test("is JSON with level, ISO time, service, version, process, the event and its constant message", () => {
    const { log, lines } = capture();
    log.event("session_gap", { session_id: "sess-1", chunk_index: 7 });
    expect(lines()).toEqual([
      {
        level: "warn",
        time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
        pid: process.pid,
        hostname: expect.any(String),
        service: "session-processor",
        version: "1.2.3",
        event: "session_gap",
        session_id: "sess-1",
        chunk_index: 7,
        msg: "chunk is missing before later ones, or before the announced end",
      },
    ]);
  });

  test("holds declared fields only, also when others are smuggled in", () => {
    const { log, text } = capture();
    const fields = {
      session_id: "s",
      chunk_index: 1,
      job_id: "j",
      duration_ms: 2,
      chunk_data: "PLAINTEXT",
      password: "PW",
    };
    log.event("chunk_committed", fields);
    expect(text()).not.toMatch(/PLAINTEXT|PW/);
  });

  test("cuts long texts", () => {
    const { log, lines } = capture();
    log.event("config_warning", { warning: "w".repeat(5000) });
    expect(lines()[0]?.["warning"]).toHaveLength(501);
  });

  test("below the level is not written; the level changes at once", () => {
    const { log, lines } = capture({ level: "info" });
    log.event("tree_conflict", { session_id: "s" });
    expect(lines()).toEqual([]);
    expect(log.enabled("tree_conflict")).toBe(false);
    log.setLevel("debug");
    log.event("tree_conflict", { session_id: "s" });
    expect(lines()).toHaveLength(1);
  });

  test("does not type-check with an undeclared or a missing field", () => {
    // Judged by the type check, which fails on an expectation that isn't met; nothing here runs.
    const misuse = ({ log }: Captured): void => {
      // @ts-expect-error: `queue` is no field of this event
      log.event("session_gap", { session_id: "s", chunk_index: 1, queue: "q" });
      // @ts-expect-error: `chunk_index` is missing
      log.event("session_gap", { session_id: "s" });
      // @ts-expect-error: no such event
      log.event("nothing_declared", {});
    };
    expect(misuse).toBeTypeOf("function");
  });

  test("never holds an object where a plain value is declared", () => {
    const { log, text } = capture();
    log.event("restart_required", { settings: { inner: "PLAINTEXT" } as unknown as string[] });
    log.event("restart_required", { settings: ["PORT", { inner: "PLAINTEXT" } as unknown as string] });
    expect(text()).not.toContain("PLAINTEXT");
    expect(text()).toContain("PORT");
  });

  test("would have secrets redacted if a declaration let them through", () => {
    const written: string[] = [];
    const logger = pino({ redact: REDACTION }, { write: (line: string) => void written.push(line) });
    logger.info({ password: "PW", chunk_data: "PW", err: { stack: "PW", cause: { token: "PW" } } }, "x");
    expect(written.join("")).not.toContain("PW");
    expect(written.join("")).toContain("[redacted]");
  });
});

describe("an error", () => {
  test("is its code and message, with the class and code of its cause and nothing the driver said", () => {
    class MongoServerError extends Error {
      override name = "MongoServerError";
      readonly code = 11000;
      readonly keyValue = { _id: "PLAINTEXT" };
    }
    const cause = new MongoServerError("dup key: { secret: PLAINTEXT }");
    const { log, lines, text } = capture();
    log.event("store_unavailable", {
      what: "mongodb",
      err: new LucidError("STORE_UNAVAILABLE", "mongodb is down", { cause }),
    });
    expect(lines()[0]?.["err"]).toEqual({
      code: "STORE_UNAVAILABLE",
      message: "mongodb is down",
      cause: { name: "MongoServerError", code: "11000" },
    });
    expect(text()).not.toContain("PLAINTEXT");
  });

  test("that nobody foresaw shows its class and frames, not its text", () => {
    const { text, log } = capture();
    log.event("fatal", { err: new TypeError("PLAINTEXT\n    at PLAINTEXT (fake:1:1)") });
    expect(text()).toContain('"code":"INTERNAL"');
    expect(text()).toContain("TypeError");
    expect(text()).toContain("log.test.ts");
    expect(text()).not.toContain("PLAINTEXT");
  });

  test("without a code of its own, or that is no error at all, is INTERNAL", () => {
    for (const thrown of ["PLAINTEXT", null, undefined, 7, { message: "PLAINTEXT" }]) {
      expect(loggedError(thrown).code).toBe("INTERNAL");
      expect(JSON.stringify(loggedError(thrown))).not.toContain("PLAINTEXT");
    }
  });

  test("whose class or code is no identifier is not believed", () => {
    const cause = Object.assign(new Error("x"), { name: "PLAIN TEXT", code: "PLAIN TEXT" });
    expect(loggedError(new LucidError("INTERNAL", "m", { cause })).cause).toEqual({ name: "Error" });
    const without = Object.assign(new TypeError("x"), { code: undefined });
    expect(loggedError(new LucidError("INTERNAL", "m", { cause: without })).cause).toEqual({
      name: "TypeError",
    });
  });
});

describe("repeated lines", () => {
  test("are at most one a second for each key, and the next says how many were left out", () => {
    const { log, lines, clock } = capture();
    const err = new LucidError("QUEUE_UNAVAILABLE", "redis is down");
    for (let ms = 0; ms < 3000; ms += 100) {
      clock.ms = ms;
      log.event("queue_error", { queue: "session-chunks", err });
    }
    expect(lines().map((line) => line["suppressed"])).toEqual([undefined, 9, 9]);
    log.event("queue_error", { queue: "session-control", err });
    expect(lines()).toHaveLength(4);
  });

  test("left out at the end are told by flush, once", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 5; i++) log.event("waiting_for", { what: "redis" });
    log.flush();
    log.flush();
    expect(lines()).toHaveLength(2);
    expect(lines()[1]).toMatchObject({ event: "lines_suppressed", event_name: "waiting_for", count: 4 });
  });

  test("of a session's gap, which each sweep finds again, are one a second", () => {
    const { log, lines, clock } = capture();
    for (let sweep = 0; sweep < 30; sweep++) {
      clock.ms = sweep * 100;
      log.event("session_gap", { session_id: "a", chunk_index: 7 });
    }
    log.event("session_gap", { session_id: "b", chunk_index: 1 });
    expect(lines().map((line) => [line["session_id"], line["suppressed"]])).toEqual([
      ["a", undefined],
      ["a", 9],
      ["a", 9],
      ["b", undefined],
    ]);
  });

  test("left out of a burst that is over are told soon, as loud as they were", () => {
    vi.useFakeTimers();
    try {
      const { log, lines, clock } = capture();
      const pass = (ms: number): void => {
        clock.ms += ms;
        vi.advanceTimersByTime(ms);
      };
      for (let i = 0; i < 50; i++) {
        log.event("job_stalled", { queue: "session-chunks", job_id: `s.${i}` });
        log.event("chunk_adopted", { session_id: "s", chunk_index: i });
      }
      expect(lines()).toHaveLength(2);
      pass(30_000);
      expect(lines().slice(2)).toMatchObject([
        { level: "warn", event: "lines_suppressed", event_name: "job_stalled", count: 49 },
        { level: "info", event: "lines_suppressed", event_name: "chunk_adopted", count: 49 },
      ]);
      // A stream that goes on carries its own count.
      for (let i = 0; i < 80; i++) {
        log.event("chunk_adopted", { session_id: "s", chunk_index: i });
        pass(100);
      }
      expect(
        lines()
          .slice(4)
          .map((line) => line["suppressed"]),
      ).toEqual([undefined, 9, 9, 9, 9, 9, 9, 9]);
      log.flush();
      pass(30_000);
      expect(lines().slice(12)).toMatchObject([{ event: "lines_suppressed", count: 9 }]);
    } finally {
      vi.useRealTimers();
    }
  });

  test("keep their keys apart for as long as they come, however many there have been before", () => {
    let nowMs = 0;
    const limiter = createLineLimiter(() => nowMs);
    for (let i = 0; i < 1000; i++) limiter.admit("chunk_adopted", `s${(nowMs += 10)}`);
    nowMs += 1_000;
    expect(limiter.admit("queue_error", "session-chunks")).toBe(0);
    expect(limiter.admit("queue_error", "session-control")).toBe(0);
  });

  test("of events that are not limited are all written", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 5; i++)
      log.event("event_relayed", { event_id: `e${i}`, event_type: "chunk.completed" });
    expect(lines()).toHaveLength(5);
  });

  test("with ever new keys take bounded memory and share one line", () => {
    const limiter = createLineLimiter(() => 0);
    const admitted = Array.from({ length: 1000 }, (_, i) => limiter.admit("queue_error", `q${i}`));
    expect(admitted.filter((one) => one !== undefined)).toHaveLength(257);
    expect(limiter.drain(0).get("queue_error")).toBe(743);
  });
});

test("every event has a constant message of its own, without values", () => {
  const messages = Object.values(LOG_EVENTS).map(({ message }) => message);
  expect(new Set(messages).size).toBe(messages.length);
  for (const message of messages) expect(message).toMatch(/^[A-Za-z][A-Za-z' ,]+$/);
  for (const name of Object.keys(LOG_EVENTS)) expect(name).toMatch(/^[a-z]+(_[a-z]+)*$/);
});
