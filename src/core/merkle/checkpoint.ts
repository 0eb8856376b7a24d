import {
  createPublicKey,
  type KeyObject,
  hash as digestOnce,
  sign as signBytes,
  verify as verifyBytes,
} from "node:crypto";
import { asBuffer, bytesEqual, fromBase64, toHex, utf8 } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import { HASH_BYTES, isId, type NodeHash, type SessionId, type TreeSize } from "../ids.ts";
import { TREE_SIZE_MAX } from "./frontier.ts";
import { type HashAlgorithm, isHashAlgorithm } from "./hash.ts";
import { type ConsistencyProof, type SizedRoot, verifyConsistency } from "./proof.ts";

/** C2SP tlog-checkpoint: a session's size and root, signed together. */
export interface Checkpoint extends SizedRoot {
  readonly sessionId: SessionId;
}

/** C2SP signed-note: a key name, and the Ed25519 public key it stands for. */
export interface VerifierKey {
  readonly name: string;
  /** 32 bytes, RFC 8032. */
  readonly publicKey: Uint8Array;
  /** 4 bytes: SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key)[:4]. */
  readonly keyId: Uint8Array;
}

export type CheckpointFault =
  | "malformed"
  | "not-the-expected-session"
  | "no-signature-of-a-pinned-key"
  | "signature-invalid";

export type CheckpointVerdict =
  | { readonly ok: true; readonly checkpoint: Checkpoint }
  | { readonly ok: false; readonly reason: CheckpointFault };

/** Signed-note: verifiers accept at least 16 signatures (of witnesses and rotated keys), and set a limit. */
export const CHECKPOINT_SIGNATURES_MAX = 32;
export const CHECKPOINT_CHARS_MAX = 262_144;

const ORIGIN_PREFIX = "lucid/session/";
const SIGNATURE_LINE_START = "\u2014 ";
/** Signed-note signature type of Ed25519. */
const ED25519_TYPE = 0x01;
const KEY_ID_BYTES = 4;
const ED25519_KEY_BYTES = 32;
const ED25519_SIGNATURE_BYTES = 64;
/** RFC 8410: what stands before the 32 bytes of a public key in its SubjectPublicKeyInfo. */
const ED25519_SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex");

// ---- keys --------------------------------------------------------------------------------------------------

/** Signed-note: "key names MUST be non-empty and MUST NOT contain any Unicode spaces or plus characters". */
function isKeyName(name: string): boolean {
  return name.length > 0 && name.isWellFormed() && !/[\s+\p{White_Space}\p{Cc}]/u.test(name);
}

/** Throws CONFIG_INVALID for a name or a key that signed-note doesn't allow. */
export function verifierKey(name: string, publicKey: Uint8Array): VerifierKey {
  if (!isKeyName(name) || publicKey.byteLength !== ED25519_KEY_BYTES) {
    throw new LucidError(
      "CONFIG_INVALID",
      "a verifier key needs a name without spaces or + and a key of 32 bytes",
    );
  }
  const input = Buffer.concat([utf8(`${name}\n`), Uint8Array.of(ED25519_TYPE), publicKey]);
  return { name, publicKey, keyId: digestOnce("sha256", input, "buffer").subarray(0, KEY_ID_BYTES) };
}

/**
 * The key of one session's checkpoints. Key name = origin, as tlog-checkpoint says a log's should be, so that the
 * one public key an auditor pins gives the verifier key of every session.
 */
export function checkpointVerifierKey(
  session: SessionId,
  algorithm: HashAlgorithm,
  publicKey: Uint8Array,
): VerifierKey {
  return verifierKey(checkpointOrigin(session, algorithm), publicKey);
}

/** The vkey text of other C2SP tools: `<name>+<key id, 8 hex>+<base64 of type ‖ key>`. */
export function formatVerifierKey(key: VerifierKey): string {
  const typedKey = Buffer.concat([Uint8Array.of(ED25519_TYPE), key.publicKey]).toString("base64");
  return `${key.name}+${toHex(key.keyId)}+${typedKey}`;
}

/** Strict inverse of formatVerifierKey; `undefined` also when the key id is not that of the name and key. */
export function parseVerifierKey(text: string): VerifierKey | undefined {
  const match = /^([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)$/.exec(text);
  const [, name = "", , encoded = ""] = match ?? [];
  const typedKey = fromBase64(encoded);
  const sound =
    isKeyName(name) && typedKey?.byteLength === 1 + ED25519_KEY_BYTES && typedKey[0] === ED25519_TYPE;
  if (!sound) return undefined;
  const key = verifierKey(name, new Uint8Array(typedKey.subarray(1)));
  return formatVerifierKey(key) === text ? key : undefined;
}

/** The 32 bytes of an Ed25519 public key, from it or from its private key. CONFIG_INVALID for other kinds of key. */
export function ed25519PublicKey(key: KeyObject): Uint8Array {
  if (key.asymmetricKeyType !== "ed25519") {
    throw new LucidError("CONFIG_INVALID", "the signing key must be an Ed25519 key");
  }
  const publicKey = key.type === "private" ? createPublicKey(key) : key;
  return new Uint8Array(
    publicKey.export({ format: "der", type: "spki" }).subarray(ED25519_SPKI_PREFIX.byteLength),
  );
}

function keyObjectOf(publicKey: Uint8Array): KeyObject {
  return createPublicKey({
    key: Buffer.concat([ED25519_SPKI_PREFIX, publicKey]),
    format: "der",
    type: "spki",
  });
}

// ---- the note text -----------------------------------------------------------------------------------------

/** Contract §8: `lucid/session/<session_id>/<hash algorithm>`. */
function checkpointOrigin(session: SessionId, algorithm: HashAlgorithm): string {
  return `${ORIGIN_PREFIX}${session}/${algorithm}`;
}

/** The signed bytes: origin, size, base64 root, each with its line feed. PROOF_INVALID for an empty tree. */
function checkpointText(checkpoint: Checkpoint): string {
  const { sessionId, hashAlgorithm, size, root } = checkpoint;
  const sound =
    isId(sessionId) &&
    Number.isInteger(size) &&
    size >= 1 &&
    size <= TREE_SIZE_MAX &&
    root.byteLength === HASH_BYTES;
  if (!sound)
    throw new LucidError("PROOF_INVALID", "a checkpoint needs a size of at least 1 and a root of 32 bytes");
  return `${checkpointOrigin(sessionId, hashAlgorithm)}\n${size}\n${asBuffer(root).toString("base64")}\n`;
}

function parseOrigin(origin: string): { sessionId: SessionId; hashAlgorithm: HashAlgorithm } | undefined {
  if (!origin.startsWith(ORIGIN_PREFIX)) return undefined;
  const [session, algorithm, ...more] = origin.slice(ORIGIN_PREFIX.length).split("/");
  if (!isId(session) || !isHashAlgorithm(algorithm) || more.length > 0) return undefined;
  return { sessionId: session as SessionId, hashAlgorithm: algorithm };
}

/** Tlog-checkpoint: ASCII decimal without leading zeroes. */
export function parseDecimal(text: string, max: number): number | undefined {
  if (!/^(0|[1-9][0-9]{0,15})$/.test(text)) return undefined;
  const value = Number(text);
  return value <= max ? value : undefined;
}

/** Three lines exactly: we write no extension lines, so that none can be ours. */
function parseCheckpointText(text: string): Checkpoint | undefined {
  const [origin = "", sizeText = "", rootText = "", end, ...more] = text.split("\n");
  if (end !== "" || more.length > 0) return undefined;
  const session = parseOrigin(origin);
  const size = parseDecimal(sizeText, TREE_SIZE_MAX);
  const root = fromBase64(rootText);
  if (session === undefined || size === undefined || size === 0 || root?.byteLength !== HASH_BYTES)
    return undefined;
  return { ...session, size: size as TreeSize, root: new Uint8Array(root) as NodeHash };
}

// ---- the signed note ---------------------------------------------------------------------------------------

interface NoteSignature {
  readonly keyName: string;
  readonly keyId: Uint8Array;
  readonly signature: Uint8Array;
}

interface SignedNote {
  /** With its last line feed; what is signed. */
  readonly text: string;
  readonly signatures: readonly NoteSignature[];
}

function parseSignatureLine(line: string): NoteSignature | undefined {
  if (!line.startsWith(SIGNATURE_LINE_START)) return undefined;
  const [keyName = "", encoded = "", ...more] = line.slice(SIGNATURE_LINE_START.length).split(" ");
  const bytes = fromBase64(encoded);
  if (!isKeyName(keyName) || bytes === undefined || bytes.byteLength <= KEY_ID_BYTES || more.length > 0) {
    return undefined;
  }
  return { keyName, keyId: bytes.subarray(0, KEY_ID_BYTES), signature: bytes.subarray(KEY_ID_BYTES) };
}

function hasControlCharacter(text: string): boolean {
  return /[\u0000-\u0009\u000b-\u001f]/.test(text);
}

function parseNote(note: unknown): SignedNote | undefined {
  if (typeof note !== "string" || note.length > CHECKPOINT_CHARS_MAX || !note.isWellFormed())
    return undefined;
  if (hasControlCharacter(note) || !note.endsWith("\n")) return undefined;
  // "The text is separated from the signatures by the last empty line in the note."
  const separator = note.lastIndexOf("\n\n");
  if (separator < 0) return undefined;
  const lines = note.slice(separator + 2, -1).split("\n");
  if (lines.length > CHECKPOINT_SIGNATURES_MAX) return undefined;
  const signatures = lines.map(parseSignatureLine);
  if (signatures.includes(undefined)) return undefined;
  return { text: note.slice(0, separator + 1), signatures: signatures as NoteSignature[] };
}

/**
 * A C2SP signed note over the checkpoint, with the origin as key name. It trusts the caller that the checkpoint is
 * consistent with earlier ones: open sessions use `signNextCheckpoint`.
 */
export function signCheckpoint(checkpoint: Checkpoint, privateKey: KeyObject): string {
  const text = checkpointText(checkpoint);
  const { sessionId, hashAlgorithm } = checkpoint;
  const key = checkpointVerifierKey(sessionId, hashAlgorithm, ed25519PublicKey(privateKey));
  const signature = signBytes(null, utf8(text), privateKey);
  const encoded = Buffer.concat([key.keyId, signature]).toString("base64");
  return `${text}\n${SIGNATURE_LINE_START}${key.name} ${encoded}\n`;
}

/**
 * Tlog-checkpoint: "a log MUST not sign any checkpoint which is inconsistent with any checkpoint it previously
 * signed". Throws TREE_CORRUPT unless `proof` leads from `previous` (verified, as read back) to `next`.
 */
export function signNextCheckpoint(
  previous: Checkpoint,
  next: Checkpoint,
  proof: ConsistencyProof,
  privateKey: KeyObject,
): string {
  const verdict = verifyConsistency(proof, previous, next);
  if (previous.sessionId !== next.sessionId || !verdict.ok) {
    throw new LucidError(
      "TREE_CORRUPT",
      "the tree is not an extension of the last signed checkpoint; nothing signed",
    );
  }
  return signCheckpoint(next, privateKey);
}

/**
 * The checkpoint, if it is of `session` and signed by a pinned key. Signatures of unknown keys are ignored, as
 * signed-note demands; one bad signature under a pinned key refuses the note. Never throws.
 */
export function verifyCheckpoint(
  note: string,
  session: SessionId,
  pinned: readonly VerifierKey[],
): CheckpointVerdict {
  try {
    return verifyNote(note, session, pinned);
  } catch {
    return { ok: false, reason: "malformed" };
  }
}

/** What a note says, whoever signed it: to hold against what is known, and no reason to believe it. */
export function unverifiedCheckpoint(note: unknown): Checkpoint | undefined {
  const parsed = parseNote(note);
  return parsed === undefined ? undefined : parseCheckpointText(parsed.text);
}

function verifyNote(note: unknown, session: SessionId, pinned: readonly VerifierKey[]): CheckpointVerdict {
  const parsed = parseNote(note);
  const checkpoint = parsed === undefined ? undefined : parseCheckpointText(parsed.text);
  if (parsed === undefined || checkpoint === undefined) return { ok: false, reason: "malformed" };
  if (checkpoint.sessionId !== session) return { ok: false, reason: "not-the-expected-session" };
  const outcomes = parsed.signatures.flatMap((signature) => {
    const key = pinned.find((known) => isSignatureOf(known, signature));
    return key === undefined ? [] : [verifySignature(parsed.text, signature, key)];
  });
  if (outcomes.length === 0) return { ok: false, reason: "no-signature-of-a-pinned-key" };
  return outcomes.every((valid) => valid)
    ? { ok: true, checkpoint }
    : { ok: false, reason: "signature-invalid" };
}

function isSignatureOf(key: VerifierKey, { keyName, keyId }: NoteSignature): boolean {
  return key.name === keyName && bytesEqual(key.keyId, keyId);
}

function verifySignature(text: string, { signature }: NoteSignature, key: VerifierKey): boolean {
  if (signature.byteLength !== ED25519_SIGNATURE_BYTES) return false;
  return verifyBytes(null, utf8(text), keyObjectOf(key.publicKey), signature);
}
