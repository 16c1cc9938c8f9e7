//! When nodes that have no marker may be marked ready.
//!
//! A node that lost its memory could vote twice in one term, so it must not grant until every term that
//! it may have forgotten is over. Its scripts see that from the marker: it names the run of the server
//! that wrote it. What they cannot see is whether a node *without* a marker is new or has lost
//! everything; that is decided here.

use std::{
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

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
    longest: LongestGuard,
    seen: AtomicBool,
}

impl Markers {
    pub(super) fn new(guard: RestartGuard, own: Duration) -> Self {
        Self {
            guard,
            longest: LongestGuard::new(own),
            seen: AtomicBool::new(false),
        }
    }

    /// Notes that some node has a marker, so that none is ever taken for new again.
    pub(super) fn note(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// Notes the longest guard that nodes know of now.
    pub(super) fn note_guard(&self, guard: Duration) {
        self.longest.note(guard);
    }

    /// Whether nodes without a marker may be new, as far as this agent has seen.
    pub(super) fn may_be_new(&self) -> bool {
        self.guard == RestartGuard::On && !self.seen()
    }

    fn seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    /// How long nodes without a marker have to wait before they grant; `None` while that is not known.
    ///
    /// They are `new`, and need not wait, only if there was an instant at which no node had a marker, and
    /// none was ever seen. They have lost their memory if one was seen, or are taken to have when a grant
    /// is `wanted`.
    pub(super) fn wait(&self, new: bool, wanted: bool) -> Option<Duration> {
        let longest = self.longest.get();
        match self.guard {
            RestartGuard::Off => None,
            RestartGuard::On if new && self.may_be_new() => Some(Duration::ZERO),
            RestartGuard::On if self.seen() || wanted => Some(longest),
            RestartGuard::On => None,
            RestartGuard::Strict => Some(longest),
        }
    }
}

/// The longest guard that any agent asks for. One that is no longer heard of counts for as long as it lasts:
/// until then, what its agent granted may not be over.
#[derive(Debug)]
pub(super) struct LongestGuard {
    /// This agent's.
    own: Duration,
    /// The longest that was heard of, and when it last was.
    heard: Mutex<(Duration, Instant)>,
}

impl LongestGuard {
    pub(super) fn new(own: Duration) -> Self {
        Self {
            own,
            heard: Mutex::new((own, Instant::now())),
        }
    }

    pub(super) fn note(&self, guard: Duration) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if guard >= heard.0 || heard.1.elapsed() > heard.0 {
            *heard = (guard, Instant::now());
        }
    }

    pub(super) fn get(&self) -> Duration {
        let (guard, at) = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match at.elapsed() > guard {
            true => self.own,
            false => guard.max(self.own),
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
        assert_eq!(on.wait(true, false), Some(Duration::ZERO));
        assert_eq!(
            on.wait(false, false),
            None,
            "one that is silent may have a marker"
        );
        assert_eq!(on.wait(false, true), Some(term));
        on.note();
        assert_eq!(on.wait(true, false), Some(term));
        let strict = Markers::new(RestartGuard::Strict, term);
        assert_eq!(strict.wait(true, false), Some(term));
        assert_eq!(Markers::new(RestartGuard::Off, term).wait(true, true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_guard_of_any_agent_counts_until_what_it_granted_is_over() {
        let secs = Duration::from_secs;
        let longest = LongestGuard::new(secs(10));
        assert_eq!(longest.get(), secs(10));
        longest.note(secs(60));
        longest.note(secs(20));
        assert_eq!(longest.get(), secs(60));
        tokio::time::advance(secs(61)).await;
        assert_eq!(longest.get(), secs(10));
        longest.note(secs(20));
        assert_eq!(longest.get(), secs(20));
    }
}
