import type { PayloadStore } from "../pipeline/ports.ts";
import type { PayloadRef } from "../schema/job.ts";

/** Sends each reference to the store that it names. */
export function payloadStoreOf(stores: Readonly<Record<PayloadRef["store"], PayloadStore>>): PayloadStore {
  return {
    read: (session, ref, bytesMax) => stores[ref.store].read(session, ref, bytesMax),
    remove: (session, ref) => stores[ref.store].remove(session, ref),
  };
}
