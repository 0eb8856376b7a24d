import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { onTestFinished } from "vitest";

/** A TCP proxy in front of one port of this machine. It ends with the test that opened it. */
export interface ForgetfulProxy {
  readonly port: number;
  /**
   * As a NAT or load balancer that has lost its table: bytes of the connections of now are swallowed, and neither side hears of an end;
   * a new connection works. `replies`: what the client sends still arrives.
   */
  forget(what?: "all" | "replies"): void;
  /** Replies are handed on no faster than this, from now on; 0: as they come. */
  limit(bytesPerSecond: number): void;
}

const SLICES_PER_SECOND = 20;

interface Pair {
  forgotten: "nothing" | "replies" | "all";
  readonly sockets: readonly Socket[];
}

export async function openForgetfulProxy(targetPort: number): Promise<ForgetfulProxy> {
  const pairs = new Set<Pair>();
  let bytesPerSecond = 0;
  const server = createServer((client) => {
    const target = connect(targetPort, "127.0.0.1");
    const pair: Pair = { forgotten: "nothing", sockets: [client, target] };
    pairs.add(pair);
    for (const [from, to] of [
      [client, target],
      [target, client],
    ] as const) {
      from.setNoDelay();
      from.on("error", () => undefined);
      from.on("close", () => {
        if (pair.forgotten !== "nothing") return;
        pairs.delete(pair);
        to.destroy();
      });
      from.on("data", (bytes: Buffer) => {
        if (pair.forgotten === "all" || (pair.forgotten === "replies" && from === target)) return;
        if (bytesPerSecond === 0 || from === client) to.write(bytes);
        else void trickle(from, to, bytes);
      });
    }
  });

  async function trickle(from: Socket, to: Socket, bytes: Buffer): Promise<void> {
    from.pause();
    const slice = Math.ceil(bytesPerSecond / SLICES_PER_SECOND);
    for (let at = 0; at < bytes.byteLength && !to.destroyed; at += slice) {
      to.write(bytes.subarray(at, at + slice));
      await sleep(1000 / SLICES_PER_SECOND);
    }
    from.resume();
  }

  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    server.close();
    for (const { sockets } of pairs) for (const socket of sockets) socket.destroy();
  });
  return {
    port: (server.address() as AddressInfo).port,
    forget(what = "all") {
      for (const pair of pairs) pair.forgotten = what;
    },
    limit(rate) {
      bytesPerSecond = rate;
    },
  };
}
