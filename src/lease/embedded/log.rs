//! What the durable in-process node keeps on disk, and how replies wait for it.
//!
//! One thread owns the database ([redb](https://docs.rs/redb)). Changes come over a channel in the
//! order in which they were made; the thread writes all that have come in one transaction, synced to
//! disk, and then lets everything that waited for one of them go on. So the cost of a sync is shared
//! by all requests that arrive while the one before runs (group commit).

use std::{
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Held;
use crate::{
    election::types::{Candidate, Invalid, RequestId, Token, Value, millis},
    lease::NodeError,
};

/// `kind/name` to a [`Record`] as JSON.
const ELECTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("elections");
/// Names to numbers: the format's version, and the marker's wait in ms.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;

/// What the file holds of an election.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The highest token accepted.
    floor: u64,
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
    pub(super) elected_at: u64,
    pub(super) term_ms: u64,
}

impl Record {
    pub(super) fn new(floor: Token, held: Option<&Held>) -> Self {
        Self {
            floor: floor.get(),
            lease: held.map(|held| LeaseRecord {
                leader: held.leader.as_str().to_owned(),
                token: held.token.get(),
                value: held.value.as_str().to_owned(),
                request_id: held
                    .request_id
                    .as_ref()
                    .map_or_else(String::new, |id| id.as_str().to_owned()),
                elected_at: held.elected_at,
                term_ms: millis(held.logged_term),
            }),
        }
    }

    pub(super) fn floor(&self) -> Result<Token, NodeError> {
        stored_token(self.floor)
    }
}

impl LeaseRecord {
    pub(super) fn leader(&self) -> Result<Candidate, NodeError> {
        Candidate::new("leader", &self.leader).map_err(|invalid| stored(&invalid))
    }

    pub(super) fn token(&self) -> Result<Token, NodeError> {
        stored_token(self.token)
    }

    pub(super) fn value(&self) -> Result<Value, NodeError> {
        Value::new(&self.value).map_err(|invalid| stored(&invalid))
    }

    pub(super) fn request_id(&self) -> Result<Option<RequestId>, NodeError> {
        RequestId::new(&self.request_id).map_err(|invalid| stored(&invalid))
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
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) elections: Vec<(Box<str>, Record)>,
    /// How long the marker's run waits before it grants, when there is a marker.
    pub(super) marker_wait: Option<Duration>,
}

/// A change to be written.
#[derive(Debug)]
pub(super) enum Change {
    /// The election now has this record, or none.
    Election(Box<str>, Option<Record>),
    /// The marker is written, ready after this wait.
    Marker(Duration),
}

/// The writing end of the log.
#[derive(Debug)]
pub(super) struct Log {
    changes: Sender<(u64, Change)>,
    written: watch::Receiver<Result<u64, NodeError>>,
}

impl Log {
    /// Opens the file and starts the thread that writes it; the thread ends when the log is dropped.
    pub(super) fn open(path: &Path) -> Result<(Self, Stored), NodeError> {
        let at = path.display();
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => NodeError::unknown(format!(
                "EA_EMBEDDED_PATH: {at} is in use by another process: give each agent its own file"
            )),
            error => NodeError::unknown(format!("EA_EMBEDDED_PATH: cannot open {at}: {error}")),
        })?;
        let stored = load(&database).map_err(|error| {
            NodeError::unknown(format!("EA_EMBEDDED_PATH: cannot read {at}: {error}"))
        })?;

        let (changes, incoming) = channel();
        let (report, written) = watch::channel(Ok(0));
        let at = at.to_string();
        thread::Builder::new()
            .name("lease-log".to_owned())
            .spawn(move || write(&database, &incoming, &report, &at))
            .map_err(|error| {
                NodeError::unknown(format!("cannot start the lease log's thread: {error}"))
            })?;
        Ok((Self { changes, written }, stored))
    }

    /// Queues a change. Sequence numbers rise by call.
    pub(super) fn append(&self, sequence: u64, change: Change) {
        // The thread ends early only after a failed write, which `settled` reports to every caller.
        let _ = self.changes.send((sequence, change));
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

fn ended() -> NodeError {
    NodeError::unknown("the lease log's thread has ended: restart the agent")
}

fn load(database: &Database) -> Result<Stored, Box<dyn std::error::Error>> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get("format")?.map(|format| format.value());
        match format {
            None => {
                meta.insert("format", FORMAT)?;
            }
            Some(FORMAT) => {}
            Some(other) => {
                return Err(format!("its format is {other}, this version reads {FORMAT}").into());
            }
        }
        transaction.open_table(ELECTIONS)?;
    }
    transaction.commit()?;

    let transaction = database.begin_read()?;
    let mut stored = Stored {
        marker_wait: transaction
            .open_table(META)?
            .get("marker_wait_ms")?
            .map(|wait| Duration::from_millis(wait.value())),
        ..Stored::default()
    };
    for entry in transaction.open_table(ELECTIONS)?.iter()? {
        let (election, record) = entry?;
        let record = serde_json::from_slice(record.value())?;
        stored.elections.push((election.value().into(), record));
    }
    Ok(stored)
}

fn write(
    database: &Database,
    incoming: &Receiver<(u64, Change)>,
    report: &watch::Sender<Result<u64, NodeError>>,
    at: &str,
) {
    while let Ok(first) = incoming.recv() {
        let batch: Vec<_> = std::iter::once(first).chain(incoming.try_iter()).collect();
        let last = batch.last().map_or(0, |(sequence, _)| *sequence);
        let written = commit(database, batch).map(|()| last).map_err(|error| {
            tracing::error!(path = at, %error, "the lease log cannot be written; no grant is possible until the cause is mended and the agent restarted");
            NodeError::unknown(format!(
                "EA_EMBEDDED_PATH: cannot write {at}: {error}: mend the cause and restart the agent"
            ))
        });
        let failed = written.is_err();
        report.send_modify(|report| *report = written);
        if failed {
            return;
        }
    }
}

fn commit(
    database: &Database,
    batch: Vec<(u64, Change)>,
) -> Result<(), Box<dyn std::error::Error>> {
    let transaction = database.begin_write()?;
    {
        let mut elections = transaction.open_table(ELECTIONS)?;
        let mut meta = transaction.open_table(META)?;
        for (_, change) in batch {
            match change {
                Change::Election(election, Some(record)) => {
                    elections.insert(&*election, serde_json::to_vec(&record)?.as_slice())?;
                }
                Change::Election(election, None) => {
                    elections.remove(&*election)?;
                }
                Change::Marker(wait) => {
                    meta.insert("marker_wait_ms", millis(wait))?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}
