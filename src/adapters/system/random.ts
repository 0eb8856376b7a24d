import { randomBytes } from "node:crypto";
import type { RandomBytes } from "../../pipeline/ports.ts";

/** The operating system's CSPRNG. */
export const systemRandomBytes: RandomBytes = (length) => randomBytes(length);
