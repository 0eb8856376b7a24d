import type { EffectiveSetting, LoadedConfig } from "../config.ts";

const NOT_SET = "(not set)";

/**
 * The text of `session-processor config`: every setting's effective value and where it came from, for people or
 * (`json`) as one JSON object. Secrets arrive here masked; nothing in this file could unmask them.
 */
export function renderConfig(loaded: LoadedConfig, options: { readonly json?: boolean } = {}): string {
  return options.json ? asJson(loaded) : asTable(loaded);
}

function asJson({ settings, warnings }: LoadedConfig): string {
  const byName: Record<string, unknown> = {};
  for (const { name, value, source, secret, reloadable } of settings) {
    byName[name] = { value: value ?? null, source, secret, reloadable };
  }
  return JSON.stringify({ settings: byName, warnings }, null, 2);
}

function asTable({ settings, warnings }: LoadedConfig): string {
  const rows = settings.map(
    ({ name, value, source }): Row => [name, value ?? NOT_SET, origin(value, source)],
  );
  const header: Row = ["SETTING", "VALUE", "FROM"];
  const widths = [0, 1].map((column) =>
    Math.max(...[header, ...rows].map((row) => row[column]?.length ?? 0)),
  );
  const lines = [header, ...rows].map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
  return [...lines, ...warnings.map((warning) => `warning: ${warning}`)].join("\n");
}

type Row = readonly [name: string, value: string, source: string];

/** A setting that nobody set and that has no default came from nowhere. */
function origin(value: string | undefined, source: EffectiveSetting["source"]): string {
  return value === undefined ? "" : source;
}
