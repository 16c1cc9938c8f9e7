//! An observation of elections, and its unread events.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::{self, Handle},
    sync::Notify,
    time::Instant,
};

use super::{Cause, Seen, table::MOST_ELECTIONS};
use crate::{
    election::Error,
    types::{ElectionId, Kind},
};

/// How long changes wait for a reader.
const PATIENCE: Duration = Duration::from_secs(30);

/// The observed elections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One election.
    One(Arc<ElectionId>),
    /// The elections of a kind whose names begin with a prefix.
    Kind(Kind, Box<str>),
    /// All elections.
    All,
}

impl Scope {
    /// The kind of all its elections, if they share one.
    pub(super) fn kind(&self) -> Option<&Kind> {
        match self {
            Self::Kind(kind, _) => Some(kind),
            Self::One(_) | Self::All => None,
        }
    }

    /// Whether the scope contains the election.
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

/// An event of an observation.
#[derive(Debug, Clone)]
pub enum Event {
    /// The state of an election. `missed`: others may have led between the last reported state and this one.
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
    /// Whether the last reported states are known to be the present ones.
    Certainty(Option<Doubt>),
    /// There are more elections than an observation may cover. Nothing follows.
    TooMany,
    /// The observer has not read for [`PATIENCE`]. Nothing follows.
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

/// An observation. It holds the last state of each election that has changed, not every state.
#[derive(Debug)]
pub(super) struct Subscription {
    id: u64,
    scope: Scope,
    /// Where its reader runs.
    runtime: Option<Handle>,
    pending: Mutex<Pending>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    changed: HashMap<Arc<ElectionId>, Change>,
    order: VecDeque<Arc<ElectionId>>,
    synced: Synced,
    /// How many elections and groups are in doubt.
    doubts: usize,
    /// The doubt, or its end, to report.
    certainty: Option<Option<Doubt>>,
    too_many: bool,
    /// Since when something is pending.
    since: Option<Instant>,
    slow: bool,
    /// Whether the reader has been woken, or is about to be, and has not read since.
    called: bool,
}

/// Observations whose readers to wake, by runtime.
///
/// Waking a reader on another thread takes a system call, and its connection is written before the next one is awake.
/// A task on the readers' own thread wakes all of them first, and those that share a connection share a write.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<Vec<Arc<Subscription>>>);

impl Calls {
    fn add(&mut self, subscription: &Arc<Subscription>, pending: &mut Pending) {
        if std::mem::replace(&mut pending.called, true) {
            return;
        }
        let together = self.0.iter_mut().find(|it| {
            it.first()
                .is_some_and(|first| first.runs_on() == subscription.runs_on())
        });
        match together {
            Some(together) => together.push(Arc::clone(subscription)),
            None => self.0.push(vec![Arc::clone(subscription)]),
        }
    }

    /// Wakes them.
    pub(super) fn wake(self) {
        for together in self.0 {
            match together.first().and_then(|first| first.runtime.clone()) {
                Some(runtime) if together.len() > 1 => {
                    runtime.spawn(async move {
                        for subscription in together {
                            subscription.ready.notify_one();
                        }
                    });
                }
                _ => {
                    for subscription in together {
                        subscription.ready.notify_one();
                    }
                }
            }
        }
    }
}

/// Whether all present states have been collected and [`Event::Synced`] has been reported.
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

impl Subscription {
    pub(super) fn new(id: u64, scope: Scope) -> Self {
        Self {
            id,
            scope,
            runtime: Handle::try_current().ok(),
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

    fn runs_on(&self) -> Option<runtime::Id> {
        self.runtime.as_ref().map(Handle::id)
    }

    fn add(self: &Arc<Self>, seen: &Arc<Seen>, cause: Cause, missed: bool, calls: &mut Calls) {
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
        calls.add(self, pending);
    }

    /// Reports the present state.
    pub(super) fn present(self: &Arc<Self>, seen: &Arc<Seen>, calls: &mut Calls) {
        self.add(seen, Cause::Present, false, calls);
    }

    /// Reports a new state.
    pub(super) fn changed(self: &Arc<Self>, seen: &Arc<Seen>, calls: &mut Calls) {
        self.add(seen, seen.cause, seen.missed, calls);
    }

    /// Reports the state of an election that was unknown before. An observer of a group receives it only if it is held.
    /// `missed`: to observers of a group, others may have led before.
    pub(super) fn discovered(self: &Arc<Self>, seen: &Arc<Seen>, missed: bool, calls: &mut Calls) {
        if matches!(self.scope, Scope::One(_)) {
            self.present(seen, calls);
            self.synced(calls);
        } else if seen.until.is_some() {
            self.add(seen, Cause::Campaign, missed, calls);
        }
    }

    pub(super) fn synced(self: &Arc<Self>, calls: &mut Calls) {
        let mut pending = self.pending.lock();
        if pending.synced == Synced::NotYet {
            pending.synced = Synced::Pending;
            calls.add(self, &mut pending);
        }
    }

    pub(super) fn doubt(self: &Arc<Self>, since: Instant, error: &Error, calls: &mut Calls) {
        let mut pending = self.pending.lock();
        pending.doubts += 1;
        if pending.doubts == 1 {
            let error = error.clone();
            pending.certainty = Some(Some(Doubt { since, error }));
            calls.add(self, &mut pending);
        }
    }

    pub(super) fn trust(self: &Arc<Self>, calls: &mut Calls) {
        let mut pending = self.pending.lock();
        pending.doubts = pending.doubts.saturating_sub(1);
        if pending.doubts == 0 {
            pending.certainty = match pending.certainty.take() {
                // The doubt was not reported.
                Some(Some(_)) => None,
                _ => Some(None),
            };
            calls.add(self, &mut pending);
        }
    }

    pub(super) fn too_many(self: &Arc<Self>, calls: &mut Calls) {
        let mut pending = self.pending.lock();
        pending.too_many = true;
        calls.add(self, &mut pending);
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
        pending.called = false;
        if pending.slow {
            return Some(Event::Slow);
        }
        if pending.too_many {
            return Some(Event::TooMany);
        }
        pending.since = None;
        // A doubt concerns earlier reports; certainty also concerns pending ones.
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

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn readers_of_a_runtime_are_woken_together_and_once() {
        let runtimes = [runtime(), runtime()];
        let subscriptions: Vec<_> = (0..6)
            .map(|id| {
                let _entered = runtimes[id as usize % 2].enter();
                Arc::new(Subscription::new(id, Scope::All))
            })
            .collect();
        let reading: Vec<_> = subscriptions
            .iter()
            .map(|subscription| {
                let (runtime, subscription) = (
                    &runtimes[subscription.id() as usize % 2],
                    Arc::clone(subscription),
                );
                runtime.spawn(async move { subscription.next().await })
            })
            .collect();
        let alive = |number: usize| runtimes[number].metrics().num_alive_tasks();
        let mut calls = Calls::default();
        for subscription in &subscriptions {
            subscription.synced(&mut calls);
            // The reader has not read since.
            subscription.too_many(&mut calls);
        }
        let sizes: Vec<_> = calls.0.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 3]);
        calls.wake();
        assert_eq!([alive(0), alive(1)], [4, 4], "one task wakes three");
        for (number, reading) in reading.into_iter().enumerate() {
            let read = runtimes[number % 2].block_on(reading).expect("no panic");
            assert!(matches!(read, Event::TooMany));
        }
    }

    #[test]
    fn who_has_read_is_woken_again() {
        let runtime = runtime();
        runtime.block_on(async {
            let subscription = Arc::new(Subscription::new(0, Scope::All));
            for certain in [false, true] {
                let mut calls = Calls::default();
                match certain {
                    false => {
                        subscription.doubt(Instant::now(), &Error::DeadlineExceeded, &mut calls);
                    }
                    true => subscription.trust(&mut calls),
                }
                let reading = subscription.next();
                calls.wake();
                assert!(
                    matches!(reading.await, Event::Certainty(doubt) if doubt.is_none() == certain)
                );
            }
        });
    }
}
