import { deriveKey } from "./derive.ts";
import { open, saltOf } from "./sealed-blob.ts";

const NO_AAD = new Uint8Array(0);

/**
 * Format 0, read only: a blob of the older service has the same layout, no AAD, and the text of ENCRYPTION_KEY itself as the
 * password. Nothing ties it to its session or index. Takes a PBKDF2 run (15 ms) a blob. Throws BLOB_MALFORMED,
 * BLOB_AUTHENTICATION_FAILED.
 */
export function openLegacyBlob(encryptionKeyText: string, blob: Uint8Array): Uint8Array {
  return open({ key: deriveKey(encryptionKeyText, saltOf(blob)), aad: NO_AAD, blob });
}
