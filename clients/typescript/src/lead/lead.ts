import { type ElectionError, Lost, NotElected, NotKnown } from "../errors.js";
import type { Logger } from "../log.js";
import { Deferred, TIMED_OUT, after, clamped, onAbort, reasonOf, within } from "../wait.js";
import { type Hooks, Told } from "./hooks.js";
import type { Seats } from "./seats.js";
import type { Settings } from "./settings.js";
import type { Joined, Listener } from "./stream.js";
import type { Streams } from "./streams.js";
import { Shared, Term } from "./term.js";
import type { Timer } from "./timer.js";
import { Alive, type Leads, Patience, Waiting, campaign, keep, resign } from "./unary.js";

/** How long an agent may take to confirm that a stream has given an election up, in ms, before a call does it. */
const LEAVE = 1_000;

/** @internal What all leaderships of an agent share. */
export interface Context extends Leads {
  readonly seats: Seats;
  readonly streams: Streams;
  readonly deaths: Timer;
  readonly log: Logger;
}

/** A place in a stream, and what is reported there. */
class Place implements Listener {
  readonly joined: Joined;
  /** The term, once it is granted; undefined if the caller falls back to calls. */
  readonly elected = new Deferred<Shared | undefined>();
  /** Calls take over. */
  readonly fallenBack = new Deferred<void>();
  /** The error when the patience is over. */
  last: ElectionError = new NotKnown("no answer in time");
  private readonly tell: Waiting;
  private term: Shared | undefined;

  constructor(streams: Streams, settings: Settings, told: Told, term: Shared | undefined) {
    this.tell = new Waiting(told);
    this.joined = streams.join(settings, told, this, term);
  }

  waiting(leader: string | undefined): void {
    this.tell.tell({ is: "waiting", leader });
    this.last = new NotElected(leader);
  }

  granted(term: Shared): void {
    this.term = term;
    this.elected.resolve(term);
  }

  /**
   * The candidate does not want to lead any more. What was granted at this moment is given up: no work ran under it.
   */
  abandon(): void {
    if (this.term === undefined) {
      this.joined.lapse();
      return;
    }
    this.term.giveUp();
    const lapse = () => this.joined.lapse();
    within(this.joined.leave(), LEAVE).then(lapse, lapse);
  }

  notKnown(error: ElectionError): void {
    this.tell.tell({ is: "notKnown", reason: error.message });
    this.last = error;
  }

  fallBack(): void {
    this.elected.resolve(undefined);
    this.fallenBack.resolve();
  }
}

/**
 * A term that is extended in the background until it is given up.
 *
 * Give it up when the work has ended, by `resign` or by `await using`: the next candidate then leads at once. A term
 * that is lost because it could not be extended goes on being extended for the grace, which is the time that the work
 * has to end; then it lapses.
 */
export class HeldTerm extends Term {
  private readonly over = new AbortController();
  private readonly forget: () => void;
  private grace: (() => void) | undefined;
  private resigning: Promise<void> | undefined;

  /** @internal */
  constructor(
    private readonly context: Context,
    private readonly settings: Settings,
    private readonly told: Told,
    shared: Shared,
    private readonly place: Place | undefined,
    private readonly giveBackSeat: () => void,
    extendAt: number | undefined,
    signal: AbortSignal | undefined,
  ) {
    super(shared);
    this.forget = onAbort(signal, () => {
      if (!shared.abort.signal.aborted) shared.abort.abort(reasonOf(signal!));
    });
    if (place === undefined) this.keep(extendAt ?? performance.now());
    // How long ago the stream extended it last is not known.
    else void place.fallenBack.promise.then(() => this.keep(performance.now()));
    shared.onEnd((why) => {
      // The present leader has a larger token: there is nothing to extend.
      if (why !== "TermOver" && why !== "ClockJumped") this.stop();
      else if (!this.over.signal.aborted) this.grace = after(clamped(settings.grace), () => this.tooLong());
    });
  }

  private keep(extendAt: number): void {
    const { pool, log } = this.context;
    if (this.over.signal.aborted) return;
    const alive = new Alive(this.told.hooks.alive);
    keep(pool, this.settings, this.told, alive, this.shared, extendAt, this.over.signal).catch((error: unknown) => {
      if (!this.over.signal.aborted) log.error?.("a term is not extended any more", { error });
    });
  }

  private tooLong(): void {
    const { kind, election } = this;
    this.context.log.error?.("the work has not ended within the grace after the loss: the term lapses", { kind, election });
    this.told.state({ is: "lapsing" });
    this.lapse();
  }

  /** Extends no more. */
  private stop(): void {
    this.over.abort();
    this.grace?.();
    this.forget();
  }

  /**
   * Lets the term lapse: it is not extended any more, and not given up. For work that may go on: nobody else leads
   * before `validUntil`.
   */
  lapse(): void {
    if (this.resigning !== undefined) return;
    this.resigning = Promise.resolve();
    this.stop();
    this.shared.giveUp();
    this.place?.joined.lapse();
    const { clock, validUntil } = this.shared;
    const timer: unknown = setTimeout(this.giveBackSeat, clamped(validUntil - clock.now()));
    // A seat that is not free yet does not keep the process alive.
    (timer as { unref?: () => void }).unref?.();
  }

  /**
   * Gives the leadership up, at once for the next candidate. No work may be under way that needs it.
   *
   * @throws {@link Lost} if the candidate did not lead any more; {@link NotKnown}, {@link Unreachable} or {@link
   *   Refused} if it could not be given up: the term lapses
   */
  resign(): Promise<void> {
    this.resigning ??= this.giveUp();
    return this.resigning;
  }

  private async giveUp(): Promise<void> {
    const { shared, place, settings, context } = this;
    const known = shared.look();
    // First, so that no extension is sent after this.
    this.stop();
    shared.giveUp();
    if (known === "HeldByOther" || known === "StaleToken" || known === "NoTerm") {
      // There is nothing to give up.
      place?.joined.lapse();
      this.giveBackSeat();
      throw new Lost(known);
    }
    let seat = () => {
      const timer: unknown = setTimeout(this.giveBackSeat, clamped(shared.validUntil - shared.clock.now()));
      (timer as { unref?: () => void }).unref?.();
    };
    try {
      const left = place === undefined ? "not joined" : await within(place.joined.leave(), LEAVE);
      if (left === "not joined") await resign(context.pool, settings, shared.token, false);
      else if (left === "not known" || left === TIMED_OUT) await resign(context.pool, settings, shared.token, true);
      else if (left !== "resigned") throw new Lost(left.lost);
      seat = this.giveBackSeat;
    } catch (error) {
      if (error instanceof Lost) seat = this.giveBackSeat;
      throw error;
    } finally {
      place?.joined.lapse();
      seat();
    }
    const { kind, election } = settings;
    context.log.info?.("resigned", { kind, election, token: shared.token });
    this.told.state({ is: "resigned" });
  }

  /** The work has ended: gives the leadership up unless it is another's. What fails is logged: then the term lapses. */
  async end(): Promise<void> {
    const { shared } = this;
    const lost = shared.look();
    const isOver = shared.clock.now() >= shared.validUntil;
    if (this.resigning !== undefined && isOver) return;
    if (lost === "HeldByOther" || lost === "StaleToken") {
      await this.resign().catch(() => {});
      return;
    }
    try {
      await this.resign();
    } catch (error) {
      if (error instanceof Lost) return;
      this.context.log.warn?.("the work has ended, but its term was not given up: it lapses", { error });
    }
  }
}

export interface HeldTerm {
  /** As `end`, for `await using`. Where the runtime has `Symbol.asyncDispose`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** @internal Gives a class what `await using` needs, where the runtime has that. */
export function disposable(prototype: HeldTerm): void {
  const { asyncDispose } = Symbol as { asyncDispose?: symbol };
  if (asyncDispose === undefined || Object.hasOwn(prototype, asyncDispose)) return;
  Object.defineProperty(prototype, asyncDispose, {
    configurable: true,
    writable: true,
    value(this: HeldTerm) {
      return this.end();
    },
  });
}

/**
 * Waits until elected.
 *
 * @throws NotElected after the time to wait, NotKnown or Unreachable if no agent answered at its end; Refused and
 *   ConfigError at once; the signal's reason
 * @internal
 */
export async function start(
  context: Context,
  settings: Settings,
  hooks: Hooks,
  signal: AbortSignal | undefined,
): Promise<HeldTerm> {
  signal?.throwIfAborted();
  const { pool, streams, seats, deaths, log } = context;
  const told = new Told(hooks, log);
  const patience = new Patience(settings.wait);
  const giveBack = await seats.take(settings, patience.left(), signal);
  // A leadership of this process has not ended.
  if (giveBack === undefined) throw new NotElected(settings.candidate);
  let place: Place | undefined;
  try {
    let term: Shared | undefined;
    let extendAt: number | undefined;
    if (settings.wait > 0 && streams.areOffered()) {
      place = new Place(streams, settings, told, undefined);
      const elected = await within(place.elected.promise, patience.left(), signal);
      if (elected === TIMED_OUT) throw place.last;
      term = elected;
      if (term === undefined) {
        place.abandon();
        place = undefined;
      }
    }
    if (term === undefined) {
      const granted = await campaign(context, settings, told, patience, signal);
      extendAt = granted.extendAt;
      const { token, validUntil, anchor } = granted;
      term = new Shared(settings, token, validUntil, anchor, settings.margin, pool.clock, told, log, deaths);
      if (streams.areOffered()) place = new Place(streams, settings, told, term);
    }
    const { kind, election, candidate } = settings;
    log.info?.("elected", { kind, election, candidate, token: term.token });
    told.state({ is: "leading", token: term.token, validUntil: term.publicUntil() });
    return new HeldTerm(context, settings, told, term, place, giveBack, extendAt, signal);
  } catch (error) {
    place?.abandon();
    giveBack();
    throw error;
  }
}

/**
 * Waits until elected, runs the work, and gives the leadership up after it has ended.
 *
 * @internal
 */
export async function lead<T>(
  context: Context,
  settings: Settings,
  hooks: Hooks,
  signal: AbortSignal | undefined,
  work: (term: Term) => T | Promise<T>,
): Promise<T> {
  const term = await start(context, settings, hooks, signal);
  let ended: { output: T } | { error: unknown };
  try {
    ended = { output: await work(term) };
  } catch (error) {
    ended = { error };
  }
  const { lost } = term;
  await term.end();
  if (lost !== undefined) throw new Lost(lost, "error" in ended ? { cause: ended.error } : undefined);
  if ("error" in ended) throw ended.error;
  return ended.output;
}
