//! The in-process node: the default store, the executable specification of [`LeaseNode`], and the node that fault tests
//! simulate.
//!
//! All state lives in [memory](super::memory) behind one lock that is never held across an await. With a database file,
//! every change that a reply depends on is also on disk before the reply is sent; see [`log`].

mod clock;
mod file;
mod generation;
mod log;
pub mod restore;
mod rollback;
mod store;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use redb::backends::FileBackend;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, timeout},
};

use super::{
    Bounds, Extend, ExtendReply, Grant, GrantReply, Hint, Incarnation, Kinds, LeaseNode, Listener,
    NodeError, Page, Probe, ProbeRequest, Reading, Repair, Replaces, Resign, ResignReply, Settings,
    Unrecorded, hint::Cause, memory::Memory,
};
use crate::types::{ElectionId, Kind, Token};
use clock::Clock;
use log::{Change, Log, Record};

/// Returns the node's time; tests supply their own clock.
pub type NodeClock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// The names that errors and logs use for settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The path of the database.
    pub path: &'static str,
    /// The restart guard, which `off` turns off.
    pub restart_guard: &'static str,
    /// The longest term that is granted.
    pub max_term: &'static str,
}

impl Names {
    /// An error text about the database that starts with the setting's name.
    fn wrong(self, what: impl fmt::Display) -> String {
        format!("{}: {what}", self.path)
    }
}

/// Leases in this process's memory, durable when opened on a file.
pub struct Embedded {
    name: String,
    settings: Settings,
    clock: NodeClock,
    state: Mutex<State>,
    log: Option<Log>,
    hints: broadcast::Sender<Hint>,
}

/// How many hints wait for a slow listener before it misses some and has to listen anew.
const HINTS: usize = 1024;
/// How often the node confirms to a listener that it still reports changes.
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct State {
    memory: Memory,
    /// When this incarnation began.
    began: Instant,
    /// Number of the last change handed to the log.
    sequence: u64,
    /// The last change to each election: replies that saw it wait until it is on disk.
    changed: HashMap<Box<str>, u64>,
    /// Until when the node is in quarantine according to the log, when the log has an incarnation record.
    logged: Option<Option<Instant>>,
}

impl State {
    fn new(memory: Memory) -> Self {
        Self {
            memory,
            began: Instant::now(),
            sequence: 0,
            changed: HashMap::new(),
            logged: None,
        }
    }
}

impl Embedded {
    /// A node that loses everything when the process ends.
    #[must_use]
    pub fn in_memory(settings: Settings) -> Self {
        Self::with_clock(settings, Arc::new(Instant::now))
    }

    /// A node that loses everything when the process ends, and whose clock is this one.
    #[must_use]
    pub fn with_clock(settings: Settings, clock: NodeClock) -> Self {
        Self {
            name: "in-process".to_owned(),
            settings,
            clock,
            state: Mutex::new(State::new(Memory::new(new_incarnation()))),
            log: None,
            hints: broadcast::Sender::new(HINTS),
        }
    }

    /// A node in memory with this one's present content, like a server that was restarted from a copy of its data: in
    /// another incarnation, and so in quarantine.
    #[must_use]
    pub fn restored(&self) -> Self {
        let mut memory = self.lock().memory.clone();
        memory.incarnation = new_incarnation();
        Self {
            name: self.name.clone(),
            settings: self.settings,
            clock: Arc::clone(&self.clock),
            state: Mutex::new(State::new(memory)),
            log: None,
            hints: broadcast::Sender::new(HINTS),
        }
    }

    /// A node that keeps grants and resignations in the database file at `path`, which it creates if missing.
    ///
    /// Only the first renewal of a lease after an opening is written. A stored lease therefore counts as renewed for
    /// its full term at the opening that followed: its leader may have had that reply before the process died. Further
    /// restarts do not renew it again.
    ///
    /// The file `<path>.generation` beside it shows whether the database is older than what was promised. If it may be,
    /// the node is in quarantine for the longest guard or term that was ever used on it and may still count; see
    /// [`rollback`].
    ///
    /// While the file cannot be written, as on a full disk, the node refuses grants and probes, fails operations that
    /// must write, and serves the rest. It recovers by itself when writing works again.
    ///
    /// # Errors
    /// Describes what is wrong with the file: another agent has it open, it is no database of this kind, or it or the
    /// file beside it cannot be read or written.
    pub fn open(path: &Path, settings: Settings, names: Names) -> Result<Self, NodeError> {
        Self::open_at(path, settings, names, Clock::system(), |file| {
            Box::new(file)
        })
    }

    fn open_at(
        path: &Path,
        settings: Settings,
        names: Names,
        clock: Clock,
        backend: impl FnOnce(FileBackend) -> store::Backend,
    ) -> Result<Self, NodeError> {
        let (log, mut stored) = Log::open(path, settings.guard, names, clock, backend)?;
        let now = Instant::now();
        let mut memory = Memory::new(new_incarnation());
        for (election, record) in std::mem::take(&mut stored.elections) {
            let (held, high_water_mark) = stored.restore(&record, now, settings.retention)?;
            if let Some(held) = held {
                memory.leases.insert(election.clone(), held);
            }
            memory.high_water_marks.insert(election, high_water_mark);
        }
        if let Some(wait) = stored.quarantine {
            let bounds = Bounds {
                guard: settings.guard,
                vote: settings.vote,
            };
            memory.mark(wait, bounds, now);
            if let Some(record) = &mut memory.record {
                record.began_before(now);
            }
        }
        let mut state = State::new(memory);
        state.logged = state.memory.record.map(|record| record.ready_at());
        Ok(Self {
            name: format!("in-process ({})", path.display()),
            settings,
            clock: Arc::new(Instant::now),
            state: Mutex::new(state),
            log: Some(log),
            hints: broadcast::Sender::new(HINTS),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every operation leaves the state whole before anything that could panic.
        self.state.lock()
    }

    /// Runs an operation, hands its changes to the log, and waits until everything that its reply may have seen is on
    /// disk: the last change to the election, or without one the last change of all.
    async fn run<T>(
        &self,
        election: Option<&ElectionId>,
        operation: impl FnOnce(&mut Memory, Instant) -> T,
    ) -> Result<T, NodeError> {
        let (reply, sequence) = {
            let mut state = self.lock();
            let reply = operation(&mut state.memory, (self.clock)());
            self.log_changes(&mut state);
            let sequence = match election {
                Some(election) => state.changed.get(election.path()).copied(),
                None => Some(state.sequence),
            };
            (reply, sequence.unwrap_or_default())
        };
        if let Some(log) = &self.log {
            log.settled(sequence).await?;
        }
        Ok(reply)
    }

    /// Like [`run`](Self::run), for an operation that may change who leads: reports it to the listeners. The token is
    /// that of the lease after a grant or a repair, else the one before.
    async fn change<T>(
        &self,
        election: &ElectionId,
        cause: Cause,
        operation: impl FnOnce(&mut Memory, Instant) -> T,
    ) -> Result<T, NodeError> {
        let mut tokens = (None, None);
        let listened = self.hints.receiver_count() > 0;
        let reply = self
            .run(Some(election), |memory, now| {
                let token = |memory: &Memory| match listened {
                    true => memory.token(election, now),
                    false => None,
                };
                let before = token(memory);
                let reply = operation(memory, now);
                tokens = (before, token(memory));
                reply
            })
            .await;
        let (before, after): (Option<Token>, Option<Token>) = tokens;
        let token = match cause {
            Cause::Resign | Cause::RolledBack => before,
            Cause::Campaign | Cause::Handover | Cause::Repaired => after,
        };
        if let Some(token) = token.filter(|_| before != after) {
            // An error means that the last listener has gone.
            let _ = self.hints.send(Hint {
                election: election.clone(),
                cause,
                token,
            });
        }
        reply
    }

    /// Whether writes succeed, as far as is known.
    fn writable(&self) -> Result<(), NodeError> {
        self.log.as_ref().map_or(Ok(()), Log::writable)
    }

    fn log_changes(&self, state: &mut State) {
        let changed = std::mem::take(&mut state.memory.changed);
        let Some(log) = &self.log else { return };
        for election in changed {
            state.sequence += 1;
            let sequence = state.sequence;
            let high_water_mark = state.memory.high_water_marks.get(&election);
            let held = state.memory.leases.get(&election);
            let record = high_water_mark
                .map(|high_water_mark| Record::new(high_water_mark, held, log.opening()));
            match record {
                Some(_) => state.changed.insert(election.clone(), sequence),
                None => state.changed.remove(&election),
            };
            log.append(sequence, Change::Election(election, record));
        }
        let record = state.memory.record;
        let ready_at = record.map(|record| record.ready_at());
        if let Some(record) = record
            && ready_at != state.logged
        {
            state.sequence += 1;
            state.logged = ready_at;
            let left = record.left((self.clock)());
            log.append(state.sequence, log.incarnation_record(left));
        }
    }

    fn is_guarded(&self) -> bool {
        self.settings.guard.is_some()
    }
}

fn new_incarnation() -> u64 {
    fastrand::u64(..)
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[async_trait]
impl LeaseNode for Embedded {
    fn name(&self) -> &str {
        &self.name
    }

    async fn grant(&self, grant: &Grant) -> Result<GrantReply, NodeError> {
        let retention = self.settings.retention;
        if let Err(unwritable) = self.writable() {
            let now = (self.clock)();
            // A refusal because of another candidate's lease needs no write.
            if self.lock().memory.in_the_way(grant, now).is_none() {
                return Err(unwritable);
            }
        }
        let cause = match grant.replaces {
            Replaces::Own => Cause::Campaign,
            _ => Cause::Handover,
        };
        self.change(&grant.election, cause, |memory, now| {
            memory.grant(grant, retention, now)
        })
        .await
    }

    async fn extend(&self, extend: &Extend) -> Result<ExtendReply, NodeError> {
        let (retention, guarded) = (self.settings.retention, self.is_guarded());
        self.run(Some(&extend.election), |memory, now| {
            memory.extend(extend, retention, guarded, now)
        })
        .await
    }

    async fn extend_many(&self, extends: &[Arc<Extend>]) -> Vec<Result<ExtendReply, NodeError>> {
        let (retention, guarded) = (self.settings.retention, self.is_guarded());
        // The log is awaited once for all.
        let replies = self
            .run(None, |memory, now| {
                let each = |extend: &Arc<Extend>| memory.extend(extend, retention, guarded, now);
                extends.iter().map(each).collect::<Vec<_>>()
            })
            .await;
        match replies {
            Ok(replies) => replies.into_iter().map(Ok).collect(),
            Err(error) => extends.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn repair(&self, repair: &Repair) -> Result<bool, NodeError> {
        let retention = self.settings.retention;
        self.change(&repair.election, Cause::Repaired, |memory, now| {
            memory.repair(repair, retention, now)
        })
        .await
    }

    async fn resign(&self, resign: &Resign) -> Result<ResignReply, NodeError> {
        let (retention, guarded) = (self.settings.retention, self.is_guarded());
        self.change(&resign.election, Cause::Resign, |memory, now| {
            memory.resign(resign, retention, guarded, now)
        })
        .await
    }

    async fn roll_back(&self, grant: &Grant) -> Result<(), NodeError> {
        let settings = self.settings;
        self.change(&grant.election, Cause::RolledBack, |memory, now| {
            memory.roll_back(grant, settings.vote, now);
        })
        .await
    }

    async fn read(&self, election: &ElectionId) -> Result<Reading, NodeError> {
        let guarded = self.is_guarded();
        self.run(Some(election), |memory, now| {
            memory.read(election, guarded, now)
        })
        .await
    }

    async fn list(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        self.run(None, |memory, now| memory.list(kind, after, limit, now))
            .await
    }

    async fn kinds(&self, after: Option<&Kind>, limit: usize) -> Result<Kinds, NodeError> {
        self.run(None, |memory, now| memory.kinds(after, limit, now))
            .await
    }

    async fn mark(
        &self,
        unrecorded: &[Unrecorded],
        wait: Duration,
        bounds: Bounds,
    ) -> Result<usize, NodeError> {
        let written = self
            .run(None, |memory, now| {
                let incarnation = memory.incarnation.to_string();
                let of_this = unrecorded
                    .iter()
                    .any(|part| part.incarnation == incarnation);
                of_this && memory.mark(wait, bounds, now)
            })
            .await?;
        Ok(usize::from(written))
    }

    async fn probe(&self, request: ProbeRequest) -> Result<Probe, NodeError> {
        // Reports a log that cannot be written before a request fails on it. Requests that need no write are served
        // anyway: the quorum still calls a node that fails probes.
        self.writable()?;
        let ((guard, longest_guard, longest_vote), incarnation) = self
            .run(None, |memory, now| {
                (memory.probe(request, now), memory.incarnation.to_string())
            })
            .await?;
        Ok(Probe {
            guard,
            unrecorded: match guard {
                Some(_) => Vec::new(),
                None => vec![Unrecorded {
                    partition: 0,
                    incarnation,
                }],
            },
            longest_guard,
            longest_vote,
            ..Probe::default()
        })
    }

    async fn listen(&self, listener: &dyn Listener) -> NodeError {
        let mut hints = self.hints.subscribe();
        loop {
            listener.connected(self.hints.receiver_count());
            match timeout(CONFIRM_EVERY, hints.recv()).await {
                Ok(Ok(hint)) => listener.hinted(hint),
                Ok(Err(RecvError::Closed)) => return NodeError::unknown("the node is gone"),
                Ok(Err(RecvError::Lagged(missed))) => {
                    return NodeError::unknown(format!("{missed} changes were missed"));
                }
                Err(_) => {}
            }
        }
    }

    fn incarnation(&self, _election: &ElectionId) -> Option<Incarnation> {
        let state = self.lock();
        let known = !self.is_guarded() || state.memory.record.is_some();
        known.then(|| Incarnation {
            id: state.memory.incarnation.to_string(),
            seen: state.began,
        })
    }
}
