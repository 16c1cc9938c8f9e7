//! What a check chooses: in what world, and how often what may happen.

use std::time::Duration;

use election_core::lease::{
    Bounds,
    policy::{Electorate, Nodes},
};

/// One step of time. Terms are at least as long.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What is the same in all states.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) start: Start,
    /// How many nodes there are.
    pub(crate) nodes: usize,
    /// How the agents are configured.
    pub(crate) agents: Vec<Plan>,
    /// How long the candidates' terms are, in ticks; each has its own.
    pub(crate) terms: [u32; 2],
    /// Tokens rise with the time of asking; else each agent counts them up from 1 for itself.
    pub(crate) clocks: bool,
    /// All campaigns of a candidate carry one request id.
    pub(crate) request_ids: bool,
    /// How many ticks are looked at.
    pub(crate) ticks: u8,
    /// How many votes a campaign may hold.
    pub(crate) votes: u32,
}

/// How an agent is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The longest term that it grants, in ticks.
    pub(crate) longest: u32,
    /// How long its votes count, in ticks.
    pub(crate) vote: u32,
    /// Of which nodes majorities decide.
    pub(crate) electorate: Electorate,
    /// Whether it starts only when it first looks at the nodes.
    pub(crate) late: bool,
}

/// What there is when a check begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The nodes have records, and the election is vacant.
    Vacant,
    /// All nodes have just extended the first candidate's lease.
    Led,
}

impl Plan {
    pub(crate) fn of(nodes: usize) -> Self {
        Self {
            longest: 2,
            vote: 1,
            electorate: Electorate::of(Nodes::first(nodes)),
            late: false,
        }
    }

    pub(crate) fn bounds(self) -> Bounds {
        Bounds {
            guard: Some(TICK * self.longest),
            vote: TICK * self.vote,
        }
    }
}

/// Three nodes, two agents that are alike, and terms of two ticks.
pub(crate) fn world() -> World {
    World {
        start: Start::Vacant,
        nodes: 3,
        agents: vec![Plan::of(3); 2],
        terms: [2, 2],
        clocks: true,
        request_ids: false,
        ticks: 4,
        votes: 2,
    }
}

impl World {
    pub(crate) fn led(self) -> Self {
        Self {
            start: Start::Led,
            ..self
        }
    }

    pub(crate) fn ticks(self, ticks: u8) -> Self {
        Self { ticks, ..self }
    }

    pub(crate) fn votes(self, votes: u32) -> Self {
        Self { votes, ..self }
    }

    pub(crate) fn agents(self, agents: Vec<Plan>) -> Self {
        Self { agents, ..self }
    }
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) campaigns: u8,
    pub(crate) extensions: u8,
    pub(crate) resignations: u8,
    pub(crate) handovers: u8,
    /// A reply is lost, a request is executed twice or after its sender has stopped waiting, or a caller goes away.
    pub(crate) faults: u8,
    /// A node stops and starts again, with its memory wiped or as it was when it was saved.
    pub(crate) restarts: u8,
    pub(crate) saves: u8,
    /// An agent looks at the nodes without need.
    pub(crate) looks: u8,
}

/// So many campaigns, and nothing else.
pub(crate) fn campaigns(campaigns: u8) -> Budget {
    Budget {
        campaigns,
        ..Budget::default()
    }
}

impl Budget {
    pub(crate) fn extensions(self, extensions: u8) -> Self {
        Self { extensions, ..self }
    }

    pub(crate) fn resignations(self, resignations: u8) -> Self {
        Self {
            resignations,
            ..self
        }
    }

    pub(crate) fn handovers(self, handovers: u8) -> Self {
        Self { handovers, ..self }
    }

    pub(crate) fn faults(self, faults: u8) -> Self {
        Self { faults, ..self }
    }

    pub(crate) fn restarts(self, restarts: u8) -> Self {
        Self { restarts, ..self }
    }

    pub(crate) fn looks(self, looks: u8) -> Self {
        Self { looks, ..self }
    }
}
