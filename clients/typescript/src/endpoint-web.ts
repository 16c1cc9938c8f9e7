import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createEnvelopeReadableStream, createMethodUrl, encodeEnvelope } from "@connectrpc/connect/protocol";
import {
  requestHeader,
  trailerFlag,
  trailerParse,
  validateResponse,
  validateTrailer,
} from "@connectrpc/connect/protocol-grpc-web";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { ConfigError } from "./errors.js";
import type { Channel, Endpoint } from "./pool.js";
import { Leadership, type Observation, ObservationSchema, type ObserveRequest, ObserveRequestSchema } from "./proto.js";

/** Credentials are the token's business: no cookies, and nothing from a cache. */
const FETCH: RequestInit = { credentials: "omit", cache: "no-store", redirect: "error" };

/** @internal An endpoint that is called by gRPC-Web. */
export class WebEndpoint implements Endpoint {
  readonly baseUrl: string;

  /** @throws ConfigError: why this is no endpoint */
  constructor(readonly label: string) {
    let url: URL;
    try {
      url = new URL(label, (globalThis as { document?: { baseURI: string } }).document?.baseURI);
    } catch {
      throw new ConfigError(`the endpoint ${label}: it is no address such as https://host:port`);
    }
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw new ConfigError(`the endpoint ${label}: the scheme is neither http nor https`);
    }
    if (url.search !== "" || url.hash !== "") throw new ConfigError(`the endpoint ${label}: it has a query or a fragment`);
    if (url.username !== "" || url.password !== "") throw new ConfigError(`the endpoint ${label}: it has a user name`);
    this.baseUrl = url.href.replace(/\/$/, "");
  }

  resolve(): Promise<string[]> {
    return Promise.resolve([""]);
  }

  describe(): string {
    return this.label;
  }

  version(): number {
    return 0;
  }

  channel(): Channel {
    return {
      transport: createGrpcWebTransport({
        baseUrl: this.baseUrl,
        fetch: (input, init) => fetch(input, { ...init, ...FETCH }),
      }),
      ready: () => Promise.resolve(),
      observe: (request, headers, signal) => observeByFetch(this.baseUrl, request, headers, signal),
      hint: () => undefined,
      close: () => {},
    };
  }
}

/**
 * Observes, with the parts that connect-web's transport is made of.
 *
 * A stream of its transport (2.3.0) keeps some 130 bytes of each message until it ends, since it races every read
 * against one promise for the end of the call. A page that follows 100 changes a second for hours would grow by 45 MiB
 * an hour.
 *
 * @throws ConnectError for a status, and what `fetch` throws for the network
 */
export async function* observeByFetch(
  baseUrl: string,
  request: ObserveRequest,
  extra: Headers,
  signal: AbortSignal,
): AsyncGenerator<Observation, void, undefined> {
  const response = await fetch(createMethodUrl(baseUrl, Leadership.method.observe), {
    method: "POST",
    headers: requestHeader(true, undefined, extra, false),
    body: encodeEnvelope(0, toBinary(ObserveRequestSchema, create(ObserveRequestSchema, request))),
    signal,
    ...FETCH,
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
