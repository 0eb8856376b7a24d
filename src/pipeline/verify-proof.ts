import { bytesEqual, fromHex } from "../core/bytes.ts";
import type { LeafHash, LeafIndex, NodeHash, SessionId, TreeSize } from "../core/ids.ts";
import { type ManifestFault, verifyManifest } from "../core/manifest/sign.ts";
import {
  type Checkpoint,
  type CheckpointFault,
  checkpointVerifierKey,
  verifyCheckpoint,
} from "../core/merkle/checkpoint.ts";
import { type HashAlgorithm, treeHasher } from "../core/merkle/hash.ts";
import { decodeLeaf, type Leaf } from "../core/merkle/leaf.ts";
import { type ProofFault, verifyConsistency, verifyInclusion } from "../core/merkle/proof.ts";
import { parseConsistencyProof, parseInclusionProof } from "../core/merkle/proof-json.ts";
import { parseTlogProof, verifyTlogProof } from "../core/merkle/tlog-proof.ts";

/** Why a proof, or what it is to be held against, is refused. */
export type ProofRefusal =
  | ProofFault
  | CheckpointFault
  | ManifestFault
  | "no-trusted-head-of-this-size"
  | "no-leaf"
  | "leaf-malformed"
  | "leaf-of-another-place"
  | "not-the-expected-leaf"
  | "not-the-expected-index";

export type HeadVerdict =
  | { readonly ok: true; readonly head: Checkpoint }
  | { readonly ok: false; readonly reason: ProofRefusal };

export interface VerifiedInclusion {
  readonly kind: "inclusion";
  readonly head: Checkpoint;
  readonly index: LeafIndex;
  readonly leafHash: LeafHash;
  /** What the leaf says, where the proof brings it along (tlog-proof). */
  readonly leaf: Leaf | undefined;
}

export interface VerifiedConsistency {
  readonly kind: "consistency";
  readonly head1: Checkpoint;
  readonly head2: Checkpoint;
}

export type ProofVerdict =
  | { readonly ok: true; readonly verified: VerifiedInclusion | VerifiedConsistency }
  | { readonly ok: false; readonly reason: ProofRefusal };

/** What the caller knows beforehand; whatever is given must be what the proof shows. */
export interface ExpectedLeaf {
  readonly index?: number;
  readonly leafHash?: Uint8Array;
}

/** Contract §8: the first line of a checkpoint. */
const ORIGIN_LINE = /^lucid\/session\/([A-Za-z0-9][A-Za-z0-9_-]{0,99})\/(blake3|sha256)\n/;

/** Which session's verifier keys to try: what the note claims here counts only once verifyCheckpoint has agreed. */
function claimedOrigin(
  note: string,
): { readonly sessionId: SessionId; readonly hashAlgorithm: HashAlgorithm } | undefined {
  const [, session, algorithm] = ORIGIN_LINE.exec(note) ?? [];
  if (session === undefined || algorithm === undefined) return undefined;
  return { sessionId: session as SessionId, hashAlgorithm: algorithm as HashAlgorithm };
}

function refused(reason: ProofRefusal): { readonly ok: false; readonly reason: ProofRefusal } {
  return { ok: false, reason };
}

/** Size and root of a signed manifest. */
export function headOfManifest(bytes: Uint8Array, pinnedKeys: readonly Uint8Array[]): HeadVerdict {
  const verdict = verifyManifest(bytes, pinnedKeys);
  if (!verdict.ok) return refused(verdict.reason);
  const { session_metadata, merkle } = verdict.manifest;
  const head: Checkpoint = {
    sessionId: session_metadata.session_id as SessionId,
    hashAlgorithm: merkle.hash_algorithm,
    size: merkle.tree_size as TreeSize,
    root: (fromHex(merkle.root_hash) ?? new Uint8Array(0)) as NodeHash,
  };
  return { ok: true, head };
}

/** Size and root of a checkpoint: of the session that its first line names, signed by a pinned key. */
export function headOfCheckpoint(note: string, pinnedKeys: readonly Uint8Array[]): HeadVerdict {
  const origin = claimedOrigin(note);
  if (origin === undefined) return refused("malformed");
  const keys = pinnedKeys.map((key) => checkpointVerifierKey(origin.sessionId, origin.hashAlgorithm, key));
  const verdict = verifyCheckpoint(note, origin.sessionId, keys);
  return verdict.ok ? { ok: true, head: verdict.checkpoint } : verdict;
}

/**
 * A proof in the JSON form of contract §8 against heads that were verified before. The sizes in the proof choose among
 * them and never stand for one: a root alone doesn't bind its size.
 */
export function verifyJsonProof(
  text: string,
  heads: readonly Checkpoint[],
  expected: ExpectedLeaf = {},
): ProofVerdict {
  const consistency = parseConsistencyProof(text);
  if (consistency.ok) {
    const { proof } = consistency;
    const head1 = heads.find(({ size, root }) => size === proof.size1 && bytesEqual(root, proof.root1));
    const head2 = heads.find(({ size, root }) => size === proof.size2 && bytesEqual(root, proof.root2));
    if (head1 === undefined || head2 === undefined || head1.sessionId !== head2.sessionId)
      return refused("no-trusted-head-of-this-size");
    const verdict = verifyConsistency(proof, head1, head2);
    return verdict.ok ? { ok: true, verified: { kind: "consistency", head1, head2 } } : verdict;
  }
  const inclusion = parseInclusionProof(text);
  if (!inclusion.ok) return refused(inclusion.reason === "malformed" ? consistency.reason : inclusion.reason);
  const { proof } = inclusion;
  const head = heads.find(({ size }) => size === proof.treeSize);
  if (head === undefined) return refused("no-trusted-head-of-this-size");
  const verdict = verifyInclusion(proof, head);
  if (!verdict.ok) return verdict;
  const { leafIndex: index, leafHash } = proof;
  const unexpected = difference(index, leafHash, expected);
  if (unexpected !== undefined) return refused(unexpected);
  return { ok: true, verified: { kind: "inclusion", head, index, leafHash, leaf: undefined } };
}

/**
 * A C2SP tlog-proof, which brings its checkpoint and, as ours do, its leaf. Without the leaf in it the leaf hash must be expected:
 * the form itself names none.
 */
export function verifyTextProof(
  text: string,
  pinnedKeys: readonly Uint8Array[],
  expected: ExpectedLeaf = {},
): ProofVerdict {
  const parsed = parseTlogProof(text);
  const origin = parsed === undefined ? undefined : claimedOrigin(parsed.checkpointNote);
  if (parsed === undefined || origin === undefined) return refused("malformed");
  const { sessionId, hashAlgorithm } = origin;
  const leaf = parsed.extra === undefined ? undefined : leafOf(parsed.extra);
  if (parsed.extra !== undefined && leaf === undefined) return refused("leaf-malformed");
  if (leaf !== undefined && (leaf.sessionId !== sessionId || leaf.index !== parsed.index))
    return refused("leaf-of-another-place");
  const leafHash =
    parsed.extra === undefined ? expected.leafHash : treeHasher(hashAlgorithm).leaf(parsed.extra);
  if (leafHash === undefined) return refused("no-leaf");
  const keys = pinnedKeys.map((key) => checkpointVerifierKey(sessionId, hashAlgorithm, key));
  const verdict = verifyTlogProof(text, leafHash as LeafHash, sessionId, keys);
  if (!verdict.ok) return verdict;
  const unexpected = difference(verdict.index, leafHash, expected);
  if (unexpected !== undefined) return refused(unexpected);
  const { index, checkpoint: head } = verdict;
  return { ok: true, verified: { kind: "inclusion", head, index, leafHash: leafHash as LeafHash, leaf } };
}

function leafOf(bytes: Uint8Array): Leaf | undefined {
  try {
    return decodeLeaf(bytes);
  } catch {
    return undefined;
  }
}

function difference(index: number, leafHash: Uint8Array, expected: ExpectedLeaf): ProofRefusal | undefined {
  if (expected.index !== undefined && expected.index !== index) return "not-the-expected-index";
  if (expected.leafHash !== undefined && !bytesEqual(expected.leafHash, leafHash))
    return "not-the-expected-leaf";
  return undefined;
}
