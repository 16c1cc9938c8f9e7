import { ConfigError } from "./errors.js";

/** The most that an int32 of the wire holds, as ms. */
const MOST = 2 ** 31 - 1;
/** The longest name, and the longest request id, in bytes. */
const NAME = 256;
/** The longest value of a leader, in bytes. */
const VALUE = 1024;

/** @internal What was given, for messages: whatever it is. */
export function shown(value: unknown): string {
  if (typeof value === "bigint") return `${value}n`;
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object" && value !== null) return "an object";
  return typeof value === "function" ? "a function" : String(value);
}

/**
 * An object that the caller has given; an empty one for undefined, where that is allowed.
 *
 * @internal
 */
export function object<T extends object>(value: T | undefined, what: string): T {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    // No text: the caller may have given a token in its place.
    throw new ConfigError(`${what}: an object is needed, and this is ${typeof value === "string" ? "a string" : shown(value)}`);
  }
  return value;
}

/**
 * Options. A key that is none of them is a mistake: what it was to change would not be changed.
 *
 * @internal
 */
export function options<T extends object>(value: T | undefined, what: string, known: Record<keyof T, true>): T {
  const given = value === undefined ? ({} as T) : object(value, what);
  for (const key of Object.keys(given)) {
    if (!Object.hasOwn(known, key)) {
      throw new ConfigError(`${what}: there is no ${JSON.stringify(key)}, only ${Object.keys(known).join(", ")}`);
    }
  }
  return given;
}

/** @internal Fails unless it is a function, or not given. */
export function optionalFunction(value: unknown, what: string): void {
  if (value !== undefined && value !== null && typeof value !== "function") {
    throw new ConfigError(`${what} is ${shown(value)}: it is no function`);
  }
}

/** @internal Fails unless it is an AbortSignal, or not given. */
export function optionalSignal(value: unknown): void {
  if (value === undefined) return;
  const { aborted, addEventListener } = (value ?? {}) as Partial<AbortSignal>;
  if (typeof aborted === "boolean" && typeof addEventListener === "function") return;
  const controller = typeof value === "object" && value !== null && "abort" in value;
  throw new ConfigError(`the signal is ${shown(value)}: an AbortSignal${controller ? ", as the controller's signal is" : ""}`);
}

/** @internal Options that are a signal only. */
export function abortable<T extends { signal?: AbortSignal | undefined }>(value: T | undefined): T {
  const given = options(value, "the options of the call", { signal: true } as Record<keyof T, true>);
  optionalSignal(given.signal);
  return given;
}

/**
 * Milliseconds for the wire: rounded down, so that no term is longer than requested.
 *
 * @internal
 */
export function millis(ms: unknown, what: string, least = 0): number {
  if (typeof ms !== "number" || !Number.isFinite(ms) || ms < least) {
    throw new ConfigError(`${what} is ${shown(ms)}: a number of milliseconds, ${least} or more`);
  }
  if (ms > MOST) throw new ConfigError(`${what} is ${ms} ms: at most ${MOST}`);
  return Math.floor(ms);
}

/** @internal A token for the wire. */
export function tokenOf(token: unknown): bigint {
  if (typeof token !== "number" || !Number.isSafeInteger(token) || token < 0) {
    throw new ConfigError(`the token is ${shown(token)}: a whole number of 0 to 2^53 - 1`);
  }
  return BigInt(token);
}

/** @internal A string. */
export function string(value: unknown, what: string): string {
  if (typeof value !== "string") throw new ConfigError(`${what} is ${shown(value)}: a string`);
  return value;
}

/** A text for the wire. Encoded, all halves of surrogate pairs would be the same replacement character. */
function text(value: unknown, what: string, most: number): string {
  const given = string(value, what);
  if (/\p{Surrogate}/u.test(given)) throw new ConfigError(`${what} holds half of a surrogate pair, which is no character`);
  const bytes = new TextEncoder().encode(given).length;
  if (bytes > most) throw new ConfigError(`${what} is ${bytes} bytes long: at most ${most}`);
  return given;
}

/** @internal A leader's value for the wire. */
export function valueOf(value: unknown): string {
  return text(value, "the value", VALUE);
}

/** @internal A request's id for the wire. An empty one would not make it safe to repeat. */
export function idOf(value: unknown): string {
  if (value === "") throw new ConfigError(`the request id is empty: 1 to ${NAME} bytes, or none`);
  return text(value, "the request id", NAME);
}

/** @internal A name for the wire. */
export function named(value: unknown, what: string): string {
  const given = text(value, what, NAME);
  if (given === "") throw new ConfigError(`${what} is empty: 1 to ${NAME} bytes`);
  const control = /\p{Cc}/u.exec(given);
  if (control !== null) {
    const code = control[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    throw new ConfigError(`${what} holds the control character U+${code}: leave it out`);
  }
  return given;
}

/** @internal The name of an election, or what it begins with, for the wire. */
export function electionOf(value: unknown, what = "the election"): string {
  const given = named(value, what);
  if (given.includes("/")) throw new ConfigError(`${what} holds a "/": use another separator, such as ":" or "."`);
  return given;
}

/** The kind of elections that are given none. */
const DEFAULT_KIND = "default";

/** @internal A kind for the wire. */
export function kindOf(value: unknown): string {
  return value === undefined || value === "" ? DEFAULT_KIND : electionOf(value, "the kind");
}
