import { existsSync } from "node:fs";
import { request } from "node:http";
import { homedir } from "node:os";
import { join } from "node:path";
import { PassedOver, type LocalServer, type Surroundings } from "./source.ts";

/** Within this time an engine answers, or there is none. */
const ENGINE_DEADLINE_MS = 3_000;
/** Pulling an image is most of it. */
const START_DEADLINE_MS = 300_000;

export interface ContainerRequest {
  readonly image: string;
  readonly port: number;
  readonly command?: readonly string[];
  readonly urlOf: (host: string, port: number) => string;
}

/**
 * Starts a container and removes it at `stop`; testcontainers' reaper removes it when this process is killed.
 * @throws PassedOver when no engine answers or the container doesn't start
 */
export async function startContainer(wanted: ContainerRequest, around: Surroundings): Promise<LocalServer> {
  if (!(await engineAnswers(around.env))) throw new PassedOver("no Docker engine answers");
  around.say(`starting the Docker image ${wanted.image}`);
  const started = launch(wanted);
  try {
    return await withinDeadline(started, START_DEADLINE_MS, around.signal);
  } catch (error) {
    // Too late for us: whenever it does start, it ends.
    started.then((server) => server.stop()).catch(() => {});
    around.signal?.throwIfAborted();
    const reason = error instanceof Error ? error.message.split("\n")[0] : "unknown";
    throw new PassedOver(`Docker could not start ${wanted.image} (${reason})`);
  }
}

async function launch({ image, port, command, urlOf }: ContainerRequest): Promise<LocalServer> {
  // Costs half a second to load, which whoever has the programs installed is spared.
  const { GenericContainer } = await import("testcontainers");
  class LoopbackContainer extends GenericContainer {
    /** Without an address Docker publishes on all interfaces, and neither server asks for a password. */
    protected override async beforeContainerCreated(): Promise<void> {
      if (!sharesLoopback()) return;
      this.hostConfig.PortBindings = { [`${port}/tcp`]: [{ HostIp: "127.0.0.1", HostPort: "0" }] };
    }
  }
  const container = new LoopbackContainer(image).withExposedPorts(port);
  if (command !== undefined) container.withCommand([...command]);
  const started = await container.start();
  let stopping: Promise<void> | undefined;
  return {
    url: urlOf(started.getHost(), started.getMappedPort(port)),
    label: `${image} (Docker)`,
    standIn: false,
    stop: () => (stopping ??= started.stop().then(() => {})),
  };
}

/** Is the engine's loopback this process's? Not for a remote engine, nor from inside a container. */
function sharesLoopback(): boolean {
  return !/^(tcp|ssh|http)/.test(process.env["DOCKER_HOST"] ?? "") && !existsSync("/.dockerenv");
}

/** Asks the places where an engine may listen, without loading a client: most machines without Docker have none. */
async function engineAnswers(env: NodeJS.ProcessEnv): Promise<boolean> {
  const given = env["DOCKER_HOST"];
  if (given !== undefined && given !== "") return ping(given);
  const home = env["HOME"] ?? homedir();
  const sockets = [
    "/var/run/docker.sock",
    join(env["XDG_RUNTIME_DIR"] ?? `/run/user/${process.getuid?.()}`, "docker.sock"),
    join(home, ".docker/run/docker.sock"),
    join(home, ".docker/desktop/docker.sock"),
  ].filter((path) => existsSync(path));
  const answers = await Promise.all(sockets.map((path) => ping(`unix://${path}`)));
  return answers.includes(true);
}

function ping(address: string): Promise<boolean> {
  const url = URL.parse(address);
  if (url === null) return Promise.resolve(false);
  const target =
    url.protocol === "unix:"
      ? { socketPath: decodeURIComponent(url.pathname) }
      : { host: url.hostname, port: url.port === "" ? 2375 : Number(url.port) };
  return new Promise((resolve) => {
    const asked = request({ ...target, path: "/_ping", timeout: ENGINE_DEADLINE_MS }, (response) => {
      response.resume();
      // Any answer counts: an engine that wants TLS says 400 to plain HTTP.
      resolve(true);
    });
    const deadline = setTimeout(() => asked.destroy(new Error("no answer")), ENGINE_DEADLINE_MS);
    asked.once("error", () => resolve(false));
    asked.once("close", () => clearTimeout(deadline));
    asked.end();
  });
}

function withinDeadline<T>(
  work: Promise<T>,
  deadlineMs: number,
  signal: AbortSignal | undefined,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const giveUp = () => reject(new Error(signal?.aborted ? "aborted" : `not within ${deadlineMs / 1000} s`));
    const deadline = setTimeout(giveUp, deadlineMs);
    signal?.addEventListener("abort", giveUp, { once: true });
    work.then(resolve, reject).finally(() => {
      clearTimeout(deadline);
      signal?.removeEventListener("abort", giveUp);
    });
  });
}
