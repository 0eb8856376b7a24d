/** What one read of the socket may bring; the more, the fewer reads a payload takes. */
export const READ_BYTES = 256 * 1024;
/** Of a reply beside its value: `$`, its length, two line ends. */
const FRAME_BYTES_MAX = 64;

/**
 * Memory that a socket reads into, round and round. Without it Node makes a buffer for each 64 KiB that arrive: a megabyte of
 * garbage for a megabyte of payload, which had the main thread's heap marked once for every 50 chunks.
 *
 * What was read stays as it is until all of the value that it is a part of is there: between the value's first byte and the
 * last one that a later read may write to lie the value, its frame, at most one gap at the ring's end, and one read.
 */
export class ReadRing {
  readonly #memory: Buffer;
  #at = 0;

  /** `valueBytesMax`: of the longest value that the connection is asked for. */
  constructor(valueBytesMax: number) {
    this.#memory = Buffer.allocUnsafeSlow(valueBytesMax + FRAME_BYTES_MAX + 2 * READ_BYTES);
  }

  /** READ_BYTES for the next read. */
  next(): Buffer {
    if (this.#at + READ_BYTES > this.#memory.byteLength) this.#at = 0;
    return this.#memory.subarray(this.#at, this.#at + READ_BYTES);
  }

  /** The first `byteLength` bytes of `next()`, which are taken now. */
  take(byteLength: number): Buffer {
    const taken = this.#memory.subarray(this.#at, this.#at + byteLength);
    this.#at += byteLength;
    return taken;
  }
}
