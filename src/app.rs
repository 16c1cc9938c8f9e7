//! Builds the agent from its configuration, and runs it.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use futures_util::future::join_all;
use http::Request;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::server::NamedService as _;
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::Service;

use crate::{
    config::{Config, Listen, Store},
    election::Elections,
    lease::{
        LeaseNode, NodeError, Settings,
        embedded::Embedded,
        quorum::{Options, Quorum},
        redis::{Deployment, Redis, Use},
    },
    listener::{self, Lifetime, admission::Admission},
    proto::election_server::ElectionServer,
    readiness::Monitor,
    shutdown::Stop,
    stack::{self, stack},
    telemetry::metrics::Metrics,
    tls::Acceptor,
    transport::{
        Mux,
        grpc::{self, Handler},
        rest,
    },
};

/// How long the end waits for withdrawals, which lapse by themselves if they are not made.
const CLEAN_UP: Duration = Duration::from_secs(1);

/// Why the agent cannot start; the text names the setting to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Ports cannot be had; a line each.
    #[error("{0}")]
    Bind(String),
    /// The files for TLS have become unusable since they were read; a line each.
    #[error("{0}")]
    Tls(String),
    /// The place where leases are kept cannot be opened.
    #[error(transparent)]
    Store(#[from] NodeError),
    /// The build is broken.
    #[error("the built-in protobuf descriptors do not parse: {0}")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// An agent that listens, ready to run.
pub struct App {
    listeners: Vec<TcpListener>,
    tls: Option<Acceptor>,
    tree: Tree,
    lifetime: Lifetime,
    admission: Admission,
    shutdown_grace: Duration,
}

impl App {
    /// Opens the ports and the lease nodes.
    ///
    /// A Redis server that does not answer is no error: the agent starts, is not ready, and keeps
    /// trying.
    ///
    /// # Errors
    /// A port or file that cannot be opened.
    pub async fn build(config: &Config) -> Result<Self, StartError> {
        if config.kube.enable {
            tracing::warn!(
                "pods cannot be looked up: GetPods and /kube answer that it is disabled; \
                 EA_KUBE_ENABLE=false silences this"
            );
        }
        let tls = config.tls.clone();
        let tls = tls.map(|tls| Acceptor::start(tls.files, tls.handshake_timeout));
        let tls = tls.transpose().map_err(StartError::Tls)?;
        Ok(Self {
            listeners: bind(&config.listen).await?,
            tls,
            tree: Tree::build(config).await?,
            lifetime: Lifetime {
                idle: config.listen.idle,
                age: config.listen.age,
                age_grace: config.listen.age_grace,
            },
            admission: Admission::new(config.limits.connections),
            shutdown_grace: config.listen.shutdown_grace,
        })
    }

    /// Where the agent listens: gRPC's port first.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// Serves until it is to stop, then says so to probes, stops accepting, and answers what is under way,
    /// for as long as the grace lasts.
    pub async fn run(self, stop: Stop) {
        let connections = TaskTracker::new();
        let service = self.tree.service();
        let accepting = self.listeners.into_iter().map(|listener| {
            tokio::spawn(listener::serve(
                listener,
                self.tls.clone(),
                self.admission.clone(),
                service.clone(),
                self.lifetime,
                connections.clone(),
                stop.gently.clone(),
            ))
        });
        let accepting: Vec<_> = accepting.collect();
        tokio::select! {
            () = stop.gently.cancelled() => {}
            () = self.tree.monitor.run() => {}
        }

        let draining = async {
            self.tree.monitor.drain().await;
            for accept_loop in accepting {
                // A loop that panicked accepts no more either.
                let _ = accept_loop.await;
            }
            connections.close();
            connections.wait().await;
        };
        tokio::select! {
            () = draining => {
                tracing::info!("every request was answered");
                // What was granted to callers that have gone; a node that is down must not hold the end up.
                let _ = timeout(CLEAN_UP, self.tree.quorum.drain()).await;
            }
            () = sleep(self.shutdown_grace) => tracing::warn!(
                connections = connections.len(),
                "EA_SHUTDOWN_GRACE is over, and requests are still under way"
            ),
            () = stop.at_once.cancelled() => {}
        }
        tracing::info!("bye");
    }
}

/// What answers requests, without the ports that they come in by.
pub struct Tree {
    mux: Mux,
    metrics: Metrics,
    monitor: Monitor,
    quorum: Quorum,
    layers: stack::Settings,
}

impl Tree {
    /// Opens the lease nodes, and puts the services and the HTTP routes over them.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub async fn build(config: &Config) -> Result<Self, StartError> {
        let max_term = config.limits.max_term;
        let quorum = Quorum::new(
            nodes(&config.store, max_term).await?,
            Options::new(
                config.store.operation_timeout,
                config.store.restart_guard,
                guard(&config.store, max_term),
            ),
        );
        let elections = Elections::new(
            quorum.clone(),
            max_term,
            config.limits.allow_forced_handover,
        );
        let metrics = Metrics::new(&config.telemetry.buckets);

        let health = HealthReporter::new();
        let election = config.listen.grpc.then(|| Handler::new(elections.clone()));
        let mut services = vec![HealthServer::<HealthService>::NAME];
        services.extend(election.as_ref().map(|_| ElectionServer::<Handler>::NAME));
        services.extend(grpc::REFLECTION);
        let grpc = grpc::Services::new(
            election,
            HealthService::from_health_reporter(health.clone()),
        )?;
        let (monitor, readiness) =
            Monitor::start(quorum.clone(), health, services, metrics.clone()).await;
        let rest = rest::router(rest::Sources {
            elections: config.listen.http.then_some(elections),
            readiness,
            metrics: config.telemetry.metrics.then(|| metrics.clone()),
        });
        Ok(Self {
            mux: Mux::new(grpc, rest),
            metrics,
            monitor,
            quorum,
            layers: stack::Settings {
                cors: config.listen.cors.clone(),
                max_in_flight: config.limits.max_in_flight,
                request_timeout: config.limits.request_timeout,
            },
        })
    }

    /// The service that every connection gets.
    pub fn service(
        &self,
    ) -> impl Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
    + use<>
    + Clone
    + Send
    + 'static {
        stack(self.mux.clone(), &self.layers, self.metrics.clone())
    }
}

/// How long a node abstains that may have lost its memory: until nothing is left of what any agent was
/// granted before.
fn guard(store: &Store, max_term: Duration) -> Duration {
    let overlap = store.deployments.iter().map(Deployment::overlap).max();
    max_term + overlap.unwrap_or_default()
}

/// The one place that knows the kinds of nodes.
async fn nodes(store: &Store, max_term: Duration) -> Result<Vec<Arc<dyn LeaseNode>>, StartError> {
    let settings = Settings {
        retention: store.token_retention,
        guard: store.restart_guard.duration(guard(store, max_term)),
    };
    if !store.deployments.is_empty() {
        let names: Vec<_> = store.deployments.iter().map(Deployment::name).collect();
        tracing::info!(nodes = names.join(", "), "leases are kept on Redis");
        if names.len().is_multiple_of(2) {
            tracing::warn!(
                nodes = names.len(),
                "an even number of nodes survives no more failures than one fewer: use 1, 3 or 5"
            );
        }
        let mut sorted: Vec<_> = store.deployments.iter().map(Deployment::identity).collect();
        sorted.sort_unstable();
        let usage = Use {
            prefix: store.prefix.clone(),
            nodes: sorted.join(","),
            max_term,
            allow_eviction: store.allow_eviction,
        };
        let starting = store.deployments.iter().cloned().map(|deployment| {
            Redis::start(deployment, usage.clone(), store.operation_timeout, settings)
        });
        let started = join_all(starting).await.into_iter();
        return Ok(started.map(|node| Arc::new(node) as _).collect());
    }
    let node = match &store.embedded_path {
        Some(path) => {
            tracing::info!(
                path = %path.display(),
                "leases are kept in this process and its file: run one agent only"
            );
            Embedded::open(path, settings)?
        }
        None => {
            tracing::warn!(
                "leases are kept in this process's memory and are forgotten with it: run one agent \
                 only, and set EA_REDIS_URLS or EA_EMBEDDED_PATH for more than trying it out"
            );
            Embedded::in_memory(settings)
        }
    };
    Ok(vec![Arc::new(node)])
}

async fn bind(listen: &Listen) -> Result<Vec<TcpListener>, StartError> {
    let mut ports = vec![(listen.grpc_port, "EA_GRPC_PORT")];
    if listen.http_port != listen.grpc_port {
        ports.push((listen.http_port, "EA_HTTP_PORT"));
    }
    let (mut listeners, mut refused) = (Vec::new(), Vec::new());
    for (port, variable) in ports {
        let address = SocketAddr::new(listen.address, port);
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(error) => refused.push(cannot_bind(address, variable, &error)),
        }
    }
    if refused.is_empty() {
        Ok(listeners)
    } else {
        Err(StartError::Bind(refused.join("\n")))
    }
}

fn cannot_bind(address: SocketAddr, variable: &str, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a privilege: set {variable} to one from 1024 on, such as {}, or give \
             the process CAP_NET_BIND_SERVICE",
            if address.port() == 80 { 8080 } else { 8443 }
        ),
        io::ErrorKind::AddrInUse => {
            format!("another process has it: stop that or set {variable} to a free port")
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface has that address: set EA_BIND_ADDRESS to one that this machine has"
                .to_owned()
        }
        _ => format!("set {variable} or EA_BIND_ADDRESS to what this machine can listen on"),
    };
    format!("cannot listen on {address} ({variable}): {error}: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_needs_a_privilege_is_told_with_the_setting_to_change() {
        for (port, variable, instead) in
            [(80, "EA_HTTP_PORT", "8080"), (443, "EA_GRPC_PORT", "8443")]
        {
            let address = SocketAddr::from(([0, 0, 0, 0], port));
            let denied = io::Error::from(io::ErrorKind::PermissionDenied);
            let told = cannot_bind(address, variable, &denied);
            for part in [
                format!("0.0.0.0:{port}"),
                format!("set {variable} to"),
                instead.to_owned(),
            ] {
                assert!(told.contains(&part), "{part} is not in: {told}");
            }
        }
    }
}
