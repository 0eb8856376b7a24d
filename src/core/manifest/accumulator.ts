import { Blake3Hasher } from "@napi-rs/blake-hash";
import { asBuffer } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import { HASH_BYTES, type LeafHash, type NodeHash, type SessionId } from "../ids.ts";
import { appendLeaves, emptyFrontier, type Frontier, rootOf } from "../merkle/frontier.ts";
import { type HashAlgorithm, type TreeHasher, treeHasher } from "../merkle/hash.ts";
import type { LeafCodec } from "../merkle/leaf.ts";
import { chunkLine, leafHashOf, type ManifestChunk } from "./chunk-line.ts";

/** What the chunks of a session say together. */
export interface ChunksTotals {
  readonly count: number;
  readonly originalBytes: number;
  /** Codecs that occur, ascending; `none` is one. */
  readonly codecs: readonly LeafCodec[];
  /**
   * BLAKE3(blob_blake3 of chunk 0 ‖ … ‖ blob_blake3 of chunk count-1), each its raw 32 bytes and nothing between:
   * 32 bytes, whatever the tree's hash function. It binds all stored blobs and their order.
   */
  readonly totalChecksum: Uint8Array;
  readonly root: NodeHash;
}

export interface ChunksSummary extends ChunksTotals {
  /** BLAKE3 of the bytes of the chunks file, 32 bytes. */
  readonly chunksFileBlake3: Uint8Array;
}

/** A native call for each chunk would cost as much as the hashing: characters and bytes are collected to this size. */
const HASH_BLOCK_BYTES = 65_536;
const LEAVES_PER_APPEND = 256;

/** Counts a session's chunks, once and in order, in constant memory. */
export class ChunksTally {
  readonly #session: SessionId;
  readonly #hasher: TreeHasher;
  readonly #checksumHasher = new Blake3Hasher();
  readonly #codecs = new Set<LeafCodec>();
  readonly #digests = new Uint8Array(HASH_BLOCK_BYTES);
  #digestBytes = 0;
  #leaves: LeafHash[] = [];
  #frontier: Frontier = emptyFrontier();
  #count = 0;
  #originalBytes = 0;

  constructor(session: SessionId, algorithm: HashAlgorithm) {
    this.#session = session;
    this.#hasher = treeHasher(algorithm);
  }

  /** Throws TREE_CORRUPT if the index is not the next one, or the leaf hash is not that of the fields and the session. */
  add(chunk: ManifestChunk): void {
    if (chunk.index !== this.#count) {
      throw new LucidError("TREE_CORRUPT", `chunk ${chunk.index} stands where chunk ${this.#count} should`);
    }
    const leaf = leafHashOf(this.#session, chunk, this.#hasher);
    // Not in constant time: both are public, and timingSafeEqual takes three times as long.
    if (!asBuffer(leaf).equals(chunk.leafHash)) {
      throw new LucidError("TREE_CORRUPT", `the leaf hash of chunk ${chunk.index} is not that of its fields`);
    }
    this.#count += 1;
    this.#originalBytes += chunk.originalBytes;
    this.#codecs.add(chunk.codec);
    this.#digests.set(chunk.blobBlake3, this.#digestBytes);
    this.#digestBytes += HASH_BYTES;
    if (this.#digestBytes === HASH_BLOCK_BYTES) this.#flushDigests();
    this.#leaves.push(leaf);
    if (this.#leaves.length === LEAVES_PER_APPEND) this.#flushLeaves();
  }

  /** Of all chunks so far; more may follow. Throws TREE_CORRUPT when there are none: an empty session isn't sealed. */
  totals(): ChunksTotals {
    if (this.#count === 0) throw new LucidError("TREE_CORRUPT", "a session without chunks has no manifest");
    this.#flushDigests();
    this.#flushLeaves();
    return {
      count: this.#count,
      originalBytes: this.#originalBytes,
      codecs: [...this.#codecs].toSorted(),
      totalChecksum: new Uint8Array(this.#checksumHasher.digestBuffer()),
      root: rootOf(this.#frontier, this.#hasher),
    };
  }

  #flushDigests(): void {
    this.#checksumHasher.update(this.#digests.subarray(0, this.#digestBytes));
    this.#digestBytes = 0;
  }

  #flushLeaves(): void {
    this.#frontier = appendLeaves(this.#frontier, this.#leaves, this.#hasher);
    this.#leaves = [];
  }
}

/** The writer's side: gives the lines of the chunks file, and in the end what the manifest says about them. */
export class ManifestAccumulator {
  readonly #tally: ChunksTally;
  readonly #fileHasher = new Blake3Hasher();
  #lines = "";

  constructor(session: SessionId, algorithm: HashAlgorithm) {
    this.#tally = new ChunksTally(session, algorithm);
  }

  /** The line of the next chunk. Throws TREE_CORRUPT as ChunksTally, MANIFEST_INVALID if the chunk can't be written. */
  add(chunk: ManifestChunk): string {
    // First what can be written at all: the leaf has no words for what is wrong with a field.
    const line = chunkLine(chunk);
    this.#tally.add(chunk);
    this.#lines += line;
    if (this.#lines.length >= HASH_BLOCK_BYTES) this.#flushLines();
    return line;
  }

  /** Of all chunks so far; more may follow. Throws TREE_CORRUPT when there are none. */
  summary(): ChunksSummary {
    this.#flushLines();
    return {
      ...this.#tally.totals(),
      chunksFileBlake3: new Uint8Array(this.#fileHasher.digestBuffer()),
    };
  }

  /** Lines are ASCII, so that their characters are the bytes of the file. */
  #flushLines(): void {
    this.#fileHasher.update(this.#lines);
    this.#lines = "";
  }
}
