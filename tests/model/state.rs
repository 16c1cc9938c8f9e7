//! The state of the whole: the nodes with what is on its way to them, and the agents.

use std::mem;

use crate::{
    node::{AgentId, Ask, Attempt, Candidate, Heal, Lease, Mark, Memory, Reply, Token},
    setting::{Budget, Rules, Withdrawal, World},
};

pub(crate) const NODES: usize = 3;
pub(crate) const QUORUM: usize = NODES / 2 + 1;
pub(crate) const AGENTS: usize = 2;
pub(crate) const CANDIDATES: usize = 2;
/// A candidate that campaigns only when [`Election::can_be_won`] is asked.
pub(crate) const LATECOMER: Candidate = CANDIDATES;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) nodes: [Node; NODES],
    pub(crate) agents: [Agent; AGENTS],
    pub(crate) leads: [Leadership; CANDIDATES + 1],
    /// How many candidates have campaigned.
    pub(crate) named: usize,
    /// The least token of this tick: above all that were proposed in earlier ticks.
    pub(crate) clock: Token,
    pub(crate) newest: Token,
    /// Every grant that was answered.
    pub(crate) won: Vec<(Candidate, Token)>,
    /// A grant was answered with a token not above those answered before it was asked for.
    pub(crate) fell: bool,
    pub(crate) left: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) memory: Memory,
    pub(crate) snapshot: Memory,
    /// What has been sent to it and may yet be executed, in order: a set.
    pub(crate) inbox: Vec<Request>,
    /// What each agent has heard from it in its present operation.
    pub(crate) heard: [Option<Reply>; AGENTS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Request {
    Grant(Ask),
    Extend(Ask),
    Heal(Heal),
    Withdraw(Candidate, Attempt),
    Mark(Mark),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Agent {
    /// The largest token proposed or seen.
    pub(crate) last: Token,
    pub(crate) seen_marker: bool,
    pub(crate) operation: Option<Operation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) candidate: Candidate,
    pub(crate) token: Token,
    /// Ticks since it was sent.
    pub(crate) age: u8,
    /// The largest token that had been answered when it began.
    pub(crate) above: Token,
    pub(crate) repeat: bool,
    pub(crate) retried: bool,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Campaign,
    Extension,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Not decided.
    Open,
    /// A vote that found nodes without a marker, which are `new` or have forgotten, marks them before it
    /// is repeated.
    Marking { new: bool },
    /// An extension that too few nodes have the token for waits for those that are raised to it.
    Raising,
    /// A quorum did it, with this token; what the other nodes reply tells what is to be tidied up.
    Done(Token),
    /// No quorum did; so do the replies to a campaign.
    Failed,
}

/// What a candidate believes: it leads while time is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Leadership {
    pub(crate) token: Token,
    pub(crate) left: u8,
}

impl Request {
    pub(crate) fn ask(&mut self) -> Option<&mut Ask> {
        match self {
            Self::Grant(ask) | Self::Extend(ask) => Some(ask),
            _ => None,
        }
    }

    /// Who waits for the reply.
    pub(crate) fn awaited_by(self) -> Option<AgentId> {
        match self {
            Self::Grant(ask) | Self::Extend(ask) => ask.awaited.then_some(ask.from),
            Self::Heal(heal) => heal.awaited_by,
            Self::Mark(mark) => mark.awaited_by,
            Self::Withdraw(..) => None,
        }
    }

    /// Whether its sender has stopped waiting.
    pub(crate) fn is_late(mut self) -> bool {
        self.ask().is_some_and(|ask| !ask.awaited)
    }
}

impl Node {
    pub(crate) fn new(memory: Memory, snapshot: Memory) -> Self {
        Self {
            memory,
            snapshot,
            inbox: Vec::new(),
            heard: [None; AGENTS],
        }
    }

    pub(crate) fn send(&mut self, request: Request) {
        if let Err(at) = self.inbox.binary_search(&request) {
            self.inbox.insert(at, request);
        }
    }

    pub(crate) fn withdraw(&mut self, rules: Rules, operation: Operation, agent: AgentId) {
        if rules.withdrawal != Withdrawal::None {
            let attempt = Attempt {
                agent,
                token: operation.token,
            };
            self.send(Request::Withdraw(operation.candidate, attempt));
        }
    }

    pub(crate) fn owes(&self, agent: AgentId) -> bool {
        self.inbox
            .iter()
            .any(|request| request.awaited_by() == Some(agent))
    }

    pub(crate) fn restart(&mut self, rules: Rules, world: World, memory: Memory, probed: bool) {
        self.memory = memory;
        self.memory.restart(world, probed);
        if rules.bound_to_run {
            self.inbox
                .retain(|request| !matches!(request, Request::Heal(_) | Request::Mark(_)));
        }
    }
}

impl Operation {
    pub(crate) fn is_open(self) -> bool {
        !matches!(self.stage, Stage::Done(_) | Stage::Failed)
    }
}

impl State {
    pub(crate) fn heard(&self, agent: AgentId) -> impl Iterator<Item = Reply> {
        self.nodes.iter().filter_map(move |node| node.heard[agent])
    }

    /// How many nodes may yet answer.
    pub(crate) fn outstanding(&self, agent: AgentId) -> usize {
        self.nodes.iter().filter(|node| node.owes(agent)).count()
    }

    pub(crate) fn operations(&self) -> impl Iterator<Item = Operation> {
        self.agents.iter().filter_map(|agent| agent.operation)
    }

    pub(crate) fn set_stage(&mut self, agent: AgentId, stage: Stage) {
        if let Some(operation) = &mut self.agents[agent].operation {
            operation.stage = stage;
        }
    }

    /// The lease of the operation's candidate as a node has it now that has just renewed it.
    pub(crate) fn renewed_lease(&self, agent: AgentId, operation: Operation) -> Option<Lease> {
        let renewed = self
            .nodes
            .iter()
            .filter(|node| node.heard[agent] == Some(Reply::Renewed));
        let leases = renewed.filter_map(|node| node.memory.lease);
        leases
            .filter(|lease| lease.leader == operation.candidate)
            .max_by_key(|lease| lease.token)
    }

    pub(crate) fn stop_waiting(&mut self, agent: AgentId) {
        for node in &mut self.nodes {
            node.heard[agent] = None;
            for mut request in mem::take(&mut node.inbox) {
                if let Some(ask) = request.ask().filter(|ask| ask.from == agent) {
                    ask.awaited = false;
                }
                if let Request::Heal(Heal { awaited_by, .. })
                | Request::Mark(Mark { awaited_by, .. }) = &mut request
                {
                    *awaited_by = awaited_by.filter(|by| *by != agent);
                }
                node.send(request);
            }
        }
    }

    pub(crate) fn lead(&mut self, term: u8, operation: Operation, token: Token) {
        let leads = &mut self.leads[operation.candidate];
        leads.left = leads.left.max(term.saturating_sub(operation.age));
        leads.token = leads.token.max(token);
    }
}
