import type { SessionId, TreeSize } from "../../../src/core/ids.ts";
import type {
  Listed,
  NewSession,
  SessionChange,
  SessionListing,
  SessionStore,
} from "../../../src/pipeline/ports.ts";
import type { AnchorRecord, SessionRecord } from "../../../src/schema/record.ts";
import { pageAfter } from "./order.ts";

/** The twin of MongoSessionStore: each call is one atomic step, taken when it is called. */
export class MemorySessionStore implements SessionStore, SessionListing {
  readonly #sessions = new Map<SessionId, SessionRecord>();

  /** As a database that was restored without it. */
  lose(session: SessionId): void {
    this.#sessions.delete(session);
  }

  async find(session: SessionId): Promise<SessionRecord | undefined> {
    return this.#sessions.get(session);
  }

  async create({ id, hashAlgorithm, key, createdAt }: NewSession): Promise<SessionRecord> {
    const first = this.#sessions.get(id);
    if (first !== undefined) return first;
    const record: SessionRecord = {
      id,
      state: "open",
      hashAlgorithm,
      version: 0,
      tree: { size: 0 as TreeSize, frontier: [], root: undefined },
      totals: { originalBytes: 0, storedBytes: 0 },
      roomCounted: false,
      expectedCount: undefined,
      countConfirmed: false,
      finalize: undefined,
      keys: [key],
      createdAt,
      sealedAt: undefined,
      sealedEvent: undefined,
      checkpoint: undefined,
      anchor: undefined,
      anchoredEvent: undefined,
      closed: false,
    };
    this.#sessions.set(id, record);
    return record;
  }

  async replace(
    session: SessionId,
    version: number,
    change: SessionChange,
  ): Promise<"replaced" | "conflict"> {
    const stored = this.#sessions.get(session);
    if (stored === undefined || stored.version !== version) return "conflict";
    this.#sessions.set(session, { ...stored, ...changedFields(stored, change), version: version + 1 });
    return "replaced";
  }

  async reopenEvents(id: SessionId): Promise<number> {
    const session = this.#sessions.get(id);
    if (session === undefined) return 0;
    const lost = (["sealedEvent", "anchoredEvent"] as const).filter((field) => session[field] === "sent");
    const isPending = session.sealedEvent === "pending" || session.anchoredEvent === "pending";
    const version = session.version + lost.length + (isPending ? 1 : 0);
    const pending = Object.fromEntries(lost.map((field) => [field, "pending"]));
    const closed = session.closed && lost.length === 0;
    this.#sessions.set(id, { ...session, ...pending, closed, version });
    return lost.length;
  }

  async activeSince(since: Date, after: SessionId | undefined, limit: number): Promise<readonly SessionId[]> {
    const active = [...this.#sessions.values()].filter(
      ({ closed, sealedAt, anchor }) =>
        !closed || [sealedAt, anchor?.anchoredAt].some((at) => at !== undefined && at >= since),
    );
    return pageAfter(active, ({ id }) => id, after, limit).map(({ id }) => id);
  }

  async unfinished(after: SessionId | undefined, limit: number): Promise<readonly Listed<SessionRecord>[]> {
    const candidates = [...this.#sessions.values()].filter(({ closed }) => !closed);
    return pageAfter(candidates, ({ id }) => id, after, limit).map((session) => ({
      id: session.id,
      sessionId: session.id,
      read: () => session,
    }));
  }

  async ids(after: SessionId | undefined, limit: number): Promise<readonly SessionId[]> {
    return pageAfter([...this.#sessions.keys()], (id) => id, after, limit);
  }

  async newest(limit: number): Promise<readonly SessionId[]> {
    return [...this.#sessions.keys()].toReversed().slice(0, limit);
  }
}

function changedFields(stored: SessionRecord, change: SessionChange): Partial<SessionRecord> {
  switch (change.kind) {
    case "grow":
      return {
        tree: change.tree,
        totals: {
          originalBytes: stored.totals.originalBytes + change.addedOriginalBytes,
          storedBytes: stored.totals.storedBytes + change.addedStoredBytes,
        },
      };
    case "count-room":
      return { roomCounted: true };
    case "propose-count":
      return { expectedCount: change.count, countConfirmed: false, finalize: change.finalize };
    case "confirm-count":
      return { countConfirmed: true };
    case "withdraw-count":
      return { expectedCount: undefined, countConfirmed: false, finalize: undefined };
    case "seal":
      return { state: "sealed", sealedAt: change.at, sealedEvent: "pending" };
    case "sealed-event-sent":
      return { sealedEvent: "sent" };
    case "checkpoint":
      return { checkpoint: change.checkpoint };
    case "anchor-claimed":
      return { anchor: { status: "claimed", claim: change.claim } };
    case "anchor-submitted":
      return {
        anchor: { ...anchorOf(stored), status: "submitted", ...defined({ anchoringId: change.anchoringId }) },
      };
    case "anchored":
      return {
        state: "anchored",
        anchoredEvent: "pending",
        anchor: {
          ...anchorOf(stored),
          status: "confirmed",
          ...defined({ transaction: change.transaction, block: change.block }),
          anchoredAt: change.at,
        },
      };
    case "anchored-event-sent":
      return { anchoredEvent: "sent" };
    case "closed":
      return { closed: true };
  }
}

function anchorOf({ anchor }: SessionRecord): AnchorRecord {
  return anchor ?? { status: "claimed", claim: "" };
}

/** The fields that have a value: optional fields are absent, never `undefined`. */
function defined<Fields extends object>(
  fields: Fields,
): { [Key in keyof Fields]?: Exclude<Fields[Key], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never;
}
