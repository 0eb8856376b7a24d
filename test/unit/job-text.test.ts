import { describe, expect, test } from "vitest";
import {
  base64Chars,
  JOB_FIELD_CHARS_MAX,
  leadingFields,
  plainFields,
  refusalOfText,
} from "../../src/pipeline/job-text.ts";

const CHUNK_BYTES_MAX = 300_000;
const LIMITS = { payloadCharsMax: base64Chars(CHUNK_BYTES_MAX) };
const NO_PAYLOAD = { payloadCharsMax: 0 };
const IDS = '"session_id":"sess-a","chunk_id":"c-7","chunk_index":7';

const codeOf = (text: string, limits = LIMITS) => refusalOfText(text, limits)?.code;
const withPayload = (payload: string, name = "chunk_data_base64", more = "") =>
  `{${IDS},"${name}":"${payload}"${more}}`;
/** Of exactly `chars` characters. */
const filled = (before: string, fill: string, after: string, chars: number) =>
  `${before}${fill.repeat(chars).slice(0, chars - before.length - after.length)}${after}`;

describe("a job's text", () => {
  test.each(["chunk_data_base64", "chunk_data"])("with the largest chunk in %s is parsed", (name) => {
    const payload = Buffer.alloc(CHUNK_BYTES_MAX, 0xff).toString("base64");
    expect(payload.length).toBe(LIMITS.payloadCharsMax);
    expect(codeOf(withPayload(payload, name))).toBeUndefined();
    expect(codeOf(JSON.stringify(JSON.parse(withPayload(payload, name)), undefined, 4))).toBeUndefined();
    // A producer may write every slash as an escape.
    expect(codeOf(withPayload(payload.slice(100).replaceAll("//", "\\/")))).toBeUndefined();
  });

  test("of the largest metadata, written in escapes, beside the largest chunk is parsed", () => {
    const metadata = { a: "\\u00e9".repeat(8_000), b: '\\"'.repeat(100) };
    const text = `,"metadata":{"a":"${metadata.a}","b":"${metadata.b}"}`;
    expect(
      codeOf(withPayload("A".repeat(LIMITS.payloadCharsMax), "chunk_data_base64", text)),
    ).toBeUndefined();
  });

  test("one character beyond the limit of the whole is refused, as a chunk that is too large", () => {
    const whole = LIMITS.payloadCharsMax + JOB_FIELD_CHARS_MAX;
    const text = filled(`{${IDS},"chunk_data_base64":"`, "A", '"}', whole);
    expect(codeOf(text)).toBeUndefined();
    expect(codeOf(filled(`{${IDS},"chunk_data_base64":"`, "A", '"}', whole + 1))).toBe("PAYLOAD_TOO_LARGE");
    expect(codeOf(withPayload("A".repeat(25_000_000)))).toBe("PAYLOAD_TOO_LARGE");
  });

  test.each([
    ["many keys", `{${IDS},"metadata":{`, '"k":1,', "}}"],
    ["deep nesting", `{${IDS},"metadata":`, "[", "}"],
    ["a long number", `{${IDS},"metadata":`, "1", "}"],
    ["blanks", `{${IDS}`, " ", "}"],
    ["quotes", `{${IDS},"chunk_id":"`, '\\"', '"}'],
    ["backslashes", `{${IDS},"chunk_id":"`, "\\", '"}'],
    ["a long id", `{"session_id":"`, "a", '"}'],
    ["a long text under another name", `{${IDS},"chunk_data_base64_":"`, "a", '"}'],
    ["a payload's name in metadata", `{${IDS},"metadata":{"chunk_data":"`, "a", '"}}'],
    ["a payload's name in a list", `{${IDS},"x":[{"chunk_data_base64":"`, "a", '"}]}'],
    ["a payload's name, after braces in a text", `{${IDS},"a":"}\\"}","x":{"chunk_data":"`, "a", '"}}'],
    ["a text that doesn't end", `{${IDS},"chunk_data_base64":"`, "a", ""],
    ["no JSON", "", "x", ""],
  ])("of more characters than all other fields need is refused: %s", (_name, before, fill, after) => {
    expect(codeOf(filled(before, fill, after, JOB_FIELD_CHARS_MAX))).toBeUndefined();
    expect(codeOf(filled(before, fill, after, JOB_FIELD_CHARS_MAX + 1))).toBe("JOB_INVALID");
    expect(codeOf(filled(before, fill, after, 2_000_000))).toBe("JOB_INVALID");
  });

  test("with a chunk after objects, lists and texts that look like them is parsed", () => {
    const before = `"metadata":{"a":[{"b":"}]{\\"["}]},"recorded_at":"{"`;
    const payload = "A".repeat(LIMITS.payloadCharsMax);
    expect(codeOf(`{${before},"chunk_data":"${payload}"}`)).toBeUndefined();
  });

  test("other fields have their limit beside a chunk too", () => {
    const room = JOB_FIELD_CHARS_MAX - withPayload("").length - ',"x":""'.length;
    const payload = "A".repeat(LIMITS.payloadCharsMax);
    const beside = (chars: number) => withPayload(payload, "chunk_data", `,"x":"${"b".repeat(chars)}"`);
    expect(codeOf(beside(room))).toBeUndefined();
    expect(codeOf(beside(room + 100))).toBe("JOB_INVALID");
  });

  test("of a job without a payload has the limit of the other fields", () => {
    expect(codeOf(filled('{"a":"', "a", '"}', JOB_FIELD_CHARS_MAX), NO_PAYLOAD)).toBeUndefined();
    expect(codeOf(filled('{"a":"', "a", '"}', JOB_FIELD_CHARS_MAX + 1), NO_PAYLOAD)).toBe("JOB_INVALID");
    expect(codeOf(withPayload("A".repeat(100_000)), NO_PAYLOAD)).toBe("JOB_INVALID");
  });

  test("is looked at in no more time than its bytes need, whatever it holds", () => {
    const hostile = ['"', '\\"', "\\", "[", '"k":1,', '""'].map((fill) => filled("{", fill, "}", 20_000_000));
    const startedMs = performance.now();
    for (const text of hostile) expect(codeOf(text)).toBe("JOB_INVALID");
    expect((performance.now() - startedMs) / hostile.length).toBeLessThan(500);
  });

  test("is never repeated in a message", () => {
    for (const text of [withPayload("SECRET".repeat(200_000)), `{"x":"${"SECRET".repeat(100_000)}"}`])
      expect(refusalOfText(text, LIMITS)?.message).not.toContain("SECRET");
  });
});

describe("leading fields", () => {
  test("are the texts and whole numbers before anything else", () => {
    const all = { session_id: "sess-a", chunk_id: "c-7", chunk_index: 7 };
    expect(leadingFields(withPayload("A".repeat(1_000)))).toEqual(all);
    expect(leadingFields(` {\n "session_id" : "sess-a" ,\n "metadata": {"chunk_id": "no"}}`)).toEqual({
      session_id: "sess-a",
    });
    expect(leadingFields('{"chunk_index":1.5,"session_id":"s"}')).toEqual({});
    expect(leadingFields('{"metadata":{},"session_id":"s"}')).toEqual({});
  });

  test.each(["", "null", "[1]", '"text"', "{", '{"a', '{"session_id":"a\\"b"}'])("are none in %j", (text) => {
    expect(leadingFields(text)).toEqual({});
  });

  test("end before a text that is longer than an id", () => {
    expect(leadingFields(`{"chunk_index":7,"a":"${"b".repeat(9_000)}"}`)).toEqual({ chunk_index: 7 });
  });
});

describe("what is kept of refused data", () => {
  test("is known, short and not nested", () => {
    const plain = { session_id: "sess-a", chunk_id: "c-7", chunk_index: 7, size_bytes: 5, committed: true };
    const foreign = {
      evil: "plain",
      chunk_data_base64: "cGxhaW4=",
      metadata: { a: 1 },
      blake3: "p".repeat(101),
    };
    expect(plainFields({ ...plain, ...foreign, sha256: ["plain"], recorded_at: null })).toEqual(plain);
  });

  test.each([null, undefined, 7, "text", [], ["a"]])("is nothing of %j", (data) => {
    expect(plainFields(data)).toEqual({});
  });

  test("never comes from a prototype", () => {
    expect(plainFields(Object.create({ session_id: "sess-a" }))).toEqual({});
  });
});
