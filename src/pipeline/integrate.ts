import { LucidError } from "../core/errors.ts";
import { type LeafHash, type SessionId, leafIndex } from "../core/ids.ts";
import { checkFrontier } from "../core/merkle/frontier.ts";
import { treeHasher } from "../core/merkle/hash.ts";
import { applyAppend, planAppend, tileKey } from "../core/merkle/tiles.ts";
import type { SessionRecord } from "../schema/record.ts";
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
  /** Spares a read of the head where this process is the only one that grows the tree. */
  readonly heads?: OwnHeads;
}

/** Sessions whose last head is kept. */
const HEADS_MAX = 1_024;

/** The heads that this process has written itself, without losing a race: what it may try to grow unread. */
export class OwnHeads {
  readonly #heads = new Map<SessionId, SessionRecord>();

  /** Gives the head out once: whoever grows it keeps the next one, whoever loses the race doesn't. */
  take(session: SessionId): SessionRecord | undefined {
    const head = this.#heads.get(session);
    this.#heads.delete(session);
    return head;
  }

  keep(head: SessionRecord): void {
    this.#heads.set(head.id, head);
    const oldest = this.#heads.keys().next();
    if (this.#heads.size > HEADS_MAX && oldest.done !== true) this.#heads.delete(oldest.value);
  }
}

/**
 * Takes committed leaves into the session's tree, in order, as far as they reach without a gap, and returns the
 * session as it then is.
 *
 * Why no leaf is left behind: whoever commits a leaf calls this *after* the commit. Its read of the leaves then
 * sees that leaf. Either it takes the leaf in, or an earlier index is still missing (whoever commits that one will
 * see ours), or it loses the compare-and-swap and reads again. A run that is killed is made up for by the job's
 * redelivery and by sweepSessions.
 */
export async function integrate(
  stores: IntegrateStores,
  session: SessionId,
  signal: AbortSignal,
): Promise<SessionRecord> {
  const { patience, sessions, observer, heads } = stores;
  // A head that we wrote ourselves may be out of date. A compare-and-swap that succeeds proves that it isn't; without one
  // it proves nothing, and the session is read.
  let record = heads?.take(session);
  let isUnproven = record !== undefined;
  for (let conflicts = 0; conflicts < CONFLICTS_MAX; ) {
    if (record === undefined) {
      record = await readSession(stores, session, signal);
      isUnproven = false;
    }
    if (record.state !== "open") return record;
    const grown = await growOnce(stores, record, signal);
    if (grown === undefined) {
      if (!isUnproven) return record;
      record = undefined;
      continue;
    }
    const { next, added } = grown;
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
    if (conflicts === 0) heads?.keep(record);
    observer.report({ kind: "tree-grown", sessionId: session, size: record.tree.size, added });
    // Fewer than asked for means that the next index wasn't committed when the leaves were read. Whoever commits it
    // runs this function after that, so there is no need to look once more.
    if (added < INTEGRATE_LEAVES_MAX) return record;
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
}

async function growOnce(
  stores: IntegrateStores,
  record: SessionRecord,
  signal: AbortSignal,
): Promise<Growth | undefined> {
  const { chunks, tiles, patience } = stores;
  const { size } = record.tree;
  const limit = Math.min(INTEGRATE_LEAVES_MAX, (record.expectedCount ?? Number.MAX_SAFE_INTEGER) - size);
  if (limit <= 0) return undefined;
  const fresh = await patience("chunks.leaves", signal, () =>
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
