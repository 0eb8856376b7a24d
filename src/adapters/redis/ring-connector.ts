import { connect, type Socket, type TcpNetConnectOpts } from "node:net";
import { AbstractConnector, type RedisOptions } from "ioredis";
import { ReadRing } from "./read-ring.ts";

/** What ioredis has filled in by then. */
interface Parsed {
  readonly host: string;
  readonly port: number;
  readonly family: number;
  readonly disconnectTimeout: number;
}
type ConnectorClass = NonNullable<RedisOptions["Connector"]>;

/**
 * For RedisOptions: a connection over TCP whose replies are read into a ReadRing. ioredis joins a value that comes in several
 * reads into memory of its own; one that comes in a single read is a view of the ring, good until the caller's turn ends.
 */
export function ringConnector(valueBytesMax: number): ConnectorClass {
  return class RingConnector extends AbstractConnector {
    readonly #address: TcpNetConnectOpts;
    readonly #ring = new ReadRing(valueBytesMax);

    constructor(options: unknown) {
      const { host, port, family, disconnectTimeout } = options as Parsed;
      super(disconnectTimeout);
      this.#address = { host, port, family };
    }

    override async connect(): Promise<Socket> {
      this.connecting = true;
      // As ioredis' own connector: whoever disconnects in this very turn is heard.
      await Promise.resolve();
      if (!this.connecting) throw new Error("Connection is closed.");
      const socket = this.#open();
      socket.once("error", (error) => {
        this.firstError = error;
      });
      this.stream = socket;
      return socket;
    }

    #open(): Socket {
      const socket: Socket = connect({
        ...this.#address,
        onread: {
          buffer: () => this.#ring.next(),
          callback: (byteLength) => {
            // What ioredis listens to, past the stream's queue, which would hold on to the ring's memory.
            socket.emit("data", this.#ring.take(byteLength));
            return true;
          },
        },
      });
      return socket;
    }
  };
}
