import { isOutage, LucidError } from "../core/errors.ts";

/**
 * Group commit: calls that come while a command is under way are gathered and go out together as the next one. An idle
 * store answers a single call as fast as without it; the busier it is, the fewer commands a call costs.
 */
export interface CoalesceOptions<Item, Result> {
  /** Commands under way at the same time. One gathers best; more keep a slow server busy. */
  readonly lanes: number;
  /** Milliseconds that every command under way must have taken before another goes out beside it; absent: none. */
  readonly laneDelayMs?: number;
  /** Items in one command. */
  readonly itemsMax: number;
  /** Sum of `bytesOf` in one command; a single larger item goes alone. */
  readonly bytesMax?: number;
  readonly bytesOf?: (item: Item) => number;
  /** Milliseconds that a call may wait for company; absent: to the end of the turn. For what nobody waits for. */
  readonly lingerMs?: number;
  /** One command for all of `items`; resolves to one result an item, in their order. Must be safe to apply twice. */
  readonly send: (items: readonly Item[]) => Promise<readonly Result[]>;
}

interface Waiting<Item, Result> {
  readonly item: Item;
  readonly resolve: (result: Result) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * The returned function settles with the result of its own item. When a command of several items fails with anything but
 * an outage, each item is sent again alone, so that one bad document fails its own caller only. What waits is
 * bounded by the number of callers, because each of them waits for its result.
 */
export function coalesce<Item, Result>(
  options: CoalesceOptions<Item, Result>,
): (item: Item) => Promise<Result> {
  const waiting: Waiting<Item, Result>[] = [];
  const { lanes, laneDelayMs = 0 } = options;
  /** Commands, with the time at which each was sent. */
  const underWay = new Set<{ readonly atMs: number }>();
  let turnRequested = false;
  let laneTimer: NodeJS.Timeout | undefined;

  /** Milliseconds until the next command may go out; infinite: not before one has ended. */
  function laneWaitMs(): number {
    if (underWay.size >= lanes) return Number.POSITIVE_INFINITY;
    if (laneDelayMs === 0) return 0;
    const nowMs = performance.now();
    return Math.max(0, ...Array.from(underWay, ({ atMs }) => atMs + laneDelayMs - nowMs));
  }

  // After the current turn of the event loop, not at once: one reply often sets several callers free, and they
  // get to their next call at different microtasks of that turn.
  function requestTurn(): void {
    if (turnRequested || waiting.length === 0) return;
    const waitMs = laneWaitMs();
    if (waitMs > 0) return requestTurnIn(waitMs);
    turnRequested = true;
    const turn = (): void => {
      turnRequested = false;
      while (waiting.length > 0 && laneWaitMs() === 0) void runLane(takeBatch(waiting, options));
      requestTurn();
    };
    if (options.lingerMs === undefined) setImmediate(turn);
    else setTimeout(turn, options.lingerMs);
  }

  function requestTurnIn(waitMs: number): void {
    if (waitMs === Number.POSITIVE_INFINITY) return;
    laneTimer ??= setTimeout(() => {
      laneTimer = undefined;
      requestTurn();
    }, waitMs);
  }

  async function runLane(batch: readonly Waiting<Item, Result>[]): Promise<void> {
    const sent = { atMs: performance.now() };
    underWay.add(sent);
    await sendBatch(batch, options);
    underWay.delete(sent);
    clearTimeout(laneTimer);
    laneTimer = undefined;
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

/** Settles every caller of the batch and never rejects. */
async function sendBatch<Item, Result>(
  batch: readonly Waiting<Item, Result>[],
  options: CoalesceOptions<Item, Result>,
): Promise<void> {
  try {
    const results = await options.send(batch.map(({ item }) => item));
    if (results.length !== batch.length) {
      throw new LucidError(
        "INTERNAL",
        "a gathered command answered another number of items than it was sent",
      );
    }
    for (const [at, { resolve }] of batch.entries()) resolve(results[at] as Result);
  } catch (thrown) {
    if (batch.length > 1 && !isOutage(thrown)) {
      // Side by side: one that takes its time to fail must not keep the others waiting.
      await Promise.all(batch.map((alone) => sendBatch([alone], options)));
      return;
    }
    for (const { reject } of batch) reject(thrown);
  }
}
