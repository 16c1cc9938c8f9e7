//! What a check chooses: which rules hold, in what world, and how often what may happen.

/// The rules of the algorithm that a check can take away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) guard: Guard,
    /// A token that is not above the floor is refused.
    pub(crate) floor: bool,
    pub(crate) withdrawal: Withdrawal,
    /// An agent marks the nodes that have no marker.
    pub(crate) marking: bool,
    /// Nodes are new only if all of them lack a marker at one instant: an agent asks them again, and finds
    /// the same runs without a marker. Else it is enough that each lacked one when it was asked.
    pub(crate) new_at_one_instant: bool,
    /// Nodes that are taken for new are asked for votes only when all of them have been marked.
    pub(crate) all_are_marked: bool,
    /// A node is healed only when every vote that it may have forgotten has been counted: when a probe
    /// finds the marker of its run older than a vote lasts.
    pub(crate) heals_wait: bool,
    /// A heal or a mark is for the run of the node that it was decided for, and no other run does it.
    pub(crate) bound_to_run: bool,
    /// An agent heals a lease only while the extension that asked for it must be in force.
    pub(crate) heals_in_time: bool,
    /// An extension that not enough nodes have the token for raises leases, but makes none.
    pub(crate) raises_only: bool,
}

/// `EA_RESTART_GUARD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    On,
    Strict,
    Off,
}

/// Which lease a vote that was not won takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Withdrawal {
    None,
    /// Any with its candidate and token.
    OfToken,
    /// Only one that this very vote wrote or renewed last: whoever has repeated, replaced or extended it
    /// since may count on it.
    OfAttempt,
}

/// All rules hold.
pub(crate) const RULES: Rules = Rules {
    guard: Guard::On,
    floor: true,
    withdrawal: Withdrawal::OfAttempt,
    marking: true,
    new_at_one_instant: true,
    all_are_marked: true,
    heals_wait: true,
    bound_to_run: true,
    heals_in_time: true,
    raises_only: true,
};

/// How the environment behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) start: Start,
    /// How long a lease is held and a node abstains, in ticks.
    pub(crate) term: u8,
    /// How long a vote lasts, in ticks: when it is over, no reply is counted any more.
    pub(crate) vote: u8,
    /// Tokens are at least the time; else each agent counts them up from 1 for itself.
    pub(crate) clocks: bool,
    /// All campaigns of a candidate carry one request id.
    pub(crate) request_ids: bool,
    /// Extensions carry the token that the candidate was elected with; else none, and a candidate that
    /// does not know what came of its campaign may extend, too.
    pub(crate) tokens_given: bool,
}

/// What there is when a check begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The nodes are new, and no agent has seen a marker.
    New,
    /// The nodes have markers, and the election is vacant.
    Vacant,
    /// All nodes have just extended the first candidate's lease.
    Led,
}

pub(crate) const WORLD: World = World {
    start: Start::Vacant,
    term: 2,
    vote: 2,
    clocks: true,
    request_ids: false,
    tokens_given: true,
};

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) campaigns: u8,
    pub(crate) extensions: u8,
    /// A reply is lost, a request is executed twice or after its sender has stopped waiting, or an
    /// operation ends before it is decided: its caller has gone, or its time is over.
    pub(crate) faults: u8,
    /// A node stops and starts again, with its memory wiped or as it was at its snapshot.
    pub(crate) restarts: u8,
    pub(crate) snapshots: u8,
    /// All nodes and all agents forget everything.
    pub(crate) outages: u8,
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

    pub(crate) fn faults(self, faults: u8) -> Self {
        Self { faults, ..self }
    }

    pub(crate) fn restarts(self, restarts: u8) -> Self {
        Self { restarts, ..self }
    }

    pub(crate) fn snapshots(self, snapshots: u8) -> Self {
        Self { snapshots, ..self }
    }

    pub(crate) fn outages(self, outages: u8) -> Self {
        Self { outages, ..self }
    }
}
