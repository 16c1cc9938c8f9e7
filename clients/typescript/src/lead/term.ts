import type { Clock, Moment } from "../clock.js";
import { Lost, type LostReason } from "../errors.js";
import type { Logger } from "../log.js";
import { Deferred } from "../wait.js";
import type { Told } from "./hooks.js";
import type { Timed, Timer } from "./timer.js";

/**
 * A term of leadership, as the work of the leader sees it.
 *
 * The clock decides: `check`, `remaining` and `signal` read it each time, whatever the network or the event loop do.
 * A term that was lost stays lost.
 */
export class Term {
  /** @internal */
  constructor(
    /** @internal */
    protected readonly shared: Shared,
  ) {}

  /** The fencing token: larger than that of every leader before. Give it to the storage that keeps the work. */
  get token(): number {
    return this.shared.token;
  }

  /** The election's name. */
  get election(): string {
    return this.shared.election;
  }

  /** The election's kind. */
  get kind(): string {
    return this.shared.kind;
  }

  /** The name that the leader campaigned under. */
  get candidate(): string {
    return this.shared.candidate;
  }

  /**
   * Until when no other candidate is elected unless the term is given up, on the scale of `performance.now()`. It moves
   * with each extension.
   */
  get validUntil(): number {
    return this.shared.publicUntil();
  }

  /** For how many ms the leader may act: until `validUntil`, and not at all once the term is lost. */
  remaining(): number {
    const { shared } = this;
    return shared.look() === undefined ? Math.max(shared.validUntil - shared.clock.now(), 0) : 0;
  }

  /**
   * Checks that the leader may still act.
   *
   * @throws {@link Lost} if it may not, from the moment at which `signal` is aborted by the loss
   */
  check(): void {
    const lost = this.shared.look();
    if (lost !== undefined) throw new Lost(lost);
  }

  /**
   * Is aborted with a {@link Lost} when the leadership is lost: at once when another leads, and at the latest the
   * margin before `validUntil`. Also with the reason of the caller's own signal, which does not end the term: it is
   * given up when the work has ended.
   */
  get signal(): AbortSignal {
    this.shared.look();
    return this.shared.abort.signal;
  }

  /** Why the leadership is lost; undefined while it is not. */
  get lost(): LostReason | undefined {
    return this.shared.look();
  }

  /** Whether the last attempts to extend the term have failed without a definite denial. */
  get inJeopardy(): boolean {
    this.shared.look();
    return this.shared.jeopardy;
  }

  /**
   * Resolves with `validUntil` when that has moved.
   *
   * @throws {@link Lost}
   */
  renewed(): Promise<number> {
    return this.shared.renewed();
  }
}

/** @internal Whose term it is. */
export interface Who {
  readonly kind: string;
  readonly election: string;
  readonly candidate: string;
}

/** @internal A term, shared by what extends it and the work under it. */
export class Shared implements Timed {
  readonly kind: string;
  readonly election: string;
  readonly candidate: string;
  readonly abort = new AbortController();
  jeopardy = false;
  private why: LostReason | undefined;
  private reported = false;
  private renewal: Deferred<number> | undefined;
  private readonly losses: ((why: LostReason) => void)[] = [];

  constructor(
    who: Who,
    readonly token: number,
    /** By the clock of terms. */
    public validUntil: number,
    /** Before what gave the term was sent. */
    private anchor: Moment,
    private readonly margin: number,
    readonly clock: Clock,
    private readonly told: Told,
    private readonly log: Logger,
    private readonly deaths: Timer,
  ) {
    this.kind = who.kind;
    this.election = who.election;
    this.candidate = who.candidate;
    deaths.watch(validUntil - margin, this);
  }

  publicUntil(): number {
    return this.validUntil - this.clock.asleep();
  }

  /** Why it is lost, by what is known and by the clock. */
  look(): LostReason | undefined {
    if (this.why !== undefined) return this.why;
    const now = this.clock.now();
    if (this.clock.hasJumped(this.anchor)) this.lose("ClockJumped");
    else if (now >= this.validUntil - this.margin) this.lose("TermOver");
    return this.why;
  }

  due(): number | undefined {
    return this.look() === undefined ? this.validUntil - this.margin : undefined;
  }

  /** The leadership is lost, unless it was before. */
  lose(why: LostReason): void {
    if (this.why !== undefined) return;
    this.reported = true;
    this.end(why);
    const { kind, election, token } = this;
    this.log.warn?.("leadership lost", { kind, election, token, reason: why });
    this.told.lost(why);
  }

  /** The leader gives the term up: work that still checks it must not act. That is no loss to report. */
  giveUp(): void {
    if (this.why === undefined) this.end("NoTerm");
  }

  /** Why it was lost, as it was reported: undefined also when it was given up. */
  get loss(): LostReason | undefined {
    return this.reported ? this.why : undefined;
  }

  private end(why: LostReason): void {
    this.why = why;
    this.deaths.forget(this);
    const error = new Lost(why);
    if (!this.abort.signal.aborted) this.abort.abort(error);
    this.renewal?.reject(error);
    this.renewal = undefined;
    for (const call of this.losses.splice(0)) call(why);
  }

  /** Calls when the term has ended, however; at once if it has. */
  onEnd(call: (why: LostReason) => void): void {
    const why = this.look();
    if (why === undefined) this.losses.push(call);
    else call(why);
  }

  renewed(): Promise<number> {
    const lost = this.look();
    if (lost !== undefined) return Promise.reject(new Lost(lost));
    if (this.renewal === undefined) {
      this.renewal = new Deferred();
      // The waiter may have gone.
      this.renewal.promise.catch(() => {});
    }
    return this.renewal.promise;
  }

  /** The term was extended. A promise that lasts longer still holds, and a loss that was reported stays one. */
  extend(validUntil: number, anchor: Moment): void {
    // If the time was over before the extension arrived, the loss has been reported to the work, or is about to be.
    const lost = this.look();
    if (validUntil > this.validUntil) {
      this.validUntil = validUntil;
      this.anchor = anchor;
      if (lost === undefined) {
        this.renewal?.resolve(this.publicUntil());
        this.renewal = undefined;
      }
    }
    if (this.jeopardy && lost === undefined) {
      this.told.state({ is: "leading", token: this.token, validUntil: this.publicUntil() });
    }
    this.jeopardy = false;
  }

  /** An attempt to extend the term has failed, and it is not known whether the caller leads. */
  jeopardize(reason: string): void {
    if (this.jeopardy || this.look() !== undefined) return;
    this.jeopardy = true;
    const { kind, election, token } = this;
    this.log.warn?.("leadership in jeopardy: the term was not extended", { kind, election, token, reason });
    this.told.jeopardy(new Term(this), reason);
  }
}
