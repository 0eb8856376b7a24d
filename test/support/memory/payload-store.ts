import { LucidError } from "../../../src/core/errors.ts";
import { isId, type SessionId } from "../../../src/core/ids.ts";
import type { PayloadStore } from "../../../src/pipeline/ports.ts";
import type { PayloadRef } from "../../../src/schema/job.ts";

/** The twin of the Redis and the file payload store: what a producer put under a reference, until it is removed. */
export class MemoryPayloadStore implements PayloadStore {
  readonly #payloads = new Map<string, Uint8Array>();

  /** The producer's side. */
  put(session: SessionId, ref: PayloadRef, bytes: Uint8Array): void {
    this.#payloads.set(placeOf(session, ref), Uint8Array.from(bytes));
  }

  async read(session: SessionId, ref: PayloadRef, bytesMax: number): Promise<Uint8Array | undefined> {
    const bytes = this.#payloads.get(placeOf(session, ref))?.slice(0, bytesMax + 1);
    // Redis can't tell an empty value from an absent one.
    return bytes?.byteLength === 0 ? undefined : bytes;
  }

  async remove(session: SessionId, ref: PayloadRef): Promise<void> {
    this.#payloads.delete(placeOf(session, ref));
  }
}

/** Contract §3: only keys with the session's own prefix, only plain file names in the session's own folder. */
function placeOf(session: SessionId, ref: PayloadRef): string {
  const prefix = `lucid:payload:{${session}}:`;
  const name = ref.store === "file" ? ref.name : ownName(ref.key, prefix);
  if (!isId(name)) {
    throw new LucidError("PAYLOAD_REF_FORBIDDEN", "the payload reference lies outside of its session");
  }
  return `${ref.store}:${prefix}${name}`;
}

function ownName(key: string, prefix: string): string | undefined {
  return key.startsWith(prefix) ? key.slice(prefix.length) : undefined;
}
