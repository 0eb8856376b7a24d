import { timingSafeEqual } from "node:crypto";

const encoder = new TextEncoder();

export function utf8(text: string): Uint8Array {
  return encoder.encode(text);
}

/** A Buffer over the same memory, for APIs that want one; nothing is copied. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function toHex(bytes: Uint8Array): string {
  return asBuffer(bytes).toString("hex");
}

/** Strict: even length, lowercase or uppercase hex only; anything else is `undefined`. */
export function fromHex(text: string): Uint8Array | undefined {
  if (text.length % 2 !== 0 || !/^[0-9a-fA-F]*$/.test(text)) return undefined;
  return new Uint8Array(Buffer.from(text, "hex"));
}

/** Strict RFC 4648 §4 base64 with padding; anything else, and the empty text, is `undefined`. */
export function fromBase64(text: string): Uint8Array | undefined {
  if (text.length === 0 || text.length % 4 !== 0) return undefined;
  const bytes = Buffer.from(text, "base64");
  return bytes.toString("base64") === text ? bytes : undefined;
}

/** Equal length and content, in constant time for equal lengths. */
export function bytesEqual(left: Uint8Array, right: Uint8Array): boolean {
  return left.byteLength === right.byteLength && timingSafeEqual(left, right);
}

/** Appends big-endian integers, length-prefixed text and raw bytes; grows by parts, copies once. */
export class ByteWriter {
  readonly #parts: Uint8Array[] = [];

  bytes(part: Uint8Array): this {
    this.#parts.push(part);
    return this;
  }

  u8(value: number): this {
    const part = Buffer.alloc(1);
    part.writeUInt8(value);
    return this.bytes(part);
  }

  u32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32BE(value);
    return this.bytes(part);
  }

  u64(value: number): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64BE(BigInt(value));
    return this.bytes(part);
  }

  /** u16 byte length, then UTF-8. */
  text16(text: string): this {
    const encoded = utf8(text);
    const length = Buffer.alloc(2);
    length.writeUInt16BE(encoded.byteLength);
    return this.bytes(length).bytes(encoded);
  }

  finish(): Uint8Array {
    return Buffer.concat(this.#parts);
  }
}
