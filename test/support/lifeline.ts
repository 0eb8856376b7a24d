/** Thrown by a port whose worker has died: no code of ours knows it, so none can handle it by name. */
export class Died extends Error {
  constructor() {
    super("the worker died");
    this.name = "Died";
  }
}

export interface Death {
  /** The call at which it happens, from 0. */
  readonly atCall: number;
  /** `before`: the call never reaches the server; `after`: it does, and its reply is lost. */
  readonly when: "before" | "after";
  /** `process`: every later call fails too, whatever the code tries on its way out. `call`: only this one. */
  readonly of: "process" | "call";
  /** What is thrown instead of Died. */
  readonly error?: Error;
}

/** Counts the port calls of one worker, and ends it at a chosen one. */
export class Lifeline {
  readonly calls: string[] = [];
  readonly #death: Death | undefined;
  #dead = false;

  constructor(death?: Death) {
    this.#death = death;
  }

  /** The same port, by way of this worker. `name` is how its calls are listed. */
  through<Port extends object>(name: string, port: Port): Port {
    const around = (method: string, run: () => unknown): Promise<unknown> =>
      this.#around(`${name}.${method}`, run);
    return new Proxy(port, {
      get(target, key) {
        const member = Reflect.get(target, key) as unknown;
        if (typeof member !== "function") return member;
        return (...args: readonly unknown[]) =>
          around(String(key), () => Reflect.apply(member, target, args) as unknown);
      },
    });
  }

  async #around(name: string, run: () => unknown): Promise<unknown> {
    this.requireAlive();
    const call = this.calls.push(name) - 1;
    const death = this.#death?.atCall === call ? this.#death : undefined;
    if (death?.when === "before") throw this.#die(death);
    const result = await run();
    if (death?.when === "after") throw this.#die(death);
    this.requireAlive();
    return result;
  }

  #die(death: Death): Error {
    if (death.of === "process") this.#dead = true;
    return death.error ?? new Died();
  }

  /** Throws Died when it has ended, also by a call that nobody waited for. */
  requireAlive(): void {
    if (this.#dead) throw new Died();
  }
}
