//! The accept loop: HTTP/1.1 and HTTP/2 on the same port, with TLS if that is configured, connections that
//! do not live for ever, and a shutdown that loses no request.
//!
//! [`admission`] says whether there is a place for a connection, [`watch`] cuts it when the client is too
//! slow or pings too much, [`limits`] bounds what it may take up. Else it ends, with GOAWAY or
//! `Connection: close`, when it has been without [`requests`] for [`Lifetime::idle`], when it is
//! [`Lifetime::age`] old, or when the agent shuts down. Requests under way are answered first.

pub mod admission;
mod frames;
mod head;
mod limits;
mod requests;
mod watch;

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, time::Duration};

use axum::{body::Body, response::Response};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};

use crate::{body::Holding, peer::Peer, tls::Acceptor};
use admission::{Admission, Place};
use head::Heads;
use requests::Requests;
pub use watch::Conduct;
use watch::Watched;

/// How long a connection that was told to end may stay without a request under way.
const LINGER: Duration = Duration::from_secs(1);
/// How long the loop rests when the system cannot accept, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections live.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    /// How long a connection may be without requests; `None` for ever.
    pub idle: Option<Duration>,
    /// How old it may get, ±10 %; `None` for ever.
    pub age: Option<Duration>,
    /// How long the requests of a connection past its age may take.
    pub age_grace: Duration,
}

/// What connections are served with. Cheap to clone.
#[derive(Clone)]
pub struct Server<S> {
    /// TLS, if it is spoken.
    pub tls: Option<Acceptor>,
    /// How many connections are taken.
    pub admission: Admission,
    /// What answers requests. In their extensions is the [`Peer`].
    pub service: S,
    /// How long connections live.
    pub lifetime: Lifetime,
    /// What is asked of clients.
    pub conduct: Conduct,
    /// Where connections go on until their requests are answered.
    pub connections: TaskTracker,
    /// Says when to stop.
    pub shutdown: CancellationToken,
}

impl<S> Server<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    /// Accepts connections until the shutdown, then closes the listener and returns; the connections go on.
    pub async fn accept(self, listener: TcpListener) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    if let Some(place) = self.admission.admit(peer.ip()) {
                        self.take(stream, peer, place);
                    }
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "cannot accept connections; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection beside the others.
    fn take(&self, stream: TcpStream, peer: SocketAddr, place: Place) {
        // Answers are small: none should wait for the acknowledgement of the one before. A socket that
        // cannot be set is closed already, which serving it will find.
        let _ = stream.set_nodelay(true);
        let server = self.clone();
        let Some(tls) = self.tls.clone() else {
            self.connections.spawn(async move {
                let _place = place;
                server.serve(stream, Peer::new(peer.ip(), None)).await;
            });
            return;
        };
        self.connections.spawn(async move {
            let _place = place;
            let shaken = tokio::select! {
                () = server.shutdown.cancelled() => return,
                shaken = tls.accept(stream) => shaken,
            };
            match shaken {
                Ok(stream) => {
                    let peer = Peer::new(peer.ip(), stream.get_ref().1.peer_certificates());
                    server.serve(stream, peer).await;
                }
                // The client's affair, and anybody can cause as many as they like.
                Err(error) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
            }
        });
    }

    /// Serves a connection to its end: HTTP/1.1 or HTTP/2, whichever the client begins with.
    pub async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
    ) {
        let requests = Requests::default();
        let (counted, service) = (requests.clone(), self.service);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let under_way = counted.begin();
            request.extensions_mut().insert(peer.clone());
            let answer = service.clone().oneshot(request.map(Body::new));
            async move {
                let response = answer.await?;
                Ok::<_, Infallible>(response.map(|body| Holding::new(body, under_way)))
            }
        });
        let heads = Heads::default();
        let stream = Watched::new(stream, self.conduct, heads.clone());
        let server = limits::server(heads);
        let mut served = pin!(server.serve_connection(TokioIo::new(stream), service));

        let Lifetime {
            idle,
            age,
            age_grace,
        } = self.lifetime;
        let retired = pin!(async {
            tokio::select! {
                () = self.shutdown.cancelled() => None,
                () = after(age.map(jittered)) => Some(age_grace),
                () = requests.idle_for(idle) => Some(age_grace),
            }
        });
        let grace = tokio::select! {
            // How a connection ends is the client's affair; requests have been answered or are gone.
            _ = served.as_mut() => return,
            grace = retired => grace,
        };
        served.as_mut().graceful_shutdown();
        tokio::select! {
            _ = served => {}
            // The peer may be gone, or have sent half a request, and never answer.
            () = requests.none_for(LINGER) => {}
            () = after(grace) => {}
        }
    }
}

/// Whether the client went away before it was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// This age, ±10 %: connections that were made together should not all be made again together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + fastrand::f64() * 0.2)
}

/// Waits this long; for ever without a time.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_over_a_tenth_to_both_sides() {
        let ages: Vec<_> = (0..1_000)
            .map(|_| jittered(Duration::from_secs(100)).as_secs_f64())
            .collect();
        assert!(ages.iter().all(|age| (90.0..=110.0).contains(age)));
        for (from, to) in [(90.0, 93.0), (97.0, 103.0), (107.0, 110.0)] {
            let inside = ages.iter().filter(|age| (from..=to).contains(*age));
            assert!(inside.count() > 50, "{from} to {to}");
        }
    }
}
