import { describe, expect, test } from "vitest";
import { Deployment } from "../support/deployment.ts";
import { OwnServer } from "../support/own-servers.ts";
import { testServers } from "../support/servers.ts";
import { until, type WorkerProcess } from "../support/worker-process.ts";

const servers = testServers();

/** A client of Prometheus gives up much later. */
const SCRAPE_MS_MAX = 2_000;
const NOTICED_MS_MAX = 5_000;

interface Seen {
  readonly ready: string | undefined;
  readonly mongodb: string | undefined;
  readonly redis: string | undefined;
}

/** The samples of the alert's first row, as they stand in one scrape; an absent one is `undefined`. */
async function scrape(worker: WorkerProcess): Promise<Seen> {
  const startedMs = performance.now();
  const { status, body } = await worker.get("/metrics");
  expect(status).toBe(200);
  expect(performance.now() - startedMs).toBeLessThan(SCRAPE_MS_MAX);
  const sample = (name: string): string | undefined =>
    body
      .split("\n")
      .find((line) => line.startsWith(`lucid_${name} `))
      ?.split(" ")[1];
  return {
    ready: sample("ready"),
    mongodb: sample('dependency_up{dependency="mongodb"}'),
    redis: sample('dependency_up{dependency="redis"}'),
  };
}

/** Every scrape of a while agrees with /ready: an alert with a duration sees no gap. No outage is a reason to restart. */
async function expectSteadily(worker: WorkerProcess, expected: Seen): Promise<void> {
  for (let scrapes = 0; scrapes < 3; scrapes++) {
    expect(await scrape(worker)).toEqual(expected);
    expect((await worker.get("/ready")).status).toBe(expected.ready === "1" ? 200 : 503);
    expect(await worker.get("/health")).toMatchObject({ status: 200 });
  }
}

async function isReady(worker: WorkerProcess): Promise<boolean> {
  const answers = await Promise.all([worker.get("/ready"), worker.get("/health")]);
  return answers.every(({ status }) => status === 200);
}

describe("what says that a worker doesn't serve, and which server is gone", () => {
  test("MongoDB, frozen and then killed", async () => {
    const mongodb = await OwnServer.mongodb();
    const deployment = new Deployment({ ...servers, mongodbUrl: mongodb.url });
    const worker = await deployment.readyWorker();
    await until("it is ready", () => isReady(worker), NOTICED_MS_MAX);
    await expectSteadily(worker, { ready: "1", mongodb: "1", redis: "1" });

    mongodb.freeze();
    await expectSteadily(worker, { ready: "0", mongodb: "0", redis: "1" });
    mongodb.thaw();
    await until("it is ready again", () => isReady(worker), NOTICED_MS_MAX);
    await expectSteadily(worker, { ready: "1", mongodb: "1", redis: "1" });

    mongodb.kill();
    await expectSteadily(worker, { ready: "0", mongodb: "0", redis: "1" });
    expect(await worker.metric("lucid_scrape_failures_total")).toBe(0);
    expect(await worker.terminate()).toMatchObject({ code: 0 });
  });

  test("Redis, frozen and then killed", async () => {
    const redis = await OwnServer.redis();
    const deployment = new Deployment({ ...servers, redisUrl: redis.url });
    const worker = await deployment.readyWorker();
    await until("it is ready", () => isReady(worker), NOTICED_MS_MAX);
    await expectSteadily(worker, { ready: "1", mongodb: "1", redis: "1" });

    redis.freeze();
    await expectSteadily(worker, { ready: "0", mongodb: "1", redis: "0" });
    redis.thaw();
    await until("it is ready again", () => isReady(worker), NOTICED_MS_MAX);

    redis.kill();
    await until("it is noticed", async () => !(await isReady(worker)), NOTICED_MS_MAX);
    await expectSteadily(worker, { ready: "0", mongodb: "1", redis: "0" });
    expect(await worker.terminate()).toMatchObject({ code: 0 });
  });
});
