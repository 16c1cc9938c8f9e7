//! The parameters of a check: the world, and how often each kind of event may occur.

use std::time::Duration;

use election_core::lease::{
    Bounds,
    policy::{Electorate, Nodes},
};

/// One step of time. Terms are at least this long.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// The constants of all states of a check.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) start: Start,
    /// The number of nodes.
    pub(crate) nodes: usize,
    /// How the agents are configured.
    pub(crate) agents: Vec<Plan>,
    /// The candidates' terms, in ticks.
    pub(crate) terms: [u32; 2],
    /// Whether tokens rise with the time of the request. Otherwise each agent counts its own up from 1.
    pub(crate) clocks: bool,
    /// Whether all campaigns of a candidate carry the same request id.
    pub(crate) request_ids: bool,
    /// The number of ticks that are explored.
    pub(crate) ticks: u8,
    /// The maximum number of votes in a campaign.
    pub(crate) votes: u32,
}

/// The configuration of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The longest term that it grants, in ticks.
    pub(crate) longest: u32,
    /// Its vote lifetime, in ticks.
    pub(crate) vote: u32,
    /// The nodes whose majorities decide.
    pub(crate) electorate: Electorate,
    /// Whether it starts only with its first probe of the nodes.
    pub(crate) late: bool,
}

/// The initial state of a check.
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

/// Three nodes, two agents with the same configuration, and terms of two ticks.
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

/// How often each kind of event may occur.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) campaigns: u8,
    /// A candidate that sent its request at the beginning claims the election.
    pub(crate) waits: u8,
    pub(crate) extensions: u8,
    pub(crate) resignations: u8,
    pub(crate) handovers: u8,
    /// A reply is lost, a request is executed twice or after its sender has stopped waiting, or a caller
    /// stops waiting.
    pub(crate) faults: u8,
    /// A node restarts, with its memory wiped or as it was when it was saved.
    pub(crate) restarts: u8,
    pub(crate) saves: u8,
    /// An agent probes the nodes without need.
    pub(crate) looks: u8,
}

/// A number of campaigns, and nothing else.
pub(crate) fn campaigns(campaigns: u8) -> Budget {
    Budget {
        campaigns,
        ..Budget::default()
    }
}

impl Budget {
    pub(crate) fn waits(self, waits: u8) -> Self {
        Self { waits, ..self }
    }

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
