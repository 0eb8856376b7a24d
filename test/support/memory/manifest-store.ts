import type { ManifestFiles, ManifestKey, ManifestStore } from "../../../src/pipeline/ports.ts";
import type { ManifestRecord, ManifestStatus } from "../../../src/schema/manifest.ts";

const FINAL: readonly ManifestStatus[] = ["generated", "anchored"];

/** The twin of MongoManifestStore. */
export class MemoryManifestStore implements ManifestStore {
  readonly #manifests = new Map<string, ManifestRecord>();

  async find(id: string): Promise<ManifestRecord | undefined> {
    return this.#manifests.get(id);
  }

  async mark(manifest: ManifestKey, status: ManifestStatus, reason?: string): Promise<void> {
    const known = this.#manifests.get(manifest.id);
    if (known !== undefined && FINAL.indexOf(known.status) > FINAL.indexOf(status)) return;
    this.#manifests.set(manifest.id, { ...manifest, status, text: known?.text, reason });
  }

  async publish(manifest: ManifestKey, text: string): Promise<string> {
    const known = this.#manifests.get(manifest.id);
    if (known?.text !== undefined) return known.text;
    this.#manifests.set(manifest.id, {
      ...manifest,
      status: known?.status ?? "generating",
      text,
      reason: known?.reason,
    });
    return text;
  }
}

/** A manifest directory in memory. */
export class MemoryManifestFiles implements ManifestFiles {
  readonly files = new Map<string, Uint8Array>();

  async write(
    name: string,
    content: Uint8Array | AsyncIterable<Uint8Array>,
  ): Promise<"written" | "identical" | "differs"> {
    const parts: Uint8Array[] = [];
    if (content instanceof Uint8Array) parts.push(content);
    else for await (const part of content) parts.push(part);
    const bytes = Buffer.concat(parts);
    const there = this.files.get(name);
    if (there !== undefined) return bytes.equals(there) ? "identical" : "differs";
    this.files.set(name, bytes);
    return "written";
  }
}
