//! What the board knows of elections, and when it reads them again. Pure: no I/O, no tasks; the caller passes the time.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Cause, Seen,
    changes::Changes,
    queue::Place,
    subscription::{Calls, Scope, Subscription},
};
use crate::{
    election::Error,
    lease::{
        Hint, Lease, State, hint,
        policy::{Electorate, Nodes},
    },
    types::{ElectionId, Token},
};

/// The interval between reads of an election without events, unless the board is deaf.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The interval while it is deaf, and after a failed read.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// An election is read this much later than its term ends, as nodes count whole milliseconds.
const PAST_THE_END: Duration = Duration::from_millis(1);
/// A lazy read may be this much early, so that one batch serves many elections.
const EARLY: Duration = Duration::from_millis(50);
/// How many elections one batch reads.
const BATCH: usize = 500;
/// How long a hint waits for the hints of other nodes before the election is read.
const HINT_WAITS: Duration = Duration::from_millis(5);
/// The pauses before repeating a read that does not show yet what a hint announced.
const NOT_YET: [Duration; 3] = [
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
];
/// The rate limit of reads of an election because of hints: the burst, and the interval afterwards.
const HINTED_READS: (u32, Duration) = (20, Duration::from_millis(50));
/// The rate limit of new elections that hints add to a group: the burst, and the interval afterwards.
const ADDED_BY_HINTS: (u32, Duration) = (200, Duration::from_millis(5));
/// How long a vacancy that was reported to a group is remembered: a listing or a claim that began before it and ends
/// after it shows the former leader.
const REMEMBERED: Duration = Duration::from_secs(10);
/// The most elections that one observation covers.
pub const MOST_ELECTIONS: usize = 10_000;

/// A rate limit: a burst, then once per interval.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    most: u32,
    every: Duration,
    /// The allowance is used up while this is more than `most` - 1 intervals ahead of now.
    used_until: Instant,
}

impl Allowance {
    fn new((most, every): (u32, Duration), now: Instant) -> Self {
        Self {
            most,
            every,
            used_until: now,
        }
    }

    /// When the next may be taken.
    fn next(&self, now: Instant) -> Instant {
        let used_until = self.used_until.max(now) + self.every;
        let burst = self.every * self.most;
        used_until.checked_sub(burst).map_or(now, |at| at.max(now))
    }

    fn take(&mut self, now: Instant) {
        self.used_until = self.used_until.max(now) + self.every;
    }

    /// Takes one if the limit allows it now.
    fn try_take(&mut self, now: Instant) -> bool {
        let allowed = self.next(now) <= now;
        if allowed {
            self.take(now);
        }
        allowed
    }
}

/// Numbers for tests and telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Elections with a waiter or an observer.
    pub elections: usize,
    /// Elections with a scheduled read.
    pub timers: usize,
    /// Campaigns that wait.
    pub waiters: usize,
    /// Observations.
    pub subscriptions: usize,
    /// Whether the board's task runs, which listens to nodes.
    pub running: bool,
    /// Nodes from which the board receives hints.
    pub connected_nodes: usize,
    /// Whether so few nodes send hints that the board may miss changes.
    pub deaf: bool,
    /// Hints received since the start, of elections of interest.
    pub hints: u64,
    /// Changes since the start that a read found and no hint had announced.
    pub unannounced: u64,
    /// Changes since the start.
    pub changes: u64,
    /// Elections read since the start.
    pub reads: u64,
    /// Claims of waiters since the start.
    pub claims: u64,
}

/// An election of interest.
struct Entry {
    known: Option<Arc<Seen>>,
    /// When `known` was learnt.
    since: Instant,
    /// Whether a read is in flight.
    reading: bool,
    /// Whether to read again when the read or claim in flight ends.
    again: bool,
    due: Option<Instant>,
    /// Whether `due` may be brought forward.
    lazy: bool,
    /// The hints that the next read is to explain.
    hinted: Option<Hinted>,
    /// The smallest token above the known one that a hint says was granted.
    granted: Option<Token>,
    /// Whether the board may have missed changes since `known` was learnt.
    may_miss: bool,
    /// How often the read for these hints was repeated.
    repeated: usize,
    allowance: Allowance,
    queue: VecDeque<Arc<Place>>,
    /// Whether a waiter of the queue is claiming.
    claiming: bool,
    subscriptions: HashMap<u64, Arc<Subscription>>,
    unconfirmed: Unconfirmed,
}

impl Entry {
    /// Whether a read or a claim is in flight. Its result supersedes other findings.
    fn is_busy(&self) -> bool {
        self.reading || self.claiming
    }
}

/// Since when reads or listings fail, and why the last one did.
type Unconfirmed = Option<(Instant, Error)>;

/// Notes the failure of a read or listing that began at this time. Returns that time if the one before succeeded.
fn doubt(unconfirmed: &mut Unconfirmed, error: &Error, began: Instant) -> Option<Instant> {
    match unconfirmed {
        Some((_, last)) => {
            *last = error.clone();
            None
        }
        None => {
            *unconfirmed = Some((began, error.clone()));
            Some(began)
        }
    }
}

/// Hints that say the same.
#[derive(Debug, Clone, Copy)]
struct Hinted {
    cause: hint::Cause,
    token: Token,
    nodes: Nodes,
    first: Instant,
}

/// A group of elections with observers.
struct Group {
    scope: Scope,
    /// When the first observation began.
    since: Instant,
    subscriptions: HashMap<u64, Arc<Subscription>>,
    /// Whether all its elections have been listed once.
    synced: bool,
    listing: bool,
    due: Instant,
    added: Allowance,
    unconfirmed: Unconfirmed,
}

/// The elections with waiters or observers.
pub(super) struct Table {
    electorate: Electorate,
    entries: HashMap<Arc<ElectionId>, Entry>,
    due: BTreeSet<(Instant, Arc<ElectionId>)>,
    groups: Vec<Group>,
    connected: Nodes,
    /// When the board last became able to notice all changes.
    connected_since: Option<Instant>,
    /// Rises whenever the board stops listening. Reports of earlier eras do not count.
    pub(super) era: u64,
    listeners: usize,
    next_subscription: u64,
    /// Whether the board's task runs.
    pub(super) running: bool,
    totals: Counts,
    changes: Changes,
    /// The readers to wake.
    pub(super) calls: Calls,
}

impl Table {
    pub(super) fn new(electorate: Electorate) -> Self {
        Self {
            electorate,
            entries: HashMap::new(),
            due: BTreeSet::new(),
            groups: Vec::new(),
            connected: Nodes::NONE,
            connected_since: None,
            era: 0,
            listeners: 0,
            next_subscription: 0,
            running: false,
            totals: Counts::default(),
            changes: Changes::default(),
            calls: Calls::default(),
        }
    }

    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The queues of elections of the scope.
    pub(super) fn queues(&self, scope: &Scope) -> Vec<(Arc<ElectionId>, VecDeque<Arc<Place>>)> {
        let entries = self.entries.iter();
        let waited_for = entries.filter(|(id, entry)| !entry.queue.is_empty() && scope.covers(id));
        waited_for
            .map(|(id, entry)| (Arc::clone(id), entry.queue.clone()))
            .collect()
    }

    /// Whether there are no elections of interest.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.groups.is_empty()
    }

    pub(super) fn counts(&self) -> Counts {
        let subscriptions = self.entries.values().map(|entry| entry.subscriptions.len());
        let grouped = self.groups.iter().map(|group| group.subscriptions.len());
        let waiters = self.entries.values().map(|entry| entry.queue.len());
        Counts {
            elections: self.entries.len(),
            timers: self.due.len(),
            waiters: waiters.sum(),
            subscriptions: subscriptions.sum::<usize>() + grouped.sum::<usize>(),
            running: self.running,
            connected_nodes: self.connected.count(),
            deaf: self.is_deaf(),
            ..self.totals
        }
    }

    /// Whether the board may miss a change: the nodes that send it no hints form a majority.
    fn is_deaf(&self) -> bool {
        let silent = self.electorate.nodes().without(self.connected);
        self.electorate.any(silent)
    }

    /// Notes that the board stopped listening to nodes.
    pub(super) fn silence(&mut self) {
        self.connected = Nodes::NONE;
        self.era += 1;
    }

    fn next_look(&self, now: Instant) -> Instant {
        now + match self.is_deaf() {
            true => jittered(POLL_EVERY, 0.2),
            false => jittered(LOOK_EVERY, 0.1),
        }
    }

    /// The table's shared id of an election of interest.
    fn id(&self, election: &ElectionId) -> Option<Arc<ElectionId>> {
        let (id, _) = self.entries.get_key_value(election)?;
        Some(Arc::clone(id))
    }

    fn entry(&mut self, election: &ElectionId, now: Instant) -> Arc<ElectionId> {
        if let Some(id) = self.id(election) {
            return id;
        }
        let id = Arc::new(election.clone());
        let entry = Entry {
            known: None,
            since: now,
            reading: false,
            again: false,
            due: None,
            lazy: false,
            hinted: None,
            granted: None,
            may_miss: self.is_deaf(),
            repeated: 0,
            allowance: Allowance::new(HINTED_READS, now),
            queue: VecDeque::new(),
            claiming: false,
            subscriptions: HashMap::new(),
            unconfirmed: None,
        };
        self.entries.insert(Arc::clone(&id), entry);
        id
    }

    /// Schedules a read of the election at this time, unless an earlier one is due.
    fn arm(&mut self, id: &Arc<ElectionId>, at: Instant, lazy: bool) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.is_busy() {
            entry.again |= !lazy;
            return;
        }
        match entry.due {
            Some(due) if due < at => return,
            Some(due) => {
                self.due.remove(&(due, Arc::clone(id)));
            }
            None => {}
        }
        (entry.due, entry.lazy) = (Some(at), lazy);
        self.due.insert((at, Arc::clone(id)));
    }

    fn disarm(&mut self, id: &Arc<ElectionId>) {
        if let Some(entry) = self.entries.get_mut(id)
            && let Some(due) = entry.due.take()
        {
            self.due.remove(&(due, Arc::clone(id)));
        }
    }

    /// When the next read is due.
    pub(super) fn next_read(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// When the next listing is due.
    pub(super) fn next_listing(&self) -> Option<Instant> {
        let groups = self.groups.iter().filter(|group| !group.listing);
        groups.map(|group| group.due).min()
    }

    /// The elections to read now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Arc<ElectionId>> {
        if self.due.first().is_none_or(|(at, _)| *at > now) {
            return Vec::new();
        }
        let early = self.due.iter().take_while(|(at, _)| *at <= now + EARLY);
        let due = early
            .filter(|(at, id)| *at <= now || self.entries.get(id).is_some_and(|entry| entry.lazy));
        let taken: Vec<_> = due.take(BATCH).map(|(_, id)| Arc::clone(id)).collect();
        for id in &taken {
            self.disarm(id);
            if let Some(entry) = self.entries.get_mut(id) {
                (entry.reading, entry.again) = (true, false);
                entry.allowance.take(now);
            }
        }
        self.totals.reads += taken.len() as u64;
        taken
    }

    /// The due groups that one listing serves: those of one kind, or that of all kinds.
    pub(super) fn take_listing(&mut self, now: Instant) -> Vec<Scope> {
        let due = |group: &Group| !group.listing && group.due <= now;
        let Some(first) = self.groups.iter().find(|group| due(group)) else {
            return Vec::new();
        };
        let kind = first.scope.kind().cloned();
        let mut taken = Vec::new();
        for group in &mut self.groups {
            if due(group) && group.scope.kind() == kind.as_ref() {
                group.listing = true;
                // Earlier if hints arrive again meanwhile.
                group.due = now + LOOK_EVERY;
                taken.push(group.scope.clone());
            }
        }
        taken
    }

    /// Notes a hint.
    pub(super) fn hinted(&mut self, node: usize, hint: &Hint, now: Instant) {
        let grants = matches!(hint.cause, hint::Cause::Campaign | hint::Cause::Handover);
        if !self.entries.contains_key(&hint.election) {
            let mut groups = self.groups.iter_mut();
            let group = groups.find(|group| group.scope.covers(&hint.election));
            let Some(group) = group else { return };
            if !group.added.try_take(now) {
                // One listing is faster than a read of each new election.
                group.due = group.due.min(now + POLL_EVERY);
                return;
            }
        }
        self.totals.hints += 1;
        let id = self.entry(&hint.election, now);
        let electorate = self.electorate;
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if let Some(known) = &entry.known {
            let (token, vacant) = rank(&known.state);
            let hinted = hint.token.get();
            let old = match hint.cause {
                hint::Cause::Campaign | hint::Cause::Handover | hint::Cause::Repaired => {
                    hinted <= token
                }
                hint::Cause::Resign => hinted < token || (hinted == token && vacant),
                hint::Cause::RolledBack => hinted < token,
            };
            if old {
                return;
            }
        }
        if grants {
            let granted = entry.granted.get_or_insert(hint.token);
            *granted = (*granted).min(hint.token);
        }
        let same = |it: &Hinted| (it.cause, it.token) == (hint.cause, hint.token);
        let mut hinted = entry.hinted.filter(same).unwrap_or_else(|| {
            entry.repeated = 0;
            Hinted {
                cause: hint.cause,
                token: hint.token,
                nodes: Nodes::NONE,
                first: now,
            }
        });
        hinted.nodes.add(node);
        entry.hinted = Some(hinted);
        let at = match electorate.all(hinted.nodes) {
            true => now,
            false => hinted.first + HINT_WAITS,
        };
        let at = entry.allowance.next(now).max(at);
        self.arm(&id, at, false);
    }

    /// Notes that the node sends hints, and how many agents listen to it.
    pub(super) fn connected(&mut self, node: usize, listeners: usize, now: Instant) {
        self.listeners = listeners;
        if self.connected.has(node) {
            return;
        }
        let was_deaf = self.is_deaf();
        self.connected.add(node);
        if was_deaf && !self.is_deaf() {
            // The board may have missed changes meanwhile, as may reads in flight.
            self.connected_since = Some(now);
            self.look_at_all(now);
        }
    }

    /// Notes that the node sends no hints.
    pub(super) fn disconnected(&mut self, node: usize, now: Instant) {
        if !self.connected.has(node) {
            return;
        }
        self.connected.remove(node);
        if self.is_deaf() {
            for entry in self.entries.values_mut() {
                entry.may_miss = true;
            }
            self.look_at_all(now);
        }
    }

    fn look_at_all(&mut self, now: Instant) {
        let all: Vec<_> = self.entries.keys().cloned().collect();
        for id in all {
            self.arm(&id, now, false);
        }
        for group in &mut self.groups {
            group.due = now;
        }
    }

    /// Notes the result of a read that began at this time.
    pub(super) fn learn(
        &mut self,
        election: &ElectionId,
        read: Result<State, Error>,
        began: Instant,
        now: Instant,
    ) {
        let Some(id) = self.id(election) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.reading = false;
        let again = std::mem::take(&mut entry.again);
        match read {
            Ok(state) => self.found(&id, &state, again, began, now),
            Err(error) => {
                if let Some(since) = doubt(&mut entry.unconfirmed, &error, began) {
                    self.each_subscription(&id, |subscription, calls| {
                        subscription.doubt(since, &error, calls);
                    });
                }
                self.arm(&id, now + jittered(POLL_EVERY, 0.2), false);
            }
        }
        self.forget_if_idle(&id, now);
    }

    fn found(
        &mut self,
        id: &Arc<ElectionId>,
        state: &State,
        again: bool,
        began: Instant,
        now: Instant,
    ) {
        let look = self.next_look(now);
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let doubted = entry.unconfirmed.take().is_some();
        let until = state.lease().map(|lease| began + lease.remaining);
        let change = match &entry.known {
            None => Some((state.clone(), Cause::Present)),
            Some(known) => changed(known, state, entry.hinted, entry.since <= began, began),
        };
        let unexplained = entry
            .hinted
            .filter(|hinted| began < hinted.first || !explains(state, hinted));
        // A read that began before the hint cannot explain it.
        let again = again || unexplained.is_some_and(|hinted| began < hinted.first);
        let handed_over = matches!(change, Some((_, Cause::Handover)));
        match change {
            Some((state, cause)) => {
                let token = rank(&state).0;
                let first = entry.known.is_none();
                let others = entry.granted.is_some_and(|granted| granted.get() < token);
                let same_token = entry
                    .known
                    .as_ref()
                    .is_some_and(|it| rank(&it.state).0 == token);
                let hinted = entry.hinted;
                let announced = hinted.map(|hinted| hinted.first);
                // The table may have known the election before and forgotten it.
                let skipped = cause != Cause::RolledBack
                    && matches!(state, State::Vacant(_))
                    && entry
                        .known
                        .as_ref()
                        .is_some_and(|it| matches!(it.state, State::Vacant(_)));
                let hidden = entry.may_miss || others || skipped || (first && announced.is_none());
                let missed = hidden && !same_token;
                if !first {
                    self.totals.changes += 1;
                    self.totals.unannounced +=
                        u64::from(announced.is_none() && cause != Cause::Expiry);
                }
                let seen = Arc::new(Seen {
                    election: Arc::clone(id),
                    state,
                    until,
                    cause,
                    missed: missed && !first,
                    at: announced.unwrap_or(now),
                });
                entry.known = Some(Arc::clone(&seen));
                match (first, hinted) {
                    (false, _) => self.changes.push(Arc::clone(&seen)),
                    (true, None) => {}
                    // The state before is unknown, but the hint says that it has changed.
                    (true, Some(hinted)) => self.changes.push(Arc::new(Seen {
                        cause: cause_of(&seen.state, Some(hinted.cause), false)
                            .unwrap_or(Cause::Resign),
                        missed,
                        ..(*seen).clone()
                    })),
                }
                entry.since = now;
                entry.granted = None;
                self.report(id, |subscription, calls| match first {
                    true => subscription.discovered(&seen, missed, calls),
                    false => subscription.changed(&seen, calls),
                });
            }
            None => {
                if let Some(known) = &mut entry.known
                    && until.is_some()
                    && rank(&known.state) == rank(state)
                {
                    // Only the remaining time has changed.
                    *known = Arc::new(Seen {
                        state: state.clone(),
                        until,
                        ..(**known).clone()
                    });
                }
            }
        }
        let may_miss = self.is_deaf() || self.connected_since.is_some_and(|since| began < since);
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.may_miss = may_miss;
        if doubted {
            self.each_subscription(id, Subscription::trust);
        }
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let (at, lazy) = match unexplained {
            _ if again => (entry.allowance.next(now), false),
            Some(_) if entry.repeated < NOT_YET.len() => {
                let at = now + NOT_YET[entry.repeated];
                entry.repeated += 1;
                (entry.allowance.next(now).max(at), false)
            }
            _ => {
                (entry.hinted, entry.repeated) = (None, 0);
                match until {
                    Some(until) if until + PAST_THE_END <= now + EARLY => {
                        // Avoids reading a node with a slow clock in a busy loop.
                        ((until + PAST_THE_END).max(now + 2 * PAST_THE_END), false)
                    }
                    Some(until) => (look.min(until + PAST_THE_END), true),
                    None => (look, true),
                }
            }
        };
        let vacant = matches!(state, State::Vacant(_));
        self.arm(id, at, lazy);
        if vacant {
            self.serve(id, |_| true);
        } else if handed_over {
            // The new leader's own campaign succeeds and so reports the handover. Only after a handover: of two waiters
            // with one name, the second must not take over what the first was just granted.
            self.serve(id, |place| {
                let leader = state.lease().map(|lease| &lease.leader);
                leader == Some(place.candidate())
            });
        }
    }

    /// Gives the turn to the first of the queue that may claim.
    fn serve(&mut self, id: &Arc<ElectionId>, may: impl Fn(&Place) -> bool) {
        let listeners = self.listeners;
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.claiming {
            return;
        }
        if let Some(place) = entry.queue.iter().find(|place| may(place)) {
            entry.claiming = true;
            place.call(listeners);
            self.totals.claims += 1;
            self.disarm(id);
        }
    }

    /// Adds a waiter to the end of the queue. `lease` is what its claim lost to.
    pub(super) fn enqueue(
        &mut self,
        election: &ElectionId,
        place: Arc<Place>,
        lease: Lease,
        began: Instant,
        now: Instant,
    ) {
        let id = self.entry(election, now);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.queue.push_back(place);
            let later = entry.since > began;
            // The table may have forgotten the result of a later read.
            let old = began + REMEMBERED <= now;
            if !entry.is_busy() && !old {
                self.found(&id, &State::Held(lease), false, began, now);
            }
            if later || old {
                // The known state is newer, or hints since then were missed.
                self.arm(&id, now, false);
            }
        }
    }

    /// Ends the claim of the first of the queue, which stays there.
    pub(super) fn claimed(
        &mut self,
        election: &ElectionId,
        found: Result<Lease, Error>,
        began: Instant,
        now: Instant,
    ) {
        if let Some(entry) = self.entries.get_mut(election) {
            entry.claiming = false;
        }
        self.learn(election, found.map(State::Held), began, now);
    }

    /// Removes a waiter from the queue, and ends its claim if it has one.
    pub(super) fn leave(&mut self, election: &ElectionId, place: &Arc<Place>, now: Instant) {
        let Some(id) = self.id(election) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.queue.retain(|other| !Arc::ptr_eq(other, place));
        if place.is_called() && std::mem::take(&mut entry.claiming) {
            self.arm(&id, now, false);
        }
        self.forget_if_idle(&id, now);
    }

    /// The leader if the board knows it for sure, or the error that prevents that; [`None`] if none is known.
    pub(super) fn leader(
        &self,
        election: &ElectionId,
        now: Instant,
    ) -> Result<Option<Lease>, Error> {
        let Some(entry) = self.entries.get(election) else {
            return Ok(None);
        };
        if let Some((_, error)) = &entry.unconfirmed {
            return Err(error.clone());
        }
        let lease = entry.known.as_ref().and_then(|known| known.lease(now));
        Ok(lease.filter(|lease| !lease.remaining.is_zero()))
    }

    /// Adds an observation.
    pub(super) fn subscribe(&mut self, scope: Scope, now: Instant) -> Arc<Subscription> {
        self.next_subscription += 1;
        let subscription = Arc::new(Subscription::new(self.next_subscription, scope));
        let scope = subscription.scope();
        match scope {
            Scope::One(election) => {
                let id = self.entry(election, now);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry
                        .subscriptions
                        .insert(subscription.id(), Arc::clone(&subscription));
                    if let Some(seen) = &entry.known {
                        subscription.present(seen, &mut self.calls);
                        subscription.synced(&mut self.calls);
                    }
                    if let Some((since, error)) = &entry.unconfirmed {
                        subscription.doubt(*since, error, &mut self.calls);
                    }
                    if entry.known.is_none() {
                        self.arm(&id, now, false);
                    }
                }
            }
            _ => {
                let mut groups = self.groups.iter_mut();
                match groups.find(|group| group.scope == *scope) {
                    Some(group) => {
                        group
                            .subscriptions
                            .insert(subscription.id(), Arc::clone(&subscription));
                        if group.synced {
                            present(&self.entries, &subscription, &mut self.calls);
                        }
                        if let Some((since, error)) = &group.unconfirmed {
                            subscription.doubt(*since, error, &mut self.calls);
                        }
                    }
                    None => self.groups.push(Group {
                        scope: scope.clone(),
                        since: now,
                        subscriptions: [(subscription.id(), Arc::clone(&subscription))].into(),
                        synced: false,
                        listing: false,
                        due: now,
                        added: Allowance::new(ADDED_BY_HINTS, now),
                        unconfirmed: None,
                    }),
                }
                for (id, entry) in &self.entries {
                    if let Some((since, error)) = &entry.unconfirmed
                        && scope.covers(id)
                    {
                        subscription.doubt(*since, error, &mut self.calls);
                    }
                }
            }
        }
        subscription
    }

    /// Removes an observation, and the elections that nobody else observes or waits for.
    pub(super) fn unsubscribe(&mut self, subscription: &Subscription, now: Instant) {
        if let Scope::One(election) = subscription.scope() {
            if let Some(id) = self.id(election) {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.subscriptions.remove(&subscription.id());
                }
                self.forget_if_idle(&id, now);
            }
            return;
        }
        for group in &mut self.groups {
            group.subscriptions.remove(&subscription.id());
        }
        let before = self.groups.len();
        self.groups.retain(|group| !group.subscriptions.is_empty());
        if self.groups.len() < before {
            let all: Vec<_> = self.entries.keys().cloned().collect();
            for id in all {
                self.forget_if_idle(&id, now);
            }
        }
    }

    /// Notes the result of a listing that began at this time: all held elections of the scope, or an error.
    /// [`None`]: there are more than an observation may cover.
    pub(super) fn listed(
        &mut self,
        scope: &Scope,
        listed: Option<Result<Vec<(ElectionId, Lease)>, Error>>,
        began: Instant,
        now: Instant,
    ) {
        let look = self.next_look(now);
        let Some(place) = self.groups.iter().position(|group| group.scope == *scope) else {
            return;
        };
        let group = &mut self.groups[place];
        if began < group.since {
            // An earlier group of this scope requested it.
            return;
        }
        group.listing = false;
        group.due = group.due.min(look);
        let leases = match listed {
            Some(Ok(leases)) => leases,
            Some(Err(error)) => {
                group.due = group.due.min(now + jittered(POLL_EVERY, 0.2));
                if let Some(since) = doubt(&mut group.unconfirmed, &error, began) {
                    for subscription in group.subscriptions.values() {
                        subscription.doubt(since, &error, &mut self.calls);
                    }
                }
                return;
            }
            None => {
                for subscription in group.subscriptions.values() {
                    subscription.too_many(&mut self.calls);
                }
                return;
            }
        };
        if group.unconfirmed.take().is_some() {
            for subscription in group.subscriptions.values() {
                subscription.trust(&mut self.calls);
            }
        }
        let mut held = std::collections::HashSet::with_capacity(leases.len());
        for (election, lease) in leases {
            let id = self.entry(&election, now);
            let entry = self.entries.get(&id);
            // A read in flight supersedes the listing, but may end after the group is complete.
            if entry.is_some_and(|entry| entry.known.is_none() || !entry.is_busy()) {
                self.found(&id, &State::Held(lease), false, began, now);
            }
            held.insert(id);
        }
        // The other elections may be vacant, or the listing too old for them.
        let others: Vec<_> = self
            .entries
            .keys()
            .filter(|id| scope.covers(id) && !held.contains(*id))
            .cloned()
            .collect();
        for id in others {
            self.arm(&id, now, true);
        }
        let group = &mut self.groups[place];
        if !std::mem::replace(&mut group.synced, true) {
            for subscription in group.subscriptions.values() {
                present(&self.entries, subscription, &mut self.calls);
            }
        }
    }

    /// Reports a state to all observers of the election. A group receives none before all present states are known.
    fn report(&mut self, id: &Arc<ElectionId>, act: impl Fn(&Arc<Subscription>, &mut Calls)) {
        self.each_of(id, |group| group.synced, act);
    }

    fn each_subscription(
        &mut self,
        id: &Arc<ElectionId>,
        act: impl Fn(&Arc<Subscription>, &mut Calls),
    ) {
        self.each_of(id, |_| true, act);
    }

    fn each_of(
        &mut self,
        id: &Arc<ElectionId>,
        among: impl Fn(&Group) -> bool,
        act: impl Fn(&Arc<Subscription>, &mut Calls),
    ) {
        if let Some(entry) = self.entries.get(id) {
            for subscription in entry.subscriptions.values() {
                act(subscription, &mut self.calls);
            }
        }
        let groups = self.groups.iter().filter(|group| among(group));
        for group in groups.filter(|group| group.scope.covers(id)) {
            for subscription in group.subscriptions.values() {
                act(subscription, &mut self.calls);
            }
        }
    }

    /// Forgets an election that is of no interest. Elections that are held, not read yet, or were held a short time ago
    /// are of interest to their groups.
    fn forget_if_idle(&mut self, id: &Arc<ElectionId>, now: Instant) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let over = entry.since + REMEMBERED <= now;
        let settled = matches!(
            &entry.known,
            Some(seen) if seen.until.is_none() && (over || seen.cause == Cause::Present)
        ) && entry.hinted.is_none()
            && entry.unconfirmed.is_none();
        let grouped = || self.groups.iter().any(|group| group.scope.covers(id));
        let wanted =
            !entry.queue.is_empty() || !entry.subscriptions.is_empty() || (!settled && grouped());
        if !wanted {
            // If the election is in doubt, no observer is left to receive the end of the doubt.
            self.disarm(id);
            self.entries.remove(id);
        }
    }
}

/// Reports all present states to an observer of a group.
fn present(
    entries: &HashMap<Arc<ElectionId>, Entry>,
    subscription: &Arc<Subscription>,
    calls: &mut Calls,
) {
    let covered = entries
        .iter()
        .filter(|(id, _)| subscription.scope().covers(id));
    for (_, entry) in covered {
        if let Some(seen) = entry.known.as_ref().filter(|seen| seen.until.is_some()) {
            subscription.present(seen, calls);
        }
    }
    subscription.synced(calls);
}

/// The order of states: by token, and a vacancy after the term of the same token.
fn rank(state: &State) -> (u64, bool) {
    match state {
        State::Held(lease) => (lease.token.get(), false),
        State::Vacant(token) => (token.map_or(0, Token::get), true),
    }
}

/// Whether the state is what the hints announce, or later.
fn explains(state: &State, hinted: &Hinted) -> bool {
    let (token, vacant) = rank(state);
    let hinted_token = hinted.token.get();
    match hinted.cause {
        hint::Cause::Campaign | hint::Cause::Handover => token >= hinted_token,
        hint::Cause::Resign => token > hinted_token || vacant,
        // Both may change nothing.
        hint::Cause::RolledBack | hint::Cause::Repaired => true,
    }
}

/// Why an election entered this state, as far as a hint or the end of the term shows.
fn cause_of(state: &State, hinted: Option<hint::Cause>, is_over: bool) -> Option<Cause> {
    match (state, hinted) {
        (State::Held(_), Some(hint::Cause::Handover)) => Some(Cause::Handover),
        (State::Held(_), _) => Some(Cause::Campaign),
        (State::Vacant(_), Some(hint::Cause::RolledBack)) => Some(Cause::RolledBack),
        (State::Vacant(_), Some(hint::Cause::Resign)) => Some(Cause::Resign),
        (State::Vacant(_), _) => is_over.then_some(Cause::Expiry),
    }
}

/// The change that a read shows: the state to report and its cause.
fn changed(
    known: &Seen,
    state: &State,
    hinted: Option<Hinted>,
    is_later: bool,
    began: Instant,
) -> Option<(State, Cause)> {
    let (before, after) = (rank(&known.state), rank(state));
    let hinted = hinted
        .filter(|hinted| [before.0, after.0].contains(&hinted.token.get()))
        .map(|hinted| hinted.cause);
    let is_over = known.until.is_some_and(|until| until <= began);
    let cause = cause_of(state, hinted, is_over);
    match (state, &known.state) {
        _ if after == before => None,
        // Also between two vacancies: a leader in between left before the read.
        _ if after > before => Some((state.clone(), cause.unwrap_or(Cause::Resign))),
        // The nodes have forgotten the last term: the election is as vacant as before.
        (State::Vacant(_), State::Vacant(_)) => None,
        // The read began before the known state was learnt.
        _ if !is_later => None,
        (State::Held(_), _) => Some((state.clone(), Cause::RolledBack)),
        // The nodes know no token, or only lower ones. The reported token stays the highest.
        (State::Vacant(_), State::Held(lease)) => Some((
            State::Vacant(Some(lease.token)),
            cause.unwrap_or(Cause::RolledBack),
        )),
    }
}

/// `time`, randomly varied by up to `share` in both directions.
fn jittered(time: Duration, share: f64) -> Duration {
    time.mul_f64(1.0 - share + 2.0 * share * fastrand::f64())
}
