import { create } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { electionOf, kindOf, options, shown } from "./check.js";
import { ConfigError, type ElectionError, NotKnown, Refused, type Tried, listed } from "./errors.js";
import { Known, keyOf } from "./known.js";
import { type Connection, type Pool, type Route, deepest, describe, refusalOf } from "./pool.js";
import { type Certainty, type Observation, type ObserveRequest, ObserveRequestSchema } from "./proto.js";
import { type Scope, type State, stateOf } from "./types.js";
import { Deferred, TIMED_OUT, jittered, onAbort, reasonOf, sleep, within } from "./wait.js";

/** After how long without another message agents send a heartbeat, in ms. */
const HEARTBEAT = 5_000;
/** After how long without any message a stream counts as broken, in ms. */
const SILENCE = 12_000;
/** How long an agent may take to open a stream, in ms. */
const OPEN = 3_000;
/** How long it may take to its first message, in ms: without a quorum, that is a heartbeat. */
const FIRST = 6_000;
/** How long a broken stream is not reported, in ms: another is usually open by then. */
const QUIET = 1_000;
/** How often in a row an agent may refuse for reasons that may pass. */
const REFUSALS = 4;
/** The shortest and the longest pause between attempts to open a stream, in ms. */
const PAUSES = [50, 1_000] as const;
/** A stream that ends sooner than this, in ms, is followed by the next after a pause only. */
const BRIEF = 1_000;
/** How many events wait to be read. Agents conflate the rest. */
const EVENTS = 16;

/** What an observer receives. */
export type ObserverEvent =
  /** An election's state: the present one at first, then each change. */
  | { is: "state"; state: State }
  /** All present states have been reported. Once, however often the observer connects again. */
  | { is: "synced" }
  /** Whether the states reported last are known to be the present ones. True until reported otherwise. */
  | {
      is: "certainty";
      certain: boolean;
      /** For how many ms they have not been confirmed; 0 when certain. */
      unconfirmedFor: number;
      /** Why, for people; empty when certain. */
      reason: string;
    };

/** @internal The request to observe. */
export function observeRequest(scope: Scope): ObserveRequest {
  return create(ObserveRequestSchema, { heartbeat: HEARTBEAT, ...covered(scope) });
}

function covered(given: Scope) {
  if (typeof given !== "string" && (typeof given !== "object" || given === null)) {
    throw new ConfigError(`the scope is ${shown(given)}: an election's name, or an object that says what to observe`);
  }
  const scope: Exclude<Scope, string> = typeof given === "string" ? { election: given } : given;
  // A misspelt election would be all of the kind.
  options(scope, "the scope", { kind: true, election: true, prefix: true, all: true });
  const said = [scope.election, scope.prefix, scope.all].filter((what) => what !== undefined);
  if (said.length > 1) throw new ConfigError("the scope has more than one of election, prefix and all");
  if (scope.all !== undefined) {
    const all: unknown = scope.all;
    if (all !== true) throw new ConfigError(`the scope has "all" as ${shown(all)}: true, or left out`);
    if (scope.kind !== undefined) throw new ConfigError("the scope has both a kind and all: all elections of all kinds");
    return { kind: "", what: { case: "allKinds", value: true } as const };
  }
  if (scope.election !== undefined) {
    return { kind: kindOf(scope.kind), what: { case: "election", value: electionOf(scope.election) } as const };
  }
  if (scope.prefix !== undefined) {
    return { kind: kindOf(scope.kind), what: { case: "prefix", value: electionOf(scope.prefix, "the prefix") } as const };
  }
  if (scope.kind === undefined) throw new ConfigError("the scope is empty: give election, prefix, kind or all");
  return { kind: kindOf(scope.kind), what: { case: undefined } as const };
}

/** A stream, and where it comes from. */
interface Session {
  stream: AsyncIterator<Observation>;
  route: Route;
  connection: Connection;
  /** When, on the scale of performance.now(). */
  opened: number;
  end(): void;
}

/** The first messages of a stream. */
interface Present {
  states: Map<string, State>;
  doubt: Certainty | undefined;
}

type Opened = { session: Session; present: Present };

/** A queue with room for so many: putting more in waits. */
class Bounded<T> {
  private readonly items: T[] = [];
  private filled: Deferred<void> | undefined;
  private emptied: Deferred<void> | undefined;
  private failure: { error: unknown } | undefined;

  async put(item: T, signal: AbortSignal): Promise<void> {
    while (this.items.length >= EVENTS) {
      this.emptied ??= new Deferred();
      await within(this.emptied.promise, Infinity, signal);
    }
    this.items.push(item);
    this.wake();
  }

  /** Nothing comes any more: `take` throws the error after what was put in. */
  fail(error: unknown): void {
    this.failure ??= { error };
    this.wake();
  }

  /** `take` throws the error at once. */
  abort(error: unknown): void {
    this.items.length = 0;
    this.failure = { error };
    this.wake();
  }

  private wake(): void {
    this.filled?.resolve();
    this.filled = undefined;
  }

  /** A promise of its own for each wait: racing against a shared one leaks a little each time. */
  async take(): Promise<T> {
    while (this.items.length === 0) {
      if (this.failure !== undefined) throw this.failure.error;
      this.filled ??= new Deferred();
      await this.filled.promise;
    }
    const item = this.items.shift()!;
    this.emptied?.resolve();
    this.emptied = undefined;
    return item;
  }
}

/** @internal Asks a quorum for a state. */
export type AskState = (kind: string, election: string, signal: AbortSignal) => Promise<State>;

/**
 * Follows until the caller leaves the loop, the signal is aborted, or an agent refuses for good.
 *
 * @throws Refused, ConfigError, the signal's reason
 * @internal
 */
export function follow(
  pool: Pool,
  askState: AskState,
  request: ObserveRequest,
  signal: AbortSignal | undefined,
): AsyncGenerator<ObserverEvent, void, undefined> {
  const events = new Bounded<ObserverEvent>();
  let left = false;
  async function* all(): AsyncGenerator<ObserverEvent, void, undefined> {
    signal?.throwIfAborted();
    const over = new AbortController();
    const forget = onAbort(signal, () => {
      over.abort(reasonOf(signal!));
      events.abort(reasonOf(signal!));
    });
    const follower = new Follower(pool, askState, request, over.signal, (event) => events.put(event, over.signal));
    follower.run().catch((error: unknown) => events.fail(error));
    try {
      for (;;) yield await events.take();
    } catch (error) {
      if (!left) throw error;
    } finally {
      forget();
      over.abort();
    }
  }
  return leaving(all(), () => {
    left = true;
    events.abort(undefined);
  });
}

/**
 * A generator that is left at once, also while it waits for its next value: by itself it is left after that only.
 *
 * @internal
 */
export function leaving<T>(
  generator: AsyncGenerator<T, void, undefined>,
  leave: () => void,
): AsyncGenerator<T, void, undefined> {
  const end = generator.return.bind(generator);
  generator.return = (value) => {
    leave();
    return end(value);
  };
  return generator;
}

/** Opens a stream, and the next one when that ends or is about to. */
class Follower {
  private readonly known = new Known();
  /** Whether `synced` was reported. */
  private synced = false;
  /** The certainty that was reported last. */
  private certain = true;
  /** How long to wait after a stream that was brief, in ms. */
  private pause: number = PAUSES[0];
  /** When a stream last sent something certain. */
  private confirmed = performance.now();

  constructor(
    private readonly pool: Pool,
    private readonly askState: AskState,
    private readonly request: ObserveRequest,
    private readonly signal: AbortSignal,
    private readonly tell: (event: ObserverEvent) => Promise<void>,
  ) {}

  async run(): Promise<never> {
    let { session, present } = await this.reopen("no agent has answered");
    for (;;) {
      try {
        await this.takeOver(present);
        const ended = await this.read(session);
        if (typeof ended !== "string") {
          session.end();
          ({ session, present } = ended);
          continue;
        }
        this.pool.log.debug?.("a stream of observations has ended", { why: ended });
        session.end();
        this.pool.discard(session.connection);
        this.pool.avoid(session.route);
        await sleep(this.pauseAfter(session), this.signal);
        ({ session, present } = await this.reopen(ended));
      } catch (error) {
        session.end();
        throw error;
      }
    }
  }

  /** Opens a stream, however long it takes; reports uncertainty when it takes long. */
  private async reopen(why: string): Promise<Opened> {
    let refusals = 0;
    let pause: number = PAUSES[0];
    let reason = why;
    for (;;) {
      const opening = this.open();
      let result: Opened | typeof TIMED_OUT;
      try {
        for (;;) {
          const quiet = this.certain ? Math.max(QUIET - (performance.now() - this.confirmed), 0) : Infinity;
          result = await within(opening, quiet);
          if (result !== TIMED_OUT) return result;
          await this.doubt(reason);
        }
      } catch (error) {
        this.signal.throwIfAborted();
        if (error instanceof Refused) {
          refusals += 1;
          const mayPass = error.code === "RESOURCE_EXHAUSTED" || (error.code === "UNAUTHENTICATED" && this.synced);
          if (!mayPass || refusals >= REFUSALS) throw error;
        } else if (!(error instanceof NotKnown)) {
          throw error;
        }
        reason = (error as ElectionError).message;
      }
      this.pool.log.debug?.("no stream of observations", { why: reason });
      if (this.certain && performance.now() - this.confirmed >= QUIET) await this.doubt(reason);
      await sleep(jittered(pause), this.signal);
      pause = Math.min(pause * 2, PAUSES[1]);
    }
  }

  /** An agent that ends its streams as soon as they are open is not kept busy with opening more of them. */
  private pauseAfter(session: Session): number {
    if (performance.now() - session.opened >= BRIEF) {
      this.pause = PAUSES[0];
      return 0;
    }
    const pause = jittered(this.pause);
    this.pause = Math.min(this.pause * 2, PAUSES[1]);
    return pause;
  }

  private async doubt(reason: string): Promise<void> {
    this.certain = false;
    const unconfirmedFor = Math.round(performance.now() - this.confirmed);
    await this.tell({ is: "certainty", certain: false, unconfirmedFor, reason });
  }

  /** Reads until the stream has broken, and returns why, or until another is to take its place. */
  private async read(session: Session): Promise<Opened | string> {
    let next: Promise<Opened | undefined> | undefined;
    let message = session.stream.next();
    for (;;) {
      let result: IteratorResult<Observation> | { opened: Opened | undefined } | typeof TIMED_OUT;
      try {
        const taken = next?.then((opened) => ({ opened }));
        const first = taken === undefined ? message : Promise.race([taken, message]);
        result = await within(first as Promise<IteratorResult<Observation> | { opened: Opened | undefined }>, SILENCE, this.signal);
      } catch (error) {
        this.signal.throwIfAborted();
        void next?.then((opened) => opened?.session.end());
        return describe(error);
      }
      if (result === TIMED_OUT) return `no heartbeat within ${SILENCE} ms`;
      if ("opened" in result) {
        if (result.opened !== undefined) return result.opened;
        // The old one goes on for a moment; then `reopen` determines what is wrong.
        next = undefined;
        continue;
      }
      if (result.done === true) {
        if (next === undefined) return "the agent has ended the stream";
        // The new one may be about to be open.
        const opened = await within(next, OPEN, this.signal);
        if (opened !== TIMED_OUT && opened !== undefined) return opened;
        void next.then((late) => late?.session.end());
        return "the agent has ended the stream";
      }
      const what = result.value.what;
      message = session.stream.next();
      // The next turn finds what has failed meanwhile.
      message.catch(() => {});
      switch (what.case) {
        case "state": {
          const state = stateOf(what.value);
          if (state !== undefined) await this.state(state, false);
          break;
        }
        case "certainty":
          await this.certainty(what.value);
          break;
        case "goodbye": {
          const { reason, reconnectAfter } = what.value;
          this.pool.log.debug?.("a stream of observations is about to end", { reason });
          // Its connection ends, too; an agent that shuts down does not come back soon.
          this.pool.discard(session.connection);
          if (reason !== "AGE") this.pool.avoid(session.route);
          next ??= sleep(Math.max(reconnectAfter, this.pauseAfter(session)), this.signal)
            .then(() => this.open())
            .catch((error: unknown) => {
              this.pool.log.debug?.("no stream to go on with", { why: deepest(error) });
              return undefined;
            });
          break;
        }
        default:
          break;
      }
      if (this.certain) this.confirmed = performance.now();
    }
  }

  /** A stream has begun: reports what is new in its first messages. */
  private async takeOver(present: Present): Promise<void> {
    const gone = this.known.heldBeside(present.states);
    for (const state of present.states.values()) await this.state(state, true);
    // A listing may lack an election that is held: no vacancy is reported before a quorum has confirmed it.
    for (const { kind, election } of gone) await this.report(await this.ask(kind, election), true);
    if (!this.synced) {
      this.synced = true;
      await this.tell({ is: "synced" });
    }
    await this.certainty(present.doubt ?? { certain: true, unconfirmedFor: 0n, reason: "" });
  }

  private async state(state: State, again: boolean): Promise<void> {
    const verdict = this.known.judge(state);
    if (verdict === "same") return;
    await this.report(verdict === "older" ? await this.ask(state.kind, state.election) : state, again);
  }

  /** Reports a state unless it was the last. */
  private async report(state: State, again: boolean): Promise<void> {
    if (this.known.judge(state) === "same") return;
    state.missed ||= again && this.known.has(state);
    this.known.put(state);
    await this.tell({ is: "state", state });
  }

  /** Asks a quorum for a state, until there is an answer. */
  private async ask(kind: string, election: string): Promise<State> {
    let pause: number = PAUSES[0];
    for (;;) {
      try {
        return await this.askState(kind, election, this.signal);
      } catch (error) {
        this.signal.throwIfAborted();
        if (error instanceof ConfigError) throw error;
        if (error instanceof Refused && error.code !== "RESOURCE_EXHAUSTED") throw error;
        this.pool.log.debug?.("a state is not known", { why: deepest(error) });
      }
      await sleep(jittered(pause), this.signal);
      pause = Math.min(pause * 2, PAUSES[1]);
    }
  }

  private async certainty(told: { certain: boolean; unconfirmedFor: bigint; reason: string }): Promise<void> {
    if (told.certain) {
      this.confirmed = performance.now();
      if (this.certain) return;
    }
    this.certain = told.certain;
    const unconfirmedFor = Number(told.unconfirmedFor);
    await this.tell({ is: "certainty", certain: told.certain, unconfirmedFor, reason: told.reason });
  }

  /** Opens a stream at the first agent that answers, and reads the present states. */
  private async open(): Promise<Opened> {
    const { routes, wrong } = await this.pool.routes();
    const tried: Tried[] = [...wrong];
    let older: Refused | undefined;
    let othersFailed = tried.length > 0;
    for (const route of routes) {
      const waiting = this.pool.waitLane();
      const connection = this.pool.use(route, waiting.lane);
      const over = new AbortController();
      const forget = onAbort(this.signal, () => over.abort(reasonOf(this.signal)));
      const end = () => {
        forget();
        over.abort();
        waiting.leave();
        this.pool.release(connection);
      };
      try {
        const headers = await within(this.pool.dress(), OPEN, this.signal);
        if (headers === TIMED_OUT) throw new Error("there was no token in time");
        if ((await within(connection.channel.ready(), OPEN, this.signal)) === TIMED_OUT) {
          throw new Error(`no connection within ${OPEN} ms`);
        }
        const stream = connection.channel.observe(this.request, headers, over.signal)[Symbol.asyncIterator]();
        const present = await presentStates(stream, this.signal);
        this.pool.prefer(route);
        let ended = false;
        const session: Session = {
          stream,
          route,
          connection,
          opened: performance.now(),
          end: () => {
            if (!ended) end();
            ended = true;
          },
        };
        return { session, present };
      } catch (error) {
        end();
        this.signal.throwIfAborted();
        if (error instanceof ConnectError) {
          const code = refusalOf(error);
          if (code === "UNIMPLEMENTED") {
            // Another of the agents may be newer.
            older = new Refused(code, error.rawMessage);
            tried.push({ endpoint: this.pool.label(route), why: `${code}: ${error.rawMessage}` });
            continue;
          }
          if (code !== undefined) throw new Refused(code, error.rawMessage);
        }
        this.pool.discard(connection);
        tried.push({ endpoint: this.pool.label(route), why: describe(error, connection.channel) });
        othersFailed = true;
      }
    }
    // Newer ones may be unreachable at the moment.
    if (older !== undefined && !othersFailed) throw older;
    this.pool.forgetAddresses();
    throw new NotKnown(listed(tried));
  }
}

/** Reads the first messages of a stream. */
async function presentStates(stream: AsyncIterator<Observation>, signal: AbortSignal): Promise<Present> {
  const present: Present = { states: new Map(), doubt: undefined };
  for (let patience = FIRST; ; patience = SILENCE) {
    const message = await within(stream.next(), patience, signal);
    if (message === TIMED_OUT) throw new Error(`nothing came within ${patience} ms`);
    if (message.done === true) throw new Error("the agent has ended the stream");
    const what = message.value.what;
    switch (what.case) {
      case "state": {
        const state = stateOf(what.value);
        if (state !== undefined) present.states.set(keyOf(state), state);
        break;
      }
      case "synced":
        return present;
      case "certainty":
        present.doubt = what.value.certain ? undefined : what.value;
        break;
      case "goodbye":
        throw new Error(`goodbye: ${what.value.reason}`);
      default:
        break;
    }
  }
}
