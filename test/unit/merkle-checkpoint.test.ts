import { createPrivateKey, generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { toHex } from "../../src/core/bytes.ts";
import type { LeafHash, LeafIndex, SessionId, TreeSize } from "../../src/core/ids.ts";
import {
  CHECKPOINT_SIGNATURES_MAX,
  type Checkpoint,
  checkpointVerifierKey,
  ed25519PublicKey,
  formatVerifierKey,
  parseVerifierKey,
  signCheckpoint,
  signNextCheckpoint,
  verifierKey,
  verifyCheckpoint,
} from "../../src/core/merkle/checkpoint.ts";
import { consistencyProof, inclusionProof } from "../../src/core/merkle/proof.ts";
import { formatTlogProof, parseTlogProof, verifyTlogProof } from "../../src/core/merkle/tlog-proof.ts";
import { MerkleTreeInMemory, sampleLeaves } from "../support/merkle-tree-in-memory.ts";

/** RFC 8410 §10.3: a published key, so that the signed text below is a fixed vector. */
const privateKey = createPrivateKey({
  key: Buffer.from("MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC", "base64"),
  format: "der",
  type: "pkcs8",
});
const publicKey = ed25519PublicKey(privateKey);
const otherKey = generateKeyPairSync("ed25519").privateKey;

const session = "sess-1" as SessionId;
const leaves = sampleLeaves(300);
const tree = new MerkleTreeInMemory("blake3", leaves);
tree.append(200);
const earlier: Checkpoint = { sessionId: session, ...tree.head() };
tree.append(100);
const checkpoint: Checkpoint = { sessionId: session, ...tree.head() };
const note = signCheckpoint(checkpoint, privateKey);
const pinned = [checkpointVerifierKey(session, "blake3", publicKey)];
const refusedFor = (reason: string) => ({ ok: false, reason });

/** Every text that differs from `text` in one character, by one bit or by absence. */
function* oneCharacterChanges(text: string): Generator<string> {
  for (let at = 0; at < text.length; at++) {
    for (let bit = 0; bit < 8; bit++) {
      yield text.slice(0, at) + String.fromCharCode(text.charCodeAt(at) ^ (1 << bit)) + text.slice(at + 1);
    }
    yield text.slice(0, at) + text.slice(at + 1);
  }
}

describe("a verifier key", () => {
  test.each([
    "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8",
  ])("published elsewhere has the key id that we compute: %s", (text) => {
    const key = parseVerifierKey(text);
    expect(key === undefined ? undefined : formatVerifierKey(key)).toBe(text);
  });

  test.each([
    ["another key id", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"],
    ["another name", "PeterNeumanm+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"],
    ["an empty name", "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"],
    ["another signature type", "PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"],
    ["a short key", "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy"],
    ["a line feed at the end", "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n"],
    ["nothing", ""],
  ])("with %s is refused", (_, text) => {
    expect(parseVerifierKey(text)).toBeUndefined();
  });

  test("can't have a space or + in its name, or be of another kind", () => {
    const invalid = expect.objectContaining({ code: "CONFIG_INVALID" });
    expect(() => verifierKey("a b", publicKey)).toThrow(invalid);
    expect(() => verifierKey("a+b", publicKey)).toThrow(invalid);
    expect(() => verifierKey("a", new Uint8Array(31))).toThrow(invalid);
    expect(() => ed25519PublicKey(generateKeyPairSync("x25519").publicKey)).toThrow(invalid);
  });
});

describe("a checkpoint", () => {
  test("is the text that C2SP describes", () => {
    const root = Buffer.from(checkpoint.root).toString("base64");
    const [text = "", signature = ""] = note.split("\n\n");
    expect(text).toBe(`lucid/session/sess-1/blake3\n300\n${root}`);
    expect(signature).toMatch(/^\u2014 lucid\/session\/sess-1\/blake3 [A-Za-z0-9+/]{91}=\n$/);
    expect(toHex(Buffer.from(signature.split(" ")[2] ?? "", "base64").subarray(0, 4))).toBe(
      toHex(pinned[0]?.keyId ?? new Uint8Array(0)),
    );
  });

  test("signed by a pinned key is accepted, and read back whole", () => {
    expect(verifyCheckpoint(note, session, pinned)).toEqual({ ok: true, checkpoint });
  });

  test("is refused when the key is not pinned, is another key, or belongs to another session", () => {
    const other = checkpointVerifierKey(session, "blake3", ed25519PublicKey(otherKey));
    expect(verifyCheckpoint(note, session, [])).toEqual(refusedFor("no-signature-of-a-pinned-key"));
    expect(verifyCheckpoint(note, session, [other])).toEqual(refusedFor("no-signature-of-a-pinned-key"));
    expect(verifyCheckpoint(note, "sess-2" as SessionId, pinned)).toEqual(
      refusedFor("not-the-expected-session"),
    );
  });

  test("re-signed by another key under the pinned key's id is refused", () => {
    const forged = signCheckpoint(checkpoint, otherKey).replace(/ ([^ ]+)\n$/, (_, encoded: string) => {
      const bytes = Buffer.from(encoded, "base64");
      bytes.set(pinned[0]?.keyId ?? [], 0);
      return ` ${bytes.toString("base64")}\n`;
    });
    expect(verifyCheckpoint(forged, session, pinned)).toEqual(refusedFor("signature-invalid"));
  });

  test("with the signatures of unknown witnesses is accepted, with one bad signature of the pinned key refused", () => {
    const witness = `\u2014 witness.example ${Buffer.alloc(76, 9).toString("base64")}\n`;
    expect(verifyCheckpoint(note + witness.repeat(16), session, pinned).ok).toBe(true);
    expect(verifyCheckpoint(note + witness.repeat(CHECKPOINT_SIGNATURES_MAX), session, pinned)).toEqual(
      refusedFor("malformed"),
    );
    const bad = Buffer.concat([pinned[0]?.keyId ?? new Uint8Array(0), Buffer.alloc(64)]).toString("base64");
    const withBad = `${note}\u2014 lucid/session/sess-1/blake3 ${bad}\n`;
    expect(verifyCheckpoint(withBad, session, pinned)).toEqual(refusedFor("signature-invalid"));
  });

  test("changed in any single character is refused", () => {
    for (const changed of oneCharacterChanges(note)) {
      expect(verifyCheckpoint(changed, session, pinned).ok).toBe(false);
    }
  });

  test.each([
    ["text after the end", `${note}x`],
    ["a second line feed at the end", `${note}\n`],
    ["no signature", note.slice(0, note.indexOf("\u2014"))],
    ["a carriage return", note.replace("300\n", "300\r\n")],
    ["size 0", note.replace("\n300\n", "\n0\n")],
    ["a leading zero", note.replace("\n300\n", "\n0300\n")],
    ["an extension line", note.replace("\n\n", "\nextension\n\n")],
    ["another origin", note.replace("lucid/session", "lucid/sessions")],
    ["an unknown hash function", note.replace("/blake3\n", "/md5\n")],
    ["a lone surrogate", `${note}\ud800`],
    ["no text at all", ""],
  ])("with %s is malformed", (_, text) => {
    expect(verifyCheckpoint(text, session, pinned)).toEqual(refusedFor("malformed"));
  });

  test("is never signed for an empty tree", () => {
    const empty = { ...checkpoint, size: 0 as TreeSize };
    expect(() => signCheckpoint(empty, privateKey)).toThrow(
      expect.objectContaining({ code: "PROOF_INVALID" }),
    );
  });

  test("is signed after another one only when it extends it", () => {
    const proof = consistencyProof(earlier, checkpoint, tree.read);
    expect(signNextCheckpoint(earlier, checkpoint, proof, privateKey)).toBe(note);
    const corrupt = expect.objectContaining({ code: "TREE_CORRUPT" });
    const rewritten = { ...checkpoint, root: earlier.root };
    expect(() => signNextCheckpoint(earlier, rewritten, proof, privateKey)).toThrow(corrupt);
    expect(() => signNextCheckpoint(checkpoint, earlier, proof, privateKey)).toThrow(corrupt);
    const elsewhere = { ...earlier, sessionId: "sess-2" as SessionId };
    expect(() => signNextCheckpoint(elsewhere, checkpoint, proof, privateKey)).toThrow(corrupt);
  });
});

describe("a tlog-proof", () => {
  const index = 299 as LeafIndex;
  const leafHash = leaves[index] as LeafHash;
  const proof = inclusionProof(index, checkpoint, tree.read);
  const extra = new TextEncoder().encode("extra data");
  const text = formatTlogProof(proof, note, extra);

  test("is the text that C2SP describes, with the note at its end", () => {
    const hashes = proof.path.map((hash) => `${Buffer.from(hash).toString("base64")}\n`).join("");
    expect(text).toBe(`c2sp.org/tlog-proof@v1\nextra ZXh0cmEgZGF0YQ==\nindex 299\n${hashes}\n${note}`);
    expect(formatTlogProof(proof, note)).toBe(text.replace("extra ZXh0cmEgZGF0YQ==\n", ""));
  });

  test("is verified offline from the pinned key alone", () => {
    expect(verifyTlogProof(text, leafHash, session, pinned)).toEqual({ ok: true, index, checkpoint });
    expect(parseTlogProof(text)).toMatchObject({ index, extra, checkpointNote: note });
  });

  test("of a tree with one leaf has no hash lines", () => {
    const single = new MerkleTreeInMemory("sha256", leaves);
    single.append(1);
    const head: Checkpoint = { sessionId: session, ...single.head() };
    const signed = signCheckpoint(head, privateKey);
    const one = formatTlogProof(inclusionProof(0 as LeafIndex, head, single.read), signed);
    expect(one).toBe(`c2sp.org/tlog-proof@v1\nindex 0\n\n${signed}`);
    const keys = [checkpointVerifierKey(session, "sha256", publicKey)];
    expect(verifyTlogProof(one, leaves[0] as LeafHash, session, keys).ok).toBe(true);
  });

  test("of another leaf, session or key is refused", () => {
    expect(verifyTlogProof(text, leaves[0] as LeafHash, session, pinned)).toEqual(
      refusedFor("root-mismatch"),
    );
    expect(verifyTlogProof(text, leafHash, "sess-2" as SessionId, pinned).ok).toBe(false);
    expect(verifyTlogProof(text, leafHash, session, [])).toEqual(refusedFor("no-signature-of-a-pinned-key"));
  });

  test("changed in any single character, but for the unauthenticated extra line, is refused", () => {
    const bare = formatTlogProof(proof, note);
    for (const changed of oneCharacterChanges(bare)) {
      expect(verifyTlogProof(changed, leafHash, session, pinned).ok).toBe(false);
    }
  });

  test.each([
    ["another first line", text.replace("@v1", "@v2")],
    ["no index", text.replace("index 299\n", "")],
    ["an index with a sign", text.replace("index 299", "index +299")],
    ["an index beyond the size", text.replace("index 299", "index 300")],
    ["an index above 2^32 - 1", text.replace("index 299", "index 4294967296")],
    ["the extra line twice", text.replace("extra", "extra AAAA\nextra")],
    ["an empty extra line", text.replace("extra ZXh0cmEgZGF0YQ==", "extra ")],
    ["a hash line more", text.replace("\n\n", `\n${"A".repeat(43)}=\n\n`)],
    ["a hash line of 31 bytes", text.replace("\n\n", `\n${Buffer.alloc(31).toString("base64")}\n\n`)],
    ["no note", text.slice(0, text.indexOf("\n\n"))],
    ["text after the note", `${text}x`],
    ["nothing", ""],
  ])("with %s is refused", (_, changed) => {
    expect(verifyTlogProof(changed, leafHash, session, pinned).ok).toBe(false);
  });

  test("has at most 33 hash lines", () => {
    const hashLines = (count: number): string => `${"A".repeat(43)}=\n`.repeat(count);
    const withHashes = (count: number): string =>
      `c2sp.org/tlog-proof@v1\nindex 0\n${hashLines(count)}\n${note}`;
    expect(parseTlogProof(withHashes(33))?.path).toHaveLength(33);
    expect(parseTlogProof(withHashes(34))).toBeUndefined();
  });

  test("has at most 64 KiB of extra data", () => {
    expect(() => formatTlogProof(proof, note, new Uint8Array(65_537))).toThrow(
      expect.objectContaining({ code: "PROOF_INVALID" }),
    );
  });
});
