import { type Client, type Interceptor, createClient } from "@connectrpc/connect";
import { signal } from "@preact/signals";
import { Agent, Election, type Observation } from "@election-agent/client/proto";
import { agentTransport } from "@election-agent/client/web";
import { apiBaseOfDocument } from "./base";
import { failureOf } from "./errors";
import { type ObserveInit, observe } from "./observe";

/** The services of the agent. */
export interface Api {
  base: string;
  election: Client<typeof Election>;
  observe(request: ObserveInit, signal: AbortSignal): AsyncIterable<Observation>;
  agent: Client<typeof Agent>;
}

/** The bearer token. It is kept here only: not in storage, and not in any URL. Empty: none. */
export const token = signal("");

/** Why the agent wants a (different) token; undefined while it has not asked for one. */
export const tokenWanted = signal<string | undefined>(undefined);

/** Counts changes of the token, so that pages start anew. */
export const session = signal(0);

/** Uses a token from now on. */
export function login(text: string): void {
  token.value = text.trim();
  tokenWanted.value = undefined;
  session.value += 1;
}

/** Forgets the token. The page asks for one again if the agent wants one. */
export function forgetToken(): void {
  token.value = "";
  tokenWanted.value = undefined;
  session.value += 1;
}

/** Asks the user for a token, unless the refusal is of an earlier one. */
export function askForToken(detail: string, ofSession: number): void {
  if (ofSession === session.value) tokenWanted.value = detail;
}

const authenticate: Interceptor = (next) => async (request) => {
  const ofSession = session.value;
  if (token.value !== "") request.header.set("authorization", `Bearer ${token.value}`);
  try {
    return await next(request);
  } catch (error) {
    const failure = failureOf(error);
    if (failure.trouble === "unauthenticated") askForToken(failure.detail, ofSession);
    throw error;
  }
};

/** Makes the clients of an agent. */
export function connect(base: string): Api {
  const transport = agentTransport(base, { interceptors: [authenticate], timeout: 10_000 });
  return {
    base,
    election: createClient(Election, transport),
    observe: (request, signal) => observe(base, token.value, request, signal),
    agent: createClient(Agent, transport),
  };
}

let api: Api | undefined;

/** The agent of this page. */
export function theApi(): Api {
  api ??= connect(apiBaseOfDocument());
  return api;
}

/** Replaces the agent of this page, in tests. */
export function useApi(other: Api): void {
  api = other;
}
