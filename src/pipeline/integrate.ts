import { LucidError } from "../core/errors.ts";
import { type LeafHash, type SessionId, leafIndex } from "../core/ids.ts";
import { checkFrontier } from "../core/merkle/frontier.ts";
import { treeHasher } from "../core/merkle/hash.ts";
import { applyAppend, planAppend, tileKey } from "../core/merkle/tiles.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { OwnGrowth } from "./own-growth.ts";
import type { Patience } from "./patience.ts";
import type { ChunkStore, CommittedLeaf, Observer, SessionStore, TileStore } from "./ports.ts";

/** Leaves that one compare-and-swap takes into the tree at most: one tile's width. */
const INTEGRATE_LEAVES_MAX = 256;
/** Lost races in a row before a run gives up; each one means that another worker has moved the tree on. */
const CONFLICTS_MAX = 1_000;

export interface IntegrateStores {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly tiles: TileStore;
  readonly observer: Observer;
  readonly patience: Patience;
  readonly growth: OwnGrowth;
}

/**
 * Takes committed leaves into the session's tree, in order, as far as they reach without a gap, and returns the
 * session as it then is.
 *
 * Why no leaf is left behind: whoever commits a leaf calls this *after* the commit. Its read of the leaves then
 * sees that leaf. Either it takes the leaf in, or an earlier index is still missing (whoever commits that one will
 * see ours), or it loses the compare-and-swap and reads again. Who grows the tree by its own leaves, unread, sees no
 * other's, and owes a look afterwards (LaterLooks). A run that is killed, or a look, is made up for by the job's
 * redelivery and by sweepSessions.
 */
export async function integrate(
  stores: IntegrateStores,
  session: SessionId,
  signal: AbortSignal,
): Promise<SessionRecord> {
  const { record, isUnread } = await growAsFarAsItGoes(stores, session, signal);
  stores.growth.reached(record, isUnread);
  return record;
}

async function growAsFarAsItGoes(
  stores: IntegrateStores,
  session: SessionId,
  signal: AbortSignal,
): Promise<{ readonly record: SessionRecord; readonly isUnread: boolean }> {
  const { patience, sessions, observer, growth } = stores;
  // A head that we wrote ourselves may be out of date. A compare-and-swap that succeeds proves that it isn't; without one
  // it proves nothing, and the session is read.
  let record = growth.takeHead(session);
  let isUnproven = record !== undefined;
  for (let conflicts = 0; conflicts < CONFLICTS_MAX; ) {
    if (record === undefined) {
      record = await readSession(stores, session, signal);
      isUnproven = false;
    }
    if (record.state !== "open") return { record, isUnread: false };
    const grown = await growOnce(stores, record, isUnproven, signal);
    if (grown === undefined) {
      if (!isUnproven) return { record, isUnread: false };
      record = undefined;
      continue;
    }
    const { next, added, isUnread } = grown;
    const { version, totals } = record;
    // Dies here: tiles may be ahead of the tree head. They hold hashes of committed leaves only, so whoever grows
    // the tree next writes the same hashes again.
    const outcome = await patience("sessions.grow", signal, () =>
      sessions.replace(session, version, {
        kind: "grow",
        tree: next.tree,
        addedOriginalBytes: next.totals.originalBytes - totals.originalBytes,
        addedStoredBytes: next.totals.storedBytes - totals.storedBytes,
      }),
    );
    if (outcome === "conflict") {
      // Lost the race, or the reply to our own write was lost: reading again tells both apart from no progress.
      conflicts += 1;
      observer.report({ kind: "tree-conflict", sessionId: session });
      record = undefined;
      continue;
    }
    record = next;
    isUnproven = false;
    if (conflicts === 0) growth.keepHead(record);
    observer.report({ kind: "tree-grown", sessionId: session, size: record.tree.size, added });
    // Fewer than asked for means that the next index wasn't committed when the leaves were read. Whoever commits it
    // runs this function after that, so there is no need to look once more. Unread, it means nothing: the look is owed.
    if (added < INTEGRATE_LEAVES_MAX) return { record, isUnread };
  }
  throw new LucidError(
    "INTERNAL",
    "the session's tree head changed more often than expected; the job is retried",
  );
}

interface Growth {
  /** The record as it is once the compare-and-swap has succeeded. */
  readonly next: SessionRecord;
  readonly added: number;
  /** The store was not asked for leaves of other workers. */
  readonly isUnread: boolean;
}

async function growOnce(
  stores: IntegrateStores,
  record: SessionRecord,
  isOwnHead: boolean,
  signal: AbortSignal,
): Promise<Growth | undefined> {
  const { chunks, tiles, patience, growth } = stores;
  const { size } = record.tree;
  const limit = Math.min(INTEGRATE_LEAVES_MAX, (record.expectedCount ?? Number.MAX_SAFE_INTEGER) - size);
  if (limit <= 0) return undefined;
  // Another's head: there is somebody else at work, whose leaves are asked for too. Of ours, those beyond a confirmed count may have
  // been taken back: the limit leaves them out, and where the head is older than that count, the compare-and-swap does.
  const own = isOwnHead ? growth.leavesFrom(record.id, size, limit) : [];
  const isUnread = own.length > 0;
  const fresh = isUnread
    ? own
    : await patience("chunks.leaves", signal, () =>
        chunks.contiguousLeaves(record.id, leafIndex(size), limit),
      );
  if (fresh.length === 0) return undefined;

  const plan = planAppend(size, fresh.length);
  const earlierLeaves = await readEarlierLeaves(stores, record, plan.leavesNeededFrom, signal);
  const earlierTiles = new Map<string, Uint8Array>();
  for (const { level, n } of plan.tilesNeeded) {
    const hashes = await patience("tiles.read", signal, () => tiles.read(record.id, level, n));
    if (hashes !== undefined) earlierTiles.set(tileKey(level, n), hashes);
  }
  const appended = applyAppend(
    checkFrontier(size, record.tree.frontier),
    { from: plan.leavesNeededFrom, hashes: [...earlierLeaves, ...fresh.map((leaf) => leaf.leafHash)] },
    (level, n) => earlierTiles.get(tileKey(level, n)),
    treeHasher(record.hashAlgorithm),
  );
  if (appended.tileWrites.length > 0) {
    await patience("tiles.write", signal, () => tiles.write(record.id, appended.tileWrites));
  }
  return {
    added: fresh.length,
    isUnread,
    next: {
      ...record,
      version: record.version + 1,
      tree: { size: appended.frontier.size, frontier: appended.frontier.hashes, root: appended.root },
      totals: {
        originalBytes: record.totals.originalBytes + sum(fresh, (leaf) => leaf.originalBytes),
        storedBytes: record.totals.storedBytes + sum(fresh, (leaf) => leaf.storedBytes),
      },
    },
  };
}

/** Leaf hashes from `from` to the tree's size: needed only when a tile of level 0 becomes full. */
async function readEarlierLeaves(
  stores: IntegrateStores,
  record: SessionRecord,
  from: number,
  signal: AbortSignal,
): Promise<readonly LeafHash[]> {
  const wanted = record.tree.size - from;
  if (wanted <= 0) return [];
  const leaves = await stores.patience("chunks.leaves", signal, () =>
    stores.chunks.contiguousLeaves(record.id, leafIndex(from), wanted),
  );
  if (leaves.length !== wanted) {
    throw new LucidError(
      "TREE_CORRUPT",
      "a leaf that the tree counts has no chunk document; run fsck on the session",
    );
  }
  return leaves.map((leaf) => leaf.leafHash);
}

async function readSession(
  { sessions, patience }: IntegrateStores,
  session: SessionId,
  signal: AbortSignal,
): Promise<SessionRecord> {
  const record = await patience("sessions.find", signal, () => sessions.find(session));
  if (record === undefined) {
    throw new LucidError("SESSION_UNKNOWN", "the session has no document; run fsck on the session");
  }
  return record;
}

function sum(leaves: readonly CommittedLeaf[], of: (leaf: CommittedLeaf) => number): number {
  return leaves.reduce((total, leaf) => total + of(leaf), 0);
}

/** A run and those who wait for the one after it. */
interface Turn<Result> {
  /** False until the run takes its first look at the stores. */
  begun: boolean;
  readonly current: Promise<Result>;
  next?: Promise<Result>;
}

/**
 * Runs at most one `run` per session at a time in this process. A call that arrives during a run waits for the next
 * one, which starts after the call and so sees its commit; all calls of that time share it. That is what makes the
 * round trips per chunk fall as load rises.
 */
export class OnePerSession<Result = SessionRecord> {
  readonly #run: (session: SessionId) => Promise<Result>;
  readonly #running = new Map<SessionId, Turn<Result>>();

  constructor(run: (session: SessionId) => Promise<Result>) {
    this.#run = run;
  }

  request(session: SessionId): Promise<Result> {
    const turn = this.#running.get(session);
    if (turn === undefined) return this.#start(session);
    if (!turn.begun) return turn.current;
    turn.next ??= turn.current.then(
      () => this.#start(session),
      () => this.#start(session),
    );
    return turn.next;
  }

  // One microtask later: chunks that one command has committed call one after another, without a pause in between. Were the
  // first to begin at once, a second run, for all the others, would find that the first had taken their leaves too.
  #start(session: SessionId): Promise<Result> {
    const begin = (): Promise<Result> => {
      turn.begun = true;
      return this.#run(session);
    };
    const turn: Turn<Result> = { begun: false, current: Promise.resolve().then(begin) };
    this.#running.set(session, turn);
    const finish = () => {
      if (turn.next === undefined && this.#running.get(session) === turn) this.#running.delete(session);
    };
    turn.current.then(finish, finish);
    return turn.current;
  }
}
