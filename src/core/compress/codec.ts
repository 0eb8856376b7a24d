import { LucidError } from "../errors.ts";

/** What a stored chunk's bytes are encoded with. */
export type CodecName = "none" | "zstd" | "lz4" | "brotli";

/** Contract §7: the codec's number in the AAD and in the leaf. Never renumbered. */
export const CODEC_NUMBERS = { none: 0, zstd: 1, lz4: 2, brotli: 3 } as const satisfies Record<
  CodecName,
  number
>;

export interface LevelRange {
  readonly min: number;
  readonly max: number;
  readonly default: number;
}

/** LZ4 has one speed here and `none` has nothing to choose: their only level is 0. */
const LEVEL_RANGES: Readonly<Record<CodecName, LevelRange>> = {
  none: { min: 0, max: 0, default: 0 },
  zstd: { min: 1, max: 22, default: 3 },
  lz4: { min: 0, max: 0, default: 0 },
  brotli: { min: 0, max: 11, default: 4 },
};

export function levelRange(algorithm: CodecName): LevelRange {
  return LEVEL_RANGES[algorithm];
}

/** The codec's default when no level is asked for. Throws JOB_INVALID for a level that the codec doesn't have. */
export function levelFor(algorithm: CodecName, level: number | undefined): number {
  const range = levelRange(algorithm);
  if (level === undefined) return range.default;
  if (!Number.isInteger(level) || level < range.min || level > range.max) {
    throw new LucidError(
      "JOB_INVALID",
      `compression level for ${algorithm} must be an integer from ${range.min} to ${range.max}`,
    );
  }
  return level;
}

/** Damaged, truncated, or not in the exact form that this program writes. */
export function decodeFailed(codec: CodecName, what: string, cause?: unknown): LucidError {
  return new LucidError("DECODE_FAILED", `${codec}: ${what}`, { cause });
}

/** Decodes, or claims to decode, to another length than the one recorded. */
export function lengthMismatch(codec: CodecName, originalLength: number): LucidError {
  return new LucidError(
    "DECODE_LENGTH_MISMATCH",
    `${codec}: content is not the recorded ${originalLength} bytes`,
  );
}
