import { existsSync, rmSync, writeFileSync } from "node:fs";
import { findOnPath, lastLine, run } from "./programs.ts";
import { PassedOver, type Surroundings } from "./source.ts";

const INSTALL_DEADLINE_MS = 300_000;
const UPDATE_DEADLINE_MS = 120_000;
const SERVICE_POLICY = "/usr/sbin/policy-rc.d";

/** One installation at a time: two would fight for dpkg's lock. */
let lastInstallation: Promise<unknown> = Promise.resolve();

/**
 * Installs the first of `candidates` that the system's package manager has, without a question and without starting
 * the package's own service.
 * @throws PassedOver when this isn't Debian or Ubuntu, the user isn't root, or no candidate can be installed
 */
export function installDebianPackage(candidates: readonly string[], around: Surroundings): Promise<void> {
  const installation = lastInstallation.then(() => installFirst(candidates, around));
  lastInstallation = installation.catch(() => {});
  return installation;
}

async function installFirst(candidates: readonly string[], around: Surroundings): Promise<void> {
  const names = candidates.join(" or ");
  const aptGet = findOnPath(["apt-get"], around.env);
  if (aptGet === undefined || !existsSync("/etc/debian_version"))
    throw new PassedOver(`${names} can be installed unasked on Debian and Ubuntu only`);
  if (process.getuid?.() !== 0) throw new PassedOver(`${names} can be installed unasked by root only`);

  around.say(`installing the package ${names}, once`);
  const allowServices = holdServices();
  try {
    // First without an update: on most machines the package lists are there.
    let failure = await tryInstall(aptGet, candidates, around);
    if (failure === undefined) return;
    await aptRun(aptGet, ["update", "-q"], UPDATE_DEADLINE_MS, around);
    failure = await tryInstall(aptGet, candidates, around);
    if (failure !== undefined) throw new PassedOver(`apt-get could not install ${names} (${failure})`);
  } finally {
    allowServices();
  }
}

/** Returns why none could be installed, or undefined when one was. */
async function tryInstall(
  aptGet: string,
  candidates: readonly string[],
  around: Surroundings,
): Promise<string | undefined> {
  let failure = "";
  for (const candidate of candidates) {
    const args = ["install", "-y", "-q", "--no-install-recommends", candidate];
    const result = await aptRun(aptGet, args, INSTALL_DEADLINE_MS, around);
    around.signal?.throwIfAborted();
    if (result.code === 0) return disableService(candidate, around);
    failure = lastLine(result.stderr);
  }
  return failure;
}

function aptRun(aptGet: string, args: readonly string[], deadlineMs: number, { env, signal }: Surroundings) {
  return run(aptGet, ["-o", "DPkg::Lock::Timeout=60", ...args], {
    env: { ...env, DEBIAN_FRONTEND: "noninteractive" },
    deadlineMs,
    signal,
  });
}

/**
 * Debian starts a package's service when it is installed, unless this file says no. Ours loses its effect with this
 * process, so one that is left behind by a kill does no harm.
 */
function holdServices(): () => void {
  const script = `#!/bin/sh\n# Holds new services back while process ${process.pid} installs.\nkill -0 ${process.pid} 2>/dev/null && exit 101\nexit 0\n`;
  try {
    writeFileSync(SERVICE_POLICY, script, { flag: "wx", mode: 0o755 });
  } catch {
    return () => {}; // The administrator has a policy; it stays.
  }
  return () => rmSync(SERVICE_POLICY, { force: true });
}

/** The program is wanted, not a service that listens on the usual port from the next start of the machine on. */
async function disableService(service: string, { env, signal }: Surroundings): Promise<undefined> {
  if (service !== "redis-server" || !existsSync("/run/systemd/system")) return;
  await run("systemctl", ["disable", "--now", service], { env, deadlineMs: 30_000, signal });
}
