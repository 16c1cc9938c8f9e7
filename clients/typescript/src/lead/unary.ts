import type { Moment } from "../clock.js";
import { promised, requestId } from "../calls.js";
import { shown } from "../check.js";
import { Lost, type LostReason, NotElected, lostReason } from "../errors.js";
import { Failure, type Pool, idempotent, oneByOne } from "../pool.js";
import { Election } from "../proto.js";
import { tokenFrom } from "../types.js";
import { TIMED_OUT, jittered, sleep, within } from "../wait.js";
import type { Standing, Told } from "./hooks.js";
import type { Settings } from "./settings.js";
import type { Shared } from "./term.js";

/** How long one call waits for a vacancy, in ms: after it the client detects an agent that has silently gone. */
const WAIT = 20_000;
/** How much longer than the wait a call may take, in ms. */
const ANSWER = 5_000;
/** How long a campaign that does not wait may take, with all its attempts, in ms. */
const AT_ONCE = 10_000;
/** How often such a campaign goes round the agents: with the pauses between, for about a second if all fail at once. */
const ROUNDS = 6;
/** A last campaign may take so long when the wait is over, in ms. */
const LAST = 1_000;
/**
 * The shortest and the longest time that giving up may take, with all its attempts, in ms: a third of the term between.
 */
const RESIGN = [1_000, 5_000] as const;

/** @internal What leads. */
export interface Leads {
  readonly pool: Pool;
  readonly random: (bytes: Uint8Array) => void;
}

/** @internal A term that was granted. */
export interface Granted {
  token: number;
  /** By the clock of terms. */
  validUntil: number;
  /** Before the grant was asked for. */
  anchor: Moment;
  /** When to extend the term, on the scale of performance.now(). */
  extendAt: number;
}

/** @internal When to stop to wait. */
export class Patience {
  private readonly until: number;

  constructor(wait: number) {
    this.until = performance.now() + wait;
  }

  left(): number {
    return Math.max(this.until - performance.now(), 0);
  }

  isOver(): boolean {
    return this.left() === 0;
  }
}

/** @internal Reports a wait, once for each leader. */
export class Waiting {
  private last = "";

  constructor(private readonly told: Told) {}

  tell(standing: Standing): void {
    const text = JSON.stringify(standing);
    if (text === this.last) return;
    this.last = text;
    this.told.state(standing);
  }
}

/**
 * Waits until elected.
 *
 * @throws NotElected, NotKnown, Unreachable when the patience is over, Refused, the signal's reason
 * @internal
 */
export async function campaign(
  { pool, random }: Leads,
  settings: Settings,
  told: Told,
  patience: Patience,
  signal: AbortSignal | undefined,
): Promise<Granted> {
  const waiting = new Waiting(told);
  let id = requestId(random);
  let mayWait = settings.wait > 0;
  let pause = 100;
  // How many answers in a row came before the wait was over.
  let early = 0;
  const rest = (ms: number) => sleep(Math.min(jittered(ms), patience.left()), signal);
  for (;;) {
    const wait = mayWait ? Math.floor(Math.min(WAIT, patience.left())) : 0;
    const request = {
      election: settings.election,
      candidate: settings.candidate,
      term: settings.term,
      kind: settings.kind,
      value: settings.value,
      requestId: id,
      wait,
    };
    const asked = performance.now();
    let failure: Failure;
    const lane = wait > 0 ? pool.waitLane() : undefined;
    try {
      const plan = oneByOne(settings.wait === 0 ? AT_ONCE : Math.min(AT_ONCE, Math.max(patience.left(), LAST)), signal);
      if (settings.wait === 0) plan.rounds = ROUNDS;
      if (lane !== undefined) {
        const attempt = wait + ANSWER;
        Object.assign(plan, { attempt, until: asked + 2 * attempt, again: false, lane: lane.lane });
      }
      const { value, sent } = await pool.call(plan, Election.method.campaign, request);
      if (value.elected) {
        const granted: Granted = {
          token: tokenFrom(value.token),
          validUntil: sent.at + value.validFor,
          anchor: sent,
          extendAt: asked + settings.term / 3,
        };
        const confirmed = await confirm(pool, settings, granted, value.provisional, signal);
        if (confirmed !== undefined) return confirmed;
        // The grant was lost before anybody worked under it.
        id = requestId(random);
        await rest(50);
        continue;
      }
      const leader = value.leader === "" ? undefined : value.leader;
      if (patience.isOver() || settings.wait === 0) throw new NotElected(leader);
      waiting.tell({ is: "waiting", leader });
      id = requestId(random);
      // Of an older agent, which does not wait, or of one that shuts down.
      early = performance.now() - asked < wait / 2 || wait === 0 ? early + 1 : 0;
      if (early > 0) await rest(early === 1 ? 100 : 750);
      // One last try, at once.
      if (patience.isOver()) mayWait = false;
      pause = 100;
      continue;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      failure = error;
    } finally {
      lane?.leave();
    }
    switch (failure.refusal?.code) {
      case "ALREADY_EXISTS":
        // The grant of an earlier attempt is over.
        id = requestId(random);
        break;
      case "INVALID_ARGUMENT":
        if (!mayWait) throw failure.ofChange();
        // The agent may be set to shorter waits than this.
        mayWait = false;
        continue;
      case "RESOURCE_EXHAUSTED":
      case undefined:
        break;
      default:
        throw failure.ofChange();
    }
    if (patience.isOver() || settings.wait === 0) throw failure.ofChange();
    const { kind, election } = settings;
    pool.log.warn?.("a campaign was not answered", { kind, election, reason: failure.reason });
    waiting.tell({ is: "notKnown", reason: failure.reason });
    // With the same id: if the attempt was granted, this is the same one.
    await rest(pause);
    pause = Math.min(pause * 2, 2_000);
  }
}

/**
 * Accepts a grant that is provisional or has little time left, before anybody works under it. Undefined: it is lost.
 */
async function confirm(
  pool: Pool,
  settings: Settings,
  granted: Granted,
  provisional: boolean,
  signal: AbortSignal | undefined,
): Promise<Granted | undefined> {
  const { clock } = pool;
  if (clock.hasJumped(granted.anchor)) return undefined;
  if (!provisional && granted.validUntil - clock.now() > enough(settings)) return granted;
  for (;;) {
    const time = Math.min(settings.term / 3, granted.validUntil - clock.now());
    if (time <= 0) return undefined;
    const asked = performance.now();
    const extended = await extend(pool, settings, granted.token, time, signal);
    if ("until" in extended) {
      const later = extended.until > granted.validUntil;
      const validUntil = later ? extended.until : granted.validUntil;
      const anchor = later ? extended.anchor : granted.anchor;
      const alive = validUntil - settings.margin > clock.now() && !clock.hasJumped(anchor);
      return alive ? { token: granted.token, validUntil, anchor, extendAt: asked + settings.term / 3 } : undefined;
    }
    if ("denied" in extended) return undefined;
    const { failure } = extended;
    if (failure.refusal !== undefined && failure.refusal.code !== "RESOURCE_EXHAUSTED") throw failure.ofChange();
    await sleep(jittered(50), signal);
  }
}

/** @internal How long a grant has to be good at least before somebody works under it, in ms. */
export function enough(settings: Settings): number {
  return settings.margin + settings.term / 3;
}

/** @internal How an extension ended. */
export type Extended = { until: number; anchor: Moment } | { denied: LostReason } | { failure: Failure };

/** @internal Extends a term once, by whichever agent answers within the time. */
export async function extend(
  pool: Pool,
  settings: Settings,
  token: number,
  time: number,
  signal: AbortSignal | undefined,
): Promise<Extended> {
  // An answer that comes late is as good: it counts from when its request was sent.
  const plan = { ...idempotent(time, signal), attempt: time };
  try {
    const { value, sent } = await pool.call(plan, Election.method.extendElectedTerm, {
      election: settings.election,
      leader: settings.candidate,
      term: settings.term,
      kind: settings.kind,
      token: BigInt(token),
    });
    if (!value.value) return { denied: lostReason(value.reason) ?? "NoTerm" };
    return { until: sent.at + promised(value, settings.term), anchor: sent };
  } catch (error) {
    if (error instanceof Failure) return { failure: error };
    throw error;
  }
}

/** @internal Extends a term every third of it, until it is lost for certain or the signal is aborted. */
export async function keep(
  pool: Pool,
  settings: Settings,
  told: Told,
  alive: Alive,
  term: Shared,
  firstAt: number,
  signal: AbortSignal,
): Promise<void> {
  const third = settings.term / 3;
  let extendAt = firstAt;
  let refused = "";
  for (;;) {
    await sleep(Math.max(extendAt - performance.now(), 0), signal);
    const dead = await within(alive.ask(third / 2), Infinity, signal);
    if (typeof dead === "string") {
      term.jeopardize(dead);
      extendAt = performance.now() + jittered(third / 4);
      continue;
    }
    const asked = performance.now();
    const extended = await extend(pool, settings, term.token, third, signal);
    if ("until" in extended) {
      term.extend(extended.until, extended.anchor);
      refused = "";
      extendAt = asked + third;
    } else if ("denied" in extended) {
      term.lose(extended.denied);
      return;
    } else {
      const { refusal, reason } = extended.failure;
      // A refusal is no loss: the term goes on until its time is over.
      if (refusal !== undefined && refusal.code !== "RESOURCE_EXHAUSTED" && refused !== reason) {
        refused = reason;
        const { kind, election } = settings;
        pool.log.error?.("the agent refuses to extend the term", { kind, election, ...refusal });
        told.state({ is: "refused", ...refusal });
      }
      term.jeopardize(reason);
      extendAt = performance.now() + jittered(Math.min(third / 20, 250));
      if (refusal !== undefined) extendAt += jittered(third / 8);
    }
  }
}

/** @internal Asks the application whether it is alive. */
export class Alive {
  /** The answer that is awaited. One call at a time: an application that hangs is asked once. */
  private asked: Promise<string | undefined> | undefined;

  constructor(private readonly question: (() => boolean | Promise<boolean>) | undefined) {}

  /** Why the term must not be extended; undefined if it may. */
  async ask(time: number): Promise<string | undefined> {
    const { question } = this;
    if (question === undefined) return undefined;
    this.asked ??= (async () => {
      try {
        const answer: unknown = await question();
        return answer === true ? undefined : `alive() returned ${shown(answer)}`;
      } catch {
        return "alive() threw";
      }
    })();
    const answer = await within(this.asked, time);
    if (answer === TIMED_OUT) return "alive() did not return";
    this.asked = undefined;
    return answer;
  }
}

/**
 * Gives a term up.
 *
 * @param uncertain it may have been given up before
 * @throws Lost: the candidate did not lead any more; NotKnown, Unreachable, Refused
 * @internal
 */
export async function resign(pool: Pool, settings: Settings, token: number, uncertain: boolean): Promise<void> {
  const plan = idempotent(Math.min(Math.max(settings.term / 3, RESIGN[0]), RESIGN[1]));
  let answer;
  try {
    answer = await pool.call(plan, Election.method.resign, {
      election: settings.election,
      leader: settings.candidate,
      kind: settings.kind,
      token: BigInt(token),
    });
  } catch (error) {
    throw error instanceof Failure ? error.ofChange() : error;
  }
  const { value } = answer;
  if (value.value) return;
  // An earlier attempt has done it.
  if ((uncertain || answer.uncertain) && value.reason === "NO_TERM") return;
  throw new Lost(lostReason(value.reason) ?? "NoTerm");
}
