import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inject, onTestFinished } from "vitest";
import { freePort } from "../../deploy/local/free-port.ts";
import { type LocalServer, startLocalMongodb, startLocalRedis } from "../../deploy/local/servers.ts";
import "./servers.ts";

const say = (): void => undefined;

/** A server that one test may freeze and kill; it ends, with its data, when that test does. */
export class OwnServer {
  readonly #start: () => Promise<LocalServer>;
  #server: LocalServer;

  private constructor(start: () => Promise<LocalServer>, server: LocalServer) {
    this.#start = start;
    this.#server = server;
    onTestFinished(async () => {
      this.#signal("SIGCONT");
      await this.#server.stop();
    });
  }

  /** With an append-only file that is synced once a second; `restart` finds it again. */
  static async redis(port?: number): Promise<OwnServer> {
    const at = { say, port: port ?? (await freePort()), dir: ownFolder() };
    const start = () => startLocalRedis(at);
    return new OwnServer(start, await start());
  }

  /** A real mongod finds its data again after a `restart`; the stand-in has lost some of it, or all. */
  static async mongodb(port?: number): Promise<OwnServer> {
    const { standIn } = inject("servers").mongodb;
    // The stand-in in memory: its file is slower, and loses acknowledged writes all the same.
    const at = { say, port: port ?? (await freePort()), ...(standIn ? {} : { dir: ownFolder() }) };
    const start = () => startLocalMongodb(at);
    return new OwnServer(start, await start());
  }

  get url(): string {
    return this.#server.url;
  }

  freeze(): void {
    this.#signal("SIGSTOP");
  }

  thaw(): void {
    this.#signal("SIGCONT");
  }

  /** SIGKILL by its id. */
  kill(): void {
    this.#signal("SIGKILL");
  }

  async restart(): Promise<void> {
    await this.#server.stop();
    this.#server = await this.#start();
  }

  #signal(signal: NodeJS.Signals): void {
    const { pid } = this.#server;
    if (pid === undefined) throw new Error("a server of our own has a process of ours");
    try {
      process.kill(pid, signal);
    } catch (thrown) {
      // Gone already, which only the end of the test may find.
      if (signal !== "SIGCONT") throw thrown;
    }
  }
}

export function ownFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "session-processor-e2e-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
