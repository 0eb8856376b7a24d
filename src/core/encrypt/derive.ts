import { pbkdf2Sync } from "node:crypto";
import { utf8 } from "../bytes.ts";
import { KEY_BYTES } from "./aes-gcm.ts";

/** Contract §7. The password of format 1 already has 256 bits; the count is that of the older service's blobs. */
const PBKDF2 = { digest: "sha256", iterations: 100_000, keyBytes: KEY_BYTES } as const;

/**
 * PBKDF2-HMAC-SHA256 of the password's UTF-8 bytes, 32 bytes. Takes about 15 ms: once per epoch and salt, and in a CPU
 * thread, never on the loop that renews job locks.
 */
export function deriveKey(password: string, salt: Uint8Array): Uint8Array {
  return pbkdf2Sync(utf8(password), salt, PBKDF2.iterations, PBKDF2.keyBytes, PBKDF2.digest);
}
