import { InvalidArgumentError } from "commander";
import { isId, LEAF_INDEX_MAX, type SessionId } from "../core/ids.ts";

/** Parsers of arguments: what they refuse is wrong usage, with exit code 2. */

export function parseSession(text: string): SessionId {
  if (isId(text)) return text as SessionId;
  throw new InvalidArgumentError("must be 1 to 100 letters, digits, _ and -, and not begin with _ or -");
}

/** What else limits it, a tree's size or a setting, says whoever knows that. */
export function parseCount(text: string): number {
  return wholeNumber(text, 0, Number.MAX_SAFE_INTEGER, ", 0 or more");
}

export function parseCountFromOne(text: string): number {
  return wholeNumber(text, 1, Number.MAX_SAFE_INTEGER, ", 1 or more");
}

export function parseChunkCount(text: string): number {
  return wholeNumber(text, 1, LEAF_INDEX_MAX + 1, ` from 1 to ${LEAF_INDEX_MAX + 1}`);
}

export function parseIndex(text: string): number {
  return wholeNumber(text, 0, LEAF_INDEX_MAX, ` from 0 to ${LEAF_INDEX_MAX}`);
}

function wholeNumber(text: string, min: number, max: number, range: string): number {
  const number = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (number >= min && number <= max) return number;
  throw new InvalidArgumentError(`must be a whole number${range}`);
}

/** For an option that may be repeated; commander shows no default for an array that isn't there. */
export function append(value: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), value];
}
