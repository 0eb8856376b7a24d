import { createPrivateKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { constants, type Stats } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { LucidError } from "../../core/errors.ts";
import { keyIdOf, type PublicKeyForms, publicKeyForms } from "../../core/manifest/public-key.ts";
import { ed25519PublicKey } from "../../core/merkle/checkpoint.ts";

export interface SigningKey {
  readonly privateKey: KeyObject;
  /** 32 bytes. */
  readonly publicKey: Uint8Array;
  readonly keyId: string;
}

export interface GeneratedSigningKey extends PublicKeyForms {
  /** PKCS8 PEM: for a file of mode 0600, and for nothing else. */
  readonly privatePem: string;
  readonly keyId: string;
}

/** An Ed25519 PKCS8 PEM has 119 bytes; whatever is much longer is another file. */
const KEY_FILE_BYTES_MAX = 4_096;
/** Without waiting for the other end of a FIFO. Links are followed: Kubernetes mounts every secret as one. */
const READ_FLAGS = constants.O_RDONLY | constants.O_NONBLOCK;
const PEM_START = "-----BEGIN PRIVATE KEY-----";

const GROUP_WRITE_AND_OTHERS = 0o037;
const GROUP_AND_OTHERS = 0o077;
const ROOT_UID = 0;

/**
 * The key of MANIFEST_SIGNING_KEY_FILE: PKCS8 PEM, Ed25519, in a regular file that is closed to others. What is checked is
 * the opened file and not the path, so that nothing can be exchanged between look and use. Throws SIGNING_KEY_UNUSABLE.
 */
export async function loadSigningKey(path: string): Promise<SigningKey> {
  const pem = await readKeyFile(path);
  const privateKey = parsePrivateKey(pem, path);
  const publicKey = ed25519PublicKey(privateKey);
  return { privateKey, publicKey, keyId: keyIdOf(publicKey) };
}

/** A new key from the CSPRNG. */
export function generateSigningKey(): GeneratedSigningKey {
  const { privateKey } = generateKeyPairSync("ed25519");
  const publicKey = ed25519PublicKey(privateKey);
  const privatePem = privateKey.export({ format: "pem", type: "pkcs8" });
  return { privatePem, keyId: keyIdOf(publicKey), ...publicKeyForms(publicKey) };
}

async function readKeyFile(path: string): Promise<string> {
  let handle: FileHandle;
  try {
    handle = await open(path, READ_FLAGS);
  } catch (cause) {
    throw unusable(path, "can't be opened; check that it exists and that this user may read it", cause);
  }
  try {
    const stats = await handle.stat();
    const fault = fileFault(stats);
    if (fault !== undefined) throw unusable(path, fault);
    return await handle.readFile("utf8");
  } catch (thrown) {
    throw thrown instanceof LucidError ? thrown : unusable(path, "can't be read", thrown);
  } finally {
    await handle.close();
  }
}

function fileFault(stats: Stats): string | undefined {
  if (!stats.isFile()) return "is not a regular file";
  if (stats.size > KEY_FILE_BYTES_MAX) return "is too large to be an Ed25519 key in PKCS8 PEM";
  const owned = ownership(stats);
  if (owned === "of another user")
    return "belongs to another user; give it to the one this service runs as, or to root";
  const closedTo = owned === "own" ? GROUP_AND_OTHERS : GROUP_WRITE_AND_OTHERS;
  return (stats.mode & closedTo) === 0
    ? undefined
    : "is open to others; chmod 0600 it, and rotate it if others had access";
}

/**
 * PostgreSQL's rule for its key files: 0600 or less for one's own, 0640 or less for root's. The second is what
 * Kubernetes makes of a secret for a user other than root (fsGroup).
 */
function ownership(stats: Stats): "own" | "of root" | "of another user" {
  if (stats.uid === process.geteuid?.()) return "own";
  return stats.uid === ROOT_UID ? "of root" : "of another user";
}

function parsePrivateKey(pem: string, path: string): KeyObject {
  if (!pem.startsWith(PEM_START)) {
    throw unusable(
      path,
      "is not an unencrypted PKCS8 PEM; make one with `session-processor keys generate --signing`",
    );
  }
  let key: KeyObject;
  try {
    key = createPrivateKey({ key: pem, format: "pem" });
  } catch {
    // OpenSSL's error stays out of `cause`: it may quote what it read.
    throw unusable(
      path,
      "is damaged; restore it from a backup, or generate a new key and pin its public key",
    );
  }
  if (key.asymmetricKeyType !== "ed25519") throw unusable(path, "holds another kind of key than Ed25519");
  return key;
}

function unusable(path: string, what: string, cause?: unknown): LucidError {
  return new LucidError("SIGNING_KEY_UNUSABLE", `signing key file ${path} ${what}`, { cause });
}
