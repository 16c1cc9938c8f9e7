import { type MessageInitShape, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createEnvelopeReadableStream, createMethodUrl, encodeEnvelope } from "@connectrpc/connect/protocol";
import {
  requestHeader,
  trailerFlag,
  trailerParse,
  validateResponse,
  validateTrailer,
} from "@connectrpc/connect/protocol-grpc-web";
import { Leadership, type Observation, ObservationSchema, ObserveRequestSchema } from "../gen/election_agent/v1/election_agent_pb";

/** What the page observes. */
export type ObserveInit = MessageInitShape<typeof ObserveRequestSchema>;

/**
 * Observes, with the parts that connect-web's transport is made of.
 *
 * A stream of its transport (2.3.0) keeps some 130 bytes of each message until it ends, since it races every read against
 * one promise for the end of the call. A page that follows 100 changes a second for hours would grow by 45 MiB an hour.
 *
 * @throws ConnectError for a status, and what `fetch` throws for the network
 */
export async function* observe(base: string, token: string, init: ObserveInit, signal: AbortSignal): AsyncGenerator<Observation> {
  const headers = requestHeader(true, undefined, undefined, false);
  if (token !== "") headers.set("authorization", `Bearer ${token}`);
  const response = await fetch(createMethodUrl(base, Leadership.method.observe), {
    method: "POST",
    headers,
    body: encodeEnvelope(0, toBinary(ObserveRequestSchema, create(ObserveRequestSchema, init))),
    signal,
    credentials: "omit",
    cache: "no-store",
    redirect: "error",
  });
  const { headerError } = validateResponse(response.status, response.headers);
  if (headerError !== undefined) throw headerError;
  if (response.body === null) throw new TypeError("the response has no body");
  const reader = createEnvelopeReadableStream(response.body).getReader();
  let ended = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if ((value.flags & trailerFlag) === trailerFlag) {
      validateTrailer(trailerParse(value.data), response.headers);
      ended = true;
    } else {
      yield fromBinary(ObservationSchema, value.data);
    }
  }
  if (!ended && !response.headers.has("grpc-status")) throw new TypeError("the response was cut");
}
