import { globSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { ERROR_DISPOSITIONS } from "../../src/core/errors.ts";
import { REPOSITORY } from "../support/planted-tree.ts";

const DOCUMENT = readFileSync(`${REPOSITORY}docs/errors.md`, "utf8");

interface Row {
  readonly code: string;
  readonly disposition: string;
  readonly meaning: string;
  readonly remedy: string;
}

/** Rows that begin with a code: capitals, in backticks. */
function codeRows(document: string): readonly Row[] {
  return [...document.matchAll(/^\| `([A-Z][A-Z0-9_]+)` \|(.*)\|$/gm)].map(([, code = "", rest = ""]) => {
    const [disposition = "", meaning = "", remedy = "", ...more] = rest.split("|").map((cell) => cell.trim());
    if (more.length > 0) throw new Error(`the row of ${code} has more than four columns`);
    return { code, disposition: disposition.replaceAll("`", ""), meaning, remedy };
  });
}

describe("docs/errors.md", () => {
  const rows = codeRows(DOCUMENT);

  test("documents every code of the program, once, in the program's order", () => {
    expect(rows.map(({ code }) => code)).toEqual(Object.keys(ERROR_DISPOSITIONS));
  });

  test("no code is left that nothing throws", () => {
    const program = globSync("{src,workers,deploy}/**/*.ts", { cwd: REPOSITORY })
      .filter((file) => !["src/core/errors.ts", "src/telemetry/metrics.ts"].includes(file))
      .map((file) => readFileSync(`${REPOSITORY}${file}`, "utf8"))
      .join("\n");
    expect(Object.keys(ERROR_DISPOSITIONS).filter((code) => !program.includes(`"${code}"`))).toEqual([]);
  });

  test("gives each code the disposition that the program gives it", () => {
    expect(Object.fromEntries(rows.map(({ code, disposition }) => [code, disposition]))).toEqual({
      ...ERROR_DISPOSITIONS,
    });
  });

  test("says of each code what it means and what to do", () => {
    const silent = rows.filter(({ meaning, remedy }) => meaning.length < 20 || remedy === "");
    expect(silent.map(({ code }) => code)).toEqual([]);
  });

  test("explains every disposition that a code has, and no other", () => {
    const explained = [...DOCUMENT.matchAll(/^\| `([a-z]+)` \|/gm)].map(([, name]) => name);
    expect(new Set(explained)).toEqual(new Set(Object.values(ERROR_DISPOSITIONS)));
  });

  test("documents every status that the HTTP port answers with an error, by its code", () => {
    const sidecar = readFileSync(`${REPOSITORY}src/adapters/http/sidecar.ts`, "utf8");
    const answered = sidecar.matchAll(/errorAnswer\((\d{3}),|^ +(?:\w+: \[)?([45]\d\d),/gm);
    const statuses = new Set(answered.map(([, plain, unreadable]) => plain ?? unreadable));
    const documented = [...DOCUMENT.matchAll(/^\| (\d{3}) \| `LUCID_ERR_\1` \|/gm)].map(
      ([, status]) => status,
    );
    expect(new Set(documented)).toEqual(statuses);
    expect(documented).toContain("431");
  });

  test("a row that is missing, added or of another disposition is found", () => {
    const without = DOCUMENT.replace(/^\| `CHUNK_CONFLICT`.*\n/m, "");
    expect(codeRows(without).map(({ code }) => code)).not.toContain("CHUNK_CONFLICT");
    const changed = DOCUMENT.replace(
      "| `CHUNK_CONFLICT` | `unrecoverable` |",
      "| `CHUNK_CONFLICT` | `retryable` |",
    );
    expect(codeRows(changed).find(({ code }) => code === "CHUNK_CONFLICT")?.disposition).toBe("retryable");
    const added = `${DOCUMENT}| \`NO_SUCH_CODE\` | \`fatal\` | – | – |\n`;
    expect(codeRows(added).map(({ code }) => code)).toContain("NO_SUCH_CODE");
  });
});
