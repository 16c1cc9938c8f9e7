import type { Clock } from "../clock.js";
import { clamped } from "../wait.js";

/** The longest time in ms after which the clock is checked: timers stop while the machine is suspended. */
const STEP = 100;

/** @internal Checks the clock when its time has come. */
export interface Timed {
  /** Checks the clock. Returns when to check next, by the clock of terms; undefined: not again. */
  due(): number | undefined;
}

/**
 * The timer that ends terms. It uses no network, and runs only while there are terms that are not over.
 *
 * @internal
 */
export class Timer {
  private readonly watched = new Set<Timed>();
  private earliest = Infinity;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly clock: Clock) {}

  /** Makes `timed` check the clock at that time, and again when it says so. */
  watch(at: number, timed: Timed): void {
    this.watched.add(timed);
    this.earliest = Math.min(this.earliest, at);
    this.arm();
  }

  /** Stops checking. */
  forget(timed: Timed): void {
    if (this.watched.delete(timed) && this.watched.size === 0) {
      this.earliest = Infinity;
      this.arm();
    }
  }

  private arm(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.watched.size === 0) return;
    const left = this.earliest - this.clock.now();
    this.timer = setTimeout(() => this.look(), clamped(Math.min(left, STEP)));
  }

  private look(): void {
    // Where the clock stops during suspension, each term knows by the wall clock.
    if (!this.clock.isWhole() || this.clock.now() >= this.earliest) {
      this.earliest = Infinity;
      for (const timed of this.watched) {
        const next = timed.due();
        if (next === undefined) this.watched.delete(timed);
        else this.earliest = Math.min(this.earliest, next);
      }
    }
    this.arm();
  }
}
