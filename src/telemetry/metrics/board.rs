//! Metrics of waiters and observers.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use election_core::board::{BoardObserver, Counts};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::{Registrar, histogram::Durations, table};

/// The bounds of the buckets, in seconds: a hint takes a fraction of a ms, a lost one up to 10 s.
static BUCKETS: [f64; 11] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0,
];

/// The metrics of the board.
#[derive(Debug)]
pub(super) struct Board {
    waiters: Gauge,
    observers: Gauge,
    elections: Gauge,
    deaf: Gauge,
    hints: Counter,
    changes: Counter,
    unannounced: Counter,
    reads: Counter,
    claims: Counter,
    delivery: Durations,
}

impl Board {
    pub(super) fn register(registrar: &mut Registrar) -> Self {
        let board = Self {
            waiters: Gauge::default(),
            observers: Gauge::default(),
            elections: Gauge::default(),
            deaf: Gauge::default(),
            hints: Counter::default(),
            changes: Counter::default(),
            unannounced: Counter::default(),
            reads: Counter::default(),
            claims: Counter::default(),
            delivery: Durations::new(&BUCKETS),
        };
        registrar.register(&table::WAITERS, board.waiters.clone());
        registrar.register(&table::OBSERVERS, board.observers.clone());
        registrar.register(&table::BOARD_ELECTIONS, board.elections.clone());
        registrar.register(&table::BOARD_DEAF, board.deaf.clone());
        registrar.register(&table::HINTS, board.hints.clone());
        registrar.register(&table::CHANGES, board.changes.clone());
        registrar.register(&table::CHANGES_UNANNOUNCED, board.unannounced.clone());
        registrar.register(&table::BOARD_READS, board.reads.clone());
        registrar.register(&table::BOARD_CLAIMS, board.claims.clone());
        registrar.register(&table::DELIVERY, board.delivery.clone());
        board
    }

    pub(super) fn report(&self, counts: &Counts) {
        for (gauge, count) in [
            (&self.waiters, counts.waiters),
            (&self.observers, counts.subscriptions),
            (&self.elections, counts.elections),
            (&self.deaf, usize::from(counts.deaf && counts.running)),
        ] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (counter, count) in [
            (&self.hints, counts.hints),
            (&self.changes, counts.changes),
            (&self.unannounced, counts.unannounced),
            (&self.reads, counts.reads),
            (&self.claims, counts.claims),
        ] {
            let counter: &AtomicU64 = counter.inner();
            counter.store(count, Relaxed);
        }
    }
}

impl BoardObserver for super::Metrics {
    fn delivered(&self, after: Duration) {
        self.0.board.delivery.observe(after);
    }
}
