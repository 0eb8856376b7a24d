import { once } from "node:events";
import { createServer } from "node:net";
import { PassedOver } from "./source.ts";

const TRIES_MAX = 5;

/** A port on 127.0.0.1 that was free just now. Another process may take it before it is used. */
export async function freePort(): Promise<number> {
  const probe = createServer();
  probe.listen(0, "127.0.0.1");
  await once(probe, "listening");
  const address = probe.address();
  probe.close();
  await once(probe, "close");
  if (address === null || typeof address === "string") throw new TypeError("a TCP server has a port");
  return address.port;
}

/**
 * Starts a server on `port`, or on a free one. Between choosing and listening someone else may take a free port; the
 * server then says "in use" and ends, and another port is tried.
 */
export async function onFreePort<T>(
  port: number | undefined,
  start: (port: number) => Promise<T>,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await start(port ?? (await freePort()));
    } catch (error) {
      const taken = error instanceof PassedOver && /in use/i.test(error.message);
      if (!taken || port !== undefined || attempt === TRIES_MAX) throw error;
    }
  }
}
