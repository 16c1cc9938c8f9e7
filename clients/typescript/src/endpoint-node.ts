import { lookup } from "node:dns/promises";
import { readFileSync } from "node:fs";
import { type Socket, isIP, connect as connectTcp } from "node:net";
import type { Duplex } from "node:stream";
import {
  type ConnectionOptions,
  type SecureContextOptions,
  checkServerIdentity,
  connect as connectTls,
  createSecureContext,
} from "node:tls";
import { createClient } from "@connectrpc/connect";
import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";
import { ConfigError } from "./errors.js";
import type { Logger } from "./log.js";
import { type Channel, type Endpoint, deepest } from "./pool.js";
import { Leadership, type Observation, type ObserveRequest } from "./proto.js";

/** How long a connection may take, in ms. */
const CONNECT = 2_000;
/** Agents cut connections that are pinged more often than every 18 s. In ms. */
const KEEP_ALIVE = 20_000;
const KEEP_ALIVE_ANSWER = 10_000;
/** Agents close connections without calls after this, too, unless configured otherwise. In ms. */
const IDLE = 30_000;
/** How often files of certificates are checked, in ms. */
const LOOK = 1_000;

/** Files for encrypted connections. New connections use their present content. */
export interface TlsFiles {
  /** A PEM file with the authorities to trust, and no others. Without it those that Node.js trusts are. */
  caFile?: string | undefined;
  /** A PEM file with the client's certificate, for mutual TLS; with `keyFile`. */
  certFile?: string | undefined;
  /** A PEM file with the certificate's key. */
  keyFile?: string | undefined;
  /** The name that the agent's certificate has to be for, if it is not the endpoint's. */
  serverName?: string | undefined;
}

/** @internal What is in the files, and which version of them that is. */
export class Tls {
  /** With a private key: not shown when an agent is printed. */
  #contents: SecureContextOptions = {};
  private looked = -Infinity;
  private count = 0;

  /** @throws ConfigError: a file cannot be read, or holds nothing that could be of use */
  constructor(
    private readonly files: TlsFiles,
    private readonly log: Logger,
  ) {
    const { certFile, keyFile } = files;
    if ((certFile === undefined) !== (keyFile === undefined)) {
      throw new ConfigError("certFile and keyFile go together: give both or none");
    }
    this.#contents = this.read();
    this.looked = performance.now();
  }

  get serverName(): string | undefined {
    return this.files.serverName;
  }

  private read(): SecureContextOptions {
    const { caFile, certFile, keyFile } = this.files;
    const contents: SecureContextOptions = {};
    if (caFile !== undefined) contents.ca = pem(caFile, "CERTIFICATE", "certificate");
    if (certFile !== undefined && keyFile !== undefined) {
      contents.cert = pem(certFile, "CERTIFICATE", "certificate");
      contents.key = pem(keyFile, "PRIVATE KEY", "private key");
    }
    try {
      // A certificate and a key that do not belong together are in the middle of being replaced.
      createSecureContext(contents);
    } catch (error) {
      const names = [caFile, certFile, keyFile].filter((name) => name !== undefined);
      throw new ConfigError(`${names.join(", ")}: ${deepest(error)}`, { cause: error });
    }
    return contents;
  }

  /** Checks the files, if that was not done just now. Returns the number of their version. */
  version(): number {
    const { caFile, certFile } = this.files;
    const now = performance.now();
    if ((caFile === undefined && certFile === undefined) || now - this.looked < LOOK) return this.count;
    this.looked = now;
    try {
      const contents = this.read();
      const { ca, cert, key } = this.#contents;
      if (contents.ca !== ca || contents.cert !== cert || contents.key !== key) {
        this.#contents = contents;
        this.count += 1;
      }
    } catch (error) {
      this.log.warn?.("files of certificates: going on with the last ones", { error: deepest(error) });
    }
    return this.count;
  }

  present(): SecureContextOptions {
    return this.#contents;
  }
}

function pem(path: string, label: string, what: string): string {
  let content: string;
  try {
    content = readFileSync(path, "latin1");
  } catch (error) {
    throw new ConfigError(`${path}: ${deepest(error)}`, { cause: error });
  }
  if (!content.includes(`${label}-----`)) throw new ConfigError(`${path}: there is no ${what} in it`);
  return content;
}

/** @internal An endpoint that is called by HTTP/2. */
export class NodeEndpoint implements Endpoint {
  readonly baseUrl: string;
  readonly isEncrypted: boolean;
  private readonly host: string;
  private readonly port: number;

  /** @throws ConfigError: why this is no endpoint */
  constructor(
    readonly label: string,
    private readonly tls: Tls,
  ) {
    // Without the password that an endpoint does not have.
    const wrong = (why: string) => new ConfigError(`the endpoint ${label.replace(/\/\/.*@|^.*@/s, "//…@")}: ${why}`);
    const text = label.includes("://") ? label : `http://${label}`;
    const scheme = text.slice(0, text.indexOf("://")).toLowerCase();
    if (scheme !== "http" && scheme !== "https") throw wrong("the scheme is neither http nor https");
    let url: URL;
    try {
      url = new URL(text);
    } catch {
      throw wrong("it is no address such as https://host:port");
    }
    if ((url.pathname !== "/" && url.pathname !== "") || url.search !== "" || url.hash !== "") {
      throw wrong("an endpoint has no path");
    }
    const host = text.slice(scheme.length + 3);
    if (host.includes("@")) throw wrong("an endpoint has no user name");
    if (/[?#]/.test(host)) throw wrong("an endpoint has no path");
    // URLs take such a number for an IPv4 address, and leave blanks out.
    if (/^\d+(:|$)/.test(host)) throw wrong("it has no host, only a number");
    if (/[\s\p{Cc}]/u.test(host)) throw wrong("it holds a blank");
    if (!/^([\w.-]+|\[.*\])$/.test(url.hostname)) throw wrong("there is no host");
    if (/:\/?$/.test(text)) throw wrong('there is no port "": 1 to 65535');
    this.isEncrypted = scheme === "https";
    this.host = url.hostname.replace(/^\[(.*)\]$/, "$1");
    this.port = url.port === "" ? (this.isEncrypted ? 443 : 80) : Number(url.port);
    if (this.port === 0) throw wrong('there is no port "0": 1 to 65535');
    // The `:authority` of every call, whatever the address.
    this.baseUrl = url.origin;
  }

  async resolve(): Promise<string[]> {
    if (isIP(this.host) !== 0) return [this.host];
    const found = (await lookup(this.host, { all: true })).map(({ address }) => address);
    // So that the clients of several agents behind a name spread over them.
    for (let last = found.length - 1; last > 0; last -= 1) {
      const other = Math.floor(Math.random() * (last + 1));
      [found[last], found[other]] = [found[other]!, found[last]!];
    }
    return [...new Set(found)];
  }

  describe(address: string): string {
    return address === this.host ? this.label : `${this.label} (${address})`;
  }

  version(): number {
    return this.isEncrypted ? this.tls.version() : 0;
  }

  channel(address: string): Channel {
    const at = { host: address, port: this.port, noDelay: true };
    if (!this.isEncrypted) {
      let socket: Socket | undefined;
      // An alert of TLS is shorter than the header of a frame.
      const hint = () => {
        const read = socket?.bytesRead ?? 0;
        return read > 0 && read < 9 ? "it speaks no HTTP/2 without encryption; https:// is for an agent with TLS" : undefined;
      };
      return new NodeChannel(this.baseUrl, () => (socket = connectTcp(at)), hint);
    }
    const name = this.tls.serverName ?? this.host;
    const options: ConnectionOptions = {
      ...at,
      ...this.tls.present(),
      ALPNProtocols: ["h2"],
      // No name is sent for an address.
      servername: isIP(name) === 0 ? name : "",
      checkServerIdentity: (_, certificate) => checkServerIdentity(name, certificate),
    };
    return new NodeChannel(this.baseUrl, () => connectTls(options), () => undefined);
  }
}

class NodeChannel implements Channel {
  readonly transport;
  private readonly manager: Http2SessionManager;

  constructor(
    baseUrl: string,
    createConnection: () => Duplex,
    readonly hint: () => string | undefined,
  ) {
    const pings = {
      pingIntervalMs: KEEP_ALIVE,
      pingTimeoutMs: KEEP_ALIVE_ANSWER,
      idleConnectionTimeoutMs: IDLE,
      connectTimeoutMs: CONNECT,
    };
    this.manager = new Http2SessionManager(baseUrl, pings, { createConnection });
    this.transport = createGrpcTransport({ baseUrl, sessionManager: this.manager, acceptCompression: [] });
  }

  async ready(): Promise<void> {
    if ((await this.manager.connect()) !== "error") return;
    const error = this.manager.error();
    // The reply of an agent without encryption is no TLS message.
    if (/wrong version number/i.test(deepest(error))) throw new Error("it speaks no TLS, as an agent at http:// does");
    throw error ?? new Error("there is no connection");
  }

  observe(request: ObserveRequest, headers: Headers, signal: AbortSignal): AsyncIterable<Observation> {
    return createClient(Leadership, this.transport).observe(request, { headers, signal });
  }

  close(): void {
    this.manager.abort();
  }
}
