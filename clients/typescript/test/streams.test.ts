import { create } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { Agent, type LeadOptions, Lost, type Standing as Told } from "@election-agent/client";
import {
  Election,
  type LeadEventSchema,
  type LeadRequest,
  Leadership,
  type ObservationSchema,
  type StandingSchema,
  Standing_Is as Is,
  StateSchema,
  State_Cause,
  State_Phase,
} from "../src/proto.js";
import { Mailbox } from "../src/wait.js";
import { eventually, quiet, rejected, serve } from "./support.js";

type Event = MessageInitShape<typeof LeadEventSchema>;

/** A stream, as an agent has it. */
class Stream {
  readonly asked: LeadRequest["what"][] = [];
  readonly answers = new Mailbox<Event>();
  ended = false;

  standing(standing: MessageInitShape<typeof StandingSchema>): void {
    const value = { kind: "default", election: "e", ...standing };
    this.answers.put({ what: { case: "standing", value } });
  }

  leading(token: bigint, more: MessageInitShape<typeof StandingSchema> = {}): void {
    this.standing({ is: Is.LEADING, token, validFor: TERM - 20, pingValidFor: TERM - 20, ...more });
  }

  pong(seq: bigint, standings: MessageInitShape<typeof StandingSchema>[] = []): void {
    const value = { seq, standings: standings.map((standing) => ({ kind: "default", election: "e", ...standing })) };
    this.answers.put({ what: { case: "pong", value } });
  }

  of<C extends NonNullable<LeadRequest["what"]["case"]>>(what: C) {
    type One = Extract<LeadRequest["what"], { case: C }>["value"];
    return this.asked.flatMap((one) => (one.case === what ? [one.value as One] : []));
  }
}

const TERM = 3_000;

/** An agent whose streams a test answers: pings and leaves are answered unless the test wants to. */
async function fake({ pings = true, welcomes = true } = {}) {
  const streams: Stream[] = [];
  const calls: string[] = [];
  const address = await serve((router) => {
    router.rpc(Leadership.method.lead, async function* (requests, context) {
      const stream = new Stream();
      streams.push(stream);
      context.signal.addEventListener("abort", () => {
        stream.ended = true;
        stream.answers.end();
      });
      void (async () => {
        for await (const { what } of requests) {
          stream.asked.push(what);
          if (what.case === "hello" && welcomes) {
            stream.answers.put({ what: { case: "welcome", value: { agent: "fake", pingEvery: what.value.pingEvery } } });
          }
          if (what.case === "ping" && pings) stream.pong(what.value.seq);
          if (what.case === "leave") stream.standing({ is: Is.RESIGNED, token: what.value.token });
        }
      })().catch(() => {});
      for await (const event of stream.answers) yield event;
    });
    router.rpc(Election.method.campaign, ({ requestId }) => {
      calls.push(`campaign ${requestId}`);
      return { elected: true, leader: "me", kind: "default", token: 50n, validFor: TERM - 20 };
    });
    router.rpc(Election.method.extendElectedTerm, ({ token }) => {
      calls.push(`extend ${token}`);
      return { value: true, validFor: TERM - 20 };
    });
    router.rpc(Election.method.resign, ({ token }) => {
      calls.push(`resign ${token}`);
      return { value: true };
    });
  });
  const agent = new Agent(address, { candidate: "me", log: quiet });
  const stream = (at: number) => eventually(() => streams[at]);
  const join = (at: number) => eventually(() => streams[at]?.of("join").at(-1));
  return { agent, streams, calls, stream, join };
}

/** Leads, and tells what happens. */
function leading(agent: Agent, options: LeadOptions = {}) {
  const told: Told[] = [];
  const held = agent.acquire("e", { term: TERM, ...options, onState: (standing) => told.push(standing) });
  held.catch(() => {});
  return { held, told, is: () => told.map(({ is }) => is) };
}

describe("a stream", () => {
  test("goes on with the token at another when the agent says goodbye, before the old one ends", async () => {
    const { agent, streams, join } = await fake();
    const { held, is } = leading(agent);
    expect((await join(0)).token).toBe(0n);
    expect((await join(0)).requestId).toMatch(/^[0-9a-f]{32}$/);
    streams[0]!.leading(7n);
    const term = await held;
    const renewal = term.renewed();
    streams[0]!.answers.put({ what: { case: "goodbye", value: { reason: "AGE", reconnectAfter: 20 } } });
    const second = await join(1);
    expect(second).toMatchObject({ token: 7n, requestId: "" });
    await eventually(() => streams[0]!.ended || undefined);
    streams[1]!.leading(7n);
    await renewal;
    term.check();
    await term.resign();
    expect(streams[1]!.of("leave")).toMatchObject([{ token: 7n }]);
    expect(is()).toEqual(["leading", "resigned"]);
  });

  test("asks for another when a ping is not answered, and leaves the old one only then", async () => {
    const { agent, streams, join } = await fake({ pings: false });
    const { held, told } = leading(agent);
    await join(0);
    streams[0]!.leading(7n);
    const term = await held;
    await join(1);
    expect(streams[0]!.of("ping").length).toBeGreaterThan(0);
    streams[1]!.leading(7n);
    await eventually(() => told.find(({ is }) => is === "jeopardy") && told.at(-1)?.is === "leading" ? true : undefined);
    term.check();
    await term.resign();
  });

  test("lets nobody work under a provisional grant before it is accepted", async () => {
    const { agent, streams, join } = await fake({ pings: false });
    const { held, is } = leading(agent);
    await join(0);
    streams[0]!.standing({ is: Is.WAITING, leader: { name: "other" } });
    streams[0]!.leading(7n, { provisional: true });
    const [ping] = await eventually(() => {
      const pings = streams[0]!.of("ping");
      return pings.length > 0 ? pings : undefined;
    });
    expect(is()).toEqual(["waiting"]);
    const before = performance.now();
    streams[0]!.pong(ping!.seq);
    const term = await held;
    // Counted from the ping.
    expect(term.validUntil).toBeLessThanOrEqual(before + TERM - 20);
    await term.resign();
  });

  test("campaigns again, by another name, when a grant was lost before anybody worked under it", async () => {
    const { agent, streams, join } = await fake();
    const { held } = leading(agent);
    const first = (await join(0)).requestId;
    streams[0]!.standing({ is: Is.LOST, reason: "NO_TERM" });
    const again = await eventually(() => streams[0]!.of("join")[1]);
    expect(again.requestId).not.toBe(first);
    streams[0]!.leading(7n);
    await (await held).resign();
  });

  test("tells of jeopardy, and that it is over", async () => {
    const { agent, streams, join } = await fake({ pings: false });
    const { held, told, is } = leading(agent);
    await join(0);
    streams[0]!.leading(7n);
    const term = await held;
    const ping = async (count: number) => eventually(() => streams[0]!.of("ping")[count - 1]);
    streams[0]!.pong((await ping(1)).seq, [{ is: Is.JEOPARDY, token: 7n, reason: "no quorum" }]);
    await eventually(() => told.find((standing) => standing.is === "jeopardy" && standing.reason === "no quorum"));
    expect(term.inJeopardy).toBe(true);
    const until = term.validUntil;
    const { seq } = await ping(2);
    streams[0]!.pong(seq, [{ is: Is.LEADING, token: 7n, ofPing: seq, validFor: TERM - 20, pingValidFor: TERM - 20 }]);
    await eventually(() => !term.inJeopardy || undefined);
    expect(term.validUntil).toBeGreaterThan(until);
    await term.resign();
    expect(is()).toEqual(["leading", "jeopardy", "leading", "resigned"]);
  });

  test.each([
    [{ is: Is.LOST, token: 7n, reason: "HELD_BY_OTHER" }, "HeldByOther"],
    [{ is: Is.LOST, token: 7n, reason: "STALE_TOKEN" }, "StaleToken"],
    [{ is: Is.RESIGNED, token: 7n }, "NoTerm"],
    [{ is: Is.LEADING, token: 8n, validFor: 1, pingValidFor: 1 }, "StaleToken"],
  ] as const)("loses a term by %o", async (standing, reason) => {
    const { agent, streams, calls, join } = await fake();
    const { held } = leading(agent);
    await join(0);
    streams[0]!.leading(7n);
    const term = await held;
    streams[0]!.standing(standing);
    await eventually(() => term.lost);
    expect(term.lost).toBe(reason);
    expect(await rejected(term.resign())).toBeInstanceOf(Lost);
    // There is nothing to give up.
    expect(streams[0]!.of("leave")).toEqual([]);
    expect(calls).toEqual([]);
  });

  test("takes no late or foreign answer for an extension", async () => {
    const { agent, streams, join } = await fake({ pings: false });
    const { held } = leading(agent);
    await join(0);
    const before = performance.now();
    streams[0]!.leading(7n);
    const term = await held;
    const { seq } = await eventually(() => streams[0]!.of("ping")[0]);
    const until = term.validUntil;
    // Of another election; and a ping that was granted after.
    streams[0]!.standing({ election: "other", is: Is.LOST, reason: "NO_TERM" });
    streams[0]!.leading(7n, { ofPing: seq, validFor: 100 });
    streams[0]!.pong(seq);
    streams[0]!.standing({ is: Is.WAITING });
    // What comes after it.
    streams[0]!.standing({ is: Is.JEOPARDY, token: 7n, reason: "no quorum" });
    await eventually(() => term.inJeopardy || undefined);
    expect(term.validUntil).toBe(until);
    expect(until).toBeLessThanOrEqual(before + TERM);
    term.check();
    await term.resign();
  });

  test("leaves to calls what the agent refuses there", async () => {
    const { agent, streams, calls, join } = await fake();
    const { held } = leading(agent);
    await join(0);
    streams[0]!.standing({ is: Is.REFUSED, reason: "not so" });
    const term = await held;
    expect(term.token).toBe(50);
    expect(calls.filter((call) => call.startsWith("campaign"))).toHaveLength(1);
    // The stream is tried again with the token.
    const again = await eventually(() => streams.flatMap((stream) => stream.of("join")).find(({ token }) => token === 50n));
    expect(again.requestId).toBe("");
    for (const stream of streams) stream.standing({ is: Is.REFUSED, reason: "not so" });
    await eventually(() => calls.find((call) => call === "extend 50"));
    await term.resign();
    expect(calls.at(-1)).toBe("resign 50");
  });

  test.each([
    ["ends without a word", undefined],
    ["names a token that numbers cannot hold", 2n ** 53n],
  ])("that %s is not opened again without a pause, and calls have to do", async (_, token) => {
    const { agent, streams, calls, stream } = await fake();
    const { held } = leading(agent);
    for (let at = 0; at < 2; at += 1) {
      const one = await stream(at);
      await eventually(() => one.of("join")[0]);
      if (token === undefined) one.answers.end();
      else one.leading(token);
    }
    const term = await held;
    expect(term.token).toBe(50);
    expect(calls.filter((call) => call.startsWith("campaign"))).toHaveLength(1);
    await term.resign();
    expect(streams).toHaveLength(2);
  });

  test("that ends each time after it has granted the term is opened again after pauses that grow", async () => {
    const { agent, stream } = await fake({ pings: false });
    const { held } = leading(agent);
    let began = 0;
    for (let at = 0; at < 5; at += 1) {
      const one = await stream(at);
      if (at === 0) began = performance.now();
      await eventually(() => one.of("join")[0]);
      one.leading(7n);
      if (at === 0) await held;
      if (at < 4) one.answers.end();
    }
    // At least half of 50, 100, 200 and 400 ms.
    expect(performance.now() - began).toBeGreaterThanOrEqual(375);
    const term = await held;
    term.check();
    await term.resign();
  });

  test("leads several elections, and loses one without the other", async () => {
    const { agent, streams, join } = await fake();
    const one = leading(agent);
    await join(0);
    streams[0]!.leading(7n);
    const first = await one.held;
    const other = agent.acquire("f", { term: TERM });
    await eventually(() => streams[0]!.of("join").find(({ election }) => election === "f"));
    streams[0]!.leading(9n, { election: "f" });
    const second = await other;
    expect(streams).toHaveLength(1);
    streams[0]!.standing({ is: Is.LOST, token: 7n, reason: "STALE_TOKEN" });
    await eventually(() => first.lost);
    await second.renewed();
    second.check();
    await second.resign();
  });
});

test("an observer goes on at another stream when the agent says goodbye, and asks a quorum about what is older", async () => {
  const held = (token: bigint, name: string) =>
    create(StateSchema, {
      kind: "default",
      election: "e",
      phase: State_Phase.HELD,
      token,
      cause: State_Cause.CAMPAIGN,
      leader: { kind: "default", election: "e", name, token },
    });
  let opened = 0;
  let asked = 0;
  const address = await serve((router) => {
    type Observations = AsyncGenerator<MessageInitShape<typeof ObservationSchema>>;
    router.rpc(Leadership.method.observe, async function* (_, context): Observations {
      const stream = (opened += 1);
      yield { what: { case: "state", value: stream === 1 ? held(7n, "a") : held(6n, "former") } };
      yield { what: { case: "synced", value: {} } };
      if (stream === 1) yield { what: { case: "goodbye", value: { reason: "AGE", reconnectAfter: 10 } } };
      await new Promise((resolve) => context.signal.addEventListener("abort", resolve));
    });
    router.rpc(Election.method.getElection, () => {
      asked += 1;
      if (asked === 1) throw new ConnectError("no quorum", Code.Unavailable);
      return held(8n, "b");
    });
  });
  const leaders: string[] = [];
  let synced = 0;
  for await (const state of new Agent(address).observe("e", { onSynced: () => (synced += 1) })) {
    leaders.push(`${state.leader?.name} ${state.missed}`);
    if (leaders.length === 2) break;
  }
  expect(leaders).toEqual(["a false", "b true"]);
  expect([opened, synced]).toEqual([2, 1]);
  expect(asked).toBeGreaterThanOrEqual(2);
});
