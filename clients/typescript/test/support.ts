import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, type Server, type Socket, connect, createServer } from "node:net";
import * as http2 from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import type { ConnectRouter } from "@connectrpc/connect";
import { afterEach } from "vitest";
import type { Logger } from "@election-agent/client";
import { binary as binaryOf, startAgent } from "./agent.mjs";

const root = fileURLToPath(new URL("../../../", import.meta.url));

/** What is undone after each test, the last first. */
const undo: (() => void | Promise<void>)[] = [];

export function cleanUp(call: () => void | Promise<void>): void {
  undo.push(call);
}

afterEach(async () => {
  for (const call of undo.splice(0).reverse()) await call();
});

/** The agent's binary. */
export const binary = binaryOf("debug");

export interface Running {
  address: string;
  port: number;
  url: string;
  child: ChildProcess;
  kill(): void;
}

/** Starts a real agent, in memory, on a free port. */
export async function agent(settings: Record<string, string> = {}): Promise<Running> {
  const { child, address } = await startAgent(binary, settings);
  cleanUp(() => void child.kill("SIGKILL"));
  const port = Number(address.split(":")[1]);
  return { address, port, url: `http://${address}`, child, kill: () => void child.kill("SIGKILL") };
}

/** Serves what a test says, as a gRPC server without encryption. */
export async function serve(routes: (router: ConnectRouter) => void): Promise<string> {
  const server = http2.createServer(connectNodeAdapter({ routes }));
  const sessions = new Set<http2.ServerHttp2Session>();
  server.on("session", (session) => {
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanUp(() => {
    server.close();
    for (const session of sessions) session.destroy();
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** What stands before an agent. */
export class Proxy {
  private readonly sockets = new Set<Socket>();
  private silent = false;
  private constructor(
    private readonly server: Server,
    private readonly port: number,
  ) {}

  static async to(address: string): Promise<Proxy> {
    const [host, port] = address.split(":") as [string, string];
    let proxy: Proxy;
    const server = createServer((client) => {
      const upstream = connect({ host, port: Number(port) });
      for (const socket of [client, upstream]) {
        proxy.sockets.add(socket);
        socket.on("error", () => {});
        socket.on("close", () => {
          proxy.sockets.delete(socket);
          client.destroy();
          upstream.destroy();
        });
      }
      client.on("data", (data) => void (proxy.silent || upstream.write(data)));
      upstream.on("data", (data) => void (proxy.silent || client.write(data)));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    proxy = new Proxy(server, (server.address() as AddressInfo).port);
    cleanUp(() => {
      server.close();
      proxy.reset();
    });
    return proxy;
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Nothing passes any more. */
  blackHole(): void {
    this.silent = true;
  }

  reset(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  /** No new connections, either. */
  refuse(): void {
    this.server.close();
    this.reset();
  }
}

/** A directory of its own for a test. */
export function directory(): string {
  const path = mkdtempSync(join(tmpdir(), "election-agent-client-"));
  cleanUp(() => rmSync(path, { recursive: true }));
  return path;
}

/** Asks again and again until the answer is there. The test's time-out is the limit. */
export async function eventually<T>(ask: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** What a promise is rejected with. */
export async function rejected(promise: Promise<unknown>): Promise<Error> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("it was not rejected");
}

/** What a function throws. */
export function thrown(call: () => unknown): Error {
  try {
    call();
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing was thrown");
}

/** Keeps a log. */
export function logged(): Logger & { lines: string[] } {
  const lines: string[] = [];
  const put = (message: string, fields: object) => void lines.push(`${message} ${JSON.stringify(fields)}`);
  return { lines, warn: put, error: put };
}

/** Nothing is logged: for what is expected to fail. */
export const quiet: Logger = {};

/** Runs a program with the built package. Resolves when it has ended by itself. */
export async function run(source: string, ...args: string[]): Promise<{ code: number | null; output: string }> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", source, "--", ...args], {
    cwd: fileURLToPath(new URL("..", import.meta.url)),
    stdio: ["ignore", "pipe", "pipe"],
  });
  cleanUp(() => void child.kill("SIGKILL"));
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data: Buffer) => (output += data.toString()));
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  return { code, output };
}

/** A deferred end. */
export function gate(): { promise: Promise<void>; open: () => void } {
  let open!: () => void;
  const promise = new Promise<void>((resolve) => (open = resolve));
  return { promise, open };
}

/** Blocks the event loop, as work without a pause does. */
export function block(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

export function read(path: string): string {
  return readFileSync(join(root, path), "utf8");
}

export function openssl(cwd: string, ...args: string[]): void {
  execFileSync("openssl", args, { cwd, stdio: "pipe" });
}
