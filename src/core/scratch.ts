// Megabyte buffers that live for a millisecond are what a CPU thread's time and memory go into. Fresh pages cost more than
// zstd needs to decode into them (2.0 against 0.7 ms for 1 MiB), and left to the garbage collector they pile up to over a
// hundred megabytes per thread before it runs.

/**
 * One buffer that grows to the largest request and is handed out again and again. What `take` returned is overwritten after the
 * next `take`: never let it leave the function that owns the scratch.
 */
export class Scratch {
  #buffer: Uint8Array<ArrayBuffer> = Buffer.allocUnsafeSlow(0);

  /** Exactly `byteLength` bytes of unspecified content; alone in their ArrayBuffer at the first call. */
  take(byteLength: number): Uint8Array<ArrayBuffer> {
    if (this.#buffer.byteLength < byteLength) this.#buffer = Buffer.allocUnsafeSlow(byteLength);
    return this.#buffer.subarray(0, byteLength);
  }
}

/** Below this a buffer may be a part of Node's pool, and is not worth the call. */
const RELEASE_BYTES_MIN = 4096;

/**
 * Gives the memory of a buffer back now; every view of it is empty afterwards. Only for one that the caller alone holds. One that
 * shares its ArrayBuffer with others stays as it is.
 */
export function release(bytes: Uint8Array): void {
  const { buffer, byteLength } = bytes;
  const alone = buffer instanceof ArrayBuffer && buffer.byteLength === byteLength;
  if (alone && byteLength >= RELEASE_BYTES_MIN) buffer.transfer(0);
}
