import type { Config } from "./config.ts";
import { type KeyRing, singleKeyRing } from "./core/encrypt/kek.ts";
import { LucidError } from "./core/errors.ts";

/** The KEKs that the configuration names. Key rings with several of them have their place here. */
export function keyRingOf(config: Config): KeyRing {
  const { kek } = config.encryption;
  if (kek.kind === "key") return singleKeyRing(kek.key.reveal());
  throw new LucidError(
    "CONFIG_INVALID",
    kek.kind === "keyring"
      ? "ENCRYPTION_KEYRING_FILE is not supported yet; set ENCRYPTION_KEY or ENCRYPTION_KEY_FILE"
      : "no key encryption key; set ENCRYPTION_KEY or ENCRYPTION_KEY_FILE",
  );
}
