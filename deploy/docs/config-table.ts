import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { SETTING_NAMES, type SettingName, settingOf } from "../../src/config.ts";

/*
 * Writes the README's configuration table from the declarations in src/config.ts.
 *   node deploy/docs/config-table.ts [--check] [file]
 * With --check nothing is written: exit code 1 when the table in the file is not the generated one.
 */

export const BEGIN_MARKER = "<!-- config:begin -->";
export const END_MARKER = "<!-- config:end -->";

const HEADER = ["Variable", "Default", "Allowed", "Meaning"] as const;

/** The table as Markdown, without the markers. */
export function configTable(): string {
  const rows = [HEADER, HEADER.map(() => "---"), ...SETTING_NAMES.map(row)];
  return rows.map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

function row(name: SettingName): readonly string[] {
  const { defaultShown, allowed, unit, about, secret, reloadable, yaml = [] } = settingOf(name);
  const notes = [
    secret ? `Secret; \`${name}_FILE\` names a file instead.` : "",
    reloadable ? "Changes live on SIGHUP." : "",
    yaml.length > 0 ? `Also in YAML: ${yaml.map((key) => `\`${key}\``).join(", ")}.` : "",
  ];
  const needsUnit = unit !== undefined && !allowed.startsWith(unit);
  return [
    `\`${name}\``,
    defaultShown === "" ? "–" : `\`${defaultShown}\``,
    needsUnit ? `${allowed} (${unit})` : allowed,
    [about, ...notes].filter((part) => part !== "").join(" "),
  ].map((cell) => cell.replaceAll("|", "\\|"));
}

/**
 * `text` with the part between the markers replaced by the table.
 * @throws Error when the markers are not there exactly once, in order.
 */
export function withConfigTable(text: string): string {
  const [before, rest, ...repeats] = text.split(BEGIN_MARKER);
  const [, after, ...others] = rest?.split(END_MARKER) ?? [];
  if (before === undefined || after === undefined || repeats.length > 0 || others.length > 0) {
    throw new Error(`the file must hold ${BEGIN_MARKER} and ${END_MARKER} once each, in this order`);
  }
  return `${before}${BEGIN_MARKER}\n${configTable()}\n${END_MARKER}${after}`;
}

function main(args: readonly string[]): number {
  const file =
    args.find((arg) => !arg.startsWith("--")) ?? fileURLToPath(new URL("../../README.md", import.meta.url));
  const current = readFileSync(file, "utf8");
  const wanted = withConfigTable(current);
  if (current === wanted) return 0;
  if (args.includes("--check")) {
    process.stderr.write(
      `the configuration table in ${file} is out of date: run node deploy/docs/config-table.ts\n`,
    );
    return 1;
  }
  writeFileSync(file, wanted);
  return 0;
}

if (import.meta.main) process.exitCode = main(process.argv.slice(2));
