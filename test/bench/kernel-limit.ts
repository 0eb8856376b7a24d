import { randomBytes } from "node:crypto";
import { CpuThreads } from "../../src/adapters/threads/cpu-threads.ts";
import { plainMacKey } from "../../src/core/encrypt/commit.ts";
import { type ChunkId, leafIndex, type SessionId } from "../../src/core/ids.ts";
import { release } from "../../src/core/scratch.ts";
import { OutsideLoad } from "./machine.ts";
import { type DataKind, sampleChunk } from "./sample-data.ts";

export interface KernelLimit {
  readonly mbPerS: number;
  /** CPU time of this process for one chunk, all threads together. */
  readonly cpuMsPerChunk: number;
  /** Cores that other programs used meanwhile; absent where the system doesn't say. */
  readonly outsideCores?: number;
}

const WARM_UP_SHARE = 0.2;

/** What the CPU threads do when nothing but them is at work: the same kernel, verification on, no I/O. */
export async function measureKernel(
  kind: DataKind,
  chunkBytes: number,
  chunks: number,
  threadCount: number,
): Promise<KernelLimit> {
  const threads = new CpuThreads({ threads: threadCount, timeoutMs: 30_000 });
  const key = await threads.deriveKey("bench", new Uint8Array(32));
  const samples = Array.from({ length: Math.min(chunks, 64) }, (_, index) =>
    sampleChunk(kind, chunkBytes, index),
  );
  const sealOne = async (index: number): Promise<void> => {
    const sample = samples[index % samples.length] ?? new Uint8Array(chunkBytes);
    const sealed = await threads.seal({
      sessionId: "sess-bench" as SessionId,
      chunkId: `c-${index}` as ChunkId,
      index: leafIndex(index),
      payload: new Uint8Array(sample),
      compression: { algorithm: "zstd", level: 3, thresholdBytes: 1024 },
      hashAlgorithm: "blake3",
      keyVersion: 1,
      key,
      salt: new Uint8Array(32),
      nonce: new Uint8Array(randomBytes(12)),
      plainMacKey: plainMacKey("bench"),
    });
    release(sealed.blob);
  };
  try {
    await inFlight(Math.ceil(chunks * WARM_UP_SHARE), threadCount * 2, sealOne);
    const cpu = process.cpuUsage();
    const outside = new OutsideLoad([process.pid]);
    const startedMs = performance.now();
    await inFlight(chunks, threadCount * 2, sealOne);
    const seconds = (performance.now() - startedMs) / 1000;
    const used = process.cpuUsage(cpu);
    const outsideCores = outside.cores();
    return {
      mbPerS: (chunks * chunkBytes) / 1e6 / seconds,
      cpuMsPerChunk: (used.user + used.system) / 1000 / chunks,
      ...(outsideCores === undefined ? {} : { outsideCores }),
    };
  } finally {
    await threads.close();
  }
}

async function inFlight(count: number, width: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const run = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: width }, run));
}
