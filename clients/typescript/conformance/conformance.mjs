// The conformance program of the TypeScript client: clients/conformance/README.md has the protocol. `--mutant NAME`
// gives the client a fault, which the suite has to find.
import { createInterface } from "node:readline";
import { Agent, ConfigError, Lost, NotElected, NotKnown, Refused, Unreachable } from "@election-agent/client";
import { now } from "./boottime.mjs";
import { mutate } from "./mutants.mjs";

const flag = process.argv.indexOf("--mutant");
const mutant = flag < 0 ? undefined : process.argv[flag + 1];
const faults = mutate(mutant);

const LOST = {
  TermOver: "term_over",
  HeldByOther: "held_by_other",
  StaleToken: "stale_token",
  NoTerm: "no_term",
  ClockJumped: "clock_jumped",
};
const ERRORS = [
  [NotElected, "not_elected"],
  [Lost, "lost"],
  [NotKnown, "not_known"],
  [Refused, "refused"],
  [Unreachable, "unreachable"],
  [ConfigError, "config"],
];

/** Numbers of ns are larger than doubles are exact. */
function send(event, id, fields = {}, at = now()) {
  const { valid_until, ...rest } = fields;
  let line = `{"event":"${event}","id":${id},"at":${at}`;
  if (valid_until !== undefined) line += `,"valid_until":${valid_until}`;
  for (const [name, value] of Object.entries(rest)) {
    if (value !== undefined) line += `,"${name}":${JSON.stringify(value)}`;
  }
  process.stdout.write(`${line}}\n`);
}

function failed(id, error) {
  const found = ERRORS.find(([kind]) => error instanceof kind);
  if (found === undefined) console.error(error);
  send("error", id, { reason: found === undefined ? "other" : found[1] });
}

/** Until when a term is good, by CLOCK_BOOTTIME, if it is `at` now. */
function until(term, at) {
  return at + BigInt(Math.floor((term.validUntil - performance.now()) * 1e6));
}

const all = new Map();

/** What commands say to a body. */
function orders(id) {
  if (!all.has(id)) all.set(id, { alive: true, block: 0, ended: false, end: () => {} });
  return all.get(id);
}

function act(id, term) {
  const at = now();
  try {
    term.check();
  } catch {
    return;
  }
  send("acting", id, { token: term.token, valid_until: until(term, at) }, at);
}

async function renewals(id, term) {
  try {
    for (;;) {
      await term.renewed();
      send("renewed", id, { valid_until: until(term, now()) });
    }
  } catch {
    // It is lost.
  }
}

async function works(id, term, body, told) {
  send("leading", id, { token: term.token, valid_until: until(term, now()) });
  void renewals(id, term);
  let tick;
  await new Promise((resolve) => {
    told.end = resolve;
    if (told.ended) resolve();
    if (body === "cooperative") term.signal.addEventListener("abort", resolve);
    if (body === "cooperative" && term.signal.aborted) resolve();
    tick = setInterval(() => {
      act(id, term);
      const { block } = told;
      told.block = 0;
      if (block > 0) {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, block);
        act(id, term);
      }
    }, 20);
  });
  clearInterval(tick);
  send("body_ended", id);
}

async function leads(agent, lead) {
  const { id } = lead;
  const told = orders(id);
  const options = {
    kind: lead.kind,
    candidate: lead.candidate,
    term: lead.term_ms,
    grace: lead.grace_ms,
    onLost: (reason) => send("lost", id, { reason: LOST[reason] }),
    onJeopardy: () => send("jeopardy", id),
    onState: (standing) => {
      if (standing.is === "resigned") send("resigned", id);
      if (standing.is === "refused") send("refused", id, { reason: standing.detail });
    },
  };
  if (lead.asks_alive) options.alive = () => told.alive;
  if (typeof lead.wait_ms === "number") options.wait = lead.wait_ms;
  if (typeof lead.margin_ms === "number") options.margin = lead.margin_ms;
  try {
    await faults.lead(agent, lead.election, options, (term) => works(id, term, lead.body, told));
    send("done", id);
  } catch (error) {
    failed(id, error);
  }
}

async function observes(agent, { id, kind, election }) {
  try {
    for await (const event of agent.follow({ kind, election })) {
      if (event.is === "synced") send("synced", id);
      if (event.is === "certainty") send("certainty", id, { certain: event.certain, reason: event.reason });
      if (event.is !== "state") continue;
      const { leader, cause, token } = event.state;
      send("state", id, {
        phase: leader === undefined ? "vacant" : "held",
        cause: cause === "rolledBack" ? "rolled_back" : cause,
        token,
        leader: leader?.name,
      });
    }
  } catch (error) {
    failed(id, error);
  }
}

async function verifies(agent, { id, kind, election, token }) {
  try {
    const { current, reason } = await agent.verify({ kind, election, token });
    send("verified", id, { current, reason: reason?.toLowerCase() });
  } catch (error) {
    failed(id, error);
  }
}

let agent;
const lines = createInterface({ input: process.stdin });
lines.on("close", () => process.exit(0));
lines.on("line", (line) => {
  const command = JSON.parse(line);
  switch (command.do) {
    case "connect":
      agent = new Agent(faults.agents(command.agents), faults.options);
      break;
    case "lead":
      void leads(agent, command);
      break;
    case "end_body":
      orders(command.id).ended = true;
      orders(command.id).end();
      break;
    case "block":
      orders(command.id).block = command.ms;
      break;
    case "alive":
      orders(command.id).alive = command.alive;
      break;
    case "observe":
      void observes(agent, command);
      break;
    case "verify":
      void verifies(agent, command);
      break;
    case "quit":
      process.exit(0);
      break;
    default:
      console.error(`an unknown command: ${line}`);
      process.exit(2);
  }
});
send("ready", 0);
