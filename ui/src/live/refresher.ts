import type { Row } from "./elections";

/** How often the term of a row that is seen is read again, in ms: extensions are not events. */
const EVERY = 5_000;
/** How soon a row is read again whose term seems to be over, in ms. */
const SOON = 1_000;
const TICK = 250;
/** Browsers open six connections to an agent over HTTP/1.1: one is the stream's. */
const AT_ONCE = 2;
/** Reads a second, at the most. */
const MOST = 10;

/** Which of the rows to read, the most urgent first. */
export function due(rows: readonly Row[], now: number): Row[] {
  const urgency = (row: Row) => (row.until <= now ? now - row.readAt - SOON : now - row.readAt - EVERY);
  return rows
    .filter((row) => row.held && urgency(row) >= 0)
    .sort((a, b) => Number(b.until <= now) - Number(a.until <= now) || a.readAt - b.readAt);
}

/** Reads the terms of the rows that are seen again, a few a second. */
export class Refresher {
  private timer: ReturnType<typeof setInterval> | undefined;
  private readonly asked = new Map<string, number>();
  private readonly recent: number[] = [];
  private pending = 0;
  private pausedUntil = 0;

  /**
   * @param seen the rows that are seen now; none while there is no point in asking
   * @param read reads one; returns whether to go on
   */
  constructor(
    private readonly seen: () => readonly Row[],
    private readonly read: (row: Row) => Promise<"on" | "pause" | "stop">,
  ) {}

  start(): void {
    this.timer = setInterval(() => this.tick(), TICK);
  }

  stop(): void {
    clearInterval(this.timer);
  }

  tick(): void {
    const now = Date.now();
    if (now < this.pausedUntil || this.pending >= AT_ONCE) return;
    while (this.recent.length > 0 && this.recent[0]! <= now - 1_000) this.recent.shift();
    for (const [key, at] of this.asked) if (at <= now - SOON) this.asked.delete(key);
    for (const row of due(this.seen(), now)) {
      if (this.pending >= AT_ONCE || this.recent.length >= MOST) return;
      if (this.asked.has(row.key)) continue;
      void this.ask(row, now);
    }
  }

  private async ask(row: Row, now: number): Promise<void> {
    this.asked.set(row.key, now);
    this.recent.push(now);
    this.pending += 1;
    const then = await this.read(row);
    this.pending -= 1;
    if (then === "stop") this.stop();
    else if (then === "pause") this.pausedUntil = Date.now() + EVERY;
    else this.tick();
  }
}
