import {
  BSON,
  MongoNetworkError,
  MongoNetworkTimeoutError,
  MongoServerError,
  MongoWriteConcernError,
} from "mongodb";
import { describe, expect, test } from "vitest";
import { connectError, storeError, writeItemError } from "../../src/adapters/mongo/errors.ts";
import { LucidError } from "../../src/core/errors.ts";

const DRIVER_TEXT = "secret-document-text";
const serverError = (code: number, labels: string[] = []) =>
  new MongoServerError({ message: DRIVER_TEXT, errmsg: DRIVER_TEXT, code, errorLabels: labels });

describe("storeError", () => {
  test.each([
    ["a broken connection", new MongoNetworkError(DRIVER_TEXT)],
    ["a silent connection", new MongoNetworkTimeoutError(DRIVER_TEXT)],
    [
      "an unmet write concern",
      new MongoWriteConcernError({ ok: 1, writeConcernError: { code: 64, errmsg: DRIVER_TEXT } }),
    ],
    ["not primary", serverError(10_107)],
    ["stepped down", serverError(189)],
    ["interrupted", serverError(11_601)],
    ["shutting down", serverError(91)],
    ["too slow", serverError(50)],
    ["a full disk", serverError(14_031)],
    ["a new primary without the keys that sign cluster times", serverError(211)],
    ["a cursor that ended with its primary", serverError(237)],
    ["a full cache", serverError(365)],
    ["an unknown code with a retryable label", serverError(99_999, ["RetryableWriteError"])],
    ["an unresolvable name", Object.assign(new Error(DRIVER_TEXT), { code: "ENOTFOUND" })],
  ])("%s is STORE_UNAVAILABLE", (_name, thrown) => {
    const error = storeError(thrown);
    expect(error.code).toBe("STORE_UNAVAILABLE");
    expect(error.message).not.toContain(DRIVER_TEXT);
    expect(error.cause).toBe(thrown);
  });

  test.each([
    ["a document that is too large", serverError(10_334)],
    ["a duplicate key", serverError(11_000)],
    ["a command the server doesn't know", serverError(59)],
    ["an unserializable document", new BSON.BSONError(DRIVER_TEXT)],
    ["a buffer overrun", new RangeError(DRIVER_TEXT)],
    ["a thrown text", DRIVER_TEXT],
  ])("%s is INTERNAL", (_name, thrown) => {
    const error = storeError(thrown);
    expect(error.code).toBe("INTERNAL");
    expect(error.message).not.toContain(DRIVER_TEXT);
  });

  test("a LucidError stays what it is", () => {
    const error = new LucidError("TREE_CORRUPT", "t");
    expect(storeError(error)).toBe(error);
  });
});

test("an item of a write command is judged by the same codes", () => {
  expect(writeItemError(10_107, {}).code).toBe("STORE_UNAVAILABLE");
  expect(writeItemError(10_334, {}).code).toBe("INTERNAL");
});

test("wrong credentials end the start but only delay a running worker", () => {
  expect(connectError(serverError(18)).code).toBe("CONFIG_INVALID");
  expect(storeError(serverError(18)).code).toBe("STORE_UNAVAILABLE");
  expect(connectError(new MongoNetworkError(DRIVER_TEXT)).code).toBe("STORE_UNAVAILABLE");
});

test("where no connection was made no outcome is in doubt: it says what to check", () => {
  const cause = new MongoNetworkError(DRIVER_TEXT);
  for (const thrown of [cause, storeError(cause)]) {
    const error = connectError(thrown);
    expect(error).toMatchObject({ code: "STORE_UNAVAILABLE", cause });
    expect(error.message).toContain("check that it runs");
    expect(error.message).toContain("MONGODB_URL");
    expect(error.message).not.toContain("not known");
  }
});
