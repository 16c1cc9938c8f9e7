//! A receiver of traces that discards them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// A receiver of OTLP over HTTP that responds to every POST with 200.
#[derive(Debug)]
pub(crate) struct Sink {
    address: SocketAddr,
    posts: Arc<AtomicU64>,
}

impl Sink {
    /// Listens on a free port until the runtime ends.
    ///
    /// # Errors
    /// Returns an error if it cannot listen.
    pub(crate) async fn start() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the receiver of traces: {error}");
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let posts = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&posts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let posts = Arc::clone(&counter);
                let service = service_fn(move |request: Request<Incoming>| {
                    let posts = Arc::clone(&posts);
                    async move {
                        if request.into_body().collect().await.is_ok() {
                            posts.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                    }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        Ok(Self { address, posts })
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many POST requests it has received.
    pub(crate) fn posts(&self) -> u64 {
        self.posts.load(Ordering::Relaxed)
    }
}
