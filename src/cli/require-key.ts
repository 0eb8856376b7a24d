import type { KeyRing } from "../core/encrypt/kek.ts";
import { requireOwnKeys } from "../pipeline/check-key-ring.ts";
import type { OpenStores } from "./open-stores.ts";

/** Before a command opens anything. Throws KEK_MISMATCH. */
export async function requireKeyOf(stores: OpenStores, keyRing: KeyRing): Promise<KeyRing> {
  await requireOwnKeys(stores, keyRing);
  return keyRing;
}
