import type { KeyRing } from "../core/encrypt/kek.ts";
import { isKekOf, makeKekCheck } from "../core/encrypt/kek-check.ts";
import { unwrapSecret } from "../core/encrypt/session-secret.ts";
import { errorCodeOf, LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { SessionRecord, WrappedSecret } from "../schema/record.ts";
import type { RandomBytes, ServiceStateStore, SessionListing, SessionStore } from "./ports.ts";

/** Sessions of a database without a check value that are looked at; one whose secret opens is enough. */
const SESSIONS_TRIED_MAX = 32;

export interface KeyRingPorts {
  readonly serviceState: ServiceStateStore;
  readonly sessions: SessionStore & SessionListing;
  readonly random: RandomBytes;
}

/**
 * Before a process takes its first job: are its KEKs those that this database's secrets are wrapped with? Throws KEK_MISMATCH.
 * After it, a secret that doesn't unwrap says something about that session, and nothing about the process.
 *
 * The first key that a database sees stays its key. Two processes that come to an empty one with different keys claim the check
 * at the same time: one is written, the other process finds it and is refused. Dying before or after the claim changes nothing.
 *
 * A ring may bring a new version only if it is this database's by those that are known: otherwise a wrong ring would claim the
 * new version, and lock the right one out.
 */
export async function checkKeyRing(ports: KeyRingPorts, keyRing: KeyRing): Promise<void> {
  const { serviceState, random } = ports;
  const { activeVersion } = keyRing;
  const known = await serviceState.kekChecks();
  requireFit(known, keyRing);
  if (known.has(activeVersion)) return;
  // A database from before there were check values: its sessions say whose it is.
  if ((await opensSessions(ports, keyRing, known)) === false) throw mismatch();
  await serviceState.claimKekCheck(
    activeVersion,
    makeKekCheck(keyRing.kek(activeVersion), activeVersion, random),
  );
  // Others may have claimed meanwhile, this version or another one.
  requireFit(await serviceState.kekChecks(), keyRing);
}

/** All known versions that the ring holds must be its own, and one of them at least if any is known. */
function requireFit(known: ReadonlyMap<number, string>, keyRing: KeyRing): void {
  let held = 0;
  for (const [version, check] of known) {
    const kek = kekOf(keyRing, version);
    if (kek === undefined) continue;
    held += 1;
    if (!isKekOf(check, kek, version)) throw mismatch();
  }
  if (held === 0 && known.size > 0) throw mismatch();
}

/** `undefined` for a version that the ring doesn't hold. */
function kekOf(keyRing: KeyRing, version: number): Uint8Array | undefined {
  try {
    return keyRing.kek(version);
  } catch (thrown) {
    if (errorCodeOf(thrown) === "KEK_UNKNOWN") return undefined;
    throw thrown;
  }
}

/** `undefined` if no session has a secret under a version that the ring holds and nothing is known of. */
async function opensSessions(
  { sessions }: KeyRingPorts,
  keyRing: KeyRing,
  known: ReadonlyMap<number, string>,
): Promise<boolean | undefined> {
  let opens: boolean | undefined;
  for (const id of await sessions.ids(undefined, SESSIONS_TRIED_MAX)) {
    const session = await readable(sessions.find(id));
    for (const key of session?.keys ?? []) {
      const kek = known.has(key.kekVersion) ? undefined : kekOf(keyRing, key.kekVersion);
      if (kek === undefined) continue;
      opens = opensSecret(id, key, kek);
      if (opens) return true;
    }
  }
  return opens;
}

/** A document of a newer version says nothing about the key, and must not keep a process from its start. */
async function readable(found: Promise<SessionRecord | undefined>): Promise<SessionRecord | undefined> {
  try {
    return await found;
  } catch (thrown) {
    if (errorCodeOf(thrown) === "DOCUMENT_UNREADABLE") return undefined;
    throw thrown;
  }
}

function opensSecret(sessionId: SessionId, { keyVersion, wrapped }: WrappedSecret, kek: Uint8Array): boolean {
  try {
    unwrapSecret(wrapped, { kek, sessionId, keyVersion });
    return true;
  } catch {
    return false;
  }
}

function mismatch(): LucidError {
  return new LucidError(
    "KEK_MISMATCH",
    "ENCRYPTION_KEY is not the key that this database's sessions are wrapped with: use that key, or another database",
  );
}
