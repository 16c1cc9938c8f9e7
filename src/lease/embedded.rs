//! The in-process node: the default store, the executable specification of [`LeaseNode`], and the
//! node that fault tests simulate.
//!
//! All state lives in memory behind one lock that is never held across an await. With a database file
//! (`EA_EMBEDDED_PATH`) every change that a reply depends on is also on disk before the reply is sent;
//! see [`log`].

mod log;

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Extend, ExtendReply, Grant, GrantReply, Heal, LIST_EXAMINES, Lease, LeaseNode, NodeError, Over,
    Page, Probe, Resign, ResignReply, Settings, Unmarked,
};
use crate::election::types::{Candidate, ElectionId, Kind, RequestId, Token, Value};
use log::{Change, Log, Record};

/// How many leases and floors a grant looks at to drop those that are over. More than one, so that
/// what is over goes faster than what is new comes.
const SWEEP: usize = 4;

/// Leases in this process's memory, durable when opened on a file.
#[derive(Debug)]
pub struct Embedded {
    name: String,
    /// Names this run, which has all its memory.
    run: String,
    settings: Settings,
    state: Mutex<State>,
    log: Option<Log>,
}

#[derive(Debug, Clone, Default)]
struct State {
    leases: BTreeMap<Box<str>, Held>,
    floors: BTreeMap<Box<str>, Floor>,
    marker: Option<Marker>,
    /// Number of the last change handed to the log.
    sequence: u64,
    swept_lease: Option<Box<str>>,
    swept_floor: Option<Box<str>>,
}

#[derive(Debug, Clone)]
struct Held {
    leader: Candidate,
    token: Token,
    value: Value,
    request_id: Option<RequestId>,
    elected_at: u64,
    expires: Instant,
    /// The term that the log has for this lease: what it counts for after a restart.
    logged_term: Duration,
    /// The grant that may still be withdrawn. Not in the log: withdrawals do not outlive the process.
    attempt: Option<Attempt>,
}

/// A grant that nobody has made use of yet.
#[derive(Debug, Clone)]
struct Attempt {
    name: u64,
    /// The lease that it replaced or renewed, to go back to.
    before: Option<Box<Held>>,
}

#[derive(Debug, Clone)]
struct Floor {
    token: Token,
    expires: Instant,
    /// The last change to this election: replies that saw it wait until it is on disk.
    sequence: u64,
}

#[derive(Debug, Clone, Copy)]
struct Marker {
    ready_at: Instant,
    /// Whether the log has it as waiting.
    logged_waiting: bool,
}

impl Embedded {
    /// A node that forgets everything with the process.
    #[must_use]
    pub fn in_memory(settings: Settings) -> Self {
        Self {
            name: "in-process".to_owned(),
            run: new_run(),
            settings,
            state: Mutex::default(),
            log: None,
        }
    }

    /// A node in memory with what this one has now, as a server has it that was restarted from a copy of its
    /// data: in another run, so it abstains from grants.
    #[must_use]
    pub fn restored(&self) -> Self {
        let mut state = self.lock().clone();
        if let (Some(marker), Some(guard)) = (&mut state.marker, self.settings.guard) {
            marker.ready_at = Instant::now() + guard;
        }
        Self {
            name: self.name.clone(),
            run: new_run(),
            settings: self.settings,
            state: Mutex::new(state),
            log: None,
        }
    }

    /// A node that keeps grants and resignations in the database file at `path`, made if missing.
    ///
    /// Renewals are not written, so every stored lease counts as renewed for its full term just now:
    /// its leader may have been told so before the process died.
    ///
    /// # Errors
    /// Says what is wrong with the file: another agent has it open, it is no database of this kind, or
    /// it cannot be read or written.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, NodeError> {
        let (log, stored) = Log::open(path)?;
        let now = Instant::now();
        let mut state = State::default();
        for (election, record) in stored.elections {
            let floor = record.floor()?;
            if let Some(lease) = record.lease {
                let term = Duration::from_millis(lease.term_ms);
                let held = Held {
                    leader: lease.leader()?,
                    token: lease.token()?,
                    value: lease.value()?,
                    request_id: lease.request_id()?,
                    elected_at: lease.elected_at,
                    expires: now + term,
                    logged_term: term,
                    attempt: None,
                };
                state.leases.insert(election.clone(), held);
            }
            let floor = Floor {
                token: floor,
                expires: state.leases.get(&election).map_or(now, |held| held.expires)
                    + settings.retention,
                sequence: 0,
            };
            state.floors.insert(election, floor);
        }
        state.marker = stored.marker_wait.map(|wait| Marker {
            ready_at: now + wait,
            logged_waiting: !wait.is_zero(),
        });
        Ok(Self {
            name: format!("in-process ({})", path.display()),
            run: new_run(),
            settings,
            state: Mutex::new(state),
            log: Some(log),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every operation leaves the state whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the election's present state to the log.
    fn log(&self, state: &mut State, election: &str) {
        let Some(log) = &self.log else { return };
        state.sequence += 1;
        let sequence = state.sequence;
        let record = state.floors.get_mut(election).map(|floor| {
            floor.sequence = sequence;
            Record::new(floor.token, state.leases.get(election))
        });
        log.append(sequence, Change::Election(election.into(), record));
    }

    /// Raises the floor to the token, and keeps it for the retention after the term.
    fn keep_floor(&self, state: &mut State, election: &ElectionId, token: Token, now: Instant) {
        let term = state.held(election, now).map_or(now, |held| held.expires);
        let expires = term + self.settings.retention;
        if let Some(floor) = state.floors.get_mut(election.path()) {
            floor.token = floor.token.max(token);
            floor.expires = floor.expires.max(expires);
            return;
        }
        let floor = Floor {
            token,
            expires,
            sequence: 0,
        };
        state.floors.insert(election.path().into(), floor);
    }

    fn log_marker(&self, state: &mut State, wait: Duration) {
        let Some(log) = &self.log else { return };
        state.sequence += 1;
        log.append(state.sequence, Change::Marker(wait));
    }

    /// Waits until the change is on disk.
    async fn settled(&self, sequence: u64) -> Result<(), NodeError> {
        match &self.log {
            Some(log) => log.settled(sequence).await,
            None => Ok(()),
        }
    }

    fn sweep(&self, state: &mut State, now: Instant) {
        let over = next_after(&state.leases, state.swept_lease.take());
        state.swept_lease = over.last().cloned();
        for election in over {
            if state
                .leases
                .get(&election)
                .is_some_and(|held| held.expires <= now)
            {
                state.leases.remove(&election);
                self.log(state, &election);
            }
        }
        let over = next_after(&state.floors, state.swept_floor.take());
        state.swept_floor = over.last().cloned();
        for election in over {
            let expired = state
                .floors
                .get(&election)
                .is_some_and(|floor| floor.expires <= now);
            if expired && !state.leases.contains_key(&election) {
                state.floors.remove(&election);
                self.log(state, &election);
            }
        }
    }
}

fn new_run() -> String {
    fastrand::u64(..).to_string()
}

fn next_after<T>(map: &BTreeMap<Box<str>, T>, after: Option<Box<str>>) -> Vec<Box<str>> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    map.range((from, Bound::Unbounded))
        .take(SWEEP)
        .map(|(election, _)| election.clone())
        .collect()
}

impl State {
    fn held(&self, election: &ElectionId, now: Instant) -> Option<&Held> {
        self.leases
            .get(election.path())
            .filter(|held| held.expires > now)
    }

    fn held_mut(&mut self, election: &ElectionId, now: Instant) -> Option<&mut Held> {
        self.leases
            .get_mut(election.path())
            .filter(|held| held.expires > now)
    }

    fn floor(&self, election: &ElectionId, now: Instant) -> Option<Token> {
        self.floors
            .get(election.path())
            .filter(|floor| floor.expires > now)
            .map(|floor| floor.token)
    }

    fn last_change(&self, election: &ElectionId) -> u64 {
        self.floors
            .get(election.path())
            .map_or(0, |floor| floor.sequence)
    }
}

impl Held {
    fn lease(&self, now: Instant) -> Lease {
        Lease {
            leader: self.leader.clone(),
            token: self.token,
            value: self.value.clone(),
            elected_at: self.elected_at,
            remaining: self.expires - now,
        }
    }

    /// Whether the log must learn of the longer term: it would count for too little after a restart.
    fn renew(&mut self, now: Instant, term: Duration) -> bool {
        self.expires = self.expires.max(now + term);
        let outgrown = term > self.logged_term;
        self.logged_term = self.logged_term.max(term);
        outgrown
    }
}

#[async_trait]
impl LeaseNode for Embedded {
    fn name(&self) -> &str {
        &self.name
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let (reply, sequence) = {
            let mut state = self.lock();
            let reply = self.grant_now(&mut state, grant, Instant::now());
            let sequence = match reply {
                GrantReply::Guarded(_) | GrantReply::Unmarked => 0,
                _ => state.last_change(&grant.election),
            };
            (reply, sequence)
        };
        self.settled(sequence).await?;
        Ok(reply)
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let (reply, sequence) = {
            let mut state = self.lock();
            let now = Instant::now();
            let mut outgrown = false;
            let reply = match state.held_mut(&extend.election, now) {
                None => ExtendReply::Missing,
                Some(held) if held.leader != extend.leader => ExtendReply::Held,
                Some(held) if extend.token.is_some_and(|token| token < held.token) => {
                    ExtendReply::Stale
                }
                Some(held) if extend.token.is_some_and(|token| token > held.token) => {
                    ExtendReply::Behind
                }
                Some(held) => {
                    outgrown = held.renew(now, extend.term.duration());
                    held.attempt = None;
                    ExtendReply::Renewed(held.token)
                }
            };
            if let ExtendReply::Renewed(token) = reply {
                self.keep_floor(&mut state, &extend.election, token, now);
            }
            if outgrown {
                self.log(&mut state, extend.election.path());
            }
            (reply, state.last_change(&extend.election))
        };
        self.settled(sequence).await?;
        Ok(reply)
    }

    async fn heal(&self, heal: &Heal) -> Result<bool, NodeError> {
        let (healed, sequence) = {
            let mut state = self.lock();
            let now = Instant::now();
            let election = &heal.election;
            let lease = &heal.lease;
            let above_floor = state
                .floor(election, now)
                .is_none_or(|floor| lease.token >= floor);
            let held = state.held(election, now);
            let free =
                held.is_none_or(|held| held.leader == lease.leader && held.token <= lease.token);
            let settled = self.settings.guard.is_none() || state.marker.is_some();
            let there = held.is_some() || !heal.existing;
            let healed = above_floor && free && there && settled && heal.run == self.run;
            if healed {
                let left = held.map_or(Duration::ZERO, |held| held.expires - now);
                let term = heal.term.duration().max(left);
                let held = Held {
                    leader: lease.leader.clone(),
                    token: lease.token,
                    value: lease.value.clone(),
                    request_id: held
                        .filter(|held| held.token == lease.token)
                        .and_then(|held| held.request_id.clone()),
                    elected_at: lease.elected_at,
                    expires: now + term,
                    logged_term: term,
                    attempt: None,
                };
                state.leases.insert(election.path().into(), held);
                self.keep_floor(&mut state, election, lease.token, now);
                self.log(&mut state, election.path());
            }
            (healed, state.last_change(election))
        };
        self.settled(sequence).await?;
        Ok(healed)
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let (reply, sequence) = {
            let mut state = self.lock();
            let reply = match state.held(&resign.election, Instant::now()) {
                None => ResignReply::Missing,
                Some(held) if held.leader != resign.leader => ResignReply::Held,
                Some(held) if resign.token.is_some_and(|token| token != held.token) => {
                    ResignReply::Stale
                }
                Some(_) => {
                    state.leases.remove(resign.election.path());
                    self.log(&mut state, resign.election.path());
                    ResignReply::Resigned
                }
            };
            (reply, state.last_change(&resign.election))
        };
        self.settled(sequence).await?;
        Ok(reply)
    }

    async fn withdraw(&self, grant: &Grant) -> Result<(), NodeError> {
        let election = &grant.election;
        let sequence = {
            let mut state = self.lock();
            let now = Instant::now();
            let withdrawn = state
                .held(election, now)
                .and_then(|held| held.attempt.clone())
                .filter(|attempt| attempt.name == grant.attempt);
            if let Some(withdrawn) = withdrawn {
                match withdrawn.before.filter(|before| before.expires > now) {
                    Some(before) => state.leases.insert(election.path().into(), *before),
                    None => state.leases.remove(election.path()),
                };
            }
            self.keep_floor(&mut state, election, grant.token, now);
            self.log(&mut state, election.path());
            state.last_change(election)
        };
        self.settled(sequence).await
    }

    async fn read(&self, election: &ElectionId) -> Result<Option<Lease>, NodeError> {
        let (lease, sequence) = {
            let state = self.lock();
            let now = Instant::now();
            let lease = state.held(election, now).map(|held| held.lease(now));
            (lease, state.last_change(election))
        };
        self.settled(sequence).await?;
        Ok(lease)
    }

    async fn list(
        &self,
        kind: &Kind,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let (page, sequence) = {
            let state = self.lock();
            let now = Instant::now();
            let prefix = format!("{}/", kind.as_str());
            let from = after.map_or(prefix.as_str(), ElectionId::path);
            let mut page = Page::default();
            for (examined, (path, held)) in state
                .leases
                .range::<str, _>((Bound::Excluded(from), Bound::Unbounded))
                .take_while(|(path, _)| path.starts_with(&prefix))
                .enumerate()
            {
                let election = ElectionId::from_path(path).map_err(NodeError::unknown)?;
                if held.expires > now {
                    page.leases.push((election.clone(), held.lease(now)));
                }
                if page.leases.len() == limit || examined + 1 == LIST_EXAMINES {
                    page.next = Some(election);
                    break;
                }
            }
            (page, state.sequence)
        };
        self.settled(sequence).await?;
        Ok(page)
    }

    async fn mark(&self, unmarked: &[Unmarked], wait: Duration) -> Result<usize, NodeError> {
        let (written, sequence) = {
            let mut state = self.lock();
            let of_this_run = unmarked.iter().any(|part| part.run == self.run);
            let written = state.marker.is_none() && of_this_run;
            if written {
                state.marker = Some(Marker {
                    ready_at: Instant::now() + wait,
                    logged_waiting: !wait.is_zero(),
                });
                self.log_marker(&mut state, wait);
            }
            (written, state.sequence)
        };
        self.settled(sequence).await?;
        Ok(usize::from(written))
    }

    async fn probe(&self) -> Result<Probe, NodeError> {
        let guard = {
            let state = self.lock();
            let now = Instant::now();
            state
                .marker
                .map(|marker| marker.ready_at.saturating_duration_since(now))
        };
        // A log that cannot be written shows here, before a request meets it.
        self.settled(0).await?;
        let unmarked = Unmarked {
            partition: 0,
            run: self.run.clone(),
        };
        Ok(Probe {
            guard,
            unmarked: match guard {
                Some(_) => Vec::new(),
                None => vec![unmarked],
            },
            longest_guard: self.settings.guard.unwrap_or_default(),
            identity: None,
            unfit: None,
            degraded: None,
        })
    }

    fn settled_run(&self, _election: &ElectionId, vote: Duration) -> Option<String> {
        let settled = match self.settings.guard {
            None => true,
            Some(guard) => self.lock().marker.is_some_and(|marker| {
                let left = marker.ready_at.saturating_duration_since(Instant::now());
                left + vote <= guard || left.is_zero()
            }),
        };
        settled.then(|| self.run.clone())
    }
}

impl Embedded {
    fn grant_now(&self, state: &mut State, grant: &Grant, now: Instant) -> GrantReply {
        let election = &grant.election;
        let held = state.held(election, now);
        let own = held.filter(|held| held.leader == grant.candidate);
        match (held, &grant.over) {
            (None, _) | (_, Over::Anyone) => {}
            (Some(_), Over::Own) if own.is_some() => {}
            (Some(held), Over::Leader(leader, token)) if held.leader == *leader => {
                if token.is_some_and(|token| token != held.token) {
                    return GrantReply::TokenMismatch;
                }
            }
            (Some(held), _) => return GrantReply::Held(held.lease(now)),
        }

        if self.settings.guard.is_some() {
            match state.marker {
                None => return GrantReply::Unmarked,
                Some(marker) if now < marker.ready_at => {
                    return GrantReply::Guarded(marker.ready_at - now);
                }
                Some(_) => {}
            }
        }

        let attempt = Attempt {
            name: grant.attempt,
            before: held.map(|held| {
                Box::new(Held {
                    attempt: None,
                    ..held.clone()
                })
            }),
        };
        let repeated = own
            .filter(|held| {
                grant.repeat && grant.request_id.is_some() && held.request_id == grant.request_id
            })
            .map(|held| held.token);
        let left = own.map_or(Duration::ZERO, |held| held.expires - now);
        if let Some(token) = repeated {
            let outgrown = state.held_mut(election, now).is_some_and(|held| {
                // A grant that comes twice goes back to what there was before its first coming.
                held.attempt = held
                    .attempt
                    .take()
                    .filter(|earlier| earlier.name == attempt.name)
                    .or(Some(attempt));
                held.renew(now, grant.term.duration())
            });
            if outgrown {
                self.log(state, election.path());
            }
            return GrantReply::Granted(token);
        }

        if let Some(floor) = state.floor(election, now)
            && grant.token <= floor
        {
            return GrantReply::Stale(floor);
        }

        let term = grant.term.duration().max(left);
        let held = Held {
            leader: grant.candidate.clone(),
            token: grant.token,
            value: grant.value.clone(),
            request_id: grant.request_id.clone(),
            elected_at: grant.elected_at,
            expires: now + term,
            logged_term: term,
            attempt: Some(attempt),
        };
        state.leases.insert(election.path().into(), held);
        self.keep_floor(state, election, grant.token, now);
        self.log(state, election.path());
        if let Some(marker) = &mut state.marker
            && marker.logged_waiting
        {
            marker.logged_waiting = false;
            self.log_marker(state, Duration::ZERO);
        }
        self.sweep(state, now);
        GrantReply::Granted(grant.token)
    }
}
