import { type Command, InvalidArgumentError } from "commander";
import { fromHex, toHex } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { HASH_BYTES } from "../core/ids.ts";
import { MANIFEST_BYTES_MAX } from "../core/manifest/sign.ts";
import { CHECKPOINT_CHARS_MAX, type Checkpoint } from "../core/merkle/checkpoint.ts";
import {
  type ExpectedLeaf,
  type HeadVerdict,
  headOfCheckpoint,
  headOfManifest,
  type ProofRefusal,
  type ProofVerdict,
  verifyJsonProof,
  verifyTextProof,
} from "../pipeline/verify-proof.ts";
import { EXIT_FAILURE, newCommand, perform } from "./command.ts";
import { append, parseIndex } from "./arguments.ts";
import { readNamed } from "./files.ts";
import { formatTable, type Output } from "./output.ts";
import { type KeyFlags, NO_KEY_PINNED, pinnedKeys, withKeyOptions } from "./pinned-keys.ts";

interface VerifyProofFlags extends KeyFlags {
  readonly json?: boolean;
  readonly checkpoint?: readonly string[];
  readonly manifest?: readonly string[];
  readonly index?: number;
  readonly leafHash?: Uint8Array;
}

const TLOG_START = "c2sp.org/tlog-proof@";
const PROOF_BYTES_MAX = 524_288;

export function verifyProofCommand(): Command {
  return withKeyOptions(
    newCommand("verify-proof", "check a proof, offline, against a checkpoint or manifest and pinned keys"),
  )
    .argument("<file>", "a proof in the JSON or the tlog-proof form")
    .option("--checkpoint <file>", "signed checkpoint of the proof's size (repeat for both sizes)", append)
    .option("--manifest <file>", "signed manifest of the proof's size (repeat for both sizes)", append)
    .option("--index <index>", "refuse a proof of another chunk", parseIndex)
    .option("--leaf-hash <hex>", "refuse a proof of another leaf", parseHash)
    .action((file: string, flags: VerifyProofFlags) =>
      perform(flags.json, async (output) => {
        const keys = await pinnedKeys(flags);
        if (keys.length === 0) throw new LucidError("CONFIG_INVALID", NO_KEY_PINNED);
        const text = await readText(file, PROOF_BYTES_MAX);
        if (text.startsWith(TLOG_START))
          return report(output, verifyTextProof(text, keys, expectedLeaf(flags)));
        if (flags.checkpoint === undefined && flags.manifest === undefined) {
          throw new LucidError(
            "CONFIG_INVALID",
            "name the --checkpoint or --manifest: a proof's own size and root prove nothing",
          );
        }
        const heads: Checkpoint[] = [];
        for (const [path, verdict] of await headsOf(flags, keys)) {
          if (!verdict.ok) return reportRefusal(output, path, verdict.reason);
          heads.push(verdict.head);
        }
        return report(output, verifyJsonProof(text, heads, expectedLeaf(flags)));
      }),
    );
}

function parseHash(text: string): Uint8Array {
  const hash = fromHex(text);
  if (hash?.byteLength !== HASH_BYTES) throw new InvalidArgumentError("must be 64 hex digits");
  return hash;
}

function expectedLeaf({ index, leafHash }: VerifyProofFlags): ExpectedLeaf {
  return { ...(index === undefined ? {} : { index }), ...(leafHash === undefined ? {} : { leafHash }) };
}

async function headsOf(
  { checkpoint = [], manifest = [] }: VerifyProofFlags,
  keys: readonly Uint8Array[],
): Promise<readonly (readonly [path: string, verdict: HeadVerdict])[]> {
  const checkpoints = checkpoint.map(
    async (path) => [path, headOfCheckpoint(await readText(path, CHECKPOINT_CHARS_MAX), keys)] as const,
  );
  const manifests = manifest.map(
    async (path) => [path, headOfManifest(await readNamed(path, MANIFEST_BYTES_MAX), keys)] as const,
  );
  return Promise.all([...checkpoints, ...manifests]);
}

/** Latin-1 for what isn't UTF-8, so that no such file has the text of another one: it is then refused as malformed. */
async function readText(path: string, bytesMax: number): Promise<string> {
  const bytes = await readNamed(path, bytesMax);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return Buffer.from(bytes).toString("latin1");
  }
}

async function report(output: Output, verdict: ProofVerdict): Promise<number> {
  if (!verdict.ok) return reportRefusal(output, undefined, verdict.reason);
  const { verified } = verdict;
  if (verified.kind === "consistency") {
    const { head1, head2 } = verified;
    await output.result(
      { verified: true, kind: verified.kind, ...headJson(head2), size1: head1.size, size2: head2.size },
      `VERIFIED: the tree of ${head2.sessionId} at ${head2.size} leaves has its first ${head1.size} unchanged`,
    );
    return 0;
  }
  const { head, index, leafHash, leaf } = verified;
  await output.result(
    {
      verified: true,
      kind: verified.kind,
      ...headJson(head),
      leaf_index: index,
      leaf_hash: toHex(leafHash),
      chunk_id: leaf?.chunkId ?? null,
    },
    formatTable([
      ["VERIFIED", `leaf ${index} is in the signed tree of ${head.sessionId}`],
      ["tree", `${head.size} leaves, root ${toHex(head.root)} (${head.hashAlgorithm})`],
      ["leaf hash", toHex(leafHash)],
      ["chunk", leaf === undefined ? "(the proof doesn't bring the leaf)" : leaf.chunkId],
    ]),
  );
  return 0;
}

function headJson({ sessionId, size, root, hashAlgorithm }: Checkpoint): object {
  return { session_id: sessionId, tree_size: size, root_hash: toHex(root), hash_algorithm: hashAlgorithm };
}

async function reportRefusal(
  output: Output,
  file: string | undefined,
  reason: ProofRefusal,
): Promise<number> {
  const what = file === undefined ? "the proof" : file;
  const code = codeOf(reason);
  const message = REFUSAL_WORDS[reason];
  await output.result(
    { verified: false, file: file ?? null, reason, code, message, advice: ADVICE[code] },
    `REFUSED: ${what}: ${message} [${reason}]`,
  );
  return EXIT_FAILURE;
}

type RefusalCode = "PROOF_INVALID" | "SIGNATURE_INVALID" | "MANIFEST_INVALID";

/** As docs/errors.md says. */
const ADVICE: Readonly<Record<RefusalCode, string>> = {
  PROOF_INVALID: "don't trust what it was to prove; get it again from its source",
  SIGNATURE_INVALID: "check which key you pinned; otherwise another one signed it, or it was changed",
  MANIFEST_INVALID: "don't trust it; get it again from its source",
};

const OF_SIGNATURES: ReadonlySet<ProofRefusal> = new Set<ProofRefusal>([
  "no-signature-of-a-pinned-key",
  "signature-invalid",
  "key-not-pinned",
]);
const OF_MANIFESTS: ReadonlySet<ProofRefusal> = new Set<ProofRefusal>([
  "too-large",
  "not-utf8",
  "not-json",
  "wrong-form",
  "not-canonical",
  "inconsistent",
]);

function codeOf(reason: ProofRefusal): RefusalCode {
  if (OF_SIGNATURES.has(reason)) return "SIGNATURE_INVALID";
  return OF_MANIFESTS.has(reason) ? "MANIFEST_INVALID" : "PROOF_INVALID";
}

const REFUSAL_WORDS: Readonly<Record<ProofRefusal, string>> = {
  malformed: "it doesn't have the form of docs/formats.md, byte for byte",
  "size-zero": "it is of an empty tree, in which nothing is",
  "size-out-of-range": "its tree has more leaves than there can be",
  "index-beyond-size": "its index isn't in a tree of that size",
  "sizes-reversed": "the tree that it says came first is the larger one",
  "hash-length": "one of its hashes doesn't have 32 bytes",
  "path-length": "its path doesn't have the length that index and size ask for",
  "root-mismatch": "its path doesn't lead to the root: leaf, path or root was changed",
  "not-the-trusted-root": "its root isn't the signed one of that size",
  "not-the-expected-session": "it is of another session",
  "no-signature-of-a-pinned-key": "no pinned key has signed it",
  "signature-invalid": "its signature by a pinned key is wrong: it was changed, or forged",
  "too-large": "it is larger than any manifest",
  "not-utf8": "it isn't UTF-8",
  "not-json": "it isn't JSON",
  "wrong-form": "it doesn't have the fields of a manifest",
  "not-canonical": "it isn't in its one canonical spelling (RFC 8785)",
  "key-not-pinned": "it is signed by a key that isn't pinned",
  inconsistent: "its fields contradict one another",
  "no-trusted-head-of-this-size":
    "none of the checkpoints and manifests given is of its tree size; get one of that size, or the proof anew",
  "no-leaf": "it doesn't bring its leaf along, so that its place can't be checked",
  "leaf-malformed": "its leaf doesn't have the form of a leaf",
  "leaf-of-another-place": "its leaf is of another session or index",
  "not-the-expected-leaf": "it is of another leaf than --leaf-hash",
  "not-the-expected-index": "it is of another chunk than --index",
};
