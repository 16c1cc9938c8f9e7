//! Readiness of the agent, updated in the background.
//!
//! `/readyz` and the gRPC health service respond with the last [`Report`]. A probe sends no request to the
//! lease nodes, however often it comes.

use std::time::Duration;

use election_core::lease::quorum::{NodeStatus, Quorum};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::telemetry::metrics::Metrics;

/// The interval between health checks of the nodes.
const EVERY: Duration = Duration::from_secs(1);

/// The health services that follow readiness, besides those of the contract.
const READY: [&str; 2] = ["", "readiness"];
/// The health service that serves as long as the process runs.
const LIVE: &str = "liveness";

/// The last known readiness of the agent.
#[derive(Debug, Clone)]
pub struct Report {
    /// How many lease nodes must reply.
    pub needed: usize,
    /// The lease nodes at the last health check.
    pub nodes: Vec<NodeStatus>,
    /// When the health check ended.
    pub checked: Instant,
    /// Whether the agent is shutting down.
    pub draining: bool,
}

impl Report {
    /// Returns whether the agent is ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.why_not().is_none()
    }

    /// Returns the reason why the agent is not ready.
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
    /// Full names of the gRPC services that serve when the agent is ready.
    services: Vec<&'static str>,
    metrics: Metrics,
    report: watch::Sender<Report>,
    /// The published status of all gRPC services except [`LIVE`].
    published: Mutex<Option<ServingStatus>>,
}

impl Monitor {
    /// Checks the nodes once, so that the first probe gets a correct reply.
    pub async fn start(
        quorum: Quorum,
        health: HealthReporter,
        services: Vec<&'static str>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Report>) {
        let (report, receiver) = watch::channel(Report {
            needed: quorum.needed(),
            nodes: Vec::new(),
            checked: Instant::now(),
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

    /// Checks the nodes periodically. Never returns.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.ask().await;
        }
    }

    /// Publishes that the agent shuts down, and ends the streams of the health service, which would otherwise
    /// keep their connections open forever.
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
        self.report.send_modify(|report| {
            (report.nodes, report.checked) = (nodes, Instant::now());
        });
        let is = self.report.borrow().clone();
        self.metrics.report(&is.nodes, is.ready());
        // The first report follows a report without nodes. It is logged even if the readiness is the same.
        if was.ready() != is.ready() || was.nodes.is_empty() {
            match is.why_not() {
                None => tracing::info!("ready"),
                Some(reason) => tracing::error!(reason, "not ready"),
            }
        }
        self.publish().await;
    }

    /// Sets the status of the gRPC services if it changed. The reporter notifies all streams on every set,
    /// even of an equal status.
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
        // Set only after all services are: the caller may drop this future in between.
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
