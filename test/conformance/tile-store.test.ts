import { describe, expect, test } from "vitest";
import { tile } from "../support/memory/records.ts";
import { testServers } from "../support/servers.ts";
import { describeStores } from "./stores.ts";

describe("TileStore", () => {
  describeStores(testServers(), ({ first, second, session }) => {
    test("an absent tile is not found", async () => {
      expect(await first().tiles.read(session(), 1, 0)).toBeUndefined();
    });

    test("tiles written together are read back as they are", async () => {
      const id = session();
      const tiles = [tile(0, 0, 256), tile(0, 1, 256, 9), tile(1, 0, 2), tile(2, 0, 1)];
      await first().tiles.write(id, tiles);
      for (const { level, n, hashes } of tiles) {
        expect([...((await second().tiles.read(id, level, n)) ?? [])]).toEqual([...hashes]);
      }
      expect(await first().tiles.read(session(), 0, 0)).toBeUndefined();
    });

    test("writing no tile, and the same tiles again, is harmless", async () => {
      const id = session();
      await first().tiles.write(id, []);
      await first().tiles.write(id, [tile(1, 0, 5)]);
      await second().tiles.write(id, [tile(1, 0, 5)]);
      expect((await first().tiles.read(id, 1, 0))?.byteLength).toBe(5 * 32);
    });

    test("a wider tile replaces a narrower one, and a narrower one changes nothing", async () => {
      const id = session();
      await first().tiles.write(id, [tile(1, 0, 3)]);
      await second().tiles.write(id, [tile(1, 0, 7)]);
      await first().tiles.write(id, [tile(1, 0, 6), tile(1, 1, 1)]);
      expect([...((await first().tiles.read(id, 1, 0)) ?? [])]).toEqual([...tile(1, 0, 7).hashes]);
      expect((await first().tiles.read(id, 1, 1))?.byteLength).toBe(32);
    });

    test("of racing writes of one tile the widest stays", async () => {
      for (let round = 0; round < 5; round++) {
        const id = session();
        const widths = Array.from({ length: 40 }, (_, at) => ((at * 17) % 40) + 1);
        await Promise.all(
          widths.map((width, at) => (at % 2 === 0 ? first() : second()).tiles.write(id, [tile(1, 0, width)])),
        );
        expect((await first().tiles.read(id, 1, 0))?.byteLength).toBe(40 * 32);
      }
    });

    test("replace puts a tile in the place of exactly the wrong one, also a narrower", async () => {
      const id = session();
      await first().tiles.write(id, [tile(1, 0, 9, 1)]);
      expect(await first().tiles.replace(id, tile(1, 0, 5, 2), tile(1, 0, 9, 1).hashes)).toBe("replaced");
      expect([...((await second().tiles.read(id, 1, 0)) ?? [])]).toEqual([...tile(1, 0, 5, 2).hashes]);
      await second().tiles.write(id, [tile(1, 0, 6, 3)]);
      expect((await first().tiles.read(id, 1, 0))?.byteLength).toBe(6 * 32);
    });

    test("replace of a tile that has other hashes, or of none, changes nothing", async () => {
      const id = session();
      await first().tiles.write(id, [tile(1, 0, 4, 1)]);
      for (const wrong of [tile(1, 0, 4, 2), tile(1, 0, 3, 1), tile(1, 0, 5, 1)]) {
        expect(await second().tiles.replace(id, tile(1, 0, 4, 9), wrong.hashes)).toBe("conflict");
      }
      expect(await first().tiles.replace(id, tile(1, 1, 4), tile(1, 1, 4).hashes)).toBe("conflict");
      expect([...((await first().tiles.read(id, 1, 0)) ?? [])]).toEqual([...tile(1, 0, 4, 1).hashes]);
      expect(await first().tiles.read(id, 1, 1)).toBeUndefined();
    });

    test("more tiles than one command takes are all written", async () => {
      const id = session();
      const tiles = Array.from({ length: 300 }, (_, n) => tile(0, n, 1, n % 256));
      await first().tiles.write(id, tiles);
      expect((await first().tiles.read(id, 0, 0))?.[0]).toBe(0);
      expect((await first().tiles.read(id, 0, 299))?.[0]).toBe(299 % 256);
    });
  });
});
