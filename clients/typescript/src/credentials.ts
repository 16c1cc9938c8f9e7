import { optionalFunction } from "./check.js";
import { ConfigError } from "./errors.js";

/** Gives a bearer token. It is called for each attempt of a call: keep a token that is still good. */
export type TokenSource = () => string | Promise<string>;

/** What every request of every client carries. */
export interface Credentials {
  /** A bearer token, or a function that gives one. Never in a URL, and never logged. */
  token?: string | TokenSource | undefined;
  /** Adds headers to each attempt of a call, such as a trace context. It may throw: then nothing is sent. */
  headers?: ((headers: Headers) => void | Promise<void>) | undefined;
}

/**
 * Credentials and nothing else, checked.
 *
 * @throws ConfigError: what they are cannot be sent
 * @internal
 */
export function checkedCredentials({ token, headers }: Credentials): Credentials {
  if (token !== undefined && typeof token !== "string" && typeof token !== "function") {
    throw new ConfigError("the token is neither a string nor a function that gives one");
  }
  if (typeof token === "string") {
    const wrong = wrongToken(token);
    if (wrong !== undefined) throw new ConfigError(wrong);
  }
  optionalFunction(headers, "headers");
  return { token, headers };
}

/** Why this is no token, without what it is. */
function wrongToken(token: unknown): string | undefined {
  if (typeof token !== "string" || token === "") return "there is no token";
  // What headers may hold, without blanks.
  if (!/^[\x21-\x7e]+$/.test(token)) return "the token has characters that no header may have, such as a line end";
  return undefined;
}

/**
 * Puts the present token into a request's headers.
 *
 * @throws why there is none, or that it holds characters that no token has
 * @internal
 */
export async function putToken(headers: Headers, source: string | TokenSource): Promise<void> {
  const token: unknown = typeof source === "string" ? source : await source();
  const wrong = wrongToken(token);
  if (wrong !== undefined) throw new Error(wrong);
  headers.set("authorization", `Bearer ${token}`);
}
