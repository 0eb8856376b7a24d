import { describe, expect, test } from "vitest";
import { BEGIN_MARKER, configTable, END_MARKER, withConfigTable } from "../../deploy/docs/config-table.ts";
import { renderConfig } from "../../src/cli/render-config.ts";
import { loadConfig, SETTING_NAMES } from "../../src/config.ts";

const KEY = "q7Zr2vXw9LkT4mBn8sPd1fGh6jYc3aUe5iOo0RtN=";
const loaded = loadConfig({
  env: {
    MONGODB_URL: "mongodb://u:pw-of-db@h/db",
    REDIS_URL: "redis://h",
    ENCRYPTION_KEY: KEY,
    MAX_WORKERS: "4",
  },
  cwd: "/nonexistent",
  programDir: "/nonexistent",
});

describe("the config command", () => {
  test("shows each value and where it came from, secrets masked", () => {
    const text = renderConfig(loaded);
    expect(text).toMatch(/^MAX_WORKERS +4 +environment$/m);
    expect(text).toMatch(/^QUEUE_SIZE +1000 +default$/m);
    expect(text).toMatch(/^ENCRYPTION_KEY +\[secret\] +environment$/m);
    expect(text).toMatch(/^MONGODB_URL +mongodb:\/\/\*\*\*@h\/db +environment$/m);
    expect(text).toMatch(/^JWT_SECRET_KEY +\(not set\)$/m);
    expect(text).not.toContain(KEY);
    expect(text).not.toContain("pw-of-db");
  });

  test("has one JSON form with the same facts", () => {
    const text = renderConfig(loaded, { json: true });
    const { settings } = JSON.parse(text) as { settings: Record<string, { value: unknown }> };
    expect(Object.keys(settings)).toEqual([...SETTING_NAMES]);
    expect(settings["MAX_WORKERS"]).toEqual({
      value: "4",
      source: "environment",
      secret: false,
      reloadable: true,
    });
    expect(settings["JWT_SECRET_KEY"]?.value).toBeNull();
    expect(text).not.toContain(KEY);
  });
});

describe("what run can't do without", () => {
  const loadedBare = (env: Record<string, string>) =>
    loadConfig({ env, cwd: "/nonexistent", programDir: "/nonexistent", needs: [] });

  test("is shown as required in production, and not as a default that nobody takes", () => {
    const bare = loadedBare({ ENCRYPTION_KEY_FILE: "" });
    const text = renderConfig(bare, { refusals: ["the key is", "MONGODB_URL is not set"] });
    for (const name of ["MONGODB_URL", "REDIS_URL", "ENCRYPTION_KEY"])
      expect(text).toMatch(new RegExp(`^${name} +\\(required, not set\\)$`, "m"));
    expect(text.split("\n").slice(-2)).toEqual([
      "run would refuse: the key is",
      "run would refuse: MONGODB_URL is not set",
    ]);
    const json = JSON.parse(renderConfig(bare, { json: true, refusals: ["x", "y"] })) as {
      readonly settings: Record<string, unknown>;
      readonly run_would_refuse: unknown;
    };
    expect(json.settings["REDIS_URL"]).toMatchObject({ value: null, source: null, required: true });
    expect(json.run_would_refuse).toBe("x\ny");
  });

  test("is a default in development", () => {
    const text = renderConfig(loadedBare({ NODE_ENV: "development" }));
    expect(text).toMatch(/^MONGODB_URL +mongodb:\S+ +default$/m);
    expect(text).not.toContain("run would refuse");
  });
});

describe("the README's table", () => {
  test("has one row for every setting and no default that depends on this machine", () => {
    const rows = configTable().split("\n");
    expect(rows).toHaveLength(SETTING_NAMES.length + 2);
    for (const row of rows) expect(row.replaceAll("\\|", "").split("|")).toHaveLength(6);
    expect(configTable()).toContain("| `CPU_THREADS` | `available cores` |");
    expect(configTable()).toContain("`MONGODB_URL_FILE`");
  });

  test("replaces what is between the markers and nothing else; a second run changes nothing", () => {
    const once = withConfigTable(`before\n${BEGIN_MARKER}\nold\n${END_MARKER}\nafter\n`);
    expect(once).toMatch(/^before\n[\s\S]*\nafter\n$/);
    expect(once).not.toContain("\nold\n");
    expect(withConfigTable(once)).toBe(once);
  });

  test.each([
    "nothing",
    BEGIN_MARKER,
    `${END_MARKER}${BEGIN_MARKER}`,
    `${BEGIN_MARKER}${BEGIN_MARKER}${END_MARKER}`,
  ])("%s lacks the pair of markers", (text) => {
    expect(() => withConfigTable(text)).toThrow("once each");
  });
});
