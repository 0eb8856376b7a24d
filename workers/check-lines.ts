import { parentPort } from "node:worker_threads";
import { asLucidError } from "../src/core/errors.ts";
import { type ChunkRunRequest, checkChunkRun } from "../src/core/manifest/chunk-run.ts";

if (parentPort === null) throw new Error("workers/check-lines.ts runs as a worker thread only");
const port = parentPort;

port.on("message", (request: ChunkRunRequest) => {
  try {
    const run = checkChunkRun(request);
    port.postMessage({ run }, [run.leafHashes.buffer, run.blobDigests.buffer]);
  } catch (thrown) {
    const { code, message } = asLucidError(thrown);
    port.postMessage({ code, message });
  }
});
