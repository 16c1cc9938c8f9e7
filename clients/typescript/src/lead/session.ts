import { type MessageInitShape, create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Moment, moment } from "../clock.js";
import { type ElectionError, NotKnown, type Tried, Unreachable, listed } from "../errors.js";
import { type Connection, type Pool, type Route, deepest, describe, refusalOf } from "../pool.js";
import { type LeadEvent, type LeadRequest, LeadRequestSchema, Leadership } from "../proto.js";
import { Mailbox, TIMED_OUT, onAbort, reasonOf, within } from "../wait.js";

/** The shortest and the longest time after which another agent is asked for a stream, too, in ms. */
const OPEN = [300, 2_000] as const;
/**
 * The shortest and the longest time in which an agent is to open a stream, in ms: one that is slow is better than none.
 */
const PATIENCE = [1_000, 4_000] as const;
/** How many pings are remembered, for standings that name them. */
const PINGS = 64;

/** @internal When a message was sent, noted before: by the clock of terms, and by performance.now() for time-outs. */
export interface Sent {
  readonly moment: Moment;
  readonly at: number;
}

/** @internal Why there is no stream. */
export type NotOpen =
  /** Older agents have none. */
  | { not: "offered" }
  /** The application does not report that it is alive. */
  | { not: "alive"; why: string }
  | { not: "permitted"; why: string }
  /** `silent`: an agent has sent nothing in all the time it had. */
  | { not: "reached"; error: ElectionError; silent: boolean };

/** @internal */
export type What = NonNullable<MessageInitShape<typeof LeadRequestSchema>["what"]>;

/** @internal An open stream, which an agent has welcomed. */
export class Session {
  private readonly pings: { seq: bigint; sent: Sent }[] = [];
  private lastPing = 0n;
  private lastPong = 0n;
  private over = false;
  /** How long the agent took to answer last, in ms. */
  answersIn: number;

  constructor(
    private readonly pool: Pool,
    readonly route: Route,
    readonly connection: Connection,
    readonly events: AsyncIterator<LeadEvent>,
    private readonly requests: Mailbox<LeadRequest>,
    private readonly hello: Sent,
    private readonly close: () => void,
  ) {
    this.answersIn = performance.now() - hello.at;
  }

  send(what: What): void {
    this.requests.put(create(LeadRequestSchema, { what }));
  }

  ping(): void {
    this.lastPing += 1n;
    if (this.pings.length === PINGS) this.pings.shift();
    // Before it is sent: what is granted counts from here.
    this.pings.push({ seq: this.lastPing, sent: sentNow(this.pool) });
    this.send({ case: "ping", value: { seq: this.lastPing } });
  }

  /** When a ping was sent. One that is not remembered counts as sent with Hello, which was earlier. */
  sent(ping: bigint): Sent {
    return this.pings.find(({ seq }) => seq === ping)?.sent ?? this.hello;
  }

  answered(ping: bigint): void {
    if (ping > this.lastPong) this.lastPong = ping;
    this.answersIn = performance.now() - this.sent(ping).at;
  }

  /** Whether a ping is unanswered for clearly longer than the agent took to answer last. */
  isLate(): boolean {
    const since = this.silentSince();
    return since !== undefined && performance.now() - since > this.answersIn * 1.25;
  }

  /** When the first ping was sent that is not answered. */
  silentSince(): number | undefined {
    return this.pings.find(({ seq }) => seq > this.lastPong)?.sent.at;
  }

  /** Ends the stream. Nothing is given up. */
  end(): void {
    if (this.over) return;
    this.over = true;
    this.requests.end();
    this.close();
  }
}

function sentNow(pool: Pool): Sent {
  return { moment: moment(pool.clock), at: performance.now() };
}

/**
 * Opens a stream at the agent that answers first.
 *
 * @param leads a term runs meanwhile, which may have to be extended by calls
 * @throws the signal's reason
 * @internal
 */
export async function open(
  pool: Pool,
  candidate: string,
  pingEvery: number,
  leads: boolean,
  signal: AbortSignal,
): Promise<Session | NotOpen> {
  const { routes, wrong } = (await within(pool.routes(), Infinity, signal)) as Awaited<ReturnType<Pool["routes"]>>;
  const tried: Tried[] = [...wrong];
  const next = clamp(pingEvery / 2, OPEN);
  const time = clamp(leads ? pingEvery : 2 * pingEvery, PATIENCE);
  const ended = new Mailbox<Session | Failed>();
  const losers = new AbortController();
  const forget = onAbort(signal, () => losers.abort(reasonOf(signal)));
  let running = 0;
  let reached = false;
  let silent = false;
  let older = false;
  let won = false;
  const begin = () => {
    const route = routes.shift();
    if (route === undefined) return;
    running += 1;
    openAt(pool, route, candidate, pingEvery, time, losers.signal).then(
      (result) => {
        if (won && result instanceof Session) result.end();
        else ended.put(result);
      },
      (error: unknown) => ended.put({ route, why: deepest(error), code: undefined, reached: false, silent: false }),
    );
  };
  try {
    begin();
    let result: Promise<Session | Failed | undefined> | undefined;
    while (running > 0) {
      result ??= ended.next();
      const one = await within(result, routes.length > 0 || older ? next : Infinity, signal);
      if (one === TIMED_OUT || one === undefined) {
        // Calls to the older one do rather than to wait for those that keep silent.
        if (older && routes.length === 0) break;
        begin();
        continue;
      }
      result = undefined;
      running -= 1;
      if (one instanceof Session) {
        won = true;
        pool.prefer(one.route);
        return one;
      }
      if (one.code === "UNIMPLEMENTED") {
        // Another of the agents may be newer.
        older = true;
        begin();
        continue;
      }
      if (one.code !== undefined) return { not: "permitted", why: one.why };
      reached ||= one.reached;
      silent ||= one.silent;
      tried.push({ endpoint: pool.label(one.route), why: one.why });
      begin();
    }
  } finally {
    won = true;
    forget();
    losers.abort();
  }
  if (older) return { not: "offered" };
  pool.forgetAddresses();
  const error = reached ? new NotKnown(listed(tried)) : new Unreachable(tried);
  return { not: "reached", error, silent };
}

function clamp(ms: number, [least, most]: readonly [number, number]): number {
  return Math.min(Math.max(ms, least), most);
}

interface Failed {
  route: Route;
  why: string;
  code: ReturnType<typeof refusalOf>;
  reached: boolean;
  silent: boolean;
}

async function openAt(
  pool: Pool,
  route: Route,
  candidate: string,
  pingEvery: number,
  time: number,
  losers: AbortSignal,
): Promise<Session | Failed> {
  const waiting = pool.waitLane();
  const connection = pool.use(route, waiting.lane);
  const requests = new Mailbox<LeadRequest>();
  const over = new AbortController();
  const close = () => {
    over.abort();
    waiting.leave();
    pool.release(connection);
  };
  let connected = false;
  const opening = async () => {
    const headers = await pool.dress();
    await connection.channel.ready();
    connected = true;
    over.signal.throwIfAborted();
    const hello = sentNow(pool);
    // Some agents reply only after Hello.
    requests.put(create(LeadRequestSchema, { what: { case: "hello", value: { candidate, pingEvery } } }));
    const response = await pool.stream(connection, Leadership.method.lead, headers, requests, over.signal);
    const events = response.message[Symbol.asyncIterator]();
    const first = await events.next();
    const what = first.done === true ? undefined : first.value.what;
    if (what?.case === "goodbye") throw new Error(`goodbye: ${what.value.reason}`);
    if (what?.case !== "welcome") throw new Error("the agent did not welcome the stream");
    return new Session(pool, route, connection, events, requests, hello, close);
  };
  try {
    const session = await within(opening(), time, losers);
    if (session !== TIMED_OUT) return session;
    close();
    pool.discard(connection);
    const why = `no stream within ${Math.round(time)} ms`;
    return { route, why, code: undefined, reached: true, silent: true };
  } catch (error) {
    close();
    const code = error instanceof ConnectError ? refusalOf(error) : undefined;
    if (code === undefined && !losers.aborted) pool.discard(connection);
    const silent = error instanceof ConnectError && error.code === Code.DeadlineExceeded;
    const why = connected ? describe(error, connection.channel) : deepest(error);
    return { route, why, code, reached: connected, silent };
  }
}
