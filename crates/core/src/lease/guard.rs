//! When nodes without an incarnation record may get one that permits grants.
//!
//! A node that lost its memory could vote twice in one term. It must not grant until every term that it may have
//! forgotten is over. Its operations see the loss in the incarnation record, which names the incarnation of the server
//! that wrote it. They cannot see whether a node *without* a record is new or has lost everything; this module decides
//! that.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use strum::{EnumString, VariantNames};
use tokio::time::Instant;

use super::{
    Bounds, ProbeRequest, REMEMBER, Registered,
    rules::{Rule, holds},
};

/// How nodes that may have lost their memory are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum RestartGuard {
    /// A restarted node is in quarantine for the longest term. A node without an incarnation record counts as new only
    /// when all nodes reply, none has a record, and this agent has never seen one.
    ///
    /// This costs nothing on a first start. After a restart of so many nodes that no quorum of others is left, vacant
    /// elections stay vacant for the longest term.
    On,
    /// As `On`, but a node without an incarnation record is always in quarantine: for deployments in which every node
    /// and every agent may restart together. A first start costs the longest term, too.
    Strict,
    /// Restarted nodes grant at once. This gives up the guarantee: two leaders may have time left after a restart of
    /// nodes that did not keep their data.
    Off,
}

impl RestartGuard {
    /// How long a node is in quarantine when terms last up to `max_term`; `None` when it is not.
    #[must_use]
    pub fn duration(self, max_term: Duration) -> Option<Duration> {
        (self != Self::Off).then_some(max_term)
    }
}

/// What this agent knows of incarnation records, and of the bounds that agents have registered.
#[derive(Debug)]
pub(super) struct IncarnationRecords {
    guard: RestartGuard,
    /// This agent's bounds.
    own: Bounds,
    longest_guard: Longest,
    longest_vote: Longest,
    seen: AtomicBool,
}

impl IncarnationRecords {
    pub(super) fn new(guard: RestartGuard, longest: Duration, vote: Duration) -> Self {
        Self {
            guard,
            own: Bounds {
                guard: guard.duration(longest),
                vote,
            },
            longest_guard: Longest::default(),
            longest_vote: Longest::default(),
            seen: AtomicBool::new(false),
        }
    }

    /// Notes that some node has an incarnation record, so that no node counts as new again.
    pub(super) fn note(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// Notes the longest bounds that a node reports now.
    pub(super) fn note_bounds(&self, guard: Registered, vote: Registered) {
        if holds(Rule::BoundsArePassedOn) {
            self.longest_guard.note(guard);
            self.longest_vote.note(vote);
        }
    }

    /// How to probe nodes.
    pub(super) fn look(&self, write: bool, closed: bool) -> ProbeRequest {
        ProbeRequest {
            own: self.own,
            guard: self.longest_guard.get(),
            vote: self.longest_vote.get(),
            write,
            closed,
        }
    }

    /// The longest known guard, and this agent's vote lifetime. An agent without a guard of its own uses the guard of
    /// the other agents.
    pub(super) fn bounds(&self) -> Bounds {
        let others = self.longest_guard.get().bound;
        Bounds {
            guard: self.own.guard.max(Some(others).filter(|it| !it.is_zero())),
            vote: self.own.vote,
        }
    }

    /// The longest known guard and vote lifetime.
    pub(super) fn longest(&self) -> Bounds {
        Bounds {
            vote: self.own.vote.max(self.longest_vote.get().bound),
            ..self.bounds()
        }
    }

    /// Whether nodes without an incarnation record may be new, as far as this agent has seen.
    pub(super) fn may_be_new(&self) -> bool {
        self.guard == RestartGuard::On && (!self.seen() || !holds(Rule::NewOnlyIfNoneIsRecorded))
    }

    fn seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    /// How long nodes without an incarnation record have to wait before they grant; `None` while that is unknown.
    ///
    /// The nodes are `new`, and need not wait, only if there was an instant at which no node had a record, and this
    /// agent never saw one. They have lost their memory if this agent saw one, and count as having lost it when a grant
    /// is `wanted`.
    pub(super) fn wait(&self, new: bool, wanted: bool) -> Option<Duration> {
        let longest = self.bounds().guard?;
        match self.guard {
            RestartGuard::On if new && self.may_be_new() => Some(Duration::ZERO),
            RestartGuard::On | RestartGuard::Off if self.seen() || wanted => Some(longest),
            RestartGuard::On | RestartGuard::Off => None,
            RestartGuard::Strict => Some(longest),
        }
    }
}

/// The longest bound that any agent has registered, and the time of its last registration.
#[derive(Debug, Default)]
struct Longest(Mutex<Option<(Duration, Instant)>>);

impl Longest {
    fn note(&self, reported: Registered) {
        let now = Instant::now();
        let at = now.checked_sub(reported.age).unwrap_or(now);
        let mut known = self.lock();
        if known.is_none_or(|known| is_over(known) || (reported.bound, at) > known) {
            *known = Some((reported.bound, at));
        }
    }

    fn get(&self) -> Registered {
        let known = self.lock().filter(|known| !is_over(*known));
        known.map_or_else(Registered::default, |(bound, at)| Registered {
            bound,
            age: at.elapsed(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Duration, Instant)>> {
        self.0.lock()
    }
}

/// Whether the last registration of a bound is so old that the bound no longer counts.
fn is_over((bound, at): (Duration, Instant)) -> bool {
    at.elapsed() > bound.max(REMEMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_new_only_when_none_has_a_marker_and_none_was_ever_seen() {
        let term = Duration::from_secs(60);
        let on = IncarnationRecords::new(RestartGuard::On, term, term);
        assert_eq!(on.wait(true, false), Some(Duration::ZERO));
        assert_eq!(
            on.wait(false, false),
            None,
            "a silent node may have a record"
        );
        assert_eq!(on.wait(false, true), Some(term));
        on.note();
        assert_eq!(on.wait(true, false), Some(term));
        let strict = IncarnationRecords::new(RestartGuard::Strict, term, term);
        assert_eq!(strict.wait(true, false), Some(term));
        assert_eq!(
            IncarnationRecords::new(RestartGuard::Off, term, term).wait(true, true),
            None
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_guard_of_any_agent_counts_until_what_it_granted_is_over() {
        let secs = Duration::from_secs;
        let reported = |bound, age| Registered {
            bound: secs(bound),
            age: secs(age),
        };
        let incarnation_records = IncarnationRecords::new(RestartGuard::On, secs(10), secs(1));
        let guard = || incarnation_records.bounds().guard;
        assert_eq!(guard(), Some(secs(10)));
        tokio::time::advance(secs(100)).await;
        incarnation_records.note_bounds(reported(60, 50), reported(5, 0));
        incarnation_records.note_bounds(reported(20, 0), reported(2, 0));
        assert_eq!(
            (guard(), incarnation_records.longest().vote),
            (Some(secs(60)), secs(5))
        );
        assert_eq!(incarnation_records.bounds().vote, secs(1));
        tokio::time::advance(REMEMBER - secs(51)).await;
        assert_eq!(guard(), Some(secs(60)));
        // Passing a registration on does not make it younger.
        assert_eq!(
            incarnation_records.look(true, false).guard.age,
            REMEMBER - secs(1)
        );
        tokio::time::advance(secs(2)).await;
        assert_eq!(guard(), Some(secs(10)));

        let off = IncarnationRecords::new(RestartGuard::Off, secs(10), secs(1));
        assert_eq!(off.bounds().guard, None);
        off.note_bounds(reported(60, 0), reported(1, 0));
        assert_eq!(off.bounds().guard, Some(secs(60)));
    }
}
