import { Blake3Hasher } from "@napi-rs/blake-hash";
import { asBuffer, toHex } from "../bytes.ts";
import { LucidError } from "../errors.ts";
import type { SessionId } from "../ids.ts";
import { ChunksTally, type ChunksTotals } from "./accumulator.ts";
import { CHUNK_LINE_CHARS_MAX, type ManifestChunk, parseChunkLine } from "./chunk-line.ts";
import type { Manifest } from "./manifest.ts";

/**
 * Checks a chunks file against its manifest (verified before), block by block and in constant memory: each line's form,
 * each leaf hash against its fields, then count, root, checksum and digest. A chunk that `add` returns is not proven
 * before `finish` has returned.
 */
export class ChunksFileVerifier {
  readonly #manifest: Manifest;
  readonly #tally: ChunksTally;
  readonly #fileHasher = new Blake3Hasher();
  /** The line that the last block cut. */
  #rest = "";

  constructor(manifest: Manifest) {
    const { session_metadata: session, merkle } = manifest;
    this.#manifest = manifest;
    this.#tally = new ChunksTally(session.session_id as SessionId, merkle.hash_algorithm);
  }

  /** The chunks whose lines end in this block. Throws MANIFEST_INVALID (form) or TREE_CORRUPT (order, leaf hash). */
  add(block: Uint8Array): readonly ManifestChunk[] {
    this.#fileHasher.update(block);
    // Latin-1 keeps apart what decoding as UTF-8 would merge; no line has anything outside ASCII.
    const text = this.#rest + asBuffer(block).toString("latin1");
    const chunks: ManifestChunk[] = [];
    let start = 0;
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", start)) {
      const chunk = parseChunkLine(text.slice(start, end + 1));
      this.#tally.add(chunk);
      chunks.push(chunk);
      start = end + 1;
    }
    this.#rest = text.slice(start);
    if (this.#rest.length > CHUNK_LINE_CHARS_MAX) throw differs("a line is too long");
    return chunks;
  }

  /** At the end of the file. Throws MANIFEST_INVALID unless it is the file of the manifest. */
  finish(): void {
    if (this.#rest !== "") throw cutOff();
    requireChunksOfManifest(this.#manifest, this.#tally.totals(), this.#fileHasher.digestBuffer());
  }
}

/** What a chunks file says as a whole against its manifest. Throws MANIFEST_INVALID. */
export function requireChunksOfManifest(
  manifest: Manifest,
  totals: ChunksTotals,
  fileBlake3: Uint8Array,
): void {
  const { session_metadata: session, merkle, chunks_file: file, total_checksum } = manifest;
  if (totals.count !== file.count) throw differs("it has another number of lines");
  if (toHex(totals.root) !== merkle.root_hash) throw differs("its chunks make another Merkle root");
  if (toHex(totals.totalChecksum) !== total_checksum) throw differs("its blobs make another checksum");
  if (totals.originalBytes !== session.total_size) throw differs("its chunks have another total size");
  if (totals.codecs.join() !== session.compression_algorithms.join()) throw differs("it has other codecs");
  if (toHex(fileBlake3) !== file.blake3) throw differs("its BLAKE3 is another");
}

export function cutOff(): LucidError {
  return differs("its last line is cut off");
}

function differs(how: string): LucidError {
  return new LucidError("MANIFEST_INVALID", `the chunks file is not the one of the manifest: ${how}`);
}
