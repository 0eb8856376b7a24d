import { basename, dirname, resolve } from "node:path";
import { type Command, Option } from "commander";
import { writeAtomically } from "../adapters/file/atomic-files.ts";
import { loadProcessConfig } from "../config.ts";
import { bytesEqual, utf8 } from "../core/bytes.ts";
import { LucidError } from "../core/errors.ts";
import { leafIndex, sessionId } from "../core/ids.ts";
import { encodeLeaf } from "../core/merkle/leaf.ts";
import { consistencyProofToJson, inclusionProofToJson } from "../core/merkle/proof-json.ts";
import { formatTlogProof } from "../core/merkle/tlog-proof.ts";
import { type ProofStores, proveConsistency, proveInclusion } from "../pipeline/prove.ts";
import { newCommand, perform } from "./command.ts";
import { parseCount } from "./enqueue.ts";
import { openStores } from "./open-stores.ts";
import type { Output } from "./output.ts";

interface ProofFlags {
  readonly json?: boolean;
  readonly size?: number;
  readonly consistency?: number;
  readonly format: "json" | "tlog";
  readonly output?: string;
}

export function proofCommand(): Command {
  return newCommand("proof", "prove that a chunk is in a session's tree, or that the tree only grew")
    .argument("<session>", "session id")
    .argument("[index]", "chunk index; left out with --consistency", parseCount)
    .option("--size <leaves>", "of the tree as it was at this size (default: as it is)", parseCount)
    .option("--consistency <leaves>", "prove that the tree only grew since it had this size", parseCount)
    .addOption(
      new Option("--format <form>", "json, or tlog: with the signed checkpoint and the leaf in it")
        .choices(["json", "tlog"])
        .default("json"),
    )
    .option("-o, --output <file>", "write to this file, which must not exist (default: standard output)")
    .action((session: string, index: number | undefined, flags: ProofFlags) =>
      perform(flags.json, async (output) => {
        if ((index === undefined) === (flags.consistency === undefined))
          throw new LucidError("CONFIG_INVALID", "give a chunk index, or --consistency SIZE");
        if (flags.consistency !== undefined && flags.format === "tlog")
          throw new LucidError(
            "CONFIG_INVALID",
            "a tlog-proof is an inclusion proof: it needs a chunk index",
          );
        const { config } = loadProcessConfig({ needs: ["mongodb"] });
        const stores = await openStores(config.mongodb.url.reveal());
        try {
          await give(output, flags, await proofText(stores, session, index, flags));
          return 0;
        } finally {
          await stores.close();
        }
      }),
    );
}

async function proofText(
  stores: ProofStores,
  session: string,
  index: number | undefined,
  { size, consistency, format }: ProofFlags,
): Promise<string> {
  const id = sessionId(session);
  if (consistency !== undefined)
    return `${consistencyProofToJson(await proveConsistency(stores, id, consistency, size))}\n`;
  if (index === undefined) throw new LucidError("CONFIG_INVALID", "give a chunk index");
  if (format === "tlog") return tlogProof(stores, session, index, size);
  return `${inclusionProofToJson(await proveInclusion(stores, id, index, size))}\n`;
}

/**
 * Leads to the newest checkpoint that was signed, the only one that is kept: a proof of another size would have nothing to lead to.
 * A command never signs.
 */
async function tlogProof(
  stores: ProofStores,
  session: string,
  index: number,
  size: number | undefined,
): Promise<string> {
  const id = sessionId(session);
  const record = await stores.sessions.find(id);
  if (record === undefined)
    throw new LucidError("SESSION_UNKNOWN", "there is no session of that id in this database");
  const { checkpoint } = record;
  if (checkpoint === undefined)
    throw new LucidError("PROOF_INVALID", "the session has no signed checkpoint yet: use --format json");
  if (size !== undefined && size !== checkpoint.size)
    throw new LucidError("PROOF_INVALID", `the newest signed checkpoint is of ${checkpoint.size} leaves`);
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

async function give(output: Output, { output: file, format, json }: ProofFlags, text: string): Promise<void> {
  if (file !== undefined) {
    const path = resolve(file);
    const outcome = await writeAtomically(dirname(path), basename(path), utf8(text));
    if (outcome === "differs")
      throw new LucidError("CONFIG_INVALID", `${file} exists and stays as it is; name another file with -o`);
    output.result({ format, file: path }, `proof written to ${file}; check it with: verify-proof ${file}`);
  } else if (json === true && format === "tlog") {
    output.result({ format, proof: text }, "");
  } else {
    // In the JSON form the proof is the one JSON object.
    process.stdout.write(text);
  }
}
