/** What happens, in the order of a clock that only moves when nothing is left to do at its present time. */
export class VirtualTime {
  #nowMs = 0;
  #count = 0;
  /** A binary heap: the earliest first, and of one time the one that was planned first. */
  readonly #heap: Planned[] = [];

  get nowMs(): number {
    return this.#nowMs;
  }

  /** Runs `happen` in `delayMs`; the returned function calls it off. */
  after(delayMs: number, happen: () => void | Promise<void>): () => void {
    const planned: Planned = { atMs: this.#nowMs + Math.max(0, delayMs), order: this.#count++, happen };
    this.#push(planned);
    return () => {
      planned.happen = undefined;
    };
  }

  /** Lets the next thing happen, and everything that follows from it without time passing. False: nothing is planned. */
  async step(): Promise<boolean> {
    const next = this.#pop();
    if (next === undefined) return false;
    this.#nowMs = Math.max(this.#nowMs, next.atMs);
    if (next.happen !== undefined) {
      await next.happen();
      // A turn of the event loop: all promises that can settle have then settled.
      await new Promise<void>((resolve) => {
        setImmediate(resolve);
      });
    }
    return true;
  }

  #push(planned: Planned): void {
    const heap = this.#heap;
    let at = heap.push(planned) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isEarlier(planned, heap[parent] as Planned)) break;
      heap[at] = heap[parent] as Planned;
      at = parent;
    }
    heap[at] = planned;
  }

  #pop(): Planned | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isEarlier(heap[child + 1] as Planned, heap[child] as Planned))
        child += 1;
      if (!isEarlier(heap[child] as Planned, last)) break;
      heap[at] = heap[child] as Planned;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

interface Planned {
  readonly atMs: number;
  readonly order: number;
  happen: (() => void | Promise<void>) | undefined;
}

function isEarlier(left: Planned, right: Planned): boolean {
  return left.atMs < right.atMs || (left.atMs === right.atMs && left.order < right.order);
}
