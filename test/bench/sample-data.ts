/** The data that is measured with: seeded, so that two runs work on the same bytes. */
export type DataKind = "events" | "random";

const SEED = 0x1ec0de;
const ACTIONS = ["click", "scroll", "keydown", "focus", "resize", "paint", "network", "console"] as const;

/** mulberry32: 32 bits of state are enough to fill chunks, and it is fast. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

/** Chunk `index`: JSON lines as a recorder writes them (zstd 3 makes about a quarter of them), or random bytes. */
export function sampleChunk(kind: DataKind, bytes: number, index: number): Uint8Array {
  const random = randomOf(SEED + index);
  const chunk = new Uint8Array(bytes);
  if (kind === "random") {
    for (let at = 0; at < bytes; at += 4)
      new DataView(chunk.buffer).setUint32(Math.min(at, bytes - 4), random());
    return chunk;
  }
  const encoder = new TextEncoder();
  for (let at = 0, line = 0; at < bytes; line++) {
    const text = encoder.encode(
      `${JSON.stringify({
        t: 1_700_000_000_000 + index * 1_000 + line,
        action: ACTIONS[random() % ACTIONS.length],
        x: random() % 1920,
        y: random() % 1080,
        target: `#app > div:nth-child(${random() % 40}) > span`,
        id: random().toString(36),
      })}\n`,
    );
    chunk.set(text.subarray(0, bytes - at), at);
    at += text.byteLength;
  }
  return chunk;
}
