//! The rules on which the safety of elections rests. Tests remove each rule and show that they find its absence.
//!
//! A production build has every rule: [`holds`] is a constant there. In a build with the feature `weaken`, which only
//! tests use, [`holds`] depends on the last call of `weaken`.

/// A rule that a test can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::VariantArray)]
pub enum Rule {
    /// The possible drift of clocks is subtracted from a term.
    Drift,
    /// The possible drift of clocks over the wait of a campaign is subtracted, too.
    DriftOfTheWait,
    /// A term begins when the agent sends the grants of the vote that decides, not when it counts them.
    TermBeginsWithTheVote,
    /// A candidate counts its time from before it sent the request, not from the reply.
    CountsFromTheRequest,
    /// A token must be above the election's high-water mark.
    HighWaterMark,
    /// The restart guard also applies to a candidate's own lease.
    OwnLeaseGuarded,
    /// A node that lost its memory is in quarantine for the longest guard that it remembers, whatever the caller
    /// requests.
    NodeDecidesGuard,
    /// A longer guard that an agent registers later lengthens the wait of a node that is or was in quarantine.
    WaitsAreLengthened,
    /// A clock that was set back makes no wait longer than it was.
    WaitsAreBounded,
    /// A node grants only to agents whose bounds are registered in its incarnation.
    BoundsAreRegistered,
    /// An agent passes on to every node the longest guard that any other node reported to it.
    BoundsArePassedOn,
    /// A node that an agent has not probed yet does not vote.
    ProbedBeforeVoting,
    /// An agent sends no extension and no repair to a node that it has not probed yet.
    ProbedBeforeExtending,
    /// An agent reads what is registered on all nodes before it writes a record on any.
    ReadBeforeWriting,
    /// Votes count for the vote lifetime only.
    VotesAreBounded,
    /// A node refuses a grant that arrives late.
    GrantsNotAfter,
    /// A repair applies only to the incarnation for which it was decided.
    RepairInTheSameIncarnation,
    /// A restarted node is repaired only when every vote that it may have forgotten no longer counts.
    RepairWhenSettled,
    /// A repair relies only on nodes that reported their bounds since the repaired node restarted.
    RepairKnowsBounds,
    /// A repair takes effect only while the extension is in force.
    RepairInForce,
    /// A repair that writes a larger token updates existing leases, and creates none.
    RaisingMakesNothing,
    /// A repair that counts as an extension is written under no other lease.
    CountedRepairsOnTop,
    /// A repair does not restore a leadership that was given up or followed by a later leader.
    RepairNothingOver,
    /// An agent repairs nodes.
    Repair,
    /// Nodes count as new only when two probes in a row found them so.
    NewNodesAreLookedAtTwice,
    /// New nodes vote only when all of them have incarnation records.
    AllNewNodesAreRecorded,
    /// Nodes count as new only when none has an incarnation record, and this agent never saw one.
    NewOnlyIfNoneIsRecorded,
    /// The grants of a lost vote are rolled back.
    Rollbacks,
    /// A rollback undoes what its own grant wrote, and nothing else.
    RollbacksName,
    /// A node refuses a copy of a grant that it rolled back.
    RolledBackByName,
    /// A rollback restores what its grant replaced.
    RestoresWhatWasBefore,
    /// A rollback restores the previous high-water mark.
    HighWaterMarkGoesBack,
    /// No operation makes a lease shorter.
    NeverShorter,
    /// A resignation applies only to the token that it names.
    ResignationsToken,
    /// A handover requires that the leader has the named token.
    HandoversToken,
    /// A handover that names a leader requires an election with a leader.
    HandoversNeedALeader,
    /// A request id that was granted is not granted again after its lease has ended.
    RequestIdsOutliveLeases,
    /// A retry gets the token that a majority may hold for its request id.
    RetriesGetTheirToken,
    /// A node that may have forgotten a leader does not report a vacancy.
    ForgettingIsNotVacancy,
    /// An agent that finds another, incompatible list of nodes on any node stops using all nodes.
    OtherListsStopTheAgent,
    /// Agents that move from one list of nodes to another need majorities of both.
    JointMajorities,
    /// The old list is closed before agents use the new one alone.
    OldListIsClosed,
}

/// Whether the rule holds: always, except in a build that tests weaken.
#[cfg(not(feature = "weaken"))]
#[inline(always)]
pub(crate) const fn holds(_rule: Rule) -> bool {
    true
}

#[cfg(feature = "weaken")]
pub use weakened::{holds, weaken};

#[cfg(feature = "weaken")]
mod weakened {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static WITHOUT: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Removes a rule for this thread, or restores all rules.
    pub fn weaken(rule: Option<Rule>) {
        WITHOUT.set(rule);
    }

    /// Whether the rule holds: unless this thread has removed it.
    #[must_use]
    pub fn holds(rule: Rule) -> bool {
        WITHOUT.get() != Some(rule)
    }
}
