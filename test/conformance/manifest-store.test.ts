import { describe, expect, test } from "vitest";
import { manifestId } from "../../src/core/manifest/names.ts";
import type { ManifestKey } from "../../src/pipeline/ports.ts";
import type { SessionId } from "../../src/core/ids.ts";
import type { ManifestStatus } from "../../src/schema/manifest.ts";
import { testServers } from "../support/servers.ts";
import { describeStores } from "./stores.ts";

const RACERS = 50;
const NOT_FINAL: readonly ManifestStatus[] = ["pending", "generating", "error"];
const FINAL: readonly ManifestStatus[] = ["generated", "anchored"];

function keyOf(session: SessionId): ManifestKey {
  return {
    id: manifestId(session, "session_data"),
    sessionId: session,
    type: "session_data",
  };
}

describe("ManifestStore", () => {
  describeStores(testServers(), ({ first, second, session }) => {
    test("a manifest that nobody has begun is not found", async () => {
      expect(await first().manifests.find(keyOf(session()).id)).toBeUndefined();
    });

    test("the first mark makes the document, and others see every field of it", async () => {
      const key = keyOf(session());
      await first().manifests.mark(key, "generating");
      expect(await second().manifests.find(key.id)).toEqual({
        ...key,
        status: "generating",
        text: undefined,
        reason: undefined,
      });
    });

    test("an error has its reason, and the next status removes it", async () => {
      const key = keyOf(session());
      const { manifests } = first();
      await manifests.mark(key, "error", "MANIFEST_DIRECTORY_UNUSABLE: it is full");
      expect(await manifests.find(key.id)).toMatchObject({
        status: "error",
        reason: "MANIFEST_DIRECTORY_UNUSABLE: it is full",
      });
      await second().manifests.mark(key, "generating");
      expect(await manifests.find(key.id)).toMatchObject({ status: "generating", reason: undefined });
    });

    test("statuses before `generated` replace one another in any order", async () => {
      const key = keyOf(session());
      for (const status of [...NOT_FINAL, ...[...NOT_FINAL].reverse()]) {
        await first().manifests.mark(key, status);
        expect((await second().manifests.find(key.id))?.status).toBe(status);
      }
    });

    test("`generated` and `anchored` are never taken back", async () => {
      const key = keyOf(session());
      const { manifests } = first();
      for (const [at, final] of FINAL.entries()) {
        await manifests.mark(key, final);
        for (const earlier of [...NOT_FINAL, ...FINAL.slice(0, at)]) {
          await second().manifests.mark(key, earlier, "MANIFEST_INVALID: too late");
          expect(await manifests.find(key.id)).toMatchObject({ status: final, reason: undefined });
        }
      }
    });

    test("a mark that is applied twice is one", async () => {
      const key = keyOf(session());
      for (const status of ["generating", "generating", "generated", "generated", "anchored", "anchored"]) {
        await first().manifests.mark(key, status as ManifestStatus);
        expect((await second().manifests.find(key.id))?.status).toBe(status);
      }
    });

    test("a text that is published is found, byte for byte, and no status touches it", async () => {
      const key = keyOf(session());
      const text = String.raw`{"$where":"x","a":"Ω𝄞 ","b":"\u0000\n"}`;
      await first().manifests.mark(key, "generating");
      expect(await first().manifests.publish(key, text)).toBe(text);
      for (const status of ["error", "generated", "anchored"] as const) {
        await first().manifests.mark(key, status);
        expect((await second().manifests.find(key.id))?.text).toBe(text);
      }
    });

    test("publish without a mark before it makes the document", async () => {
      const key = keyOf(session());
      await first().manifests.publish(key, "text");
      expect(await second().manifests.find(key.id)).toEqual({
        ...key,
        status: "generating",
        text: "text",
        reason: undefined,
      });
    });

    test("publish leaves status and reason as they are", async () => {
      const key = keyOf(session());
      await first().manifests.mark(key, "error", "MANIFEST_DIRECTORY_UNUSABLE: full");
      await second().manifests.publish(key, "text");
      expect(await first().manifests.find(key.id)).toMatchObject({
        status: "error",
        reason: "MANIFEST_DIRECTORY_UNUSABLE: full",
        text: "text",
      });
    });

    test("the first text stays; whoever comes later is given that one", async () => {
      const key = keyOf(session());
      await first().manifests.publish(key, "first");
      expect(await second().manifests.publish(key, "second")).toBe("first");
      await first().manifests.mark(key, "anchored");
      expect(await second().manifests.publish(key, "third")).toBe("first");
      expect((await first().manifests.find(key.id))?.text).toBe("first");
    });

    test("of 50 racing publications all return one text", async () => {
      const key = keyOf(session());
      const racing = Array.from({ length: RACERS }, (_, racer) =>
        (racer % 2 === 0 ? first() : second()).manifests.publish(key, `text ${racer}`),
      );
      const texts = new Set(await Promise.all(racing));
      expect(texts.size).toBe(1);
      expect(texts).toContain((await first().manifests.find(key.id))?.text);
    });

    test("of racing marks the last of the order stays", async () => {
      for (let round = 0; round < 3; round++) {
        const key = keyOf(session());
        const statuses = [...NOT_FINAL, ...FINAL, ...NOT_FINAL, ...FINAL, ...NOT_FINAL];
        await Promise.all(
          statuses.map((status, at) => (at % 2 === 0 ? first() : second()).manifests.mark(key, status)),
        );
        expect((await second().manifests.find(key.id))?.status).toBe("anchored");
      }
    });

    test("manifests of different sessions and types are apart", async () => {
      const [one, other] = [session(), session()];
      const data = keyOf(one);
      const recording: ManifestKey = {
        id: manifestId(one, "session_recording"),
        sessionId: one,
        type: "session_recording",
      };
      await first().manifests.publish(data, "data");
      await first().manifests.publish(recording, "recording");
      await first().manifests.mark(recording, "generated");
      expect(await second().manifests.find(data.id)).toMatchObject({ status: "generating", text: "data" });
      expect(await second().manifests.find(keyOf(other).id)).toBeUndefined();
    });
  });
});
