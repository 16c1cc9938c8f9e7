import { useEffect, useRef } from "preact/hooks";

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dateAndClock = new Intl.DateTimeFormat(undefined, {
  year: "numeric",
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const exact = new Intl.DateTimeFormat(undefined, {
  dateStyle: "full",
  timeStyle: "long",
});

/** An instant in the viewer's zone: the time of today, else with the date. */
export function instant(at: number, now: number = Date.now()): string {
  const date = new Date(at);
  return date.toDateString() === new Date(now).toDateString() ? clock.format(date) : dateAndClock.format(date);
}

/** An instant to the millisecond, in the viewer's zone and in UTC. */
export function exactInstant(at: number): string {
  const date = new Date(at);
  return `${exact.format(date)}; ${date.toISOString()}`;
}

/** A duration in the two largest units. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = Math.floor(ms / 1_000);
  if (seconds < 60) return `${seconds} s`;
  const units: [number, string][] = [
    [86_400, "d"],
    [3_600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const largest = units.findIndex(([size]) => seconds >= size);
  const [size, unit] = units[largest]!;
  const [smaller, smallerUnit] = units[largest + 1]!;
  const rest = Math.floor((seconds % size) / smaller);
  return rest === 0 ? `${Math.floor(seconds / size)} ${unit}` : `${Math.floor(seconds / size)} ${unit} ${rest} ${smallerUnit}`;
}

/** What is left of a term, in words. */
export function timeLeft(ms: number): string {
  if (ms <= 0) return "0 s";
  // Rounded up: "0 s" only when it is over.
  return ms < 60_000 ? `${Math.ceil(ms / 1_000)} s` : duration(ms);
}

/** An instant, with the exact value on hover. */
export function Time({ at }: { at: number }) {
  if (at <= 0) return <span class="faint">–</span>;
  return (
    <time dateTime={new Date(at).toISOString()} title={exactInstant(at)}>
      {instant(at)}
    </time>
  );
}

/** Calls functions four times a second while the page is seen: cheaper than an animation of each bar. */
class Ticker {
  private readonly callbacks = new Set<(now: number) => void>();
  private timer: ReturnType<typeof setInterval> | undefined;

  add(callback: (now: number) => void): () => void {
    this.callbacks.add(callback);
    this.timer ??= setInterval(() => {
      if (document.hidden) return;
      const now = Date.now();
      for (const each of this.callbacks) each(now);
    }, 250);
    return () => {
      this.callbacks.delete(callback);
      if (this.callbacks.size === 0) {
        clearInterval(this.timer);
        this.timer = undefined;
      }
    };
  }
}

export const ticker = new Ticker();

/** Text that counts, such as "12 s ago": written past the component tree, four times a second. */
export function Counting({ text }: { text: (now: number) => string }) {
  const span = useRef<HTMLSpanElement>(null);
  useEffect(() => {
    const write = (now: number) => {
      const next = text(now);
      if (span.current !== null && span.current.textContent !== next) span.current.textContent = next;
    };
    write(Date.now());
    return ticker.add(write);
  }, [text]);
  return <span ref={span} />;
}

/** A bar that drains until a term ends, and what is left in words. */
export function TimeLeft({ until, full }: { until: number; full: number }) {
  const bar = useRef<HTMLSpanElement>(null);
  const label = useRef<HTMLSpanElement>(null);
  useEffect(() => {
    const write = (now: number) => {
      const left = Math.max(0, until - now);
      const share = full > 0 ? Math.min(1, left / full) : 0;
      if (bar.current !== null) {
        bar.current.style.transform = `scaleX(${share.toFixed(3)})`;
        const level = share < 0.2 ? "low" : "";
        if (bar.current.dataset["level"] !== level) bar.current.dataset["level"] = level;
      }
      const next = timeLeft(left);
      if (label.current !== null && label.current.textContent !== next) label.current.textContent = next;
    };
    write(Date.now());
    return ticker.add(write);
  }, [until, full]);
  return (
    <span class="time-left" title={`at least until ${exactInstant(until)}, unless it is given up`}>
      <span class="track" aria-hidden="true">
        <span class="fill" ref={bar} />
      </span>
      <span class="left" ref={label} />
    </span>
  );
}
