//! Logs and metrics.

mod audit;
pub mod log;
pub mod metrics;

use std::sync::Arc;

use crate::election::ledger::{Change, Ledger, Observer, Outcome, Request};

/// A ledger whose changes are logged.
#[must_use]
pub fn ledger() -> Ledger {
    let agent = hostname::get().map(|name| name.to_string_lossy().into_owned());
    Ledger::new(Arc::new(Observed {
        agent: agent.unwrap_or_default(),
    }))
}

/// Logs what becomes of elections.
#[derive(Debug)]
struct Observed {
    /// What this agent is called: its host, which in Kubernetes is its pod.
    agent: String,
}

impl Observer for Observed {
    fn changed(&self, change: &Change<'_>) {
        audit::log(change, &self.agent);
    }

    fn came_of(&self, _: Request, _: Outcome) {}
}
