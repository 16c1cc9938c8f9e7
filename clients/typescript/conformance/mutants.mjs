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

/** `found`: scenario and check. */
export const MUTANTS = {
  /** Counts `valid_for` from when the answer arrives. */
  CountsFromReceipt: {
    found: [["steady", "validity_is_as_promised"]],
    make: () => patch(Session, "sent", (sent, ping) => ({ ...sent(ping), moment: moment({ now: () => performance.now() }) })),
  },
  /** Takes a term for twice as long as it was promised. */
  TermsAreTwiceAsLong: {
    found: [["black_hole", "acts_alone"]],
    make: () => patch(Shared, "extend", (extend, until, anchor) => extend(until + 3_000, anchor)),
  },
  /** Does not report losses. */
  NeverReportsLoss: {
    found: [
      ["black_hole", "loss_is_reported_in_time"],
      ["client_stopped", "loss_is_reported"],
    ],
    make: () => patch(Told, "lost", () => {}),
  },
  /** Looks at no clock, but at a flag that a timer of the event loop sets. */
  TimerOfTheRuntime: {
    found: [["body_blocks", "acts_within_validity"]],
    make: () => {
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
  },
  /**
   * Counts by a clock that stops during suspension. The program converts what is left of the term, so that nothing acts
   * after what it reports as its end: but beside another leader.
   */
  MonotonicClock: {
    found: [["suspended", "acts_alone"]],
    make: () => patch(UptimeClock, "now", () => performance.now()),
  },
  /** Takes a step of the wall clock for a suspension. */
  WallClock: {
    found: [["wall_clock_jumps", "nothing_is_lost"]],
    make: () => patch(UptimeClock, "uptime", () => undefined),
  },
  /** Resigns when the loss is noticed, under a body that goes on. */
  ResignsUnderTheBody: {
    found: [["body_ignores_loss", "body_ends_before_resign"]],
    make: () => {
      faults.lead = (agent, election, options, work) =>
        agent.lead(election, options, (term) => {
          term.signal.addEventListener("abort", () => void term.resign().catch(() => {}));
          return work(term);
        });
    },
  },
  /** Lets the term lapse instead. */
  NeverResigns: {
    found: [
      ["steady", "resigns_at_the_end"],
      ["unary_fallback", "resigns_at_the_end"],
    ],
    make: () =>
      patch(HeldTerm, "end", async function () {
        this.lapse();
      }),
  },
  /** Goes on extending after it has resigned. */
  ExtendsAfterResign: {
    found: [["steady", "no_extension_after_resign"]],
    make: () => {
      faults.lead = async (agent, election, options, work) => {
        let last;
        const result = await agent.lead(election, options, (term) => work((last = term)));
        const { kind, candidate, term } = options;
        setInterval(() => void agent.extend({ election, kind, candidate, token: last.token, term }).catch(() => {}), 300);
        return result;
      };
    },
  },
  /** Gives up by name, also what another process of this name leads. */
  ResignsByName: {
    found: [["steady", "tokens_are_named"]],
    make: () => {
      faults.options = { streams: false };
      changeRequests((what, value) => (what === "resign" ? { ...value, token: 0n } : value));
    },
  },
  /** Extends by name. */
  ExtendsByName: {
    found: [["steady", "tokens_are_named"]],
    make: () => {
      faults.options = { streams: false };
      changeRequests((what, value) => (what === "extendElectedTerm" ? { ...value, token: 0n } : value));
    },
  },
  /** Names each repetition of an attempt anew. */
  NewRequestId: {
    found: [["request_ids", "request_ids_name_attempts"]],
    make: () => changeRequests((what, value) => (what === "join" ? { ...value, requestId: randomId() } : value)),
  },
  /** Names all attempts alike. */
  OneRequestId: {
    found: [["request_ids_of_calls", "request_ids_name_attempts"]],
    make: () => changeRequests((what, value) => (what === "campaign" ? { ...value, requestId: "same" } : value)),
  },
  /** Uses the first agent only. */
  NoFailover: {
    found: [
      ["failover", "fails_over_within_a_second"],
      ["silent_agent", "nothing_is_lost"],
    ],
    make: () => {
      faults.agents = (agents) => agents.split(",")[0];
    },
  },
  /** Takes the end of a stream for a loss. */
  StreamEndIsLoss: {
    found: [["connection_age", "nothing_is_lost"]],
    make: () =>
      patch(LeadStream, "opened", function (opened, session) {
        for (const { stage } of this.entries.values()) if (stage.is === "leading") stage.term.lose("NoTerm");
        return opened(session);
      }),
  },
  /** Takes an extension whose outcome is not known for a loss. */
  JeopardyIsLoss: {
    found: [["quorum_returns", "nothing_is_lost"]],
    make: () =>
      patch(Shared, "jeopardize", function () {
        this.lose("NoTerm");
      }),
  },
  /** Takes the loss of one election for the loss of all. */
  LosesAll: {
    found: [["two_elections", "one_loss_is_not_anothers"]],
    make: () =>
      patch(LeadStream, "ended", function (ended, number, why) {
        if (why !== undefined) for (const other of [...this.entries.keys()]) ended(other, why);
        else ended(number, why);
      }),
  },
  /** Does not report that a term could not be extended. */
  NoJeopardy: { found: [["black_hole", "jeopardy_is_reported"]], make: () => patch(Told, "jeopardy", () => {}) },
  /** Does not wait for the election to become vacant. */
  DoesNotWait: {
    found: [["hung_application", "the_next_leads"]],
    make: () => changeOptions((options) => (options.wait = 0)),
  },
  /** Extends the term of an application that is not alive. */
  IgnoresAlive: {
    found: [["hung_application", "stops_to_extend_when_not_alive"]],
    make: () => changeOptions((options) => delete options.alive),
  },
  /** Does not extend the term for a body that goes on after the loss. */
  NoGrace: {
    found: [["body_ignores_loss", "keeps_the_term_for_the_grace"]],
    make: () => changeOptions((options) => (options.grace = 0)),
  },
  /** Extends the term after the grace. */
  EndlessGrace: {
    found: [["body_ignores_loss", "lets_the_term_lapse_after_the_grace"]],
    make: () => changeOptions((options) => (options.grace = 1e9)),
  },
  /** Takes a refusal for a loss. */
  RefusalIsLoss: {
    found: [["refused_extension", "a_refusal_is_no_loss"]],
    make: () =>
      patch(Shared, "jeopardize", function (jeopardize, reason) {
        if (reason.startsWith("PERMISSION_DENIED")) this.lose("NoTerm");
        else jeopardize(reason);
      }),
  },
  /** Takes a denial for a failure. */
  IgnoresDenial: {
    found: [["fenced", "is_told_of_its_fencing"]],
    make: () => patch(Shared, "lose", (lose, why) => (why === "StaleToken" ? undefined : lose(why))),
  },
  /** Reports an election that could not be decided as lost to another. */
  UnknownIsDenied: {
    found: [["unknown_outcome", "unknown_is_not_denied"]],
    make: () => {
      faults.lead = async (agent, election, options, work) => {
        try {
          return await agent.lead(election, options, work);
        } catch (error) {
          throw error instanceof NotKnown || error instanceof Unreachable ? new NotElected(undefined) : error;
        }
      };
    },
  },
  /** Takes each token for the present one. */
  BelievesTokens: {
    found: [["verification", "tokens_are_verified"]],
    make: () => patch(Agent, "verify", async () => ({ current: true })),
  },
  /** Does not report that states are uncertain. */
  AlwaysCertain: {
    found: [["quorum_loss", "uncertainty_is_reported"]],
    make: () =>
      patch(Agent, "follow", async function* (follow, scope) {
        for await (const event of follow(scope)) if (event.is !== "certainty") yield event;
      }),
  },
  /** Does not report why a state is told. */
  ForgetsCauses: {
    found: [["observer", "states_are_told_in_order"]],
    make: () =>
      patch(Agent, "follow", async function* (follow, scope) {
        for await (const event of follow(scope)) {
          if (event.is === "state") event.state.cause = "present";
          yield event;
        }
      }),
  },
};

/** Gives the client a fault, if one is named. Returns what the program does. */
export function mutate(name) {
  if (name === undefined) return faults;
  const mutant = MUTANTS[name];
  if (mutant === undefined) throw new Error(`there is no mutant ${name}`);
  mutant.make();
  return faults;
}
