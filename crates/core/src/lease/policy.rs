//! How a quorum decides, as state machines without I/O: events in, steps out.
//!
//! A [`Machine`] is one request to the nodes. Whoever drives it sends what its [`Step`]s ask for, and reports what
//! comes of that as [`Event`]s: the [quorum](super::quorum) does so over real nodes, and the simulation through it;
//! the model checker does so in every order.

pub mod claim;
pub mod extension;
pub mod resignation;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Bounds, Extend, ExtendReply, Grant, GrantReply, Incarnation, NodeError, Reading, Repair,
    Resign, ResignReply,
};
use crate::election::types::{ElectionId, Token};

/// Some of the nodes, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Nodes(u32);

impl Nodes {
    /// The most nodes that there may be.
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

    /// Whether the node is among them.
    #[must_use]
    pub fn has(self, node: usize) -> bool {
        self.0 & (1 << node) != 0
    }

    /// How many they are.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and others.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Those of these that are among the others.
    #[must_use]
    pub fn within(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// These without others.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Adds a node.
    pub fn add(&mut self, node: usize) {
        self.0 |= 1 << node;
    }

    /// Takes a node out.
    pub fn remove(&mut self, node: usize) {
        self.0 &= !(1 << node);
    }

    /// Their numbers, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let node = left.trailing_zeros();
            // Clears the lowest bit that is set.
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

/// The nodes of which majorities decide: of one list, or, while agents pass from one list to another, of both (as in
/// [Raft's joint consensus](https://raft.github.io/raft.pdf)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Electorate {
    now: Nodes,
    next: Option<Nodes>,
}

impl Electorate {
    /// Nodes of one list.
    #[must_use]
    pub fn of(nodes: Nodes) -> Self {
        Self {
            now: nodes,
            next: None,
        }
    }

    /// Nodes of two lists.
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

    /// The nodes of the list from which agents pass to another.
    #[must_use]
    pub fn old(self) -> Nodes {
        self.now
    }

    /// Whether there are two lists.
    #[must_use]
    pub fn is_joint(self) -> bool {
        self.next.is_some()
    }

    /// Whether these are a majority of every list: what a grant needs.
    #[must_use]
    pub fn all(self, nodes: Nodes) -> bool {
        let next = self
            .next
            .filter(|_| super::rules::holds(super::rules::Rule::JointMajorities));
        is_majority(nodes, self.now) && next.is_none_or(|next| is_majority(nodes, next))
    }

    /// Whether these are a majority of some list: with them a leader may have been elected.
    #[must_use]
    pub fn any(self, nodes: Nodes) -> bool {
        is_majority(nodes, self.now) || self.next.is_some_and(|next| is_majority(nodes, next))
    }

    /// How many nodes of the first list are a majority.
    #[must_use]
    pub fn needed(self) -> usize {
        super::tally::quorum(self.now.count())
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
    /// A token above every one that this agent has proposed, and above this one; [`None`] when there is none left.
    fn token(&self, above: Option<Token>) -> Option<Token>;
    /// Now, in ms since the Unix epoch.
    fn unix_millis(&self) -> u64;
    /// A random number.
    fn random(&self) -> u64;
    /// The incarnation in which the node was probed last.
    fn incarnation(&self, node: usize, election: &ElectionId) -> Option<Incarnation>;
    /// Whether the node has answered a probe that began after this instant.
    fn probed_since(&self, node: usize, instant: Instant) -> bool;
}

/// A request to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Call {
    /// To grant.
    Grant(Arc<Grant>),
    /// To withdraw a grant.
    RollBack(Arc<Grant>),
    /// To extend.
    Extend(Arc<Extend>),
    /// To repair, each node in its incarnation.
    Repair(Arc<Repair>),
    /// To resign.
    Resign(Arc<Resign>),
    /// To read.
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
    /// The error that stands for a reply to another call than was made.
    fn unexpected(self) -> NodeError {
        NodeError::unknown(format!("unexpected: {self:?}"))
    }
}

/// What happens to a machine.
#[derive(Debug, Clone)]
pub enum Event {
    /// It begins.
    Begin,
    /// A node has replied, or its time is over.
    Replied {
        /// The number that the step gave the call.
        tag: u32,
        /// The node.
        node: usize,
        /// The reply.
        reply: Result<Reply, NodeError>,
    },
    /// The time has come that [`Step::Wake`] named.
    Woken,
    /// What [`Step::CheckHealth`] asked for is done; whether any node answered.
    HealthChecked(bool),
    /// Nobody waits for the answer any more.
    Abandoned,
}

/// What a machine wants done.
#[derive(Debug, Clone)]
pub enum Step<A> {
    /// Send a call to nodes at once, and report each one's reply, or an error when there is none in time.
    Ask {
        /// Identifies the call among those of the machine.
        tag: u32,
        /// The nodes.
        nodes: Nodes,
        /// The call.
        call: Call,
        /// Until when replies are waited for; no longer than the operation timeout.
        until: Instant,
    },
    /// Answer the caller. A machine goes on after that, to tidy up.
    Answer(A),
    /// Report when this time has come; only the last such step counts.
    Wake(Instant),
    /// Probe the nodes because a vote that began at this instant found them unprepared; with true, nodes without a
    /// marker are taken for what they must be at the worst, as a grant is wanted.
    CheckHealth(Instant, bool),
    /// Something to be observed.
    Note(Note),
}

/// What is of interest to whoever observes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A vote did not decide, and is held again.
    Retried(super::quorum::observer::Retry),
    /// What so many nodes have granted, or may have, is to be withdrawn.
    RollingBack(usize),
    /// So many nodes have withdrawn a grant.
    RolledBack(usize),
    /// Nodes abstain for this long.
    Guarded(Duration),
    /// So many nodes lack a lease that a quorum has.
    Repairing(usize),
    /// So many have been given it.
    Repaired(usize),
}

/// A request to the nodes.
pub trait Machine {
    /// What the caller gets.
    type Answer;

    /// Takes an event, at this instant of the agent's clock, and adds what is to be done.
    fn on(
        &mut self,
        event: Event,
        now: Instant,
        view: &impl View,
        steps: &mut Vec<Step<Self::Answer>>,
    );

    /// Whether nothing more is to be done whatever the nodes reply.
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
