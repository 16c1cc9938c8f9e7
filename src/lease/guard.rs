//! When nodes that have no marker may be marked ready.
//!
//! A node that lost its memory could vote twice in one term, so it must not grant until every term that
//! it may have forgotten is over. Its scripts see that from the marker: it names the run of the server
//! that wrote it. What they cannot see is whether a node *without* a marker is new or has lost
//! everything; that is decided here.

use std::{
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::tally::Failure;

/// How nodes that may have lost their memory are treated (`EA_RESTART_GUARD`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartGuard {
    /// A node that has restarted abstains from grants for the longest term. A node without a marker is
    /// taken for new only when all nodes answer, none has one, and this agent has never seen one.
    ///
    /// Costs nothing on a first start; after a restart of so many nodes that no quorum of others is
    /// left, vacant elections stay vacant for the longest term.
    On,
    /// As `On`, but a node without a marker always abstains: for deployments in which every node and
    /// every agent may restart together. Costs the longest term on a first start, too.
    Strict,
    /// Restarted nodes grant at once. Costs the promise: two leaders may have time left after a
    /// restart of nodes that did not keep their data.
    Off,
}

impl RestartGuard {
    /// How long a node abstains when terms last up to `max_term`; `None` when it does not.
    #[must_use]
    pub fn duration(self, max_term: Duration) -> Option<Duration> {
        (self != Self::Off).then_some(max_term)
    }
}

impl FromStr for RestartGuard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "strict" => Ok(Self::Strict),
            "off" => Ok(Self::Off),
            _ => Err("give on, strict or off".to_owned()),
        }
    }
}

/// What this agent knows of markers.
#[derive(Debug)]
pub(super) struct Markers {
    guard: RestartGuard,
    longest_term: Duration,
    seen: AtomicBool,
}

impl Markers {
    pub(super) fn new(guard: RestartGuard, longest_term: Duration) -> Self {
        Self {
            guard,
            longest_term,
            seen: AtomicBool::new(false),
        }
    }

    /// Notes that some node has a marker, so that none is ever taken for new again.
    pub(super) fn note(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// How long the nodes without a marker have to wait, when a grant failed for want of markers.
    pub(super) fn wait(&self, failure: &Failure) -> Option<Duration> {
        match failure {
            Failure::AllUnmarked
                if self.guard == RestartGuard::On && !self.seen.load(Ordering::Relaxed) =>
            {
                Some(Duration::ZERO)
            }
            Failure::AllUnmarked | Failure::Unmarked => Some(self.longest_term),
            _ => None,
        }
    }
}
