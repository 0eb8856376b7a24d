import { type KeyObject, sign as signBytes, verify as verifyBytes } from "node:crypto";
import { asBuffer, bytesEqual, fromBase64, utf8 } from "../bytes.ts";
import { canonicalJson } from "../canonical-json.ts";
import { LucidError } from "../errors.ts";
import { ed25519PublicKey } from "../merkle/checkpoint.ts";
import { formFaultOf } from "./form.ts";
import { inconsistencyOf, type Manifest, type ManifestSignature, type UnsignedManifest } from "./manifest.ts";
import { keyIdOf, publicKeyObject } from "./public-key.ts";

/** An Ed25519 private key; only core and the file adapter look into it. */
export type PrivateKey = KeyObject;

/** In the order in which they are looked for. */
export type ManifestFault =
  | "too-large"
  | "not-utf8"
  | "not-json"
  | "wrong-form"
  | "not-canonical"
  | "key-not-pinned"
  | "signature-invalid"
  | "inconsistent";

export type ManifestVerdict =
  | { readonly ok: true; readonly manifest: Manifest }
  | { readonly ok: false; readonly reason: ManifestFault; readonly detail: string };

/** UTF-8; 16 KiB of it are the caller's metadata, and all else is below 4 KiB. */
export const MANIFEST_BYTES_MAX = 65_536;
/** The caller's metadata has at most 32 levels, two below the top. */
const MANIFEST_DEPTH_MAX = 40;

/** Refuses what isn't UTF-8, and keeps a byte order mark, so that two files never have the same text. */
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * The canonical text of the signed manifest: what its file holds, to the byte, without a line feed. Ed25519 signs without
 * randomness, so that the same key gives the same text. What is signed begins with `{`, a checkpoint of the same key
 * with `lucid/session/`: neither passes for the other. Throws MANIFEST_INVALID, and returns nothing, for a manifest
 * that `verifyManifest` would refuse; CONFIG_INVALID unless the key is Ed25519.
 */
export function signManifest(unsigned: UnsignedManifest, privateKey: KeyObject): string {
  const publicKey = ed25519PublicKey(privateKey);
  const signer = {
    algorithm: "Ed25519",
    key_id: keyIdOf(publicKey),
    public_key: asBuffer(publicKey).toString("base64"),
  } as const;
  const value = signBytes(null, signedBytes(unsigned, signer), privateKey).toString("base64");
  const text = canonicalText({ ...unsigned, signature: { ...signer, value } });
  const verdict = verifyManifest(text, [publicKey]);
  if (!verdict.ok) {
    throw new LucidError("MANIFEST_INVALID", `a manifest that nobody could verify: ${verdict.detail}`);
  }
  return text;
}

/**
 * The manifest, if it has the one form of contract §9, is signed by one of `pinnedKeys` (32 bytes each), and doesn't
 * contradict itself. The public key in it is never trusted by itself. Give it the bytes of the file: a decoder that
 * mends UTF-8 would make other files pass. Says nothing yet about the chunks file. Never throws.
 */
export function verifyManifest(
  given: Uint8Array | string,
  pinnedKeys: readonly Uint8Array[],
): ManifestVerdict {
  try {
    return verifyText(given, pinnedKeys);
  } catch {
    return refused("wrong-form", "it can't be read as a manifest");
  }
}

function verifyText(given: Uint8Array | string, pinnedKeys: readonly Uint8Array[]): ManifestVerdict {
  if (given.length > MANIFEST_BYTES_MAX)
    return refused("too-large", `it has more than ${MANIFEST_BYTES_MAX} bytes`);
  const text = typeof given === "string" ? given : decode(given);
  if (text === undefined) return refused("not-utf8", "it is not UTF-8");
  const parsed = parseJson(text);
  if (parsed === undefined) return refused("not-json", "it is not JSON");
  const fault = formFaultOf(parsed.value);
  if (fault !== undefined) return refused("wrong-form", fault);
  const manifest = parsed.value as Manifest;
  if (canonicalText(manifest) !== text) return refused("not-canonical", "it is not in RFC 8785 form");
  return verifyContent(manifest, pinnedKeys);
}

/** The signature before what the fields say: a stranger's text has no say in what is reported. */
function verifyContent(manifest: Manifest, pinnedKeys: readonly Uint8Array[]): ManifestVerdict {
  const { signature, ...unsigned } = manifest;
  const { value, ...signer } = signature;
  const embedded = fromBase64(signature.public_key) ?? new Uint8Array(0);
  const publicKey = pinnedKeys.find((pinned) => bytesEqual(pinned, embedded));
  if (publicKey === undefined || keyIdOf(publicKey) !== signature.key_id) {
    return refused(
      "key-not-pinned",
      `it is signed by key ${signature.key_id}, which is not among the pinned ones`,
    );
  }
  const signed = signedBytes(unsigned, signer);
  const valid = verifyBytes(null, signed, publicKeyObject(publicKey), fromBase64(value) ?? new Uint8Array(0));
  if (!valid) return refused("signature-invalid", "the signature is not that of these bytes");
  const inconsistency = inconsistencyOf(manifest);
  return inconsistency === undefined ? { ok: true, manifest } : refused("inconsistent", inconsistency);
}

/** Contract §9: every field but `signature.value`. */
function signedBytes(unsigned: UnsignedManifest, signer: Omit<ManifestSignature, "value">): Uint8Array {
  return utf8(canonicalText({ ...unsigned, signature: signer }));
}

/** RFC 8785. Throws MANIFEST_INVALID for what it can't say, and above the limits. */
function canonicalText(value: unknown): string {
  try {
    return canonicalJson("manifest", value, { bytesMax: MANIFEST_BYTES_MAX, depthMax: MANIFEST_DEPTH_MAX });
  } catch (cause) {
    throw new LucidError("MANIFEST_INVALID", "the manifest has no canonical form within its limits", {
      cause,
    });
  }
}

function decode(bytes: Uint8Array): string | undefined {
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

function parseJson(text: string): { readonly value: unknown } | undefined {
  try {
    return { value: JSON.parse(text) as unknown };
  } catch {
    return undefined;
  }
}

function refused(reason: ManifestFault, detail: string): ManifestVerdict {
  return { ok: false, reason, detail };
}
