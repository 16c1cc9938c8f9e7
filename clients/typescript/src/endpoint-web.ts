import { type MessageInitShape, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { Interceptor, Transport } from "@connectrpc/connect";
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
import { Leadership, type Observation, ObservationSchema, ObserveRequestSchema } from "./proto.js";

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
    if (url.username !== "" || url.password !== "") {
      url.username = url.password = "";
      throw new ConfigError(`the endpoint ${url.href}: it had a user name or a password, and has to have none`);
    }
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
      transport: agentTransport(this.baseUrl),
      ready: () => Promise.resolve(),
      observe: (request, headers, signal) => observations(this.baseUrl, request, headers, signal),
      hint: () => undefined,
      close: () => {},
    };
  }
}

/** How pages reach an agent. */
export interface TransportOptions {
  /** Intercept each call: to add a credential, or to report a failure. */
  interceptors?: Interceptor[] | undefined;
  /** How long a call may take, in ms; for ever unless given. */
  timeout?: number | undefined;
}

/**
 * How pages reach an agent by gRPC-Web, for clients of the generated services: no cookies, and nothing from a cache.
 */
export function agentTransport(baseUrl: string, options: TransportOptions = {}): Transport {
  const { interceptors = [], timeout } = options;
  return createGrpcWebTransport({
    baseUrl,
    interceptors,
    fetch: (input, init) => fetch(input, { ...init, ...FETCH }),
    ...(timeout === undefined ? {} : { defaultTimeoutMs: timeout }),
  });
}

/**
 * One stream of `Leadership.Observe`, as the agent sends it, for callers that reconnect by themselves. Made with the
 * parts that connect-web's transport is made of.
 *
 * A stream of its transport (2.3.0) keeps some 130 bytes of each message until it ends, since it races every read
 * against one promise for the end of the call. A page that follows 100 changes a second for hours would grow by 45 MiB
 * an hour.
 *
 * @throws ConnectError for a status, and what `fetch` throws for the network
 */
export async function* observations(
  baseUrl: string,
  request: MessageInitShape<typeof ObserveRequestSchema>,
  headers: Headers,
  signal: AbortSignal,
): AsyncGenerator<Observation, void, undefined> {
  const response = await fetch(createMethodUrl(baseUrl, Leadership.method.observe), {
    method: "POST",
    headers: requestHeader(true, undefined, headers, false),
    // Some versions of connect declare less of its type than there is.
    body: encodeEnvelope(0, toBinary(ObserveRequestSchema, create(ObserveRequestSchema, request))) as Uint8Array<ArrayBuffer>,
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
