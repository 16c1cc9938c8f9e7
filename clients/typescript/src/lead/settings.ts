import { ConfigError } from "../errors.js";
import { millis } from "../check.js";

/** @internal How long a leadership lasts unless it is extended, if not said otherwise, in ms. */
export const TERM = 15_000;
/** @internal How long work may go on after the loss was reported to it, if not said otherwise, in ms. */
export const GRACE = 5_000;
/** The longest margin, unless it is asked for, in ms. */
const MARGIN = 1_000;

/** @internal How a candidate leads. Times in ms. */
export interface Settings {
  readonly kind: string;
  readonly election: string;
  readonly candidate: string;
  readonly term: number;
  readonly value: string;
  /** Infinity: for ever. */
  readonly wait: number;
  readonly grace: number;
  readonly margin: number;
}

/** @internal What is taken for a margin that is not given. */
export function marginOf(term: unknown): number {
  // The check of the term reports what is no number.
  return typeof term !== "number" ? 0 : Math.min(MARGIN, Math.floor(term / 10));
}

/**
 * Checks for mistakes that no agent can detect.
 *
 * @throws ConfigError
 * @internal
 */
export function checked(settings: Settings): Settings {
  const { wait } = settings;
  const all = {
    ...settings,
    term: millis(settings.term, "the term"),
    wait: wait === Infinity ? wait : millis(wait, "the wait"),
    grace: millis(settings.grace, "the grace"),
    margin: millis(settings.margin, "the margin"),
  };
  if (all.term < 1_000) throw new ConfigError(`the term is ${settings.term} ms: at least 1000`);
  if (all.margin > all.term / 2) {
    throw new ConfigError(`the margin is ${all.margin} ms: at most half of the term, which is ${all.term} ms`);
  }
  return all;
}
