import { bytesEqual } from "../core/bytes.ts";
import type { KeyRing } from "../core/encrypt/kek.ts";
import { LucidError } from "../core/errors.ts";
import type { NodeHash, SessionId } from "../core/ids.ts";
import { leafHashOf } from "../core/manifest/chunk-line.ts";
import { appendLeaves, emptyFrontier, type Frontier, rootOf } from "../core/merkle/frontier.ts";
import { treeHasher } from "../core/merkle/hash.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { OpeningKeys } from "./opening-keys.ts";
import type { BlobStore, ChunkStore, KernelThreads, SessionStore } from "./ports.ts";

/** Chunk documents that one query brings. */
const PAGE_CHUNKS = 128;
/** Chunks that are opened ahead of the one that is being written. */
const AHEAD_CHUNKS_MAX = 4;

export interface RestorePorts {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly blobs: BlobStore;
  readonly threads: KernelThreads;
  readonly keyRing: KeyRing;
}

export interface RestoredChunk {
  readonly chunk: ChunkRecord;
  /** The chunk as recorded: digest, commitment, tag, length and plain mac agreed with the tree's leaf. */
  readonly payload: Uint8Array;
}

export interface RestoreRange {
  /** First index. */
  readonly from: number;
  /** One past the last index. */
  readonly to: number;
}

/** The session, if it is there and has chunks to restore. */
export async function findRestorable(
  sessions: SessionStore,
  session: SessionId,
): Promise<SessionRecord & { readonly tree: { readonly root: NodeHash } }> {
  const record = await sessions.find(session);
  if (record === undefined)
    throw new LucidError("SESSION_UNKNOWN", "there is no session of that id in this database");
  const { root } = record.tree;
  if (root === undefined) throw new LucidError("SESSION_UNKNOWN", "the session has no chunk in its tree yet");
  return { ...record, tree: { ...record.tree, root } };
}

/**
 * The session's chunks in order, each checked before it is given out. When the range is the whole tree, the leaves are
 * hashed together and the last chunk is given out only if they make the recorded root. Ends with the first chunk that
 * fails (BLOB_MISSING, BLOB_MALFORMED, BLOB_AUTHENTICATION_FAILED, DECODE_FAILED, TREE_CORRUPT …).
 */
export async function* restoreChunks(
  ports: RestorePorts,
  session: SessionRecord,
  range: RestoreRange,
  signal: AbortSignal,
): AsyncGenerator<RestoredChunk> {
  const hasher = treeHasher(session.hashAlgorithm);
  const keys = new OpeningKeys(ports.threads, ports.keyRing, session);
  let frontier: Frontier = emptyFrontier();
  const isWholeTree = range.from === 0 && range.to === session.tree.size;
  for await (const { chunk, opened } of openedAhead(ports, session, keys, range, signal)) {
    const payload = await opened;
    if (isWholeTree) {
      frontier = appendLeaves(frontier, [chunk.leafHash], hasher);
      const isLast = chunk.index === range.to - 1;
      if (isLast && !bytesEqual(rootOf(frontier, hasher), session.tree.root ?? new Uint8Array(0))) {
        throw new LucidError("TREE_CORRUPT", "the stored leaves don't make the session's root; run fsck");
      }
    }
    yield { chunk, payload };
  }
}

interface Opening {
  readonly chunk: ChunkRecord;
  readonly opened: Promise<Uint8Array>;
}

/** Keeps a few chunks in the CPU threads while the consumer writes. */
async function* openedAhead(
  ports: RestorePorts,
  session: SessionRecord,
  keys: OpeningKeys,
  range: RestoreRange,
  signal: AbortSignal,
): AsyncGenerator<Opening> {
  const ahead: Opening[] = [];
  for await (const chunk of chunksInOrder(ports.chunks, session, range)) {
    const opened = openCommitted(ports, session, keys, chunk, signal);
    // Its error is met when its turn comes; until then it must not count as unhandled.
    opened.catch(() => undefined);
    ahead.push({ chunk, opened });
    if (ahead.length >= AHEAD_CHUNKS_MAX) {
      const next = ahead.shift();
      if (next !== undefined) yield next;
    }
  }
  yield* ahead;
}

async function* chunksInOrder(
  chunks: ChunkStore,
  session: SessionRecord,
  range: RestoreRange,
): AsyncGenerator<ChunkRecord> {
  let next = range.from;
  while (next < range.to) {
    const page = await chunks.beyond(session.id, next, Math.min(PAGE_CHUNKS, range.to - next));
    if (page.length === 0) throw missingChunk();
    for (const chunk of page) {
      if (chunk.index !== next) throw missingChunk();
      yield chunk;
      next += 1;
      if (next === range.to) return;
    }
  }
}

function missingChunk(): LucidError {
  return new LucidError("TREE_CORRUPT", "a leaf that the tree counts has no chunk document; run fsck");
}

async function openCommitted(
  ports: RestorePorts,
  session: SessionRecord,
  keys: OpeningKeys,
  chunk: ChunkRecord,
  signal: AbortSignal,
): Promise<Uint8Array> {
  checkLeaf(session, chunk);
  const blob = await ports.blobs.read(chunk.blobId);
  if (blob === undefined)
    throw new LucidError("BLOB_MISSING", "a committed chunk's blob is not in the store; run fsck");
  const { key, plainMacKey } = await keys.forBlob(chunk.keyVersion, blob);
  const { payload } = await ports.threads.open(
    { ...chunk, originalLength: chunk.originalBytes, blob, key, plainMacKey },
    signal,
  );
  return payload;
}

/** The document's fields must make the leaf hash that is in the tree: what they say is then what was signed. */
function checkLeaf(session: SessionRecord, chunk: ChunkRecord): void {
  const leafHash = leafHashOf(session.id, chunk, treeHasher(session.hashAlgorithm));
  if (!bytesEqual(leafHash, chunk.leafHash)) {
    throw new LucidError("TREE_CORRUPT", "a chunk document's fields don't make its leaf hash; run fsck");
  }
}
