import { array, assert, integer, property } from "fast-check";
import { describe, expect, test } from "vitest";
import { READ_BYTES, ReadRing } from "../../src/adapters/redis/read-ring.ts";

const VALUE_BYTES_MAX = 700_000;
/** `$`, the length, two line ends; and ioredis wants one byte of what follows before it lets go of a value. */
const FRAME_BYTES = `$${VALUE_BYTES_MAX}\r\n\r\n`.length + 1;

/** A byte of the stream that nothing else would leave at its place. */
const byteAt = (position: number): number => (position * 31 + (position >> 8)) & 0xff;

describe("a ReadRing", () => {
  test("keeps what was read until a value of the greatest length is there, whatever the reads bring", () => {
    // Bytes that a read brings: as few as one, as many as fit; seldom what would make the ring's end come out even.
    const read = integer({ min: 1, max: READ_BYTES });
    const valueBytes = integer({ min: 1, max: VALUE_BYTES_MAX }).map((bytes) => bytes + FRAME_BYTES);
    assert(
      property(
        array(read, { minLength: 1, maxLength: 60 }),
        array(valueBytes, { maxLength: 12 }),
        (reads, values) => {
          const ring = new ReadRing(VALUE_BYTES_MAX);
          const held: { from: number; view: Buffer }[] = [];
          let position = 0;
          let valueAt = 0;
          let valueEnd = values[0] ?? VALUE_BYTES_MAX + FRAME_BYTES;
          for (const byteLength of reads) {
            const target = ring.next();
            expect(target.byteLength).toBe(READ_BYTES);
            // All of the place that is handed out may be written to, not only what the read brings.
            target.fill(0xee);
            for (let at = 0; at < byteLength; at++) target[at] = byteAt(position + at);
            held.push({ from: position, view: ring.take(byteLength) });
            for (const { from, view } of held) {
              for (let at = Math.max(0, valueStart() - from); at < view.byteLength; at += 997) {
                expect(view[at]).toBe(byteAt(from + at));
              }
            }
            position += byteLength;
            while (valueEnd <= position) {
              valueAt += 1;
              valueEnd += values[valueAt % Math.max(1, values.length)] ?? VALUE_BYTES_MAX + FRAME_BYTES;
            }
            const start = valueStart();
            while (held[0] !== undefined && held[0].from + held[0].view.byteLength <= start) held.shift();
          }
          function valueStart(): number {
            return valueEnd - (values[valueAt % Math.max(1, values.length)] ?? VALUE_BYTES_MAX + FRAME_BYTES);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("hands out the same memory again", () => {
    const ring = new ReadRing(1_000);
    const places = new Set<ArrayBufferLike>();
    for (let reads = 0; reads < 50; reads++) {
      places.add(ring.next().buffer);
      ring.take(READ_BYTES);
    }
    expect(places.size).toBe(1);
  });
});
