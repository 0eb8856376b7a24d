/** How calls become batches. A batch ends at whichever limit comes first; one item may exceed `bytesMax` alone. */
export interface CoalesceOptions<Item, Result> {
  /**
   * One result for each item, in order. When it rejects, every caller of the batch gets that error, so it must be
   * safe for each of them to ask again. An outcome of a single item belongs into its result.
   */
  send(items: readonly Item[]): Promise<readonly Result[]>;
  readonly itemsMax: number;
  readonly bytesMax?: number;
  /** Bytes of one item, for `bytesMax`. */
  readonly bytesOf?: (item: Item) => number;
  /** Batches in flight at the same time. With one lane batches are strictly one after the other. */
  readonly lanes: number;
}

interface Waiting<Item, Result> {
  readonly item: Item;
  readonly resolve: (result: Result) => void;
  readonly reject: (reason: unknown) => void;
}

/**
 * Group commit: calls that arrive while all lanes are busy go out together when one is free. Nothing waits for
 * company longer than to the end of the event loop's turn, so the batches grow with the load and a single call is
 * hardly delayed. What waits is bounded by the number of callers, each of which waits for its result.
 */
export function coalesce<Item, Result>(
  options: CoalesceOptions<Item, Result>,
): (item: Item) => Promise<Result> {
  const waiting: Waiting<Item, Result>[] = [];
  let busyLanes = 0;
  let turnRequested = false;

  // Not at once: one reply often sets several callers free, which get to their next call at different microtasks.
  function requestTurn(): void {
    if (turnRequested || waiting.length === 0 || busyLanes >= options.lanes) return;
    turnRequested = true;
    setImmediate(() => {
      turnRequested = false;
      while (waiting.length > 0 && busyLanes < options.lanes) void runLane(takeBatch(waiting, options));
    });
  }

  async function runLane(batch: readonly Waiting<Item, Result>[]): Promise<void> {
    busyLanes += 1;
    await settle(batch, options);
    busyLanes -= 1;
    requestTurn();
  }

  return (item) =>
    new Promise<Result>((resolve, reject) => {
      waiting.push({ item, resolve, reject });
      requestTurn();
    });
}

function takeBatch<Item, Result>(
  waiting: Waiting<Item, Result>[],
  { itemsMax, bytesMax = Number.POSITIVE_INFINITY, bytesOf = () => 0 }: CoalesceOptions<Item, Result>,
): readonly Waiting<Item, Result>[] {
  let count = 0;
  let bytes = 0;
  for (const { item } of waiting) {
    bytes += bytesOf(item);
    if (count > 0 && (count >= itemsMax || bytes > bytesMax)) break;
    count += 1;
  }
  return waiting.splice(0, count);
}

/** Never rejects: the outcome goes to the callers. */
async function settle<Item, Result>(
  batch: readonly Waiting<Item, Result>[],
  options: CoalesceOptions<Item, Result>,
): Promise<void> {
  try {
    const results = await options.send(batch.map(({ item }) => item));
    if (results.length !== batch.length) throw new RangeError("a batch must give one result for each item");
    batch.forEach(({ resolve }, position) => {
      resolve(results[position] as Result);
    });
  } catch (thrown) {
    for (const { reject } of batch) reject(thrown);
  }
}
