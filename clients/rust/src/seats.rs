//! Turns of candidates to campaign within this process.
//!
//! A leader's own campaign succeeds with a new token, and fences the leader. So two leaderships of one process under
//! the same name take turns: the second campaigns when the first has resigned, or its term is over.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    term::{Shared, Who},
    timer,
};

type Name = (String, String, String);

/// The elections for which candidates of this process campaign.
#[derive(Debug, Default)]
pub(crate) struct Seats(Mutex<HashMap<Name, Weak<Semaphore>>>);

impl Seats {
    /// Waits for the turn, first come, first served.
    pub(crate) async fn take(&self, who: &Who) -> Option<Seat> {
        let seat = self.seat(who);
        // It is never closed.
        seat.acquire_owned().await.ok().map(Seat)
    }

    fn seat(&self, who: &Who) -> Arc<Semaphore> {
        let name = (
            who.kind.clone(),
            who.election.clone(),
            who.candidate.clone(),
        );
        let mut seats = self.0.lock();
        if let Some(seat) = seats.get(&name).and_then(Weak::upgrade) {
            return seat;
        }
        if seats.len() == seats.capacity() {
            seats.retain(|_, seat| seat.strong_count() > 0);
        }
        let seat = Arc::new(Semaphore::new(1));
        seats.insert(name, Arc::downgrade(&seat));
        seat
    }
}

/// The right to campaign.
#[derive(Debug)]
pub(crate) struct Seat(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// The seat of a term: it is free when the term was given up, or else when its time is over.
#[derive(Debug)]
pub(crate) struct Seated {
    seat: Option<Seat>,
    term: Arc<Shared>,
}

impl Seated {
    pub(crate) fn new(seat: Seat, term: Arc<Shared>) -> Self {
        Self {
            seat: Some(seat),
            term,
        }
    }

    /// The election is known to be vacant, or another's.
    pub(crate) fn free(mut self) {
        self.seat = None;
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            timer::keep_until(self.term.valid_until(), seat);
        }
    }
}
