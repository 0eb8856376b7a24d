import { errorCodeOf } from "../core/errors.ts";

/** `undefined` also for a document that this version can't read, which `onUnreadable` is told: it is no trouble but its own. */
export async function readable<Document>(
  found: Promise<Document | undefined>,
  onUnreadable: (thrown: unknown) => void = () => undefined,
): Promise<Document | undefined> {
  try {
    return await found;
  } catch (thrown) {
    if (errorCodeOf(thrown) !== "DOCUMENT_UNREADABLE") throw thrown;
    onUnreadable(thrown);
    return undefined;
  }
}
