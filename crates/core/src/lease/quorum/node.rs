//! A lease node, and what this agent knows of it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::span::Place;
use crate::{
    lease::{LeaseNode, NodeError, Probe},
    types::millis,
};

/// A node, and what this agent knows of it.
pub(super) struct Node {
    pub(super) node: Arc<dyn LeaseNode>,
    /// The node's address.
    pub(super) place: Place,
    /// The complaints that were logged lately, and when.
    complaints: Mutex<Vec<(NodeError, Instant)>>,
    /// Why the node must not vote, if it must not.
    excluded: Mutex<Option<String>>,
    /// Whether `excluded` has a reason; read on every call.
    is_excluded: AtomicBool,
    /// Since when some of the node's partitions have incarnation records and others none.
    mixed_since: Mutex<Option<Instant>>,
    /// Whether the node was in quarantine at its last probe.
    quarantined: AtomicBool,
    probed: Mutex<Probed>,
    /// When the node last refused something because its memory was full.
    full: Mutex<Option<Instant>>,
}

/// Whether a node has been probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probed {
    Never,
    /// Probed, without any reply.
    InVain,
    /// The last probe with a reply began at this instant.
    At(Instant),
}

/// How often the same complaint about a node is logged, and how many different ones in that time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
const COMPLAINTS: usize = 8;
/// How long a refusal for lack of memory stays in the node's status.
const FULL_LATELY: Duration = Duration::from_secs(60);
/// How long an agent may take to record incarnations in all partitions of a new node.
pub(super) const RECORDING: Duration = Duration::from_secs(2);
impl Node {
    pub(super) fn new(node: Arc<dyn LeaseNode>) -> Self {
        Self {
            place: Place::of(node.name()),
            node,
            complaints: Mutex::default(),
            excluded: Mutex::default(),
            is_excluded: AtomicBool::new(false),
            mixed_since: Mutex::default(),
            quarantined: AtomicBool::new(false),
            probed: Mutex::new(Probed::Never),
            full: Mutex::default(),
        }
    }

    /// Whether the node lately refused something because its memory was full.
    pub(super) fn was_full(&self) -> bool {
        let full = self.full.lock();
        full.is_some_and(|at| at.elapsed() < FULL_LATELY)
    }

    pub(super) fn probed(&self) -> Probed {
        *self.probed.lock()
    }

    /// Notes whether the node replied to a probe that began at this instant.
    pub(super) fn note_probe(&self, began: Instant, answered: bool) {
        let mut probed = self.probed.lock();
        *probed = match (*probed, answered) {
            (_, true) => Probed::At(began),
            (Probed::Never, false) => Probed::InVain,
            (known, false) => known,
        };
    }

    pub(super) fn name(&self) -> &str {
        self.node.name()
    }

    pub(super) fn role(&self) -> &'static str {
        self.node.role()
    }

    pub(super) fn is_excluded(&self) -> bool {
        self.is_excluded.load(Ordering::Relaxed)
    }

    pub(super) fn exclude(&self, why: Option<String>) {
        self.is_excluded.store(why.is_some(), Ordering::Relaxed);
        *self.excluded.lock() = why;
    }

    /// Why the node must not vote, as an error.
    pub(super) fn excluded(&self) -> Option<NodeError> {
        let why = self.excluded.lock();
        why.clone().map(NodeError::NotSent)
    }

    /// Whether another agent may be recording incarnations in the node's partitions at this time. Then the partitions
    /// without a record are as new as the others.
    pub(super) fn is_being_recorded(&self, probe: &Probe) -> bool {
        let mut since = self.mixed_since.lock();
        if probe.guard.is_none() || probe.unrecorded.is_empty() {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() < RECORDING
    }

    /// Logs when the node's quarantine begins and when it ends.
    pub(super) fn log_quarantine(&self, probe: &Probe) {
        let Some(left) = probe.guard else { return };
        let quarantined = !left.is_zero();
        if self.quarantined.swap(quarantined, Ordering::Relaxed) == quarantined {
            return;
        }
        let node = self.name();
        match quarantined {
            true => tracing::warn!(
                node,
                remaining_ms = millis(left),
                "a lease node is in quarantine: it has restarted or was promoted, and may have \
                 forgotten a leader that still has time left"
            ),
            false => tracing::info!(node, "a lease node grants again"),
        }
    }

    /// Logs why the node did not do what was requested: new errors at once, repeated ones now and then. Callers do not
    /// see the reason, as any caller may be unauthenticated.
    pub(super) fn complain(&self, error: &NodeError) {
        if let NodeError::Full(_) = error {
            *self.full.lock() = Some(Instant::now());
        }
        let mut logged = self.complaints.lock();
        // A stopped node fails in several ways in turn.
        logged.retain(|(_, at)| at.elapsed() < COMPLAIN_EVERY);
        if logged.iter().any(|(known, _)| known == error) || logged.len() == COMPLAINTS {
            return;
        }
        logged.push((error.clone(), Instant::now()));
        tracing::warn!(node = self.name(), %error, "a lease node failed");
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
