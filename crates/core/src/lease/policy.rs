//! How a quorum decides, as state machines without I/O: events in, steps out.
//!
//! A [`Machine`] is one request to the nodes. Its driver sends what the [`Step`]s request and reports the results as
//! [`Event`]s. The [quorum](super::quorum) drives machines over real nodes, and the simulation does so through the
//! quorum. The model checker drives them in every order.

pub mod claim;
pub mod extension;
pub mod resignation;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Bounds, Extend, ExtendReply, Grant, GrantReply, Incarnation, NodeError, Reading, Repair,
    Resign, ResignReply,
};
use crate::types::{ElectionId, Token};

/// A set of nodes, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Nodes(u32);

impl Nodes {
    /// The maximum number of nodes.
    pub const MOST: usize = 32;
    /// No node.
    pub const NONE: Self = Self(0);

    /// The first `count` nodes.
    #[must_use]
    pub fn first(count: usize) -> Self {
        (0..count).collect()
    }

    /// One node.
    #[must_use]
    pub fn one(node: usize) -> Self {
        Self(1 << node)
    }

    /// Whether the node is in the set.
    #[must_use]
    pub fn has(self, node: usize) -> bool {
        self.0 & (1 << node) != 0
    }

    /// The number of nodes in the set.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The union of two sets.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// The intersection of two sets.
    #[must_use]
    pub fn within(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// The set without the others.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Adds a node.
    pub fn add(&mut self, node: usize) {
        self.0 |= 1 << node;
    }

    /// Removes a node.
    pub fn remove(&mut self, node: usize) {
        self.0 &= !(1 << node);
    }

    /// The numbers of the nodes, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let node = left.trailing_zeros();
            // Clears the lowest set bit.
            left &= left.checked_sub(1)?;
            Some(node as usize)
        })
    }
}

impl FromIterator<usize> for Nodes {
    fn from_iter<T: IntoIterator<Item = usize>>(nodes: T) -> Self {
        nodes.into_iter().fold(Self::NONE, |mut all, node| {
            all.add(node);
            all
        })
    }
}

/// The nodes whose majorities decide: of one list, or, while agents move from one list to another, of both (as in
/// [Raft's joint consensus](https://raft.github.io/raft.pdf)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Electorate {
    now: Nodes,
    next: Option<Nodes>,
}

impl Electorate {
    /// The nodes of one list.
    #[must_use]
    pub fn of(nodes: Nodes) -> Self {
        Self {
            now: nodes,
            next: None,
        }
    }

    /// The nodes of two lists.
    #[must_use]
    pub fn joint(now: Nodes, next: Nodes) -> Self {
        Self {
            now,
            next: Some(next),
        }
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(self) -> Nodes {
        self.now.and(self.next.unwrap_or_default())
    }

    /// The nodes of the old list, from which agents move to another.
    #[must_use]
    pub fn old(self) -> Nodes {
        self.now
    }

    /// Whether there are two lists.
    #[must_use]
    pub fn is_joint(self) -> bool {
        self.next.is_some()
    }

    /// Whether these nodes are a majority of every list: what a grant needs.
    #[must_use]
    pub fn all(self, nodes: Nodes) -> bool {
        let next = self
            .next
            .filter(|_| super::rules::holds(super::rules::Rule::JointMajorities));
        is_majority(nodes, self.now) && next.is_none_or(|next| is_majority(nodes, next))
    }

    /// Whether these nodes are a majority of some list: they may have elected a leader.
    #[must_use]
    pub fn any(self, nodes: Nodes) -> bool {
        is_majority(nodes, self.now) || self.next.is_some_and(|next| is_majority(nodes, next))
    }

    /// The number of nodes of the first list that are a majority.
    #[must_use]
    pub fn needed(self) -> usize {
        super::tally::quorum(self.now.count())
    }

    /// How many of these nodes may fail, whichever they are, before they are no longer a majority of every list;
    /// [`None`] if they are not one now.
    #[must_use]
    pub fn spare(self, nodes: Nodes) -> Option<usize> {
        let spare = |list: Nodes| {
            let more = nodes.within(list).count();
            more.checked_sub(super::tally::quorum(list.count()))
        };
        let next = self.next.map_or(Some(usize::MAX), spare);
        Some(spare(self.now)?.min(next?))
    }
}

fn is_majority(nodes: Nodes, list: Nodes) -> bool {
    nodes.within(list).count() > list.count() / 2
}

/// What a machine knows beyond its own request.
pub trait View {
    /// The nodes.
    fn electorate(&self) -> Electorate;
    /// How long this agent's votes count, and the longest guard that it knows of.
    fn bounds(&self) -> Bounds;
    /// The longest guard and vote lifetime that any agent is known to have.
    fn longest(&self) -> Bounds;
    /// A token above every one that this agent has proposed, and above this one; [`None`] when none is left.
    fn token(&self, above: Option<Token>) -> Option<Token>;
    /// Now, in ms since the Unix epoch.
    fn unix_millis(&self) -> u64;
    /// A random number.
    fn random(&self) -> u64;
    /// The incarnation in which the node was probed last.
    fn incarnation(&self, node: usize, election: &ElectionId) -> Option<Incarnation>;
    /// Whether the node has replied to a probe that began after this instant.
    fn probed_since(&self, node: usize, instant: Instant) -> bool;
}

/// A request to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Call {
    /// Grant a lease.
    Grant(Arc<Grant>),
    /// Roll back a grant.
    RollBack(Arc<Grant>),
    /// Extend a lease.
    Extend(Arc<Extend>),
    /// Repair the lease, on each node in its incarnation.
    Repair(Arc<Repair>),
    /// Resign a lease.
    Resign(Arc<Resign>),
    /// Read a lease.
    Read(Arc<ElectionId>),
}

/// What a node replied to a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Call::Grant`].
    Grant(GrantReply),
    /// To [`Call::RollBack`].
    RolledBack,
    /// To [`Call::Extend`].
    Extend(ExtendReply),
    /// To [`Call::Repair`].
    Repaired(bool),
    /// To [`Call::Resign`].
    Resign(ResignReply),
    /// To [`Call::Read`].
    Read(Reading),
}

impl Reply {
    /// The error that replaces a reply which does not match its call.
    pub(super) fn unexpected(self) -> NodeError {
        NodeError::unknown(format!("unexpected: {self:?}"))
    }
}

/// An event for a machine.
#[derive(Debug, Clone)]
pub enum Event {
    /// The machine begins.
    Begin,
    /// A node has replied, or its time has passed.
    Replied {
        /// The tag that the step gave the call.
        tag: u32,
        /// The node.
        node: usize,
        /// The reply.
        reply: Result<Reply, NodeError>,
    },
    /// The time that [`Step::Wake`] named has come.
    Woken,
    /// The check that [`Step::CheckHealth`] requested is complete; true if any node replied.
    HealthChecked(bool),
    /// The caller is gone, and no longer waits for the answer.
    Abandoned,
}

/// A request of a machine to its driver.
#[derive(Debug, Clone)]
pub enum Step<A> {
    /// Sends a call to nodes at once, and reports each one's reply, or an error when there is none in time.
    Ask {
        /// Identifies the call among those of the machine.
        tag: u32,
        /// The nodes.
        nodes: Nodes,
        /// The call.
        call: Call,
        /// Until when to wait for replies; no longer than the operation timeout.
        until: Instant,
    },
    /// Answers the caller. A machine continues after that, to roll back and to repair.
    Answer(A),
    /// Reports when this time has come; only the last such step counts.
    Wake(Instant),
    /// Probes the nodes because a vote that began at this instant found them unprepared. With true, a grant is wanted,
    /// and nodes without an incarnation record that are not known to be new count as having lost their memory.
    CheckHealth(Instant, bool),
    /// Reports an event to the observer.
    Note(Note),
}

/// An event for the observer of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A vote did not decide, and is repeated.
    Retried(super::quorum::observer::RetryReason),
    /// The grants of this many nodes, certain and possible, are to be rolled back.
    RollingBack(usize),
    /// This many nodes have rolled back a grant.
    RolledBack(usize),
    /// Nodes are in quarantine for this long.
    Guarded(Duration),
    /// This many nodes lack a lease that a quorum has.
    Repairing(usize),
    /// This many nodes were repaired.
    Repaired(usize),
}

/// A request to the nodes.
pub trait Machine {
    /// The result for the caller.
    type Output;

    /// Processes an event, at this instant of the agent's clock, and adds the steps to take.
    fn on(
        &mut self,
        event: Event,
        now: Instant,
        view: &impl View,
        steps: &mut Vec<Step<Self::Output>>,
    );

    /// Whether nothing is left to do, whatever the nodes reply.
    fn is_done(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn electorates_of_two_lists_need_both() {
        let nodes = |numbers: &[usize]| numbers.iter().copied().collect::<Nodes>();
        let one = Electorate::of(Nodes::first(3));
        assert!(one.all(nodes(&[0, 2])) && !one.all(nodes(&[1, 3, 4])));
        let both = Electorate::joint(nodes(&[0, 1, 2]), nodes(&[2, 3, 4]));
        assert_eq!(both.nodes(), Nodes::first(5));
        assert!(both.all(nodes(&[0, 2, 4])));
        for lacking in [&[0, 1][..], &[0, 1, 2], &[2, 3, 4], &[0, 3, 4]] {
            assert!(!both.all(nodes(lacking)), "{lacking:?}");
            assert!(both.any(nodes(lacking)), "{lacking:?}");
        }
        assert!(!both.any(nodes(&[0, 3])));
    }
}
