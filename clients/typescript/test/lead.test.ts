import { Worker } from "node:worker_threads";
import { describe, expect, test, vi } from "vitest";
import { Agent, ConfigError, type LeadOptions, Lost, NotElected, type Standing } from "@election-agent/client";
import { Proxy, agent, block, cleanUp, eventually, gate, logged, quiet, rejected, run } from "./support.js";

let names = 0;
const election = () => `lead-${(names += 1)}`;

async function client(): Promise<Agent> {
  return new Agent((await agent()).address, { log: quiet });
}

describe("lead", () => {
  test("runs the work with a token, resigns, and resolves with what the work returns", async () => {
    const one = await client();
    const name = election();
    const told: string[] = [];
    const token = await one.lead(name, { kind: "batch", value: "10.0.0.7", onState: ({ is }) => told.push(is) }, async (term) => {
      term.check();
      expect(term.kind).toBe("batch");
      expect(term.election).toBe(name);
      expect(term.candidate).toBe(one.candidate);
      expect(term.signal.aborted).toBe(false);
      expect(term.remaining()).toBeGreaterThan(10_000);
      expect(term.validUntil - performance.now()).toBeLessThanOrEqual(15_000);
      const { leader } = await one.state({ election: name, kind: "batch" });
      expect(leader).toMatchObject({ name: one.candidate, token: term.token, value: "10.0.0.7" });
      return term.token;
    });
    expect(token).toBeGreaterThan(0);
    const after = await one.state({ election: name, kind: "batch" });
    expect(after).toMatchObject({ leader: undefined, token });
    expect(told).toEqual(["leading", "resigned"]);
  });

  test("resigns when the work throws, and rejects with what it has thrown", async () => {
    const one = await client();
    const name = election();
    const bug = new Error("a bug");
    expect(await rejected(one.lead(name, () => Promise.reject(bug)))).toBe(bug);
    expect(await rejected(one.lead(name, () => { throw bug; }))).toBe(bug);
    expect((await one.state(name)).leader).toBeUndefined();
  });

  test("waits for the leader, which the next follows at once", async () => {
    const { address } = await agent();
    const [one, two] = [new Agent(address), new Agent(address)];
    const name = election();
    const first = gate();
    const standings: Standing[] = [];
    const order: string[] = [];
    const leads = gate();
    const led = one.lead(name, async () => {
      leads.open();
      await first.promise;
      order.push("one has ended");
    });
    await leads.promise;
    const follows = two.lead(name, { onState: (standing) => standings.push(standing) }, () => order.push("two leads"));
    await eventually(() => standings.find(({ is }) => is === "waiting"));
    first.open();
    await Promise.all([led, follows]);
    expect(order).toEqual(["one has ended", "two leads"]);
    expect(standings.filter(({ is }) => is === "waiting").at(-1)).toEqual({ is: "waiting", leader: one.candidate });
  });

  test("rejects with NotElected after the wait, and at once without one", async () => {
    const { address } = await agent();
    const [one, two] = [new Agent(address), new Agent(address)];
    const name = election();
    const term = await one.acquire(name);
    for (const wait of [0, 300.5]) {
      const began = performance.now();
      const error = await rejected(two.lead(name, { wait }, () => 0));
      expect(error).toBeInstanceOf(NotElected);
      expect((error as NotElected).leader).toBe(one.candidate);
      expect(performance.now() - began).toBeGreaterThanOrEqual(wait - 1);
    }
    await term.resign();
  });

  test("stops waiting when its signal is aborted, and leaves nothing at the agent", async () => {
    const { address } = await agent();
    const [one, two] = [new Agent(address), new Agent(address)];
    const name = election();
    const term = await one.acquire(name);
    const reason = new Error("enough");
    const stop = new AbortController();
    const waits = rejected(two.lead(name, { signal: stop.signal, onState: () => stop.abort(reason) }, () => 0));
    expect(await waits).toBe(reason);
    expect(await rejected(two.lead(name, { signal: AbortSignal.abort(reason) }, () => 0))).toBe(reason);
    await term.resign();
    // Whoever still waited would be elected by now.
    await one.lead(name, { wait: 0 }, () => 0);
  });

  test("tells work of its caller's signal, and resigns when the work has ended", async () => {
    const one = await client();
    const name = election();
    const stop = new AbortController();
    const reason = new Error("the process ends");
    const result = await one.lead(name, { signal: stop.signal }, async (term) => {
      stop.abort(reason);
      expect(term.signal.aborted).toBe(true);
      expect(term.signal.reason).toBe(reason);
      term.check();
      expect((await one.state(name)).leader?.token).toBe(term.token);
      return "tidied up";
    });
    expect(result).toBe("tidied up");
    expect((await one.state(name)).leader).toBeUndefined();
  });

  test.each([true, false])("tells work that another process has fenced it (by streams: %s)", async (streams) => {
    const { address } = await agent();
    const one = new Agent(address, { candidate: "twin", streams, log: quiet });
    const twin = new Agent(address, { candidate: "twin" });
    const name = election();
    const reasons: string[] = [];
    const leads = gate();
    const inWork = new Error("what the work makes of it");
    const led = rejected(
      one.lead(name, { term: 1_500, onLost: (why) => reasons.push(why) }, async (term) => {
        leads.open();
        await new Promise((resolve) => term.signal.addEventListener("abort", resolve));
        expect(term.signal.reason).toBeInstanceOf(Lost);
        expect(() => term.check()).toThrow(Lost);
        expect(term.remaining()).toBe(0);
        await expect(term.renewed()).rejects.toBeInstanceOf(Lost);
        throw inWork;
      }),
    );
    await leads.promise;
    const term = await twin.acquire(name);
    const error = (await led) as Lost;
    expect(error).toBeInstanceOf(Lost);
    expect(error.reason).toBe("StaleToken");
    expect(error.cause).toBe(inWork);
    expect(reasons).toEqual(["StaleToken"]);
    // The twin's term was not given up with it.
    expect((await twin.state(name)).leader?.token).toBe(term.token);
    await term.resign();
  });

  test.each([true, false])("extends the term as long as the work runs (by streams: %s)", async (streams) => {
    const one = new Agent((await agent()).address, { streams });
    await one.lead(election(), { term: 1_000 }, async (term) => {
      const began = term.validUntil;
      for (let renewals = 0; renewals < 4; renewals += 1) {
        const before = term.validUntil;
        expect(await term.renewed()).toBeGreaterThan(before);
      }
      term.check();
      expect(term.validUntil - began).toBeGreaterThan(900);
    });
  });

  test("takes turns with another leadership of this process under the same name", async () => {
    const one = await client();
    const name = election();
    const term = await one.acquire(name);
    expect(await rejected(one.lead(name, { wait: 50 }, () => 0))).toBeInstanceOf(NotElected);
    expect((await one.state(name)).token).toBe(term.token);
    const next = one.lead(name, ({ token }) => token);
    await term.resign();
    expect(await next).toBeGreaterThan(term.token);
  });

  test("knows after the event loop was blocked for longer than the term, before anything else runs", async () => {
    const { address } = await agent();
    const one = new Agent(address, { log: quiet });
    const name = election();
    const why: string[] = [];
    const error = await rejected(
      one.lead(name, { term: 1_000, onLost: (reason) => why.push(reason) }, async (term) => {
        await term.renewed();
        block(1_400);
        expect(() => term.check()).toThrow(Lost);
        expect(term.signal.aborted).toBe(true);
        expect(term.remaining()).toBe(0);
        expect((await one.verify({ election: name, token: term.token })).current).toBe(false);
      }),
    );
    expect((error as Lost).reason).toBe("TermOver");
    expect(why).toEqual(["TermOver"]);
  });

  test("goes on after a shorter block, for which nothing is lost and no agent is changed", async () => {
    const one = await client();
    const standings: string[] = [];
    await one.lead(election(), { term: 6_000, onState: ({ is }) => standings.push(is) }, async (term) => {
      // Longer than a ping may be unanswered.
      block(3_000);
      term.check();
      await term.renewed();
    });
    expect(standings).toEqual(["leading", "resigned"]);
  });

  test("lets the term lapse when the work ignores the loss for longer than the grace, and reports it", async () => {
    const proxy = await Proxy.to((await agent()).address);
    const one = new Agent(proxy.address, { log: quiet });
    const standings: string[] = [];
    const error = await rejected(
      one.lead(election(), { term: 1_000, grace: 200, onState: ({ is }) => standings.push(is) }, async () => {
        proxy.blackHole();
        await eventually(() => standings.find((is) => is === "lapsing"));
      }),
    );
    expect(error).toBeInstanceOf(Lost);
    expect(standings).not.toContain("resigned");
    expect(standings.indexOf("lost")).toBeLessThan(standings.indexOf("lapsing"));
  });

  test("has one listener on a signal that many leaderships share", async () => {
    const one = await client();
    const stop = new AbortController();
    const warnings: string[] = [];
    const warn = (warning: Error) => warnings.push(warning.message);
    process.on("warning", warn);
    cleanUp(() => void process.off("warning", warn));
    const names = Array.from({ length: 20 }, election);
    const terms = await Promise.all(names.map((name) => one.acquire(name, { signal: stop.signal })));
    const reason = new Error("the process ends");
    stop.abort(reason);
    for (const term of terms) expect(term.signal.reason).toBe(reason);
    await Promise.all(terms.map((term) => term.end()));
    await new Promise((resolve) => setImmediate(resolve));
    expect(warnings).toEqual([]);
  });

  test("logs functions of the caller that throw, and leads on", async () => {
    const log = logged();
    const one = new Agent((await agent()).address, { log });
    const throws = () => {
      throw new Error("a bug in a hook");
    };
    expect(await one.lead(election(), { onState: throws }, () => "led")).toBe("led");
    expect(log.lines.filter((line) => line.includes("has failed"))).toHaveLength(2);
  });

  test.each([true, false])("loses and tells as always when the log fails (by streams: %s)", async (streams) => {
    const { address } = await agent();
    const fails = () => {
      throw new Error("the disk is full");
    };
    const told = vi.spyOn(console, "error").mockImplementation(() => {});
    cleanUp(() => void told.mockRestore());
    const log = { debug: fails, info: fails, warn: fails, error: () => Promise.reject(new Error("the disk is full")) };
    const one = new Agent(address, { candidate: "twin", streams, log });
    const name = election();
    const reasons: string[] = [];
    const error = await rejected(
      one.lead(name, { term: 1_500, onLost: (why) => reasons.push(why) }, async (term) => {
        const twin = await new Agent(address, { candidate: "twin" }).acquire(name);
        await new Promise((resolve) => term.signal.addEventListener("abort", resolve));
        await twin.resign();
      }),
    );
    expect(error).toMatchObject({ name: "Lost", reason: "StaleToken" });
    expect(reasons).toEqual(["StaleToken"]);
    expect(told.mock.calls).toEqual([["election agent: the log has failed", expect.any(Error)]]);
  });

  test("is not extended while alive() returns anything but true, which is told", async () => {
    const one = await client();
    const leads = async (answer: unknown) => {
      const reasons: string[] = [];
      const onState = (standing: Standing) => void (standing.is === "jeopardy" && reasons.push(standing.reason));
      const error = await rejected(
        one.lead(election(), { term: 1_000, grace: 0, alive: () => answer as never, onState }, async (term) => {
          await new Promise((resolve) => term.signal.addEventListener("abort", resolve));
        }),
      );
      expect(error).toMatchObject({ reason: "TermOver" });
      return reasons;
    };
    const told = await Promise.all([undefined, 1, false].map(leads));
    expect(told).toEqual([["alive() returned undefined"], ["alive() returned 1"], ["alive() returned false"]]);
  });

  test("leads by an endpoint that answers when another does not", async () => {
    const good = await agent();
    const silent = await Proxy.to(good.address);
    silent.blackHole();
    const one = new Agent(`127.0.0.1:1, ${silent.address}, ${good.address}`, { log: quiet });
    expect(await one.lead(election(), () => "led")).toBe("led");
  });
});

describe("held terms", () => {
  test("are given up where their scope ends", async () => {
    const one = await client();
    const name = election();
    {
      const term = await one.acquire(name);
      expect((await one.state(name)).leader?.token).toBe(term.token);
      await term[Symbol.asyncDispose]();
      // Once is enough.
      await term[Symbol.asyncDispose]();
      await term.resign();
      expect(() => term.check()).toThrow(Lost);
    }
    expect((await one.state(name)).leader).toBeUndefined();
  });

  test("lapse if they are let, and nobody leads before their end", async () => {
    const one = await client();
    const name = election();
    const term = await one.acquire(name, { term: 1_000 });
    const { validUntil } = term;
    term.lapse();
    expect(() => term.check()).toThrow(Lost);
    expect((await one.state(name)).leader?.token).toBe(term.token);
    await one.lead(name, () => expect(performance.now()).toBeGreaterThanOrEqual(validUntil));
  });

  test("come again and again, each with a larger token", async () => {
    const one = await client();
    const name = election();
    const tokens: number[] = [];
    for await (const term of one.terms(name)) {
      term.check();
      tokens.push(term.token);
      if (tokens.length === 3) break;
    }
    expect(tokens).toEqual([...tokens].sort((a, b) => a - b));
    expect(new Set(tokens).size).toBe(3);
    expect((await one.state(name)).leader).toBeUndefined();
  });

  test("reject a resignation that came too late", async () => {
    const { address } = await agent();
    const one = new Agent(address, { candidate: "same", log: quiet });
    const name = election();
    const term = await one.acquire(name);
    const twin = await new Agent(address, { candidate: "same" }).acquire(name);
    expect(await rejected(term.resign())).toMatchObject({ name: "Lost", reason: "StaleToken" });
    await twin.resign();
  });
});

test("bad input is told before anything is sent", async () => {
  const nowhere = new Agent("127.0.0.1:1");
  const wrong: [LeadOptions & Record<string, unknown>, RegExp][] = [
    [{ term: 999 }, /the term is 999 ms: at least 1000/],
    [{ term: NaN }, /the term is NaN/],
    [{ term: 15_000n as never }, /the term is 15000n/],
    [{ terms: 15_000 }, /there is no "terms", only kind, candidate, term/],
    [{ signal: {} as never }, /the signal is an object: an AbortSignal/],
    [{ value: "\ud83d" }, /the value holds half of a surrogate pair/],
    [{ alive: true as never }, /alive is true: it is no function/],
    [null as never, /the options of a leadership: an object is needed, and this is null/],
    [{ term: "15s" as never }, /the term is 15s: a number of milliseconds/],
    [{ term: 2 ** 40 }, /at most/],
    [{ term: 2_000, margin: 1_001 }, /the margin is 1001 ms: at most half of the term/],
    [{ wait: -1 }, /the wait is -1/],
    [{ grace: Infinity }, /the grace is Infinity/],
    [{ candidate: "" }, /the candidate is empty/],
    [{ kind: 7 as never }, /the kind is 7: a string/],
    [{ value: {} as never }, /the value is/],
    [{ onLost: "log" as never }, /onLost is log: it is no function/],
  ];
  for (const [options, text] of wrong) {
    const error = await rejected(nowhere.lead("e", options, () => 0));
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.message).toMatch(text);
  }
  expect(await rejected(nowhere.lead("", () => 0))).toBeInstanceOf(ConfigError);
  expect(await rejected(nowhere.lead("e", {}, undefined as never))).toBeInstanceOf(ConfigError);
  const swapped = nowhere.lead("e", (() => 0) as never, { term: 1_000 } as never);
  expect((await rejected(swapped)).message).toBe("lead takes its options before the work");
});

describe("processes", () => {
  const head = `import { Agent, NotElected } from "@election-agent/client"; const [address, name] = process.argv.slice(1);`;

  test("end by themselves after they have led, observed and asked", async () => {
    const { address } = await agent();
    const source = `${head}
      const agent = new Agent(address);
      console.log(await agent.lead(name, { term: 5_000, alive: () => true }, (term) => term.token > 0));
      for await (const term of agent.terms(name)) break;
      for await (const state of agent.observe(name)) { console.log(state.election); break; }
      await agent.kinds();
      const held = await agent.acquire(name);
      const other = new Agent(address);
      await other.acquire(name, { wait: 500 }).catch((error) => console.log(error instanceof NotElected));
      held.lapse();`;
    const began = performance.now();
    const { code, output } = await run(source, address, election());
    expect({ code, output }).toEqual({ code: 0, output: expect.stringMatching(/^true\nlead-\d+\ntrue\n$/) as string });
    // Connections without calls live for 30 s, and terms for 15 s: neither is waited for.
    expect(performance.now() - began).toBeLessThan(15_000);
  });

  test("end by themselves after they were not elected, and ask no agent any more", async () => {
    const source = `${head}
      const tell = (error) => console.log(error.name);
      const unreached = new Agent("127.0.0.1:1", { log: {} });
      await unreached.lead(name, { wait: 200 }, () => 0).catch(tell);
      await unreached.lead(name, { signal: AbortSignal.timeout(200) }, () => 0).catch(tell);
      await new Agent(address, { log: {}, token: () => 7 }).lead(name, { wait: 200 }, () => 0).catch(tell);`;
    const { code, output } = await run(source, (await agent()).address, election());
    // What was found out until then is another matter.
    const one = "(Unreachable|NotKnown)\\n";
    const told = new RegExp(`^${one}TimeoutError\\n${one}$`);
    expect({ code, output }).toEqual({ code: 0, output: expect.stringMatching(told) as string });
  });

  test("that exit in their work let the term lapse, and nothing else breaks", async () => {
    const { address } = await agent();
    const name = election();
    const source = `${head}
      await new Agent(address, { log: {} }).lead(name, { term: 2_000 }, () => { console.log("leads"); process.exit(7); });`;
    const { code, output } = await run(source, address, name);
    expect(code).toBe(7);
    expect(output).toBe("leads\n");
    const next = new Agent(address);
    const standings: Standing[] = [];
    await next.lead(name, { onState: (standing) => standings.push(standing) }, () => 0);
    expect(standings.map(({ is }) => is)).toEqual(["waiting", "leading", "resigned"]);
  });

  test("have worker threads that lead on their own, one at a time", async () => {
    const { address } = await agent();
    const name = election();
    const busy = new Int32Array(new SharedArrayBuffer(8));
    const source = `
      const { workerData: { address, name, busy }, parentPort } = require("node:worker_threads");
      import("@election-agent/client").then(async ({ Agent }) => {
        const agent = new Agent(address);
        for (let turn = 0; turn < 5; turn += 1) {
          await agent.lead(name, async (term) => {
            if (Atomics.add(busy, 0, 1) !== 0) throw new Error("two lead");
            await new Promise((resolve) => setTimeout(resolve, 5));
            term.check();
            Atomics.sub(busy, 0, 1);
            Atomics.add(busy, 1, 1);
          });
        }
        parentPort.postMessage("done");
      });`;
    const works = [0, 1].map(() => {
      const worker = new Worker(source, { eval: true, workerData: { address, name, busy } });
      cleanUp(async () => void (await worker.terminate()));
      return new Promise((resolve, reject) => {
        worker.once("error", reject);
        // It ends by itself.
        worker.once("exit", (code) => resolve(code));
      });
    });
    expect(await Promise.all(works)).toEqual([0, 0]);
    expect([...busy]).toEqual([0, 10]);
  });
});
