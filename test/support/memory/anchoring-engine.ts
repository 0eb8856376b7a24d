import { LucidError } from "../../../src/core/errors.ts";
import type { SessionId } from "../../../src/core/ids.ts";
import type {
  AnchoringEngine,
  AnchorPlace,
  AnchorRequest,
  AnchorStatus,
  AnchorSubmission,
} from "../../../src/pipeline/anchoring-engine.ts";

interface Anchoring {
  readonly key: string;
  readonly merkleRoot: string;
  readonly size: number;
  readonly anchoringId: string;
  polls: number;
  failed: boolean;
}

/** A blockchain engine in memory that keeps its word: the same key is the same anchoring, one anchoring a session. */
export class MemoryAnchoringEngine implements AnchoringEngine {
  /** Every POST that reached it, in order. */
  readonly posts: { readonly request: AnchorRequest; readonly key: string }[] = [];
  /** Calls of any kind, also those that failed. */
  calls = 0;
  /** While set, every call fails with it before it reaches the engine. */
  outage: LucidError | undefined;
  /** While set, POSTs are understood and refused with it. */
  refusal: LucidError | undefined;
  /** Status calls after which an anchoring is in a block. */
  confirmAfterPolls = 1;
  /** What it says about the place, beside the transaction. */
  place: Partial<AnchorPlace> = { block: 7 };
  readonly #anchorings = new Map<SessionId, Anchoring>();
  /** All that ever were, also those that it forgot: (session, size, root). */
  readonly roots = new Set<string>();

  async submit(request: AnchorRequest, key: string): Promise<AnchorSubmission> {
    this.#arrive();
    this.posts.push({ request, key });
    if (this.refusal !== undefined) throw this.refusal;
    const { sessionId, merkleRoot, chunkCount } = request;
    const known = this.#anchorings.get(sessionId);
    if (known !== undefined && known.key !== key) {
      throw new LucidError("SERVICE_REJECTED", "the engine has this session with another root");
    }
    if (known === undefined || known.failed) {
      this.roots.add(`${sessionId} ${chunkCount} ${merkleRoot}`);
      const anchoringId = `anchoring-${this.roots.size}`;
      const size = chunkCount;
      this.#anchorings.set(sessionId, { key, merkleRoot, size, anchoringId, polls: 0, failed: false });
    }
    const anchoringId = this.#anchorings.get(sessionId)?.anchoringId;
    return { kind: "accepted", ...(anchoringId === undefined ? {} : { anchoringId }) };
  }

  async status(session: SessionId): Promise<AnchorStatus> {
    this.#arrive();
    const anchoring = this.#anchorings.get(session);
    if (anchoring === undefined) return { kind: "unknown" };
    if (anchoring.failed) return { kind: "failed" };
    anchoring.polls += 1;
    if (anchoring.polls <= this.confirmAfterPolls) return { kind: "pending" };
    return {
      kind: "confirmed",
      transaction: `tx-${session}`,
      merkleRoot: anchoring.merkleRoot,
      ...this.place,
    };
  }

  /** Somebody else has submitted this session. */
  plant(session: SessionId, merkleRoot: string): void {
    const anchoringId = "planted";
    this.#anchorings.set(session, {
      key: "other",
      merkleRoot,
      size: 1,
      anchoringId,
      polls: 0,
      failed: false,
    });
  }

  /** A database that was restored from a backup. */
  forget(session: SessionId): void {
    this.#anchorings.delete(session);
  }

  /** The transaction will not get into a block. */
  fail(session: SessionId): void {
    const anchoring = this.#anchorings.get(session);
    if (anchoring !== undefined) anchoring.failed = true;
  }

  #arrive(): void {
    this.calls += 1;
    if (this.outage !== undefined) throw this.outage;
  }
}
