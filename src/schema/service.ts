import { z } from "zod";
import { isId } from "../core/ids.ts";

/*
 * What neighbours answer over HTTP (contract §9, §10). They are other people's programs: unknown fields are dropped, known
 * ones must have their type, and a text that is kept has a limit and no control character. `null` is Python's word for absent.
 */

const TEXT_CHARS_MAX = 256;
const shortText = z
  .string()
  .max(TEXT_CHARS_MAX)
  .regex(/^[^\p{Cc}]*$/u);
const id = z.string().refine(isId);
const hex64 = z.string().regex(/^[0-9a-fA-F]{64}$/);
const count = z.number().int().min(0);

/** The words of the engine for where an anchoring stands, and of the gateway in front of it (`anchored`). */
const ANCHOR_WORDS = {
  pending: "pending",
  processing: "pending",
  submitted: "pending",
  queued: "pending",
  confirmed: "confirmed",
  anchored: "confirmed",
  failed: "failed",
  rejected: "failed",
  reverted: "failed",
} as const;
type AnchorWord = keyof typeof ANCHOR_WORDS;

/**
 * Answer to POST and GET of an anchoring. `merkle_root` is any text: the older engine fills in a placeholder, which says
 * nothing about the root and is no reason to refuse the answer.
 */
export const anchoringSchema = z
  .object({
    session_id: shortText.nullish(),
    anchoring_id: shortText.nullish(),
    status: z
      .string()
      .toLowerCase()
      .pipe(z.enum(Object.keys(ANCHOR_WORDS) as [AnchorWord, ...AnchorWord[]])),
    merkle_root: shortText.nullish(),
    transaction_id: shortText.nullish(),
    tx_hash: shortText.nullish(),
    anchor_txid: shortText.nullish(),
    transaction_hash: shortText.nullish(),
    block_height: count.nullish(),
    block_number: count.nullish(),
  })
  .transform((answer) => ({
    sessionId: answer.session_id ?? undefined,
    // An empty text is what Python's `or` takes for absent.
    anchoringId: answer.anchoring_id || undefined,
    standing: ANCHOR_WORDS[answer.status],
    merkleRoot: hex64.safeParse(answer.merkle_root).data?.toLowerCase(),
    transaction:
      answer.transaction_id || answer.tx_hash || answer.anchor_txid || answer.transaction_hash || undefined,
    block: answer.block_height ?? answer.block_number ?? undefined,
  }));
export type Anchoring = z.infer<typeof anchoringSchema>;

/** Answer to storing a chunk: any object, which names the same chunk if it names one. */
export const chunkStoredSchema = z.object({ session_id: shortText.nullish(), chunk_id: shortText.nullish() });

/** A chunk as JSON; the older service calls its bytes `data` or `chunk_data`. */
export const storedChunkSchema = z.object({ data: z.string().nullish(), chunk_data: z.string().nullish() });

export const chunkListSchema = z.object({
  chunks: z.array(
    z.object({
      chunk_id: id,
      chunk_index: count.nullish(),
      hash_sha256: hex64.nullish(),
      timestamp: shortText.nullish(),
    }),
  ),
});

/** Answers of the pipeline: any object; `session_id` must be the one that was asked for, if it is there. */
export const pipelineSchema = z.object({
  session_id: shortText.nullish(),
  status: shortText.nullish(),
  state: shortText.nullish(),
});
