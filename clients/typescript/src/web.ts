/**
 * The client for browsers: by gRPC-Web. It observes, reads, verifies tokens, and makes the plain calls.
 *
 * A page does not lead: browsers throttle the timers of hidden pages, freeze and discard them, and have
 * no streams in both directions. Let a service lead, and the page observe it.
 *
 * @packageDocumentation
 * @module web
 */

import { Calls, TIMEOUT } from "./calls.js";
import { millis, options as checked, string } from "./check.js";
import { ComparedClock } from "./clock.js";
import { type Credentials, checkedCredentials } from "./credentials.js";
import { WebEndpoint } from "./endpoint-web.js";
import { ConfigError } from "./errors.js";
import { type Logger, loggerOf } from "./log.js";
import { Pool } from "./pool.js";

export type { ObserveOptions } from "./calls.js";
export type { Calls } from "./calls.js";
export type { Credentials, TokenSource } from "./credentials.js";
export { type TransportOptions, agentTransport, observations } from "./endpoint-web.js";
export * from "./errors.js";
export type { LogFields, Logger } from "./log.js";
export type { ObserverEvent } from "./observe.js";
export type * from "./types.js";

/** Settings of an {@link Agent}. */
export interface AgentOptions extends Credentials {
  /** How long a plain call may take, with all its attempts, in ms: 1 or more; 10,000 unless given. */
  timeout?: number | undefined;
  /** Takes the log. Warnings and errors go to the console unless given. */
  log?: Logger | undefined;
}

/** One or several agents of the same elections, which a page calls by gRPC-Web. */
export class Agent extends Calls {
  /**
   * @param endpoints `https://a:8443`, or several, separated by commas; each may have a path, and be relative to the
   *   page
   * @throws {@link ConfigError} if one is no address
   */
  constructor(endpoints: string, options: AgentOptions = {}) {
    checked(options, "the settings of the agent", { token: true, headers: true, timeout: true, log: true });
    const credentials = checkedCredentials(options);
    const texts = string(endpoints, "the list of endpoints").split(",").map((part) => part.trim()).filter((part) => part !== "");
    if (texts.length === 0) throw new ConfigError("no endpoint is given");
    const log = loggerOf(options.log);
    const pool = new Pool(texts.map((part) => new WebEndpoint(part)), new ComparedClock(), log, credentials);
    super(pool, millis(options.timeout ?? TIMEOUT, "the timeout", 1), random);
  }
}

function random(bytes: Uint8Array): void {
  const { crypto } = globalThis as { crypto?: { getRandomValues(bytes: Uint8Array): unknown } };
  if (crypto !== undefined) crypto.getRandomValues(bytes);
  // Node.js 18 has none of pages. The ids have to be unique, and need not be secret.
  else bytes.forEach((_, at) => (bytes[at] = Math.random() * 256));
}
