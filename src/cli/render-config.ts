import type { EffectiveSetting, LoadedConfig } from "../config.ts";

const NOT_SET = "(not set)";
const REQUIRED_NOT_SET = "(required, not set)";

export interface RenderOptions {
  readonly json?: boolean;
  /** Why `run` would not start with this configuration. */
  readonly refusals?: readonly string[];
}

/**
 * The text of `session-processor config`: every setting's effective value and where it came from, for people or
 * (`json`) as one JSON object. Secrets arrive here masked; nothing in this file could unmask them.
 */
export function renderConfig(
  loaded: LoadedConfig,
  { json = false, refusals = [] }: RenderOptions = {},
): string {
  return json ? asJson(loaded, refusals) : asTable(loaded, refusals);
}

function asJson(loaded: LoadedConfig, refusals: readonly string[]): string {
  const missing = missingSettings(loaded);
  const byName: Record<string, unknown> = {};
  for (const { name, value, source, secret, reloadable } of loaded.settings) {
    byName[name] = missing.has(name)
      ? { value: null, source: null, secret, reloadable, required: true }
      : { value: value ?? null, source, secret, reloadable };
  }
  const { warnings } = loaded;
  const refusal = refusals.length === 0 ? null : refusals.join("\n");
  return JSON.stringify({ settings: byName, warnings, run_would_refuse: refusal }, null, 2);
}

function asTable(loaded: LoadedConfig, refusals: readonly string[]): string {
  const { settings, warnings } = loaded;
  const missing = missingSettings(loaded);
  const rows = settings.map(
    ({ name, value, source }): Row =>
      missing.has(name) ? [name, REQUIRED_NOT_SET, ""] : [name, value ?? NOT_SET, origin(value, source)],
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
  return [
    ...lines,
    ...warnings.map((warning) => `warning: ${warning}`),
    ...refusals.map((refusal) => `run would refuse: ${refusal}`),
  ].join("\n");
}

/** Only development lets these default to this machine; in production no command takes the default. */
function missingSettings({ config, sources }: LoadedConfig): ReadonlySet<string> {
  if (config.mode === "development") return new Set();
  const urls = (["MONGODB_URL", "REDIS_URL"] as const).filter((name) => sources[name] === "default");
  return new Set([...urls, ...(config.encryption.kek.kind === "none" ? ["ENCRYPTION_KEY"] : [])]);
}

type Row = readonly [name: string, value: string, source: string];

/** A setting that nobody set and that has no default came from nowhere. */
function origin(value: string | undefined, source: EffectiveSetting["source"]): string {
  return value === undefined ? "" : source;
}
