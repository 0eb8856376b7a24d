import { systemRandomBytes } from "../adapters/system/random.ts";
import type { KeyRing } from "../core/encrypt/kek.ts";
import { checkKeyRing } from "../pipeline/check-key-ring.ts";
import type { OpenStores } from "./open-stores.ts";

/**
 * As a worker at its start: with a wrong key every chunk of every session would look damaged. A command only looks, so it never
 * claims a database that has no check value yet. Throws KEK_MISMATCH.
 */
export async function requireKeyOf(
  { sessions, serviceState }: OpenStores,
  keyRing: KeyRing,
): Promise<KeyRing> {
  const looking = {
    redis: () => serviceState.redis(),
    replaceRedis: () => Promise.resolve("conflict" as const),
    kekCheck: (version: number) => serviceState.kekCheck(version),
    claimKekCheck: (_version: number, candidate: string) => Promise.resolve(candidate),
  };
  await checkKeyRing({ sessions, serviceState: looking, random: systemRandomBytes }, keyRing);
  return keyRing;
}
