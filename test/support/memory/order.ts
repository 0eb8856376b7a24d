/** The first `limit` of `items` whose id comes after `after`, by id. Ids are ASCII, so this is MongoDB's order too. */
export function pageAfter<Item>(
  items: readonly Item[],
  idOf: (item: Item) => string,
  after: string | undefined,
  limit: number,
): readonly Item[] {
  if (limit < 1) return [];
  const later = after === undefined ? [...items] : items.filter((item) => idOf(item) > after);
  return later.sort((left, right) => (idOf(left) < idOf(right) ? -1 : 1)).slice(0, limit);
}
