//! The state of the checker: the memories of the nodes, the requests of the agents, and requests in transit.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use election_core::{
    lease::{
        Bounds, Incarnation,
        memory::Memory,
        policy::{
            Call, Electorate, Event, Machine, Step, View, claim::Claiming, extension::Extending,
            resignation::Resigning,
        },
        quorum::Claimed,
    },
    types::{ElectionId, Token},
};
use tokio::time::Instant;

use crate::world::{Budget, Plan, TICK};

/// The start of the model's time.
pub(crate) static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The election of all candidates.
pub(crate) static ELECTION: LazyLock<ElectionId> =
    LazyLock::new(|| ElectionId::new("", "e").expect("valid"));

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) ticks: u8,
    /// The clock's reading as a token: no two proposals get the same. Constant in worlds without clocks.
    pub(crate) clock: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) agents: Vec<Agent>,
    /// What each candidate knows of its own leadership.
    pub(crate) leads: Vec<Option<Lead>>,
    /// How many candidates have a name: names are assigned in the order of their first use.
    pub(crate) named: usize,
    /// The candidates that were elected, with their tokens.
    pub(crate) told: BTreeSet<(usize, Token)>,
    /// Whether a token was not above one that was granted before its request.
    pub(crate) fell: bool,
    pub(crate) left: Budget,
}

/// A node, and the requests in transit to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) memory: Memory,
    /// The memory that a restart may restore.
    pub(crate) saved: Option<Memory>,
    pub(crate) inbox: BTreeMap<Key, Call>,
}

/// Identifies a request to a node: the agent, its operation, and the number of the request within it.
pub(crate) type Key = (usize, u32, u32);

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Agent {
    /// The longest bounds that it knows.
    pub(crate) longest: Bounds,
    /// The last token that it proposed or observed.
    pub(crate) last: u64,
    /// How many grant ids it has created.
    pub(crate) names: u64,
    /// The incarnations that it knows, and when it last probed each.
    pub(crate) known: Vec<Option<(Incarnation, Instant)>>,
    pub(crate) operations: BTreeMap<u32, Operation>,
    /// How many operations it has started.
    pub(crate) begun: u32,
}

/// Until when a candidate may act as leader, and its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lead {
    pub(crate) token: Token,
    pub(crate) until: Instant,
}

/// A request of a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) request: Request,
    pub(crate) candidate: usize,
    /// The candidate's token at the time of its request.
    pub(crate) token: Option<Token>,
    pub(crate) asked: Instant,
    /// The largest token that was granted before the request.
    pub(crate) above: Option<Token>,
    /// Replies that the operation waits for, with their deadlines.
    pub(crate) waits: BTreeMap<(u32, usize), Instant>,
    pub(crate) wake: Option<Instant>,
    pub(crate) votes: u32,
    pub(crate) answered: bool,
}

/// The agent's own state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Claim(Claiming),
    Extend(Extending),
    Resign(Resigning),
}

/// An effect that a state machine requests.
pub(crate) enum Wanted {
    Ask {
        tag: u32,
        nodes: election_core::lease::policy::Nodes,
        call: Call,
        until: Instant,
    },
    Wake(Instant),
    CheckHealth,
    Elected(Token, std::time::Duration),
    Extended(std::time::Duration),
    Answered,
}

impl Request {
    pub(crate) fn on(&mut self, event: Event, now: Instant, view: &Eyes<'_>) -> Vec<Wanted> {
        match self {
            Self::Claim(claiming) => wanted(claiming, event, now, view, |answer| match answer {
                Ok(Claimed::Won { token, valid_for }) => Wanted::Elected(token, valid_for),
                _ => Wanted::Answered,
            }),
            Self::Extend(extending) => wanted(extending, event, now, view, |answer| match answer {
                Ok(valid_for) => Wanted::Extended(valid_for),
                _ => Wanted::Answered,
            }),
            Self::Resign(resigning) => wanted(resigning, event, now, view, |_| Wanted::Answered),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Claim(claiming) => claiming.is_done(),
            Self::Extend(extending) => extending.is_done(),
            Self::Resign(resigning) => resigning.is_done(),
        }
    }
}

/// Feeds an event to a machine, and returns the effects that it requests.
fn wanted<M: Machine>(
    machine: &mut M,
    event: Event,
    now: Instant,
    view: &Eyes<'_>,
    answer: impl Fn(M::Output) -> Wanted,
) -> Vec<Wanted> {
    let mut steps = Vec::new();
    machine.on(event, now, view, &mut steps);
    let wanted = |step| {
        Some(match step {
            Step::Ask {
                tag,
                nodes,
                call,
                until,
            } => Wanted::Ask {
                tag,
                nodes,
                call,
                until,
            },
            Step::Wake(at) => Wanted::Wake(at),
            Step::CheckHealth(..) => Wanted::CheckHealth,
            Step::Answer(answered) => answer(answered),
            Step::Note(_) => return None,
        })
    };
    steps.into_iter().filter_map(wanted).collect()
}

/// The view of an agent's machines.
pub(crate) struct Eyes<'a> {
    pub(crate) agent: &'a Agent,
    pub(crate) plan: Plan,
    /// Distinguishes the grant ids of this agent from those of others.
    pub(crate) number: u64,
    pub(crate) of: u64,
    /// The clock's reading as a token.
    pub(crate) clock: u64,
    pub(crate) last: Cell<u64>,
    pub(crate) names: Cell<u64>,
}

impl View for Eyes<'_> {
    fn electorate(&self) -> Electorate {
        self.plan.electorate
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            guard: self.agent.longest.guard,
            vote: self.plan.bounds().vote,
        }
    }

    fn longest(&self) -> Bounds {
        self.agent.longest
    }

    fn token(&self, above: Option<Token>) -> Option<Token> {
        let least = above.map_or(0, Token::get).max(self.last.get()) + 1;
        self.last.set(least.max(self.clock));
        Token::new(self.last.get())
    }

    fn unix_millis(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        self.names.set(self.names.get() + 1);
        self.names.get() * self.of + self.number
    }

    fn incarnation(&self, node: usize, _: &ElectionId) -> Option<Incarnation> {
        let known = self.agent.known[node].as_ref();
        known.map(|(incarnation, _)| incarnation.clone())
    }

    fn probed_since(&self, node: usize, instant: Instant) -> bool {
        let known = self.agent.known[node].as_ref();
        known.is_some_and(|(_, probed)| *probed >= instant)
    }
}

impl State {
    pub(crate) fn now(&self) -> Instant {
        *BEGINNING + TICK * u32::from(self.ticks)
    }

    /// The operations, with their agent and number.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (usize, u32, &Operation)> {
        let agents = self.agents.iter().enumerate();
        agents.flat_map(|(number, agent)| {
            let operations = agent.operations.iter();
            operations.map(move |(id, operation)| (number, *id, operation))
        })
    }

    /// Returns whether nothing is in transit and no operation is pending.
    pub(crate) fn is_quiet(&self) -> bool {
        self.operations().next().is_none() && self.nodes.iter().all(|node| node.inbox.is_empty())
    }

    /// Returns whether an operation waits for the reply to this request.
    pub(crate) fn is_awaited(&self, node: usize, (agent, operation, tag): Key) -> bool {
        let operation = self.agents[agent].operations.get(&operation);
        operation.is_some_and(|operation| operation.waits.contains_key(&(tag, node)))
    }

    /// Records that the candidate leads until then.
    pub(crate) fn lead(&mut self, candidate: usize, token: Token, until: Instant) {
        let known = self.leads[candidate].map(|lead| lead.until);
        self.leads[candidate] = Some(Lead {
            token,
            until: until.max(known.unwrap_or(until)),
        });
    }

    /// Returns how many candidates act as leader.
    pub(crate) fn leaders(&self) -> usize {
        let now = self.now();
        let leads = self.leads.iter().flatten();
        leads.filter(|lead| lead.until > now).count()
    }
}
