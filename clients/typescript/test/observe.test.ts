import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { Agent, ConfigError, type ObserverEvent, Refused, type Scope, type State } from "@election-agent/client";
import { Known } from "../src/known.js";
import { Leadership, type ObservationSchema, State_Phase } from "../src/proto.js";
import { Proxy, agent, binary, directory, eventually, rejected, serve, thrown } from "./support.js";

/** A file with tokens that nobody has. */
function tokens(): string {
  const path = join(directory(), "tokens");
  writeFileSync(path, execFileSync(binary, ["token", "new", "nobody"], { stdio: ["ignore", "pipe", "ignore"] }), { mode: 0o600 });
  return path;
}

/** Follows in the background. */
function follow(agent: Agent, scope: Scope) {
  const stop = new AbortController();
  const events: ObserverEvent[] = [];
  const ended = (async () => {
    for await (const event of agent.follow(scope, { signal: stop.signal })) events.push(event);
  })().catch((error: unknown) => error);
  const states = () => events.flatMap((event) => (event.is === "state" ? [event.state] : []));
  return { events, states, stop, ended };
}

const short = ({ election, leader, cause }: State) => `${election} ${leader?.name ?? "vacant"} ${cause}`;

describe("with a real agent", () => {
  test("states come in their order, with causes", async () => {
    const one = new Agent((await agent()).address);
    const { events, states } = follow(one, "e");
    await eventually(() => events.find(({ is }) => is === "synced"));
    // States that come and go sooner than they are read are left out.
    const seen = (count: number) => eventually(() => (states().length >= count ? true : undefined));
    const term = await one.acquire("e", { candidate: "a", value: "here" });
    await seen(2);
    await term.resign();
    await seen(3);
    await one.campaign({ election: "e", candidate: "b", term: 1_000 });
    await seen(5);
    expect(states().map(short)).toEqual(["e vacant present", "e a campaign", "e vacant resign", "e b campaign", "e vacant expiry"]);
    expect(states()[1]).toMatchObject({ kind: "default", token: term.token, leader: { value: "here" }, missed: false });
    expect(states()[1]!.leader!.electedAt).toBeGreaterThan(1.6e12);
  });

  test("a kind, a prefix or everything is observed", async () => {
    const one = new Agent((await agent()).address);
    for (const [kind, election] of [["k", "a-1"], ["k", "b-1"], ["other", "a-1"]] as const) {
      await one.campaign({ kind, election, candidate: "c", term: 60_000 });
    }
    const seen = async (scope: Scope) => {
      const { events, states, stop } = follow(one, scope);
      await eventually(() => events.find(({ is }) => is === "synced"));
      stop.abort();
      return states().map(({ kind, election }) => `${kind}/${election}`).sort();
    };
    expect(await seen({ kind: "k" })).toEqual(["k/a-1", "k/b-1"]);
    expect(await seen({ kind: "k", prefix: "a-" })).toEqual(["k/a-1"]);
    expect(await seen({ all: true })).toEqual(["k/a-1", "k/b-1", "other/a-1"]);
    expect(await seen({ kind: "other", election: "a-1" })).toEqual(["other/a-1"]);
  });

  test("the loop is told when all is known, and may be left", async () => {
    const one = new Agent((await agent()).address);
    await one.campaign({ election: "e", candidate: "c", term: 60_000 });
    let synced = 0;
    const states: string[] = [];
    for await (const state of one.observe({ kind: "default" }, { onSynced: () => (synced += 1) })) {
      states.push(short(state));
      if (states.length === 1) void one.campaign({ election: "f", candidate: "c", term: 60_000 });
      else break;
    }
    expect(states).toEqual(["e c present", "f c campaign"]);
    expect(synced).toBe(1);
  });

  test("a signal ends it with its reason", async () => {
    const one = new Agent((await agent()).address);
    const { events, stop, ended } = follow(one, "e");
    await eventually(() => events.find(({ is }) => is === "synced"));
    const reason = new Error("enough");
    stop.abort(reason);
    expect(await ended).toBe(reason);
    expect(await follow(one, "e").stop.signal.aborted).toBe(false);
  });

  test("a cut tells nothing twice, and silence that nothing is certain", async () => {
    const { address } = await agent();
    const proxy = await Proxy.to(address);
    const one = new Agent(proxy.address);
    const direct = new Agent(address);
    const token = (await direct.campaign({ election: "e", candidate: "a", term: 60_000 })).token;
    const { events, states } = follow(one, "e");
    await eventually(() => events.find(({ is }) => is === "synced"));
    proxy.reset();
    await direct.resign({ election: "e", candidate: "a", token });
    await direct.campaign({ election: "e", candidate: "b", term: 60_000 });
    await eventually(() => states().find(({ leader }) => leader?.name === "b"));
    expect(states().map(({ leader }) => leader?.name ?? "vacant").filter((name, at, all) => name === all[at - 1])).toEqual([]);
    expect(events.filter(({ is }) => is === "synced")).toHaveLength(1);
    proxy.refuse();
    const doubt = await eventually(() => events.find((event) => event.is === "certainty"));
    expect(doubt).toMatchObject({ certain: false });
    expect((doubt as { reason: string }).reason).not.toBe("");
    // No vacancy is guessed.
    expect(states().at(-1)!.leader?.name).toBe("b");
  });

  test("what the agent refuses ends it", async () => {
    const { address } = await agent({ EA_AUTH_MODES: "token", EA_AUTH_TOKEN_FILE: tokens() });
    const { ended } = follow(new Agent(address), "e");
    expect(await ended).toBeInstanceOf(Refused);
    expect(await ended).toMatchObject({ code: "UNAUTHENTICATED" });
  });

  test("it may be left while it waits for a change", async () => {
    const one = new Agent((await agent()).address);
    const states = one.observe("e");
    await states.next();
    const next = states.next();
    expect(await states.return()).toMatchObject({ done: true });
    expect(await next).toMatchObject({ done: true });
    const events = one.follow("e");
    expect(await events.return()).toMatchObject({ done: true });
    expect(await events.next()).toMatchObject({ done: true });
  });

  test("who reads slowly is told the last state of each election, and none after a later one", async () => {
    const one = new Agent((await agent()).address);
    const names = Array.from({ length: 200 }, (_, number) => `e-${number}`);
    const change = () => Promise.all(names.map((election) => one.campaign({ election, candidate: "c", term: 60_000 })));
    const states = one.observe({ kind: "default" });
    const reading = states.next();
    for (let round = 0; round < 5; round += 1) await change();
    const last = new Map((await one.leaders()).leaders.map(({ election, token }) => [election, token]));
    const told = new Map<string, number>();
    for (let state = (await reading).value as State; ; state = (await states.next()).value as State) {
      expect(state.token).toBeGreaterThan(told.get(state.election) ?? 0);
      told.set(state.election, state.token);
      if (names.every((name) => told.get(name) === last.get(name))) break;
    }
    await states.return();
  });

  test("an agent that ends its streams as soon as they are open is not asked without a pause", async () => {
    let opened = 0;
    const address = await serve((router) => {
      router.rpc(Leadership.method.observe, async function* (): AsyncGenerator<MessageInitShape<typeof ObservationSchema>> {
        opened += 1;
        const value = { kind: "default", election: "e", phase: State_Phase.VACANT, token: 7n };
        yield { what: { case: "state", value } };
        yield { what: { case: "synced", value: {} } };
        if (opened % 2 === 0) yield { what: { case: "goodbye", value: { reason: "AGE" } } };
      });
    });
    const { states, stop, ended } = follow(new Agent(address), "e");
    const began = performance.now();
    await eventually(() => (opened >= 6 ? true : undefined));
    // The pauses before the sixth are at least half of 50, 100, 200, 400 and 800 ms.
    expect(performance.now() - began).toBeGreaterThanOrEqual(775);
    expect(states()).toHaveLength(1);
    stop.abort();
    await ended;
  });
});

test("bad scopes are told before anything is sent", async () => {
  const one = new Agent("127.0.0.1:1");
  for (const scope of ["", {}, { election: "e", prefix: "p" }, { all: true, kind: "k" }, { prefix: "" }, 7, null, { all: false }, { elections: "e", kind: "k" }]) {
    const iterate = async () => {
      for await (const _ of one.observe(scope as never)) return;
    };
    expect(await rejected(iterate()), JSON.stringify(scope)).toBeInstanceOf(ConfigError);
  }
  for (const options of [null, { onSynced: 7 }, { onsynced: () => {} }, { signal: {} }]) {
    expect(thrown(() => one.observe("e", options as never))).toBeInstanceOf(ConfigError);
  }
});

describe("what is told next", () => {
  const state = (token: number, held: boolean, cause: State["cause"] = "present"): State => ({
    kind: "k",
    election: "e",
    token,
    cause,
    position: "",
    missed: false,
    leader: held ? { kind: "k", election: "e", name: "a", token, remaining: 0, value: "", electedAt: 0 } : undefined,
  });

  test("states follow each other", () => {
    const known = new Known();
    expect(known.judge(state(5, true))).toBe("news");
    known.put(state(5, true));
    expect(known.judge(state(5, true))).toBe("same");
    expect(known.judge(state(4, false))).toBe("older");
    expect(known.judge(state(5, false))).toBe("news");
    known.put(state(5, false));
    expect(known.judge(state(5, true))).toBe("older");
    expect(known.judge(state(5, true, "rolledBack"))).toBe("news");
    expect(known.judge(state(6, true))).toBe("news");
  });

  test("what was held and is not listed is found", () => {
    const known = new Known();
    known.put(state(5, true));
    expect(known.heldBeside(new Map())).toEqual([{ kind: "k", election: "e" }]);
    expect(known.heldBeside(new Map([["k\ne", state(6, true)]]))).toEqual([]);
    known.put(state(5, false));
    expect(known.heldBeside(new Map())).toEqual([]);
  });
});
