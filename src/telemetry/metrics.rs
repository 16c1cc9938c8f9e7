//! Every metric, in one place.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the request duration's buckets, in seconds, unless configured otherwise.
pub const DEFAULT_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    action: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

#[derive(Clone)]
struct Buckets(Arc<[f64]>);

impl prometheus_client::metrics::family::MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// The agent's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    duration: Family<Request, Histogram, Buckets>,
    in_flight: Family<Action, Gauge>,
    unavailable: Counter,
    disconnected: Gauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics whose request durations are counted in buckets with these upper bounds, in seconds.
    #[must_use]
    pub fn new(buckets: &[f64]) -> Self {
        let duration = Family::new_with_constructor(Buckets(buckets.into()));
        let in_flight = Family::default();
        let unavailable = Counter::default();
        let disconnected = Gauge::default();
        let mut registry = Registry::with_prefix("election_agent");
        registry.register(
            "request_duration_seconds",
            "How long requests took, by action and by the gRPC name of their status",
            duration.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Requests under way, by action",
            in_flight.clone(),
        );
        registry.register(
            "unavailable",
            "Requests that no quorum of lease nodes answered",
            unavailable.clone(),
        );
        registry.register(
            "disconnected_redis_backends",
            "Lease nodes that do not answer",
            disconnected.clone(),
        );
        Self {
            registry: Arc::new(registry),
            duration,
            in_flight,
            unavailable,
            disconnected,
        }
    }

    /// Counts a request as under way until the value is dropped.
    pub(crate) fn begin(&self, action: &'static str) -> InFlight {
        let gauge = self.in_flight.get_or_create_owned(&Action { action });
        gauge.inc();
        InFlight(gauge)
    }

    /// Counts a request that was answered.
    pub(crate) fn end(&self, action: &'static str, status: tonic::Code, took: Duration) {
        let labels = Request {
            action,
            status: label(status),
        };
        self.duration
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
        // A probe that is told "not ready" asked for nothing that a quorum decides.
        if status == tonic::Code::Unavailable && action != "probe" {
            self.unavailable.inc();
        }
    }

    /// Says how many lease nodes do not answer.
    pub(crate) fn disconnected(&self, nodes: usize) {
        self.disconnected
            .set(i64::try_from(nodes).unwrap_or(i64::MAX));
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            // A String takes everything; whatever else fails must not look like a good scrape.
            text.clear();
            let _ = write!(text, "# {error}");
        }
        text
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn label(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
