//! Metrics of the process and its surroundings: readiness, connections, certificates, pods, traces, the
//! build.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
};

use super::{Flag, Registrar, Seconds, table};
use crate::telemetry::trace;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    commit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InNamespace {
    namespace: String,
}

/// The metrics of the process.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) ready: Flag,
    connections: Gauge,
    connections_refused: Counter,
    certificate_expiry: Optional,
    kube_age: Family<InNamespace, Seconds>,
    kube_pods: Family<InNamespace, Gauge>,
    traces: Traces,
    log_lines_lost: Counter,
}

impl Service {
    pub(super) fn register(registrar: &mut Registrar) -> Self {
        let service = Self {
            ready: Flag::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            certificate_expiry: Optional::default(),
            kube_age: Family::default(),
            kube_pods: Family::default(),
            traces: Traces::default(),
            log_lines_lost: Counter::default(),
        };
        registrar.register(&table::READY, service.ready.clone());
        registrar.register(&table::CONNECTIONS, service.connections.clone());
        registrar.register(
            &table::CONNECTIONS_REFUSED,
            service.connections_refused.clone(),
        );
        registrar.register(
            &table::CERTIFICATE_EXPIRY,
            service.certificate_expiry.clone(),
        );
        registrar.register(&table::KUBE_AGE, service.kube_age.clone());
        registrar.register(&table::KUBE_PODS, service.kube_pods.clone());
        registrar.register(&table::SPANS_EXPORTED, service.traces.exported.clone());
        registrar.register(&table::SPANS_LOST, service.traces.lost.clone());
        registrar.register(&table::EXPORT_FAILURES, service.traces.failures.clone());
        registrar.register(&table::LOG_LINES_LOST, service.log_lines_lost.clone());
        let build = Family::<Build, Flag>::default();
        build
            .get_or_create(&Build {
                version: env!("CARGO_PKG_VERSION"),
                commit: env!("ELECTION_AGENT_COMMIT"),
            })
            .set(1);
        registrar.register(&table::BUILD_INFO, build);
        service
    }

    pub(super) fn connections(&self, open: usize, refused: u64) {
        self.connections
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        let counter: &AtomicU64 = self.connections_refused.inner();
        counter.store(refused, Relaxed);
    }

    pub(super) fn spans(&self, counts: &trace::Counts) {
        let Traces {
            exported,
            lost,
            failures,
        } = &self.traces;
        for (counter, count) in [
            (exported, counts.exported),
            (lost, counts.lost),
            (failures, counts.failures),
        ] {
            let counter: &AtomicU64 = counter.inner();
            counter.store(count, Relaxed);
        }
    }

    pub(super) fn log_lines_lost(&self, lines: u64) {
        let counter: &AtomicU64 = self.log_lines_lost.inner();
        counter.store(lines, Relaxed);
    }

    pub(super) fn certificate_expiry(&self, timestamp: Option<i64>) {
        *self.certificate_expiry.lock() = timestamp;
    }

    pub(super) fn pods(&self, namespaces: &[Looked<'_>]) {
        self.kube_age.clear();
        self.kube_pods.clear();
        for looked in namespaces {
            let namespace = InNamespace {
                // An empty label equals a missing one.
                namespace: match looked.namespace {
                    "" => "*".to_owned(),
                    name => name.to_owned(),
                },
            };
            let pods = i64::try_from(looked.pods).unwrap_or(i64::MAX);
            self.kube_pods.get_or_create(&namespace).set(pods);
            if let Some(age) = looked.age {
                self.kube_age
                    .get_or_create(&namespace)
                    .set(age.as_secs_f64());
            }
        }
    }
}

/// The state of the pod lookup in a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Looked<'a> {
    /// The namespace; empty for all namespaces.
    pub namespace: &'a str,
    /// How many pods are known.
    pub pods: usize,
    /// The maximum age of the known data; `None` if there is none yet.
    pub age: Option<Duration>,
}

/// A gauge that may have no value. Cheap to clone.
#[derive(Debug, Clone, Default)]
struct Optional(Arc<Mutex<Option<i64>>>);

impl Optional {
    fn lock(&self) -> MutexGuard<'_, Option<i64>> {
        self.0.lock()
    }
}

impl EncodeMetric for Optional {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match *self.lock() {
            Some(value) => encoder.encode_gauge(&value),
            None => Ok(()),
        }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.lock().is_none()
    }
}

/// Counts of exported and lost spans.
#[derive(Debug, Default)]
struct Traces {
    exported: Counter,
    lost: Counter,
    failures: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Format, Metrics};

    #[test]
    fn what_is_not_known_any_more_is_not_told() {
        let metrics = Metrics::new(&[1.0]);
        let known = [
            Looked {
                namespace: "",
                pods: 3,
                age: Some(Duration::from_millis(1500)),
            },
            Looked {
                namespace: "new",
                pods: 0,
                age: None,
            },
        ];
        metrics.0.service.pods(&known);
        metrics.0.service.certificate_expiry(Some(1_700_000_000));
        metrics.0.service.connections(2, 5);
        let text = metrics.text(Format::Text);
        for line in [
            "election_agent_kube_cache_age_seconds{namespace=\"*\"} 1.5",
            "election_agent_kube_cache_pods{namespace=\"*\"} 3",
            "election_agent_kube_cache_pods{namespace=\"new\"} 0",
            "election_agent_certificate_expiry_timestamp_seconds 1700000000",
            "election_agent_connections 2",
            "election_agent_connections_refused_total 5",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        let of_new = "kube_cache_age_seconds{namespace=\"new\"}";
        assert!(!text.contains(of_new), "{text}");

        metrics.0.service.pods(&[]);
        metrics.0.service.certificate_expiry(None);
        let text = metrics.text(Format::Text);
        let gone = [
            "kube_cache_age_seconds{",
            "kube_cache_pods{",
            "timestamp_seconds 1",
        ];
        assert!(!gone.iter().any(|series| text.contains(series)), "{text}");
    }
}
