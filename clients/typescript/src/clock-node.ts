import { closeSync, openSync, readSync } from "node:fs";
import { type Clock, ComparedClock, type Moment } from "./clock.js";

/** Linux cuts its uptime to so many ms. */
const RESOLUTION = 10;
/** By so many ms numbers may be inexact. */
const SLACK = 1;

/**
 * Linux's clock. `performance.now()` is CLOCK_MONOTONIC there, which stops while the machine is suspended. The uptime
 * in /proc is CLOCK_BOOTTIME, which does not: where the two part, the machine was suspended. A step of the wall clock
 * changes neither. Suspensions of less than 20 ms in all may go unnoticed.
 *
 * @internal
 */
export class UptimeClock implements Clock {
  private readonly buffer = Buffer.alloc(64);
  private readonly fallback = new ComparedClock();
  /**
   * The true difference of the clocks is at least and less than this, as long as the machine was not suspended again.
   */
  private least = -Infinity;
  private most = Infinity;
  /** The difference at the beginning. */
  private first = -Infinity;
  private slept = 0;
  private last = 0;
  private trusted = true;

  /** @param file `/proc/uptime`, opened */
  constructor(private readonly file: number) {
    this.now();
  }

  now(): number {
    const before = performance.now();
    const uptime = this.trusted ? this.uptime() : undefined;
    const after = performance.now();
    if (uptime === undefined) {
      this.trusted = false;
    } else {
      const least = uptime - after;
      const most = uptime + RESOLUTION - before;
      if (least > this.most + SLACK) {
        // Never less than it was, so that the clock does not go back; and rather too much than too little.
        this.slept = Math.max(this.slept, most - this.first);
        this.least = least;
        this.most = most;
      } else if (most < this.least - SLACK) {
        // What was read stands still: it is no uptime.
        this.trusted = false;
      } else {
        this.least = Math.max(this.least, least);
        this.most = Math.min(this.most, most);
        if (this.slept === 0) this.first = this.least;
      }
    }
    this.last = Math.max(this.last, after + this.slept);
    return this.last;
  }

  asleep(): number {
    return this.slept;
  }

  hasJumped(since: Moment): boolean {
    return !this.trusted && this.fallback.hasJumped({ at: since.at - this.slept, wall: since.wall });
  }

  isWhole(): boolean {
    return this.trusted;
  }

  /** In ms; undefined if it cannot be read. */
  private uptime(): number | undefined {
    const buffer = this.buffer;
    let length: number;
    try {
      length = readSync(this.file, buffer, 0, buffer.length, 0);
    } catch {
      return undefined;
    }
    let hundredths = 0;
    let decimals = -1;
    for (let at = 0; at < length; at += 1) {
      const byte = buffer[at]!;
      if (byte >= 48 && byte <= 57) {
        hundredths = hundredths * 10 + byte - 48;
        if (decimals >= 0) decimals += 1;
      } else if (byte === 46 && decimals < 0) {
        decimals = 0;
      } else {
        break;
      }
    }
    return decimals === 2 ? hundredths * 10 : undefined;
  }
}

let shared: Clock | undefined;

/**
 * The clock of this system, which all agents of a thread share: it keeps a file open.
 *
 * @internal
 */
export function systemClock(): Clock {
  return (shared ??= clockOfSystem());
}

/** @internal A clock of this system. */
export function clockOfSystem(uptime = "/proc/uptime"): Clock {
  if (process.platform !== "linux") return new ComparedClock();
  try {
    const file = openSync(uptime, "r");
    const clock = new UptimeClock(file);
    if (clock.isWhole()) return clock;
    closeSync(file);
  } catch {
    // A sandbox without /proc.
  }
  return new ComparedClock();
}
