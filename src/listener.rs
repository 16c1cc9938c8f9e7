//! The accept loop: HTTP/1.1 and HTTP/2 on the same port, with TLS if that is configured, connections that
//! do not live for ever, and a shutdown that loses no request.
//!
//! [`admission`] says whether there is a place for a connection, [`watch`] cuts it when the client is too
//! slow or pings too much, [`limits`] bounds what it may take up. Else it ends when it has been without
//! [`requests`] for [`Lifetime::idle`], when it is [`Lifetime::age`] old, or when the agent shuts down: over HTTP/2
//! with GOAWAY; over HTTP/1.1, when it is old, after an answer with `Connection: close`. Requests under way are
//! answered first.

mod addresses;
pub mod admission;
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
use http::{HeaderValue, Request, Version, header};
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

use crate::{
    body::{Holding, Rest},
    peer::Peer,
    tls::Acceptor,
    workers::Workers,
};
use admission::{Admission, Place};
use head::Heads;
use requests::Requests;
pub use watch::Conduct;
use watch::Watched;

/// How long a connection that was told to end may stay without a request under way.
const LINGER: Duration = Duration::from_secs(1);
/// How long the loop rests when the system cannot accept, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection in a spare place is asked to end after, and how long it lasts at the most.
const SPARE_LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// In the extensions of requests over connections that are [in a spare place](Place::is_spare).
#[derive(Debug, Clone, Copy)]
pub struct Spare;

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
    /// Who serves them.
    pub workers: Workers,
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
        + Sync
        + 'static,
{
    /// Accepts connections until the shutdown, then closes the listener and returns; the connections go on.
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

    /// Serves a connection beside the others.
    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, place: Place) {
        // Answers are small: none should wait for the acknowledgement of the one before. A socket that
        // cannot be set is closed already, which serving it will find.
        let _ = stream.set_nodelay(true);
        // From now on it is its worker's, and no longer this loop's.
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
                // In a box: there are few of them, and others should not have room for it.
                return Box::pin(server.serve_probe(stream, peer)).await;
            }
            let Some(tls) = server.tls.clone() else {
                return server.serve(stream, Peer::new(peer.ip(), None)).await;
            };
            // Needed once only: it should not take up memory for as long as the connection lasts.
            let shaking = Box::pin(shake(tls, stream, peer, server.shutdown.clone()));
            if let Some((stream, peer)) = shaking.await {
                server.serve(stream, peer).await;
            }
        });
    }

    /// Serves a connection in a spare place, for a moment.
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
        // Whoever has not asked by then leaves the place to others.
        let _ = timeout(most, served).await;
    }

    /// Serves a connection to its end: HTTP/1.1 or HTTP/2, whichever the client begins with.
    ///
    /// There are as many of the future as there are connections: it holds no more than it needs until the end.
    pub fn serve<I>(&self, stream: I, peer: Peer) -> impl Future<Output = ()> + Send + use<S, I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_for(stream, peer, self.lifetime, false)
    }

    fn serve_for<I>(
        &self,
        stream: I,
        peer: Peer,
        lifetime: Lifetime,
        is_spare: bool,
    ) -> impl Future<Output = ()> + Send + use<S, I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests::default();
        let (counted, service) = (requests.clone(), self.service.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = counted.begin(request.version());
            let counted = counted.clone();
            let (mut head, body) = request.into_parts();
            head.extensions.insert(peer.clone());
            if is_spare {
                head.extensions.insert(Spare);
            }
            let is_last = is_spare && head.version < Version::HTTP_2;
            // HTTP/2 has a way to say that no more of a body is wanted.
            let (body, rest) = match head.version {
                Version::HTTP_2 => (Body::new(body), None),
                _ => Rest::lend(&head.headers, body),
            };
            let answer = service.clone().oneshot(Request::from_parts(head, body));
            async move {
                let mut response = answer.await?;
                if let Some(rest) = rest {
                    rest.discard().await;
                }
                if is_last || counted.are_ending() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response.map(|body| Holding::new(body, under_way)))
            }
        });
        let heads = Heads::default();
        let stream = Watched::new(stream, self.conduct, heads.clone());
        let server = limits::server(heads);
        let served = server.serve_connection(TokioIo::new(stream), service);
        let served = Box::pin(served.into_owned());
        // In a box, as it is awaited in more than one place, each of which would have room for it.
        Box::pin(last(served, requests, lifetime, self.shutdown.clone()))
    }
}

/// Shakes hands, unless the agent is to stop first.
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
            // The client's affair, and anybody can cause as many as they like.
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            None
        }
    }
}

/// Lets a connection last as long as it may.
async fn last(
    mut served: Pin<Box<impl GracefulConnection>>,
    requests: Requests,
    lifetime: Lifetime,
    shutdown: CancellationToken,
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
        // How a connection ends is the client's affair; requests have been answered or are gone.
        _ = served.as_mut() => return,
        retired = retired => retired,
    };
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
        // The peer may be gone, or have sent half a request, and never answer.
        () = requests.none_for(LINGER) => {}
        () = at(cut) => {}
    }
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retired {
    Shutdown,
    Old,
    Idle,
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

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
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
