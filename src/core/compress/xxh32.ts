// XXH32 with seed 0, as the LZ4 frame format uses it. github.com/Cyan4973/xxHash, doc/xxhash_spec.md.
const PRIME_1 = 0x9e3779b1;
const PRIME_2 = 0x85ebca77;
const PRIME_3 = 0xc2b2ae3d;
const PRIME_4 = 0x27d4eb2f;
const PRIME_5 = 0x165667b1;
const STRIPE_BYTES = 16;
const HOST_IS_LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

function rotateLeft(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

function round(accumulator: number, lane: number): number {
  return Math.imul(rotateLeft((accumulator + Math.imul(lane, PRIME_2)) | 0, 13), PRIME_1);
}

/** Little-endian 32-bit words of the whole stripes; a view where alignment and byte order allow, else a copy. */
function wordsOf(bytes: Uint8Array, byteLength: number): Int32Array {
  if (HOST_IS_LITTLE_ENDIAN) {
    const aligned = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes.subarray(0, byteLength));
    return new Int32Array(aligned.buffer, aligned.byteOffset, byteLength / 4);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, byteLength);
  return Int32Array.from({ length: byteLength / 4 }, (_, word) => view.getInt32(word * 4, true));
}

function consumeStripes(words: Int32Array): number {
  let a = (PRIME_1 + PRIME_2) | 0;
  let b = PRIME_2 | 0;
  let c = 0;
  let d = -PRIME_1 | 0;
  for (let at = 0; at < words.length; at += 4) {
    a = round(a, words[at] as number);
    b = round(b, words[at + 1] as number);
    c = round(c, words[at + 2] as number);
    d = round(d, words[at + 3] as number);
  }
  return (rotateLeft(a, 1) + rotateLeft(b, 7) + rotateLeft(c, 12) + rotateLeft(d, 18)) | 0;
}

function consumeTail(start: number, tail: Uint8Array): number {
  const view = new DataView(tail.buffer, tail.byteOffset, tail.byteLength);
  let hash = start;
  let at = 0;
  for (; at + 4 <= tail.byteLength; at += 4) {
    hash = Math.imul(rotateLeft((hash + Math.imul(view.getInt32(at, true), PRIME_3)) | 0, 17), PRIME_4);
  }
  for (; at < tail.byteLength; at += 1) {
    hash = Math.imul(rotateLeft((hash + Math.imul(view.getUint8(at), PRIME_5)) | 0, 11), PRIME_1);
  }
  return hash;
}

function avalanche(value: number): number {
  let hash = value;
  hash = Math.imul(hash ^ (hash >>> 15), PRIME_2);
  hash = Math.imul(hash ^ (hash >>> 13), PRIME_3);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** An unsigned 32-bit checksum against damage, not against an attacker. */
export function xxh32(bytes: Uint8Array): number {
  const stripesLength = bytes.byteLength - (bytes.byteLength % STRIPE_BYTES);
  const start = stripesLength === 0 ? PRIME_5 : consumeStripes(wordsOf(bytes, stripesLength));
  const lengthAdded = (start + bytes.byteLength) | 0;
  return avalanche(consumeTail(lengthAdded, bytes.subarray(stripesLength)));
}
