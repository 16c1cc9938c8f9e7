import { inspect } from "node:util";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { Agent, ConfigError, Lost, NotKnown, Refused, Unreachable } from "@election-agent/client";
import { Election } from "../src/proto.js";
import { Proxy, agent, quiet, rejected, serve, thrown } from "./support.js";

const me = { election: "calls", kind: "batch", candidate: "me" };

describe("with a real agent", () => {
  test("a term is campaigned for, extended, verified, handed over and given up", async () => {
    const one = new Agent((await agent()).address);
    const asked = performance.now();
    const won = await one.campaign({ ...me, term: 10_000, value: "v" });
    expect(won).toMatchObject({ elected: true, leader: "me", value: "v", provisional: false });
    expect(won.validUntil).toBeGreaterThan(asked + 9_000);
    expect(won.validUntil).toBeLessThan(performance.now() + 10_000);
    const { token } = won;
    expect(await one.campaign({ ...me, candidate: "you", term: 5_000.9 })).toMatchObject({
      elected: false,
      leader: "me",
      token,
      validUntil: undefined,
    });
    expect(await one.extend({ ...me, token, term: 20_000 })).toBeGreaterThan(asked + 19_000);
    const verified = await one.verify({ ...me, token });
    expect(verified).toMatchObject({ current: true, reason: undefined, state: { token, leader: { name: "me" } } });
    expect(verified.validUntil).toBeGreaterThan(asked + 18_000);
    expect(await one.verify({ ...me, token: token + 1 })).toMatchObject({ current: false, reason: "NOT_GRANTED" });

    await one.handover({ election: "calls", kind: "batch", to: "you", term: 10_000, from: "me", token });
    expect(await one.verify({ ...me, token })).toMatchObject({ current: false, reason: "STALE_TOKEN" });
    expect(await rejected(one.extend({ ...me, token, term: 5_000 }))).toMatchObject({ reason: "HeldByOther" });
    const state = await one.state(me);
    await one.resign({ ...me, candidate: "you", token: state.token });
    expect(await rejected(one.resign({ ...me, candidate: "you", token: state.token }))).toBeInstanceOf(Lost);
    expect(await one.state(me)).toMatchObject({ leader: undefined, token: state.token });
    expect(await one.verify({ ...me, token })).toMatchObject({ current: false, reason: "NO_TERM" });
  });

  test("a campaign waits, and a repeated one with its request id is the same", async () => {
    const one = new Agent((await agent()).address);
    const won = await one.campaign({ ...me, term: 10_000, requestId: "first" });
    expect((await one.campaign({ ...me, term: 10_000, requestId: "first" })).token).toBe(won.token);
    const waits = one.campaign({ ...me, candidate: "you", term: 10_000, wait: 30_000 });
    await one.resign({ ...me, token: won.token });
    expect(await waits).toMatchObject({ elected: true, leader: "you" });
  });

  test("leaders and kinds are listed, of more than a page", async () => {
    const one = new Agent((await agent()).address);
    const names = Array.from({ length: 1_100 }, (_, number) => `list-${number}`);
    await Promise.all(names.map((election) => one.campaign({ election, kind: "many", candidate: "me", term: 60_000 })));
    const { leaders, incomplete } = await one.leaders("many");
    expect(incomplete).toBe(false);
    expect(leaders.map(({ election }) => election).sort()).toEqual(names.sort());
    await one.campaign({ ...me, term: 10_000 });
    expect((await one.leaders({ all: true })).leaders).toHaveLength(1_101);
    expect((await one.kinds()).kinds.sort()).toEqual(["batch", "many"]);
    expect((await one.leaders()).leaders).toEqual([]);
  });

  test("what the agent refuses is Refused, with its words", async () => {
    const one = new Agent((await agent()).address);
    const term = await rejected(one.campaign({ ...me, term: 5 }));
    expect(term).toBeInstanceOf(Refused);
    expect(term).toMatchObject({ code: "INVALID_ARGUMENT" });
    expect(term.message).toContain("term");
    expect(await rejected(one.pods({ namespace: "n", deployment: "d" }))).toMatchObject({ code: "UNIMPLEMENTED" });
  });

  test("an aborted call rejects with the signal's reason", async () => {
    const { address } = await agent();
    const silent = await Proxy.to(address);
    silent.blackHole();
    const one = new Agent(silent.address);
    const stop = new AbortController();
    const asks = rejected(one.kinds({ signal: stop.signal }));
    const reason = new Error("enough");
    stop.abort(reason);
    expect(await asks).toBe(reason);
  });
});

describe("without an answer", () => {
  test("nothing was asked of an agent that cannot be reached", async () => {
    const one = new Agent("127.0.0.1:1,localhost:1", { timeout: 300, log: quiet });
    const calls = [one.kinds(), one.campaign({ ...me, term: 1_000 }), one.resign({ ...me, token: 7 })];
    for (const error of (await Promise.all(calls.map(rejected))) as Unreachable[]) {
      expect(error).toBeInstanceOf(Unreachable);
      expect(error.message).toContain("ECONNREFUSED");
      expect(error.endpoints.map(({ endpoint }) => endpoint)).toContain("127.0.0.1:1");
    }
    const nowhere = new Agent("no-such-host.invalid:1", { timeout: 300, log: quiet });
    expect(await rejected(nowhere.kinds())).toBeInstanceOf(Unreachable);
  });

  test("of an agent that keeps silent the outcome is not known", async () => {
    const { address } = await agent();
    const silent = await Proxy.to(address);
    const one = new Agent(silent.address, { timeout: 600.7, log: quiet });
    await one.kinds();
    silent.blackHole();
    expect(await rejected(one.campaign({ ...me, term: 1_000 }))).toBeInstanceOf(NotKnown);
    expect(await rejected(one.extend({ ...me, token: 7, term: 1_000 }))).toBeInstanceOf(NotKnown);
    expect(await rejected(one.kinds())).toBeInstanceOf(NotKnown);
  });

  test("the next endpoint is asked, with the same request id, and what may have been done before is said", async () => {
    const ids: string[] = [];
    const answers = [Code.Unavailable, Code.PermissionDenied];
    const address = await serve((router) =>
      router.rpc(Election.method.campaign, (request, context) => {
        ids.push(request.requestId);
        expect(context.requestHeader.get("grpc-timeout")).toMatch(/^\d+m$/);
        throw new ConnectError("not so", answers.shift());
      }),
    );
    const error = await rejected(new Agent(address).campaign({ ...me, term: 1_000 }));
    expect(error).toBeInstanceOf(NotKnown);
    expect(error.message).toMatch(/PERMISSION_DENIED: not so; before: .*UNAVAILABLE: not so/);
    expect(ids).toHaveLength(2);
    expect(ids[0]).toMatch(/^[0-9a-f]{32}$/);
    expect(new Set(ids).size).toBe(1);
  });

  test("a resignation is done although its first answer was lost", async () => {
    let asked = 0;
    const address = await serve((router) =>
      router.rpc(Election.method.resign, () => {
        asked += 1;
        if (asked === 1) throw new ConnectError("lost", Code.Unavailable);
        return { value: false, reason: "NO_TERM" };
      }),
    );
    await new Agent(address).resign({ ...me, token: 7 });
    expect(asked).toBe(2);
    expect(await rejected(new Agent(address).resign({ ...me, token: 7 }))).toMatchObject({ reason: "NoTerm" });
  });

  test("an extension by an agent that does not say for how long counts the allowance for drift", async () => {
    const address = await serve((router) => router.rpc(Election.method.extendElectedTerm, () => ({ value: true })));
    const before = performance.now();
    const until = await new Agent(address).extend({ ...me, token: 7, term: 10_000 });
    expect(until).toBeGreaterThanOrEqual(before + 9_898);
    expect(until).toBeLessThanOrEqual(performance.now() + 9_898);
  });

  test("a token that numbers cannot hold exactly is no token", async () => {
    const address = await serve((router) =>
      router.rpc(Election.method.campaign, () => ({ elected: true, token: 2n ** 53n, validFor: 1_000 })),
    );
    expect(await rejected(new Agent(address).campaign({ ...me, term: 1_000 }))).toBeInstanceOf(NotKnown);
  });
});

test("bad input is told before anything is sent", async () => {
  const addresses = ["", " , ", "ftp://a", "http://", "a:99999", "a:0", "a:", "http://[::1]:x", "http://a/path", "::1:8443"];
  for (const endpoints of [...addresses, "http://@a", "http://a?", "8443", "a b:1", "a:84\t43", "a;b:1", "a|b", "a:1,,b:-1"]) {
    expect(thrown(() => new Agent(endpoints)), endpoints).toBeInstanceOf(ConfigError);
  }
  for (const endpoints of ["a", "a:1", "https://[::1]", "http://[::1]:65535", "a:1,https://b:2", "10.0.0.1:8443", "8.example:1"]) {
    new Agent(endpoints);
  }
  const settings: [unknown, RegExp][] = [
    [null, /the settings of the agent: an object is needed, and this is null/],
    ["a token", /an object is needed, and this is a string/],
    [{ tokenfile: "f" }, /there is no "tokenfile", only .*tokenFile/],
    [{ timeout: NaN }, /the timeout is NaN/],
    [{ timeout: 0 }, /the timeout is 0: a number of milliseconds, 1 or more/],
    [{ timeout: 5n }, /the timeout is 5n/],
    [{ token: "t", tokenFile: "f" }, /exclude each other/],
    [{ token: 7 }, /neither a string nor a function/],
    [{ token: "" }, /there is no token/],
    [{ token: "ends\n" }, /characters that no header may have/],
    [{ tokenFile: 7 }, /tokenFile is 7: a string/],
    [{ headers: { "x-tag": "mine" } }, /headers is an object: it is no function/],
    [{ streams: "no" }, /streams is no: true or false/],
    [{ log: "console" }, /the log: an object is needed/],
    [{ log: { warn: "console" } }, /the log's "warn" is console: it is no function/],
    [{ serverName: "" }, /serverName is empty/],
    [{ serverName: "b" }, /no endpoint begins with https/],
    [{ candidate: "a\u0000" }, /the candidate holds the control character U\+0000/],
  ];
  for (const [options, text] of settings) {
    const error = thrown(() => new Agent("a", options as never));
    expect(error, String(text)).toBeInstanceOf(ConfigError);
    expect(error.message).toMatch(text);
  }
  const said = thrown(() => new Agent("http://user:secret@a"));
  expect(said).toBeInstanceOf(ConfigError);
  expect(said.message).not.toContain("secret");
  const nothing = undefined as never;
  const one = new Agent("127.0.0.1:1");
  const wrong: [Promise<unknown>, RegExp][] = [
    [one.campaign({ ...me, term: -1 }), /the term is -1/],
    [one.campaign({ ...me, candidate: "", term: 1_000 }), /the candidate is empty/],
    [one.campaign({ ...me, term: 1_000, requestId: 7 as never }), /the request id is 7/],
    [one.campaign({ ...me, term: 1_000, requestId: "" }), /the request id is empty/],
    [one.campaign({ ...me, term: 1_000, value: "x".repeat(1_025) }), /the value is 1025 bytes long: at most 1024/],
    [one.campaign(nothing), /the campaign: an object is needed/],
    [one.extend({ ...me, token: 1.5, term: 1_000 }), /the token is 1.5/],
    [one.extend({ ...me, token: 0, term: 1_000 }), /the token is 0/],
    [one.extend(nothing), /the extension: an object is needed/],
    [one.resign({ ...me, token: 2 ** 53 }), /2\^53 - 1/],
    [one.resign({ ...me, token: "7" as never }), /the token is 7: a whole number/],
    [one.resign(nothing), /the resignation: an object is needed/],
    [one.verify({ election: "e", token: -1 }), /the token is -1/],
    [one.verify({ election: "e", token: 7n as never }), /the token is 7n/],
    [one.verify(nothing), /what to verify: an object is needed/],
    [one.handover({ election: "e", to: nothing, term: 1_000 }), /the candidate to hand over to is undefined/],
    [one.handover(nothing), /the handover: an object is needed/],
    [one.pods(nothing), /whose pods to list: an object is needed/],
    [one.leaders({ kind: "k" } as never), /whose leaders to list: a kind's name, or { all: true }/],
    [one.state(nothing), /whose state to tell: an object is needed/],
    [one.state(""), /the election is empty/],
    [one.state("a/b"), /the election holds a "\/"/],
    [one.state({ election: "e", kind: "a/b" }), /the kind holds a "\/"/],
    [one.state("a\nb"), /the control character U\+000A/],
    [one.state("x".repeat(257)), /257 bytes long: at most 256/],
    [one.state("\u00fc".repeat(129)), /258 bytes long/],
    // Encoded, every half of a pair is the same character: two elections would be one.
    [one.state("\ud83d"), /half of a surrogate pair/],
    [one.kinds({ signal: new AbortController() as never }), /the signal is an object: an AbortSignal, as the controller's/],
    [one.kinds({ timeout: 5 } as never), /there is no "timeout", only signal/],
    [one.kinds(null as never), /the options of the call: an object is needed/],
  ];
  for (const [call, text] of wrong) {
    const error = await rejected(call);
    expect(error, String(text)).toBeInstanceOf(ConfigError);
    expect(error.message).toMatch(text);
  }
});

test("whoever prints an agent does not see its credentials", () => {
  const one = new Agent("https://a", { token: "the-secret" });
  expect(inspect(one, { depth: Infinity, showHidden: true })).not.toContain("the-secret");
  expect(JSON.stringify(one, (_, value: unknown) => (typeof value === "bigint" ? String(value) : value))).not.toContain("the-secret");
});

test("one of several agents that does not have what is asked for is passed over", async () => {
  const { address } = await agent();
  const old = await serve((router) => router.rpc(Election.method.listKinds, () => ({})));
  for (const endpoints of [`${old},${address}`, `${address},${old}`]) {
    const one = new Agent(endpoints);
    expect(await one.verify({ ...me, token: 7 })).toMatchObject({ current: false });
    for await (const state of one.observe("e")) {
      expect(state.cause).toBe("present");
      break;
    }
  }
  expect(await rejected(new Agent(`${old},${old}`).state("e"))).toMatchObject({ code: "UNIMPLEMENTED" });
});
