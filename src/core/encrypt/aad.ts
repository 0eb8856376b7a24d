import { ByteWriter, utf8 } from "../bytes.ts";
import { CODEC_NUMBERS, type CodecName } from "../compress/codec.ts";
import type { ChunkId, LeafIndex, SessionId } from "../ids.ts";

const DOMAIN = utf8("LUCID-CHUNK\0");
/** Recorded with the chunk, never guessed. Format 0 is the older service's (legacy.ts). */
const FORMAT = 1;

export interface ChunkIdentity {
  readonly sessionId: SessionId;
  readonly index: LeafIndex;
  readonly chunkId: ChunkId;
  readonly codec: CodecName;
  /** Bytes before compression. */
  readonly originalLength: number;
  readonly keyVersion: number;
}

/**
 * Contract §7, AAD format 1. It ties a blob to its place: moved to another session, index, codec, length or key version,
 * it doesn't open. `"LUCID-CHUNK\0" ‖ u8 1 ‖ u16 len ‖ session_id ‖ u64 index ‖ u16 len ‖ chunk_id ‖ u8 codec ‖ u64
 * original_len ‖ u32 key_version`, big-endian.
 */
export function chunkAad(chunk: ChunkIdentity): Uint8Array {
  return new ByteWriter()
    .bytes(DOMAIN)
    .u8(FORMAT)
    .text16(chunk.sessionId)
    .u64(chunk.index)
    .text16(chunk.chunkId)
    .u8(CODEC_NUMBERS[chunk.codec])
    .u64(chunk.originalLength)
    .u32(chunk.keyVersion)
    .finish();
}
