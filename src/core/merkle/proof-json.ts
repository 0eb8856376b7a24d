import { fromHex, toHex } from "../bytes.ts";
import type { NodeHash } from "../ids.ts";
import {
  type ConsistencyProof,
  consistencyFault,
  type InclusionProof,
  inclusionFault,
  PATH_HASHES_MAX,
  type ProofFault,
} from "./proof.ts";

/** The JSON form of proofs, contract §8. The longest is about 2.5 KiB in one line; this leaves room for indentation. */
export const PROOF_TEXT_CHARS_MAX = 16_384;

export type Parsed<Proof> =
  | { readonly ok: true; readonly proof: Proof }
  | { readonly ok: false; readonly reason: ProofFault };

/** One line, contract field order, lowercase hex, no line feed at the end. */
export function inclusionProofToJson(proof: InclusionProof): string {
  return JSON.stringify({
    hash_algorithm: proof.hashAlgorithm,
    tree_size: proof.treeSize,
    leaf_index: proof.leafIndex,
    leaf_hash: toHex(proof.leafHash),
    path: proof.path.map(toHex),
    root_hash: toHex(proof.rootHash),
  });
}

/** As inclusionProofToJson. */
export function consistencyProofToJson(proof: ConsistencyProof): string {
  return JSON.stringify({
    hash_algorithm: proof.hashAlgorithm,
    size1: proof.size1,
    size2: proof.size2,
    root1: toHex(proof.root1),
    root2: toHex(proof.root2),
    path: proof.path.map(toHex),
  });
}

type JsonFields = Readonly<Record<string, unknown>>;

/**
 * Exactly these fields in any order, with any white space between tokens, at most one line feed after the end.
 * Writing the parsed value again must give the same characters: that refuses what JSON.parse lets through, which is
 * repeated keys, escapes, `1e3`, `-0` and `1.0`.
 */
function parseJsonFields(text: unknown, names: readonly string[]): JsonFields | undefined {
  if (typeof text !== "string" || text.length > PROOF_TEXT_CHARS_MAX) return undefined;
  const body = text.endsWith("\n") ? text.slice(0, -1) : text;
  if (!body.startsWith("{") || !body.endsWith("}")) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    return undefined;
  }
  // No field's text has white space in it, so removing all of it removes only what is between tokens.
  if (JSON.stringify(value) !== body.replaceAll(/[ \t\r\n]/g, "")) return undefined;
  const fields = value as JsonFields;
  const found = Object.keys(fields);
  return found.length === names.length && names.every((name) => found.includes(name)) ? fields : undefined;
}

/** 64 lowercase hex digits, or `undefined`. */
function parseHash(text: unknown): NodeHash | undefined {
  return typeof text === "string" && /^[0-9a-f]{64}$/.test(text) ? (fromHex(text) as NodeHash) : undefined;
}

function parsePath(value: unknown): readonly (NodeHash | undefined)[] | undefined {
  return Array.isArray(value) && value.length <= PATH_HASHES_MAX ? value.map(parseHash) : undefined;
}

const INCLUSION_FIELDS = ["hash_algorithm", "tree_size", "leaf_index", "leaf_hash", "path", "root_hash"];
const CONSISTENCY_FIELDS = ["hash_algorithm", "size1", "size2", "root1", "root2", "path"];

/** Form and ranges only: a parsed proof is still to be verified against a trusted head. Never throws. */
export function parseInclusionProof(text: string): Parsed<InclusionProof> {
  const fields = parseJsonFields(text, INCLUSION_FIELDS);
  if (fields === undefined) return { ok: false, reason: "malformed" };
  // The casts are made true by inclusionFault, which looks at every field.
  const proof = {
    hashAlgorithm: fields["hash_algorithm"],
    treeSize: fields["tree_size"],
    leafIndex: fields["leaf_index"],
    leafHash: parseHash(fields["leaf_hash"]),
    path: parsePath(fields["path"]),
    rootHash: parseHash(fields["root_hash"]),
  } as unknown as InclusionProof;
  const reason = inclusionFault(proof);
  return reason === undefined ? { ok: true, proof } : { ok: false, reason };
}

/** As parseInclusionProof. */
export function parseConsistencyProof(text: string): Parsed<ConsistencyProof> {
  const fields = parseJsonFields(text, CONSISTENCY_FIELDS);
  if (fields === undefined) return { ok: false, reason: "malformed" };
  const proof = {
    hashAlgorithm: fields["hash_algorithm"],
    size1: fields["size1"],
    size2: fields["size2"],
    root1: parseHash(fields["root1"]),
    root2: parseHash(fields["root2"]),
    path: parsePath(fields["path"]),
  } as unknown as ConsistencyProof;
  const reason = consistencyFault(proof);
  return reason === undefined ? { ok: true, proof } : { ok: false, reason };
}
