/** The longest time of a timer. */
const LONGEST = 2 ** 31 - 1;

/**
 * Calls after so many ms, and after what has arrived meanwhile: when the event loop was blocked, timers come before
 * answers that have waited in sockets.
 *
 * @internal
 */
export function after(ms: number, call: () => void): () => void {
  let over = false;
  const due = () => {
    if (!over) call();
  };
  const immediate = (globalThis as { setImmediate?: (call: () => void) => unknown }).setImmediate;
  const timer = setTimeout(() => (immediate === undefined ? due() : immediate(due)), clamped(ms));
  return () => {
    over = true;
    clearTimeout(timer);
  };
}

/** @internal What a timer can take, rounded up. */
export function clamped(ms: number): number {
  return Math.min(Math.max(Math.ceil(ms), 0), LONGEST);
}

/** @internal Why a signal was aborted. */
export function reasonOf(signal: AbortSignal): unknown {
  return signal.reason ?? new DOMException("This operation was aborted", "AbortError");
}

/** The functions to call when a signal is aborted: by one listener, as Node.js warns of more than ten. */
const waiting = /* @__PURE__ */ new WeakMap<AbortSignal, { calls: Set<() => void>; listener: () => void }>();

/** @internal Calls when the signal is aborted, at once if it is. Returns what cancels the call. */
export function onAbort(signal: AbortSignal | undefined, call: () => void): () => void {
  if (signal === undefined) return () => {};
  if (signal.aborted) {
    call();
    return () => {};
  }
  let entry = waiting.get(signal);
  if (entry === undefined) {
    const calls = new Set<() => void>();
    entry = { calls, listener: () => calls.forEach((one) => one()) };
    waiting.set(signal, entry);
    signal.addEventListener("abort", entry.listener, { once: true });
  }
  const { calls, listener } = entry;
  // The same function may be given twice.
  const own = () => call();
  calls.add(own);
  return () => {
    calls.delete(own);
    if (calls.size > 0 || waiting.get(signal)?.calls !== calls) return;
    waiting.delete(signal);
    signal.removeEventListener("abort", listener);
  };
}

/** @internal Resolves after so many ms. Rejects with the signal's reason. Infinity: never. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    let forget = () => {};
    const cancel =
      ms === Infinity
        ? () => {}
        : after(ms, () => {
            forget();
            resolve();
          });
    forget = onAbort(signal, () => {
      cancel();
      reject(reasonOf(signal!) as Error);
    });
  });
}

/** @internal From half to one and a half times as long. */
export function jittered(ms: number): number {
  return ms * (0.5 + Math.random());
}

/** @internal */
export const TIMED_OUT: unique symbol = Symbol("timed out");

/** @internal What the promise gives, or TIMED_OUT after so many ms. Rejects with the signal's reason. */
export function within<T>(promise: Promise<T>, ms: number, signal?: AbortSignal): Promise<T | typeof TIMED_OUT> {
  return new Promise((resolve, reject) => {
    let forget = () => {};
    const cancel =
      ms === Infinity
        ? () => {}
        : after(ms, () => {
            forget();
            resolve(TIMED_OUT);
          });
    const end = () => {
      cancel();
      forget();
    };
    forget = onAbort(signal, () => {
      cancel();
      reject(reasonOf(signal!) as Error);
    });
    promise.then(
      (value) => {
        end();
        resolve(value);
      },
      (error: unknown) => {
        end();
        reject(error as Error);
      },
    );
  });
}

/** @internal A promise that something else settles. */
export class Deferred<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T) => void;
  reject!: (error: unknown) => void;

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }
}

/** @internal A queue that one reads, in order. */
export class Mailbox<T> implements AsyncIterable<T> {
  private readonly items: T[] = [];
  private wake: (() => void) | undefined;
  private over = false;

  /** Those that were put in and not yet taken out. */
  get length(): number {
    return this.items.length;
  }

  put(item: T): void {
    if (this.over) return;
    this.items.push(item);
    this.wake?.();
  }

  /** Nothing is put in any more. What was is still taken out. */
  end(): void {
    this.over = true;
    this.wake?.();
  }

  /** The next item; undefined at the end. */
  async next(): Promise<T | undefined> {
    while (this.items.length === 0) {
      if (this.over) return undefined;
      await new Promise<void>((resolve) => (this.wake = resolve));
      this.wake = undefined;
    }
    return this.items.shift();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (;;) {
      const item = await this.next();
      if (item === undefined) return;
      yield item;
    }
  }
}
