//! The board: the waiters and observers of elections, served by one reader.
//!
//! Each election of interest has one entry, whatever its number of waiters and observers. The board reads it when a
//! [hint](crate::lease::hint) says that it has changed, when its leader's term ends, and periodically in case a hint
//! was lost. A quorum decides a read like any other; hints decide only when to read. When an election is vacant, its
//! first waiter claims it, as a campaign that just arrived would.
//!
//! Without waiters and observers the board has no entry, no timer, no task and no subscription.

mod changes;
mod queue;
mod subscription;
mod table;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use subscription::{Doubt, Event, Scope};
pub use table::{Counts, MOST_ELECTIONS};

use crate::{
    election::{Campaign, Elections, Outcome, Wait, state::Position},
    lease::{Hint, Lease, LeaseNode, Listener, State, quorum::Error},
    types::{Candidate, ElectionId},
};
use queue::Place;
use subscription::Subscription;
use table::Table;

/// The timeout of a read or listing of the board.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// The pause before listening to a node again: the first, and the longest.
const LISTEN_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How many batches of reads run at once.
const READS: usize = 16;
/// How many listings run at once.
const LISTINGS: usize = 4;

/// Why an election entered its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Cause {
    /// The election was in this state when the observation began.
    Present,
    /// The leader campaigned.
    Campaign,
    /// The leader resigned.
    Resign,
    /// A handover made the leader.
    Handover,
    /// The leader's term ended.
    Expiry,
    /// A grant that a majority had accepted was rolled back, such as one that they accepted too late.
    RolledBack,
}

impl Cause {
    /// Its name in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The state of an election, as a quorum last confirmed it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The election.
    pub election: Arc<ElectionId>,
    /// Its state as read; [`lease`](Self::lease) returns the current remaining time.
    pub state: State,
    /// Until when the leader may act at least, if there is one.
    pub until: Option<Instant>,
    /// Why it is in this state.
    pub cause: Cause,
    /// Whether others may have led between the state before and this one.
    pub missed: bool,
    /// When the agent first learned of it.
    pub at: Instant,
}

impl Seen {
    /// The position of the state.
    #[must_use]
    pub fn position(&self) -> Position {
        Position::of(&self.state)
    }

    /// The state with the current remaining time.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        match self.lease(now) {
            Some(lease) => State::Held(lease),
            None => self.state.clone(),
        }
    }

    /// The lease with the current remaining time.
    #[must_use]
    pub fn lease(&self, now: Instant) -> Option<Lease> {
        let until = self.until?;
        self.state.lease().map(|lease| Lease {
            remaining: until.saturating_duration_since(now),
            ..lease.clone()
        })
    }
}

/// A campaign that waits for an election.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The election.
    pub election: Arc<ElectionId>,
    /// Its candidate.
    pub candidate: Candidate,
    /// Since when it waits.
    pub since: Instant,
}

/// The settings of a board.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a lease granted after a wait is stored until its first extension, plus 1 % of the wait; at most its
    /// term.
    pub provisional_term: Duration,
    /// The longest wait that a caller may request.
    pub max_wait: Duration,
}

/// A caller that waits on a stream for longer than a request may take.
pub trait Waiter: fmt::Debug + Send + Sync + 'static {
    /// When its last message arrived. A grant counts from before then, instead of from the beginning of the wait.
    fn last_message(&self) -> Instant;

    /// Called when the campaign begins to wait because of this leader.
    fn waits(&self, leader: &Lease);
}

/// How long a campaign waits.
#[derive(Debug, Clone)]
pub struct Patience {
    /// When the request arrived.
    pub since: Instant,
    /// The caller, if it sends messages during the wait.
    pub waiter: Option<Arc<dyn Waiter>>,
    /// When the wait ends.
    pub until: Instant,
    /// When the outcome must be known: later than `until` by the time that a claim takes.
    pub deadline: Instant,
    /// Cancelled when the caller's connection is to end, which ends the wait.
    pub ending: CancellationToken,
}

/// Receives the events of the board.
pub trait BoardObserver: fmt::Debug + Send + Sync + 'static {
    /// A change was reported to an observer this long after the agent first learned of it.
    fn delivered(&self, after: Duration);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoopObserver;

impl BoardObserver for NoopObserver {
    fn delivered(&self, _: Duration) {}
}

/// The board. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    elections: Elections,
    settings: Settings,
    runtime: Handle,
    table: Mutex<Table>,
    /// Wakes the task when the next read or listing is due earlier than before.
    nudge: Notify,
    observer: Arc<dyn BoardObserver>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}

impl Board {
    /// Creates a board for these elections. Its task runs on `runtime`.
    #[must_use]
    pub fn new(
        elections: Elections,
        settings: Settings,
        runtime: Handle,
        observer: Arc<dyn BoardObserver>,
    ) -> Self {
        let table = Table::new(elections.quorum().electorate());
        Self(Arc::new(Inner {
            elections,
            settings,
            runtime,
            table: Mutex::new(table),
            nudge: Notify::new(),
            observer,
        }))
    }

    /// The elections.
    #[must_use]
    pub fn elections(&self) -> &Elections {
        &self.0.elections
    }

    /// The longest wait that a caller may request.
    #[must_use]
    pub fn max_wait(&self) -> Duration {
        self.0.settings.max_wait
    }

    /// Campaigns, and waits for the election to become vacant. The time for which the leader may act counts from before
    /// the request arrived, so it may exceed the term.
    ///
    /// A campaign that had to wait is elected provisionally: the lease is stored for a short time, and the first
    /// extension grants the full term.
    ///
    /// # Errors
    /// [`Error`]: the outcome is unknown, for example because no quorum replied at the end of the wait.
    pub async fn campaign(
        &self,
        campaign: &Campaign,
        patience: &Patience,
    ) -> Result<Outcome, Error> {
        let (until, deadline) = (patience.until, patience.deadline);
        let began = Instant::now();
        let lease = match self.0.elections.campaign(campaign, deadline).await {
            Ok(Outcome::NotElected(lease)) if Instant::now() < until => lease,
            outcome => return outcome,
        };
        if let Some(waiter) = &patience.waiter {
            waiter.waits(&lease);
        }
        let queued = self.enqueue(&campaign.election, &campaign.candidate, lease, began);
        loop {
            let spread = tokio::select! {
                biased;
                () = sleep_until(until) => break,
                () = patience.ending.cancelled() => break,
                spread = queued.place.turn() => spread,
            };
            if !spread.is_zero() {
                sleep(spread).await;
            }
            let began = Instant::now();
            // Boxed: many campaigns wait, few claim.
            let found = match Box::pin(self.claim(campaign, patience)).await {
                Ok(Outcome::NotElected(lease)) => Ok(lease),
                Err(error @ Error::Unavailable { .. }) if Instant::now() < until => Err(error),
                outcome => return outcome,
            };
            queued.place.end_turn();
            self.with(|table, now| table.claimed(&campaign.election, found, began, now));
        }
        let known = self
            .0
            .table
            .lock()
            .leader(&campaign.election, Instant::now());
        match known? {
            Some(lease) => Ok(Outcome::NotElected(lease)),
            // Only a claim finds out who leads now.
            None => Box::pin(self.claim(campaign, patience)).await,
        }
    }

    /// Claims the election for a campaign that has waited.
    async fn claim(&self, campaign: &Campaign, patience: &Patience) -> Result<Outcome, Error> {
        let waiter = patience.waiter.as_ref();
        let since = waiter.map_or(patience.since, |waiter| waiter.last_message());
        let waited = since.elapsed();
        let wait = Wait {
            since,
            stored: campaign
                .term
                .at_most(self.0.settings.provisional_term + waited / 100),
        };
        let waited = Campaign {
            wait: Some(wait),
            ..campaign.clone()
        };
        let deadline = patience.deadline;
        self.0.elections.campaign(&waited, deadline).await
    }

    fn enqueue(
        &self,
        election: &ElectionId,
        candidate: &Candidate,
        lease: Lease,
        began: Instant,
    ) -> Queued {
        let place = Arc::new(Place::new(candidate.clone(), began));
        self.with(|table, now| {
            table.enqueue(election, Arc::clone(&place), lease, began, now);
        });
        Queued {
            board: self.clone(),
            election: election.clone(),
            place,
        }
    }

    /// Observes elections: reports their present states first, then changes.
    #[must_use]
    pub fn observe(&self, scope: Scope) -> Observation {
        let subscription = self.with(|table, now| table.subscribe(scope, now));
        Observation {
            board: self.clone(),
            subscription,
        }
    }

    /// The last changes of the election that the board remembers, the newest first: at most 64. The board learns of
    /// changes while the election has a waiter or an observer, and remembers the last 1,000 of all elections.
    #[must_use]
    pub fn changes(&self, election: &ElectionId) -> Vec<Arc<Seen>> {
        self.0.table.lock().changes().of(election)
    }

    /// The waiters for elections of the scope, by election and in the order in which they claim: `most` of them after
    /// the first `skipped`, and whether there are more.
    #[must_use]
    pub fn waiters(&self, scope: &Scope, skipped: usize, most: usize) -> (Vec<Waiting>, bool) {
        let mut queues = self.0.table.lock().queues(scope);
        queues.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let queued = queues.into_iter().flat_map(|(election, places)| {
            places.into_iter().map(move |place| Waiting {
                election: Arc::clone(&election),
                candidate: place.candidate().clone(),
                since: place.since(),
            })
        });
        let mut rest = queued.skip(skipped);
        let page = rest.by_ref().take(most).collect();
        (page, rest.next().is_some())
    }

    /// The board's current contents and totals.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.table.lock().counts()
    }

    /// Changes the table, starts the task if there is none, wakes it if a read or listing is due earlier, and wakes the
    /// readers of observations that have changed.
    fn with<T>(&self, change: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let mut table = self.0.table.lock();
        let next = |table: &Table| [table.next_read(), table.next_listing()];
        let before = next(&table);
        let done = change(&mut table, Instant::now());
        let mut after = next(&table).into_iter().zip(before);
        let sooner = after.any(|(after, before)| {
            after.is_some_and(|after| before.is_none_or(|before| after < before))
        });
        if !table.running && !table.is_idle() {
            table.running = true;
            self.0.runtime.spawn(self.clone().run());
        } else if table.is_idle() || sooner {
            self.0.nudge.notify_one();
        }
        let calls = std::mem::take(&mut table.calls);
        drop(table);
        calls.wake();
        done
    }

    /// Reads and listens until the board is idle.
    async fn run(self) {
        let nodes = self.0.elections.quorum().nodes();
        let mut listening = JoinSet::new();
        for (number, node) in nodes.into_iter().enumerate() {
            listening.spawn(HintListener::new(&self, number).listen(node));
        }
        let (mut reading, mut listing) = (JoinSet::new(), JoinSet::new());
        loop {
            let next = {
                let mut table = self.0.table.lock();
                if table.is_idle() {
                    table.running = false;
                    table.silence();
                    return;
                }
                let now = Instant::now();
                while listing.len() < LISTINGS {
                    let due = table.take_listing(now);
                    if due.is_empty() {
                        break;
                    }
                    listing.spawn(self.clone().list(due));
                }
                while reading.len() < READS {
                    let due = table.take_due(now);
                    if due.is_empty() {
                        break;
                    }
                    reading.spawn(self.clone().read(due));
                }
                let read = table.next_read().filter(|_| reading.len() < READS);
                let list = table.next_listing().filter(|_| listing.len() < LISTINGS);
                [read, list].into_iter().flatten().min()
            };
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            // All branches do the same. Their order is fixed so that a simulation can repeat a run.
            tokio::select! {
                biased;
                () = due => {}
                () = self.0.nudge.notified() => {}
                Some(_) = reading.join_next() => {}
                Some(_) = listing.join_next() => {}
            }
        }
    }

    async fn read(self, due: Vec<Arc<ElectionId>>) {
        let began = Instant::now();
        let elections: Vec<_> = due.iter().map(|id| (**id).clone()).collect();
        let read = self
            .0
            .elections
            .quorum()
            .read_many(elections, began + READ_WITHIN)
            .await;
        self.with(|table, now| {
            for (id, state) in due.iter().zip(read) {
                table.learn(id, state, began, now);
            }
        });
    }

    async fn list(self, scopes: Vec<Scope>) {
        let began = Instant::now();
        let listed = self.list_all(&scopes, began + READ_WITHIN).await;
        self.with(|table, now| match listed {
            Ok(all) => {
                for (scope, held) in scopes.iter().zip(all) {
                    table.listed(scope, held.map(Ok), began, now);
                }
            }
            Err(error) => {
                for scope in &scopes {
                    table.listed(scope, Some(Err(error.clone())), began, now);
                }
            }
        });
    }

    /// The held elections of each scope; [`None`] where there are too many. All scopes are of one
    /// kind, or all cover all kinds.
    async fn list_all(
        &self,
        scopes: &[Scope],
        deadline: Instant,
    ) -> Result<Vec<Option<Held>>, Error> {
        let quorum = self.0.elections.quorum();
        let kind = scopes.first().and_then(Scope::kind);
        let mut all = vec![Some(Vec::new()); scopes.len()];
        let mut after = None;
        loop {
            let page = quorum.list(kind, after, crate::election::MAX_PAGE, deadline);
            let page = page.await?;
            if let Some(why) = page.incomplete {
                return Err(Error::unavailable(format!(
                    "some elections cannot be listed: {why}"
                )));
            }
            for (scope, held) in scopes.iter().zip(&mut all) {
                let Some(found) = held else { continue };
                let covered = page.leases.iter().filter(|(it, _)| scope.covers(it));
                found.extend(covered.cloned());
                if found.len() > MOST_ELECTIONS {
                    *held = None;
                }
            }
            after = page.next;
            if after.is_none() || all.iter().all(Option::is_none) {
                return Ok(all);
            }
        }
    }
}

/// Held elections with their leases.
type Held = Vec<(ElectionId, Lease)>;

/// Listens to a node for the board.
struct HintListener {
    board: Board,
    node: usize,
    era: u64,
}

impl HintListener {
    fn new(board: &Board, node: usize) -> Self {
        Self {
            board: board.clone(),
            node,
            era: board.0.table.lock().era,
        }
    }

    /// Changes the table, unless this task's era is over. An aborted task may still call this.
    fn reports(&self, change: impl FnOnce(&mut Table, Instant)) {
        self.board.with(|table, now| {
            if table.era == self.era {
                change(table, now);
            }
        });
    }

    async fn listen(self, node: Arc<dyn LeaseNode>) {
        let mut pause = LISTEN_AGAIN.0;
        let mut reported = None;
        loop {
            let began = Instant::now();
            let error = node.listen(&self).await;
            self.reports(|table, now| table.disconnected(self.node, now));
            let lasted = began.elapsed() > LISTEN_AGAIN.1;
            if lasted {
                pause = LISTEN_AGAIN.0;
            }
            if reported.as_ref() != Some(&error) {
                tracing::warn!(node = node.name(), %error, "the agent receives no hints from a lease node");
                reported = Some(error);
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LISTEN_AGAIN.1);
        }
    }
}

impl Listener for HintListener {
    fn connected(&self, listeners: usize) {
        self.reports(|table, now| table.connected(self.node, listeners, now));
    }

    fn hinted(&self, hint: Hint) {
        self.reports(|table, now| table.hinted(self.node, &hint, now));
    }
}

/// A place in a queue, left on drop.
struct Queued {
    board: Board,
    election: ElectionId,
    place: Arc<Place>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.board
            .with(|table, now| table.leave(&self.election, &self.place, now));
    }
}

/// An observation, ended on drop.
#[derive(Debug)]
pub struct Observation {
    board: Board,
    subscription: Arc<Subscription>,
}

impl Observation {
    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        let event = self.subscription.next().await;
        if let Event::State { seen, cause, .. } = &event
            && *cause != Cause::Present
        {
            self.board.0.observer.delivered(seen.at.elapsed());
        }
        event
    }

    /// The next event, if there is one now.
    pub fn take(&mut self) -> Option<Event> {
        self.subscription.take()
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.board
            .with(|table, now| table.unsubscribe(&self.subscription, now));
    }
}
