//! Requests that wait for a change.
//!
//! A request that begins to wait stops counting as a request in progress and counts as a stream, and may take longer
//! than other requests. Two layers outside of the handler learn of it from the [`Stay`] in the request's extensions.

use std::{sync::Arc, time::Duration};

use election_core::{
    board::Patience,
    types::{Invalid, millis},
};
use http::Extensions;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::request::{Deadline, peer};
use crate::status::{Code, Problem};

/// How long before the caller's deadline a wait ends, so that the reply arrives in time.
const BEFORE_THE_DEADLINE: Duration = Duration::from_millis(50);

/// The place of a request that may wait, and how long it may take.
#[derive(Debug)]
pub struct Stay {
    place: Mutex<OwnedSemaphorePermit>,
    streams: Places,
    until: Mutex<Option<Instant>>,
}

impl Stay {
    /// Creates the stay of a request that has this place, and exchanges it for one of `streams` when it begins to wait.
    #[must_use]
    pub fn new(place: OwnedSemaphorePermit, streams: Places) -> Self {
        Self {
            place: Mutex::new(place),
            streams,
            until: Mutex::default(),
        }
    }

    /// Returns when the request must end, if it has begun to wait.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        *self.until.lock()
    }

    fn begin(&self, until: Instant) -> Result<(), Problem> {
        *self.place.lock() = self.streams.take()?;
        *self.until.lock() = Some(until);
        Ok(())
    }
}

/// The places of streams and of requests that wait. Cheap to clone; clones share the places.
#[derive(Debug, Clone)]
pub struct Places {
    most: usize,
    free: Arc<Semaphore>,
}

impl Places {
    /// Creates this many places.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            free: Arc::new(Semaphore::new(most)),
        }
    }

    /// Returns how many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.most.saturating_sub(self.free.available_permits())
    }

    /// The places of the request with these extensions. [`None`]: they are not limited.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().cloned()
    }

    /// Takes a place.
    ///
    /// # Errors
    /// No place is free.
    pub fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = Arc::clone(&self.free).try_acquire_owned();
        place.map_err(|_| too_many_streams())
    }
}

/// Begins a wait of this many ms, within the caller's deadline; [`None`] if it is 0.
///
/// # Errors
/// The time is out of range, or the agent has its maximum number of streams.
pub fn begin(
    ms: i64,
    longest: Duration,
    extensions: &Extensions,
) -> Result<Option<Patience>, Problem> {
    let wait = match u64::try_from(ms).map(Duration::from_millis) {
        Ok(Duration::ZERO) => return Ok(None),
        Ok(wait) if wait <= longest => wait,
        _ => {
            let most = millis(longest);
            return Err(Invalid(format!(
                "`wait` is {ms}: give 0 to {most} milliseconds (EA_MAX_WAIT bounds it)"
            ))
            .into());
        }
    };
    let times = Deadline::of(extensions);
    let (since, deadline) = (times.received(), times.after(wait));
    if let Some(stay) = extensions.get::<Arc<Stay>>() {
        stay.begin(deadline)?;
    }
    Ok(Some(Patience {
        since,
        waiter: None,
        until: (since + wait).min(deadline - BEFORE_THE_DEADLINE),
        deadline,
        ending: peer(extensions)?.ending.clone(),
    }))
}

/// The problem of a stream over the limit.
fn too_many_streams() -> Problem {
    Problem::new(
        Code::Overloaded,
        "the agent has its maximum number of streams and waiting requests (EA_MAX_STREAMS): try again later, or use \
         another agent",
    )
}
