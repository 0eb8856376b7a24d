import type { OpenRequest, SealRequest } from "../../core/kernel.ts";
import type { ThreadTask } from "../../schema/thread.ts";

export interface PortableTask {
  readonly task: ThreadTask;
  /** The chunk's buffer, which moves to the thread and is empty here afterwards. */
  readonly transfer: ArrayBuffer[];
}

/**
 * A task of its declared fields only, each byte field alone in its ArrayBuffer. Structured clone takes everything: whatever else a
 * caller's object holds, and the whole buffer under a view, so that a 32-byte key in Node's pool would bring kilobytes of strangers'
 * bytes along, and a slice of a Redis reply all of the reply.
 */
export function portableTask(task: ThreadTask): PortableTask {
  switch (task.kind) {
    case "seal": {
      const request = portableSeal(task.request);
      return { task: { kind: "seal", request }, transfer: [request.payload.buffer] };
    }
    case "seal-many": {
      // Copied, so that what a dying thread takes along can be sent again, each alone.
      const requests = task.request.requests.map(portableSeal);
      return { task: { kind: "seal-many", request: { requests } }, transfer: [] };
    }
    case "open": {
      const request = portableOpen(task.request);
      return { task: { kind: "open", request }, transfer: [request.blob.buffer] };
    }
    case "derive": {
      const { password, salt } = task.request;
      return { task: { kind: "derive", request: { password, salt: alone(salt) } }, transfer: [] };
    }
    case "ping":
      return { task: { kind: "ping", request: {} }, transfer: [] };
  }
}

function portableSeal(request: SealRequest) {
  return {
    sessionId: request.sessionId,
    index: request.index,
    chunkId: request.chunkId,
    payload: alone(request.payload),
    declaredSha256: request.declaredSha256 && alone(request.declaredSha256),
    declaredBlake3: request.declaredBlake3 && alone(request.declaredBlake3),
    compression: request.compression,
    hashAlgorithm: request.hashAlgorithm,
    keyVersion: request.keyVersion,
    key: alone(request.key),
    salt: alone(request.salt),
    nonce: alone(request.nonce),
    plainMacKey: alone(request.plainMacKey),
  } satisfies SealRequest;
}

function portableOpen(request: OpenRequest) {
  return {
    sessionId: request.sessionId,
    index: request.index,
    chunkId: request.chunkId,
    codec: request.codec,
    originalLength: request.originalLength,
    keyVersion: request.keyVersion,
    blob: alone(request.blob),
    blobBlake3: alone(request.blobBlake3),
    keyCommit: alone(request.keyCommit),
    plainMac: alone(request.plainMac),
    key: alone(request.key),
    plainMacKey: alone(request.plainMacKey),
  } satisfies OpenRequest;
}

/** The same bytes in an ArrayBuffer of exactly their size; copied only if they aren't already. */
function alone(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const { buffer, byteLength } = bytes;
  if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength)
    return bytes as Uint8Array<ArrayBuffer>;
  return new Uint8Array(bytes);
}
