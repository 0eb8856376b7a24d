import { bytesEqual, toHex } from "../../src/core/bytes.ts";
import { blake3 } from "../../src/core/digest.ts";
import { plainMac, plainMacKey } from "../../src/core/encrypt/commit.ts";
import { unwrapSecret } from "../../src/core/encrypt/session-secret.ts";
import { saltOf } from "../../src/core/encrypt/sealed-blob.ts";
import { HASH_BYTES, type LeafIndex, type SessionId } from "../../src/core/ids.ts";
import { openChunk } from "../../src/core/kernel.ts";
import { textbookRoot } from "../../src/core/merkle/textbook.ts";
import { TILE_WIDTH } from "../../src/core/merkle/tiles.ts";
import type { LucidEvent } from "../../src/schema/event.ts";
import type { ChunkRecord, SessionRecord } from "../../src/schema/record.ts";
import type { ChunkKey } from "../../src/pipeline/ports.ts";
import { fastKey, type PipelineWorld, type PortCall, type SimulatedWorker } from "./pipeline-world.ts";

/** Trees up to this size are compared with the textbook at each step, larger ones at the end. */
const STEP_ROOT_LEAVES_MAX = 32;
/** For so long a worker may go by what it has read of an open session. */
const SESSION_KNOWLEDGE_MS = 1_000;

/**
 * Looks on from outside of the stores and says what must never be seen. It knows the pipeline's promises, and of its code
 * only the formats.
 */
export class PipelineWitness {
  readonly violations: string[] = [];
  readonly #world: PipelineWorld;
  /** When a worker first had a chunk, by both. */
  readonly #begunMs = new Map<string, number>();
  /** What each session's committed chunks came to, from when on. */
  readonly #bytes = new Map<SessionId, { readonly fromMs: number; readonly total: number }[]>();
  readonly #sessions = new Map<SessionId, SessionRecord>();
  readonly #committed = new Map<string, ChunkRecord>();
  readonly #withdrawnBlobs = new Set<string>();
  readonly #published = new Map<string, string>();
  /** Chunks that a scenario has put there before the beginning: without blob, already announced. */
  readonly #planted = new Set<string>();
  /** Chunks that some worker has returned; sessions whose finalize-session has returned. */
  readonly #returned = new Set<string>();
  readonly #finalized = new Set<SessionId>();
  /** Payload references by their text, with the chunk they are for. */
  readonly #payloadOwners = new Map<string, ChunkKey>();

  constructor(world: PipelineWorld) {
    this.#world = world;
  }

  /** A worker begins with a chunk; of its deliveries to that worker the first counts. */
  begun(worker: SimulatedWorker, chunk: ChunkKey): void {
    const key = `${worker.name} ${keyOf(chunk)}`;
    if (!this.#begunMs.has(key)) this.#begunMs.set(key, this.#world.time.nowMs);
  }

  /** True if at no time so much was committed that a chunk of these bytes was too much. */
  hadRoomFor(session: SessionId, bytes: number): boolean {
    const peak = Math.max(0, ...(this.#bytes.get(session) ?? []).map(({ total }) => total));
    return peak + bytes <= this.#world.options.sessionBytesMax;
  }

  plantChunk(chunk: ChunkRecord): void {
    this.#planted.add(keyOf(chunk));
    this.#committed.set(keyOf(chunk), chunk);
    this.#returned.add(keyOf(chunk));
    this.#published.set(chunk.eventId, "planted");
  }

  plantSession(session: SessionRecord): void {
    this.#sessions.set(session.id, session);
  }

  payloadOf(ref: unknown, chunk: ChunkKey): void {
    this.#payloadOwners.set(JSON.stringify(ref), chunk);
  }

  isPublished(eventId: string): boolean {
    return this.#published.has(eventId);
  }

  session(id: SessionId): SessionRecord | undefined {
    return this.#sessions.get(id);
  }

  violation(text: string): void {
    this.violations.push(`at ${this.#world.time.nowMs} ms: ${text}`);
  }

  /** After each call's effect. */
  async after({ worker, port, method, args }: PortCall): Promise<void> {
    switch (`${port}.${method}`) {
      case "sessions.create":
        return this.#checkSession((args[0] as { readonly id: SessionId }).id);
      case "sessions.reopenEvents":
        return this.#readAgain();
      case "sessions.replace":
        return this.#checkSession(args[0] as SessionId);
      case "chunks.insert":
        return this.#checkInserted(worker, args[0] as ChunkRecord);
      case "chunks.withdraw":
        return this.#checkWithdrawn(args[0] as ChunkKey);
      case "chunks.markSent":
        return this.#checkMarked(args[0] as readonly ChunkKey[]);
      case "blobs.remove":
        return this.#checkRemoved(args[0] as readonly string[]);
      case "payloads.remove":
        return this.#checkPayloadRemoved(args[1]);
      case "events.publish":
        return this.#checkPublished(args[0] as LucidEvent);
      default:
    }
  }

  /** Events were made pending again, which raises versions by one or two. */
  async #readAgain(): Promise<void> {
    for (const id of this.#sessions.keys()) {
      const now = await this.#world.stores.sessions.find(id);
      if (now !== undefined) this.#sessions.set(id, now);
    }
  }

  async #checkSession(id: SessionId): Promise<void> {
    const now = await this.#world.stores.sessions.find(id);
    if (now === undefined) return this.violation(`${id}: the session is gone`);
    const was = this.#sessions.get(id);
    this.#sessions.set(id, now);
    if (was === undefined || was.version === now.version) return;
    const where = `${id} v${now.version}`;
    if (now.version !== was.version + 1) this.violation(`${where}: the version made a jump`);
    if (now.tree.size < was.tree.size)
      this.violation(`${where}: the tree went from ${was.tree.size} back to ${now.tree.size}`);
    if (was.state !== "open" && now.tree.size !== was.tree.size)
      this.violation(`${where}: grew after the seal`);
    if (was.countConfirmed && (!now.countConfirmed || now.expectedCount !== was.expectedCount)) {
      this.violation(`${where}: a confirmed count was changed`);
    }
    if (now.tree.size !== was.tree.size) this.#checkLeaves(now, was.tree.size);
    if (now.countConfirmed && !was.countConfirmed) this.#checkNothingAnnouncedBeyond(now, where);
    if (now.state !== "open" && was.state === "open") this.#checkSeal(now, where);
  }

  #checkLeaves(now: SessionRecord, from: number): void {
    if (now.expectedCount !== undefined && now.tree.size > now.expectedCount) {
      this.violation(`${now.id}: the tree has more leaves than its count`);
    }
    for (let index = from; index < now.tree.size; index++) {
      if (this.#chunk(now.id, index) === undefined) this.violation(`${now.id}: leaf ${index} has no chunk`);
    }
    if (now.tree.size <= STEP_ROOT_LEAVES_MAX) this.#checkRoot(now);
  }

  #checkRoot(now: SessionRecord): void {
    const leaves: Uint8Array[] = [];
    for (let index = 0; index < now.tree.size; index++) {
      const chunk = this.#chunk(now.id, index);
      if (chunk === undefined) return this.violation(`${now.id}: leaf ${index} has no chunk`);
      leaves.push(chunk.leafHash);
    }
    if (leaves.length === 0) return;
    if (now.tree.root === undefined || !bytesEqual(now.tree.root, textbookRoot(leaves, now.hashAlgorithm))) {
      this.violation(`${now.id}: the root of ${leaves.length} leaves is not the textbook's`);
    }
  }

  #checkNothingAnnouncedBeyond(now: SessionRecord, where: string): void {
    for (const chunk of this.#committed.values()) {
      if (chunk.sessionId !== now.id || chunk.index < (now.expectedCount ?? 0)) continue;
      if (this.isPublished(chunk.eventId))
        this.violation(`${where}: the count leaves out announced chunk ${chunk.index}`);
    }
  }

  #checkSeal(now: SessionRecord, where: string): void {
    if (!now.countConfirmed) this.violation(`${where}: sealed under a count that nobody confirmed`);
    if (now.tree.size !== now.expectedCount) {
      this.violation(`${where}: sealed with ${now.tree.size} leaves, not ${now.expectedCount}`);
    }
    this.#checkNothingAnnouncedBeyond(now, where);
  }

  /**
   * MAX_SESSION_SIZE: what had been committed for as long as a worker may go by what it knows of a session, when this
   * chunk's worker took it up, counts.
   */
  #checkRoom(worker: SimulatedWorker, own: ChunkRecord): void {
    const sums = this.#bytes.get(own.sessionId) ?? [];
    const begunMs = this.#begunMs.get(`${worker.name} ${keyOf(own)}`) ?? 0;
    const at = sums.findLastIndex(({ fromMs }) => fromMs < begunMs - SESSION_KNOWLEDGE_MS);
    // The smallest since then: what was taken back meanwhile made room.
    const known = at < 0 ? 0 : Math.min(...sums.slice(at).map(({ total }) => total));
    if (known + own.originalBytes > this.#world.options.sessionBytesMax) {
      this.violation(`${keyOf(own)}: committed although ${known} bytes had been for long`);
    }
    this.#addBytes(own.sessionId, own.originalBytes);
  }

  #addBytes(session: SessionId, added: number): void {
    const sums = this.#bytes.get(session) ?? [];
    this.#bytes.set(session, sums);
    sums.push({ fromMs: this.#world.time.nowMs, total: (sums.at(-1)?.total ?? 0) + added });
  }

  async #checkInserted(worker: SimulatedWorker, own: ChunkRecord): Promise<void> {
    const stored = this.#world.stores.chunks.committed(own);
    const key = keyOf(own);
    const was = this.#committed.get(key);
    if (stored === undefined) return;
    if (was !== undefined && was.blobId !== stored.blobId)
      this.violation(`${key}: a committed chunk was replaced`);
    this.#committed.set(key, stored);
    if (was !== undefined || stored.blobId !== own.blobId) return;
    this.#checkRoom(worker, own);
    const blob = await this.#world.stores.blobs.read(stored.blobId);
    // A chunk beyond the end is taken back, and may have been taken back before this late copy of its insert came.
    if (blob === undefined && !this.#isBeyondEnd(stored))
      this.violation(`${key}: committed without its blob`);
    if (blob !== undefined && !bytesEqual(blake3(blob), stored.blobBlake3)) {
      this.violation(`${key}: committed with another attempt's blob`);
    }
  }

  #checkWithdrawn(chunk: ChunkKey): void {
    const key = keyOf(chunk);
    const was = this.#committed.get(key);
    if (was === undefined || this.#world.stores.chunks.committed(chunk) !== undefined) return;
    this.#committed.delete(key);
    this.#addBytes(was.sessionId, -was.originalBytes);
    this.#withdrawnBlobs.add(was.blobId);
    if (this.isPublished(was.eventId)) this.violation(`${key}: withdrawn after it was announced`);
    if (!this.#isBeyondEnd(was))
      this.violation(`${key}: withdrawn although no confirmed count leaves it out`);
  }

  #checkMarked(chunks: readonly ChunkKey[]): void {
    for (const chunk of chunks) {
      const stored = this.#world.stores.chunks.committed(chunk);
      if (stored !== undefined && !this.isPublished(stored.eventId)) {
        this.violation(`${keyOf(chunk)}: marked sent and never published`);
      }
    }
  }

  #checkRemoved(ids: readonly string[]): void {
    const gone = new Set(ids);
    for (const chunk of this.#committed.values()) {
      // Taken back once, and there again by a late copy of its insert: it is taken back again.
      if (gone.has(chunk.blobId) && !this.#withdrawnBlobs.has(chunk.blobId))
        this.violation(`${keyOf(chunk)}: the blob of a committed chunk was removed`);
    }
    for (const { port, method, args } of this.#world.ghosts) {
      if (port !== "chunks" || method !== "insert") continue;
      const late = args[0] as ChunkRecord;
      if (!gone.has(late.blobId) || this.#world.stores.chunks.committed(late) !== undefined) continue;
      if (!this.#isBeyondEnd(late))
        this.violation(`${keyOf(late)}: its blob was removed while its insert may still arrive`);
    }
  }

  #checkPayloadRemoved(ref: unknown): void {
    const owner = this.#payloadOwners.get(JSON.stringify(ref));
    if (owner !== undefined && !this.#committed.has(keyOf(owner))) {
      this.violation(`${keyOf(owner)}: its payload was removed before it was committed`);
    }
  }

  #checkPublished(event: LucidEvent): void {
    const text = JSON.stringify(event);
    const before = this.#published.get(event.event_id);
    this.#published.set(event.event_id, text);
    // A gap is told as it is at the time; all other facts are told in the same words each time.
    const isRetold = before !== undefined && before !== text && before !== "planted";
    if (isRetold && event.type !== "session.gap")
      this.violation(`${event.event_id}: told differently the second time`);
    if (event.type === "chunk.completed") this.#checkAnnounced(event);
    if (event.type === "session.sealed") {
      const session = this.#sessions.get(event.session_id as SessionId);
      const root = session?.tree.root;
      if (
        session === undefined ||
        session.state === "open" ||
        root === undefined ||
        toHex(root) !== event.root_hash
      ) {
        this.violation(`${event.event_id}: announced, but the session isn't sealed with that root`);
      }
    }
  }

  #checkAnnounced(event: Extract<LucidEvent, { readonly type: "chunk.completed" }>): void {
    const stored = this.#committed.get(`${event.session_id}:${event.chunk_index}`);
    if (stored?.blobId !== event.blob.id || toHex(stored.leafHash) !== event.leaf_hash) {
      this.violation(`${event.event_id}: announced and not committed`);
    } else if (this.#isBeyondEnd(stored)) {
      this.violation(`${event.event_id}: announced beyond the session's end`);
    }
  }

  #isBeyondEnd({ sessionId, index }: ChunkKey): boolean {
    const session = this.#sessions.get(sessionId);
    return session?.countConfirmed === true && index >= (session.expectedCount ?? 0);
  }

  #chunk(session: SessionId, index: number): ChunkRecord | undefined {
    return this.#world.stores.chunks.committed({ sessionId: session, index: index as LeafIndex });
  }

  /** A worker has returned this chunk: it promises that the event is out. */
  returned(chunk: ChunkRecord): void {
    if (!this.isPublished(chunk.eventId)) this.violation(`${keyOf(chunk)}: returned and not announced`);
    this.#returned.add(keyOf(chunk));
  }

  /** A worker has returned from finalize-session. */
  finalized(session: SessionId): void {
    this.#finalized.add(session);
  }

  /**
   * For a history without faults and sweeps, some time after the last job: whoever came last has seen everybody else's commit, or
   * looked for it later. The tree has all of them, and the seal if that was the end.
   */
  checkNothingLeftBehind(): void {
    for (const [id, session] of this.#sessions) this.#checkNoLeafLeftBehind(id, session);
  }

  #checkNoLeafLeftBehind(id: SessionId, session: SessionRecord): void {
    let end = 0;
    while (this.#returned.has(`${id}:${end}`)) end += 1;
    if (end > session.tree.size) this.violation(`${id}: leaf ${session.tree.size} is left to the sweepers`);
    const isComplete = this.#finalized.has(id) && session.expectedCount === end;
    if (!isComplete || session.state !== "open") return;
    this.violation(`${id}: the seal is left to the sweepers`);
  }

  /** Once everything has come to rest. */
  async checkRest(): Promise<void> {
    for (const id of this.#sessions.keys()) await this.#checkSessionAtRest(id);
    for (const key of this.#committed.keys()) {
      if (!this.#planted.has(key)) await this.#checkChunkAtRest(key);
    }
    const blobs = await this.#world.stores.blobs.page(undefined, Number.MAX_SAFE_INTEGER);
    for (const { id, committedBlobId } of blobs) {
      if (id !== committedBlobId) this.violation(`blob ${id} of a lost attempt is still there`);
    }
  }

  async #checkSessionAtRest(id: SessionId): Promise<void> {
    const session = await this.#world.stores.sessions.find(id);
    if (session === undefined) return;
    this.#checkRoot(session);
    await this.#checkTiles(session);
    const end = session.expectedCount ?? Number.POSITIVE_INFINITY;
    const isGap =
      this.committedFrom(id, session.tree.size) > 0 || session.tree.size < (session.expectedCount ?? 0);
    if (isGap && !this.isPublished(`session.gap.${id}.${session.tree.size}`)) {
      this.violation(`${id}: nobody was told that chunk ${session.tree.size} is missing`);
    }
    if (session.tree.size < end && this.#chunk(id, session.tree.size) !== undefined) {
      this.violation(`${id}: leaf ${session.tree.size} was left behind`);
    }
    if (session.expectedCount !== undefined && !session.countConfirmed)
      this.violation(`${id}: its count was never settled`);
    const isComplete = session.countConfirmed && session.tree.size === session.expectedCount;
    if (isComplete && session.state === "open") this.violation(`${id}: complete and never sealed`);
    if (session.state !== "open" && session.sealedEvent !== "sent")
      this.violation(`${id}: its seal is still pending`);
    if (session.state !== "open" && !this.#isQueued(`session.sealed.${id}`)) {
      this.violation(`${id}: the event of its seal is lost`);
    }
    if (session.state !== "open" && !session.closed) this.violation(`${id}: sealed and never closed`);
  }

  /** Nobody consumes events here: all that were told and not lost again are still there. */
  #isQueued(eventId: string): boolean {
    return this.#world.stores.events.waiting("storage-events").some(({ event_id }) => event_id === eventId);
  }

  async #checkTiles(session: SessionRecord): Promise<void> {
    const { size } = session.tree;
    for (let level = 0, span = 1; Math.floor(size / span) > 0; level++, span *= TILE_WIDTH) {
      const hashes = Math.floor(size / span);
      // Level 0 is stored when full only.
      const tiles = level === 0 ? Math.floor(hashes / TILE_WIDTH) : Math.ceil(hashes / TILE_WIDTH);
      for (let n = 0; n < tiles; n++) {
        const width = Math.min(TILE_WIDTH, hashes - n * TILE_WIDTH);
        const stored = await this.#world.stores.tiles.read(session.id, level, n);
        if (stored === undefined || stored.byteLength < width * HASH_BYTES) {
          this.violation(`${session.id}: tile ${level}:${n} lacks hashes that ${size} leaves need`);
        } else if (level === 0) {
          this.#checkLeafTile(session, n, stored);
        }
      }
    }
  }

  #checkLeafTile(session: SessionRecord, n: number, stored: Uint8Array): void {
    for (let at = 0; at < TILE_WIDTH; at++) {
      const leaf = this.#chunk(session.id, n * TILE_WIDTH + at)?.leafHash;
      const hash = stored.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES);
      if (leaf === undefined || !bytesEqual(leaf, hash)) {
        this.violation(`${session.id}: tile 0:${n} differs from leaf ${n * TILE_WIDTH + at}`);
      }
    }
  }

  async #checkChunkAtRest(key: string): Promise<void> {
    const known = this.#committed.get(key);
    const chunk = known && this.#world.stores.chunks.committed(known);
    if (known === undefined || chunk === undefined) return this.violation(`${key}: the chunk is gone`);
    if (this.#isBeyondEnd(chunk)) return this.violation(`${key}: beyond the end and still there`);
    if (!this.isPublished(chunk.eventId)) this.violation(`${key}: never announced`);
    if (chunk.eventState !== "sent") this.violation(`${key}: announced and still pending`);
    if (!this.#isQueued(chunk.eventId)) this.violation(`${key}: its event is lost`);
    const blob = await this.#world.stores.blobs.read(chunk.blobId);
    if (blob === undefined) return this.violation(`${key}: no blob`);
    try {
      this.#open(chunk, blob);
    } catch (thrown) {
      this.violation(`${key}: the blob doesn't open: ${String(thrown)}`);
    }
  }

  #secretOf(chunk: ChunkRecord): string {
    const session = this.#sessions.get(chunk.sessionId);
    const key = session?.keys.find(({ keyVersion }) => keyVersion === chunk.keyVersion);
    if (session === undefined || key === undefined) throw new Error("no key");
    const kek = this.#world.options.keyRing.kek(key.kekVersion);
    return unwrapSecret(key.wrapped, { kek, sessionId: session.id, keyVersion: key.keyVersion });
  }

  #open(chunk: ChunkRecord, blob: Uint8Array): Uint8Array {
    const secret = this.#secretOf(chunk);
    const { payload } = openChunk({
      ...chunk,
      originalLength: chunk.originalBytes,
      blob,
      key: fastKey(secret, saltOf(blob)),
      plainMacKey: plainMacKey(secret),
    });
    return payload;
  }

  /** True if the chunk that is committed at that index has these bytes. */
  holds(chunk: ChunkKey, bytes: Uint8Array): boolean {
    const stored = this.#world.stores.chunks.committed(chunk);
    if (stored === undefined) return false;
    return bytesEqual(plainMac(plainMacKey(this.#secretOf(stored)), blake3(bytes)), stored.plainMac);
  }

  isCommitted(chunk: ChunkKey): boolean {
    return this.#world.stores.chunks.committed(chunk) !== undefined;
  }

  /** Indexes ≥ `from` that are committed. */
  committedFrom(session: SessionId, from: number): number {
    return [...this.#committed.values()].filter((chunk) => chunk.sessionId === session && chunk.index >= from)
      .length;
  }
}

function keyOf({ sessionId, index }: ChunkKey): string {
  return `${sessionId}:${index}`;
}
