//! What becomes of elections: logged and counted.

use std::sync::Arc;

use election_core::election::ledger::{Change, Ledger, Observer, Outcome, Request};

use crate::{auth::audit, endpoint::Action, telemetry::metrics::Metrics};

/// A ledger whose changes are logged and counted.
#[must_use]
pub fn ledger(metrics: &Metrics) -> Ledger {
    let agent = hostname::get().map(|name| name.to_string_lossy().into_owned());
    let ledger = Ledger::new(Arc::new(Observed {
        agent: agent.unwrap_or_default(),
        metrics: metrics.clone(),
    }));
    let held = ledger.clone();
    metrics.on_scrape(move |scrape| scrape.elections_held(held.held()));
    ledger
}

/// Logs and counts what becomes of elections.
#[derive(Debug)]
struct Observed {
    /// What this agent is called: its host, which in Kubernetes is its pod.
    agent: String,
    metrics: Metrics,
}

impl Observer for Observed {
    fn changed(&self, change: &Change<'_>) {
        audit::changed(change, &self.agent);
        // A token without a new leader is the former one's.
        let token = change.token.filter(|_| change.new.is_some());
        self.metrics.changed(change.election, change.cause, token);
    }

    fn came_of(&self, request: Request, outcome: Outcome) {
        let action = match request {
            Request::Campaign => Action::Campaign,
            Request::Extend => Action::Extend,
            Request::Resign => Action::Resign,
            Request::Handover => Action::Handover,
            Request::Leader => Action::Leader,
            Request::List => Action::List,
        };
        self.metrics.outcome(action, outcome);
    }
}
