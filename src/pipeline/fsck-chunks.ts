import { blake3 } from "../core/digest.ts";
import { BLOB_OVERHEAD_BYTES } from "../core/encrypt/sealed-blob.ts";
import { asLucidError, type ErrorCode, LucidError } from "../core/errors.ts";
import { HASH_BYTES, isId, type LeafHash, type LeafIndex } from "../core/ids.ts";
import { leafHashOf } from "../core/manifest/chunk-line.ts";
import { treeHasher } from "../core/merkle/hash.ts";
import { TILE_WIDTH } from "../core/merkle/tiles.ts";
import type { ChunkRecord, SessionRecord, SessionTotals } from "../schema/record.ts";
import { chunkCompletedEventId } from "./event-ids.ts";
import type { Findings, NewFinding } from "./fsck-findings.ts";
import { same, type TreeCheck } from "./fsck-tree.ts";
import type { OpeningKeys } from "./opening-keys.ts";
import type { BlobPresence, BlobStore, ChunkStore, Clock, KernelThreads } from "./ports.ts";

/** Documents beyond the window that a read takes in, so that two of one index don't hide the last ones. */
const READ_AHEAD_CHUNKS = 16;
/** Windows without a document that are looked at one by one; after them the next document is where it goes on. */
const EMPTY_WINDOWS_MAX = 64;
/** Blobs that are in memory at the same time. */
const BLOBS_AT_A_TIME = 8;
/** Damaged chunks that are remembered, so that what follows from one isn't reported as another. */
const DAMAGED_MAX = 10_000;

/** What opens a session's blobs in CPU threads. */
export interface BlobOpening {
  readonly threads: KernelThreads;
  readonly keys: OpeningKeys;
}

export interface ChunkCheckPorts {
  readonly chunks: ChunkStore;
  readonly blobs: BlobStore & BlobPresence;
  readonly clock: Clock;
}

export interface ChunkCheckOptions {
  /** `presence`: that the blob is there; `data`: also its length and BLAKE3, and that it opens, if `opening` is given. */
  readonly blobs: "presence" | "data";
  readonly opening: BlobOpening | undefined;
  readonly eventPendingMs: number;
  readonly onProgress: (chunks: number) => void;
  readonly signal: AbortSignal;
}

/** Is shown each chunk document of the tree that could be read, in order. */
export interface ChunkWitness {
  see(chunk: ChunkRecord): Promise<void>;
}

export interface ChunksOutcome {
  /** Of the documents that were read. */
  readonly totals: SessionTotals;
  readonly read: number;
  /** Chunks for which something about the document has been reported. */
  readonly damaged: ReadonlySet<number>;
}

/**
 * Every chunk that the tree head counts, in order, a tile's width at a time: its document, its blob, its leaf hash. What is
 * committed beyond that size is not looked at: a session that is being written to grows while this runs.
 */
export class ChunkCheck {
  readonly #ports: ChunkCheckPorts;
  readonly #session: SessionRecord;
  readonly #tree: TreeCheck;
  readonly #witness: ChunkWitness | undefined;
  readonly #findings: Findings;
  readonly #options: ChunkCheckOptions;
  readonly #damaged = new Set<number>();
  readonly #keyVersions: ReadonlySet<number>;
  readonly #alike = new Map<string, ChunksAlike>();
  #missingFrom: number | undefined;
  #read = 0;
  #originalBytes = 0;
  #storedBytes = 0;

  constructor(
    ports: ChunkCheckPorts,
    session: SessionRecord,
    parts: {
      readonly tree: TreeCheck;
      readonly witness: ChunkWitness | undefined;
      readonly findings: Findings;
    },
    options: ChunkCheckOptions,
  ) {
    this.#ports = ports;
    this.#session = session;
    this.#tree = parts.tree;
    this.#witness = parts.witness;
    this.#findings = parts.findings;
    this.#options = options;
    this.#keyVersions = new Set(session.keys.map(({ keyVersion }) => keyVersion));
  }

  async run(): Promise<ChunksOutcome> {
    const { size } = this.#session.tree;
    let emptyWindows = 0;
    for (let first = 0; first < size; ) {
      this.#options.signal.throwIfAborted();
      const window = await this.#window(first, Math.min(TILE_WIDTH, size - first));
      await this.#checkWindow(first, window);
      first += window.length;
      this.#options.onProgress(first);
      emptyWindows = window.every((chunk) => chunk === undefined) ? emptyWindows + 1 : 0;
      if (emptyWindows < EMPTY_WINDOWS_MAX || first >= size) continue;
      // A tree head that claims billions of chunks must not be counted through.
      const next = await this.#nextIndex(first);
      this.#tree.breakOff();
      first = next === undefined ? size : Math.max(first, Math.min(size, next - (next % TILE_WIDTH)));
      emptyWindows = 0;
    }
    this.#endOfMissing(size);
    for (const { finding, first, last, count } of this.#alike.values()) {
      this.#add({
        ...finding(count),
        place: { what: "chunk", index: first, ...(last === first ? {} : { last }) },
      });
    }
    return {
      totals: { originalBytes: this.#originalBytes, storedBytes: this.#storedBytes },
      read: this.#read,
      damaged: this.#damaged,
    };
  }

  // ---- documents -------------------------------------------------------------------------------------------

  /** The chunks of a window by index, as the pipeline finds them; `undefined` where there is none, or none to be read. */
  async #window(first: number, width: number): Promise<readonly (ChunkRecord | undefined)[]> {
    const { chunks } = this.#ports;
    const slots: (ChunkRecord | undefined)[] = Array.from({ length: width }, () => undefined);
    const unreadable = new Set<number>();
    let page: readonly ChunkRecord[];
    try {
      page = await chunks.beyond(this.#session.id, first, width + READ_AHEAD_CHUNKS);
    } catch (thrown) {
      // One of them; which one, only reading them one by one tells.
      unreadableReason(thrown);
      page = [];
    }
    for (const chunk of page) {
      const at = chunk.index - first;
      if (at >= width) break;
      if (slots[at] === undefined) slots[at] = chunk;
      else this.#damage(chunk.index, "chunk-misplaced", "two documents say that they are this chunk");
    }
    for (const [at, chunk] of slots.entries()) {
      if (chunk === undefined) slots[at] = await this.#chunkAt(first + at, unreadable);
    }
    for (const [at, chunk] of slots.entries()) {
      const index = first + at;
      if (chunk === undefined && !unreadable.has(index)) this.#missingFrom ??= index;
      else this.#endOfMissing(index);
    }
    return slots;
  }

  /** By its document's id, for an index that no document says it has. */
  async #chunkAt(index: number, unreadable: Set<number>): Promise<ChunkRecord | undefined> {
    const { id } = this.#session;
    let chunk: ChunkRecord | undefined;
    try {
      chunk = await this.#ports.chunks.find(id, index as LeafIndex);
    } catch (thrown) {
      unreadable.add(index);
      this.#damage(index, "chunk-unreadable", unreadableReason(thrown));
      return undefined;
    }
    if (chunk === undefined || (chunk.index === index && chunk.sessionId === id)) return chunk;
    this.#damage(index, "chunk-misplaced", "the document under this chunk's id says it is another chunk");
    return { ...chunk, sessionId: id, index: index as LeafIndex };
  }

  async #nextIndex(from: number): Promise<number | undefined> {
    try {
      return (await this.#ports.chunks.beyond(this.#session.id, from, 1))[0]?.index;
    } catch (thrown) {
      unreadableReason(thrown);
      return undefined;
    }
  }

  #endOfMissing(index: number): void {
    if (this.#missingFrom === undefined) return;
    const place = { what: "chunk", index: this.#missingFrom, last: index - 1 } as const;
    const count = index - this.#missingFrom;
    this.#add({
      kind: "chunk-missing",
      place: count === 1 ? { what: "chunk", index: this.#missingFrom } : place,
      problem: "the tree counts it, and there is no document of it",
    });
    this.#missingFrom = undefined;
  }

  // ---- a window --------------------------------------------------------------------------------------------

  async #checkWindow(first: number, window: readonly (ChunkRecord | undefined)[]): Promise<void> {
    const recorded = window.map((chunk) => digestOrNone(chunk?.leafHash));
    const computed = window.map((chunk) => (chunk === undefined ? undefined : this.#computedLeaf(chunk)));
    await this.#tree.addLeaves(first / TILE_WIDTH, recorded, computed);
    const sound = window.filter((chunk, at) => chunk !== undefined && computed[at] !== undefined);
    await this.#checkBlobs(sound as readonly ChunkRecord[]);
    for (const [at, chunk] of window.entries()) {
      if (chunk === undefined) continue;
      this.#read += 1;
      this.#originalBytes += chunk.originalBytes;
      this.#storedBytes += chunk.storedBytes;
      if (computed[at] === undefined) continue;
      if (!same(recorded[at], computed[at])) {
        this.#damage(chunk.index, "leaf-hash-wrong", "the document's fields don't make its leaf hash");
      }
      this.#checkFields(chunk);
      await this.#witness?.see(chunk);
    }
  }

  /** RFC 9162 leaf hash of the document's fields; `undefined`, and reported, where they can't make one. */
  #computedLeaf(chunk: ChunkRecord): LeafHash | undefined {
    try {
      return leafHashOf(this.#session.id, chunk, treeHasher(this.#session.hashAlgorithm));
    } catch {
      this.#damage(
        chunk.index,
        "chunk-fields-wrong",
        "a field that its leaf is made of is missing or malformed",
      );
      return undefined;
    }
  }

  #checkFields(chunk: ChunkRecord): void {
    const fault = fieldFault(chunk, this.#session);
    if (fault !== undefined) this.#damage(chunk.index, "chunk-fields-wrong", fault);
    const { keyVersion } = chunk;
    if (!this.#keyVersions.has(keyVersion)) {
      this.#addAlike(chunk, `no key ${keyVersion}`, (count) => ({
        kind: "blob-key-missing",
        problem: `the session has no secret of key version ${keyVersion}: the data of ${these(count)} can't be opened`,
        // Shredding takes all of them away, and that is somebody's will.
        ...(this.#keyVersions.size === 0 ? { severity: "info" } : {}),
      }));
    }
    if (chunk.eventState === "pending") {
      const isYoung =
        this.#ports.clock.now().getTime() - chunk.committedAt.getTime() < this.#options.eventPendingMs;
      this.#addAlike(chunk, isYoung ? "young event" : "old event", (count) => ({
        kind: "chunk-event-pending",
        problem:
          count === 1
            ? "its chunk.completed is not marked as sent"
            : `the chunk.completed of ${these(count)} are not marked as sent`,
        ...(isYoung ? { severity: "info" } : {}),
      }));
    }
  }

  /** One cause, such as a server that was away, shows in many chunks: one finding for all of them. */
  #addAlike({ index }: ChunkRecord, what: string, finding: ChunksAlike["finding"]): void {
    const { first, last, count } = this.#alike.get(what) ?? { first: index, last: index, count: 0 };
    const ends = { first: Math.min(first, index), last: Math.max(last, index) };
    this.#alike.set(what, { finding, ...ends, count: count + 1 });
  }

  // ---- blobs -----------------------------------------------------------------------------------------------

  async #checkBlobs(chunks: readonly ChunkRecord[]): Promise<void> {
    const own = chunks.filter((chunk) => this.#ownsBlob(chunk));
    if (this.#options.blobs === "presence") {
      const present = await this.#ports.blobs.existing(own.map(({ blobId }) => blobId));
      for (const chunk of own) if (!present.has(chunk.blobId)) this.#blobMissing(chunk);
      return;
    }
    for (let at = 0; at < own.length; at += BLOBS_AT_A_TIME) {
      this.#options.signal.throwIfAborted();
      const some = own.slice(at, at + BLOBS_AT_A_TIME);
      const faults = await Promise.all(some.map((chunk) => this.#dataFault(chunk)));
      for (const fault of faults) if (fault !== undefined) this.#add(fault);
      this.#options.onProgress((own[at]?.index ?? 0) + some.length);
    }
  }

  #ownsBlob(chunk: ChunkRecord): boolean {
    const isOwn =
      typeof chunk.blobId === "string" && chunk.blobId.startsWith(`${this.#session.id}:${chunk.index}:`);
    if (!isOwn) this.#damage(chunk.index, "blob-of-another-chunk", "its blob_id is not one of this chunk");
    return isOwn;
  }

  #blobMissing(chunk: ChunkRecord): void {
    this.#add({ kind: "blob-missing", place: blobPlace(chunk), problem: "there is no blob of this id" });
  }

  async #dataFault(chunk: ChunkRecord): Promise<Omit<NewFinding, "session"> | undefined> {
    const place = blobPlace(chunk);
    const blob = await this.#readBlob(chunk);
    if (blob === undefined) return { kind: "blob-missing", place, problem: "there is no blob of this id" };
    if (blob.byteLength !== chunk.storedBytes) {
      const problem = `it has ${blob.byteLength} bytes, and its chunk's document says ${chunk.storedBytes}`;
      return { kind: "blob-length-wrong", place, problem };
    }
    if (!same(blake3(blob), chunk.blobBlake3)) {
      return {
        kind: "blob-digest-wrong",
        place,
        problem: "its BLAKE3 is not the one in its chunk's document",
      };
    }
    const { opening } = this.#options;
    return opening === undefined || !this.#keyVersions.has(chunk.keyVersion)
      ? undefined
      : this.#openingFault(chunk, blob, opening);
  }

  async #readBlob({ blobId }: ChunkRecord): Promise<Uint8Array | undefined> {
    try {
      const blob: unknown = await this.#ports.blobs.read(blobId);
      // What isn't bytes is no blob.
      return blob === undefined || blob instanceof Uint8Array ? blob : new Uint8Array(0);
    } catch (thrown) {
      unreadableReason(thrown);
      return new Uint8Array(0);
    }
  }

  /** Key commitment, tag, length and plain mac, in a CPU thread, which takes the blob's memory. */
  async #openingFault(
    chunk: ChunkRecord,
    blob: Uint8Array,
    { threads, keys }: BlobOpening,
  ): Promise<Omit<NewFinding, "session"> | undefined> {
    try {
      const opening = await keys.forBlob(chunk.keyVersion, blob);
      const { key, plainMacKey } = opening;
      const originalLength = chunk.originalBytes;
      await threads.open({ ...chunk, originalLength, blob, key, plainMacKey }, this.#options.signal);
      return undefined;
    } catch (thrown) {
      const { code, message } = asLucidError(thrown);
      const place = blobPlace(chunk);
      if (OPENING_FAULTS.has(code)) return { kind: "blob-does-not-open", place, problem: message };
      if (!KEY_FAULTS.has(code)) throw thrown;
      this.#addAlike(chunk, `${code} ${chunk.keyVersion}`, (count) => ({
        kind: "blob-key-missing",
        problem: `the session's secret of key version ${chunk.keyVersion} doesn't unwrap: ${these(count)} can't be opened`,
        action: KEY_ACTIONS[code === "KEK_UNKNOWN" ? code : "SECRET_UNWRAP_FAILED"],
      }));
      return undefined;
    }
  }

  #damage(index: number, kind: NewFinding["kind"], problem: string): void {
    if (this.#damaged.size < DAMAGED_MAX) this.#damaged.add(index);
    this.#add({ kind, place: { what: "chunk", index }, problem });
  }

  #add(finding: Omit<NewFinding, "session">): void {
    this.#findings.add({ ...finding, session: this.#session.id });
  }
}

const OPENING_FAULTS: ReadonlySet<ErrorCode> = new Set([
  "BLOB_MALFORMED",
  "BLOB_AUTHENTICATION_FAILED",
  "DECODE_FAILED",
  "DECODE_LENGTH_MISMATCH",
]);
const KEY_FAULTS: ReadonlySet<ErrorCode> = new Set(["SECRET_UNWRAP_FAILED", "KEK_UNKNOWN"]);
const KEY_ACTIONS = {
  // The KEK itself was checked before anything was read.
  SECRET_UNWRAP_FAILED:
    "restore the session's document from a backup of `sessions`: its wrapped secret was changed",
  KEK_UNKNOWN: "give the KEK of the version that it is wrapped with",
} as const;

/** What many chunks of a session have in common, from the first of them to the last. */
interface ChunksAlike {
  readonly finding: (count: number) => Omit<NewFinding, "session" | "place">;
  readonly first: number;
  readonly last: number;
  readonly count: number;
}

function these(count: number): string {
  return count === 1 ? "this chunk" : `${count} of these chunks`;
}

function blobPlace({ blobId, index }: ChunkRecord): NewFinding["place"] {
  return { what: "blob", id: blobId, index };
}

/** The first thing in which a document contradicts itself or its session, beside its leaf. */
function fieldFault(chunk: ChunkRecord, session: SessionRecord): string | undefined {
  if (chunk.hashAlgorithm !== session.hashAlgorithm) return "its hash_algorithm is not the session's";
  if (chunk.encryptionFormat !== 1) return "its encryption_format is unknown";
  if (!isId(chunk.chunkId)) return "its chunk_id is malformed";
  if (chunk.compressedBytes + BLOB_OVERHEAD_BYTES !== chunk.storedBytes)
    return "its compressed_bytes are not those that its blob holds";
  if (chunk.codec === "none" && chunk.originalBytes !== chunk.compressedBytes)
    return "it is not compressed, and its two lengths differ";
  if (chunk.eventId !== chunkCompletedEventId(session.id, chunk.index))
    return "its event id is not that of this chunk";
  if (chunk.eventState !== "pending" && chunk.eventState !== "sent") return "its event has an unknown state";
  return undefined;
}

function digestOrNone(hash: LeafHash | undefined): LeafHash | undefined {
  return hash instanceof Uint8Array && hash.byteLength === HASH_BYTES ? hash : undefined;
}

/**
 * Why a document can't be read: an unknown format, or a field that isn't there. Throws what says nothing about a document: a
 * server that is away, or that refused the query.
 */
export function unreadableReason(thrown: unknown): string {
  if (thrown instanceof LucidError) {
    if (thrown.code !== "DOCUMENT_UNREADABLE") throw thrown;
    return thrown.message;
  }
  if (thrown instanceof TypeError || thrown instanceof RangeError) {
    return "a field of the document is missing or of another type";
  }
  throw thrown;
}
