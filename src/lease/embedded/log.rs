//! What the durable in-process node keeps on disk, and how replies wait for it.
//!
//! One thread owns the database ([redb](https://docs.rs/redb)). Changes come over a channel in the
//! order in which they were made; the thread writes all that have come in one transaction, synced to
//! disk, notes its number in the [side file](super::generation), and then lets everything that waited for
//! one of them go on. So the cost of a sync is shared by all requests that arrive while the one before
//! runs (group commit).

use std::{
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use redb::Database;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    clock::{Clock, Deadline},
    generation::{self, SYNC_WITHIN, Side},
    rollback::{self, Opening},
    store::{self, Node},
};
use crate::{
    election::types::{Candidate, Invalid, RequestId, Token, Value, millis},
    lease::{
        NodeError,
        memory::{Floor, Held},
    },
};

/// What the file holds of an election.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The highest token of a grant that may have counted; 0 for none.
    floor: u64,
    /// The least token that a repair may write.
    #[serde(default)]
    acknowledged: u64,
    /// The last requests that were granted, with their tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    used: Vec<(String, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<LeaseRecord>,
}

/// What the file holds of a lease.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    leader: String,
    token: u64,
    value: String,
    request_id: String,
    elected_at: u64,
    pub(super) term_ms: u64,
    /// The last opening of the database in which the leader was granted or extended; 0 is before the
    /// first one that is numbered.
    #[serde(default)]
    pub(super) opening: u64,
}

impl Record {
    /// What is to be stored in this opening.
    pub(super) fn new(floor: &Floor, held: Option<&Held>, opening: u64) -> Self {
        let used = floor.used.iter();
        Self {
            floor: floor.token.map_or(0, Token::get),
            acknowledged: floor.acknowledged,
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

    /// Whether an agent can begin with it.
    pub(super) fn check(&self) -> Result<(), NodeError> {
        self.restore(Instant::now(), Duration::ZERO, |_| Duration::ZERO)?;
        Ok(())
    }

    /// The lease, which has so much time left, and what outlives it by the retention.
    fn restore(
        &self,
        now: Instant,
        retention: Duration,
        left: impl FnOnce(&LeaseRecord) -> Duration,
    ) -> Result<(Option<Held>, Floor), NodeError> {
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
        let floor = Floor {
            token: match self.floor {
                0 => None,
                token => Some(stored_token(token)?),
            },
            acknowledged: self.acknowledged,
            used,
            expires,
        };
        Ok((held, floor))
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
            attempt: None,
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
    /// How long the node abstains from grants, when it has a marker.
    pub(super) marker_wait: Option<Duration>,
    opening: Opening,
}

impl Stored {
    /// The election's lease, for as long as it still counts, and what outlives it by the retention.
    pub(super) fn restore(
        &self,
        record: &Record,
        now: Instant,
        retention: Duration,
    ) -> Result<(Option<Held>, Floor), NodeError> {
        record.restore(now, retention, |lease| self.opening.left(lease))
    }
}

/// A change to be written.
#[derive(Debug)]
pub(super) enum Change {
    /// The election now has this record, or none.
    Election(Box<str>, Option<Record>),
    /// The marker is written, ready after this wait.
    Marker(Deadline),
}

/// The writing end of the log.
#[derive(Debug)]
pub(super) struct Log {
    /// `None` only while it is dropped.
    changes: Option<Sender<(u64, Change)>>,
    written: watch::Receiver<Result<u64, NodeError>>,
    thread: Option<JoinHandle<()>>,
    clock: Clock,
    opening: u64,
}

impl Log {
    /// Opens the file for a node that abstains for `guard` after it may have lost memory, and starts the
    /// thread that writes the file; dropping the log ends the thread, and waits for it.
    ///
    /// A database that may be older than what was promised is put into quarantine, on disk, before this
    /// returns.
    pub(super) fn open(
        path: &Path,
        guard: Option<Duration>,
        clock: Clock,
    ) -> Result<(Self, Stored), NodeError> {
        let at = path.display().to_string();
        let (database, real) = store::open(path)?;
        let failed = |what: &str, error: Box<dyn std::error::Error>| {
            NodeError::unknown(format!("EA_EMBEDDED_PATH: cannot {what} {at}: {error}"))
        };
        let content = store::load(&database).map_err(|error| failed("read", error))?;
        let beside = generation::path_for(&real);
        let found = generation::read(&beside)?;
        let opening = Opening::new(&content, &found, guard, clock.now());
        store::write_node(&database, &opening.node, &opening.openings)
            .map_err(|error| failed("write", error))?;
        // After the database: a quarantine that its side file no longer shows is in the database.
        let side = Side::create(&beside, &opening.generation())?;
        report_opening(&at, &opening, guard);

        let (changes, incoming) = channel();
        let (report, written) = watch::channel(Ok(0));
        let writer = Writer {
            database,
            node: opening.node.clone(),
            side,
            unsynced: None,
            at,
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
            marker_wait: match guard {
                Some(_) => opening.marker_wait(),
                // What is left of a quarantine stays in the file, for an agent that heeds it.
                None => opening.marker_wait().map(|_| Duration::ZERO),
            },
            opening,
        };
        Ok((log, stored))
    }

    /// The number of this opening of the database.
    pub(super) fn opening(&self) -> u64 {
        self.opening
    }

    /// The change that writes a marker which is ready after this wait from now on.
    pub(super) fn marker(&self, wait: Duration) -> Change {
        Change::Marker(Deadline::new(self.clock.now(), wait))
    }

    /// Queues a change. Sequence numbers rise by call.
    pub(super) fn append(&self, sequence: u64, change: Change) {
        // The thread ends early only after a failed write, which `settled` reports to every caller.
        if let Some(changes) = &self.changes {
            let _ = changes.send((sequence, change));
        }
    }

    /// Waits until the change with this number, and all before it, are on disk.
    ///
    /// # Errors
    /// When the file could not be written. That is for good: memory is ahead of the disk, so nothing
    /// this process could still answer would survive it.
    pub(super) async fn settled(&self, sequence: u64) -> Result<(), NodeError> {
        let mut written = self.written.clone();
        // The thread is gone: what it wrote last does not say that it can write more.
        if written.has_changed().is_err() {
            written.borrow().clone()?;
            return Err(ended());
        }
        let state = written
            .wait_for(|written| written.as_ref().map_or(true, |upto| *upto >= sequence))
            .await
            .map_err(|_| ended())?;
        state.clone().map(|_| ())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            // It has reported why, should it have failed.
            let _ = thread.join();
        }
    }
}

fn ended() -> NodeError {
    NodeError::unknown("the lease log's thread has ended: restart the agent")
}

/// Reports what is unusual about an opening.
fn report_opening(at: &str, opening: &Opening, guard: Option<Duration>) {
    if opening.clocks_went_back {
        tracing::warn!(
            path = at,
            "the system was started anew and its clock is earlier than before: restored leases and waits \
             count in full"
        );
    }
    let wait_ms = millis(opening.marker_wait().unwrap_or_default());
    match (&opening.doubt, guard) {
        (Some(doubt), Some(_)) => tracing::warn!(
            path = at,
            wait_ms,
            "{doubt}: leaders that it does not know of may have time left, so the agent abstains from grants"
        ),
        (Some(doubt), None) => tracing::warn!(
            path = at,
            "{doubt}: as EA_RESTART_GUARD=off, the agent grants elections whose leaders may have time left"
        ),
        (None, Some(_)) if wait_ms > 0 => tracing::warn!(
            path = at,
            wait_ms,
            "the agent abstains from grants for what is left of a wait that an earlier start began"
        ),
        (None, _) => {}
    }
}

/// Owns the files.
struct Writer {
    database: Database,
    node: Node,
    side: Side,
    /// Since when the side file has content that is not synced.
    unsynced: Option<std::time::Instant>,
    at: String,
}

impl Writer {
    /// Writes until nothing more can come, or a write fails.
    fn run(
        mut self,
        incoming: &Receiver<(u64, Change)>,
        report: &watch::Sender<Result<u64, NodeError>>,
    ) {
        let failed = loop {
            let first = match self.next(incoming) {
                Ok(Some(first)) => first,
                Ok(None) => match self.side.sync() {
                    Ok(()) => return,
                    Err(error) => break error,
                },
                Err(error) => break error,
            };
            let batch: Vec<_> = std::iter::once(first).chain(incoming.try_iter()).collect();
            let last = batch.last().map_or(0, |(sequence, _)| *sequence);
            match self.write(&batch) {
                Ok(()) => report.send_modify(|report| *report = Ok(last)),
                Err(error) => break error,
            }
        };
        tracing::error!(path = self.at, error = %failed, "the lease log cannot be written; no grant is possible until the cause is mended and the agent restarted");
        report.send_modify(|report| *report = Err(failed));
    }

    /// The next change, or `None` when there will be none; syncs the side file when its time has come.
    fn next(
        &mut self,
        incoming: &Receiver<(u64, Change)>,
    ) -> Result<Option<(u64, Change)>, NodeError> {
        if let Some(since) = self.unsynced {
            match incoming.recv_timeout(SYNC_WITHIN.saturating_sub(since.elapsed())) {
                Ok(change) => return Ok(Some(change)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    self.side.sync()?;
                    self.unsynced = None;
                }
            }
        }
        Ok(incoming.recv().ok())
    }

    fn write(&mut self, batch: &[(u64, Change)]) -> Result<(), NodeError> {
        self.node.sequence += 1;
        for (_, change) in batch {
            match change {
                Change::Marker(quarantine) => {
                    self.node.marked = true;
                    self.node.quarantine =
                        (!quarantine.is_over_at_once()).then(|| quarantine.clone());
                }
                Change::Election(_, record) => {
                    let lease = record.as_ref().and_then(|record| record.lease.as_ref());
                    let term_ms = lease.map_or(0, |lease| lease.term_ms);
                    let longest = &mut self.node.longest;
                    longest.wait_ms = longest.wait_ms.max(term_ms);
                    longest.last_ms = longest.last_ms.max(term_ms);
                }
            }
        }
        store::commit(&self.database, &self.node, batch).map_err(|error| {
            let at = &self.at;
            NodeError::unknown(format!(
                "EA_EMBEDDED_PATH: cannot write {at}: {error}: mend the cause and restart the agent"
            ))
        })?;
        self.side.write(&rollback::generation(&self.node))?;
        let since = *self.unsynced.get_or_insert_with(std::time::Instant::now);
        if since.elapsed() >= SYNC_WITHIN {
            self.side.sync()?;
            self.unsynced = None;
        }
        Ok(())
    }
}
