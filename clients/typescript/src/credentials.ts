/** Gives a bearer token. It is called for each attempt of a call: keep a token that is still good. */
export type TokenSource = () => string | Promise<string>;

/** What every request of every client carries. */
export interface Credentials {
  /** A bearer token, or a function that gives one. Never in a URL, and never logged. */
  token?: string | TokenSource;
  /** Adds headers to each attempt of a call, such as a trace context. It may throw: then nothing is sent. */
  headers?: (headers: Headers) => void | Promise<void>;
}

/**
 * Puts the present token into a request's headers.
 *
 * @throws why there is none, or that it holds characters that no token has
 * @internal
 */
export async function putToken(headers: Headers, source: string | TokenSource): Promise<void> {
  const token: unknown = typeof source === "string" ? source : await source();
  if (typeof token !== "string" || token === "") throw new Error("there is no token");
  // What headers may hold, without blanks.
  if (!/^[\x21-\x7e]+$/.test(token)) throw new Error("the token has characters that no header may have");
  headers.set("authorization", `Bearer ${token}`);
}
