import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { loadProcessConfig } from "../config.ts";
import { bytesEqual, utf8 } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { leafIndex, type SessionId } from "../core/ids.ts";
import { encodeLeaf } from "../core/merkle/leaf.ts";
import { consistencyProofToJson, inclusionProofToJson } from "../core/merkle/proof-json.ts";
import { formatTlogProof } from "../core/merkle/tlog-proof.ts";
import { type ProofStores, proveConsistency, proveInclusion } from "../pipeline/prove.ts";
import { parseCount, parseIndex, parseSession } from "./arguments.ts";
import { newCommand, perform } from "./command.ts";
import { refuseTaken, writeOutputFile } from "./files.ts";
import { openStores } from "./open-stores.ts";
import { counted, type Output, PROGRAM, shellWord } from "./output.ts";
import { signedHead } from "./signed-heads.ts";

/** A proof is there to be handed on. */
const PUBLIC_FILE_MODE = 0o644;

interface ProofFlags {
  readonly json?: boolean;
  readonly size?: number;
  readonly consistency?: number;
  readonly format: "json" | "tlog";
  readonly output?: string;
  readonly force?: boolean;
}

export function proofCommand(): Command {
  return newCommand("proof", "prove that a chunk is in a session's tree, or that the tree only grew")
    .argument("<session>", "session id", parseSession)
    .argument("[index]", "chunk index; left out with --consistency", parseIndex)
    .option("--size <leaves>", "of the tree as it was at this size (default: as it is)", parseCount)
    .option("--consistency <leaves>", "prove that the tree only grew since it had this size", parseCount)
    .addOption(
      new Option("--format <form>", "json, or tlog: with the signed checkpoint and the leaf in it")
        .choices(["json", "tlog"])
        .default("json"),
    )
    .option("-o, --output <file>", "write to this new file (default: standard output)")
    .option("--force", "let -o replace a file")
    .action((session: SessionId, index: number | undefined, flags: ProofFlags) =>
      perform(flags.json, async (output) => {
        if ((index === undefined) === (flags.consistency === undefined))
          throw new LucidError("CONFIG_INVALID", "give a chunk index, or --consistency SIZE");
        if (flags.consistency !== undefined && flags.format === "tlog")
          throw new LucidError(
            "CONFIG_INVALID",
            "a tlog-proof is an inclusion proof: it needs a chunk index",
          );
        if (flags.output !== undefined) await refuseTaken(flags.output, { force: flags.force ?? false });
        const { config } = loadProcessConfig({ needs: ["mongodb"] });
        const stores = await openStores(config.mongodb.url.reveal());
        try {
          const text = await proofText(stores, session, index, flags);
          const { output: file, format, force = false } = flags;
          if (file === undefined) {
            await print(output, flags, text);
            return 0;
          }
          const next = await nextStep(stores, session, {
            file,
            text,
            format,
            directory: config.paths.manifests,
          });
          await writeOutputFile(file, utf8(text), { force, mode: PUBLIC_FILE_MODE });
          await output.result({ format, file: resolve(file) }, `proof written to ${file}; ${next}`);
          return 0;
        } finally {
          await stores.close();
        }
      }),
    );
}

async function proofText(
  stores: ProofStores,
  id: SessionId,
  index: number | undefined,
  { size, consistency, format }: ProofFlags,
): Promise<string> {
  if (consistency !== undefined)
    return `${consistencyProofToJson(await proveConsistency(stores, id, consistency, size))}\n`;
  if (index === undefined) throw new LucidError("CONFIG_INVALID", "give a chunk index");
  if (format === "tlog") return tlogProof(stores, id, index, size);
  return `${inclusionProofToJson(await proveInclusion(stores, id, index, size))}\n`;
}

/**
 * Leads to the newest checkpoint that was signed, the only one that is kept: a proof of another size would have nothing to lead to.
 * A command never signs.
 */
async function tlogProof(
  stores: ProofStores,
  id: SessionId,
  index: number,
  size: number | undefined,
): Promise<string> {
  const record = await stores.sessions.find(id);
  if (record === undefined)
    throw new LucidError("SESSION_UNKNOWN", "there is no session of that id in this database");
  const { checkpoint } = record;
  if (checkpoint === undefined)
    throw new LucidError("CONFIG_INVALID", "the session has no signed checkpoint yet: use --format json");
  if (size !== undefined && size !== checkpoint.size)
    throw new LucidError(
      "CONFIG_INVALID",
      `--size: the newest signed checkpoint is of ${checkpoint.size} leaves`,
    );
  const proof = await proveInclusion(stores, id, index, checkpoint.size);
  if (!bytesEqual(proof.rootHash, checkpoint.root))
    throw new LucidError("TREE_CORRUPT", "the tree is not the one of its signed checkpoint; run fsck");
  const chunk = await stores.chunks.find(id, leafIndex(index));
  if (chunk === undefined)
    throw new LucidError("TREE_CORRUPT", "a leaf that the tree counts has no chunk document; run fsck");
  const leaf = encodeLeaf({
    ...chunk,
    originalLength: chunk.originalBytes,
    storedLength: chunk.storedBytes,
  });
  return formatTlogProof(proof, checkpoint.note, leaf);
}

async function print(output: Output, { format, json }: ProofFlags, text: string): Promise<void> {
  if (json === true && format === "tlog") await output.result({ format, proof: text }, "");
  // In the JSON form the proof is the one JSON object.
  else await output.print(text);
}

/** What to do next with the proof in `file`. */
async function nextStep(
  { sessions }: Pick<ProofStores, "sessions">,
  id: SessionId,
  { file, text, format, directory }: WrittenProof,
): Promise<string> {
  const check = `${PROGRAM} verify-proof ${shellWord(file)}`;
  const session = format === "tlog" ? undefined : await sessions.find(id);
  if (session === undefined) return `check it with: ${check} --key PUBLIC_KEY`;
  const heads = sizesOf(text).map((size) => signedHead(session, size, directory));
  const options = heads.map((head) => head.options);
  if (options.every((option) => option !== undefined))
    return `check it with: ${[check, ...options].join(" ")} --key PUBLIC_KEY`;
  const wanted = heads.map(
    ({ size, options: found, wanted: missing }) => `of ${counted(size, "chunk")} ${found ?? missing}`,
  );
  return `to be checked, by verify-proof, it needs what was signed of the tree: ${wanted.join("; ")}`;
}

interface WrittenProof {
  readonly file: string;
  readonly text: string;
  readonly format: ProofFlags["format"];
  /** Of manifests. */
  readonly directory: string;
}

function sizesOf(json: string): readonly number[] {
  const { tree_size, size1, size2 } = JSON.parse(json) as Record<string, number | undefined>;
  return [...new Set([tree_size, size1, size2])].filter((size) => size !== undefined);
}
