//! Metrics of requests: how many are in flight, how long they took, and which status they got.

use std::{
    array,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        exemplar::HistogramWithExemplars,
        family::{Family, MetricConstructor},
        gauge::Gauge,
    },
};
use strum::VariantArray;

use super::{
    Metrics, Registrar,
    table::{self, REFUSALS, status_name},
};
use crate::{endpoint::Action, status::Code};

/// The number of gRPC status codes.
const STATUSES: usize = 17;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    action: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAction {
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// The labels of an exemplar.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Trace {
    trace_id: String,
}

type Histogram = HistogramWithExemplars<Trace>;

#[derive(Debug, Clone)]
struct Buckets(Arc<[f64]>);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

/// The metrics of requests. Each is resolved once, so that a request needs no lookup.
#[derive(Debug)]
pub(super) struct Requests {
    family: Family<Answered, Histogram, Buckets>,
    /// By action and status. Created on first use, as most pairs never occur.
    durations: [[OnceLock<Histogram>; STATUSES]; Action::VARIANTS.len()],
    in_flight: [Gauge; Action::VARIANTS.len()],
    unavailable: Counter,
    refused: [Counter; REFUSALS.len()],
}

impl Requests {
    pub(super) fn register(registrar: &mut Registrar, buckets: &[f64]) -> Self {
        let family = Family::new_with_constructor(Buckets(buckets.into()));
        let in_flight = Family::<ByAction, Gauge>::default();
        let refused = Family::<ByReason, Counter>::default();
        let unavailable = Counter::default();
        registrar.register(&table::REQUEST_DURATION, family.clone());
        registrar.register(&table::IN_FLIGHT, in_flight.clone());
        registrar.register(&table::UNAVAILABLE, unavailable.clone());
        registrar.register(&table::REFUSED, refused.clone());
        let by_action = |number: usize| {
            let action = Action::VARIANTS[number].name();
            in_flight.get_or_create_owned(&ByAction { action })
        };
        Self {
            family,
            durations: Default::default(),
            in_flight: array::from_fn(by_action),
            unavailable,
            refused: REFUSALS.map(|reason| refused.get_or_create_owned(&ByReason { reason })),
        }
    }

    fn duration(&self, action: Action, status: tonic::Code) -> &Histogram {
        self.durations[action as usize][status as usize].get_or_init(|| {
            self.family.get_or_create_owned(&Answered {
                action: action.name(),
                status: status_name(status),
            })
        })
    }
}

/// The result of a response in any protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseStatus {
    /// The status.
    pub status: tonic::Code,
    /// The row of the error table, if it is known.
    pub code: Option<Code>,
}

impl ResponseStatus {
    /// The index of the reason in [`REFUSALS`].
    fn refusal(self) -> Option<usize> {
        match (self.code, self.status) {
            (Some(Code::RateLimited), _) => Some(0),
            (Some(Code::Overloaded), _) => Some(1),
            (Some(Code::OverQuota), _) => Some(4),
            (_, tonic::Code::Unauthenticated) => Some(2),
            (_, tonic::Code::PermissionDenied) => Some(3),
            _ => None,
        }
    }
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct InFlight {
    metrics: Metrics,
    action: Action,
}

impl InFlight {
    pub(super) fn begin(metrics: &Metrics, action: Action) -> Self {
        metrics.0.requests.in_flight[action as usize].inc();
        let metrics = metrics.clone();
        Self { metrics, action }
    }

    /// The action of the request.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Counts the response and its duration. If the request has a recorded trace, its id becomes an exemplar.
    pub fn answered(&self, answer: ResponseStatus, took: Duration, trace_id: Option<&str>) {
        let requests = &self.metrics.0.requests;
        let exemplar = trace_id.map(|id| Trace {
            trace_id: id.to_owned(),
        });
        let at = exemplar.as_ref().map(|_| SystemTime::now());
        requests
            .duration(self.action, answer.status)
            .observe(took.as_secs_f64(), exemplar, at);
        // A probe that gets "not ready" requested nothing that a quorum decides.
        if answer.status == tonic::Code::Unavailable && self.action != Action::Probe {
            requests.unavailable.inc();
        }
        if let Some(reason) = answer.refusal() {
            requests.refused[reason].inc();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.0.requests.in_flight[self.action as usize].dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Format;

    #[test]
    fn every_status_has_a_place() {
        for status in 0..STATUSES {
            let code = tonic::Code::from(i32::try_from(status).expect("small"));
            assert_eq!(code as usize, status);
        }
    }

    #[test]
    fn an_exemplar_is_the_trace_of_the_last_request_of_its_bucket() {
        let metrics = Metrics::new(&[1.0, 3.0]);
        let answer = ResponseStatus {
            status: tonic::Code::Ok,
            code: None,
        };
        let request = metrics.begin(Action::Campaign);
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        request.answered(answer, Duration::from_secs(2), Some(trace));
        request.answered(answer, Duration::from_secs(4), None);
        let text = metrics.text(Format::OpenMetrics);
        let exemplars: Vec<_> = text.lines().filter(|line| line.contains(" # {")).collect();
        let [line] = exemplars[..] else {
            panic!("{text}");
        };
        let bucket = "election_agent_request_duration_seconds_bucket{le=\"3.0\",action=\"campaign\",status=\"ok\"} 1";
        let expected = format!("{bucket} # {{trace_id=\"{trace}\"}} 2.0 ");
        let at = line.strip_prefix(&expected).expect(line);
        let at: f64 = at.parse().expect("seconds since 1970");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let age = now.expect("after 1970").as_secs_f64() - at;
        assert!((0.0..3600.0).contains(&age), "{line}");
        let text = metrics.text(Format::Text);
        assert!(text.lines().any(|line| line == bucket), "{text}");
        assert!(!text.contains(trace));
    }

    #[test]
    fn refusals_are_counted_by_their_reason() {
        let metrics = Metrics::new(&[1.0]);
        let request = metrics.begin(Action::Campaign);
        for (status, code) in [
            (tonic::Code::ResourceExhausted, Some(Code::RateLimited)),
            (tonic::Code::ResourceExhausted, Some(Code::Overloaded)),
            (tonic::Code::ResourceExhausted, Some(Code::OverQuota)),
            (tonic::Code::ResourceExhausted, Some(Code::PayloadTooLarge)),
            (tonic::Code::ResourceExhausted, None),
            (tonic::Code::Unauthenticated, Some(Code::Unauthenticated)),
            (tonic::Code::PermissionDenied, None),
        ] {
            request.answered(ResponseStatus { status, code }, Duration::ZERO, None);
        }
        let text = metrics.text(Format::Text);
        for reason in REFUSALS {
            let line = format!("election_agent_requests_refused_total{{reason=\"{reason}\"}} 1");
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }
}
