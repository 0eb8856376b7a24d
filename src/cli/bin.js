#!/usr/bin/env -S node --max-semi-space-size=8
// The program is session-processor.ts. This much of it is JavaScript, so that a Node.js that can't run the rest says so.
const MAJOR_MIN = 24;

if (Number(process.versions.node.split(".")[0]) >= MAJOR_MIN) {
  await import("./session-processor.ts");
} else {
  process.stderr.write(
    `error: this needs Node.js ${MAJOR_MIN} or newer, and ${process.execPath} is ${process.version}: start it with a newer one; ` +
      "npx session-processor has its own after npm ci, but not after npm ci --omit=dev\n",
  );
  process.exitCode = 1;
}
