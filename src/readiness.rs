//! Whether the agent can answer, kept up to date in the background.
//!
//! `/readyz` and the gRPC health service answer from the last [`Report`]: a probe costs the lease nodes
//! nothing, however often it comes.

use std::time::Duration;

use election_core::lease::quorum::{NodeStatus, Quorum};
use parking_lot::Mutex;
use tokio::{sync::watch, time::MissedTickBehavior};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::telemetry::metrics::Metrics;

/// How often the nodes are asked.
const EVERY: Duration = Duration::from_secs(1);

/// The health services that follow readiness, besides those of the contract.
const READY: [&str; 2] = ["", "readiness"];
/// The health service that is up as long as the process is.
const LIVE: &str = "liveness";

/// What is known of the agent's ability to answer.
#[derive(Debug, Clone)]
pub struct Report {
    /// How many lease nodes have to answer.
    pub needed: usize,
    /// The lease nodes, as last asked.
    pub nodes: Vec<NodeStatus>,
    /// Whether the agent is shutting down.
    pub draining: bool,
}

impl Report {
    /// Whether the agent can answer.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.why_not().is_none()
    }

    /// Why the agent cannot answer.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        if self.draining {
            return Some("the agent is shutting down".to_owned());
        }
        let down: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|node| node.probe.as_ref().err().map(ToString::to_string))
            .collect();
        let up = self.nodes.len() - down.len();
        (up < self.needed).then(|| {
            format!(
                "{up} of {} lease nodes answer, {} are needed: {}",
                self.nodes.len(),
                self.needed,
                down.join("; ")
            )
        })
    }
}

/// Keeps a [`Report`] and the gRPC health service up to date.
pub struct Monitor {
    quorum: Quorum,
    health: HealthReporter,
    /// Full names of the gRPC services that are up when the agent is ready.
    services: Vec<&'static str>,
    metrics: Metrics,
    report: watch::Sender<Report>,
    /// What all gRPC services but [`LIVE`] have been set to.
    published: Mutex<Option<ServingStatus>>,
}

impl Monitor {
    /// Asks the nodes once, so that the first probe gets a true answer.
    pub async fn start(
        quorum: Quorum,
        health: HealthReporter,
        services: Vec<&'static str>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Report>) {
        let (report, receiver) = watch::channel(Report {
            needed: quorum.needed(),
            nodes: Vec::new(),
            draining: false,
        });
        let monitor = Self {
            quorum,
            health,
            services,
            metrics,
            report,
            published: Mutex::default(),
        };
        monitor
            .health
            .set_service_status(LIVE, ServingStatus::Serving)
            .await;
        monitor.ask().await;
        (monitor, receiver)
    }

    /// Asks the nodes for ever, until dropped.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.ask().await;
        }
    }

    /// Says that the agent is shutting down, and ends the health service's streams, which would
    /// otherwise keep their connections open for ever.
    pub async fn drain(&self) {
        self.report.send_modify(|report| report.draining = true);
        self.metrics.report(&self.report.borrow().nodes, false);
        self.publish().await;
        for service in self.services() {
            // The reporter is a handle: its clones share the statuses.
            self.health.clone().clear_service_status(service).await;
        }
    }

    async fn ask(&self) {
        let nodes = self.quorum.status().await;
        let was = self.report.borrow().clone();
        self.report.send_modify(|report| report.nodes = nodes);
        let is = self.report.borrow().clone();
        self.metrics.report(&is.nodes, is.ready());
        // The first report has no nodes before it, and follows the line that says so.
        if was.ready() != is.ready() || was.nodes.is_empty() {
            match is.why_not() {
                None => tracing::info!("ready"),
                Some(reason) => tracing::error!(reason, "not ready"),
            }
        }
        self.publish().await;
    }

    /// Sets the gRPC services' status if it has changed: every stream that watches one is told whatever is set.
    async fn publish(&self) {
        let status = match self.report.borrow().ready() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        let published = || self.published.lock();
        if *published() == Some(status) {
            return;
        }
        for service in self.services().filter(|service| *service != LIVE) {
            self.health.set_service_status(service, status).await;
        }
        // Not before all are set: whoever runs this may stop in between.
        *published() = Some(status);
    }

    fn services(&self) -> impl Iterator<Item = &'static str> {
        READY
            .into_iter()
            .chain([LIVE])
            .chain(self.services.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use election_core::lease::{
        Settings, embedded::Embedded, guard::RestartGuard, quorum::Options,
    };
    use futures_util::{FutureExt as _, StreamExt as _};
    use tokio::time::timeout;
    use tonic::Request;
    use tonic_health::{
        pb::{HealthCheckRequest, health_server::Health as _},
        server::HealthService,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_are_told_changes_and_nothing_else() {
        let minute = Duration::from_secs(60);
        let node = Embedded::in_memory(Settings {
            retention: minute,
            guard: None,
            vote: minute,
        });
        let options = Options::new(minute, RestartGuard::Off, minute);
        let quorum = Quorum::new(vec![Arc::new(node)], options);
        let health = HealthReporter::new();
        let service = HealthService::from_health_reporter(health.clone());
        let (monitor, _report) =
            Monitor::start(quorum, health, Vec::new(), Metrics::new(&[1.0])).await;
        let watched = HealthCheckRequest {
            service: "readiness".to_owned(),
        };
        let watching = service.watch(Request::new(watched)).await;
        let mut updates = watching.expect("a stream").into_inner();
        let mut next = async || {
            let update = updates.next().await?;
            Some(update.expect("a status").status().as_str_name())
        };
        assert_eq!(next().await, Some("SERVING"));

        let asked = timeout(10 * EVERY, monitor.run()).await;
        assert!(asked.is_err(), "it asks for ever");
        assert_eq!(next().now_or_never(), None, "nothing has changed");
        monitor.drain().await;
        assert_eq!(next().await, Some("NOT_SERVING"));
        assert_eq!(next().await, None, "the end");
    }
}
