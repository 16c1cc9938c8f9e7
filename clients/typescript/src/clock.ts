/** @internal When something was done, by the clock of terms and by the wall clock. */
export interface Moment {
  readonly at: number;
  readonly wall: number;
}

/**
 * The clock that terms are measured with, in ms.
 *
 * It is `performance.now()`, and where that does not count the time that a suspended machine misses and another
 * source reports it, that time is added.
 *
 * @internal
 */
export interface Clock {
  now(): number;
  /** What `now()` is ahead of `performance.now()`. */
  asleep(): number;
  /** Whether more time may have passed since then than the clock has counted. */
  hasJumped(since: Moment): boolean;
  /** Whether it counts suspension, so that it does not jump. */
  isWhole(): boolean;
}

/** @internal */
export function moment(clock: Clock): Moment {
  return { at: clock.now(), wall: Date.now() };
}

/** @internal Whether the wall clock is ahead by more than 1 % and 50 ms. */
export function isAhead(counted: number, wall: number): boolean {
  return wall > counted + counted / 100 + 50;
}

/** @internal The clock of a system that does not report suspensions: the wall clock shows them. */
export class ComparedClock implements Clock {
  now(): number {
    return performance.now();
  }
  asleep(): number {
    return 0;
  }
  hasJumped(since: Moment): boolean {
    return isAhead(performance.now() - since.at, Date.now() - since.wall);
  }
  isWhole(): boolean {
    return false;
  }
}
