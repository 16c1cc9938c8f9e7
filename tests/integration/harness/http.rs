//! A small HTTP server that answers as a test likes.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::AsFd as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use election_agent::tls::{Acceptor, Files};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::Authority;

/// What an answer is made of; an error in it breaks the connection off.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// A running server; stops when dropped.
pub(crate) struct HttpServer {
    scheme: &'static str,
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

/// Among a request's extensions: resets the TCP connection that it came by.
#[derive(Debug, Clone)]
pub(crate) struct Reset(CancellationToken);

impl Reset {
    /// What was written before is sent; then the connection is reset.
    pub(crate) fn now(&self) {
        self.0.cancel();
    }
}

/// A body of this text.
pub(crate) fn whole(text: impl Into<Bytes>) -> Body {
    let body = Full::new(text.into());
    body.map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

impl HttpServer {
    /// Answers every request so.
    pub(crate) async fn start(
        answer: impl Fn(Request<Bytes>) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        Self::serve(listen().await, None, beside_the_runtime(answer))
    }

    /// The same over TLS, with a certificate of this authority's.
    pub(crate) async fn start_tls(
        authority: &Authority,
        answer: impl Fn(Request<Bytes>) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        authority.issue("localhost");
        let files = Files {
            certificate: authority.path("localhost.crt").into(),
            key: authority.path("localhost.key").into(),
            client_ca: None,
        };
        let acceptor = Acceptor::start(files, Duration::from_secs(10)).expect("usable files");
        let answer = beside_the_runtime(answer);
        Self::serve(listen().await, Some(acceptor), answer)
    }

    /// Answers every request so, with answers that may take as long as they like.
    pub(crate) fn start_streaming<A>(
        listener: TcpListener,
        answer: impl Fn(Request<Bytes>) -> A + Send + Sync + 'static,
    ) -> Self
    where
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let answer = move |request| -> Answering { Box::pin(answer(request)) };
        Self::serve(listener, None, answer)
    }

    fn serve(
        listener: TcpListener,
        tls: Option<Acceptor>,
        answer: impl Fn(Request<Bytes>) -> Answering + Send + Sync + 'static,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = listener.local_addr().expect("an address");
        let (answer, answered) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&answered);
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and with it the connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let reset = CancellationToken::new();
                let of_this = Reset(reset.clone());
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                    let of_this = of_this.clone();
                    async move {
                        let (mut parts, body) = request.into_parts();
                        let body = body.collect().await.expect("a body").to_bytes();
                        counted.fetch_add(1, Ordering::SeqCst);
                        parts.extensions.insert(of_this);
                        let request = Request::from_parts(parts, body);
                        Ok::<_, Infallible>(answer(request).await)
                    }
                });
                let tls = tls.clone();
                connections.spawn(async move {
                    let handle = stream.as_fd().try_clone_to_owned().expect("a handle");
                    let serving = async {
                        let server = auto::Builder::new(TokioExecutor::new());
                        // How a client ends its connection is its own affair, and whether it shakes hands.
                        let _ = match tls {
                            None => server.serve_connection(TokioIo::new(stream), service).await,
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => {
                                    server.serve_connection(TokioIo::new(stream), service).await
                                }
                                Err(_) => return,
                            },
                        };
                    };
                    tokio::select! {
                        () = serving => {}
                        () = reset.cancelled() => {
                            let stream = TcpStream::from_std(StdTcpStream::from(handle));
                            stream.expect("a stream").set_zero_linger().expect("set");
                        }
                    }
                });
            }
        });
        Self {
            scheme,
            address,
            answered,
            accepting,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// How many requests it has answered.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

/// Such an answer may be one that is held back.
fn beside_the_runtime(
    answer: impl Fn(Request<Bytes>) -> Response<String> + Send + Sync + 'static,
) -> impl Fn(Request<Bytes>) -> Answering + Send + Sync + 'static {
    let answer = Arc::new(answer);
    move |request| {
        let answer = Arc::clone(&answer);
        Box::pin(async move {
            let answering = spawn_blocking(move || answer(request));
            answering.await.expect("an answer").map(whole)
        })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
