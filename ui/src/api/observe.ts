import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Observation, ObserveRequestSchema } from "@election-agent/client/proto";
import { observations } from "@election-agent/client/web";

/** What the page observes. */
export type ObserveInit = MessageInitShape<typeof ObserveRequestSchema>;

/**
 * Observes by one stream: the page connects again by itself, and tells what it has missed.
 *
 * @throws ConnectError for a status, and what `fetch` throws for the network
 */
export function observe(base: string, token: string, init: ObserveInit, signal: AbortSignal): AsyncIterable<Observation> {
  const headers = new Headers();
  if (token !== "") headers.set("authorization", `Bearer ${token}`);
  return observations(base, init, headers, signal);
}
