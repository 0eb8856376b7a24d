import type { SessionId } from "../core/ids.ts";
import type { SessionRecord } from "../schema/record.ts";
import type { Clock, CommittedLeaf, Observer } from "./ports.ts";
import type { BackgroundWork } from "./relay-events.ts";

/** Sessions that are kept in mind. */
const SESSIONS_MAX = 1_024;
/** Leaves of one session that wait for an earlier one; what is beyond is read from the store, as another worker's. */
const LEAVES_MAX = 1_024;
/** Of all sessions: what has gone unused for longest is forgotten first. */
const LEAVES_OF_ALL_MAX = 4_096;
/** A tree that hasn't grown for so long is read again: to grow it unread would cost a look afterwards for every chunk. */
const BUSY_MS = 250;
/** A tree that grew unread, and then didn't grow for this long, is looked at. */
const LOOK_DELAY_MS = 250;

interface Own {
  /** As this process wrote it last, without losing a race since. */
  head: SessionRecord | undefined;
  /** When that was, on the monotonic clock. */
  headAtMs: number;
  /** Committed by this process, and not in the tree when it last ran. */
  readonly leaves: Map<number, CommittedLeaf>;
  /** Since `takeUnread`. */
  hasGrownUnread: boolean;
}

/**
 * What a process knows of the trees that it grows: where it is alone at a busy session it needs to read neither head nor leaves. All of it
 * may be out of date or forgotten at any time: the compare-and-swap on the head's version decides, and what another worker
 * committed meanwhile is found by the run after it, or by a later look (decision 17).
 */
export class OwnGrowth {
  readonly #clock: Pick<Clock, "monotonicMs">;
  readonly #sessions = new Map<SessionId, Own>();
  #leaves = 0;

  constructor(clock: Pick<Clock, "monotonicMs">) {
    this.#clock = clock;
  }

  committed(session: SessionId, { index, leafHash, originalBytes, storedBytes }: CommittedLeaf): void {
    const { leaves } = this.#use(session);
    if (leaves.size >= LEAVES_MAX || leaves.has(index)) return;
    leaves.set(index, { index, leafHash, originalBytes, storedBytes });
    this.#leaves += 1;
    for (const unused of this.#sessions.values()) {
      if (this.#leaves <= LEAVES_OF_ALL_MAX) return;
      this.#forgetLeaves(unused);
    }
  }

  /** Gives the head out once: whoever grows it keeps the next one, whoever loses the race doesn't. */
  takeHead(session: SessionId): SessionRecord | undefined {
    const own = this.#sessions.get(session);
    const head = own?.head;
    if (own !== undefined) own.head = undefined;
    return head;
  }

  keepHead(head: SessionRecord): void {
    const own = this.#use(head.id);
    own.head = head;
    own.headAtMs = this.#clock.monotonicMs();
  }

  /** Leaves from `size` on, without a gap; none for a tree that this process has not grown just now. */
  leavesFrom(session: SessionId, size: number, limit: number): readonly CommittedLeaf[] {
    const own = this.#sessions.get(session);
    if (own === undefined || this.#clock.monotonicMs() - own.headAtMs > BUSY_MS) return [];
    const found: CommittedLeaf[] = [];
    for (let leaf = own.leaves.get(size); leaf !== undefined && found.length < limit; ) {
      found.push(leaf);
      leaf = own.leaves.get(size + found.length);
    }
    return found;
  }

  /** A run has ended with this record, unread or not. */
  reached({ id, tree }: SessionRecord, isUnread: boolean): void {
    const own = this.#sessions.get(id);
    if (own === undefined) return;
    own.hasGrownUnread ||= isUnread;
    for (const index of own.leaves.keys()) {
      if (index < tree.size && own.leaves.delete(index)) this.#leaves -= 1;
    }
  }

  /** True once after the tree has grown without a look at the store. */
  takeUnread(session: SessionId): boolean {
    const own = this.#sessions.get(session);
    if (own?.hasGrownUnread !== true) return false;
    own.hasGrownUnread = false;
    return true;
  }

  /** What is used comes last in the map's order. */
  #use(session: SessionId): Own {
    const own = this.#sessions.get(session) ?? {
      head: undefined,
      headAtMs: Number.NEGATIVE_INFINITY,
      leaves: new Map<number, CommittedLeaf>(),
      hasGrownUnread: false,
    };
    this.#sessions.delete(session);
    this.#sessions.set(session, own);
    const [oldest] = this.#sessions;
    if (this.#sessions.size > SESSIONS_MAX && oldest !== undefined) {
      this.#forgetLeaves(oldest[1]);
      this.#sessions.delete(oldest[0]);
    }
    return own;
  }

  #forgetLeaves({ leaves }: Own): void {
    this.#leaves -= leaves.size;
    leaves.clear();
  }
}

interface LookPorts {
  readonly clock: Clock;
  readonly background: BackgroundWork;
  readonly observer: Observer;
  readonly growth: OwnGrowth;
}

/**
 * After a tree has grown unread, and doesn't any more: one more run, which finds no leaves of this process and so asks the store for those
 * of others. Nobody waits for it. Dies before: sweepSessions does the same.
 */
export class LaterLooks {
  readonly #ports: LookPorts;
  readonly #stopped: AbortSignal;
  readonly #awaited = new Set<SessionId>();

  constructor(ports: LookPorts, stopped: AbortSignal) {
    this.#ports = ports;
    this.#stopped = stopped;
  }

  /** To be called after each run of an open session; `advance` is asked for another one, if there is need. */
  request(session: SessionId, advance: (session: SessionId) => Promise<unknown>): void {
    const { background, growth, observer } = this.#ports;
    if (this.#awaited.has(session) || !growth.takeUnread(session)) return;
    this.#awaited.add(session);
    background.add(this.#look(session, advance), (code) => {
      if (code !== "SHUTTING_DOWN") observer.report({ kind: "session-stuck", sessionId: session, code });
    });
  }

  async #look(session: SessionId, advance: (session: SessionId) => Promise<unknown>): Promise<void> {
    const { clock, growth } = this.#ports;
    do {
      await clock.sleep(LOOK_DELAY_MS, this.#stopped);
    } while (growth.takeUnread(session));
    this.#awaited.delete(session);
    if (!this.#stopped.aborted) await advance(session);
  }
}
