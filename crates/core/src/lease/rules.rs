//! The rules on which the safety of elections rests, so that tests can take each of them away and show that its
//! absence is found.
//!
//! A production build has every rule: [`holds`] is a constant there. A build with the feature `weaken`, which only
//! tests use, asks what `weaken` was told last.

/// A rule that a test can take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// What clocks may drift apart is taken off a term.
    Drift,
    /// A token must be above the election's high-water mark.
    HighWaterMark,
    /// The candidate's own lease is guarded, too.
    OwnLeaseGuarded,
    /// A node that lost its memory abstains for the longest guard that it remembers, whatever the caller asks for.
    NodeDecidesGuard,
    /// A longer guard that is registered later makes the wait of a node longer that abstains, or did.
    WaitsAreLengthened,
    /// A clock that was set back makes no wait longer than it was.
    WaitsAreBounded,
    /// A node grants only to agents whose bounds are registered in its incarnation.
    BoundsAreRegistered,
    /// An agent passes on to every node the longest guard that any other has told it.
    BoundsArePassedOn,
    /// A node that an agent has not probed yet does not vote.
    ProbedBeforeVoting,
    /// A node that an agent has not probed yet is not asked to extend or to repair a lease.
    ProbedBeforeExtending,
    /// An agent reads what is registered on all nodes before it writes a record on any.
    ReadBeforeWriting,
    /// Votes count for the vote lifetime only.
    VotesAreBounded,
    /// A grant that arrives late is refused.
    GrantsNotAfter,
    /// A repair is for the incarnation that it was decided for.
    RepairInTheSameIncarnation,
    /// A node that has restarted is repaired only when every vote that it may have forgotten no longer counts.
    RepairWhenSettled,
    /// A node is repaired on the word of nodes alone that were asked for their bounds since it restarted.
    RepairKnowsBounds,
    /// A repair takes effect only while the extension is in force.
    RepairInForce,
    /// Raising writes a larger token to leases that are there, and makes none.
    RaisingMakesNothing,
    /// A repair that counts as an extension is written under no other lease.
    CountedRepairsOnTop,
    /// A repair does not bring back what was given up or followed by a later leader.
    RepairNothingOver,
    /// A repair is made at all.
    Repair,
    /// Nodes are taken for new only when they were found so twice.
    NewNodesAreLookedAtTwice,
    /// New nodes vote only when all of them have been marked.
    AllNewNodesAreRecorded,
    /// Nodes are taken for new only when none has a record, and none was ever seen.
    NewOnlyIfNoneIsRecorded,
    /// What a lost vote was granted is withdrawn.
    Rollbacks,
    /// A withdrawal takes back what its own grant wrote, and nothing else.
    RollbacksName,
    /// A copy of a withdrawn grant is refused.
    RolledBackByName,
    /// A withdrawal restores what its grant replaced.
    RestoresWhatWasBefore,
    /// A withdrawal lowers the high-water mark to what it was.
    HighWaterMarkGoesBack,
    /// No operation makes a lease shorter.
    NeverShorter,
    /// A resignation is for the token that it was meant for.
    ResignationsToken,
    /// A handover is by the leader with this token.
    HandoversToken,
    /// A handover that names a leader needs one.
    HandoversNeedALeader,
    /// A request id that was granted is not granted again when its lease is over.
    RequestIdsOutliveLeases,
    /// A retry gets the token that a majority may hold for its request id.
    RetriesGetTheirToken,
    /// A node that may have forgotten a leader does not say that there is none.
    ForgettingIsNotVacancy,
    /// Another list of nodes, seen on any node, stops the agent.
    OtherListsStopTheAgent,
    /// Agents that pass from one list of nodes to another need majorities of both.
    JointMajorities,
    /// The old list is closed before agents use the new one alone.
    OldListIsClosed,
}

impl Rule {
    /// Every rule, in the order of their declaration.
    pub const ALL: [Self; 39] = [
        Self::Drift,
        Self::HighWaterMark,
        Self::OwnLeaseGuarded,
        Self::NodeDecidesGuard,
        Self::WaitsAreLengthened,
        Self::WaitsAreBounded,
        Self::BoundsAreRegistered,
        Self::BoundsArePassedOn,
        Self::ProbedBeforeVoting,
        Self::ProbedBeforeExtending,
        Self::ReadBeforeWriting,
        Self::VotesAreBounded,
        Self::GrantsNotAfter,
        Self::RepairInTheSameIncarnation,
        Self::RepairWhenSettled,
        Self::RepairKnowsBounds,
        Self::RepairInForce,
        Self::RaisingMakesNothing,
        Self::CountedRepairsOnTop,
        Self::RepairNothingOver,
        Self::Repair,
        Self::NewNodesAreLookedAtTwice,
        Self::AllNewNodesAreRecorded,
        Self::NewOnlyIfNoneIsRecorded,
        Self::Rollbacks,
        Self::RollbacksName,
        Self::RolledBackByName,
        Self::RestoresWhatWasBefore,
        Self::HighWaterMarkGoesBack,
        Self::NeverShorter,
        Self::ResignationsToken,
        Self::HandoversToken,
        Self::HandoversNeedALeader,
        Self::RequestIdsOutliveLeases,
        Self::RetriesGetTheirToken,
        Self::ForgettingIsNotVacancy,
        Self::OtherListsStopTheAgent,
        Self::JointMajorities,
        Self::OldListIsClosed,
    ];
}

/// Whether the rule holds: always, but in a build that tests weaken.
#[cfg(not(feature = "weaken"))]
#[inline(always)]
pub(crate) const fn holds(_rule: Rule) -> bool {
    true
}

#[cfg(feature = "weaken")]
pub use weakened::weaken;

#[cfg(feature = "weaken")]
pub(crate) use weakened::holds;

#[cfg(feature = "weaken")]
mod weakened {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static WITHOUT: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Takes a rule away from what runs on this thread, or gives it back.
    pub fn weaken(rule: Option<Rule>) {
        WITHOUT.set(rule);
    }

    pub(crate) fn holds(rule: Rule) -> bool {
        WITHOUT.get() != Some(rule)
    }
}
