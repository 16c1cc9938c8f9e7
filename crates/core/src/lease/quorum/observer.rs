//! What may be told to whoever measures a quorum.

use std::{fmt, time::Duration};

use crate::lease::NodeError;

/// What a node is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// To grant.
    Grant,
    /// To extend.
    Extend,
    /// To take a lease that a quorum has.
    Repair,
    /// To resign.
    Resign,
    /// To take a grant back.
    RollBack,
    /// To tell a lease.
    Read,
    /// To list leases.
    List,
    /// To write markers.
    Mark,
    /// To tell how it does.
    Probe,
}

impl Operation {
    /// Every operation, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Grant,
        Self::Extend,
        Self::Repair,
        Self::Resign,
        Self::RollBack,
        Self::Read,
        Self::List,
        Self::Mark,
        Self::Probe,
    ];

    /// What telemetry calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Extend => "extend",
            Self::Repair => "heal",
            Self::Resign => "resign",
            Self::RollBack => "withdraw",
            Self::Read => "read",
            Self::List => "list",
            Self::Mark => "mark",
            Self::Probe => "probe",
        }
    }
}

/// What came of a call to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Called {
    /// The node answered.
    Ok,
    /// It did not answer in the time that a node has ([`operation_timeout`](super::Options::operation_timeout)).
    Timeout,
    /// The caller's deadline came before that time was over: the node may be well.
    GivenUp,
    /// Its memory is full, and it did nothing.
    Full,
    /// It is not known what the node did.
    Failed,
    /// The call did not reach the node.
    NotSent,
}

impl Called {
    /// What a reply comes to.
    pub(super) fn of<T>(reply: &Result<T, NodeError>) -> Self {
        match reply {
            Ok(_) => Self::Ok,
            Err(NodeError::Full(_)) => Self::Full,
            Err(NodeError::Unknown(_)) => Self::Failed,
            Err(NodeError::NotSent(_)) => Self::NotSent,
        }
    }
}

/// Why a vote did not decide, and has to be held again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// A node has accepted a larger token than the one proposed.
    StaleToken,
    /// No candidate got a quorum.
    SplitVote,
    /// Nodes have no marker yet.
    Unrecorded,
}

/// Is told what a quorum does. It is called in the middle of requests: it must not wait, and should take no
/// longer than counting does.
///
/// Calls that nobody waits for any more are not told: a read is decided by the first nodes that agree.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// A node, by its number in the list that the quorum was made of, was called, and this came of it in this
    /// time.
    fn called(&self, node: usize, operation: Operation, outcome: Called, took: Duration);

    /// A vote did not decide.
    fn retried(&self, why: Retry);

    /// A grant was taken back at so many nodes.
    fn rolled_back(&self, nodes: usize);

    /// A lease was written to so many nodes that lacked it or had an older token.
    fn repaired(&self, nodes: usize);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Observer for Nobody {
    fn called(&self, _: usize, _: Operation, _: Called, _: Duration) {}
    fn retried(&self, _: Retry) {}
    fn rolled_back(&self, _: usize) {}
    fn repaired(&self, _: usize) {}
}
