import { utf8 } from "../core/bytes.ts";
import { asLucidError, errorCodeOf, LucidError } from "../core/errors.ts";
import { ManifestAccumulator } from "../core/manifest/accumulator.ts";
import { composeManifest } from "../core/manifest/manifest.ts";
import { manifestFileNames, manifestId } from "../core/manifest/names.ts";
import { type PrivateKey, signManifest } from "../core/manifest/sign.ts";
import { sealedSession } from "../schema/manifest.ts";
import type { SessionRecord } from "../schema/record.ts";
import { signedCheckpoint } from "./sign-checkpoint.ts";
import type { Patience } from "./patience.ts";
import type {
  ChunkStore,
  Clock,
  ManifestFiles,
  ManifestKey,
  ManifestStore,
  Observer,
  SessionStore,
  TileStore,
} from "./ports.ts";

/** Chunk documents that one query brings; with it the memory of a manifest is bounded, however long the session. */
const PAGE_CHUNKS = 500;
/** Lines that are handed to the file at once, bytes. */
const BLOCK_BYTES = 65_536;

export interface ManifestPorts {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly tiles: TileStore;
  readonly manifests: ManifestStore;
  readonly files: ManifestFiles;
  /** Ed25519. */
  readonly signingKey: PrivateKey;
  readonly patience: Patience;
  readonly clock: Clock;
  readonly observer: Observer;
}

/**
 * The manifest of a sealed session: chunks file, checkpoint, and the signed manifest last, so that whoever sees it sees the
 * others. All bytes follow from what was sealed, and Ed25519 signs without randomness: two workers at it at the same time,
 * or one after the other's crash anywhere here, write the same files. Returns the session and the signed text.
 */
export async function writeManifest(
  ports: ManifestPorts,
  session: SessionRecord,
  signal: AbortSignal,
): Promise<{ readonly session: SessionRecord; readonly text: string }> {
  const key = manifestKeyOf(session);
  const { patience, manifests, clock, observer } = ports;
  const known = await patience("manifests.find", signal, () => manifests.find(key.id));
  if (known?.text !== undefined && (known.status === "generated" || known.status === "anchored")) {
    return { session, text: known.text };
  }
  const startedMs = clock.monotonicMs();
  await patience("manifests.mark", signal, () => manifests.mark(key, "generating"));
  try {
    const written = await generate(ports, session, key, known?.text, signal);
    await patience("manifests.mark", signal, () => manifests.mark(key, "generated"));
    const seconds = (clock.monotonicMs() - startedMs) / 1000;
    observer.report({ kind: "manifest-written", sessionId: session.id, seconds });
    return written;
  } catch (thrown) {
    const { code, message } = asLucidError(thrown);
    if (code === "SHUTTING_DOWN") throw thrown;
    observer.report({ kind: "manifest-failed", sessionId: session.id, code: errorCodeOf(thrown) });
    await patience("manifests.mark", signal, () => manifests.mark(key, "error", `${code}: ${message}`));
    throw thrown;
  }
}

/** Of the one manifest that a sealed session has. */
export function manifestKeyOf(session: SessionRecord): ManifestKey {
  const { manifestType } = sealedSession(session);
  return { id: manifestId(session.id, manifestType), sessionId: session.id, type: manifestType };
}

async function generate(
  ports: ManifestPorts,
  session: SessionRecord,
  key: ManifestKey,
  published: string | undefined,
  signal: AbortSignal,
): Promise<{ readonly session: SessionRecord; readonly text: string }> {
  const names = manifestFileNames(session.id, key.type);
  const accumulator = new ManifestAccumulator(session.id, session.hashAlgorithm);
  await writeFile(ports, names.chunks, chunkLines(ports, session, accumulator, signal));
  // Dies here: a chunks file without a manifest; the next attempt finds the same bytes there.
  const unsigned = composeManifest(sealedSession(session), accumulator.summary());
  // Before anything else is signed: it looks whether the tree is the one of the checkpoint before, grown.
  const checkpointed = await signedCheckpoint(ports, session, signal);
  // Dies here: the seal's checkpoint is in the session's document, and is what the next attempt writes.
  const { patience, manifests } = ports;
  const text =
    published ??
    (await patience("manifests.publish", signal, () =>
      manifests.publish(key, signManifest(unsigned, ports.signingKey)),
    ));
  // Dies here: the text is in the store; whoever goes on writes that one, also under another signing key.
  await writeFile(ports, names.checkpoint, utf8(checkpointed.note));
  // Dies here: everything but the manifest's own file, which is last.
  await writeFile(ports, names.manifest, utf8(text));
  return { session: checkpointed.session, text };
}

async function writeFile(
  { files }: ManifestPorts,
  name: string,
  content: Uint8Array | AsyncIterable<Uint8Array>,
): Promise<void> {
  if ((await files.write(name, content)) !== "differs") return;
  throw new LucidError(
    "MANIFEST_INVALID",
    "the manifest directory holds a file of this session with other bytes; move it away and see what wrote it",
  );
}

async function* chunkLines(
  { chunks, patience }: ManifestPorts,
  session: SessionRecord,
  accumulator: ManifestAccumulator,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  let block = "";
  for (let next = 0; next < session.tree.size; ) {
    const limit = Math.min(PAGE_CHUNKS, session.tree.size - next);
    const page = await patience("chunks.beyond", signal, () => chunks.beyond(session.id, next, limit));
    if (page.length === 0) {
      throw new LucidError("TREE_CORRUPT", "a leaf that the tree counts has no chunk document; run fsck");
    }
    for (const chunk of page) block += accumulator.add(chunk);
    next += page.length;
    if (block.length < BLOCK_BYTES) continue;
    yield utf8(block);
    block = "";
  }
  yield utf8(block);
}
