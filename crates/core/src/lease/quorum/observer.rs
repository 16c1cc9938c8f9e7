//! The events of a quorum for an observer that measures it.

use std::{fmt, time::Duration};

use strum::{IntoStaticStr, VariantArray, VariantNames};

use crate::lease::NodeError;

/// An operation of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Operation {
    /// Grant a lease.
    Grant,
    /// Extend a lease.
    Extend,
    /// Write a lease that a quorum has.
    #[strum(serialize = "heal")]
    Repair,
    /// Resign a lease.
    Resign,
    /// Roll back a grant.
    #[strum(serialize = "withdraw")]
    RollBack,
    /// Read a lease.
    Read,
    /// List leases.
    List,
    /// List kinds.
    Kinds,
    /// Write incarnation records.
    Mark,
    /// Report the node's state.
    Probe,
}

impl Operation {
    /// The name of the operation in telemetry.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The outcome of a call to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Called {
    /// The node replied.
    Ok,
    /// The node did not reply within a node's time ([`operation_timeout`](super::Options::operation_timeout)).
    Timeout,
    /// The caller's deadline came before the end of that time: the node may be healthy.
    GivenUp,
    /// The node's memory is full, and it did nothing.
    Full,
    /// The effect on the node is unknown.
    Failed,
    /// The call did not reach the node.
    NotSent,
}

impl Called {
    /// The outcome that a reply stands for.
    pub(super) fn of<T>(reply: &Result<T, NodeError>) -> Self {
        match reply {
            Ok(_) => Self::Ok,
            Err(NodeError::Full(_)) => Self::Full,
            Err(NodeError::Unknown(_)) => Self::Failed,
            Err(NodeError::NotSent(_)) => Self::NotSent,
        }
    }
}

/// Why a vote did not decide, and has to be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryReason {
    /// A node has accepted a larger token than the one proposed.
    StaleToken,
    /// No candidate got a quorum.
    SplitVote,
    /// Nodes have no incarnation record yet.
    Unrecorded,
}

/// Receives the events of a quorum. The quorum calls it in the middle of requests: it must not wait, and should take no
/// longer than counting does.
///
/// Calls whose replies are no longer awaited are not reported: the first nodes that agree decide a read.
pub trait QuorumObserver: fmt::Debug + Send + Sync + 'static {
    /// A call to a node had this outcome after this time. `node` is its number in the list from which the quorum was
    /// made.
    fn called(&self, node: usize, operation: Operation, outcome: Called, took: Duration);

    /// A vote did not decide.
    fn retried(&self, why: RetryReason);

    /// A grant was rolled back on this many nodes.
    fn rolled_back(&self, nodes: usize);

    /// A lease was written to this many nodes that lacked it or had an older token.
    fn repaired(&self, nodes: usize);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoopObserver;

impl QuorumObserver for NoopObserver {
    fn called(&self, _: usize, _: Operation, _: Called, _: Duration) {}
    fn retried(&self, _: RetryReason) {}
    fn rolled_back(&self, _: usize) {}
    fn repaired(&self, _: usize) {}
}
