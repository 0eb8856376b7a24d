import { asBuffer } from "../../core/bytes.ts";
import { LucidError } from "../../core/errors.ts";
import { isId, type SessionId } from "../../core/ids.ts";
import type { PayloadStore } from "../../pipeline/ports.ts";
import type { PayloadRef } from "../../schema/job.ts";
import { coalesce } from "../coalesce.ts";
import { closeClient, failFastClient, type RedisTarget, valueClient, waitUntilReady } from "./client.ts";
import { asRedisError, throwRedisError } from "./errors.ts";

/** Keys of one UNLINK. Redis frees them in the background. */
const UNLINK_COUNT_MAX = 256;
/** No job waits for its payload to go: a while of them goes together. */
const UNLINK_LINGER_MS = 20;

export interface RedisPayloadStoreOptions extends RedisTarget {
  /** The largest `bytesMax` of a read. Absent: the store is only written to. */
  readonly readBytesMax?: number;
}

export interface RedisPayloadStore extends PayloadStore {
  /** Puts bytes under a key that only jobs of this session may name; gone after `ttlSeconds` at the latest. */
  write(session: SessionId, name: string, bytes: Uint8Array, ttlSeconds: number): Promise<PayloadRef>;
  /** Commands sent so far. */
  readonly commands: number;
  readonly connected: boolean;
  /** False if the connection isn't usable within `timeoutMs`. */
  waitUntilReady(timeoutMs: number): Promise<boolean>;
  close(): Promise<void>;
}

/**
 * Claim checks in Redis (contract §3), over a connection of its own: behind a megabyte of payload the renewal of
 * job locks would have to wait.
 */
export function createRedisPayloadStore(options: RedisPayloadStoreOptions): RedisPayloadStore {
  const { readBytesMax } = options;
  const client =
    readBytesMax === undefined
      ? failFastClient(options, "payloads")
      : // A read asks for one byte more than it is to bring.
        valueClient(options, "payloads", readBytesMax + 1);
  const unlink = coalesce<string, void>({
    send: async (keys) => {
      await unlinkBySession(keys, (own) => client.unlink(...own)).catch(throwRedisError);
      return keys.map(() => undefined);
    },
    itemsMax: UNLINK_COUNT_MAX,
    lanes: 1,
    lingerMs: UNLINK_LINGER_MS,
  });

  return {
    async read(session, ref, bytesMax) {
      const key = ownKey(session, ref);
      if (readBytesMax === undefined || bytesMax > readBytesMax) {
        throw new LucidError(
          "INTERNAL",
          "a payload is asked for that may be larger than its store was made for",
        );
      }
      try {
        // One byte more than allowed, never the whole of a value that is too large. An absent key reads as empty.
        const bytes = await client.getrangeBuffer(key, 0, bytesMax);
        return bytes.byteLength === 0 ? undefined : wholeBuffer(bytes);
      } catch (thrown) {
        if (isWrongType(thrown))
          throw new LucidError("PAYLOAD_MISSING", "payload_ref.key holds no plain value");
        throw asRedisError(thrown);
      }
    },

    async remove(session, ref) {
      try {
        await unlink(ownKey(session, ref));
      } catch (thrown) {
        throw asRedisError(thrown);
      }
    },

    async write(session, name, bytes, ttlSeconds) {
      const ref: PayloadRef = { store: "redis", key: payloadKey(session, name) };
      try {
        await client.set(ownKey(session, ref), asBuffer(bytes), "EX", ttlSeconds);
      } catch (thrown) {
        throw asRedisError(thrown);
      }
      return ref;
    },

    get commands() {
      return client.commands;
    },
    get connected() {
      return client.status === "ready";
    },
    waitUntilReady: (timeoutMs) => waitUntilReady(client, timeoutMs),
    close: () => closeClient(client),
  };
}

/** Contract §3; the braces spread sessions over a Redis Cluster and keep each in one slot. */
function payloadKey(session: SessionId, name: string): string {
  return `lucid:payload:{${session}}:${name}`;
}

/** Checked again although parse-job.ts did: what is read and deleted here is whatever the key says. */
function ownKey(session: SessionId, ref: PayloadRef): string {
  const prefix = payloadKey(session, "");
  if (ref.store !== "redis" || !ref.key.startsWith(prefix) || !isId(ref.key.slice(prefix.length))) {
    throw new LucidError(
      "PAYLOAD_REF_FORBIDDEN",
      "payload_ref.key must be a payload key of the job's own session",
    );
  }
  return ref.key;
}

/** Keys of several sessions lie in several slots of a cluster, and one command may only name one slot. */
async function unlinkBySession(
  keys: readonly string[],
  unlink: (keys: readonly string[]) => Promise<unknown>,
): Promise<void> {
  const bySession = Map.groupBy(keys, (key) => key.slice(0, key.indexOf("}")));
  await Promise.all([...bySession.values()].map(unlink));
}

/**
 * Memory that can be handed to a thread. ioredis joins a value that came in several reads into memory of its own, which
 * is returned as it is; one that came in a single read is a view of what was read, shared with other replies, and copied.
 */
function wholeBuffer(bytes: Uint8Array): Uint8Array {
  const whole = bytes.byteOffset === 0 && bytes.byteLength === bytes.buffer.byteLength;
  return whole ? bytes : new Uint8Array(bytes);
}

function isWrongType(thrown: unknown): boolean {
  return thrown instanceof Error && thrown.message.startsWith("WRONGTYPE");
}
