//! What the durable in-process node keeps on disk, and how replies wait for it.
//!
//! One thread owns the database ([redb](https://docs.rs/redb)). Changes arrive over a channel in the order in which
//! they were made. The thread writes all that have arrived in one transaction, synced to disk, notes its number in the
//! [side file](super::generation), and then releases everything that waited for one of them. All requests that arrive
//! during one sync share the cost of the next (group commit).
//!
//! A failed write, as on a full disk, fails everything that waits for it or for a later one. The thread keeps what it
//! could not write, the last record of each election, and retries until it succeeds; see [`Writer::run`]. Meanwhile,
//! operations that need nothing but what is on disk continue.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use redb::{Database, backends::FileBackend};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    Names,
    clock::{Clock, Deadline},
    generation::{self, SYNC_WITHIN, Side},
    rollback::{self, Opening},
    store::{self, Backend, DatabaseFile, Node, Opened, Unopened},
};
use crate::{
    lease::{
        NodeError,
        memory::{Held, Retained},
    },
    types::{Candidate, Invalid, RequestId, Token, Value, millis},
};

/// The file's record of an election.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The highest token of a grant that may have counted; 0 for none.
    #[serde(rename = "floor")]
    high_water_mark: u64,
    /// The least token that a repair may write.
    #[serde(default)]
    acknowledged: u64,
    /// The last requests that were granted, with their tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    used: Vec<(String, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<LeaseRecord>,
}

/// The file's record of a lease.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    leader: String,
    token: u64,
    value: String,
    request_id: String,
    elected_at: u64,
    pub(super) term_ms: u64,
    /// The last opening of the database in which the leader was granted or extended; 0 is before the first one that is
    /// numbered.
    #[serde(default)]
    pub(super) opening: u64,
}

impl Record {
    /// The record to be stored in this opening.
    pub(super) fn new(high_water_mark: &Retained, held: Option<&Held>, opening: u64) -> Self {
        let used = high_water_mark.used.iter();
        Self {
            high_water_mark: high_water_mark.token.map_or(0, Token::get),
            acknowledged: high_water_mark.acknowledged,
            used: used
                .map(|(id, token)| (id.as_str().to_owned(), token.get()))
                .collect(),
            lease: held.map(|held| LeaseRecord {
                leader: held.leader.as_str().to_owned(),
                token: held.token.get(),
                value: held.value.as_str().to_owned(),
                request_id: held
                    .request_id
                    .as_ref()
                    .map_or_else(String::new, |id| id.as_str().to_owned()),
                elected_at: held.elected_at,
                term_ms: millis(held.longest_term),
                opening: held.restored.unwrap_or(opening),
            }),
        }
    }

    /// Whether an agent can start with this record.
    pub(super) fn check(&self) -> Result<(), NodeError> {
        self.restore(Instant::now(), Duration::ZERO, |_| Duration::ZERO)?;
        Ok(())
    }

    /// Returns the lease, which has this much time left, and what outlives it by the retention.
    fn restore(
        &self,
        now: Instant,
        retention: Duration,
        left: impl FnOnce(&LeaseRecord) -> Duration,
    ) -> Result<(Option<Held>, Retained), NodeError> {
        let held = self.lease.as_ref();
        let held = held
            .map(|lease| lease.restore(now + left(lease)))
            .transpose()?;
        let expires = held.as_ref().map_or(now, |held| held.expires) + retention;
        let mut used = Vec::new();
        for (id, token) in &self.used {
            let id = RequestId::new(id).map_err(|invalid| stored(&invalid))?;
            if let Some(id) = id {
                used.push((id, stored_token(*token)?));
            }
        }
        let high_water_mark = Retained {
            token: match self.high_water_mark {
                0 => None,
                token => Some(stored_token(token)?),
            },
            acknowledged: self.acknowledged,
            used,
            expires,
        };
        Ok((held, high_water_mark))
    }
}

impl LeaseRecord {
    fn restore(&self, expires: Instant) -> Result<Held, NodeError> {
        Ok(Held {
            leader: Candidate::new("leader", &self.leader).map_err(|invalid| stored(&invalid))?,
            token: stored_token(self.token)?,
            value: Value::new(&self.value).map_err(|invalid| stored(&invalid))?,
            request_id: RequestId::new(&self.request_id).map_err(|invalid| stored(&invalid))?,
            elected_at: self.elected_at,
            expires,
            longest_term: Duration::from_millis(self.term_ms),
            restored: Some(self.opening),
            unacknowledged: None,
        })
    }
}

fn stored_token(token: u64) -> Result<Token, NodeError> {
    Token::new(token)
        .ok_or_else(|| NodeError::unknown(format!("the stored token {token} is out of range")))
}

fn stored(invalid: &Invalid) -> NodeError {
    NodeError::unknown(format!("a stored lease is not valid: {invalid}"))
}

/// What was on disk when the log was opened.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) elections: Vec<(Box<str>, Record)>,
    /// How long the node is in quarantine, when it has an incarnation record.
    pub(super) quarantine: Option<Duration>,
    opening: Opening,
}

impl Stored {
    /// The election's lease, for as long as it still counts, and what outlives it by the retention.
    pub(super) fn restore(
        &self,
        record: &Record,
        now: Instant,
        retention: Duration,
    ) -> Result<(Option<Held>, Retained), NodeError> {
        record.restore(now, retention, |lease| self.opening.left(lease))
    }
}

/// A change to be written.
#[derive(Debug)]
pub(super) enum Change {
    /// The election now has this record, or none.
    Election(Box<str>, Option<Record>),
    /// The incarnation record is written, ready after this wait.
    IncarnationRecord(Deadline),
}

/// The changes to be written: only the last record of each election, so that they need no more room than the elections
/// do.
pub(super) type Pending = HashMap<Box<str>, Option<Record>>;

/// How far the log is on disk.
#[derive(Debug, Clone, Default)]
struct Written {
    /// All changes up to this number are on disk.
    upto: u64,
    /// Why no more can be written at the moment.
    failure: Option<Failure>,
}

/// Why the files cannot be written. The text is for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// The next try may succeed.
    ForNow(String),
    /// The file does not have what was written, so nothing is written to it any more.
    ForGood(String),
}

/// The writing end of the log.
#[derive(Debug)]
pub(super) struct Log {
    /// `None` only while it is dropped.
    changes: Option<Sender<(u64, Change)>>,
    written: watch::Receiver<Written>,
    thread: Option<JoinHandle<()>>,
    clock: Clock,
    opening: u64,
}

impl Log {
    /// Opens the file for a node that is in quarantine for `guard` after it may have lost memory, and starts the thread
    /// that writes the file. Dropping the log ends the thread, and waits for it.
    ///
    /// A database that may be older than what was promised enters quarantine, on disk, before this returns.
    pub(super) fn open(
        path: &Path,
        guard: Option<Duration>,
        names: Names,
        clock: Clock,
        backend: impl FnOnce(FileBackend) -> Backend,
    ) -> Result<(Self, Stored), NodeError> {
        let at = path.display().to_string();
        let wrong = |what: String| NodeError::unknown(names.wrong(what));
        let Opened { database, file } = store::open(path, backend).map_err(wrong)?;
        let failed = |what: &str, error: Box<dyn std::error::Error>| {
            wrong(format!("cannot {what} {at}: {error}"))
        };
        let content = store::load(&database).map_err(|error| failed("read", error))?;
        let side_path = generation::path_for(&file.real);
        let found = generation::read(&side_path).map_err(wrong)?;
        let opening = Opening::new(&content, &found, guard, clock.now());
        store::write_node(&database, &opening.node, &opening.openings)
            .map_err(|error| failed("write", error))?;
        // After the database: a quarantine that its side file no longer shows is in the database.
        let side = Side::create(&side_path, &opening.generation()).map_err(wrong)?;
        report_opening(&at, &opening, guard, names);

        let (changes, incoming) = channel();
        let (report, written) = watch::channel(Written::default());
        let writer = Writer {
            database: Some(database),
            file,
            committed: opening.node.sequence,
            node: opening.node.clone(),
            side: Some(side),
            unsynced: None,
            pending: Pending::new(),
            last: 0,
            changed: false,
            at,
            names,
        };
        let thread = thread::Builder::new()
            .name("lease-log".to_owned())
            .spawn(move || writer.run(&incoming, &report))
            .map_err(|error| {
                NodeError::unknown(format!("cannot start the lease log's thread: {error}"))
            })?;
        let log = Self {
            changes: Some(changes),
            written,
            thread: Some(thread),
            clock,
            opening: opening.number,
        };
        let stored = Stored {
            elections: content.elections,
            quarantine: match guard {
                Some(_) => opening.quarantine(),
                // The rest of a quarantine stays in the file, for an agent that respects it.
                None => opening.quarantine().map(|_| Duration::ZERO),
            },
            opening,
        };
        Ok((log, stored))
    }

    /// The number of this opening of the database.
    pub(super) fn opening(&self) -> u64 {
        self.opening
    }

    /// The change that writes an incarnation record which is ready after this wait from now on.
    pub(super) fn incarnation_record(&self, wait: Duration) -> Change {
        Change::IncarnationRecord(Deadline::new(self.clock.now(), wait))
    }

    /// Queues a change. Sequence numbers rise by call.
    pub(super) fn append(&self, sequence: u64, change: Change) {
        // The thread ends early only when the file can never be written again, which `settled` reports to every caller.
        if let Some(changes) = &self.changes {
            let _ = changes.send((sequence, change));
        }
    }

    /// Whether changes can be written, as far as is known.
    ///
    /// # Errors
    /// The last try failed: the text says why and what to do. The refused request had no effect.
    pub(super) fn writable(&self) -> Result<(), NodeError> {
        match &self.written.borrow().failure {
            None => Ok(()),
            Some(failure) => Err(NodeError::NotSent(failure.to_string())),
        }
    }

    /// Waits until the change with this number, and all before it, are on disk.
    ///
    /// # Errors
    /// When the file cannot be written: whether the change will ever be on disk is then unknown. A change that is
    /// already on disk fails only when the file does not have what was written: then no further reply of this process
    /// would survive it.
    pub(super) async fn settled(&self, sequence: u64) -> Result<(), NodeError> {
        let mut written = self.written.clone();
        // The thread is gone: its last report does not mean that it can write more.
        let thread_ended = written.has_changed().is_err();
        let state = match thread_ended {
            true => written.borrow().clone(),
            false => {
                let done = |now: &Written| now.upto >= sequence || now.failure.is_some();
                let state = written.wait_for(done).await.map_err(|_| ended())?;
                state.clone()
            }
        };
        match state.failure {
            Some(Failure::ForNow(_)) if state.upto >= sequence && !thread_ended => Ok(()),
            Some(failure) => Err(NodeError::unknown(failure)),
            None if thread_ended => Err(ended()),
            None => Ok(()),
        }
    }

    /// Waits until the file can be written, or never can be again. Returns whether it can.
    #[cfg(test)]
    pub(super) async fn writable_again(&self) -> bool {
        let mut written = self.written.clone();
        let writable_again = written.wait_for(|now| now.failure.is_none()).await;
        writable_again.is_ok()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForNow(why) => write!(
                f,
                "{why}: free space there, or correct the cause; the agent retries by itself, and \
                 elects no new leader until it can write"
            ),
            Self::ForGood(why) => write!(f, "{why}: restart the agent with the right file"),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            // The thread has reported the cause of any failure.
            let _ = thread.join();
        }
    }
}

fn ended() -> NodeError {
    NodeError::unknown("the lease log's thread has ended: restart the agent")
}

/// Logs what is unusual about an opening.
fn report_opening(at: &str, opening: &Opening, guard: Option<Duration>, names: Names) {
    if opening.clocks_went_back {
        tracing::warn!(
            path = at,
            "the system was started anew and its clock is earlier than before: restored leases and waits \
             count in full"
        );
    }
    let wait_ms = millis(opening.quarantine().unwrap_or_default());
    match (&opening.doubt, guard) {
        (Some(doubt), Some(_)) => tracing::warn!(
            path = at,
            wait_ms,
            "{doubt}: leaders that it does not know of may have time left, so the agent is in quarantine"
        ),
        (Some(doubt), None) => tracing::warn!(
            path = at,
            "{doubt}: as {}=off, the agent grants elections whose leaders may have time left",
            names.restart_guard
        ),
        (None, Some(_)) if wait_ms > 0 => tracing::warn!(
            path = at,
            wait_ms,
            "the agent is in quarantine for the rest of a wait that an earlier start began"
        ),
        (None, _) => {}
    }
}

/// How long the thread waits before it retries, at first and at most.
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Owns the files.
struct Writer {
    /// `None` after a failure, until it is reopened.
    database: Option<Database>,
    file: DatabaseFile,
    /// The last commit that is known to be on disk.
    committed: u64,
    /// Includes the number of the last commit that was tried.
    node: Node,
    /// `None` after a failure, until it is reopened.
    side: Option<Side>,
    /// Since when the side file has content that is not synced.
    unsynced: Option<std::time::Instant>,
    /// The changes that are not on disk yet.
    pending: Pending,
    /// The number of the last change that is in `pending` or on disk.
    last: u64,
    /// Whether there may be a change that is not on disk.
    changed: bool,
    at: String,
    names: Names,
}

impl Writer {
    /// Writes until no more changes can come. Retries failed writes at growing intervals; new changes do not shorten
    /// them.
    fn run(mut self, incoming: &Receiver<(u64, Change)>, report: &watch::Sender<Written>) {
        let mut retry: Option<Duration> = None;
        loop {
            let more = match retry {
                None => self.next(incoming),
                Some(pause) => self.pause(pause, incoming),
            };
            match self.write(!more) {
                Ok(()) => {
                    if retry.take().is_some() {
                        tracing::info!(
                            path = self.at,
                            "the lease database can be written again: elections continue"
                        );
                    }
                    report.send_modify(|report| {
                        *report = Written {
                            upto: self.last,
                            failure: None,
                        };
                    });
                }
                Err(failure) => {
                    let for_good = matches!(failure, Failure::ForGood(_));
                    if retry.is_none() || for_good {
                        tracing::error!(path = self.at, error = %failure, "the lease database cannot be written");
                    }
                    report.send_modify(|report| report.failure = Some(failure));
                    if for_good {
                        return;
                    }
                    retry = Some(retry.map_or(RETRY, |pause| (2 * pause).min(LONGEST_RETRY)));
                }
            }
            if !more {
                return;
            }
        }
    }

    /// Waits for a change and takes all that have arrived, or until the side file has to be synced. Returns false when
    /// no more changes can come.
    fn next(&mut self, incoming: &Receiver<(u64, Change)>) -> bool {
        let first = match self.unsynced {
            Some(since) => incoming.recv_timeout(SYNC_WITHIN.saturating_sub(since.elapsed())),
            None => incoming.recv().map_err(RecvTimeoutError::from),
        };
        match first {
            Ok(first) => self.take(first),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        for change in incoming.try_iter() {
            self.take(change);
        }
        true
    }

    /// Takes changes that arrive within the pause. Returns false, at once, when no more can come.
    fn pause(&mut self, pause: Duration, incoming: &Receiver<(u64, Change)>) -> bool {
        let began = std::time::Instant::now();
        while let Some(left) = pause.checked_sub(began.elapsed()) {
            match incoming.recv_timeout(left) {
                Ok(change) => self.take(change),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    fn take(&mut self, (sequence, change): (u64, Change)) {
        self.last = sequence;
        self.changed = true;
        match change {
            Change::IncarnationRecord(quarantine) => {
                self.node.marked = true;
                self.node.quarantine = (!quarantine.is_over_at_once()).then_some(quarantine);
            }
            Change::Election(election, record) => {
                let lease = record.as_ref().and_then(|record| record.lease.as_ref());
                let term_ms = lease.map_or(0, |lease| lease.term_ms);
                let longest = &mut self.node.longest;
                longest.wait_ms = longest.wait_ms.max(term_ms);
                longest.last_ms = longest.last_ms.max(term_ms);
                self.pending.insert(election, record);
            }
        }
    }

    /// Writes what has changed, and syncs the side file when it is due or this is the `end`.
    fn write(&mut self, end: bool) -> Result<(), Failure> {
        if self.changed {
            self.commit()?;
        }
        let due = |since: std::time::Instant| end || since.elapsed() >= SYNC_WITHIN;
        if self.unsynced.is_some_and(due) {
            self.sync_side()?;
        }
        Ok(())
    }

    /// Writes pending changes to the database, and then the commit's number to the side file. After a failure, reopens
    /// each first.
    fn commit(&mut self) -> Result<(), Failure> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        self.node.sequence += 1;
        store::commit(&database, &self.node, &self.pending)
            .map_err(|error| self.for_now(&error))?;
        self.committed = self.node.sequence;
        self.pending.clear();
        self.database = Some(database);
        let generation = rollback::generation(&self.node);
        let side = match self.side.take() {
            Some(mut side) => side.write(&generation).map(|()| side),
            None => Side::create(&generation::path_for(&self.file.real), &generation),
        };
        self.side = Some(side.map_err(|error| Failure::ForNow(self.names.wrong(error)))?);
        self.unsynced.get_or_insert_with(std::time::Instant::now);
        self.changed = false;
        Ok(())
    }

    fn reopen(&self) -> Result<Database, Failure> {
        let commits = self.committed..=self.node.sequence;
        let opened = self.file.reopen(&self.node, commits);
        opened.map_err(|unopened| match unopened {
            Unopened::Failed(why) => self.for_now(&why),
            Unopened::Other(why) => Failure::ForGood(self.cannot_write(&why)),
        })
    }

    fn for_now(&self, error: &dyn fmt::Display) -> Failure {
        Failure::ForNow(self.cannot_write(error))
    }

    fn cannot_write(&self, error: &dyn fmt::Display) -> String {
        self.names
            .wrong(format_args!("cannot write {}: {error}", self.at))
    }

    fn sync_side(&mut self) -> Result<(), Failure> {
        let Some(side) = &self.side else {
            return Ok(());
        };
        if let Err(error) = side.sync() {
            // How much of it is on disk is unknown: it is created again, with another commit.
            self.side = None;
            self.changed = true;
            return Err(Failure::ForNow(self.names.wrong(error)));
        }
        self.unsynced = None;
        Ok(())
    }
}
