import { canonicalJson } from "../canonical-json.ts";
import type { Manifest } from "./manifest.ts";

/** The anchor file of contract §9, field by field; the names are the wire's. */
export interface AnchorFile {
  readonly session_id: string;
  readonly tree_size: number;
  readonly root_hash: string;
  readonly hash_algorithm: string;
  /** ISO 8601 in UTC, by the clock of the worker that saw the confirmation; what counts is the block's own time. */
  readonly anchored_at: string;
  readonly anchoring_id?: string;
  readonly transaction?: string;
  readonly block?: number;
}

export type AnchorFileVerdict =
  | { readonly ok: true; readonly anchor: AnchorFile }
  | { readonly ok: false; readonly detail: string };

export const ANCHOR_FILE_BYTES_MAX = 16_384;
const LIMITS = { bytesMax: ANCHOR_FILE_BYTES_MAX, depthMax: 4 };
const ENGINE_TEXT_CHARS_MAX = 1_024;
const UTC_TIME_PATTERN = /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$/;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The file's text: RFC 8785. A field without a value is left out. */
export function anchorFileText(
  anchor: { readonly [Field in keyof AnchorFile]: AnchorFile[Field] | undefined },
): string {
  return canonicalJson("anchor", anchor, LIMITS);
}

/**
 * Whether an anchor file is in its canonical form and speaks of the tree of `manifest` (verified before). Nobody signs it: that
 * the transaction is on a chain, and holds this root, has to be looked up there. Never throws.
 */
export function verifyAnchorFile(bytes: Uint8Array, manifest: Manifest): AnchorFileVerdict {
  let anchor: AnchorFile;
  try {
    const text = decoder.decode(bytes);
    anchor = JSON.parse(text) as AnchorFile;
    if (anchorFileText(anchor) !== text) return refused("it is not in RFC 8785 form");
  } catch {
    return refused("it can't be read as an anchor file");
  }
  const fault = formFault(anchor) ?? difference(anchor, manifest);
  return fault === undefined ? { ok: true, anchor } : refused(fault);
}

type Check = (value: unknown) => boolean;

const engineText: Check = (value) =>
  typeof value === "string" && value.length >= 1 && value.length <= ENGINE_TEXT_CHARS_MAX;
const optional =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);

/** What must be equal to the manifest's field is looked at there. */
const CHECKS: Readonly<Record<keyof AnchorFile, Check>> = {
  session_id: (value) => typeof value === "string",
  tree_size: (value) => typeof value === "number",
  root_hash: (value) => typeof value === "string",
  hash_algorithm: (value) => typeof value === "string",
  anchored_at: (value) => typeof value === "string" && UTC_TIME_PATTERN.test(value),
  anchoring_id: optional(engineText),
  transaction: optional(engineText),
  block: optional((value) => Number.isSafeInteger(value) && (value as number) >= 0),
};

function formFault(anchor: unknown): string | undefined {
  if (typeof anchor !== "object" || anchor === null || Array.isArray(anchor)) return "it is not an object";
  const fields = anchor as Readonly<Record<string, unknown>>;
  if (!Object.keys(fields).every((name) => Object.hasOwn(CHECKS, name))) return "it has an unknown field";
  const wrong = Object.entries(CHECKS).find(
    ([name, check]) => !check(Object.hasOwn(fields, name) ? fields[name] : undefined),
  );
  return wrong === undefined ? undefined : `${wrong[0]} is missing or not of its form`;
}

function difference(anchor: AnchorFile, { session_metadata, merkle }: Manifest): string | undefined {
  if (anchor.session_id !== session_metadata.session_id) return "session_id is not that of the manifest";
  if (anchor.tree_size !== merkle.tree_size) return "tree_size is not that of the manifest";
  if (anchor.root_hash !== merkle.root_hash) return "root_hash is not that of the manifest";
  if (anchor.hash_algorithm !== merkle.hash_algorithm) return "hash_algorithm is not that of the manifest";
  return undefined;
}

function refused(detail: string): AnchorFileVerdict {
  return { ok: false, detail };
}
