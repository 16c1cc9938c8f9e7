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

    /// Whether some node ever had a marker, and the guard is on.
    pub(super) fn seen(&self) -> bool {
        self.guard != RestartGuard::Off && self.seen.load(Ordering::Relaxed)
    }

    /// How long nodes without a marker have to wait: not at all if they are new, which they can be only
    /// when `all` have none and none was ever seen.
    pub(super) fn wait(&self, all: bool) -> Duration {
        let new = all && !self.seen.load(Ordering::Relaxed);
        if new && self.guard == RestartGuard::On {
            Duration::ZERO
        } else {
            self.longest_term
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_new_only_when_none_has_a_marker_and_none_was_ever_seen() {
        let term = Duration::from_secs(60);
        let on = Markers::new(RestartGuard::On, term);
        assert_eq!((on.wait(true), on.wait(false)), (Duration::ZERO, term));
        on.note();
        assert_eq!((on.wait(true), on.seen()), (term, true));
        let strict = Markers::new(RestartGuard::Strict, term);
        assert_eq!(strict.wait(true), term);
    }
}
