/** The system's name for what it refused, such as ENOENT; `undefined` for anything else that was thrown. */
export function errnoOf(thrown: unknown): string | undefined {
  const code = (thrown as { readonly code?: unknown } | undefined)?.code;
  return typeof code === "string" ? code : undefined;
}
