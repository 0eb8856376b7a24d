import type { KeyRing } from "../core/encrypt/kek.ts";
import { isKekOf, makeKekCheck } from "../core/encrypt/kek-check.ts";
import { unwrapSecret } from "../core/encrypt/session-secret.ts";
import { errorCodeOf, LucidError } from "../core/errors.ts";
import type { SessionId } from "../core/ids.ts";
import type { WrappedSecret } from "../schema/record.ts";
import type { RandomBytes, ServiceStateStore, SessionListing, SessionStore } from "./ports.ts";
import { readable } from "./readable.ts";

/** The newest sessions of a database without a check value: they are the ones that jobs come for. */
const SESSIONS_TRIED_MAX = 256;

/** What a ring does with the newest sessions' secrets that it should open. */
export interface SecretsTried {
  readonly opened: number;
  /** Wrapped with another key, or damaged: nothing tells these apart. */
  readonly unopened: number;
}

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
 *
 * Where there is no check value, the newest sessions say whose the database is. One that opens is enough, because damage keeps
 * secrets from opening and nothing makes them open; `unopened` says that others don't.
 */
export async function checkKeyRing(ports: KeyRingPorts, keyRing: KeyRing): Promise<SecretsTried> {
  const { serviceState } = ports;
  const tried = await requireOwnKeys(ports, keyRing);
  if (tried === undefined) return { opened: 0, unopened: 0 };
  const { activeVersion } = keyRing;
  const check = makeKekCheck(keyRing.kek(activeVersion), activeVersion, ports.random);
  await serviceState.claimKekCheck(activeVersion, check);
  // Others may have claimed meanwhile, this version or another one.
  requireFit(await serviceState.kekChecks(), keyRing);
  return tried;
}

/**
 * The look without the claim, for a command: with a wrong key every chunk of every session would look damaged to it. Throws
 * KEK_MISMATCH. `undefined`: the ring's active version is known to be this database's.
 */
export async function requireOwnKeys(
  ports: Pick<KeyRingPorts, "sessions"> & { readonly serviceState: Pick<ServiceStateStore, "kekChecks"> },
  keyRing: KeyRing,
): Promise<SecretsTried | undefined> {
  const known = await ports.serviceState.kekChecks();
  requireFit(known, keyRing);
  if (known.has(keyRing.activeVersion)) return undefined;
  const tried = await trySecrets(ports, keyRing, known);
  if (tried.opened === 0 && tried.unopened > 0) throw opensNone(tried.unopened);
  return tried;
}

/**
 * Makes the ring's keys this database's, whatever the check values and the sessions say: for an operator who knows better.
 * Processes that run with another key go on with it until they are started again.
 */
export async function adoptKeyRing(ports: KeyRingPorts, keyRing: KeyRing): Promise<SecretsTried> {
  const { serviceState, random } = ports;
  const tried = await trySecrets(ports, keyRing, new Map());
  // The active version last: until then the ring is refused, and the command is given again.
  for (const version of [...(await serviceState.kekChecks()).keys(), keyRing.activeVersion]) {
    const kek = kekOf(keyRing, version);
    if (kek !== undefined) await serviceState.replaceKekCheck(version, makeKekCheck(kek, version, random));
  }
  return tried;
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

/** Counts sessions that have a secret under a version that the ring holds and nothing is known of. */
async function trySecrets(
  { sessions }: Pick<KeyRingPorts, "sessions">,
  keyRing: KeyRing,
  known: ReadonlyMap<number, string>,
): Promise<SecretsTried> {
  const ids = await sessions.newest(SESSIONS_TRIED_MAX);
  // A document of a newer version says nothing about the key, and must not keep a process from its start.
  const found = await Promise.all(ids.map((id) => readable(sessions.find(id))));
  let [opened, unopened] = [0, 0];
  for (const session of found) {
    const outcomes = (session?.keys ?? []).flatMap((key) => {
      const kek = known.has(key.kekVersion) ? undefined : kekOf(keyRing, key.kekVersion);
      return session === undefined || kek === undefined ? [] : [opensSecret(session.id, key, kek)];
    });
    if (outcomes.includes(true)) opened += 1;
    else if (outcomes.length > 0) unopened += 1;
  }
  return { opened, unopened };
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

function opensNone(sessions: number): LucidError {
  return new LucidError(
    "KEK_MISMATCH",
    `ENCRYPTION_KEY opens none of the newest ${sessions} sessions' secrets: use their key, or another database; or say with "keys adopt" that it is right`,
  );
}
