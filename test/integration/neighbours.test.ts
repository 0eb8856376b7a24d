import { afterEach, describe, expect, test } from "vitest";
import {
  configuredNeighbours,
  createNeighbourChecks,
  type Neighbour,
  type NeighbourChecks,
  type NeighbourChecksOptions,
} from "../../src/adapters/http/neighbours.ts";
import { createSystemClock } from "../../src/adapters/system/clock.ts";
import type { Config } from "../../src/config.ts";
import {
  closedPort,
  type FakeService,
  json,
  type Reply,
  silence,
  startFakeService,
  text,
} from "../support/fake-service.ts";

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

async function service(...replies: readonly Reply[]): Promise<FakeService> {
  const fake = await startFakeService();
  fake.answer(...replies);
  open.push(fake);
  return fake;
}

function checksOf(
  neighbours: readonly Neighbour[],
  options: Partial<NeighbourChecksOptions> = {},
): NeighbourChecks {
  const made = createNeighbourChecks(neighbours, { clock: createSystemClock(), ...options });
  open.push(made);
  return made;
}

const HEALTHY = json(200, { status: "healthy" });

describe("the checks of neighbours", () => {
  test("name each of them, in order, and require none", async () => {
    const up = await service(HEALTHY);
    const ill = await service(text(503, "secrets"));
    const neighbours = checksOf([
      { name: "storage", url: up.url },
      { name: "pipeline", url: `${ill.url}/base` },
      { name: "auth", url: `http://127.0.0.1:${await closedPort()}` },
    ]);
    expect(await neighbours.checks()).toEqual([
      { name: "storage", ok: true, required: false, detail: "answers" },
      { name: "pipeline", ok: false, required: false, detail: "answers with status 503" },
      { name: "auth", ok: false, required: false, detail: "the connection was refused or broke" },
    ]);
    expect(ill.requests[0]?.target).toBe("/base/health");
  });

  test("are asked once for many callers, and again when the result is old", async () => {
    const up = await service(HEALTHY);
    let nowMs = 0;
    const clock = { ...createSystemClock(), monotonicMs: () => nowMs };
    const neighbours = checksOf([{ name: "storage", url: up.url }], { clock, cacheMs: 5_000 });
    expect(up.requests).toHaveLength(0);
    await Promise.all([neighbours.checks(), neighbours.checks(), neighbours.checks()]);
    nowMs = 4_999;
    await neighbours.checks();
    expect(up.requests).toHaveLength(1);
    nowMs = 5_000;
    up.answer(text(500, ""));
    expect(await neighbours.checks()).toMatchObject([{ ok: false }]);
    expect(up.requests).toHaveLength(2);
  });

  test("don't keep the caller waiting for one that hangs", async () => {
    const hung = await service(silence);
    const neighbours = checksOf([{ name: "gateway", url: hung.url }], { waitMs: 20, timeoutMs: 200 });
    expect(await neighbours.checks()).toEqual([
      { name: "gateway", ok: false, required: false, detail: "no answer yet" },
    ]);
    await expect.poll(async () => (await neighbours.checks())[0]?.detail).toBe("no answer in time");
    expect(hung.requests).toHaveLength(1);
  });

  test("end with close, also while they are asking", async () => {
    const hung = await service(silence);
    const neighbours = checksOf([{ name: "gateway", url: hung.url }], { waitMs: 10 });
    await neighbours.checks();
    await neighbours.close();
    await neighbours.close();
    await expect.poll(() => hung.openConnections).toBe(0);
  });

  test("are made of the settings that have a URL", () => {
    const services = { storageUrl: "http://s", authUrl: "http://a" } as Config["services"];
    expect(configuredNeighbours(services)).toEqual([
      { name: "storage", url: "http://s" },
      { name: "auth", url: "http://a" },
    ]);
  });
});
