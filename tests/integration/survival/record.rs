//! The requests, replies and actions of candidates, in real time, and the faults meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use parking_lot::{Mutex, MutexGuard};

/// The record of one run. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Record {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    faults: Vec<Fault>,
    holds: Vec<Hold>,
    namings: Vec<Naming>,
}

/// Something that happened to a candidate.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) at: Instant,
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) what: What,
}

/// A fault, and when it began.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: Instant,
    pub(crate) kind: String,
}

/// A time in which a candidate may be called the leader because of one request, whatever came of that.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) asked: Instant,
    pub(crate) until: Instant,
}

/// A reply named the candidate as the leader.
#[derive(Debug, Clone)]
pub(crate) struct Naming {
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// Its reply says that it leads. It may act until then; not at all if that is past.
    Elected {
        asked: Instant,
        token: u64,
        until: Instant,
    },
    /// Its reply says that another leads.
    NotElected,
    /// Its reply says that it leads until then.
    Extended { until: Instant },
    /// Its reply says that it does not lead.
    Refused,
    /// It acts no more, and is about to resign.
    Resigns,
    /// It acts no more, and is about to hand over.
    HandsOver,
    /// Its reply says that the election was vacated, or moved, as requested.
    GivenUp,
    /// It acts no more: its time is over, or a reply said that it does not lead.
    Stops,
    /// It died: it does nothing more, but its time is its own until it is over.
    Dies,
    /// It did not wait for the answer.
    Hurries,
    /// The answer was an error.
    NotKnown(String),
}

impl What {
    /// Its name in the list of what happened how often.
    fn kind(&self) -> &'static str {
        match self {
            Self::Elected { .. } => "elected",
            Self::NotElected => "not elected",
            Self::Extended { .. } => "extended",
            Self::Refused => "extension refused",
            Self::Resigns => "resigning",
            Self::HandsOver => "handing over",
            Self::GivenUp => "resigned or handed over",
            Self::Stops => "stopped in time",
            Self::Dies => "died",
            Self::Hurries => "did not wait",
            Self::NotKnown(_) => "outcome not known",
        }
    }

    /// Whether an operation on the election has succeeded.
    pub(crate) fn is_answer(&self) -> bool {
        self.is_decided_campaign()
            || matches!(self, Self::Extended { .. } | Self::Refused | Self::GivenUp)
    }

    pub(crate) fn is_decided_campaign(&self) -> bool {
        matches!(self, Self::Elected { .. } | Self::NotElected)
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Notes what has just happened.
    pub(crate) fn note(&self, election: &str, candidate: &str, what: What) {
        let mut inner = self.lock();
        // Under the lock, so that entries are in order.
        inner.entries.push(Entry {
            at: Instant::now(),
            election: election.to_owned(),
            candidate: candidate.to_owned(),
            what,
        });
    }

    /// Notes that a fault begins now.
    pub(crate) fn fault(&self, kind: &str) {
        self.lock().faults.push(Fault {
            at: Instant::now(),
            kind: kind.to_owned(),
        });
    }

    pub(crate) fn hold(&self, hold: Hold) {
        self.lock().holds.push(hold);
    }

    pub(crate) fn naming(&self, naming: Naming) {
        self.lock().namings.push(naming);
    }

    pub(crate) fn holds(&self) -> Vec<Hold> {
        self.lock().holds.clone()
    }

    pub(crate) fn namings(&self) -> Vec<Naming> {
        self.lock().namings.clone()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        self.lock().faults.clone()
    }
}

/// How often each kind of thing happened.
pub(crate) fn counts(entries: &[Entry]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for entry in entries {
        *counts.entry(entry.what.kind()).or_default() += 1;
    }
    counts
}

/// Panics when one of the kinds of answers came less often than that.
pub(crate) fn assert_enough(counts: &BTreeMap<&'static str, usize>, least: usize) {
    for kind in [
        "elected",
        "not elected",
        "extended",
        "resigned or handed over",
    ] {
        let count = counts.get(kind).copied().unwrap_or_default();
        assert!(
            count >= least,
            "too little happened to tell: {count} {kind}"
        );
    }
}
