//! A waiter's place in the queue of an election.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::types::Candidate;

/// With at least this many agents, claims for one vacancy are spread over time.
const MANY_AGENTS: usize = 10;
/// The time over which claims are spread: for each agent, and at most for all of them.
const SPREAD: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(500));

/// A place in a queue.
#[derive(Debug)]
pub(super) struct Place {
    candidate: Candidate,
    since: Instant,
    /// 0 before the turn; during it, one more than the number of agents that compete.
    called: AtomicUsize,
    turn: Notify,
}

impl Place {
    /// Creates a place for this candidate.
    pub(super) fn new(candidate: Candidate, since: Instant) -> Self {
        Self {
            candidate,
            since,
            called: AtomicUsize::new(0),
            turn: Notify::new(),
        }
    }

    /// The candidate that waits.
    pub(super) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Since when the candidate waits.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Gives the turn to this place.
    pub(super) fn call(&self, agents: usize) {
        self.called.store(agents + 1, Ordering::Release);
        self.turn.notify_one();
    }

    /// Whether this place has the turn.
    pub(super) fn is_called(&self) -> bool {
        self.called.load(Ordering::Acquire) > 0
    }

    /// Waits for the turn, and returns how long to wait before the claim so that not all agents claim at once.
    pub(super) async fn turn(&self) -> Duration {
        loop {
            match self.called.load(Ordering::Acquire) {
                0 => self.turn.notified().await,
                agents if agents > MANY_AGENTS => {
                    let agents = u32::try_from(agents).unwrap_or(u32::MAX);
                    let spread = SPREAD.0.saturating_mul(agents).min(SPREAD.1);
                    return spread.mul_f64(fastrand::f64());
                }
                _ => return Duration::ZERO,
            }
        }
    }

    /// Ends the turn.
    pub(super) fn end_turn(&self) {
        self.called.store(0, Ordering::Release);
    }
}
