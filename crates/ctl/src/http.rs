//! The sidecar: reports the leader to programs beside it.
//!
//! The programs were written for Kubernetes' leader-elector: they send `GET /` and compare `name` with their own name.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use election_agent_client::{Agent, Event, Leader, Scope, Term};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{failure::Failure, leading::Candidacy, output::complain};

/// How long a client may take for the head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// How many connections are served at once. Others wait to be accepted: leading needs files, too.
const CONNECTIONS: usize = 256;

/// The pause after a connection could not be accepted, or the observer was refused.
const PAUSE: Duration = Duration::from_secs(1);

/// The reply to the programs beside.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct LeaderDocument {
    /// The leader's name; empty if nobody leads, or if it is not known.
    name: String,
    token: u64,
    leading: bool,
    /// For how many ms this candidate may act.
    valid_for: u64,
}

/// An HTTP server that reports the leader.
#[derive(Clone, Debug)]
pub(crate) struct Sidecar(Arc<Mutex<Standing>>);

#[derive(Debug)]
struct Standing {
    candidate: String,
    /// This candidate's term.
    own: Option<Term>,
    /// The leader, as observed.
    leader: Option<Leader>,
}

impl Sidecar {
    /// Listens, and starts to observe.
    pub(crate) async fn listen(
        address: SocketAddr,
        candidacy: &Candidacy,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.map_err(|error| Failure::own(format!("--http {address}: {error}")))?;
        let bound = listener.local_addr().map_err(Failure::own)?;
        complain(format_args!("answers on http://{bound}/"));
        let sidecar = Self(Arc::new(Mutex::new(Standing {
            candidate: candidacy.candidate.clone(),
            own: None,
            leader: None,
        })));
        tokio::spawn(sidecar.clone().serve(listener));
        let scope = Scope::election(&candidacy.kind, &candidacy.election);
        tokio::spawn(sidecar.clone().follow(candidacy.agent.clone(), scope));
        Ok(sidecar)
    }

    /// Notes the term under which this candidate leads, or that it does not.
    pub(crate) fn leads(&self, term: Option<Term>) {
        self.known().own = term;
    }

    fn known(&self) -> MutexGuard<'_, Standing> {
        self.0.lock()
    }

    async fn follow(self, agent: Agent, scope: Scope) {
        loop {
            let mut observer = agent.observe(scope.clone());
            while let Some(event) = observer.next().await {
                match event {
                    Ok(Event::State(state)) => self.known().leader = state.leader,
                    Ok(_) => {}
                    Err(error) => complain(format_args!("the leader cannot be observed: {error}")),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn serve(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        // It is never closed.
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let sidecar = self.clone();
            let service = service_fn(move |request| {
                let response = sidecar.respond(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                // An error concerns the client only, which sees it.
                let _ = connection.await;
                drop(place);
            });
        }
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let status = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/") => StatusCode::OK,
            (_, "/") => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::NOT_FOUND,
        };
        let body = match status {
            StatusCode::OK => serde_json::to_vec(&self.known().answer()).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut response = Response::new(Full::new(body.into()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        }
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::CACHE_CONTROL,
            header::HeaderValue::from_static("no-store"),
        );
        response
    }
}

impl Standing {
    fn answer(&self) -> LeaderDocument {
        let leader = self.leader.as_ref();
        let own = self.own.as_ref().filter(|term| {
            // Another's larger token is seen here before the next extension is denied.
            let replaced = leader.is_some_and(|leader| leader.token > term.token());
            term.check().is_ok() && !replaced
        });
        if let Some(term) = own {
            return LeaderDocument {
                name: self.candidate.clone(),
                token: term.token(),
                leading: true,
                valid_for: u64::try_from(term.remaining().as_millis()).unwrap_or(u64::MAX),
            };
        }
        // What is observed may be late. Programs that find their own name here lead: only the term says so.
        let other = leader.filter(|leader| leader.name != self.candidate);
        LeaderDocument {
            name: other.map(|leader| leader.name.clone()).unwrap_or_default(),
            token: other.map(|leader| leader.token).unwrap_or_default(),
            leading: false,
            valid_for: 0,
        }
    }
}
