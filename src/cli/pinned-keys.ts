import type { Command } from "commander";
import { LucidError } from "../core/errors.ts";
import { parsePublicKey } from "../core/manifest/public-key.ts";
import { append } from "./arguments.ts";
import { readNamed, readUpTo } from "./files.ts";

/** Keys that a command is told to believe: those it finds in what it verifies are nobody's word. */
export interface KeyFlags {
  readonly key?: readonly string[];
  readonly keys?: string;
}

const KEYS_FILE_BYTES_MAX = 1_048_576;
const PEM_BLOCK = /-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----/g;

export function withKeyOptions(command: Command): Command {
  return command
    .option(
      "--key <key>",
      "pinned public key: base64, hex, vkey, or a file with one (may be repeated)",
      append,
    )
    .option("--keys <file>", "file of pinned public keys: one a line, or PEM blocks; # begins a comment");
}

/** 32 bytes each. Throws CONFIG_INVALID for what isn't a public key; empty if none were given. */
export async function pinnedKeys({ key = [], keys }: KeyFlags): Promise<readonly Uint8Array[]> {
  const single = await Promise.all(key.map(oneKey));
  return keys === undefined
    ? single
    : [...single, ...keysOfText(keysText(await readNamed(keys, KEYS_FILE_BYTES_MAX), keys), keys)];
}

export const NO_KEY_PINNED =
  "pin a public key with --key or --keys: a signature by the key in the file itself proves nothing, because whoever " +
  "changes the file can sign it with a key of their own";

async function oneKey(text: string): Promise<Uint8Array> {
  const literal = parsePublicKey(text);
  if (literal !== undefined) return literal;
  const file = await readUpTo(text, KEYS_FILE_BYTES_MAX);
  const [first, ...more] = file === undefined ? [] : keysOfText(keysText(file, text), text);
  if (first === undefined || more.length > 0) {
    throw new LucidError(
      "CONFIG_INVALID",
      `--key ${text} is neither an Ed25519 public key nor a file with one`,
    );
  }
  return first;
}

function keysText(bytes: Uint8Array, path: string): string {
  if (bytes.byteLength > KEYS_FILE_BYTES_MAX) {
    throw new LucidError("CONFIG_INVALID", `${path} is too large for a file of public keys`);
  }
  return Buffer.from(bytes).toString("utf8");
}

function keysOfText(text: string, path: string): readonly Uint8Array[] {
  const pems = text.match(PEM_BLOCK) ?? [];
  const lines = text
    .replaceAll(PEM_BLOCK, "")
    .split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");
  return [...pems, ...lines].map((one) => {
    const key = parsePublicKey(one);
    if (key === undefined) {
      throw new LucidError("CONFIG_INVALID", `${path} holds something that is no Ed25519 public key`);
    }
    return key;
  });
}
