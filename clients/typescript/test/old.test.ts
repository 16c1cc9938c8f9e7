import { expect, test } from "vitest";
import { Agent, Lost, NotElected, Refused } from "@election-agent/client";
import { Election } from "./gen/election_agent_pb.js";
import { rejected, serve } from "./support.js";

/** An agent of version 0.1.0: it has no streams, no waits, and extensions that do not say for how long. */
async function oldAgent() {
  const leases = new Map<string, { leader: string; token: bigint; until: number }>();
  const calls: string[] = [];
  let last = 0n;
  const held = (key: string) => {
    const lease = leases.get(key);
    return lease !== undefined && lease.until > performance.now() ? lease : undefined;
  };
  const judge = (key: string, leader: string, token: bigint) => {
    const lease = held(key);
    if (lease === undefined) return "NO_TERM";
    if (lease.leader !== leader) return "HELD_BY_OTHER";
    return token !== 0n && token !== lease.token ? "STALE_TOKEN" : "";
  };
  const address = await serve((router) =>
    router.service(Election, {
      campaign({ kind, election, candidate, term, value }) {
        calls.push("campaign");
        const key = `${kind}/${election}`;
        const lease = held(key);
        if (lease !== undefined && lease.leader !== candidate) {
          return { elected: false, leader: lease.leader, kind, token: lease.token };
        }
        last += 1n;
        leases.set(key, { leader: candidate, token: last, until: performance.now() + term });
        return { elected: true, leader: candidate, kind, token: last, validFor: Math.floor(term * 0.99) - 2, value };
      },
      extendElectedTerm({ kind, election, leader, term, token }) {
        calls.push("extend");
        const reason = judge(`${kind}/${election}`, leader, token);
        if (reason !== "") return { value: false, reason };
        held(`${kind}/${election}`)!.until = performance.now() + term;
        return { value: true };
      },
      resign({ kind, election, leader, token }) {
        calls.push("resign");
        const reason = judge(`${kind}/${election}`, leader, token);
        if (reason !== "") return { value: false, reason };
        leases.delete(`${kind}/${election}`);
        return { value: true };
      },
    }),
  );
  return { address, leases, calls };
}

test("an agent of version 0.1.0 is led by with calls", async () => {
  const { address, calls } = await oldAgent();
  const one = new Agent(address);
  await one.lead("old", { term: 1_200 }, async (term) => {
    for (let renewals = 0; renewals < 3; renewals += 1) await term.renewed();
    expect(term.validUntil - performance.now()).toBeLessThanOrEqual(1_186);
  });
  expect(calls.filter((call) => call === "extend").length).toBeGreaterThanOrEqual(3);
  expect(calls.at(-1)).toBe("resign");
});

test("who waits at it asks again until the leader has resigned", async () => {
  const { address } = await oldAgent();
  const [one, two] = [new Agent(address), new Agent(address)];
  const term = await one.acquire("old");
  expect(await rejected(two.lead("old", { wait: 500 }, () => 0))).toMatchObject({ leader: one.candidate });
  expect(await rejected(two.lead("old", { wait: 0 }, () => 0))).toBeInstanceOf(NotElected);
  const waits = two.lead("old", (next) => next.token);
  await term.resign();
  expect(await waits).toBeGreaterThan(term.token);
});

test("a term that another process takes over there is lost", async () => {
  const { address, leases } = await oldAgent();
  const lost = await rejected(
    new Agent(address, { log: {} }).lead("old", { term: 1_200 }, async (term) => {
      leases.set("default/old", { leader: term.candidate, token: BigInt(term.token + 1), until: performance.now() + 5_000 });
      await new Promise((resolve) => term.signal.addEventListener("abort", resolve));
    }),
  );
  expect((lost as Lost).reason).toBe("StaleToken");
});

test("what it does not offer is refused", async () => {
  const { address } = await oldAgent();
  const one = new Agent(address);
  expect(await rejected(one.verify({ election: "old", token: 7 }))).toMatchObject({ code: "UNIMPLEMENTED" });
  const observe = async () => {
    for await (const _ of one.observe("old")) return;
  };
  expect(await rejected(observe())).toBeInstanceOf(Refused);
});
