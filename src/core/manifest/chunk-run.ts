import { Blake3Hasher } from "@napi-rs/blake-hash";
import { asBuffer } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import { HASH_BYTES, type LeafHash, type SessionId } from "../ids.ts";
import { appendLeaves, emptyFrontier, type Frontier, rootOf } from "../merkle/frontier.ts";
import { type HashAlgorithm, type TreeHasher, treeHasher } from "../merkle/hash.ts";
import type { LeafCodec } from "../merkle/leaf.ts";
import { leafHashOf, parseChunkLine } from "./chunk-line.ts";
import { cutOff, requireChunksOfManifest } from "./chunks-file.ts";
import type { Manifest } from "./manifest.ts";

/** Whole lines of a chunks file, to be checked by themselves: what a thread gets. */
export interface ChunkRunRequest {
  readonly sessionId: SessionId;
  readonly hashAlgorithm: HashAlgorithm;
  /** Ends with a line feed. */
  readonly lines: Uint8Array<ArrayBuffer>;
}

/** What neighbouring lines say together, in the order of the lines: what a thread gives back. */
export interface ChunkRun {
  readonly first: number;
  readonly count: number;
  /** Of the lines. */
  readonly lineBytes: number;
  readonly originalBytes: number;
  readonly codecs: readonly LeafCodec[];
  /** `count` × 32 bytes each. */
  readonly leafHashes: Uint8Array<ArrayBuffer>;
  readonly blobDigests: Uint8Array<ArrayBuffer>;
}

/** A line of the grammar has at least this many bytes: room for the results before the lines are counted. */
const LINE_BYTES_MIN = 400;

/** Checks lines as ChunksFileVerifier does, but for what only their neighbours know. Throws MANIFEST_INVALID, TREE_CORRUPT. */
export function checkChunkRun({ sessionId, hashAlgorithm, lines }: ChunkRunRequest): ChunkRun {
  const hasher = treeHasher(hashAlgorithm);
  const text = asBuffer(lines).toString("latin1");
  const room = (1 + Math.floor(lines.byteLength / LINE_BYTES_MIN)) * HASH_BYTES;
  const leafHashes = new Uint8Array(room);
  const blobDigests = new Uint8Array(room);
  const codecs = new Set<LeafCodec>();
  let first = 0;
  let count = 0;
  let originalBytes = 0;
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf("\n", start) + 1;
    const chunk = parseChunkLine(text.slice(start, end === 0 ? undefined : end));
    if (count === 0) first = chunk.index;
    if (chunk.index !== first + count) throw outOfOrder(chunk.index);
    const leafHash = leafHashOf(sessionId, chunk, hasher);
    if (!asBuffer(leafHash).equals(chunk.leafHash)) {
      throw new LucidError("TREE_CORRUPT", `the leaf hash of chunk ${chunk.index} is not that of its fields`);
    }
    leafHashes.set(leafHash, count * HASH_BYTES);
    blobDigests.set(chunk.blobBlake3, count * HASH_BYTES);
    codecs.add(chunk.codec);
    originalBytes += chunk.originalBytes;
    count += 1;
    start = end;
  }
  const used = count * HASH_BYTES;
  return {
    first,
    count,
    lineBytes: lines.byteLength,
    originalBytes,
    codecs: [...codecs],
    leafHashes: leafHashes.slice(0, used),
    blobDigests: blobDigests.slice(0, used),
  };
}

/** As ChunksFileVerifier, for a file whose lines are checked elsewhere: both get the same bytes, in the same order. */
export class ChunkRunsVerifier {
  readonly #manifest: Manifest;
  readonly #hasher: TreeHasher;
  readonly #fileHasher = new Blake3Hasher();
  readonly #checksumHasher = new Blake3Hasher();
  readonly #codecs = new Set<LeafCodec>();
  #frontier: Frontier = emptyFrontier();
  #originalBytes = 0;
  #count = 0;
  #runBytes = 0;
  #fileBytes = 0;

  constructor(manifest: Manifest) {
    this.#manifest = manifest;
    this.#hasher = treeHasher(manifest.merkle.hash_algorithm);
  }

  /** The file's next bytes. */
  addBytes(block: Uint8Array): void {
    this.#fileHasher.update(block);
    this.#fileBytes += block.byteLength;
  }

  /** The file's next lines, checked. Throws TREE_CORRUPT if they don't begin where the run before ended. */
  addRun(run: ChunkRun): void {
    if (run.first !== this.#count) throw outOfOrder(run.first);
    const leaves = Array.from(
      { length: run.count },
      (_, at) => run.leafHashes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES) as Uint8Array as LeafHash,
    );
    this.#frontier = appendLeaves(this.#frontier, leaves, this.#hasher);
    this.#checksumHasher.update(run.blobDigests);
    for (const codec of run.codecs) this.#codecs.add(codec);
    this.#count += run.count;
    this.#runBytes += run.lineBytes;
    this.#originalBytes += run.originalBytes;
  }

  /** At the end of the file. Throws MANIFEST_INVALID unless it is the file of the manifest. */
  finish(): void {
    if (this.#runBytes !== this.#fileBytes) throw cutOff();
    if (this.#count === 0) throw new LucidError("TREE_CORRUPT", "a session without chunks has no manifest");
    const totals = {
      count: this.#count,
      originalBytes: this.#originalBytes,
      codecs: [...this.#codecs].toSorted(),
      totalChecksum: new Uint8Array(this.#checksumHasher.digestBuffer()),
      root: rootOf(this.#frontier, this.#hasher),
    };
    requireChunksOfManifest(this.#manifest, totals, this.#fileHasher.digestBuffer());
  }
}

function outOfOrder(index: number): LucidError {
  return new LucidError("TREE_CORRUPT", `chunk ${index} stands where another should`);
}
