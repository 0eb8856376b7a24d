import { InvalidArgumentError } from "commander";
import { isId, LEAF_INDEX_MAX, type SessionId } from "../core/ids.ts";

/** Parsers of arguments: what they refuse is wrong usage, with exit code 2. */

export function parseSession(text: string): SessionId {
  if (isId(text)) return text as SessionId;
  throw new InvalidArgumentError("must be 1 to 100 letters, digits, _ and -, and not begin with _ or -");
}

export function parseCount(text: string): number {
  if (!/^\d{1,10}$/.test(text)) throw new InvalidArgumentError("must be a whole number, 0 or more");
  return Number(text);
}

export function parseCountFromOne(text: string): number {
  const count = parseCount(text);
  if (count === 0) throw new InvalidArgumentError("must be a whole number, 1 or more");
  return count;
}

export function parseIndex(text: string): number {
  const index = parseCount(text);
  if (index > LEAF_INDEX_MAX) {
    throw new InvalidArgumentError(`must be a chunk index, from 0 to ${LEAF_INDEX_MAX}`);
  }
  return index;
}

/** For an option that may be repeated; commander shows no default for an array that isn't there. */
export function append(value: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), value];
}
