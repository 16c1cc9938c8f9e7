//! The accept loop: HTTP/1.1 and HTTP/2 on the same port, with TLS if that is configured, connections that do not live for ever, and a
//! shutdown that loses no request.
//!
//! A connection ends, with GOAWAY or `Connection: close`, when it has been without requests for
//! [`Lifetime::idle`], when it is [`Lifetime::age`] old, or when the agent shuts down. Requests under way
//! are answered first.

pub mod admission;

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};

use crate::tls::Acceptor;
use admission::Admission;

/// How long a connection that was told to end may stay without a request under way.
const LINGER: Duration = Duration::from_secs(1);
/// How long the loop rests when the system cannot accept, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often an HTTP/2 peer is pinged, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How many requests may be under way on one connection.
const MAX_STREAMS: u32 = 1_000;
/// The most that a request's headers may take up, in bytes.
const MAX_HEADERS: u32 = 16 * 1024;

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

/// Accepts connections until `shutdown`, then closes the listener and returns; the connections go on in
/// `connections` until their requests are answered.
pub async fn serve<S>(
    listener: TcpListener,
    tls: Option<Acceptor>,
    admission: Admission,
    service: S,
    lifetime: Lifetime,
    connections: TaskTracker,
    shutdown: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let Some(place) = admission.admit(peer.ip()) else {
                    continue;
                };
                // Answers are small: none should wait for the acknowledgement of the one before. A socket
                // that cannot be set is closed already, which serving it will find.
                let _ = stream.set_nodelay(true);
                let (service, shutdown) = (service.clone(), shutdown.clone());
                let Some(tls) = tls.clone() else {
                    connections.spawn(async move {
                        connection(stream, service, lifetime, shutdown).await;
                        drop(place);
                    });
                    continue;
                };
                connections.spawn(async move {
                    let _place = place;
                    let shaken = tokio::select! {
                        () = shutdown.cancelled() => return,
                        shaken = tls.accept(stream) => shaken,
                    };
                    match shaken {
                        Ok(stream) => connection(stream, service, lifetime, shutdown).await,
                        // The client's affair, and anybody can cause as many as they like.
                        Err(error) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                    }
                });
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

/// Whether the client went away before it was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Serves one connection until it ends: HTTP/1.1 or HTTP/2, whichever the client begins with.
pub async fn connection<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S,
    lifetime: Lifetime,
    shutdown: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let requests = Requests::default();
    let counted = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = counted.begin();
        let answer = service.clone().oneshot(request.map(Body::new));
        async move {
            let response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Tracked {
                body,
                _under_way: under_way,
            }))
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    // Hyper's timer for headers runs between requests, too; a client that is slow to send them has no
    // request under way, and so is idle.
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None);
    // A peer that is gone without a word is found out, and one that cancels faster than it is served is
    // disconnected (hyper's limits on resets).
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWERED_WITHIN)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), service));

    let retired = pin!(async {
        tokio::select! {
            () = shutdown.cancelled() => None,
            () = aged(lifetime.age) => Some(lifetime.age_grace),
            () = requests.idle_for(lifetime.idle) => Some(lifetime.age_grace),
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

async fn aged(age: Option<Duration>) {
    after(age.map(|age| age.mul_f64(0.9 + fastrand::f64() * 0.2))).await;
}

/// Waits this long; for ever without a time.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

/// The requests of one connection.
#[derive(Debug, Clone)]
struct Requests {
    under_way: Arc<AtomicUsize>,
    ended: watch::Sender<Instant>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
            ended: watch::Sender::new(Instant::now()),
        }
    }
}

impl Requests {
    fn begin(&self) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Returns when there has been no request for this long, now or earlier.
    async fn idle_for(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let until = *self.ended.borrow() + limit;
            if self.under_way.load(Ordering::Relaxed) > 0 {
                sleep(limit).await;
            } else if until <= Instant::now() {
                return;
            } else {
                sleep_until(until).await;
            }
        }
    }

    /// Returns when there is no request for this long from now on.
    async fn none_for(&self, limit: Duration) {
        self.ended
            .send_modify(|ended| *ended = (*ended).max(Instant::now()));
        self.idle_for(Some(limit)).await;
    }
}

/// A request whose answer has not been sent whole.
#[derive(Debug)]
struct UnderWay(Requests);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.send_replace(Instant::now());
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project! {
    /// A body that keeps its request under way until it has been sent.
    struct Tracked {
        #[pin]
        body: Body,
        _under_way: UnderWay,
    }
}

impl HttpBody for Tracked {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
