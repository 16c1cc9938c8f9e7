//! Logs and counts the outcomes of elections.

use std::sync::Arc;

use election_core::election::ledger::{Change, Ledger, LedgerObserver, Request, RequestOutcome};

use crate::{auth::audit, endpoint::Action, telemetry::metrics::Metrics};

/// Creates a ledger that logs and counts every change.
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

/// Logs and counts the outcomes of elections.
#[derive(Debug)]
struct Observed {
    /// The name of this agent: its host name, which is the pod name in Kubernetes.
    agent: String,
    metrics: Metrics,
}

impl LedgerObserver for Observed {
    fn changed(&self, change: &Change<'_>) {
        audit::changed(change, &self.agent);
        // Without a new leader, the token belongs to the former one.
        let token = change.token.filter(|_| change.new.is_some());
        self.metrics.changed(change.election, change.cause, token);
    }

    fn finished(&self, request: Request, outcome: RequestOutcome) {
        let action = match request {
            Request::Campaign => Action::Campaign,
            Request::Extend => Action::Extend,
            Request::Resign => Action::Resign,
            Request::Handover => Action::Handover,
            Request::Leader => Action::Leader,
            Request::List => Action::List,
            Request::ListKinds => Action::ListKinds,
            Request::Verify => Action::Verify,
        };
        self.metrics.outcome(action, outcome);
    }
}
