/**
 * Prints test/vectors/merkle*.json to the folder given as argument. Everything comes from the textbook recursion and
 * from bytes put together by hand here, not from the code under test.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  textbookConsistencyPath,
  textbookInclusionPath,
  textbookLeafHash,
  textbookRoot,
} from "../../src/core/merkle/textbook.ts";

type Algorithm = "blake3" | "sha256";
const ALGORITHMS: readonly Algorithm[] = ["sha256", "blake3"];
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

/** The entries of the Certificate Transparency reference tests. */
const ENTRIES = [
  "",
  "00",
  "10",
  "2021",
  "3031",
  "40414243",
  "5051525354555657",
  "606162636465666768696a6b6c6d6e6f",
];

function leafHashes(algorithm: Algorithm): readonly Uint8Array[] {
  return ENTRIES.map((entry) => textbookLeafHash(Buffer.from(entry, "hex"), algorithm));
}

function treeVector(algorithm: Algorithm) {
  const leaves = leafHashes(algorithm);
  const sizes = Array.from({ length: ENTRIES.length + 1 }, (_, size) => size);
  return {
    hash_algorithm: algorithm,
    leaf_hashes: leaves.map(hex),
    roots: sizes.map((size) => hex(textbookRoot(leaves, algorithm, 0, size))),
  };
}

function inclusion(algorithm: Algorithm, index: number, size: number) {
  const leaves = leafHashes(algorithm).slice(0, size);
  return {
    hash_algorithm: algorithm as string,
    tree_size: size as unknown,
    leaf_index: index as unknown,
    leaf_hash: hex(leaves[index] as Uint8Array),
    path: textbookInclusionPath(index, leaves, algorithm).map(hex),
    root_hash: hex(textbookRoot(leaves, algorithm)),
  };
}

function consistency(algorithm: Algorithm, size1: number, size2: number) {
  const leaves = leafHashes(algorithm).slice(0, size2);
  return {
    hash_algorithm: algorithm as string,
    size1: size1 as unknown,
    size2: size2 as unknown,
    root1: hex(textbookRoot(leaves, algorithm, 0, size1)),
    root2: hex(textbookRoot(leaves, algorithm)),
    path: textbookConsistencyPath(size1, leaves, algorithm).map(hex),
  };
}

/** `trusted_self`: verify against the size and root that the forgery itself claims, as a fooled verifier would. */
function forgedInclusions(algorithm: Algorithm) {
  const good = inclusion(algorithm, 5, 7);
  const [a = "", b = "", c = ""] = good.path;
  return Object.entries({
    "tree size 0": { ...good, tree_size: 0, leaf_index: 0, path: [] },
    "index = size": { ...good, leaf_index: 7 },
    "negative index": { ...good, leaf_index: -1 },
    "fractional index": { ...good, leaf_index: 5.5 },
    "index as text": { ...good, leaf_index: "5" },
    "index of the sibling": { ...good, leaf_index: 4 },
    "size one smaller, same path": { ...good, tree_size: 6 },
    "size above 2^32": { ...good, tree_size: 4_294_967_297 },
    "path without its last hash": { ...good, path: [a, b] },
    "path without its first hash": { ...good, path: [b, c] },
    "path with a hash more": { ...good, path: [...good.path, c] },
    "path with the root at its end": { ...good, path: [...good.path, good.root_hash] },
    "path in reverse": { ...good, path: [c, b, a] },
    "empty path, leaf hash as root": { ...good, path: [], leaf_hash: good.root_hash },
    "a node hash as leaf hash (second preimage)": {
      ...good,
      leaf_hash: hex(textbookRoot(leafHashes(algorithm), algorithm, 4, 6)),
      path: [b, c],
      leaf_index: 2,
    },
    "a path hash of 31 bytes": { ...good, path: [a.slice(2), b, c] },
    "a path hash of 33 bytes": { ...good, path: [`${a}00`, b, c] },
    "uppercase hex": { ...good, root_hash: good.root_hash.toUpperCase() },
    "the other hash function": { ...good, hash_algorithm: algorithm === "blake3" ? "sha256" : "blake3" },
    "an unknown hash function": { ...good, hash_algorithm: "md5" },
    "no path": { ...good, path: undefined },
    "path null": { ...good, path: null },
    "an unknown field": { ...good, note: "x" },
  }).map(([name, proof]) => ({ name, text: JSON.stringify(proof) }));
}

function forgedConsistencies(algorithm: Algorithm) {
  const good = consistency(algorithm, 3, 7);
  const perfect = consistency(algorithm, 4, 8);
  return Object.entries({
    "size1 0": { ...good, size1: 0, path: [] },
    "sizes reversed": { ...good, size1: 7, size2: 3 },
    "equal sizes with a path": { ...good, size1: 7, root1: good.root2 },
    "equal sizes with other roots": { ...good, size1: 7, path: [] },
    "empty path": { ...good, path: [] },
    "path without its last hash": { ...good, path: good.path.slice(0, -1) },
    "path without its first hash": { ...good, path: good.path.slice(1) },
    "path with a hash more": { ...good, path: [...good.path, good.root1] },
    "root1 repeated for a perfect old tree": { ...perfect, path: [perfect.root1, ...perfect.path] },
    "roots swapped": { ...good, root1: good.root2, root2: good.root1 },
    "a root of 31 bytes": { ...good, root1: good.root1.slice(2) },
    "size as text": { ...good, size2: "7" },
  }).map(([name, proof]) => ({ name, text: JSON.stringify(proof) }));
}

/** Text that JSON.parse accepts and a strict reader does not. */
function forgedTexts(algorithm: Algorithm) {
  const text = JSON.stringify(inclusion(algorithm, 5, 7));
  return [
    { name: "trailing text", text: `${text}x` },
    { name: "a second document", text: `${text}\n${text}` },
    { name: "two line feeds at the end", text: `${text}\n\n` },
    { name: "a space at the end", text: `${text} ` },
    { name: "a repeated field", text: text.replace("{", '{"tree_size":8,') },
    { name: "a number with a fraction", text: text.replace('"tree_size":7', '"tree_size":7.0') },
    { name: "a number with an exponent", text: text.replace('"tree_size":7', '"tree_size":7e0') },
    { name: "an escaped letter", text: text.replace("leaf_hash", "leaf\\u005fhash") },
    { name: "an array around it", text: `[${text}]` },
    { name: "cut short", text: text.slice(0, -1) },
    { name: "nothing", text: "" },
    { name: "null", text: "null" },
  ];
}

const INCLUSIONS: readonly [number, number][] = [
  [0, 1],
  [0, 8],
  [5, 8],
  [2, 3],
  [1, 5],
  [6, 7],
];
const CONSISTENCIES: readonly [number, number][] = [
  [1, 1],
  [1, 8],
  [6, 8],
  [2, 5],
  [3, 7],
  [4, 8],
];

// ---- leaves ------------------------------------------------------------------------------------------------

const CODECS = ["none", "zstd", "lz4", "brotli"];

function big(value: number, bytes: number): string {
  return value.toString(16).padStart(2 * bytes, "0");
}

function leafVector(
  name: string,
  sessionId: string,
  index: number,
  codec: string,
  original: number,
  stored: number,
) {
  const chunkId = `${sessionId}-chunk-${String(index).padStart(6, "0")}`.slice(-100);
  const digest = (first: number): string =>
    hex(Uint8Array.from({ length: 32 }, (_, at) => (first + at) & 0xff));
  const fields = {
    session_id: sessionId,
    index,
    chunk_id: chunkId,
    codec,
    original_len: original,
    stored_len: stored,
    blob_blake3: digest(0x10),
    key_commit: digest(0x50),
    plain_mac: digest(0xe0),
  };
  const parts = [
    hex(Buffer.from("LUCID-LEAF\0")),
    "01",
    big(sessionId.length, 2),
    hex(Buffer.from(sessionId)),
    big(index, 8),
    big(chunkId.length, 2),
    hex(Buffer.from(chunkId)),
    big(CODECS.indexOf(codec), 1),
    big(original, 8),
    big(stored, 8),
    fields.blob_blake3,
    fields.key_commit,
    fields.plain_mac,
  ];
  const bytes = parts.join("");
  const entry = Buffer.from(bytes, "hex");
  return {
    name,
    fields,
    parts,
    bytes,
    leaf_hash_blake3: hex(textbookLeafHash(entry, "blake3")),
    leaf_hash_sha256: hex(textbookLeafHash(entry, "sha256")),
  };
}

const VALID_LEAVES = [
  leafVector("usual", "7d0f2c1e-8f5b-4f6a-9a51-0c9d0f6f2b11", 5, "zstd", 1_048_576, 412_345),
  leafVector("smallest", "a", 0, "none", 1, 61),
  leafVector(
    "largest",
    "s".repeat(100),
    4_294_967_295,
    "brotli",
    Number.MAX_SAFE_INTEGER,
    Number.MAX_SAFE_INTEGER,
  ),
];

function forgedLeaves() {
  const { parts } = leafVector("", "sess-1", 5, "lz4", 1_000, 400);
  const change = (at: number, part: string): string =>
    parts.map((old, i) => (i === at ? part : old)).join("");
  return Object.entries({
    "other magic": change(0, hex(Buffer.from("LUCID-LEAG\0"))),
    "version 0": change(1, "00"),
    "version 2": change(1, "02"),
    "a session id longer than the bytes": change(2, "ffff"),
    "an empty session id": [...parts.slice(0, 2), "0000", ...parts.slice(4)].join(""),
    "a session id outside the pattern": change(3, hex(Buffer.from("sess/1"))),
    "a session id with a line feed": change(3, hex(Buffer.from("sess-\n"))),
    "a session id of bytes above 127": change(3, "e4".repeat(6)),
    "an index of 2^32": change(4, big(2 ** 32, 8)),
    "an index above 2^53": change(4, "ffffffffffffffff"),
    "codec 4": change(7, "04"),
    "codec 255": change(7, "ff"),
    "an original length of 2^53": change(8, "0020000000000000"),
    "a stored length of 2^64 - 1": change(9, "ffffffffffffffff"),
    "a byte after the end": `${parts.join("")}00`,
    "a second leaf after the end": parts.join("") + parts.join(""),
    nothing: "",
  }).map(([name, bytes]) => ({ name, bytes }));
}

const folder = process.argv[2];
if (folder === undefined) throw new Error("usage: make-merkle-vectors.ts <folder>");
const write = (name: string, value: unknown): void =>
  writeFileSync(join(folder, name), `${JSON.stringify(value, null, 2)}\n`);
write("merkle.json", { entries: ENTRIES, trees: ALGORITHMS.map(treeVector) });
write("merkle-leaf.json", { valid: VALID_LEAVES, must_fail: forgedLeaves() });
write("merkle-proof.json", {
  inclusion: ALGORITHMS.flatMap((algorithm) =>
    INCLUSIONS.map(([index, size]) => inclusion(algorithm, index, size)),
  ),
  consistency: ALGORITHMS.flatMap((algorithm) => CONSISTENCIES.map(([m, n]) => consistency(algorithm, m, n))),
  inclusion_must_fail: ALGORITHMS.flatMap((algorithm) => [
    ...forgedInclusions(algorithm),
    ...forgedTexts(algorithm),
  ]),
  consistency_must_fail: ALGORITHMS.flatMap(forgedConsistencies),
});
