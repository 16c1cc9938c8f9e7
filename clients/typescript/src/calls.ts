import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import {
  abortable,
  electionOf,
  idOf,
  kindOf,
  millis,
  named,
  object,
  optionalFunction,
  optionalSignal,
  options as checked,
  tokenOf,
  valueOf,
} from "./check.js";
import { ConfigError, type ElectionError, Lost, NotKnown, lostReason } from "./errors.js";
import { type ObserverEvent, follow, leaving, observeRequest } from "./observe.js";
import { type Answer, Failure, type Plan, type Pool, idempotent, oneByOne } from "./pool.js";
import { type BoolValue, Election } from "./proto.js";
import {
  type Abortable,
  type Campaign,
  type Campaigned,
  type Extension,
  type Handover,
  type Kinds,
  type Leaders,
  type Pod,
  type Resignation,
  type Scope,
  type State,
  type Verified,
  leaderOf,
  podOf,
  stateOf,
  tokenFrom,
} from "./types.js";

/** How long a plain call may take, in ms. */
export const TIMEOUT = 10_000;
/** How many leaders or kinds a page of a listing has. */
const PAGE = 1_000;

/** What observing may be given. */
export interface ObserveOptions extends Abortable {
  /** Is called when all present states have been reported: once, however often the observer connects again. */
  onSynced?: (() => void) | undefined;
  /**
   * Is called when it changes whether the states reported last are known to be the present ones, which they are at
   * first.
   */
  onCertainty?: ((certainty: { certain: boolean; unconfirmedFor: number; reason: string }) => void) | undefined;
}

/**
 * For how long an extension is good. Older agents leave the allowance for clock drift to their callers.
 *
 * @internal
 */
export function promised(value: BoolValue, term: number): number {
  return value.validFor > 0 ? value.validFor : Math.max(term - term / 100 - 2, 0);
}

/** @internal A name for one attempt to get elected, unique among all. */
export function requestId(random: (bytes: Uint8Array) => void): string {
  const bytes = new Uint8Array(16);
  random(bytes);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * One or several agents of the same elections: what Node.js and browsers can both do.
 *
 * Nothing is connected before the first call. Calls go to one endpoint that answers, and at once to the others when it
 * fails.
 */
export abstract class Calls {
  /** @internal */
  protected constructor(
    /** @internal */
    protected readonly pool: Pool,
    /** @internal */
    protected readonly timeout: number,
    /** @internal */
    protected readonly random: (bytes: Uint8Array) => void,
  ) {}

  /**
   * Follows who leads: first the present states, then each change. It connects again by itself, to whichever agent
   * answers, and reports no state twice in a row. Of an election that changes while it is not read, the last state is
   * reported.
   *
   * It ends when the loop is left, `return` is called, or the signal is aborted.
   *
   * @throws {@link Refused}, {@link ConfigError}, the signal's reason, what a function in `options` throws
   */
  observe(scope: Scope, options: ObserveOptions = {}): AsyncGenerator<State, void, undefined> {
    checked(options, "the options of observe", { signal: true, onSynced: true, onCertainty: true });
    optionalFunction(options.onSynced, "onSynced");
    optionalFunction(options.onCertainty, "onCertainty");
    optionalSignal(options.signal);
    const events = this.follow(scope, { signal: options.signal });
    return leaving(statesOf(events, options), () => void events.return());
  }

  /**
   * As {@link observe}, with the agent's other events, in order: that all present states have been reported, and
   * whether they are certain.
   *
   * @throws {@link Refused}, {@link ConfigError}, the signal's reason
   */
  follow(scope: Scope, options: Abortable = {}): AsyncGenerator<ObserverEvent, void, undefined> {
    const { signal } = abortable(options);
    const ask = (kind: string, election: string, own: AbortSignal) => this.state({ election, kind }, { signal: own });
    return follow(this.pool, ask, observeRequest(scope), signal);
  }

  /**
   * Returns whether a fencing token is the present leader's: for programs that work for a leader and have no storage
   * that compares tokens. A leader checks its term.
   *
   * @throws {@link Refused}, {@link NotKnown}, {@link Unreachable}, {@link ConfigError}
   */
  async verify(
    question: { election: string; kind?: string | undefined; token: number },
    options: Abortable = {},
  ): Promise<Verified> {
    const { election, kind, token } = object(question, "what to verify");
    const request = { election: electionOf(election), kind: kindOf(kind), token: tokenOf(token) };
    const { value, sent } = await this.ask(Election.method.verifyToken, request, options);
    return {
      current: value.current,
      reason: value.current ? undefined : value.reason,
      state: value.state === undefined ? undefined : stateOf(value.state),
      validUntil: value.current ? this.toPublic(sent.at + value.validFor) : undefined,
    };
  }

  /**
   * Lists the leaders of all held elections of a kind, or of all kinds.
   *
   * @throws {@link Refused}, {@link NotKnown}, {@link Unreachable}, {@link ConfigError}
   */
  async leaders(of: string | { all: true } = "default", options: Abortable = {}): Promise<Leaders> {
    const all = typeof of !== "string";
    if (all && object(of, "whose leaders to list").all !== true) {
      throw new ConfigError("whose leaders to list: a kind's name, or { all: true }");
    }
    const request = { kind: all ? "" : kindOf(of), pageSize: PAGE, pageToken: "", allKinds: all };
    const found: Leaders = { leaders: [], incomplete: false };
    do {
      const { value } = await this.ask(Election.method.listLeaders, request, options);
      found.leaders.push(...value.leaders.map(leaderOf));
      found.incomplete ||= value.incomplete;
      request.pageToken = value.nextPageToken;
    } while (request.pageToken !== "");
    return found;
  }

  /**
   * Lists the kinds that have elections.
   *
   * @throws {@link Refused}, {@link NotKnown}, {@link Unreachable}
   */
  async kinds(options: Abortable = {}): Promise<Kinds> {
    const request = { pageSize: PAGE, pageToken: "" };
    const found: Kinds = { kinds: [], incomplete: false };
    do {
      const { value } = await this.ask(Election.method.listKinds, request, options);
      found.kinds.push(...value.kinds);
      found.incomplete ||= value.incomplete;
      request.pageToken = value.nextPageToken;
    } while (request.pageToken !== "");
    return found;
  }

  /**
   * The state of an election. One that was never held is vacant.
   *
   * @throws {@link Refused}, {@link NotKnown}, {@link Unreachable}, {@link ConfigError}
   */
  async state(of: string | { election: string; kind?: string | undefined }, options: Abortable = {}): Promise<State> {
    const { election, kind } = typeof of === "string" ? { election: of, kind: undefined } : object(of, "whose state to tell");
    const request = { election: electionOf(election), kind: kindOf(kind) };
    const { value } = await this.ask(Election.method.getElection, request, options);
    const state = stateOf(value);
    if (state === undefined) throw new NotKnown("the agent's reply names neither a leader nor a vacancy");
    return state;
  }

  /**
   * Campaigns once, for callers that extend on their own. That another candidate leads is no error.
   *
   * @throws {@link Refused}, {@link NotKnown}, {@link Unreachable}, {@link ConfigError}
   */
  async campaign(campaign: Campaign, options: Abortable = {}): Promise<Campaigned> {
    const { signal } = abortable(options);
    const wait = millis(object(campaign, "the campaign").wait ?? 0, "the wait");
    const request = {
      election: electionOf(campaign.election),
      kind: kindOf(campaign.kind),
      candidate: named(campaign.candidate, "the candidate"),
      term: millis(campaign.term, "the term"),
      value: valueOf(campaign.value ?? ""),
      requestId: idOf(campaign.requestId ?? requestId(this.random)),
      wait,
    };
    const plan = oneByOne(this.timeout + wait, signal);
    const waiting = wait > 0 ? this.pool.waitLane() : undefined;
    if (waiting !== undefined) {
      plan.lane = waiting.lane;
      plan.attempt += wait;
    }
    try {
      const { value, sent } = await this.change(plan, Election.method.campaign, request);
      return {
        elected: value.elected,
        leader: value.leader,
        token: tokenFrom(value.token),
        value: value.value,
        validUntil: value.elected ? this.toPublic(sent.at + value.validFor) : undefined,
        provisional: value.provisional,
      };
    } finally {
      waiting?.leave();
    }
  }

  /**
   * Extends a term. Resolves with until when its leader may act, on the scale of `performance.now()`, counted from
   * before the request was sent.
   *
   * @throws {@link Lost} if the candidate does not lead with this token, {@link Refused}, {@link NotKnown}, {@link
   *   Unreachable}, {@link ConfigError}
   */
  async extend(extension: Extension, options: Abortable = {}): Promise<number> {
    const { signal } = abortable(options);
    const request = { ...leading(extension, "the extension"), term: millis(extension.term, "the term") };
    const plan = idempotent(this.timeout, signal);
    const { value, sent } = await this.change(plan, Election.method.extendElectedTerm, request);
    granted(value);
    return this.toPublic(sent.at + promised(value, request.term));
  }

  /**
   * Gives a leadership up. The work that needs it has to have ended.
   *
   * @throws {@link Lost} if the candidate does not lead with this token, {@link Refused}, {@link NotKnown},
   *   {@link Unreachable}, {@link ConfigError}
   */
  async resign(resignation: Resignation, options: Abortable = {}): Promise<void> {
    const plan = idempotent(this.timeout, abortable(options).signal);
    const request = leading(resignation, "the resignation");
    const { value, uncertain } = await this.change(plan, Election.method.resign, request);
    // An earlier attempt has done it.
    if (!value.value && value.reason === "NO_TERM" && uncertain) return;
    granted(value);
  }

  /**
   * Moves a leadership to another candidate, and resolves with until when that one may act, on the scale of
   * `performance.now()`. It gets its token by campaigning.
   *
   * @throws {@link Lost} if the leader that hands over does not lead with its token, {@link Refused}, {@link NotKnown},
   *   {@link Unreachable}, {@link ConfigError}
   */
  async handover(handover: Handover, options: Abortable = {}): Promise<number> {
    const { signal } = abortable(options);
    const term = millis(object(handover, "the handover").term, "the term");
    const from = handover.from ?? "";
    const request = {
      election: electionOf(handover.election),
      kind: kindOf(handover.kind),
      leader: named(handover.to, "the candidate to hand over to"),
      term,
      currentLeader: from === "" ? from : named(from, "the leader that hands over"),
      token: tokenOf(handover.token ?? 0),
    };
    const plan = oneByOne(this.timeout, signal);
    const { value, sent, uncertain } = await this.change(plan, Election.method.handover, request);
    if (!value.value && uncertain) {
      // An earlier attempt may have moved it.
      throw new NotKnown(`${value.reason}; an earlier attempt got no reply`);
    }
    granted(value);
    return this.toPublic(sent.at + promised(value, term));
  }

  /**
   * Lists the pods of a Kubernetes Deployment, or the siblings of a pod, those of the newest revision first.
   *
   * @throws {@link Refused}, also if the agent does not look pods up, {@link NotKnown}, {@link Unreachable},
   *   {@link ConfigError}
   */
  async pods(of: { namespace: string } & ({ deployment: string } | { pod: string }), options: Abortable = {}): Promise<Pod[]> {
    const request = {
      namespace: named(object(of, "whose pods to list").namespace, "the namespace"),
      ...("deployment" in of ? { deployment: named(of.deployment, "the deployment") } : { podName: named(of.pod, "the pod") }),
    };
    const { value } = await this.ask(Election.method.getPods, request, options);
    return value.items.map(podOf);
  }

  /** Closes connections. What is under way goes on, and another call connects anew. */
  close(): void {
    this.pool.close();
  }

  /** On the scale of performance.now(). */
  private toPublic(at: number): number {
    return at - this.pool.clock.asleep();
  }

  /** Sends a request that changes nothing. */
  private async ask<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: Abortable,
  ): Promise<Answer<MessageShape<O>>> {
    try {
      return await this.pool.call(idempotent(this.timeout, abortable(options).signal), method, request);
    } catch (error) {
      throw toError(error, (failure) => failure.ofQuestion());
    }
  }

  private async change<I extends DescMessage, O extends DescMessage>(
    plan: Plan,
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
  ): Promise<Answer<MessageShape<O>>> {
    try {
      return await this.pool.call(plan, method, request);
    } catch (error) {
      throw toError(error, (failure) => failure.ofChange());
    }
  }
}

async function* statesOf(
  events: AsyncGenerator<ObserverEvent, void, undefined>,
  { onSynced, onCertainty }: ObserveOptions,
): AsyncGenerator<State, void, undefined> {
  for await (const event of events) {
    switch (event.is) {
      case "state":
        yield event.state;
        break;
      case "synced":
        onSynced?.();
        break;
      case "certainty":
        onCertainty?.({ certain: event.certain, unconfirmedFor: event.unconfirmedFor, reason: event.reason });
        break;
    }
  }
}

function toError(error: unknown, convert: (failure: Failure) => ElectionError): unknown {
  return error instanceof Failure ? convert(error) : error;
}

function leading(of: Resignation, what: string) {
  const token = tokenOf(object(of, what).token);
  if (token === 0n) throw new ConfigError("the token is 0: name the term by the token that it was granted with");
  return {
    election: electionOf(of.election),
    kind: kindOf(of.kind),
    leader: named(of.candidate, "the candidate"),
    token,
  };
}

/** @throws Lost: why the agent has denied it */
function granted(value: BoolValue): void {
  if (!value.value) throw new Lost(lostReason(value.reason) ?? "NoTerm");
}
