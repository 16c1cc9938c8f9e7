/**
 * The client for Node.js: leads, and follows who leads, by an election agent.
 *
 * @packageDocumentation
 * @module node
 */

import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { Calls, TIMEOUT, requestId } from "./calls.js";
import {
  electionOf,
  kindOf,
  millis,
  named,
  optionalFunction,
  optionalSignal,
  options as checkedOptions,
  shown,
  string,
  valueOf,
} from "./check.js";
import { systemClock } from "./clock-node.js";
import { type Credentials, type TokenSource, checkedCredentials } from "./credentials.js";
import { NodeEndpoint, Tls, type TlsFiles } from "./endpoint-node.js";
import { ConfigError } from "./errors.js";
import type { Hooks } from "./lead/hooks.js";
import { type Context, HeldTerm, disposable, lead, start } from "./lead/lead.js";
import { Seats } from "./lead/seats.js";
import { GRACE, type Settings, TERM, checked, marginOf } from "./lead/settings.js";
import { Streams } from "./lead/streams.js";
import type { Term } from "./lead/term.js";
import { Timer } from "./lead/timer.js";
import { type Logger, loggerOf } from "./log.js";
import { Pool, deepest } from "./pool.js";
import { putTrace } from "./trace.js";
import type { Abortable } from "./types.js";

export type { ObserveOptions } from "./calls.js";
export { Calls } from "./calls.js";
export type { Credentials, TokenSource } from "./credentials.js";
export type { TlsFiles } from "./endpoint-node.js";
export * from "./errors.js";
export type { Hooks, Standing } from "./lead/hooks.js";
export { HeldTerm } from "./lead/lead.js";
export { Term } from "./lead/term.js";
export type { LogFields, Logger } from "./log.js";
export type { ObserverEvent } from "./observe.js";
export type * from "./types.js";

/** Settings of an {@link Agent}. */
export interface AgentOptions extends Credentials, TlsFiles {
  /** A file with a bearer token, instead of `token`. Each attempt of a call shows the file's present content. */
  tokenFile?: string | undefined;
  /**
   * The name that leaders campaign under unless they give another: of this host and process, and random, unless given.
   * It has to be unique among processes.
   */
  candidate?: string | undefined;
  /**
   * How long a plain call may take, with all its attempts, in ms: 1 or more; 10,000 unless given. Leading has deadlines
   * of its own.
   */
  timeout?: number | undefined;
  /**
   * Whether leaders use streams, if the agent offers them: true unless given. Without them each leadership has calls of
   * its own, which proxies that know no streams in both directions let pass.
   */
  streams?: boolean | undefined;
  /** Takes the log. Warnings and errors go to the console unless given. */
  log?: Logger | undefined;
}

/** How a candidate leads an election. */
export interface LeadOptions extends Hooks, Abortable {
  /** The election's kind; `default` unless given. */
  kind?: string | undefined;
  /**
   * The name to campaign under; the agent's `candidate` unless given. It has to be unique among processes: one that
   * campaigns under the name of the leader takes its leadership over.
   */
  candidate?: string | undefined;
  /**
   * How long the leadership lasts unless it is extended, which is done every third of it, in ms: 1000 to what the agent
   * allows, 60,000 unless configured. 15,000 unless given.
   */
  term?: number | undefined;
  /** Public data of the leader, such as its address: at most 1024 bytes. */
  value?: string | undefined;
  /** For how many ms to wait to be elected; 0: not at all. For ever unless given. */
  wait?: number | undefined;
  /**
   * For how many ms the term is still extended after a loss was reported to the work because it could not be
   * extended: the time that the work has to end. 5000 unless given. After it the term lapses.
   */
  grace?: number | undefined;
  /**
   * How many ms before the end of the term the leadership counts as lost: at most half of the term. A tenth of the
   * term, but at most 1000, unless given.
   */
  margin?: number | undefined;
  /**
   * Ends the wait, which then rejects with the signal's reason. While the candidate leads, it aborts the term's signal;
   * the term is given up when the work has ended.
   */
  signal?: AbortSignal | undefined;
}

/**
 * One or several agents of the same elections.
 *
 * Nothing is connected before the first call. Calls go to one endpoint that answers, and at once to the others when it
 * fails. Connections without calls do not keep the process alive.
 */
export class Agent extends Calls {
  /** The name that leaders campaign under unless they give another. */
  readonly candidate: string;
  private readonly context: Context;

  /**
   * @param endpoints `https://a:8443`, or several, separated by commas. `http://` may be left out. Of a name that has
   *   several addresses, each is an endpoint.
   * @throws {@link ConfigError} if one is no address, or a file cannot be read or holds no certificate or key
   */
  constructor(endpoints: string, options: AgentOptions = {}) {
    checkedOptions(options, "the settings of the agent", AGENT);
    const { tokenFile, caFile, certFile, keyFile, serverName, streams: wanted = true } = options;
    for (const [name, value] of Object.entries({ tokenFile, caFile, certFile, keyFile, serverName })) {
      if (value !== undefined && string(value, name) === "") throw new ConfigError(`${name} is empty`);
    }
    if (typeof wanted !== "boolean") throw new ConfigError(`streams is ${shown(wanted)}: true or false`);
    const log = loggerOf(options.log);
    const token = tokenFrom(options, log);
    const credentials = checkedCredentials({ token, headers: options.headers });
    const parts = string(endpoints, "the list of endpoints").split(",").map((part) => part.trim()).filter((part) => part !== "");
    if (parts.length === 0) throw new ConfigError("no endpoint is given");
    const tls = new Tls({ caFile, certFile, keyFile, serverName }, log);
    const all = parts.map((part) => new NodeEndpoint(part, tls));
    if (!all.some(({ isEncrypted }) => isEncrypted)) {
      const useless = Object.entries({ caFile, certFile, keyFile, serverName }).find(([, value]) => value !== undefined);
      if (useless !== undefined) {
        throw new ConfigError(`${useless[0]} is for encrypted connections, and no endpoint begins with https://`);
      }
    }
    if (token !== undefined) {
      const plain = all.filter(({ isEncrypted }) => !isEncrypted).map(({ label }) => label);
      if (plain.length > 0) {
        log.warn?.("the bearer token goes over a connection that is not encrypted", { endpoints: plain });
      }
    }
    const pool = new Pool(all, systemClock(), log, credentials, putTrace);
    super(pool, millis(options.timeout ?? TIMEOUT, "the timeout", 1), random);
    this.candidate = named(options.candidate ?? nameOfProcess(), "the candidate");
    const deaths = new Timer(pool.clock);
    const leads = { pool, random };
    const streams = new Streams(leads, deaths, wanted);
    this.context = { ...leads, deaths, streams, seats: new Seats(), log };
  }

  /**
   * Waits until elected, runs the work, and resigns after the work has *ended*, so that the next candidate leads at
   * once.
   *
   * The term's `signal` reports the loss of the leadership to the work. If it goes on for longer than the grace, the
   * term is not extended any more and lapses, which is reported to `onState` and in the log; nothing can stop the work,
   * and this goes on waiting for it.
   *
   * @returns what the work returns
   * @throws {@link NotElected} after the time to wait; {@link NotKnown} or {@link Unreachable} if no agent answered at
   *   its end; {@link Refused} and {@link ConfigError} at once; {@link Lost} if the leadership was lost before the work
   *   had ended, with what the work has thrown as its cause; otherwise what the work has thrown
   */
  lead<T>(election: string, work: (term: Term) => T | Promise<T>): Promise<T>;
  lead<T>(election: string, options: LeadOptions, work: (term: Term) => T | Promise<T>): Promise<T>;
  async lead<T>(
    election: string,
    options: LeadOptions | ((term: Term) => T | Promise<T>),
    work?: (term: Term) => T | Promise<T>,
  ): Promise<T> {
    const run = typeof options === "function" ? options : work;
    if (typeof run !== "function") throw new ConfigError("lead needs a function that does the work");
    if (typeof options === "function" && work !== undefined) throw new ConfigError("lead takes its options before the work");
    const asked = typeof options === "function" || options === undefined ? {} : options;
    return lead(this.context, this.settings(election, asked), asked, asked.signal, run);
  }

  /**
   * Waits until elected. The term is extended in the background until it is given up, by `await using` or `resign`.
   *
   * @throws as {@link lead}, without {@link Lost}
   */
  async acquire(election: string, options: LeadOptions = {}): Promise<HeldTerm> {
    disposable(HeldTerm.prototype);
    return start(this.context, this.settings(election, options), options, options.signal);
  }

  /**
   * Leads again and again. Each term is given up when the loop's body has ended, however.
   *
   * @throws as {@link acquire}
   */
  async *terms(election: string, options: LeadOptions = {}): AsyncGenerator<HeldTerm, void, undefined> {
    for (;;) {
      const term = await this.acquire(election, options);
      try {
        yield term;
      } finally {
        await term.end();
      }
    }
  }

  private settings(election: string, options: LeadOptions): Settings {
    checkedOptions(options, "the options of a leadership", LEAD);
    for (const name of ["onState", "onLost", "onJeopardy", "alive"] as const) optionalFunction(options[name], name);
    optionalSignal(options.signal);
    const term = options.term ?? TERM;
    return checked({
      kind: kindOf(options.kind),
      election: electionOf(election),
      candidate: named(options.candidate ?? this.candidate, "the candidate"),
      term,
      value: valueOf(options.value ?? ""),
      wait: options.wait ?? Infinity,
      grace: options.grace ?? GRACE,
      margin: options.margin ?? marginOf(term),
    });
  }
}

const AGENT: Record<keyof AgentOptions, true> = {
  token: true,
  tokenFile: true,
  headers: true,
  caFile: true,
  certFile: true,
  keyFile: true,
  serverName: true,
  candidate: true,
  timeout: true,
  streams: true,
  log: true,
};

const LEAD: Record<keyof LeadOptions, true> = {
  kind: true,
  candidate: true,
  term: true,
  value: true,
  wait: true,
  grace: true,
  margin: true,
  alive: true,
  signal: true,
  onState: true,
  onLost: true,
  onJeopardy: true,
};

function random(bytes: Uint8Array): void {
  bytes.set(randomBytes(bytes.length));
}

/** The host's name, the process's number, and a random part that distinguishes agents of one process. */
function nameOfProcess(): string {
  // Of a host's name, at most what a candidate's name has room for.
  const host = hostname().replace(/\p{Cc}/gu, "").slice(0, 48);
  return `${host}-${process.pid}-${requestId(random).slice(0, 8)}`;
}

function tokenFrom({ token, tokenFile }: AgentOptions, log: Logger): string | TokenSource | undefined {
  if (tokenFile === undefined) {
    return token;
  }
  if (token !== undefined) throw new ConfigError("token and tokenFile exclude each other");
  let last: string | undefined;
  // Read each time: the file is small, and no sign of a change is as sure as its content.
  return async () => {
    try {
      const read = (await readFile(tokenFile, "utf8")).trim();
      // It may be in the middle of being replaced.
      if (read !== "") last = read;
      else if (last === undefined) throw new Error("it is empty");
    } catch (error) {
      if (last === undefined) throw new Error(`the token file ${tokenFile}: ${deepest(error)}`, { cause: undefined });
      log.warn?.("the token file: going on with the last token", { file: tokenFile, error: deepest(error) });
    }
    return last!;
  };
}
