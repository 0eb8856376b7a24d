import { LucidError } from "../core/errors.ts";

/*
 * A job's data as it lies in Redis: any text that somebody wrote. JSON.parse and the checks behind it run on the event
 * loop that renews job locks, and their cost grows with the number of values, so a text is looked at before it is parsed.
 * What passes is at most one long text, under the payload's name in the object itself, and JOB_FIELD_CHARS_MAX characters
 * besides.
 */

/**
 * All of a job but its payload. 16 KiB of metadata come to 48 KiB at most where every character is written as an escape
 * (`\uXXXX`, Python's default); ids, digests and names stay below 2 KiB.
 */
export const JOB_FIELD_CHARS_MAX = 64 * 1024;
/** How far `leadingFields` looks; four ids and their names are a tenth of it. */
const LEADING_CHARS_MAX = 4_096;

export interface TextLimits {
  /** Characters of `chunk_data_base64`; 0 for jobs that carry no payload. */
  readonly payloadCharsMax: number;
}

/** Characters of strict base64. */
export function base64Chars(bytes: number): number {
  return Math.ceil(bytes / 3) * 4;
}

/**
 * Why a job's data is not to be parsed, or `undefined`. The work is a search for quotes, at most one for each character that
 * is allowed outside the payload: a text of any length and form costs no more than its bytes do.
 */
export function refusalOfText(text: string, { payloadCharsMax }: TextLimits): LucidError | undefined {
  if (text.length <= JOB_FIELD_CHARS_MAX) return undefined;
  const longest = payloadCharsMax === 0 ? undefined : longestString(text);
  const otherChars = text.length - (longest?.chars ?? 0);
  if (longest !== undefined && otherChars <= JOB_FIELD_CHARS_MAX && isPayload(text, longest.start)) {
    // Within the limit of the whole, or the decoder's to refuse: it knows which characters are escapes.
    return text.length <= payloadCharsMax + JOB_FIELD_CHARS_MAX ? undefined : payloadTooLong();
  }
  return new LucidError(
    "JOB_INVALID",
    payloadCharsMax === 0
      ? `the job's data has more than ${JOB_FIELD_CHARS_MAX} characters`
      : `the job's data has more than ${JOB_FIELD_CHARS_MAX} characters beside chunk_data_base64`,
  );
}

function payloadTooLong(): LucidError {
  return new LucidError("PAYLOAD_TOO_LARGE", "chunk_data_base64 is longer than LUCID_MAX_CHUNK_SIZE allows");
}

interface LongestString {
  readonly start: number;
  readonly chars: number;
}

/** The longest JSON string of a text; gives up where more quotes are than a job can have outside its payload. */
function longestString(text: string): LongestString | undefined {
  let longest = { start: 0, chars: 0 };
  let start: number | undefined;
  let quotes = 0;
  for (let at = text.indexOf('"'); at >= 0; at = text.indexOf('"', at + 1)) {
    if ((quotes += 1) > JOB_FIELD_CHARS_MAX) return undefined;
    if (start === undefined) {
      start = at + 1;
    } else if (!isEscaped(text, at)) {
      if (at - start > longest.chars) longest = { start, chars: at - start };
      start = undefined;
    }
  }
  return longest;
}

/**
 * True for a string that begins at `start` and is the value of a payload's field of the job itself. In a deeper object the
 * same name is nobody's payload. Walks what is before it: at most JOB_FIELD_CHARS_MAX characters, as no longer one is there.
 */
function isPayload(text: string, start: number): boolean {
  const before = text.slice(Math.max(0, start - PAYLOAD_NAME_CHARS_MAX), start);
  return PAYLOAD_NAME.test(before) && depthAt(text, start - 1) === 1;
}

/** Objects and lists that are open at the quote at `end`. */
function depthAt(text: string, end: number): number {
  let depth = 0;
  let isInString = false;
  for (let at = 0; at < end; at += 1) {
    const char = text[at];
    if (isInString && char === "\\") at += 1;
    else if (char === '"') isInString = !isInString;
    else if (isInString) continue;
    else if (char === "{" || char === "[") depth += 1;
    else if (char === "}" || char === "]") depth -= 1;
  }
  return depth;
}

const PAYLOAD_NAME = /"(?:chunk_data_base64|chunk_data)"\s{0,8}:\s{0,8}"$/;
const PAYLOAD_NAME_CHARS_MAX = 64;

/** After an odd number of backslashes; a run that is longer than the limit is no part of a job that is taken. */
function isEscaped(text: string, at: number): boolean {
  let backslashes = 0;
  while (text[at - 1 - backslashes] === "\\" && backslashes < JOB_FIELD_CHARS_MAX) backslashes += 1;
  return backslashes % 2 === 1;
}

/**
 * The texts and whole numbers that stand at the very beginning of a JSON object, before anything else: usually the ids.
 * They tell whose the job is that isn't parsed. Not to be believed more than any job's own word.
 */
export function leadingFields(text: string): Readonly<Record<string, string | number>> {
  const head = text.slice(0, LEADING_CHARS_MAX);
  const open = /^\s*\{\s*/.exec(head);
  const fields = new Map<string, string | number>();
  const field = /"(\w{1,40})"\s*:\s*(?:"([^"\\]{0,200})"|(\d{1,10}))\s*[,}]\s*/y;
  field.lastIndex = open?.[0].length ?? head.length;
  for (let found = field.exec(head); found !== null; found = field.exec(head)) {
    const [, name = "", string, number] = found;
    fields.set(name, string ?? Number(number));
  }
  return Object.fromEntries(fields);
}

/** Fields of a job that are short texts or numbers: whose it is, and what was declared of it. */
const PLAIN_FIELDS = [
  "committed",
  "session_id",
  "chunk_id",
  "chunk_index",
  "sequence_number",
  "chunk_count",
  "size_bytes",
  "blake3",
  "sha256",
  "recorded_at",
  "leaf_hash",
] as const;
/** An id has 100 characters. */
const PLAIN_CHARS_MAX = 100;

/**
 * What a dead letter keeps of data that was refused for ever. Nothing of it that is nested, long, or of a name that we don't
 * know: it may be plaintext under any name, and data that is nested deeper than the stack can't be written as JSON again.
 */
export function plainFields(data: unknown): Readonly<Record<string, string | number | boolean>> {
  const kept: Record<string, string | number | boolean> = {};
  if (typeof data !== "object" || data === null) return kept;
  for (const name of PLAIN_FIELDS) {
    const value: unknown = Object.hasOwn(data, name) ? (data as Record<string, unknown>)[name] : undefined;
    const isShort = typeof value === "string" && value.length <= PLAIN_CHARS_MAX;
    if (isShort || typeof value === "number" || typeof value === "boolean") kept[name] = value;
  }
  return kept;
}
