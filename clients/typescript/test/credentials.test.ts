import { spawnSync } from "node:child_process";
import { copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { propagation, trace, context } from "@opentelemetry/api";
import { describe, expect, test } from "vitest";
import { Agent, type AgentOptions, ConfigError, Refused, Unreachable } from "@election-agent/client";
import { Election } from "../src/proto.js";
import { agent, binary, cleanUp, directory, eventually, logged, openssl, quiet, rejected, serve, thrown } from "./support.js";

/** An authority, and files with certificates that it has signed. */
function files(): string {
  const at = directory();
  const ca = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  openssl(at, "req", ...ca, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem");
  for (const [file, name] of [["server", "localhost"], ["client", "batch"]] as const) {
    const request = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", `/CN=${name}`];
    openssl(at, "req", ...request, "-addext", `subjectAltName=DNS:${name}`, "-keyout", `${file}.key`, "-out", `${file}.csr`);
    const sign = ["-req", "-in", `${file}.csr`, "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-copy_extensions", "copy"];
    openssl(at, "x509", ...sign, "-CAcreateserial", "-out", `${file}.pem`);
  }
  return at;
}

const served = (at: string) => ({ EA_TLS_CERT_FILE: join(at, "server.pem"), EA_TLS_KEY_FILE: join(at, "server.key") });
const mtls = (at: string) => ({ ...served(at), EA_TLS_CLIENT_CA_FILE: join(at, "ca.pem"), EA_AUTH_MODES: "mtls" });

describe("TLS", () => {
  test("an agent is reached by its name, and nothing else is taken for it", async () => {
    const at = files();
    const { port } = await agent(served(at));
    const caFile = join(at, "ca.pem");
    const one = new Agent(`https://localhost:${port}`, { caFile });
    expect(await one.lead("tls", (term) => term.token)).toBeGreaterThan(0);
    await new Agent(`https://127.0.0.1:${port}`, { caFile, serverName: "localhost" }).kinds();

    const asked = async (endpoint: string, options: AgentOptions = {}) =>
      rejected(new Agent(endpoint, { timeout: 500, log: quiet, ...options }).kinds());
    const other = await asked(`https://127.0.0.1:${port}`, { caFile });
    expect(other).toBeInstanceOf(Unreachable);
    expect(other.message).toContain("127.0.0.1 is not in the cert's list");
    const stranger = await asked(`https://localhost:${port}`);
    expect(stranger).toBeInstanceOf(Unreachable);
    expect(stranger.message).toContain("certificate");
    const plain = await asked(`http://127.0.0.1:${port}`);
    expect(plain).toBeInstanceOf(Unreachable);
    expect(plain.message).toContain("https://");
    const encrypted = await asked(`https://${(await agent()).address}`, { caFile, serverName: "localhost" });
    expect(encrypted).toBeInstanceOf(Unreachable);
    expect(encrypted.message).toContain("http://");
  });

  test("a client is known by its certificate, and by the one that replaces it from then on", async () => {
    const at = files();
    const others = files();
    const { port } = await agent(mtls(at));
    const endpoint = `https://localhost:${port}`;
    const caFile = join(at, "ca.pem");
    const nobody = new Agent(endpoint, { caFile, timeout: 500, log: quiet });
    await rejected(nobody.kinds());
    const shown = directory();
    const [certFile, keyFile] = [join(shown, "client.pem"), join(shown, "client.key")];
    copyFileSync(join(others, "client.pem"), certFile);
    copyFileSync(join(others, "client.key"), keyFile);
    const log = logged();
    const one = new Agent(endpoint, { caFile, certFile, keyFile, timeout: 500, log });
    await rejected(one.kinds());
    // In the middle of being replaced, they do not belong together, and those before are shown.
    copyFileSync(join(at, "client.pem"), certFile);
    await eventually(async () => {
      await rejected(one.kinds());
      return log.lines.find((line) => line.includes("going on with the last ones"));
    });
    copyFileSync(join(at, "client.key"), keyFile);
    await eventually(() => one.kinds().catch(() => undefined));
  });

  test("files without certificates are told", () => {
    const at = files();
    writeFileSync(join(at, "empty"), "");
    const [certFile, keyFile] = [join(at, "client.pem"), join(at, "client.key")];
    const wrong: [AgentOptions, RegExp][] = [
      [{ keyFile }, /go together/],
      [{ caFile: join(at, "empty") }, /empty: there is no certificate in it/],
      [{ caFile: join(at, "none") }, /none: ENOENT/],
      [{ certFile }, /go together/],
      [{ certFile, keyFile: certFile }, /there is no private key in it/],
      [{ certFile, keyFile: join(at, "server.key") }, /key values mismatch/],
      [{ caFile: 7 as never }, /caFile is 7: a string/],
    ];
    // Whoever gives them and forgets "https://" expects encryption.
    const forgotten = thrown(() => new Agent("a:8443", { caFile: join(at, "ca.pem") }));
    expect(forgotten).toBeInstanceOf(ConfigError);
    expect(forgotten.message).toMatch(/caFile is for encrypted connections, and no endpoint begins with https/);
    for (const [options, text] of wrong) {
      const error = thrown(() => new Agent("https://a", options));
      expect(error).toBeInstanceOf(ConfigError);
      expect(error.message).toMatch(text);
    }
  });
});

describe("bearer tokens", () => {
  /** Makes a token, and the line that the agent knows it by. */
  function newToken(name: string): { token: string; line: string } {
    const { stdout, stderr } = spawnSync(binary, ["token", "new", name], { encoding: "utf8" });
    const token = /TOKEN=(\S+)/.exec(stderr)?.[1];
    if (token === undefined) throw new Error(`what makes a token says: ${stderr}`);
    const line = stdout.trim();
    return { token, line };
  }

  test("are static, from a file that changes, or from a function", async () => {
    const at = directory();
    const [first, second] = [newToken("one"), newToken("two")];
    const known = join(at, "tokens");
    writeFileSync(known, `${first.line}\n${second.line}\n`, { mode: 0o600 });
    const { address } = await agent({ EA_AUTH_MODES: "token", EA_AUTH_TOKEN_FILE: known });
    const log = logged();
    await new Agent(address, { token: first.token, log }).kinds();
    expect(log.lines.join()).toContain("not encrypted");
    expect(log.lines.join()).not.toContain(first.token);
    expect(await rejected(new Agent(address, { log: quiet }).kinds())).toMatchObject({ code: "UNAUTHENTICATED" });
    const wrong = await rejected(new Agent(address, { token: "wrong", log: quiet }).lead("tokens", () => 0));
    expect(wrong).toBeInstanceOf(Refused);

    const tokenFile = join(at, "token");
    const one = new Agent(address, { tokenFile, timeout: 2_000, log: quiet });
    expect((await rejected(one.kinds())).message).toContain("ENOENT");
    writeFileSync(tokenFile, "wrong\n");
    expect(await rejected(one.kinds())).toMatchObject({ code: "UNAUTHENTICATED" });
    writeFileSync(tokenFile, `${second.token}\n`);
    await one.lead("tokens", { candidate: "two" }, () => 0);
    // In the middle of being replaced.
    writeFileSync(tokenFile, "");
    await one.kinds();

    let asked = 0;
    const source = async () => (asked++ === 0 ? "wrong" : first.token);
    const other = new Agent(address, { token: source, log: quiet });
    await rejected(other.kinds());
    await other.kinds();
    expect(asked).toBe(2);
  });

  test("that there are not are told, and nothing is sent", async () => {
    const sources: [() => string, RegExp][] = [
      [() => "", /there is no token/],
      [() => "with blank", /characters that no header may have/],
      [() => { throw new Error("the vault is shut"); }, /the vault is shut/],
    ];
    for (const [token, text] of sources) {
      const error = await rejected(new Agent("127.0.0.1:1", { token, timeout: 300, log: quiet }).kinds());
      expect(error).toBeInstanceOf(Unreachable);
      expect(error.message).toMatch(text);
    }
  });
});

test("calls carry the current trace context, and the caller's headers", async () => {
  const parents: (string | null)[] = [];
  const tags: (string | null)[] = [];
  const address = await serve((router) =>
    router.rpc(Election.method.listKinds, (_, { requestHeader }) => {
      parents.push(requestHeader.get("traceparent"));
      tags.push(requestHeader.get("x-tag"));
      return {};
    }),
  );
  propagation.setGlobalPropagator({
    inject: (of, carrier, setter) => setter.set(carrier, "traceparent", trace.getSpanContext(of)?.traceId ?? "none"),
    extract: (of) => of,
    fields: () => ["traceparent"],
  });
  const active = trace.setSpanContext(context.active(), { 
    traceId: "0af7651916cd43dd8448eb211c80319c",
    spanId: "b7ad6b7169203331",
    traceFlags: 1,
  });
  const never = () => {
    throw new Error("the client changes no context");
  };
  const manager = { active: () => active, with: never, bind: never, enable: never, disable: never };
  context.setGlobalContextManager(manager);
  cleanUp(() => propagation.disable());
  await new Agent(address, { headers: (headers) => headers.set("x-tag", "mine") }).kinds();
  expect(parents).toEqual(["0af7651916cd43dd8448eb211c80319c"]);
  expect(tags).toEqual(["mine"]);
  propagation.disable();
  const inject = () => {
    throw new Error("a bug in a propagator");
  };
  propagation.setGlobalPropagator({ inject, extract: (of) => of, fields: () => [] });
  await new Agent(address).kinds();
  expect(parents[1]).toBeNull();
});
