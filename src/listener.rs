//! The accept loop: HTTP/1.1 and HTTP/2 on the same port, optional TLS, bounded connection lifetimes, and a shutdown
//! that loses no request.
//!
//! [`admission`] decides whether there is a place for a connection, [`watch`] closes a connection whose client is too
//! slow or pings too often, and [`limits`] bounds the resources of a connection. Otherwise a connection ends when it
//! has had no [`requests`] for [`Lifetime::idle`], when it reaches [`Lifetime::age`], or when the agent shuts down.
//! Over HTTP/2 the end is announced with GOAWAY. Over HTTP/1.1, a connection that reached its age ends after a reply
//! with `Connection: close`. Requests in progress are answered first.

mod addresses;
pub mod admission;
mod completing;
mod frames;
mod head;
mod limits;
mod requests;
mod watch;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::{Request, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};

use crate::{body::Rest, peer::Peer, tls::Acceptor, workers::Workers};
use admission::{Admission, Place};
use completing::Completing;
use head::Heads;
use requests::Requests;
pub use watch::Conduct;
use watch::Watched;

/// How long a connection that must end may stay open without a request in progress.
const LINGER: Duration = Duration::from_secs(1);
/// Pause of the loop when the system cannot accept a connection, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For a connection in a spare place: the age after which it is asked to end, and the maximum lifetime.
const SPARE_LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// Extension of requests over connections that are [in a spare place](Place::is_spare).
#[derive(Debug, Clone, Copy)]
pub struct Spare;

/// Lifetimes of connections.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    /// How long a connection may have no requests; `None` for no limit.
    pub idle: Option<Duration>,
    /// Maximum age of a connection, ±10 %; `None` for no limit.
    pub age: Option<Duration>,
    /// How long requests in progress may take on a connection past its maximum age.
    pub age_grace: Duration,
}

/// The configuration and state that connections are served with. Cheap to clone.
#[derive(Clone)]
pub struct Server<S> {
    /// The TLS acceptor; `None` for plain text.
    pub tls: Option<Acceptor>,
    /// Limits the number of connections.
    pub admission: Admission,
    /// The service that answers requests. It finds the [`Peer`] in their extensions.
    pub service: S,
    /// Lifetimes of connections.
    pub lifetime: Lifetime,
    /// The limits that clients must keep.
    pub conduct: Conduct,
    /// The threads that serve connections.
    pub workers: Workers,
    /// Tracks connections until their last requests are answered.
    pub connections: TaskTracker,
    /// Signals the shutdown.
    pub shutdown: CancellationToken,
}

impl<S> Server<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    /// Accepts connections until the shutdown, then closes the listener and returns. Open connections continue.
    pub async fn accept(self, listener: TcpListener) {
        let server = Arc::new(self);
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = server.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    if let Some(place) = server.admission.admit(peer.ip()) {
                        server.take(stream, peer, place);
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

    /// Hands a connection to a worker.
    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, place: Place) {
        // Responses are small and must not wait for the acknowledgement of the previous one (Nagle's algorithm). An
        // error means that the socket is closed, which serving it will report.
        let _ = stream.set_nodelay(true);
        // Detach the socket from this loop's runtime; the worker's runtime takes it over.
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let server = Arc::clone(self);
        self.workers.serve(&self.connections, async move {
            let is_spare = place.is_spare();
            let _place = place;
            let Ok(stream) = TcpStream::from_std(stream) else {
                return;
            };
            if is_spare {
                // Boxed: spare connections are few, and the future of the others must not reserve space for this one.
                return Box::pin(server.serve_probe(stream, peer)).await;
            }
            let Some(tls) = server.tls.clone() else {
                return server.serve(stream, Peer::new(peer.ip(), None)).await;
            };
            // Boxed: the handshake must not use memory for the lifetime of the connection.
            let shaking = Box::pin(shake(tls, stream, peer, server.shutdown.clone()));
            if let Some((stream, peer)) = shaking.await {
                server.serve(stream, peer).await;
            }
        });
    }

    /// Serves a connection in a spare place for a short time.
    async fn serve_probe(&self, stream: TcpStream, peer: SocketAddr) {
        let (age, most) = SPARE_LIFE;
        let lifetime = Lifetime {
            age: Some(age),
            ..self.lifetime
        };
        let served = async {
            match self.tls.clone() {
                None => {
                    let peer = Peer::new(peer.ip(), None);
                    self.serve_for(stream, peer, lifetime, true).await;
                }
                Some(tls) => {
                    let shaken = shake(tls, stream, peer, self.shutdown.clone()).await;
                    if let Some((stream, peer)) = shaken {
                        self.serve_for(stream, peer, lifetime, true).await;
                    }
                }
            }
        };
        // After that time the place becomes free, even if the client has sent no request.
        let _ = timeout(most, served).await;
    }

    /// Serves a connection until it ends, over HTTP/1.1 or HTTP/2 as the client chooses.
    ///
    /// There is one such future per connection, so it must hold only what the connection needs to the end.
    pub fn serve<I>(&self, stream: I, peer: Peer) -> impl Future<Output = ()> + Send + use<S, I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_for(stream, peer, self.lifetime, false)
    }

    fn serve_for<I>(
        &self,
        stream: I,
        mut peer: Peer,
        lifetime: Lifetime,
        is_spare: bool,
    ) -> impl Future<Output = ()> + Send + use<S, I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests::default();
        let ending = peer.ending.clone();
        peer.shutdown = self.shutdown.clone();
        let (counted, service) = (requests.clone(), self.service.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = counted.begin(request.version());
            let (mut head, body) = request.into_parts();
            head.extensions.insert(peer.clone());
            if is_spare {
                head.extensions.insert(Spare);
            }
            let is_last = is_spare && head.version < Version::HTTP_2;
            // HTTP/2 can signal that the rest of a body is not wanted.
            let (body, rest) = match head.version {
                Version::HTTP_2 => (Body::new(body), None),
                _ => Rest::lend(&head.headers, body),
            };
            let answer = service.clone().oneshot(Request::from_parts(head, body));
            Completing::new(answer, rest, is_last, under_way)
        });
        let heads = Heads::default();
        let stream = Watched::new(stream, self.conduct, heads.clone());
        let server = limits::server(heads);
        let served = server.serve_connection(TokioIo::new(stream), service);
        let served = Box::pin(served.into_owned());
        // Boxed: callers await this future in several places, each of which would reserve space for it.
        Box::pin(last(
            served,
            requests,
            lifetime,
            self.shutdown.clone(),
            ending,
        ))
    }
}

/// Performs the TLS handshake, unless the agent shuts down first.
async fn shake(
    tls: Acceptor,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: CancellationToken,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    let shaken = tokio::select! {
        () = shutdown.cancelled() => return None,
        shaken = tls.accept(stream) => shaken,
    };
    match shaken {
        Ok(stream) => {
            let peer = Peer::new(peer.ip(), stream.get_ref().1.peer_certificates());
            Some((stream, peer))
        }
        Err(error) => {
            // A client error, which any client can cause any number of times.
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            None
        }
    }
}

/// Drives a connection until its lifetime ends.
async fn last(
    mut served: Pin<Box<impl GracefulConnection>>,
    requests: Requests,
    lifetime: Lifetime,
    shutdown: CancellationToken,
    ending: CancellationToken,
) {
    let Lifetime {
        idle,
        age,
        age_grace,
    } = lifetime;
    let retired = pin!(async {
        tokio::select! {
            () = shutdown.cancelled() => Retired::Shutdown,
            () = after(age.map(jittered)) => Retired::Old,
            () = requests.idle_for(idle) => Retired::Idle,
        }
    });
    let retired = tokio::select! {
        // A connection error concerns only the client: its requests are answered or cancelled.
        _ = served.as_mut() => return,
        retired = retired => retired,
    };
    ending.cancel();
    let cut = match retired {
        Retired::Shutdown => None,
        Retired::Old | Retired::Idle => Some(Instant::now() + age_grace),
    };
    // A client that is about to send its next request must not find the connection closed.
    if retired == Retired::Old && requests.announce_end() {
        tokio::select! {
            _ = served.as_mut() => return,
            () = shutdown.cancelled() => {}
            () = requests.idle_for(idle) => {}
            () = at(cut) => {}
        }
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = served => {}
        // The peer may be gone, or may never complete a partial request.
        () = requests.none_for(LINGER) => {}
        () = at(cut) => {}
    }
}

/// Why a connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retired {
    Shutdown,
    Old,
    Idle,
}

/// Returns whether the client disconnected before the connection was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Returns this age ±10 %, so that connections opened together are not all reopened together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + fastrand::f64() * 0.2)
}

/// Waits until this time, or forever if it is `None`.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for this duration, or forever if it is `None`.
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
