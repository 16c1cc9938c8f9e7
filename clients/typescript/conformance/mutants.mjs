// Faults that the client can be given, each with a scenario and the check of it that has to find it, as in
// clients/conformance/src/mutants.rs. They reach into the built package.
import { Agent, HeldTerm, NotElected, NotKnown, Unreachable } from "@election-agent/client";
import { UptimeClock } from "../dist/clock-node.js";
import { moment } from "../dist/clock.js";
import { Told } from "../dist/lead/hooks.js";
import { Session } from "../dist/lead/session.js";
import { LeadStream } from "../dist/lead/stream.js";
import { Shared } from "../dist/lead/term.js";
import { Pool } from "../dist/pool.js";

/** Replaces a method by one that is given the original. */
function patch(of, name, replacement) {
  const original = of.prototype[name];
  of.prototype[name] = function (...args) {
    return replacement.call(this, original.bind(this), ...args);
  };
}

/** What the program does instead of what it does without a fault. */
const faults = {
  agents: (agents) => agents,
  /** Of the Agent. */
  options: {},
  lead: (agent, election, options, work) => agent.lead(election, options, work),
};

function changeOptions(change) {
  faults.lead = (agent, election, options, work) => {
    change(options);
    return agent.lead(election, options, work);
  };
}

/** Changes what agents are asked by the stream and by calls. */
function changeRequests(change) {
  patch(Session, "send", (send, what) => send({ case: what.case, value: change(what.case, { ...what.value }) }));
  patch(Pool, "call", (call, plan, method, message) => call(plan, method, change(method.localName, { ...message })));
}

function randomId() {
  return Math.random().toString(16).slice(2);
}

/** Each gives the client its fault. clients/conformance/src/mutants.rs says which scenario has to find it. */
export const MUTANTS = {
  /** Counts `valid_for` from when the answer arrives. */
  CountsFromReceipt: () => patch(Session, "sent", (sent, ping) => ({ ...sent(ping), moment: moment({ now: () => performance.now() }) })),
  /** Takes a term for twice as long as it was promised. */
  TermsAreTwiceAsLong: () => patch(Shared, "extend", (extend, until, anchor) => extend(until + 3_000, anchor)),
  /** Does not report losses. */
  NeverReportsLoss: () => patch(Told, "lost", () => {}),
  /** Looks at no clock, but at a flag that a timer of the event loop sets. */
  TimerOfTheRuntime: () => {
    let timer = false;
    patch(Shared, "due", (due) => {
      timer = true;
      const next = due();
      timer = false;
      return next;
    });
    patch(Shared, "look", function (look) {
      return timer ? look() : this.why;
    });
  },
  /**
   * Counts by a clock that stops during suspension. The program converts what is left of the term, so that nothing acts
   * after what it reports as its end: but beside another leader.
   */
  MonotonicClock: () => patch(UptimeClock, "now", () => performance.now()),
  /** Takes a step of the wall clock for a suspension. */
  WallClock: () => patch(UptimeClock, "uptime", () => undefined),
  /** Resigns when the loss is noticed, under a body that goes on. */
  ResignsUnderTheBody: () => {
    faults.lead = (agent, election, options, work) =>
      agent.lead(election, options, (term) => {
        term.signal.addEventListener("abort", () => void term.resign().catch(() => {}));
        return work(term);
      });
  },
  /** Lets the term lapse instead. */
  NeverResigns: () =>
    patch(HeldTerm, "end", async function () {
      this.lapse();
    }),
  /** Goes on extending after it has resigned. */
  ExtendsAfterResign: () => {
    faults.lead = async (agent, election, options, work) => {
      let last;
      const result = await agent.lead(election, options, (term) => work((last = term)));
      const { kind, candidate, term } = options;
      setInterval(() => void agent.extend({ election, kind, candidate, token: last.token, term }).catch(() => {}), 300);
      return result;
    };
  },
  /** Gives up by name, also what another process of this name leads. */
  ResignsByName: () => {
    faults.options = { streams: false };
    changeRequests((what, value) => (what === "resign" ? { ...value, token: 0n } : value));
  },
  /** Extends by name. */
  ExtendsByName: () => {
    faults.options = { streams: false };
    changeRequests((what, value) => (what === "extendElectedTerm" ? { ...value, token: 0n } : value));
  },
  /** Does not lead by calls if the agent has no streams. */
  StreamsOnly: () => changeRequests((what, value) => (what === "campaign" ? { ...value, election: "" } : value)),
  /** Names each repetition of an attempt anew. */
  NewRequestId: () => changeRequests((what, value) => (what === "join" ? { ...value, requestId: randomId() } : value)),
  /** Names all attempts alike. */
  OneRequestId: () => changeRequests((what, value) => (what === "campaign" ? { ...value, requestId: "same" } : value)),
  /** Uses the first agent only. */
  NoFailover: () => {
    faults.agents = (agents) => agents.split(",")[0];
  },
  /** Takes the end of a stream for a loss. */
  StreamEndIsLoss: () =>
    patch(LeadStream, "opened", function (opened, session) {
      for (const { stage } of this.entries.values()) if (stage.is === "leading") stage.term.lose("NoTerm");
      return opened(session);
    }),
  /** Takes an extension whose outcome is not known for a loss. */
  JeopardyIsLoss: () =>
    patch(Shared, "jeopardize", function () {
      this.lose("NoTerm");
    }),
  /** Takes the loss of one election for the loss of all. */
  LosesAll: () =>
    patch(LeadStream, "ended", function (ended, number, why) {
      if (why !== undefined) for (const other of [...this.entries.keys()]) ended(other, why);
      else ended(number, why);
    }),
  /** Does not report that a term could not be extended. */
  NoJeopardy: () => patch(Told, "jeopardy", () => {}),
  /** Does not wait for the election to become vacant. */
  DoesNotWait: () => changeOptions((options) => (options.wait = 0)),
  /** Extends the term of an application that is not alive. */
  IgnoresAlive: () => changeOptions((options) => delete options.alive),
  /** Does not extend the term for a body that goes on after the loss. */
  NoGrace: () => changeOptions((options) => (options.grace = 0)),
  /** Extends the term after the grace. */
  EndlessGrace: () => changeOptions((options) => (options.grace = 1e9)),
  /** Takes a refusal for a loss. */
  RefusalIsLoss: () =>
    patch(Shared, "jeopardize", function (jeopardize, reason) {
      if (reason.startsWith("PERMISSION_DENIED")) this.lose("NoTerm");
      else jeopardize(reason);
    }),
  /** Takes a denial for a failure. */
  IgnoresDenial: () => patch(Shared, "lose", (lose, why) => (why === "StaleToken" ? undefined : lose(why))),
  /** Reports an election that could not be decided as lost to another. */
  UnknownIsDenied: () => {
    faults.lead = async (agent, election, options, work) => {
      try {
        return await agent.lead(election, options, work);
      } catch (error) {
        throw error instanceof NotKnown || error instanceof Unreachable ? new NotElected(undefined) : error;
      }
    };
  },
  /** Takes each token for the present one. */
  BelievesTokens: () => patch(Agent, "verify", async () => ({ current: true })),
  /** Does not report that states are uncertain. */
  AlwaysCertain: () =>
    patch(Agent, "follow", async function* (follow, scope) {
      for await (const event of follow(scope)) if (event.is !== "certainty") yield event;
    }),
  /** Reports a vacancy when states are uncertain. */
  GuessesVacancies: () =>
    patch(Agent, "follow", async function* (follow, scope) {
      let last;
      for await (const event of follow(scope)) {
        if (event.is === "state") last = event.state;
        yield event;
        if (event.is !== "certainty" || event.certain || last === undefined) continue;
        yield { is: "state", state: { ...last, leader: undefined, cause: "expiry" } };
      }
    }),
  /** Does not report why a state is told. */
  ForgetsCauses: () =>
    patch(Agent, "follow", async function* (follow, scope) {
      for await (const event of follow(scope)) {
        if (event.is === "state") event.state.cause = "present";
        yield event;
      }
    }),
};

/** Gives the client a fault, if one is named. Returns what the program does. */
export function mutate(name) {
  if (name === undefined) return faults;
  const mutant = MUTANTS[name];
  if (mutant === undefined) throw new Error(`there is no mutant ${name}`);
  mutant();
  return faults;
}
