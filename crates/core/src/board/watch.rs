//! One who watches elections, and what it has not read yet.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{Cause, Seen, table::MOST_ELECTIONS};
use crate::election::{
    Error,
    types::{ElectionId, Kind},
};

/// How long changes wait for a reader.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One election.
    One(Arc<ElectionId>),
    /// The elections of a kind whose names begin so.
    Kind(Kind, Box<str>),
    /// All elections.
    All,
}

impl Scope {
    /// The kind of all its elections, if they are of one.
    pub(super) fn kind(&self) -> Option<&Kind> {
        match self {
            Self::Kind(kind, _) => Some(kind),
            Self::One(_) | Self::All => None,
        }
    }

    /// Whether the election is watched.
    #[must_use]
    pub fn covers(&self, election: &ElectionId) -> bool {
        match self {
            Self::One(one) => **one == *election,
            Self::Kind(kind, prefix) => {
                election.kind() == kind.as_str() && election.name().starts_with(&**prefix)
            }
            Self::All => true,
        }
    }
}

/// What a watch reports.
#[derive(Debug, Clone)]
pub enum Event {
    /// The state of an election. `missed`: others may have led between the last state that was reported and this one.
    State {
        /// The state.
        seen: Arc<Seen>,
        /// Why it is reported.
        cause: Cause,
        /// Whether leaders may have gone unreported.
        missed: bool,
    },
    /// All present states have been reported.
    Synced,
    /// Whether the states reported last are known to be the present ones.
    Certainty(Option<Doubt>),
    /// There are more elections than a watch may cover. Nothing follows.
    TooMany,
    /// Nobody has read for [`PATIENCE`]. Nothing follows.
    Slow,
}

/// Since when the state is not confirmed, and why.
#[derive(Debug, Clone)]
pub struct Doubt {
    /// Since when.
    pub since: Instant,
    /// Why the last read failed.
    pub error: Error,
}

/// A watch. It holds the last state of each election that has changed, not every state.
#[derive(Debug)]
pub(super) struct Watch {
    id: u64,
    scope: Scope,
    pending: Mutex<Pending>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    changed: HashMap<Arc<ElectionId>, Change>,
    order: VecDeque<Arc<ElectionId>>,
    synced: Synced,
    /// How many elections and groups are in doubt, and what is to be said of it.
    doubts: usize,
    certainty: Option<Option<Doubt>>,
    too_many: bool,
    /// Since when something is pending.
    since: Option<Instant>,
    slow: bool,
}

/// Whether all present states have been collected, and [`Event::Synced`] was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Synced {
    #[default]
    NotYet,
    Pending,
    Reported,
}

#[derive(Debug)]
struct Change {
    seen: Arc<Seen>,
    cause: Cause,
    missed: bool,
}

impl Watch {
    pub(super) fn new(id: u64, scope: Scope) -> Self {
        Self {
            id,
            scope,
            pending: Mutex::default(),
            ready: Notify::new(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    fn add(&self, seen: &Arc<Seen>, cause: Cause, missed: bool) {
        let mut pending = self.pending.lock();
        let pending = &mut *pending;
        let since = *pending.since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            pending.slow = true;
            pending.changed.clear();
            pending.order.clear();
            return;
        }
        let full = pending.changed.len() == MOST_ELECTIONS;
        match pending.changed.get_mut(&seen.election) {
            Some(change) => {
                // The state in between is not reported.
                let skipped = change.cause != Cause::Present;
                *change = Change {
                    seen: Arc::clone(seen),
                    cause: if skipped { cause } else { Cause::Present },
                    missed: skipped || missed,
                };
            }
            None if full => pending.too_many = true,
            None => {
                pending.order.push_back(Arc::clone(&seen.election));
                let change = Change {
                    seen: Arc::clone(seen),
                    cause,
                    missed,
                };
                pending.changed.insert(Arc::clone(&seen.election), change);
            }
        }
        self.ready.notify_one();
    }

    /// Reports the present state.
    pub(super) fn present(&self, seen: &Arc<Seen>) {
        self.add(seen, Cause::Present, false);
    }

    /// Reports a new state.
    pub(super) fn changed(&self, seen: &Arc<Seen>) {
        self.add(seen, seen.cause, seen.missed);
    }

    /// Reports the state of an election of which nothing was known. A watch of a group hears of it only if it is held.
    /// `missed`: others may have led before, as far as the group is concerned.
    pub(super) fn discovered(&self, seen: &Arc<Seen>, missed: bool) {
        if matches!(self.scope, Scope::One(_)) {
            self.present(seen);
            self.synced();
        } else if seen.until.is_some() {
            self.add(seen, Cause::Campaign, missed);
        }
    }

    pub(super) fn synced(&self) {
        let mut pending = self.pending.lock();
        if pending.synced == Synced::NotYet {
            pending.synced = Synced::Pending;
            self.ready.notify_one();
        }
    }

    pub(super) fn doubt(&self, since: Instant, error: &Error) {
        let mut pending = self.pending.lock();
        pending.doubts += 1;
        if pending.doubts == 1 {
            let error = error.clone();
            pending.certainty = Some(Some(Doubt { since, error }));
            self.ready.notify_one();
        }
    }

    pub(super) fn trust(&self) {
        let mut pending = self.pending.lock();
        pending.doubts = pending.doubts.saturating_sub(1);
        if pending.doubts == 0 {
            pending.certainty = match pending.certainty.take() {
                // The doubt was not reported.
                Some(Some(_)) => None,
                _ => Some(None),
            };
            self.ready.notify_one();
        }
    }

    pub(super) fn too_many(&self) {
        self.pending.lock().too_many = true;
        self.ready.notify_one();
    }

    /// The next event.
    pub(super) async fn next(&self) -> Event {
        loop {
            if let Some(event) = self.take() {
                return event;
            }
            self.ready.notified().await;
        }
    }

    /// The next event, if there is one now.
    pub(super) fn take(&self) -> Option<Event> {
        let mut pending = self.pending.lock();
        if pending.slow {
            return Some(Event::Slow);
        }
        if pending.too_many {
            return Some(Event::TooMany);
        }
        pending.since = None;
        // A doubt concerns what was reported before; certainty, what is pending, too.
        if let Some(Some(doubt)) = pending.certainty.take_if(|it| it.is_some()) {
            return Some(Event::Certainty(Some(doubt)));
        }
        if let Some(id) = pending.order.pop_front() {
            let change = pending.changed.remove(&id)?;
            return Some(Event::State {
                seen: change.seen,
                cause: change.cause,
                missed: change.missed,
            });
        }
        if pending.synced == Synced::Pending {
            pending.synced = Synced::Reported;
            return Some(Event::Synced);
        }
        pending.certainty.take().map(Event::Certainty)
    }
}
