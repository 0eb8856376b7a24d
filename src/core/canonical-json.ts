import canonicalize from "canonicalize";
import { LucidError } from "./errors.ts";

export interface JsonLimits {
  /** UTF-8 bytes of the canonical text. */
  readonly bytesMax: number;
  /** Objects and arrays inside one another; a flat object has depth 1. */
  readonly depthMax: number;
}

/**
 * RFC 8785 text of a value that JSON.parse gave. `name` is the field for the message; the value is never in it.
 * Throws JOB_INVALID if it is too large, too deep, or holds what RFC 8785 can't say (a lone surrogate, 1e999).
 */
export function canonicalJson(name: string, value: unknown, { bytesMax, depthMax }: JsonLimits): string {
  // Before canonicalize, which recurses: a megabyte of `[` would end the stack.
  measure(name, value, bytesMax, depthMax);
  let text: string | undefined;
  try {
    text = canonicalize(value);
  } catch (cause) {
    throw new LucidError("JOB_INVALID", `${name} has a number or a text that JSON can't represent`, {
      cause,
    });
  }
  if (text === undefined || Buffer.byteLength(text) > bytesMax) throw tooLarge(name, bytesMax);
  return text;
}

/** Walks without recursion, and stops at the limits: the work is bounded by them, not by the value. */
function measure(name: string, root: unknown, bytesMax: number, depthMax: number): void {
  const open: { readonly value: unknown; readonly depth: number }[] = [{ value: root, depth: 1 }];
  let bytes = 0;
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { value, depth } = next;
    bytes += 1;
    if (typeof value === "string") bytes += value.length;
    if (typeof value === "object" && value !== null) {
      if (depth > depthMax) {
        throw new LucidError("JOB_INVALID", `${name} is nested more than ${depthMax} levels deep`);
      }
      const keys = Object.keys(value);
      if (keys.length > bytesMax) throw tooLarge(name, bytesMax);
      for (const key of keys) {
        if (!Array.isArray(value)) bytes += key.length;
        open.push({ value: (value as Record<string, unknown>)[key], depth: depth + 1 });
      }
    }
    if (bytes > bytesMax) throw tooLarge(name, bytesMax);
  }
}

function tooLarge(name: string, bytesMax: number): LucidError {
  return new LucidError("JOB_INVALID", `${name} has more than ${bytesMax} bytes as canonical JSON`);
}
