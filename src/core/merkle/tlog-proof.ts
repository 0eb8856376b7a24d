import { asBuffer, fromBase64 } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import {
  HASH_BYTES,
  LEAF_INDEX_MAX,
  type LeafHash,
  type LeafIndex,
  type NodeHash,
  type SessionId,
} from "../ids.ts";
import {
  type Checkpoint,
  CHECKPOINT_CHARS_MAX,
  type CheckpointFault,
  parseDecimal,
  type VerifierKey,
  verifyCheckpoint,
} from "./checkpoint.ts";
import { type InclusionProof, PATH_HASHES_MAX, type ProofFault, verifyInclusion } from "./proof.ts";

/**
 * C2SP tlog-proof: an inclusion proof and the signed checkpoint it leads to, in one text that is verified offline.
 * The specification speaks of SHA-256 trees; for a BLAKE3 tree the form is the same, and the checkpoint's origin ends
 * in `/blake3`, so that no verifier takes one for the other.
 */
export interface TlogProof {
  readonly index: LeafIndex;
  readonly path: readonly NodeHash[];
  /** The signed note, verbatim. */
  readonly checkpointNote: string;
  /** Opaque and not authenticated by itself; ours is the encoded leaf, from which the leaf hash is computed. */
  readonly extra?: Uint8Array;
}

export type TlogProofVerdict =
  | { readonly ok: true; readonly index: LeafIndex; readonly checkpoint: Checkpoint }
  | { readonly ok: false; readonly reason: ProofFault | CheckpointFault };

const TLOG_PROOF_EXTRA_BYTES_MAX = 65_536;

const FIRST_LINE = "c2sp.org/tlog-proof@v1";
const EXTRA_START = "extra ";
const INDEX_START = "index ";
const TLOG_PROOF_CHARS_MAX = CHECKPOINT_CHARS_MAX + 2 * TLOG_PROOF_EXTRA_BYTES_MAX;

function base64(bytes: Uint8Array): string {
  return asBuffer(bytes).toString("base64");
}

/** The text form of a proof that leads to the checkpoint of `checkpointNote`. */
export function formatTlogProof(proof: InclusionProof, checkpointNote: string, extra?: Uint8Array): string {
  const extraBytes = extra?.byteLength ?? 0;
  if (extraBytes > TLOG_PROOF_EXTRA_BYTES_MAX) {
    throw new LucidError("PROOF_INVALID", "the extra data of a tlog-proof is at most 65536 bytes");
  }
  const lines = [
    FIRST_LINE,
    ...(extra === undefined || extraBytes === 0 ? [] : [`${EXTRA_START}${base64(extra)}`]),
    `${INDEX_START}${proof.leafIndex}`,
    ...proof.path.map(base64),
  ];
  return `${lines.join("\n")}\n\n${checkpointNote}`;
}

/** Strict about the proof's lines; the note inside is checked by verifyTlogProof. `undefined` when malformed. */
export function parseTlogProof(text: string): TlogProof | undefined {
  if (typeof text !== "string" || text.length > TLOG_PROOF_CHARS_MAX) return undefined;
  const separator = text.indexOf("\n\n");
  if (separator < 0) return undefined;
  const [first, ...lines] = text.slice(0, separator).split("\n");
  if (first !== FIRST_LINE) return undefined;
  const hasExtra = lines[0]?.startsWith(EXTRA_START) === true;
  const extra = hasExtra ? parseExtra(lines.shift()) : undefined;
  const index = parseIndexLine(lines.shift());
  const path = parseHashLines(lines);
  if (index === undefined || path === undefined || (hasExtra && extra === undefined)) return undefined;
  const checkpointNote = text.slice(separator + 2);
  return { index, path, checkpointNote, ...(extra === undefined ? {} : { extra }) };
}

function parseExtra(line: string | undefined): Uint8Array | undefined {
  const extra = fromBase64(line?.slice(EXTRA_START.length) ?? "");
  return extra === undefined || extra.byteLength > TLOG_PROOF_EXTRA_BYTES_MAX
    ? undefined
    : new Uint8Array(extra);
}

function parseIndexLine(line: string | undefined): LeafIndex | undefined {
  if (line?.startsWith(INDEX_START) !== true) return undefined;
  return parseDecimal(line.slice(INDEX_START.length), LEAF_INDEX_MAX) as LeafIndex | undefined;
}

function parseHashLines(lines: readonly string[]): readonly NodeHash[] | undefined {
  if (lines.length > PATH_HASHES_MAX) return undefined;
  const hashes = lines.map(fromBase64).filter((hash) => hash?.byteLength === HASH_BYTES);
  return hashes.length === lines.length ? (hashes as Uint8Array[] as NodeHash[]) : undefined;
}

/**
 * That `leafHash` is in the tree of `session` which a pinned key has signed, at the index that the text says. The caller
 * computes the leaf hash from the leaf, and compares the returned index with the one it asked for. Never throws.
 */
export function verifyTlogProof(
  text: string,
  leafHash: LeafHash,
  session: SessionId,
  pinned: readonly VerifierKey[],
): TlogProofVerdict {
  const parsed = parseTlogProof(text);
  if (parsed === undefined) return { ok: false, reason: "malformed" };
  const signed = verifyCheckpoint(parsed.checkpointNote, session, pinned);
  if (!signed.ok) return signed;
  const { checkpoint } = signed;
  const proof: InclusionProof = {
    hashAlgorithm: checkpoint.hashAlgorithm,
    treeSize: checkpoint.size,
    leafIndex: parsed.index,
    leafHash,
    path: parsed.path,
    rootHash: checkpoint.root,
  };
  const verdict = verifyInclusion(proof, checkpoint);
  return verdict.ok ? { ok: true, index: parsed.index, checkpoint } : verdict;
}
