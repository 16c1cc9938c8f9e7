import type { DescMessage, DescMethodStreaming, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type StreamResponse, type Transport } from "@connectrpc/connect";
import { type Clock, type Moment, moment } from "./clock.js";
import { type Credentials, putToken } from "./credentials.js";
import { type ElectionError, NotKnown, Refused, type RefusalCode, type Tried, Unreachable, listed } from "./errors.js";
import type { Logger } from "./log.js";
import type { Observation, ObserveRequest } from "./proto.js";
import { Mailbox, TIMED_OUT, after, jittered, onAbort, reasonOf, sleep, within } from "./wait.js";

/** How long the addresses of names are good, in ms. */
const RESOLVED_FOR = 30_000;
/** How long a name may take to be resolved, in ms. */
const RESOLVE = 2_000;
/** Agents accept 1000 streams a connection: waiting calls leave room for others. */
const WAITS_A_CHANNEL = 500;

/** @internal An endpoint as it was configured. */
export interface Endpoint {
  /** What it was configured as, for people. */
  readonly label: string;
  /** What is called, such as `https://a:8443`. */
  readonly baseUrl: string;
  /** The addresses of its name. */
  resolve(): Promise<string[]>;
  /** The route, for people. */
  describe(address: string): string;
  /** Which version of the files of certificates new channels use. */
  version(): number;
  /** A channel to one of its addresses. It connects when it is used. */
  channel(address: string): Channel;
}

/** @internal A way to one address. */
export interface Channel {
  readonly transport: Transport;
  /** Resolves when there is a connection. Rejects with why there is none: then nothing was sent. */
  ready(): Promise<void>;
  /** Follows; as the transport does, without what its streams keep of each message, if they do. */
  observe(request: ObserveRequest, headers: Headers, signal: AbortSignal): AsyncIterable<Observation>;
  /** Why a connection may have ended, if something is known; what to do about it. */
  hint(): string | undefined;
  close(): void;
}

/** @internal An address to which calls go. */
export interface Route {
  readonly key: string;
  readonly endpoint: number;
  readonly address: string;
}

/** @internal A channel, and which one it is. */
export interface Connection {
  readonly channel: Channel;
  readonly key: string;
  uses: number;
  retired: boolean;
}

/** @internal How a call is tried. Times are in ms, instants on the scale of performance.now(). */
export interface Plan {
  /** When to give up. */
  until: number;
  /** How long one attempt may take. */
  attempt: number;
  /** After how long of silence another address is tried beside the first. Not for what must not run twice at once. */
  hedge: number | undefined;
  /** Whether to go round the addresses again when all have failed. */
  again: boolean;
  /** How often to go round them at the most. */
  rounds: number;
  lane: string;
  signal: AbortSignal | undefined;
}

/** The channel of short calls, which never queue behind those that wait. */
const CALLS = "calls";

/** @internal A call that may be repeated as often as one likes, and run several times at once. */
export function idempotent(time: number, signal?: AbortSignal): Plan {
  return {
    until: performance.now() + time,
    attempt: Math.min(Math.max(time / 2, 250), time),
    hedge: Math.min(time / 4, 300),
    again: true,
    rounds: Infinity,
    lane: CALLS,
    signal,
  };
}

/** @internal A call that is repeated only after the previous attempt has ended. */
export function oneByOne(time: number, signal?: AbortSignal): Plan {
  return { ...idempotent(time, signal), attempt: Math.min(Math.max(time / 3, 900), time), hedge: undefined };
}

/** @internal An answer. */
export interface Answer<T> {
  value: T;
  /** Before the request was sent. */
  sent: Moment;
  /** An earlier attempt may have taken effect, or may take effect later. */
  uncertain: boolean;
}

/** @internal Why a call has no answer. */
export class Failure extends Error {
  constructor(
    readonly refusal: { code: RefusalCode; detail: string } | undefined,
    /** An attempt may have taken effect, or may take effect later. */
    readonly uncertain: boolean,
    /** No agent has replied, and none has kept silent: no connection was made, or each ended during its request. */
    private readonly unheard: boolean,
    private readonly tried: readonly Tried[],
  ) {
    super("a call has no answer");
  }

  /** In words. */
  get reason(): string {
    return this.refusal === undefined ? listed(this.tried) : `${this.refusal.code}: ${this.refusal.detail}`;
  }

  /** The error of a call that changes something: the effect of earlier attempts is not known. */
  ofChange(uncertain = this.uncertain): ElectionError {
    if (this.refusal !== undefined) {
      return uncertain
        ? new NotKnown(`${this.reason}; before: ${listed(this.tried)}`)
        : new Refused(this.refusal.code, this.refusal.detail);
    }
    return uncertain ? new NotKnown(listed(this.tried)) : new Unreachable(this.tried);
  }

  /** The error of a call that changes nothing. */
  ofQuestion(): ElectionError {
    return this.ofChange(this.uncertain && this.refusal === undefined && !this.unheard);
  }
}

type Failed =
  /** Nothing was sent. */
  | { is: "unsent"; why: string }
  /** The agent refused, and changed nothing. */
  | { is: "refused"; code: RefusalCode; why: string }
  /** The connection ended during the request. Whether it took effect is not known. */
  | { is: "broken"; why: string }
  /** Whether it took effect is not known. */
  | { is: "unknown"; why: string }
  /** The same, of an attempt that had less time than others: earlier failures say more. */
  | { is: "cut short"; why: string };

type Ended<T> = { route: Route } & ({ is: "answered"; value: T; sent: Moment } | Failed);

/**
 * The code of an error that means that nothing was changed. A reply that was cut or is no gRPC means nothing: its
 * readers may give it the code of a refusal, too.
 *
 * @internal
 */
export function refusalOf(error: ConnectError): RefusalCode | undefined {
  if (!isStatus(error) && !/^HTTP \d/.test(error.rawMessage)) return undefined;
  switch (error.code) {
    case Code.InvalidArgument:
      return "INVALID_ARGUMENT";
    case Code.NotFound:
      return "NOT_FOUND";
    case Code.AlreadyExists:
      return "ALREADY_EXISTS";
    case Code.Unauthenticated:
      return "UNAUTHENTICATED";
    case Code.PermissionDenied:
      return "PERMISSION_DENIED";
    case Code.ResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Code.Unimplemented:
      return "UNIMPLEMENTED";
    default:
      return undefined;
  }
}

/**
 * Whether it came as a status. Only some versions of connect report that; the trailers are those of the status in all.
 */
function isStatus(error: ConnectError): boolean {
  return (
    error.metadata.has("grpc-status") ||
    error.metadata.has("grpc-status-details-bin") ||
    (error as { isWireError?: boolean }).isWireError === true
  );
}

/** Whether the agent, or a proxy before it, has sent this: a status, or a response that is no gRPC. */
function isSaid(error: ConnectError): boolean {
  return isStatus(error) || /^(HTTP \d|unsupported |protocol error)/.test(error.rawMessage);
}

/** @internal The innermost cause: those around it only say that there is one. */
export function deepest(error: unknown): string {
  let inner = error;
  for (let depth = 0; depth < 8 && inner instanceof Error && inner.cause instanceof Error; depth += 1) inner = inner.cause;
  if (inner instanceof AggregateError && inner.errors.length > 0) return deepest(inner.errors[0]);
  if (inner instanceof ConnectError) return inner.rawMessage;
  if (!(inner instanceof Error)) return String(inner);
  const code = (inner as NodeJS.ErrnoException).code;
  return inner.message === "" && code !== undefined ? code : inner.message;
}

/** @internal The code and the text of what a call has thrown, and what to do about it if that is known. */
export function describe(error: unknown, channel?: Channel): string {
  if (!(error instanceof ConnectError)) return deepest(error);
  if (isStatus(error)) {
    const name = Code[error.code].replace(/(?!^)[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
    return `${name}: ${error.rawMessage}`;
  }
  const hint = channel?.hint();
  return hint === undefined ? deepest(error) : `${deepest(error)}: ${hint}`;
}

function failed(error: unknown, channel: Channel): Failed {
  if (error instanceof ConnectError && isSaid(error)) {
    const code = refusalOf(error);
    if (code !== undefined) return { is: "refused", code, why: error.rawMessage };
    return { is: "unknown", why: describe(error) };
  }
  return { is: "broken", why: describe(error, channel) };
}

/** What has failed until now: of each endpoint the last. */
class Failures {
  refusal: { code: RefusalCode; detail: string } | undefined;
  uncertain = false;
  private readonly tried = new Map<string, { why: string; unheard: boolean }>();

  put(label: string, why: string, unheard = false): void {
    this.tried.set(label, { why, unheard });
  }

  /** Unless something is known of this endpoint. */
  putFirst(label: string, why: string): void {
    if (!this.tried.has(label)) this.put(label, why);
  }

  over(): Failure {
    if (this.refusal === undefined && this.tried.size === 0) this.put("all", "no answer in time");
    const all = [...this.tried];
    return new Failure(
      this.refusal,
      this.uncertain,
      all.every(([, { unheard }]) => unheard),
      all.map(([endpoint, { why }]) => ({ endpoint, why })),
    );
  }
}

/**
 * Connections to the agents, and the routing of a call from one to the next.
 *
 * Each address has channels of its own. One address that answered last is preferred; when it fails, or keeps silent for
 * a while, the others are tried at once. A channel whose call got no answer in time is replaced, as its connection may
 * be dead: HTTP/2's own keep-alive, which agents allow every 20 s at most, detects that later.
 *
 * @internal
 */
export class Pool {
  private readonly connections = new Map<string, Connection>();
  private readonly versions = new Map<number, number>();
  private readonly addresses = new Map<number, { known: string[]; at: number }>();
  private preferred: string | undefined;
  private waits = 0;
  /** Not shown when an agent is printed. */
  readonly #credentials: Credentials;

  constructor(
    readonly endpoints: readonly Endpoint[],
    readonly clock: Clock,
    readonly log: Logger,
    credentials: Credentials,
    /** Adds what the platform knows, such as a trace context. */
    private readonly dressed: (headers: Headers) => Promise<void> = () => Promise.resolve(),
  ) {
    this.#credentials = credentials;
  }

  /** Where calls may go, the best first; and the endpoints whose names have no address. */
  async routes(): Promise<{ routes: Route[]; wrong: Tried[] }> {
    const now = performance.now();
    const wrong: Tried[] = [];
    const stale = this.endpoints.map((_, index) => index).filter((index) => {
      const entry = this.addresses.get(index);
      return entry === undefined || entry.known.length === 0 || now - entry.at >= RESOLVED_FOR;
    });
    if (stale.length > 0) {
      await Promise.all(stale.map(async (index) => this.resolve(index, wrong)));
      for (const [key, connection] of this.connections) {
        const known = this.all().some((route) => key.startsWith(`${route.key} `));
        if (!known) this.retire(key, connection);
      }
    }
    const routes = this.all();
    const preferred = routes.findIndex((route) => route.key === this.preferred);
    if (preferred > 0) routes.unshift(...routes.splice(preferred, 1));
    return { routes, wrong };
  }

  private async resolve(index: number, wrong: Tried[]): Promise<void> {
    const endpoint = this.endpoints[index]!;
    let found: string[] = [];
    let why = "";
    try {
      const answer = await within(endpoint.resolve(), RESOLVE);
      if (answer === TIMED_OUT) why = `its name was not resolved within ${RESOLVE} ms`;
      else found = answer;
    } catch (error) {
      why = deepest(error);
    }
    const before = this.addresses.get(index)?.known ?? [];
    let known = before;
    if (why === "") {
      // Known addresses keep their places.
      known = before.filter((address) => found.includes(address));
      known.push(...found.filter((address) => !known.includes(address)));
    } else if (before.length === 0) {
      wrong.push({ endpoint: endpoint.label, why });
    }
    this.addresses.set(index, { known, at: performance.now() });
  }

  private all(): Route[] {
    return this.endpoints.flatMap((_, endpoint) =>
      (this.addresses.get(endpoint)?.known ?? []).map((address) => ({ key: `${endpoint} ${address}`, endpoint, address })),
    );
  }

  /** The connection to an address. `release` it when the call has ended. */
  use(route: Route, lane: string): Connection {
    const endpoint = this.endpoints[route.endpoint]!;
    const version = endpoint.version();
    if (this.versions.get(route.endpoint) !== version) {
      this.versions.set(route.endpoint, version);
      // What is under way goes on.
      for (const [key, connection] of this.connections) {
        if (key.startsWith(`${route.endpoint} `)) this.retire(key, connection);
      }
    }
    const key = `${route.key} ${lane}`;
    let connection = this.connections.get(key);
    if (connection === undefined) {
      connection = { channel: endpoint.channel(route.address), key, uses: 0, retired: false };
      this.connections.set(key, connection);
    }
    connection.uses += 1;
    return connection;
  }

  release(connection: Connection): void {
    connection.uses -= 1;
    if (connection.retired && connection.uses === 0) connection.channel.close();
  }

  /** The next to use this address and lane connects anew. What is under way goes on. */
  discard(connection: Connection): void {
    if (this.connections.get(connection.key) === connection) this.retire(connection.key, connection);
  }

  private retire(key: string, connection: Connection): void {
    this.connections.delete(key);
    connection.retired = true;
    if (connection.uses === 0) connection.channel.close();
  }

  /** Closes connections; those with calls when these end. */
  close(): void {
    for (const [key, connection] of this.connections) this.retire(key, connection);
  }

  /** The address has answered. */
  prefer(route: Route): void {
    this.preferred = route.key;
  }

  /** Others are tried before this address. */
  avoid(route: Route): void {
    if (this.preferred !== undefined && this.preferred !== route.key) return;
    const other = this.all().find(({ key }) => key !== route.key);
    if (other !== undefined) this.preferred = other.key;
  }

  label(route: Route): string {
    return this.endpoints[route.endpoint]!.describe(route.address);
  }

  /** The lane for a call that waits, until it is left. */
  waitLane(): { lane: string; leave(): void } {
    const lane = `waits ${Math.floor(this.waits / WAITS_A_CHANNEL)}`;
    this.waits += 1;
    let left = false;
    return {
      lane,
      leave: () => {
        if (!left) this.waits -= 1;
        left = true;
      },
    };
  }

  /** What every request carries. Rejects with why there is no credential. */
  async dress(): Promise<Headers> {
    const headers = new Headers();
    await this.dressed(headers);
    const { headers: put, token } = this.#credentials;
    if (put !== undefined && put !== null) await put(headers);
    if (token !== undefined) await putToken(headers, token);
    return headers;
  }

  /** Names are resolved again by the next call. */
  forgetAddresses(): void {
    for (const entry of this.addresses.values()) entry.at = -Infinity;
  }

  /**
   * Calls an agent, and the next if it fails.
   *
   * @throws Failure if every attempt has failed, or an agent has refused; the reason of the plan's signal
   */
  async call<I extends DescMessage, O extends DescMessage>(
    plan: Plan,
    method: DescMethodUnary<I, O>,
    message: MessageInitShape<I>,
  ): Promise<Answer<MessageShape<O>>> {
    const over = new AbortController();
    const forget = onAbort(plan.signal, () => over.abort(reasonOf(plan.signal!)));
    try {
      return await this.rounds(plan, method, message, over.signal);
    } finally {
      forget();
      // Abandoned attempts end: the agent rolls back what they are granted.
      over.abort();
    }
  }

  private async rounds<I extends DescMessage, O extends DescMessage>(
    plan: Plan,
    method: DescMethodUnary<I, O>,
    message: MessageInitShape<I>,
    signal: AbortSignal,
  ): Promise<Answer<MessageShape<O>>> {
    const failures = new Failures();
    const left = () => Math.max(plan.until - performance.now(), 0);
    let pause = 50;
    for (let round = 1; ; round += 1) {
      const found = await within(this.routes(), left(), signal);
      if (found === TIMED_OUT) break;
      for (const { endpoint, why } of found.wrong) failures.put(endpoint, why, true);
      const routes = found.routes;
      const ended = new Mailbox<Ended<MessageShape<O>>>();
      let running = 0;
      const begin = () => {
        const route = routes.shift();
        if (route === undefined) return;
        running += 1;
        this.attempt(plan, route, method, message, signal).then(
          (result) => ended.put(result),
          (error: unknown) => ended.put({ route, is: "broken", why: deepest(error) }),
        );
      };
      begin();
      let next: Promise<Ended<MessageShape<O>> | undefined> | undefined;
      while (running > 0) {
        next ??= ended.next();
        const patience = plan.hedge !== undefined && routes.length > 0 ? Math.min(plan.hedge, left()) : left();
        const result = await within(next, patience, signal);
        if (result === TIMED_OUT || result === undefined) {
          if (left() === 0) {
            failures.uncertain = true;
            throw failures.over();
          }
          begin();
          continue;
        }
        next = undefined;
        running -= 1;
        const label = this.label(result.route);
        switch (result.is) {
          case "answered":
            this.prefer(result.route);
            return { value: result.value, sent: result.sent, uncertain: failures.uncertain || running > 0 };
          case "refused":
            failures.uncertain ||= running > 0;
            failures.refusal = { code: result.code, detail: result.why };
            // An older agent among newer ones changes nothing, and another may offer the call.
            if (result.code !== "UNIMPLEMENTED") throw failures.over();
            break;
          case "unsent":
            failures.put(label, result.why, true);
            break;
          case "broken":
            failures.uncertain = true;
            failures.put(label, result.why, true);
            break;
          case "unknown":
            failures.uncertain = true;
            failures.put(label, result.why);
            break;
          case "cut short":
            failures.uncertain = true;
            failures.putFirst(label, result.why);
            break;
        }
        begin();
      }
      if (failures.refusal !== undefined) throw failures.over();
      // All have failed: their names may have other addresses now.
      this.forgetAddresses();
      const rest = jittered(pause);
      if (!plan.again || round >= plan.rounds || performance.now() + rest >= plan.until) break;
      await sleep(rest, signal);
      pause = Math.min(pause * 2, 1_000);
    }
    throw failures.over();
  }

  private async attempt<I extends DescMessage, O extends DescMessage>(
    plan: Plan,
    route: Route,
    method: DescMethodUnary<I, O>,
    message: MessageInitShape<I>,
    signal: AbortSignal,
  ): Promise<Ended<MessageShape<O>>> {
    const begun = performance.now();
    const until = Math.min(plan.until, begun + plan.attempt);
    const cut = plan.until < begun + plan.attempt;
    let headers: Headers;
    try {
      const dressed = await within(this.dress(), until - begun, signal);
      if (dressed === TIMED_OUT) return { route, is: "unsent", why: "there was no token in time" };
      headers = dressed;
    } catch (error) {
      return { route, is: "unsent", why: deepest(error) };
    }
    const left = Math.max(until - performance.now(), 1);
    putDeadline(headers, left);
    const connection = this.use(route, plan.lane);
    const over = new AbortController();
    const forget = onAbort(signal, () => over.abort(reasonOf(signal)));
    let late = false;
    const cancel = after(left, () => {
      late = true;
      over.abort();
    });
    try {
      const stop = new Promise<never>((_, reject) => onAbort(over.signal, () => reject(reasonOf(over.signal) as Error)));
      stop.catch(() => {});
      try {
        await Promise.race([connection.channel.ready(), stop]);
      } catch (error) {
        if (late) this.discard(connection);
        return { route, is: "unsent", why: late ? `no connection within ${Math.round(left)} ms` : deepest(error) };
      }
      const sent = moment(this.clock);
      const call = connection.channel.transport.unary(method, over.signal, undefined, headers, message);
      // The transport may be slow to take notice.
      const response = await Promise.race([call, stop]);
      return { route, is: "answered", value: response.message, sent };
    } catch (error) {
      if (late) {
        this.discard(connection);
        return { route, is: cut ? "cut short" : "unknown", why: `no answer within ${Math.round(left)} ms` };
      }
      return { route, ...failed(error, connection.channel) };
    } finally {
      cancel();
      forget();
      this.release(connection);
    }
  }

  /** Opens a stream on a connection. */
  stream<I extends DescMessage, O extends DescMessage>(
    connection: Connection,
    method: DescMethodStreaming<I, O>,
    headers: Headers,
    messages: AsyncIterable<MessageInitShape<I>>,
    signal: AbortSignal,
  ): Promise<StreamResponse<I, O>> {
    return connection.channel.transport.stream(method, signal, undefined, headers, messages);
  }
}

/** A whole number of milliseconds: agents and proxies read nothing else. More than a day is no deadline. */
function putDeadline(headers: Headers, left: number): void {
  headers.set("grpc-timeout", `${Math.min(Math.max(Math.floor(left), 1), 99_999_999)}m`);
}
