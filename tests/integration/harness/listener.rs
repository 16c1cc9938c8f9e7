//! Services behind the agent's listener in this process.

use std::{convert::Infallible, time::Duration};

use axum::{body::Body, response::Response};
use election_agent::{
    listener::{
        Conduct, Lifetime, Server,
        admission::{Admission, Limits},
    },
    peer::TrustedProxies,
    tls::Acceptor,
    workers::Workers,
};
use http::Request;
use tokio::net::TcpListener;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tower::Service;

/// Serves connections, which may be many and slow, until what is returned is dropped.
pub(crate) fn serve<S>(listener: TcpListener, tls: Option<Acceptor>, service: S) -> DropGuard
where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let limits = Limits {
        connections: 1_000,
        per_peer: None,
        bound_by: "EA_MAX_CONNECTIONS",
    };
    let shutdown = CancellationToken::new();
    let server = Server {
        tls,
        admission: Admission::new(limits, TrustedProxies::default()),
        service,
        lifetime: Lifetime {
            idle: None,
            age: None,
            age_grace: Duration::ZERO,
        },
        conduct: Conduct {
            first_byte: Duration::from_secs(60),
            head: Duration::from_secs(60),
            min_ping_interval: Duration::ZERO,
        },
        workers: Workers::here(),
        connections: TaskTracker::new(),
        shutdown: shutdown.clone(),
    };
    tokio::spawn(server.accept(listener));
    shutdown.drop_guard()
}
