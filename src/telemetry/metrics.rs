//! Metrics. Handles are resolved once, count events where they happen, and are written for `/metrics`.
//!
//! [`table`] is the only place that names them.

mod board;
mod elections;
mod exposition;
mod histogram;
mod nodes;
mod requests;
mod service;
pub mod table;

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
};

use election_core::{
    board::Counts,
    election::ledger::{Cause, RequestOutcome},
    lease::quorum::{NodeStatus, observer::QuorumObserver},
    types::{ElectionId, Kind, Token},
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::text::encode,
    metrics::gauge::Gauge,
    registry::{Metric, Registry, Unit},
};

pub use exposition::Format;
pub use requests::{InFlight, ResponseStatus};

use crate::{endpoint::Action, telemetry::trace};
use board::Board;
use elections::ElectionMetrics;
use nodes::Nodes;
use requests::Requests;
pub use service::Looked;
use service::Service;
use table::Row;

/// Default upper bounds of the request duration buckets, in seconds.
pub const DEFAULT_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;
/// A gauge that is 0 or 1.
type Flag = Gauge<i64, AtomicI64>;

/// The agent's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Requests,
    nodes: Nodes,
    elections: ElectionMetrics,
    board: Board,
    service: Service,
    /// Sources that are read before metrics are written.
    sources: Mutex<Vec<Source>>,
}

type Source = Box<dyn Fn(&Scrape<'_>) + Send>;

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Creates metrics whose request duration buckets have these upper bounds, in seconds.
    #[must_use]
    pub fn new(buckets: &[f64]) -> Self {
        Self::with_elections(buckets, &[])
    }

    /// Creates metrics as [`Metrics::new`] does, with series for each election of these kinds.
    #[must_use]
    pub fn with_elections(buckets: &[f64], per_election: &[Kind]) -> Self {
        let mut registrar = Registrar(Registry::with_prefix(table::PREFIX));
        let requests = Requests::register(&mut registrar, buckets);
        let elections = ElectionMetrics::register(&mut registrar, per_election);
        let nodes = Nodes::register(&mut registrar);
        let board = Board::register(&mut registrar);
        let service = Service::register(&mut registrar);
        Self(Arc::new(Inner {
            registry: registrar.0,
            requests,
            nodes,
            elections,
            board,
            service,
            sources: Mutex::default(),
        }))
    }

    /// Counts a request as in flight until the value is dropped.
    pub fn begin(&self, action: Action) -> InFlight {
        InFlight::begin(self, action)
    }

    /// Creates an observer that counts the operations of a quorum of nodes with these names, in this order.
    #[must_use]
    pub fn observer(&self, nodes: &[&str]) -> Arc<dyn QuorumObserver> {
        Arc::new(self.0.nodes.observer(nodes))
    }

    /// Publishes the health of the lease nodes, and whether the agent is ready.
    pub(crate) fn report(&self, nodes: &[NodeStatus], ready: bool) {
        self.0.nodes.report(nodes);
        self.0.service.ready.set(i64::from(ready));
    }

    /// Counts the outcome of a request to the elections.
    pub fn outcome(&self, action: Action, outcome: RequestOutcome) {
        self.0.elections.outcome(action, outcome);
    }

    /// Counts a change of leadership. The token is the new leader's, if there is one.
    pub fn changed(&self, election: &ElectionId, cause: Cause, token: Option<Token>) {
        self.0.elections.changed(election, cause, token);
    }

    /// Registers a source that is called before metrics are written, for values that need not be updated all
    /// the time. The source must not block.
    pub fn on_scrape(&self, source: impl Fn(&Scrape<'_>) + Send + 'static) {
        self.sources().push(Box::new(source));
    }

    /// Renders all metrics in a format.
    #[must_use]
    pub fn text(&self, format: Format) -> String {
        // Held until everything is written: concurrent scrapes would otherwise miss values that a source sets
        // anew.
        let sources = self.sources();
        for source in sources.iter() {
            source(&Scrape(&self.0));
        }
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.0.registry) {
            // Writing to a String does not fail. Any other error must not look like a complete scrape.
            text.clear();
            let _ = write!(text, "# {error}");
        }
        match format {
            Format::OpenMetrics => text,
            Format::Text => exposition::text(&text),
        }
    }

    fn sources(&self) -> parking_lot::MutexGuard<'_, Vec<Source>> {
        self.0.sources.lock()
    }
}

/// Accepts the values of sources before metrics are written.
pub struct Scrape<'a>(&'a Inner);

impl Scrape<'_> {
    /// Sets how many connections are open, and how many were refused since the start.
    pub fn connections(&self, open: usize, refused: u64) {
        self.0.service.connections(open, refused);
    }

    /// Sets when the served certificate expires, in seconds since 1970.
    pub fn certificate_expiry(&self, timestamp: Option<i64>) {
        self.0.service.certificate_expiry(timestamp);
    }

    /// Sets the state of the pod lookup; no namespace while it is not available.
    pub fn pods(&self, namespaces: &[Looked<'_>]) {
        self.0.service.pods(namespaces);
    }

    /// Sets the counts of exported and lost spans since the start.
    pub fn spans(&self, counts: &trace::Counts) {
        self.0.service.spans(counts);
    }

    /// Sets the counts of the board.
    pub fn board(&self, counts: &Counts) {
        self.0.board.report(counts);
    }

    /// Sets how many log lines were lost since the start.
    pub fn log_lines_lost(&self, lines: u64) {
        self.0.service.log_lines_lost(lines);
    }

    /// Sets how many elections have a leader whose term has not ended.
    pub fn elections_held(&self, elections: usize) {
        self.0.elections.held(elections);
    }
}

/// Registers metrics by the rows of the table.
struct Registrar(Registry);

impl Registrar {
    fn register(&mut self, row: &Row, metric: impl Metric) {
        // The library appends these suffixes itself.
        let name = row.name.trim_end_matches("_total");
        match name.strip_suffix("_seconds") {
            Some(name) => self
                .0
                .register_with_unit(name, row.meaning, Unit::Seconds, metric),
            None => self.0.register(name, row.meaning, metric),
        }
    }
}
