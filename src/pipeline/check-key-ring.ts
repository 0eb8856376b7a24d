import type { KeyRing } from "../core/encrypt/kek.ts";
import { isKekOf, makeKekCheck } from "../core/encrypt/kek-check.ts";
import { unwrapSecret } from "../core/encrypt/session-secret.ts";
import { errorCodeOf, LucidError } from "../core/errors.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { RandomBytes, ServiceStateStore, SessionListing, SessionStore } from "./ports.ts";

/** Sessions of a database without a check value that are looked at; one whose secret opens is enough. */
const SESSIONS_TRIED_MAX = 32;

export interface KeyRingPorts {
  readonly serviceState: ServiceStateStore;
  readonly sessions: SessionStore & SessionListing;
  readonly random: RandomBytes;
}

/**
 * Before a process takes its first job: is its KEK the one that this database's secrets are wrapped with? Throws KEK_MISMATCH.
 * After it, a secret that doesn't unwrap says something about that session, and nothing about the process.
 *
 * The first key that a database sees stays its key. Two processes that come to an empty one with different keys claim the check
 * at the same time: one is written, the other process finds it and is refused. Dying before or after the claim changes nothing.
 */
export async function checkKeyRing(ports: KeyRingPorts, keyRing: KeyRing): Promise<void> {
  const version = keyRing.activeVersion;
  const kek = keyRing.kek(version);
  const stored = (await ports.serviceState.kekCheck(version)) ?? (await claimCheck(ports, { kek, version }));
  if (!isKekOf(stored, kek, version)) throw mismatch();
}

interface Kek {
  readonly kek: Uint8Array;
  readonly version: number;
}

async function claimCheck(ports: KeyRingPorts, { kek, version }: Kek): Promise<string> {
  // A database from before there were check values: its sessions say whose it is.
  if ((await opensSessions(ports, { kek, version })) === false) throw mismatch();
  return ports.serviceState.claimKekCheck(version, makeKekCheck(kek, version, ports.random));
}

/** `undefined` if no session has a secret under this version. */
async function opensSessions({ sessions }: KeyRingPorts, kek: Kek): Promise<boolean | undefined> {
  let opens: boolean | undefined;
  for (const id of await sessions.ids(undefined, SESSIONS_TRIED_MAX)) {
    const session = await readable(sessions.find(id));
    opens = (session === undefined ? undefined : opensSecret(session, kek)) ?? opens;
    if (opens === true) return true;
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

function opensSecret({ id, keys }: SessionRecord, { kek, version }: Kek): boolean | undefined {
  const key = keys.find(({ kekVersion }) => kekVersion === version);
  if (key === undefined) return undefined;
  try {
    unwrapSecret(key.wrapped, { kek, sessionId: id, keyVersion: key.keyVersion });
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
