import { asBuffer, fromBase64, toHex, utf8 } from "../core/bytes.ts";
import { canonicalJson } from "../core/canonical-json.ts";
import { asLucidError } from "../core/errors.ts";
import { ManifestAccumulator } from "../core/manifest/accumulator.ts";
import { ANCHOR_FILE_BYTES_MAX, verifyAnchorFile } from "../core/manifest/anchor-file.ts";
import { CHUNK_LINE_CHARS_MAX, chunkLine } from "../core/manifest/chunk-line.ts";
import { ChunksFileVerifier } from "../core/manifest/chunks-file.ts";
import {
  composeManifest,
  type Manifest,
  type SealedSession,
  type UnsignedManifest,
} from "../core/manifest/manifest.ts";
import { type ManifestFileNames, manifestFileNames, manifestId } from "../core/manifest/names.ts";
import { MANIFEST_BYTES_MAX, verifyManifest } from "../core/manifest/sign.ts";
import {
  CHECKPOINT_CHARS_MAX,
  checkpointVerifierKey,
  unverifiedCheckpoint,
  verifyCheckpoint,
} from "../core/merkle/checkpoint.ts";
import type { ManifestRecord } from "../schema/manifest.ts";
import type { ChunkRecord, SessionRecord } from "../schema/record.ts";
import { anchorFileOf } from "./anchor-session.ts";
import type { ChunksOutcome, ChunkWitness } from "./fsck-chunks.ts";
import type { Findings, NewFinding, Severity } from "./fsck-findings.ts";
import { same, type TreeVerdict } from "./fsck-tree.ts";
import type { ChunkStore, ManifestFiles, ManifestStore, SessionStore } from "./ports.ts";
import type { ManifestFolder } from "./verify-session.ts";

/** A manifest of 10^5 chunks takes seconds; what isn't there after this time waits for something. */
export const CLOSING_PATIENCE_MS = 600_000;
/** A block may take its time. */
const ANCHOR_PATIENCE_MS = 3_600_000;
/** Lines that are named when the chunks file has others than the documents. */
const LINES_NAMED_MAX = 100;
const PAGE_CHUNKS = 500;
const NOT_GIVEN = "copy the file from a backup: the documents don't give it";
const PIN_A_KEY =
  "run fsck --repair with --key PUBLIC_KEY (or MANIFEST_SIGNING_KEY_FILE), or copy the file from a backup";
const FIELD_LIMITS = { bytesMax: MANIFEST_BYTES_MAX, depthMax: 40 };

export interface ClosingCheckPorts {
  readonly sessions: SessionStore;
  readonly chunks: ChunkStore;
  readonly manifests: ManifestStore;
  /** The manifest directory; absent where it isn't mounted. */
  readonly folder: ManifestFolder | undefined;
  /** To write missing files again; absent without --repair, and not used without a pinned key: all of them are signed. */
  readonly repairFiles: ManifestFiles | undefined;
}

export interface ClosingFacts {
  readonly session: SessionRecord;
  readonly chunks: ChunksOutcome;
  readonly tree: TreeVerdict;
  /** Milliseconds since the seal, by the wall clocks of two machines; only the severity depends on it. */
  readonly sealedForMs: number;
}

/** What is stored of a manifest that was written. */
interface Documents {
  readonly text: string;
  /** Of that text; absent where it is refused. */
  readonly manifest: Manifest | undefined;
  /** The checkpoint's; absent where it is refused, or no key was there to verify it with. */
  readonly note: string | undefined;
  readonly keys: readonly Uint8Array[];
}

/** The checks that follow the root: checkpoint, manifest, its files, anchor. */
export class ClosingCheck {
  readonly #ports: ClosingCheckPorts;
  readonly #findings: Findings;
  readonly #facts: ClosingFacts;
  readonly #pinnedKeys: readonly Uint8Array[];
  #faults = 0;

  constructor(
    ports: ClosingCheckPorts,
    findings: Findings,
    facts: ClosingFacts,
    pinnedKeys: readonly Uint8Array[],
  ) {
    this.#ports = ports;
    this.#findings = findings;
    this.#facts = facts;
    this.#pinnedKeys = pinnedKeys;
  }

  /** Of a session that is still open: its newest signed checkpoint is all there is. */
  checkOpen(): void {
    this.#checkCheckpoint(this.#pinnedKeys, false);
  }

  /** `true` if something was signed and no pinned key was there to check it with. */
  async checkSealed(sealed: SealedSession, witness: ManifestWitness): Promise<boolean> {
    const { session } = this.#facts;
    const id = manifestId(session.id, sealed.manifestType);
    const record = await this.#ports.manifests.find(id);
    const isGenerated = record?.status === "generated" || record?.status === "anchored";
    await this.#checkStatus(id, record);
    const manifest = record?.text === undefined ? undefined : this.#checkText(id, record.text);
    const keys = this.#keysFor(manifest);
    const before = this.#faults;
    const verified = this.#checkCheckpoint(keys, isGenerated);
    const note = this.#faults === before ? verified : undefined;
    if (manifest !== undefined) this.#checkContent(id, manifest, sealed, witness);
    if (isGenerated && record.text !== undefined) {
      await this.#checkFiles(sealed, { text: record.text, manifest, note, keys }, witness);
    }
    this.#checkAnchorRecord();
    return record?.text !== undefined && this.#pinnedKeys.length === 0;
  }

  // ---- checkpoint ------------------------------------------------------------------------------------------

  /** The note whose signature was verified with one of `keys`. It may be wrong all the same: that is told then. */
  #checkCheckpoint(keys: readonly Uint8Array[], mustBeFinal: boolean): string | undefined {
    const { session, tree } = this.#facts;
    const { checkpoint } = session;
    const place = { what: "checkpoint" } as const;
    if (checkpoint === undefined) {
      if (mustBeFinal) {
        this.#add({ kind: "checkpoint-missing", place, problem: "there is a manifest, and no checkpoint" });
      }
      return undefined;
    }
    const wrong = (problem: string): void => this.#add({ kind: "checkpoint-wrong", place, problem });
    if (checkpoint.size > session.tree.size) {
      wrong(`it was signed at ${checkpoint.size} chunks, and the tree has only ${session.tree.size}`);
    } else if (tree.rootIsOf !== "unknown" && !same(tree.checkpointRoot, checkpoint.root)) {
      wrong(`the chunks make another root at its size of ${checkpoint.size}`);
    } else if (checkpoint.size === session.tree.size && !same(session.tree.root, checkpoint.root)) {
      wrong("its root is not that of the tree, which has its size");
    }
    if (mustBeFinal && checkpoint.size !== session.tree.size) {
      wrong(`there is a manifest, and it is of ${checkpoint.size} chunks only`);
    }
    const fault = keys.length === 0 ? undefined : this.#noteFault(checkpoint.note, keys);
    if (fault !== undefined) {
      this.#add({
        kind: "checkpoint-invalid",
        place,
        problem: `its signed note is refused: ${fault}`,
      });
      return undefined;
    }
    // Whoever signed it, and also where nobody can tell.
    const said = unverifiedCheckpoint(checkpoint.note);
    if (said?.sessionId !== session.id || said.size !== checkpoint.size || !same(said.root, checkpoint.root))
      wrong("its signed note says another session, size or root than the document");
    return keys.length === 0 ? undefined : checkpoint.note;
  }

  #noteFault(note: string, keys: readonly Uint8Array[]): string | undefined {
    const { id, hashAlgorithm } = this.#facts.session;
    const verdict = verifyCheckpoint(
      note,
      id,
      keys.map((key) => checkpointVerifierKey(id, hashAlgorithm, key)),
    );
    return verdict.ok ? undefined : verdict.reason;
  }

  // ---- manifest --------------------------------------------------------------------------------------------

  async #checkStatus(id: string, record: ManifestRecord | undefined): Promise<void> {
    const { session, sealedForMs } = this.#facts;
    const place = { what: "manifest", id } as const;
    if (record === undefined || record.text === undefined) {
      this.#checkAbsence(place, record);
      return;
    }
    const { status, reason } = record;
    if (status === "error") {
      const problem = `it was signed, and its files could not be written: ${reason ?? "no reason given"}`;
      this.#add({ kind: "manifest-failed", place, problem });
    } else if (status === "pending" || status === "generating") {
      this.#addPending("manifest-pending", place, `it is ${status}`, sealedForMs < CLOSING_PATIENCE_MS);
    }
    if (session.anchoredEvent === "sent" && status !== "anchored") {
      const problem = `the session is announced as anchored, and it is ${status}`;
      this.#add({ kind: "manifest-status-wrong", place, problem });
    }
    // The session is anchored first. It was read before the manifest: only a second look tells.
    if (status !== "anchored" || session.state === "anchored") return;
    if ((await this.#ports.sessions.find(session.id))?.state === "anchored") return;
    this.#add({ kind: "manifest-status-wrong", place, problem: "it is anchored, and its session is not" });
  }

  #checkAbsence(place: NewFinding["place"], record: ManifestRecord | undefined): void {
    const { session, sealedForMs } = this.#facts;
    const { checkpoint, anchor, closed, tree } = session;
    if (record?.status === "generated" || record?.status === "anchored") {
      const problem = `it is ${record.status}, and its signed text is gone`;
      this.#add({ kind: "manifest-invalid", place, problem });
    } else if (anchor !== undefined || (closed && checkpoint?.size === tree.size)) {
      const problem = "the session was closed or is being anchored, and there is no manifest of it";
      this.#add({ kind: "manifest-missing", place, problem });
    } else if (record?.status === "error") {
      const problem = `it can't be written: ${record.reason ?? "no reason given"}`;
      this.#add({ kind: "manifest-failed", place, problem });
    } else if (!closed) {
      const problem = "the session is sealed, and its manifest is not written yet";
      this.#addPending("manifest-pending", place, problem, sealedForMs < CLOSING_PATIENCE_MS);
    }
    // Closed without manifest and checkpoint: by a worker that has no signing key.
  }

  /** The manifest, if its text is one and is signed as it should be. */
  #checkText(id: string, text: string): Manifest | undefined {
    const keys = this.#pinnedKeys.length > 0 ? this.#pinnedKeys : ownKey(text);
    const verdict = verifyManifest(text, keys);
    if (verdict.ok) return verdict.manifest;
    this.#add({
      kind: "manifest-invalid",
      place: { what: "manifest", id },
      problem: `${verdict.reason}: ${verdict.detail}`,
    });
    return undefined;
  }

  #keysFor(manifest: Manifest | undefined): readonly Uint8Array[] {
    if (this.#pinnedKeys.length > 0 || manifest === undefined) return this.#pinnedKeys;
    const key = fromBase64(manifest.signature.public_key);
    return key === undefined ? [] : [new Uint8Array(key)];
  }

  /** The signed text against what it would be made of today: field by field, because the first that differs says where. */
  #checkContent(id: string, manifest: Manifest, sealed: SealedSession, witness: ManifestWitness): void {
    const expected = witness.expected(sealed);
    const differing =
      expected === undefined ? differencesOfTree(manifest, sealed) : differencesOf(manifest, expected);
    for (const field of differing) {
      this.#add({
        kind: "manifest-differs",
        place: { what: "manifest", id },
        problem: `its ${field} is not what the session's documents say`,
      });
    }
  }

  // ---- files -----------------------------------------------------------------------------------------------

  async #checkFiles(
    sealed: SealedSession,
    { text, manifest, note, keys }: Documents,
    witness: ManifestWitness,
  ): Promise<void> {
    const { folder } = this.#ports;
    if (folder === undefined) return;
    const names = manifestFileNames(sealed.id, sealed.manifestType);
    // In the order in which they are written: whoever sees the manifest sees the others.
    await this.#checkChunksFile(names, manifest, witness);
    await this.#checkFile(
      folder,
      names.checkpoint,
      note === undefined ? undefined : utf8(note),
      CHECKPOINT_CHARS_MAX,
    );
    if (manifest !== undefined) await this.#checkFile(folder, names.manifest, utf8(text), MANIFEST_BYTES_MAX);
    else await this.#checkUnmatched(folder, names.manifest, utf8(text), keys);
    await this.#checkAnchorFile(folder, names.anchor, manifest);
  }

  async #checkFile(
    folder: ManifestFolder,
    name: string,
    stored: Uint8Array | undefined,
    bytesMax: number,
  ): Promise<void> {
    const file = await this.#readFile(folder, name, bytesMax);
    if (file === "no file") return;
    if (file === undefined) await this.#fileMissing(name, stored);
    // What the document says is refused already, and the file may be the sound one.
    else if (stored !== undefined && !same(file, stored)) {
      const problem = "it has other bytes than the document that it was written from";
      this.#add({ kind: "file-differs", place: { what: "file", name }, problem });
    }
  }

  /** The manifest's file where its document is refused: it may be the only sound one, or as bad. */
  async #checkUnmatched(
    folder: ManifestFolder,
    name: string,
    refused: Uint8Array,
    keys: readonly Uint8Array[],
  ): Promise<void> {
    const file = await this.#readFile(folder, name, MANIFEST_BYTES_MAX);
    if (file === "no file") return;
    if (file === undefined) await this.#fileMissing(name, undefined);
    else if (!same(file, refused) && !verifyManifest(file, keys).ok) {
      const problem = "it is refused, as its document is";
      this.#add({ kind: "file-differs", place: { what: "file", name }, problem, action: NOT_GIVEN });
    }
  }

  /** What has the name and isn't a regular file is reported, once and here. */
  async #readFile(
    folder: ManifestFolder,
    name: string,
    bytesMax: number,
  ): Promise<Uint8Array | "no file" | undefined> {
    try {
      return await folder.read(name, bytesMax);
    } catch (thrown) {
      const problem = noFileProblem(thrown);
      this.#add({ kind: "file-differs", place: { what: "file", name }, problem });
      return "no file";
    }
  }

  async #checkChunksFile(
    { chunks: name }: ManifestFileNames,
    manifest: Manifest | undefined,
    witness: ManifestWitness,
  ): Promise<void> {
    const { damaged } = this.#facts.chunks;
    const isOfManifest = manifest !== undefined && witness.fileDigest() === manifest.chunks_file.blake3;
    if (witness.lines === undefined) {
      // Written anew only if that gives the very bytes that were signed.
      await this.#fileMissing(
        name,
        isOfManifest ? linesOf(this.#ports.chunks, this.#facts.session) : undefined,
      );
      return;
    }
    await witness.lines.finish(this.#facts.session.tree.size);
    const { differing, problem: noFile } = witness.lines;
    if (noFile !== undefined) {
      this.#add({ kind: "file-differs", place: { what: "file", name }, problem: noFile });
      return;
    }
    if (differing.length === 0 && (isOfManifest || manifest === undefined)) return;
    const fileIsSigned = manifest !== undefined && (await this.#isSignedFile(name, manifest));
    if (fileIsSigned) {
      for (const index of differing) {
        if (damaged.has(index)) continue;
        const problem = "its document differs from its line in the signed chunks file";
        this.#add({ kind: "chunk-fields-wrong", place: { what: "chunk", index }, problem });
      }
      return;
    }
    const problem = isOfManifest
      ? "it is not the line of the chunk's document, which the manifest signs"
      : "it is not what the manifest signs";
    if (differing.length === 0) this.#add({ kind: "file-differs", place: { what: "file", name }, problem });
    for (const index of differing) {
      this.#add({ kind: "file-differs", place: { what: "file", name, line: index + 1 }, problem });
    }
  }

  async #isSignedFile(name: string, manifest: Manifest): Promise<boolean> {
    const verifier = new ChunksFileVerifier(manifest);
    const blocks = this.#ports.folder?.stream(name);
    if (blocks === undefined) return false;
    try {
      for await (const block of blocks) verifier.add(block);
      verifier.finish();
      return true;
    } catch (thrown) {
      const { code } = asLucidError(thrown);
      if (code === "MANIFEST_INVALID" || code === "TREE_CORRUPT") return false;
      throw thrown;
    }
  }

  async #fileMissing(
    name: string,
    content: Uint8Array | AsyncIterable<Uint8Array> | undefined,
  ): Promise<void> {
    const isPinned = this.#pinnedKeys.length > 0;
    // A key that stands in the manifest itself vouches for nothing: what it signs may be anybody's.
    const repairFiles = isPinned ? this.#ports.repairFiles : undefined;
    const repaired =
      repairFiles !== undefined &&
      content !== undefined &&
      (await repairFiles.write(name, content)) !== "differs";
    const action = content === undefined ? NOT_GIVEN : isPinned ? undefined : PIN_A_KEY;
    this.#add({
      kind: "file-missing",
      place: { what: "file", name },
      problem: "it is not in the manifest directory",
      ...(repaired ? { repaired: "written again from the committed documents" } : {}),
      ...(action === undefined ? {} : { action }),
    });
  }

  // ---- anchor ----------------------------------------------------------------------------------------------

  #checkAnchorRecord(): void {
    const { anchor } = this.#facts.session;
    if (anchor === undefined || anchor.status === "confirmed") return;
    const isYoung = this.#facts.sealedForMs < ANCHOR_PATIENCE_MS;
    this.#addPending("anchor-pending", { what: "anchor" }, `it is ${anchor.status}, not confirmed`, isYoung);
  }

  async #checkAnchorFile(
    folder: ManifestFolder,
    name: string,
    manifest: Manifest | undefined,
  ): Promise<void> {
    const { anchor, anchoredEvent } = this.#facts.session;
    const bytes = await this.#readFile(folder, name, ANCHOR_FILE_BYTES_MAX);
    if (bytes === "no file") return;
    if (bytes === undefined) {
      // Written before the event is sent.
      if (anchoredEvent === "sent")
        await this.#fileMissing(name, anchorFileIn(this.#facts.session, manifest));
      return;
    }
    if (manifest === undefined) return;
    const verdict = verifyAnchorFile(bytes, manifest);
    if (!verdict.ok) {
      this.#add({ kind: "file-differs", place: { what: "file", name }, problem: verdict.detail });
      return;
    }
    // A session that was read before its anchor was confirmed has nothing to compare.
    if (anchor?.status !== "confirmed") return;
    const { transaction, block, anchoring_id, anchored_at } = verdict.anchor;
    const differing = [
      ["transaction", transaction, anchor.transaction],
      ["block", block, anchor.block],
      ["anchoring_id", anchoring_id, anchor.anchoringId],
      ["anchored_at", anchored_at, anchor.anchoredAt?.toISOString()],
    ].flatMap(([field, inFile, inRecord]) => (inFile === inRecord ? [] : String(field)));
    if (differing.length === 0) return;
    const problem = `${differing.join(", ")} of the session's document and of ${name} differ`;
    this.#add({ kind: "anchor-differs", place: { what: "anchor" }, problem });
  }

  #addPending(kind: NewFinding["kind"], place: NewFinding["place"], problem: string, isYoung: boolean): void {
    const young: { severity?: Severity } = isYoung ? { severity: "info" } : {};
    this.#add({ kind, place, problem, ...young });
  }

  #add(finding: Omit<NewFinding, "session">): void {
    this.#faults += 1;
    this.#findings.add({ ...finding, session: this.#facts.session.id });
  }
}

/** Makes of the chunk documents, as they pass by, what the manifest says about them, and compares them with the chunks file. */
export class ManifestWitness implements ChunkWitness {
  /** Absent where there is no chunks file. */
  readonly lines: ChunksFileComparison | undefined;
  readonly #size: number;
  #accumulator: ManifestAccumulator | undefined;
  #seen = 0;

  constructor(sealed: SealedSession, folder: ManifestFolder | undefined) {
    this.#accumulator = new ManifestAccumulator(sealed.id, sealed.hashAlgorithm);
    this.#size = sealed.treeSize;
    const blocks = folder?.stream(manifestFileNames(sealed.id, sealed.manifestType).chunks);
    this.lines = blocks === undefined ? undefined : new ChunksFileComparison(blocks);
  }

  async see(chunk: ChunkRecord): Promise<void> {
    const line = this.#add(chunk);
    this.#seen += 1;
    await this.lines?.compare(chunk.index, line);
  }

  /** `undefined` unless the chunk documents are all there and make the sealed tree. */
  expected(sealed: SealedSession): UnsignedManifest | undefined {
    if (this.#accumulator === undefined || this.#seen !== this.#size) return undefined;
    try {
      return composeManifest(sealed, this.#accumulator.summary());
    } catch {
      return undefined;
    }
  }

  /** BLAKE3 of the chunks file that the documents make, hex. */
  fileDigest(): string | undefined {
    if (this.#accumulator === undefined || this.#seen !== this.#size || this.#size === 0) return undefined;
    return toHex(this.#accumulator.summary().chunksFileBlake3);
  }

  /** Gives back what a check that was cut short holds. */
  async close(): Promise<void> {
    await this.lines?.close();
  }

  /** The line, if the chunk can have one. */
  #add(chunk: ChunkRecord): string | undefined {
    try {
      if (this.#accumulator !== undefined) return this.#accumulator.add(chunk);
    } catch {
      // Reported as what it is: a gap, a leaf hash, a malformed field. There is no manifest of such chunks.
      this.#accumulator = undefined;
    }
    try {
      return chunkLine(chunk);
    } catch {
      return undefined;
    }
  }
}

/** The chunks file, read along with the documents, a block at a time. */
class ChunksFileComparison {
  readonly differing: number[] = [];
  /** Why it isn't a file at all. */
  problem: string | undefined;
  readonly #lines: AsyncGenerator<string>;
  #nextIndex = 0;

  constructor(blocks: AsyncIterable<Uint8Array>) {
    this.#lines = textLines(blocks);
  }

  async compare(index: number, expected: string | undefined): Promise<void> {
    let line: string | undefined;
    // Lines of chunks without a document are passed over: those chunks are reported already.
    while (this.#nextIndex <= index) line = await this.#next();
    if (line !== expected) this.#differs(index);
  }

  /** Lines that follow the last chunk belong to nothing. */
  async finish(size: number): Promise<void> {
    while (this.#nextIndex < size && (await this.#next()) !== undefined);
    if ((await this.#next()) !== undefined) this.#differs(size);
    await this.close();
  }

  async close(): Promise<void> {
    await this.#lines.return(undefined);
  }

  async #next(): Promise<string | undefined> {
    this.#nextIndex += 1;
    try {
      const next: IteratorResult<string, unknown> = await this.#lines.next();
      return next.done === true ? undefined : next.value;
    } catch (thrown) {
      this.problem = noFileProblem(thrown);
      return undefined;
    }
  }

  #differs(index: number): void {
    if (this.differing.length < LINES_NAMED_MAX) this.differing.push(index);
  }
}

/** The anchor file, if the session's document has all of it and it belongs to the manifest. */
function anchorFileIn(session: SessionRecord, manifest: Manifest | undefined): Uint8Array | undefined {
  if (session.anchor?.status !== "confirmed" || session.anchor.anchoredAt === undefined) return undefined;
  const file = anchorFileOf(session);
  return manifest !== undefined && verifyAnchorFile(file, manifest).ok ? file : undefined;
}

/** The message of MANIFEST_INVALID, with which a folder reports what isn't a regular file; all else is thrown on. */
function noFileProblem(thrown: unknown): string {
  const { code, message } = asLucidError(thrown);
  if (code !== "MANIFEST_INVALID") throw thrown;
  return message;
}

async function* textLines(blocks: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const block of blocks) {
    // Latin-1: what isn't ASCII must differ, and not be merged.
    const text = rest + asBuffer(block).toString("latin1");
    let start = 0;
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", start)) {
      yield text.slice(start, end + 1);
      start = end + 1;
    }
    rest = text.slice(start);
    // No line is as long: it is compared as far as it was read, and what follows is not collected.
    if (rest.length > CHUNK_LINE_CHARS_MAX) {
      yield rest;
      rest = "";
    }
  }
  if (rest !== "") yield rest;
}

async function* linesOf(chunks: ChunkStore, { id, tree }: SessionRecord): AsyncGenerator<Uint8Array> {
  for (let next = 0; next < tree.size; ) {
    const page = await chunks.beyond(id, next, Math.min(PAGE_CHUNKS, tree.size - next));
    if (page.length === 0) return;
    yield utf8(page.map(chunkLine).join(""));
    next += page.length;
  }
}

/** Fields of what is signed whose canonical text differs. */
function differencesOf(manifest: Manifest, expected: UnsignedManifest): readonly string[] {
  return (Object.keys(expected) as (keyof UnsignedManifest)[]).filter(
    (field) => canonicalText(manifest[field]) !== canonicalText(expected[field]),
  );
}

/** What can be compared without the chunks. */
function differencesOfTree({ merkle }: Manifest, sealed: SealedSession): readonly string[] {
  const { hash_algorithm, tree_size, root_hash } = merkle;
  const isSame =
    hash_algorithm === sealed.hashAlgorithm &&
    tree_size === sealed.treeSize &&
    root_hash === toHex(sealed.root);
  return isSame ? [] : ["merkle"];
}

function canonicalText(value: unknown): string {
  return canonicalJson("manifest", { value }, FIELD_LIMITS);
}

/** The key that a manifest names itself: enough to see accidents by, and no protection against anybody. */
function ownKey(text: string): readonly Uint8Array[] {
  try {
    const named = (JSON.parse(text) as Manifest).signature.public_key;
    const key = fromBase64(named);
    return key === undefined ? [] : [new Uint8Array(key)];
  } catch {
    return [];
  }
}
