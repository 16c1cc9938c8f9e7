import { Code, ConnectError } from "@connectrpc/connect";
import { type Failure, failureOf } from "../api/errors";
import type { Certainty, Observation, State } from "@election-agent/client/proto";

/** How the page is connected. */
export interface Link {
  /** "live" after Synced; "refused": the agent does not want to, and asking again does not help. */
  state: "connecting" | "live" | "lost" | "refused" | "paused";
  /** Since when, in ms since the Unix epoch. */
  since: number;
  failure?: Failure | undefined;
}

/** What hears of a followed stream. */
export interface Sink {
  /** @param generation rises with each stream; @param present before the stream's Synced */
  state(state: State, generation: number, present: boolean): void;
  synced(generation: number): void;
  /** Undefined: a new stream has not said otherwise. */
  certainty(certainty: Certainty | undefined): void;
  link(link: Link): void;
  /** Nothing was heard between two instants: what happened then is not known. */
  gap(from: number, to: number): void;
}

/** Opens a stream. */
export type Open = (signal: AbortSignal) => AsyncIterable<Observation>;

/** How often the agent is asked to send something, in ms. */
export const HEARTBEAT = 5_000;
/** A stream that was silent for so long is dead, in ms. */
const SILENCE = 2.5 * HEARTBEAT;
/** After a sleep, a stream that was silent for so long is not waited for, in ms. */
const DOUBT = HEARTBEAT + 1_500;
const TICK = 1_000;
const BACKOFF_FIRST = 250;
const BACKOFF_MOST = 10_000;
/** How long a full agent is left alone, in ms. */
const EXHAUSTED_PAUSE = 10_000;

interface Run {
  generation: number;
  abort: AbortController;
  heard: number;
  synced: boolean;
  /** It has told how certain the agent is. */
  told: boolean;
  over: boolean;
}

/**
 * Keeps an Observe stream open: opens the next one at Goodbye before it leaves the old one, connects again after cuts,
 * silence and sleep, and reports the gaps.
 */
export class Follower {
  private generation = 0;
  private current: Run | undefined;
  private next: Run | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private ticker: ReturnType<typeof setInterval> | undefined;
  private failures = 0;
  private lostSince: number | undefined;
  private lastTick = 0;
  private stopped = true;
  private paused = false;

  constructor(
    private readonly open: Open,
    private readonly sink: Sink,
    private readonly random: () => number = Math.random,
  ) {}

  start(): void {
    this.stopped = false;
    this.lastTick = Date.now();
    this.ticker = setInterval(() => this.tick(), TICK);
    this.sink.link({ state: "connecting", since: Date.now() });
    this.current = this.launch();
  }

  stop(): void {
    this.stopped = true;
    clearInterval(this.ticker);
    this.cancelTimer();
    this.end(this.current);
    this.end(this.next);
    this.current = this.next = undefined;
  }

  /** Leaves the stream while nobody looks. */
  pause(): void {
    if (this.stopped || this.paused) return;
    this.paused = true;
    this.cancelTimer();
    this.lostSince ??= Date.now();
    this.end(this.current);
    this.end(this.next);
    this.current = this.next = undefined;
    this.sink.link({ state: "paused", since: Date.now() });
  }

  /** The page is looked at again, the network is back, or the machine slept: does not wait for a dead stream. */
  wake(): void {
    if (this.stopped) return;
    if (this.paused) {
      this.paused = false;
      this.retry();
    } else if (this.current === undefined) {
      if (this.timer !== undefined) this.retry();
    } else if (Date.now() - this.current.heard > DOUBT) {
      this.silent(this.current);
    }
  }

  /** Tries again after a refusal. */
  again(): void {
    if (!this.stopped && this.current === undefined) this.retry();
  }

  private tick(): void {
    const now = Date.now();
    const slept = now - this.lastTick > TICK + 4_000 || now < this.lastTick;
    this.lastTick = now;
    if (slept) this.wake();
    const run = this.current;
    if (run !== undefined && now - run.heard > SILENCE) this.silent(run);
    if (this.next !== undefined && now - this.next.heard > SILENCE) this.ended(this.next, cut("no answer"), now);
  }

  private silent(run: Run): void {
    this.ended(run, cut("the stream fell silent"), run.heard);
  }

  private launch(): Run {
    this.generation += 1;
    const run: Run = {
      generation: this.generation,
      abort: new AbortController(),
      heard: Date.now(),
      synced: false,
      told: false,
      over: false,
    };
    void this.read(run);
    return run;
  }

  private async read(run: Run): Promise<void> {
    try {
      for await (const observation of this.open(run.abort.signal)) {
        if (run.over) return;
        run.heard = Date.now();
        this.hear(run, observation);
      }
      this.ended(run, cut("the stream ended"), Date.now());
    } catch (error) {
      this.ended(run, failureOf(error), Date.now());
    }
  }

  private hear(run: Run, observation: Observation): void {
    const what = observation.what;
    const newest = run.generation === this.generation;
    switch (what.case) {
      case "state":
        this.sink.state(what.value, run.generation, !run.synced);
        break;
      case "synced":
        this.becomeLive(run);
        break;
      case "certainty":
        run.told = true;
        if (newest) this.sink.certainty(what.value);
        break;
      case "goodbye":
        if (what.value.reason === "UNAUTHENTICATED") {
          const failure = failureOf(new ConnectError("the credential or its rights are no longer good", Code.Unauthenticated));
          this.ended(run, failure, Date.now());
        } else if (newest && this.timer === undefined) {
          // A random part, so that the streams of an agent that leaves do not all meet the next one at once.
          const delay = what.value.reconnectAfter;
          this.schedule(Math.min(delay, BACKOFF_MOST) * (1 + 0.1 * this.random()));
        }
        break;
      default:
        break;
    }
  }

  private becomeLive(run: Run): void {
    run.synced = true;
    this.failures = 0;
    if (run === this.next) {
      this.end(this.current);
      this.current = run;
      this.next = undefined;
    }
    this.sink.synced(run.generation);
    if (!run.told) this.sink.certainty(undefined);
    const now = Date.now();
    if (this.lostSince !== undefined) this.sink.gap(this.lostSince, now);
    this.lostSince = undefined;
    this.sink.link({ state: "live", since: now });
  }

  private ended(run: Run, failure: Failure, lost: number): void {
    if (run.over) return;
    this.end(run);
    if (this.stopped || this.paused) return;
    if (run === this.next) {
      this.next = undefined;
      if (this.current !== undefined) {
        this.schedule(this.backoff());
        return;
      }
    } else if (run === this.current) {
      this.current = this.next;
      this.next = undefined;
      if (run.synced) this.lostSince ??= lost;
      // The stream that follows on a Goodbye is on its way.
      if (this.current !== undefined) return;
    }
    if (["unauthenticated", "forbidden", "unimplemented", "invalid", "not found"].includes(failure.trouble)) {
      this.cancelTimer();
      this.sink.link({ state: "refused", since: this.lostSince ?? Date.now(), failure });
      return;
    }
    this.sink.link({ state: "lost", since: this.lostSince ?? lost, failure });
    if (this.timer !== undefined) return;
    if (failure.trouble === "exhausted") this.schedule(EXHAUSTED_PAUSE);
    else this.schedule(run.synced ? 0 : this.backoff());
  }

  private backoff(): number {
    const most = Math.min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** this.failures);
    this.failures += 1;
    return most * (0.5 + 0.5 * this.random());
  }

  private schedule(delay: number): void {
    this.cancelTimer();
    this.timer = setTimeout(() => this.retry(), delay);
  }

  private retry(): void {
    this.cancelTimer();
    if (this.stopped || this.paused || this.next !== undefined) return;
    if (this.current === undefined) this.current = this.launch();
    else this.next = this.launch();
  }

  private cancelTimer(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  private end(run: Run | undefined): void {
    if (run === undefined || run.over) return;
    run.over = true;
    run.abort.abort();
  }
}

function cut(detail: string): Failure {
  return { trouble: "unreachable", summary: "The connection to the agent was lost.", detail };
}
