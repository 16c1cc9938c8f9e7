//! Metrics of elections: outcomes of requests, and changes of leadership.

use std::{
    array,
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use election_core::{
    election::ledger::{Cause, RequestOutcome},
    types::{ElectionId, Kind, Token},
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use strum::VariantArray;

use super::{
    Registrar,
    table::{self, ELECTIONS_PER_KIND},
};
use crate::endpoint::Action;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfElection {
    kind: String,
    election: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Changed {
    kind: String,
    election: String,
    cause: &'static str,
}

/// The metrics of elections.
#[derive(Debug)]
pub(super) struct ElectionMetrics {
    outcomes: Family<ByOutcome, Counter>,
    /// By action and outcome. Created on first use, as most pairs never occur.
    by_outcome: [[OnceLock<Counter>; RequestOutcome::VARIANTS.len()]; Action::VARIANTS.len()],
    changes: [Counter; Cause::VARIANTS.len()],
    held: Gauge,
    each: Option<Each>,
}

impl ElectionMetrics {
    pub(super) fn register(registrar: &mut Registrar, per_election: &[Kind]) -> Self {
        let outcomes = Family::default();
        let changes = Family::<ByCause, Counter>::default();
        let held = Gauge::default();
        registrar.register(&table::OUTCOMES, outcomes.clone());
        registrar.register(&table::LEADERSHIP_CHANGES, changes.clone());
        registrar.register(&table::HELD, held.clone());
        let by_cause = |number: usize| {
            let cause = Cause::VARIANTS[number].name();
            changes.get_or_create_owned(&ByCause { cause })
        };
        Self {
            outcomes,
            by_outcome: Default::default(),
            changes: array::from_fn(by_cause),
            held,
            each: (!per_election.is_empty()).then(|| Each::register(registrar, per_election)),
        }
    }

    pub(super) fn outcome(&self, action: Action, outcome: RequestOutcome) {
        let counter = self.by_outcome[action as usize][outcome as usize].get_or_init(|| {
            self.outcomes.get_or_create_owned(&ByOutcome {
                action: action.name(),
                outcome: outcome.name(),
            })
        });
        counter.inc();
    }

    pub(super) fn changed(&self, election: &ElectionId, cause: Cause, token: Option<Token>) {
        self.changes[cause as usize].inc();
        if let Some(each) = &self.each {
            each.changed(election, cause, token);
        }
    }

    pub(super) fn held(&self, elections: usize) {
        self.held.set(i64::try_from(elections).unwrap_or(i64::MAX));
    }
}

/// Series for individual elections, for the kinds that the operator has named.
#[derive(Debug)]
struct Each {
    /// The elections that have series, by kind.
    known: HashMap<String, Mutex<HashSet<ElectionId>>>,
    tokens: Family<OfElection, Gauge>,
    changes: Family<Changed, Counter>,
}

impl Each {
    fn register(registrar: &mut Registrar, kinds: &[Kind]) -> Self {
        let kinds = kinds.iter().map(|kind| kind.as_str().to_owned());
        let each = Self {
            known: kinds.map(|kind| (kind, Mutex::default())).collect(),
            tokens: Family::default(),
            changes: Family::default(),
        };
        registrar.register(&table::ELECTION_TOKEN, each.tokens.clone());
        registrar.register(&table::ELECTION_CHANGES, each.changes.clone());
        each
    }

    fn changed(&self, election: &ElectionId, cause: Cause, token: Option<Token>) {
        if !self.has_series(election) {
            return;
        }
        let of = OfElection {
            kind: election.kind().to_owned(),
            election: election.name().to_owned(),
        };
        if let Some(token) = token {
            // Tokens are below 2^53.
            let token = i64::try_from(token.get()).unwrap_or(i64::MAX);
            self.tokens.get_or_create(&of).set(token);
        }
        let OfElection { kind, election } = of;
        let cause = cause.name();
        self.changes
            .get_or_create(&Changed {
                kind,
                election,
                cause,
            })
            .inc();
    }

    /// Returns whether the election has series. Gives it series if its kind has fewer than the limit.
    fn has_series(&self, election: &ElectionId) -> bool {
        let Some(known) = self.known.get(election.kind()) else {
            return false;
        };
        let mut known = known.lock();
        if known.contains(election) {
            return true;
        }
        if known.len() < ELECTIONS_PER_KIND {
            if known.len() + 1 == ELECTIONS_PER_KIND {
                tracing::warn!(
                    kind = election.kind(),
                    limit = ELECTIONS_PER_KIND,
                    "further elections of this kind of EA_METRICS_PER_ELECTION get no series of their own"
                );
            }
            return known.insert(election.clone());
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Format, Metrics};

    fn series(text: &str, name: &str) -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn no_election_has_series_of_its_own_unless_its_kind_is_named() {
        let election = ElectionId::new("jobs", "nightly \"a\"\\").expect("valid");
        let other = ElectionId::new("users", "x").expect("valid");
        let token = Token::new(7);
        let metrics = Metrics::new(&[1.0]);
        metrics.changed(&election, Cause::Campaign, token);
        let text = metrics.text(Format::Text);
        assert!(!text.contains("nightly"), "{text}");
        assert!(!text.contains("election_agent_election_"), "{text}");

        let kinds = [Kind::new("jobs").expect("valid")];
        let metrics = Metrics::with_elections(&[1.0], &kinds);
        for election in [&election, &other] {
            metrics.changed(election, Cause::Campaign, token);
            metrics.changed(election, Cause::Resign, None);
        }
        let text = metrics.text(Format::Text);
        let labels = r#"kind="jobs",election="nightly \"a\"\\""#;
        let mut shown = series(&text, "election_agent_election_");
        shown.sort_unstable();
        assert_eq!(
            shown,
            [
                format!(
                    "election_agent_election_leadership_changes_total{{{labels},cause=\"campaign\"}} 1"
                ),
                format!(
                    "election_agent_election_leadership_changes_total{{{labels},cause=\"resign\"}} 1"
                ),
                format!("election_agent_election_token{{{labels}}} 7"),
            ]
        );
        let all = "election_agent_leadership_changes_total{cause=\"resign\"} 2";
        assert!(text.lines().any(|line| line == all), "{text}");
    }

    #[test]
    fn a_kind_has_series_for_so_many_elections_and_no_more() {
        let kinds = [Kind::new("jobs").expect("valid")];
        let metrics = Metrics::with_elections(&[1.0], &kinds);
        for number in 0..ELECTIONS_PER_KIND + 50 {
            let election = ElectionId::new("jobs", &format!("e{number}")).expect("valid");
            metrics.changed(&election, Cause::Campaign, Token::new(7));
        }
        let first = ElectionId::new("jobs", "e0").expect("valid");
        metrics.changed(&first, Cause::Campaign, Token::new(8));
        let text = metrics.text(Format::Text);
        let tokens = series(&text, "election_agent_election_token{");
        assert_eq!(tokens.len(), ELECTIONS_PER_KIND);
        assert!(
            tokens.iter().any(|line| line.ends_with(" 8")),
            "the first is followed"
        );
    }

    #[test]
    fn outcomes_appear_when_they_come() {
        let metrics = Metrics::new(&[1.0]);
        assert_eq!(
            series(&metrics.text(Format::Text), "election_agent_outcomes_total"),
            [""; 0]
        );
        metrics.outcome(Action::Campaign, RequestOutcome::Held);
        metrics.outcome(Action::Campaign, RequestOutcome::Held);
        assert_eq!(
            series(&metrics.text(Format::Text), "election_agent_outcomes_total"),
            ["election_agent_outcomes_total{action=\"campaign\",outcome=\"held\"} 2"]
        );
    }
}
