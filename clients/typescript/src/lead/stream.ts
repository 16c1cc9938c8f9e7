import { type ElectionError, type LostReason, NotKnown, lostReason } from "../errors.js";
import { requestId } from "../calls.js";
import { describe } from "../pool.js";
import { type LeadEvent, type Pong, type Standing, Standing_Is as Is } from "../proto.js";
import { tokenFrom } from "../types.js";
import { Deferred, after, clamped, jittered, sleep } from "../wait.js";
import type { Told } from "./hooks.js";
import { type NotOpen, Session, type What, open } from "./session.js";
import type { Settings } from "./settings.js";
import { Shared } from "./term.js";
import type { Timer } from "./timer.js";
import { type Alive, type Leads, enough } from "./unary.js";

/** The shortest and the longest time in which a ping is to be answered before another agent is tried, in ms. */
const PONG = [250, 750] as const;
/** How long an agent may take to confirm that an election has left, in ms. */
const LEAVE = 2_000;
/** After how many attempts in a row streams are given up: what is between may let calls pass only. */
const FAILURES = 2;
/** The longest pause between attempts to open a stream, in ms. */
const PAUSE = 500;

/** @internal What a stream reports to a leadership on it. */
export interface Listener {
  waiting(leader: string | undefined): void;
  /** The term is extended from now on. */
  granted(term: Shared): void;
  /** There is no stream at the moment. */
  notKnown(error: ElectionError): void;
  /** The election has left the stream: calls take over. */
  fallBack(): void;
}

/** @internal How an election has left. `not joined`: nothing was sent; `not known`: it may have been given up. */
export type Left = "resigned" | "not joined" | "not known" | { lost: LostReason };

/** How pings extend a term: only those after this one do, as the agent had received it when it granted the term. */
interface Extends {
  readonly after: bigint;
  /** For how many ms, from when the ping was sent. */
  readonly by: number;
}

type Stage =
  /** Joined without a token, or waits to be. */
  | { is: "waiting" }
  /** Granted, but for a short time only: nobody works under it yet. */
  | { is: "unconfirmed"; token: number; extends: Extends }
  /** Somebody works under it. */
  | { is: "leading"; term: Shared; extends: Extends | undefined }
  /** No work is left under it except what the clock ends. It is given up when its time is over. */
  | { is: "lapsing"; token: number; until: number }
  /** It is being given up. */
  | { is: "leaving"; token: number; since: number; left: Deferred<Left> | undefined };

/** An election that was joined, or is about to be. */
class Entry {
  stage: Stage;

  constructor(
    readonly settings: Settings,
    readonly told: Told,
    readonly listener: Listener,
    /** Of the present attempt to be elected. */
    public requestId: string,
    term: Shared | undefined,
  ) {
    this.stage = term === undefined ? { is: "waiting" } : { is: "leading", term, extends: undefined };
  }

  /** The token that it has; 0: none. */
  token(): number {
    const { stage } = this;
    switch (stage.is) {
      case "waiting":
        return 0;
      case "leading":
        return stage.term.token;
      default:
        return stage.token;
    }
  }

  /** The message that joins it to a new stream. Undefined: it is about to leave. */
  join(): What | undefined {
    if (this.stage.is === "leaving") return undefined;
    const { kind, election, term, value } = this.settings;
    const token = this.token();
    const join = { kind, election, term, value, requestId: token === 0 ? this.requestId : "", token: BigInt(token) };
    return { case: "join", value: join };
  }

  leave(token: number): What {
    const { kind, election } = this.settings;
    return { case: "leave", value: { kind, election, token: BigInt(token) } };
  }

  /** It has left the stream: notifies the leadership. */
  end(why: LostReason | undefined): void {
    const { stage } = this;
    if (stage.is === "leading" && why !== undefined) stage.term.lose(why);
    if (stage.is === "leaving") stage.left?.resolve(why === undefined ? "resigned" : { lost: why });
  }

  /** Calls take over. */
  fallBack(): void {
    this.listener.fallBack();
    if (this.stage.is === "leaving") this.stage.left?.resolve("not known");
  }
}

/** @internal A place in a stream. */
export interface Joined {
  /** Gives the election up. */
  leave(): Promise<Left>;
  /** What was led is not extended any more. */
  lapse(): void;
}

interface Joining {
  readonly number: number;
  readonly settings: Settings;
  readonly told: Told;
  readonly listener: Listener;
  readonly term: Shared | undefined;
}

/**
 * A stream for elections of a candidate with the same term. A ping extends all terms that it leads. It pings, opens the
 * next stream when an agent says goodbye or keeps silent, and goes on there with the tokens. Calls do what an agent
 * does not offer or refuses, and report better errors.
 *
 * @internal
 */
export class LeadStream {
  private readonly entries = new Map<number, Entry>();
  private readonly names = new Map<string, number>();
  /** Elections that join when the one of the same name has left. */
  private queue: Joining[] = [];
  private session: Session | undefined;
  private opening: AbortController | undefined;
  /** The present stream ends soon, whatever it answers. */
  private leaving = false;
  /**
   * What the present stream has been good for. `answered`: a ping was. `heard`: the agent has reported on an election.
   */
  private worth: "nothing" | "heard" | "answered" = "nothing";
  /** How long a ping may be unanswered, in ms. */
  private pong: number;
  private pause = 0;
  /** How often in a row agents were reached and gave no stream. */
  private failures = 0;
  private pingAt = 0;
  private asking = false;
  private timer: (() => void) | undefined;
  private timerAt = Infinity;
  private numbers = 0;
  private lapsing = 0;
  private readonly pingEvery: number;
  /** How many leaderships are on it, or want to be. */
  size = 0;
  /** It is of no use any more. */
  over = false;

  constructor(
    private readonly leads: Leads,
    private readonly deaths: Timer,
    readonly candidate: string,
    readonly term: number,
    private readonly alive: Alive,
    /** Agents offer no streams. */
    private readonly notOffered: () => void,
  ) {
    this.pingEvery = Math.min(Math.max(Math.floor(term / 3), 100), 60_000);
    this.pong = Math.min(Math.max(this.pingEvery / 3, PONG[0]), PONG[1]);
  }

  private get pool() {
    return this.leads.pool;
  }

  /** Joins an election. */
  add(settings: Settings, told: Told, listener: Listener, term: Shared | undefined): Joined {
    const number = (this.numbers += 1);
    this.size += 1;
    let gone = false;
    const joined: Joined = {
      leave: () => this.leave(number),
      lapse: () => {
        if (gone) return;
        gone = true;
        this.size -= 1;
        this.lapse(number);
        if (this.size === 0) this.stop();
      },
    };
    // After the caller has what this returns.
    queueMicrotask(() => {
      if (gone) return;
      if (this.over) listener.fallBack();
      else this.join({ number, settings, told, listener, term });
    });
    return joined;
  }

  /** No leadership is left. The terms lapse. */
  private stop(): void {
    if (this.over) return;
    this.over = true;
    this.timer?.();
    // It is not opened again in any case.
    this.opening?.abort();
    this.opening = undefined;
    this.session?.end();
    this.session = undefined;
    // Waiters for a confirmation go on by calls.
    for (const entry of this.entries.values()) {
      if (entry.stage.is === "leaving") entry.stage.left?.resolve("not known");
    }
    this.entries.clear();
  }

  private key(settings: { kind: string; election: string }): string {
    return `${settings.kind}\n${settings.election}`;
  }

  private join(joining: Joining): void {
    const { settings } = joining;
    const key = this.key(settings);
    if (this.names.has(key)) {
      this.queue.push(joining);
      return;
    }
    const { told, listener, term, number } = joining;
    const entry = new Entry(settings, told, listener, requestId(this.leads.random), term);
    const join = entry.join();
    if (join !== undefined) this.session?.send(join);
    this.names.set(key, number);
    this.entries.set(number, entry);
    if (this.session === undefined && this.opening === undefined) this.open(0);
  }

  private joinQueued(): void {
    const queue = this.queue;
    this.queue = [];
    for (const joining of queue) this.join(joining);
  }

  private remove(number: number): Entry | undefined {
    const entry = this.entries.get(number);
    if (entry === undefined) return undefined;
    if (entry.stage.is === "lapsing") this.lapsing -= 1;
    this.entries.delete(number);
    this.names.delete(this.key(entry.settings));
    return entry;
  }

  private become(entry: Entry, stage: Stage): void {
    this.lapsing += Number(stage.is === "lapsing") - Number(entry.stage.is === "lapsing");
    entry.stage = stage;
  }

  private async leave(number: number): Promise<Left> {
    const entry = this.entries.get(number);
    if (entry === undefined) return "not joined";
    if (this.session === undefined) {
      // No agent to send Leave to: a call resigns.
      this.remove(number);
      return "not joined";
    }
    const left = new Deferred<Left>();
    const token = entry.token();
    this.become(entry, { is: "leaving", token, since: performance.now(), left });
    this.session.send(entry.leave(token));
    return left.promise;
  }

  private lapse(number: number): void {
    this.queue = this.queue.filter((joining) => joining.number !== number);
    const entry = this.entries.get(number);
    if (entry === undefined) return;
    const { stage } = entry;
    if (stage.is === "leading") {
      this.become(entry, { is: "lapsing", token: stage.term.token, until: stage.term.validUntil });
      this.arm();
    } else if (stage.is === "waiting" || stage.is === "unconfirmed") {
      // Nobody has worked under it.
      this.become(entry, { is: "leaving", token: 0, since: performance.now(), left: undefined });
      if (this.session === undefined) this.remove(number);
      else this.session.send(entry.leave(0));
    }
  }

  /** Begins to open another stream. */
  private open(wait: number): void {
    this.opening?.abort();
    const opening = new AbortController();
    this.opening = opening;
    const { signal } = opening;
    const leads = [...this.entries.values()].some(({ stage }) => stage.is === "leading");
    const opened = async (): Promise<Session | NotOpen> => {
      if (wait > 0) await sleep(wait, signal);
      // To join with a token extends its term.
      const dead = leads ? await this.alive.ask(this.pingEvery / 2) : undefined;
      if (dead !== undefined) return { not: "alive", why: dead };
      return open(this.pool, this.candidate, this.pingEvery, leads, signal);
    };
    opened().then(
      (result) => {
        if (this.opening !== opening) {
          if (result instanceof Session) result.end();
          return;
        }
        this.opening = undefined;
        if (result instanceof Session) this.opened(result);
        else this.notOpened(result);
        this.arm();
      },
      (error: unknown) => {
        if (this.opening !== opening) return;
        this.opening = undefined;
        this.notOpened({ not: "reached", error: new NotKnown(describe(error)), silent: false });
        this.arm();
      },
    );
  }

  /** Goes on with a new stream, and leaves the old one. */
  private opened(session: Session): void {
    this.session?.end();
    this.session = session;
    this.leaving = false;
    this.worth = "nothing";
    this.pong = this.pongWithin(session.answersIn);
    for (const { stage } of this.entries.values()) {
      // Until the new stream says that it leads.
      if (stage.is === "leading") stage.extends = undefined;
    }
    // The old stream received their Leave, or did not.
    this.forgetLeaving(() => true);
    for (const entry of this.entries.values()) {
      const join = entry.join();
      if (join !== undefined) session.send(join);
    }
    // Hello counts as the first ping.
    this.pingAt = performance.now() + this.pingEvery;
    void this.read(session);
  }

  private notOpened(why: NotOpen): void {
    switch (why.not) {
      case "offered":
        this.pool.log.debug?.("the agent offers no streams to lead by: falling back to calls", {});
        this.notOffered();
        return this.fallBack();
      case "permitted":
        this.pool.log.warn?.("the agent refuses a stream to lead by: falling back to calls", { why: why.why });
        return this.fallBack();
      case "alive":
        return this.openAgain(new NotKnown(why.why));
      case "reached":
        // Silence took as long as several failures.
        if (why.error instanceof NotKnown) this.failures += why.silent ? FAILURES : 1;
        if (this.failures >= FAILURES && this.session === undefined) return this.giveUp(why.error.message);
        return this.openAgain(why.error);
    }
  }

  private openAgain(error: ElectionError): void {
    this.pool.log.debug?.("no stream to lead by", { why: error.message });
    if (this.session !== undefined) {
      if (this.session.isLate()) this.jeopardize("a ping is not answered");
    } else {
      this.jeopardize(error.message);
      for (const { stage, listener } of this.entries.values()) {
        if (stage.is === "waiting") listener.notKnown(error);
      }
    }
    this.open(this.nextPause());
  }

  /** For how long to wait before the next attempt, which grows until a stream has been of use. */
  private nextPause(): number {
    this.pause = Math.min(Math.max(this.pause * 2, 50), PAUSE);
    return jittered(this.pause);
  }

  private async read(session: Session): Promise<void> {
    let why = "the agent has ended the stream";
    try {
      for (;;) {
        const event = await session.events.next();
        if (this.session !== session) return;
        if (event.done === true) break;
        this.message(session, event.value);
        this.arm();
      }
    } catch (error) {
      why = describe(error);
    }
    if (this.session !== session) return;
    this.broken(session, why);
    this.arm();
  }

  private broken(session: Session, why: string): void {
    this.pool.log.debug?.("a stream to lead by has ended", { why });
    this.session = undefined;
    session.end();
    this.pool.discard(session.connection);
    this.pool.avoid(session.route);
    this.forgetLeaving(() => true);
    if (this.opening !== undefined) return;
    if (this.worth === "answered") return this.open(0);
    // Opened again at once, one that ends as soon as it is open would keep both sides busy with nothing else.
    if (this.worth === "nothing") this.failures += 1;
    if (this.failures >= FAILURES) this.giveUp(why);
    else this.open(this.nextPause());
  }

  /** Gives up on streams. */
  private giveUp(why: string): void {
    this.pool.log.warn?.("there is no stream to lead by: falling back to calls", { why });
    this.notOffered();
    this.fallBack();
  }

  /** Whether these were given up is not known: calls determine it, if a caller waits. */
  private forgetLeaving(which: (since: number) => boolean): void {
    for (const [number, { stage }] of this.entries) {
      if (stage.is === "leaving" && which(stage.since)) this.remove(number)?.fallBack();
    }
    this.joinQueued();
  }

  /** A ping is not answered: another agent may do better. The old stream stays until there is a new one. */
  private silent(session: Session): void {
    if (session.isLate()) this.jeopardize("a ping is not answered");
    this.pool.discard(session.connection);
    this.pool.avoid(session.route);
    // The agent may be slow rather than gone.
    this.pong = Math.min(this.pong * 2, this.pingEvery);
    this.open(0);
  }

  /** How long an agent that took so long to answer may leave a ping unanswered. */
  private pongWithin(answersIn: number): number {
    const usual = Math.min(Math.max(this.pingEvery / 3, PONG[0]), PONG[1]);
    // No longer than this, so that there is time for another agent.
    return Math.min(Math.max(usual, 2 * answersIn), Math.max(this.pingEvery, usual));
  }

  private jeopardize(reason: string): void {
    for (const { stage } of this.entries.values()) {
      if (stage.is === "leading") stage.term.jeopardize(reason);
    }
  }

  /** Sets the timer for what is due next. */
  private arm(): void {
    if (this.over) return;
    let at = Infinity;
    if (this.session !== undefined) {
      if (!this.asking) at = this.pingAt;
      const since = this.opening === undefined ? this.session.silentSince() : undefined;
      if (since !== undefined) at = Math.min(at, since + this.pong);
    }
    if (this.lapsing > 0) at = Math.min(at, this.lapseAt());
    if (this.timer !== undefined && this.timerAt <= at) return;
    this.timer?.();
    this.timer = undefined;
    this.timerAt = at;
    if (at === Infinity) return;
    this.timer = after(clamped(at - performance.now()), () => {
      this.timer = undefined;
      this.timerAt = Infinity;
      this.due();
      this.arm();
    });
  }

  /** When the first of the lapsing terms is over, on the scale of performance.now(). */
  private lapseAt(): number {
    let first = Infinity;
    for (const { stage } of this.entries.values()) {
      if (stage.is === "lapsing") first = Math.min(first, stage.until);
    }
    return first - this.pool.clock.asleep();
  }

  private due(): void {
    const now = performance.now();
    const { session } = this;
    if (session !== undefined) {
      if (!this.asking && now >= this.pingAt) this.pingDue(session);
      const since = this.opening === undefined ? session.silentSince() : undefined;
      if (since !== undefined && now >= since + this.pong) this.silent(session);
    }
    if (this.lapsing > 0) this.lapsed();
  }

  private pingDue(session: Session): void {
    const now = performance.now();
    this.forgetLeaving((since) => now - since > LEAVE);
    this.pingAt = now + this.pingEvery;
    this.asking = true;
    void this.alive.ask(this.pingEvery / 2).then((dead) => {
      this.asking = false;
      if (this.over) return;
      if (dead === undefined) {
        if (this.session === session) session.ping();
        else this.session?.ping();
      } else {
        this.jeopardize(dead);
        this.pingAt = performance.now() + jittered(this.pingEvery / 4);
      }
      this.arm();
    });
  }

  /** The time of terms under which nobody works is over. */
  private lapsed(): void {
    const now = this.pool.clock.now();
    for (const [number, entry] of this.entries) {
      const { stage } = entry;
      if (stage.is !== "lapsing" || now < stage.until) continue;
      // The clock ends the term for work that still checks it. The pings went on for the others.
      this.become(entry, { is: "leaving", token: stage.token, since: performance.now(), left: undefined });
      if (this.session === undefined) this.remove(number);
      else this.session.send(entry.leave(stage.token));
    }
  }

  private fallBack(): void {
    this.over = true;
    this.timer?.();
    this.opening?.abort();
    this.opening = undefined;
    this.session?.end();
    this.session = undefined;
    const entries = [...this.entries.values()];
    this.entries.clear();
    for (const entry of entries) entry.fallBack();
    for (const { listener } of this.queue) listener.fallBack();
    this.queue = [];
  }

  private message(session: Session, event: LeadEvent): void {
    const { what } = event;
    switch (what.case) {
      case "standing":
        this.standing(session, what.value);
        if (this.worth === "nothing") this.worth = "heard";
        break;
      case "pong":
        this.ponged(session, what.value);
        this.worth = "answered";
        break;
      case "goodbye": {
        const { reason, reconnectAfter } = what.value;
        this.pool.log.debug?.("a stream to lead by is about to end", { reason });
        // Its connection ends, too; an agent that shuts down does not come back soon.
        this.pool.discard(session.connection);
        if (reason !== "AGE") this.pool.avoid(session.route);
        this.leaving = true;
        this.open(this.worth === "nothing" ? Math.max(reconnectAfter, this.nextPause()) : reconnectAfter);
        break;
      }
      default:
        break;
    }
  }

  private ponged(session: Session, pong: Pong): void {
    const sent = session.sent(pong.seq);
    session.answered(pong.seq);
    this.pong = this.pongWithin(session.answersIn);
    this.failures = 0;
    this.pause = 0;
    if (!this.leaving) {
      // The stream works, after all.
      this.opening?.abort();
      this.opening = undefined;
    }
    // A listed election was not extended, or carries its own validity.
    const listed = new Set(pong.standings.map((standing) => this.key(standing)));
    for (const [number, { stage, settings }] of this.entries) {
      const extend = "extends" in stage ? stage.extends : undefined;
      if (extend === undefined || pong.seq <= extend.after) continue;
      if (listed.size > 0 && listed.has(this.key(settings))) continue;
      if (stage.is === "leading") stage.term.extend(sent.moment.at + extend.by, sent.moment);
      else if (stage.is === "unconfirmed") this.granted(number, stage.token, pong.seq, extend.by, extend.by, false, session);
    }
    for (const standing of pong.standings) this.standing(session, standing);
  }

  private standing(session: Session, standing: Standing): void {
    const number = this.names.get(this.key(standing));
    const entry = number === undefined ? undefined : this.entries.get(number);
    if (number === undefined || entry === undefined) return;
    const { stage } = entry;
    switch (standing.is) {
      case Is.WAITING:
        if (stage.is === "waiting") entry.listener.waiting(standing.leader?.name);
        break;
      case Is.LEADING: {
        const { ofPing, validFor, pingValidFor, provisional } = standing;
        this.granted(number, tokenFrom(standing.token), ofPing, validFor, pingValidFor, provisional, session);
        break;
      }
      case Is.JEOPARDY:
        if (stage.is === "leading") {
          stage.extends = undefined;
          stage.term.jeopardize(standing.reason);
        }
        break;
      case Is.LOST:
        if (stage.is === "waiting" || stage.is === "unconfirmed") this.campaignAgain(entry);
        else this.ended(number, lostReason(standing.reason) ?? "NoTerm");
        break;
      case Is.RESIGNED:
        if (stage.is === "leaving") this.ended(number, undefined);
        // Somebody gave it up in the candidate's name.
        else if (stage.is === "leading" && stage.term.token === tokenFrom(standing.token)) this.ended(number, "NoTerm");
        break;
      case Is.REFUSED:
        this.pool.log.debug?.("a stream to lead by refuses an election: falling back to calls", {
          reason: standing.reason,
        });
        this.remove(number)?.fallBack();
        this.joinQueued();
        break;
      default:
        break;
    }
  }

  private ended(number: number, why: LostReason | undefined): void {
    this.remove(number)?.end(why);
    this.joinQueued();
  }

  /** What was granted was lost before anybody worked under it. */
  private campaignAgain(entry: Entry): void {
    entry.requestId = requestId(this.leads.random);
    this.become(entry, { is: "waiting" });
    const join = entry.join();
    if (join !== undefined) this.session?.send(join);
  }

  /** The agent reports that the caller leads: for so many ms, counted from when the caller sent a ping. */
  private granted(
    number: number,
    token: number,
    ofPing: bigint,
    validFor: number,
    by: number,
    provisional: boolean,
    session: Session,
  ): void {
    const entry = this.entries.get(number);
    if (entry === undefined) return;
    const { stage, settings, told, listener } = entry;
    const { clock, log } = this.pool;
    const { moment } = session.sent(ofPing);
    const validUntil = moment.at + validFor;
    const extending: Extends = { after: ofPing, by };
    if (stage.is === "leading") {
      if (token === stage.term.token) {
        stage.term.extend(validUntil, moment);
        stage.extends = extending;
      } else if (token > stage.term.token) {
        this.ended(number, "StaleToken");
      }
    } else if (stage.is === "waiting" || stage.is === "unconfirmed") {
      if (provisional || validUntil - clock.now() <= enough(settings) || clock.hasJumped(moment)) {
        this.become(entry, { is: "unconfirmed", token, extends: extending });
        // The acceptance.
        session.ping();
        return;
      }
      const term = new Shared(settings, token, validUntil, moment, settings.margin, clock, told, log, this.deaths);
      this.become(entry, { is: "leading", term, extends: extending });
      listener.granted(term);
    }
  }
}
