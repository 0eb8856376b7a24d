import { readFileSync } from "node:fs";

export const SERVICE = "session-processor";
export const VERSION: string = readVersion();

function readVersion(): string {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    version: string;
  };
  return version;
}
