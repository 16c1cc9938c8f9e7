//! A small HTTP server that answers as a test likes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use election_agent::tls::{Acceptor, Files};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet, spawn_blocking},
};

use super::Authority;

/// A running server; stops when dropped.
pub(crate) struct HttpServer {
    scheme: &'static str,
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl HttpServer {
    /// Answers every request so.
    pub(crate) async fn start(
        answer: impl Fn(Request<Bytes>) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, answer).await
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
        Self::serve(Some(acceptor), answer).await
    }

    async fn serve(
        tls: Option<Acceptor>,
        answer: impl Fn(Request<Bytes>) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (answer, answered) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&answered);
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and with it the connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.expect("a body").to_bytes();
                        counted.fetch_add(1, Ordering::SeqCst);
                        // Beside the runtime: an answer may be one that is held back.
                        let request = Request::from_parts(parts, body);
                        let answering = spawn_blocking(move || answer(request));
                        let response = answering.await.expect("an answer");
                        Ok::<_, Infallible>(response.map(|text| Full::new(Bytes::from(text))))
                    }
                });
                let tls = tls.clone();
                connections.spawn(async move {
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

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
