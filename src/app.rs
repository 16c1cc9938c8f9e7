//! Builds the agent from its configuration, and runs it.

mod starting;
mod tree;

use std::{io, net::SocketAddr, time::Duration};

use election_core::lease::NodeError;
use starting::Starting;
pub use tree::Tree;

use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::DropGuard, task::TaskTracker};

use crate::{
    config::{Config, Listen},
    descriptors,
    listener::{Server, admission::Admission},
    reload::Mistake,
    shutdown::Stop,
    telemetry::{self, trace},
    tls::Acceptor,
    workers::Workers,
};

/// How long the shutdown waits for roll-backs. An unacknowledged grant that is not rolled back expires by itself.
const CLEAN_UP: Duration = Duration::from_secs(1);

/// How long the shutdown waits for spans to be exported.
const SEND_SPANS: Duration = Duration::from_secs(3);

/// Maximum number of connections that wait to be accepted, if the system (`net.core.somaxconn`) permits. When this
/// queue is full, a client's first packet is dropped and sent again after a second. A burst from one peer should not
/// cause that for others.
const BACKLOG: u32 = 4096;

/// Why the agent cannot start. The text names the setting to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Ports cannot be opened; one line each.
    #[error("{0}")]
    Bind(String),
    /// The threads that serve connections cannot be started.
    #[error("cannot start {count} threads to serve connections: {why}: set EA_WORKERS to fewer")]
    Workers {
        /// The number of threads.
        count: usize,
        /// The system's error.
        why: io::Error,
    },
    /// Files have become unusable since the configuration was read; one line each.
    #[error("{0}")]
    Files(String),
    /// The lease store cannot be opened.
    #[error(transparent)]
    Store(#[from] NodeError),
    /// The configuration requires Kubernetes, which is unusable.
    #[error("{0}")]
    Kubernetes(String),
    /// The configuration requires tracing, which cannot start.
    #[error(transparent)]
    Traces(#[from] trace::StartError),
    /// The build is broken: the embedded descriptors are invalid.
    #[error("the built-in protobuf descriptors do not parse: {0}")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// A running agent.
pub struct App {
    addresses: Vec<SocketAddr>,
    accepting: Vec<JoinHandle<()>>,
    connections: TaskTracker,
    tree: Tree,
    shutdown_grace: Duration,
    stop: Stop,
    /// Stops the workers when dropped.
    _work: DropGuard,
}

impl App {
    /// Opens the ports, which answer `/livez` from then on, then the lease nodes, and serves until the shutdown.
    ///
    /// An unreachable Redis server is not an error: the agent starts, is not ready, and keeps trying to connect.
    ///
    /// # Errors
    /// A port or file cannot be opened.
    pub async fn start(
        config: &Config,
        traces: Option<trace::Pipeline>,
        stop: Stop,
    ) -> Result<Self, StartError> {
        let tls = config.tls.clone();
        let tls = tls.map(|tls| Acceptor::start(tls.files, tls.handshake_timeout));
        let tls = tls.transpose().map_err(|mistakes| unusable(&mistakes))?;
        let listeners = bind(&config.listen)?;
        let addresses = listeners.iter();
        let addresses = addresses.filter_map(|listener| listener.local_addr().ok());
        let addresses = addresses.collect();
        let count = config.listen.workers;
        let (workers, work) = Workers::start(count).map_err(|why| StartError::Workers {
            count: count.get(),
            why,
        })?;
        let admission = Admission::new(
            descriptors::bound(config, &workers),
            config.limits.trusted_proxies.clone(),
        );
        let connections = TaskTracker::new();
        let service = Starting::new();
        let server = Server {
            tls: tls.clone(),
            admission: admission.clone(),
            service: service.clone(),
            lifetime: config.listen.lifetime,
            conduct: config.listen.conduct,
            workers: workers.clone(),
            connections: connections.clone(),
            shutdown: stop.gently.clone(),
        };
        let listeners = listeners.into_iter();
        let accepting = listeners.map(|listener| tokio::spawn(server.clone().accept(listener)));
        let accepting = accepting.collect();
        let tree = Tree::build(config, traces, &workers, &admission).await?;
        tree.metrics.on_scrape(move |scrape| {
            scrape.connections(admission.open(), admission.refused());
            scrape.certificate_expiry(tls.as_ref().and_then(Acceptor::expiry));
            scrape.log_lines_lost(telemetry::log::lost());
        });
        service.started(tree.service());
        Ok(Self {
            addresses,
            accepting,
            connections,
            tree,
            shutdown_grace: config.listen.shutdown_grace,
            stop,
            _work: work,
        })
    }

    /// Returns the addresses that the agent listens on, gRPC first.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until a shutdown is requested. Then reports that to probes, stops accepting connections, and answers the
    /// requests in progress for at most the grace period. Streams that last as long as their clients keep them open end
    /// at once.
    pub async fn run(self) {
        let stop = &self.stop;
        tokio::select! {
            () = stop.gently.cancelled() => {}
            () = self.tree.monitor.run() => {}
        }

        let ends = Instant::now() + self.shutdown_grace + CLEAN_UP;
        let answered = async {
            self.tree.closing.cancel();
            self.tree.monitor.drain().await;
            for accept_loop in self.accepting {
                // A panicked accept loop has stopped accepting, too.
                let _ = accept_loop.await;
            }
            self.connections.close();
            self.connections.wait().await;
        };
        let ended = async {
            end(
                answered,
                self.shutdown_grace,
                &self.connections,
                self.tree.quorum.drain(),
            )
            .await;
            if let Some(traces) = self.tree.traces {
                let left = ends.saturating_duration_since(Instant::now());
                traces.flush(left.min(SEND_SPANS)).await;
            }
        };
        tokio::select! {
            () = ended => {}
            () = stop.at_once.cancelled() => {}
        }
        tracing::info!("bye");
    }
}

/// Waits for replies for at most the grace period, then for roll-backs of grants to callers that have disconnected.
async fn end(
    answered: impl Future,
    grace: Duration,
    connections: &TaskTracker,
    withdrawn: impl Future,
) {
    match timeout(grace, answered).await {
        Ok(_) => tracing::info!("every request was answered"),
        Err(_) => tracing::warn!(
            connections = connections.len(),
            "EA_SHUTDOWN_GRACE has passed, and requests are still in progress"
        ),
    }
    // An unavailable node must not delay the shutdown.
    let _ = timeout(CLEAN_UP, withdrawn).await;
}

fn unusable(mistakes: &[Mistake]) -> StartError {
    let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
    StartError::Files(lines.join("\n"))
}

fn bind(listen: &Listen) -> Result<Vec<TcpListener>, StartError> {
    let mut ports = vec![(listen.grpc_port, "EA_GRPC_PORT")];
    if listen.http_port != listen.grpc_port {
        ports.push((listen.http_port, "EA_HTTP_PORT"));
    }
    let (mut listeners, mut refused) = (Vec::new(), Vec::new());
    for (port, variable) in ports {
        let address = SocketAddr::new(listen.address, port);
        match listen_on(address) {
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

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Makes the port available at once after the previous agent has ended.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn cannot_bind(address: SocketAddr, variable: &str, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a privilege: set {variable} to one from 1024 on, such as {}, or give \
             the process CAP_NET_BIND_SERVICE",
            if address.port() == 80 { 8080 } else { 8443 }
        ),
        io::ErrorKind::AddrInUse => {
            format!("another process uses it: stop that process or set {variable} to a free port")
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
    use std::{cell::Cell, future::pending};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn withdrawals_are_made_after_the_grace_too_but_not_waited_for_without_end() {
        let (grace, soon) = (Duration::from_secs(30), Duration::from_millis(100));
        let connections = TaskTracker::new();
        let began = Instant::now();
        let withdrawn = Cell::new(false);
        let withdraws = async {
            sleep(soon).await;
            withdrawn.set(true);
        };
        end(pending::<()>(), grace, &connections, withdraws).await;
        assert!(withdrawn.get());
        assert!(began.elapsed() < grace + 2 * soon, "{:?}", began.elapsed());

        let began = Instant::now();
        end(async {}, grace, &connections, pending::<()>()).await;
        assert_eq!(began.elapsed().as_secs(), CLEAN_UP.as_secs());
    }

    #[test]
    fn a_port_that_needs_a_privilege_is_told_with_the_setting_to_change() {
        for (port, variable, instead) in
            [(80, "EA_HTTP_PORT", "8080"), (443, "EA_GRPC_PORT", "8443")]
        {
            let address = SocketAddr::from(([0, 0, 0, 0], port));
            let denied = io::Error::from(io::ErrorKind::PermissionDenied);
            let found = cannot_bind(address, variable, &denied);
            for part in [
                format!("0.0.0.0:{port}"),
                format!("set {variable} to"),
                instead.to_owned(),
            ] {
                assert!(found.contains(&part), "{part} is not in: {found}");
            }
        }
    }
}
