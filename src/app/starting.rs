//! Answers requests while the agent starts, and over spare connections.
//!
//! Lease nodes, key servers and Kubernetes may take until their timeouts to respond. The ports are open meanwhile:
//! `/livez` succeeds, so that an unavailable dependency does not cause restarts, and all other requests get
//! UNAVAILABLE. Connections in [spare places](crate::listener::admission::SPARE) serve only probes and metrics.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use futures_util::future::{Either, Ready, ready};
use http::Request;
use tower::{Service, ServiceExt as _, util::Oneshot};

use crate::{
    endpoint::{Counted, Endpoint, LIVEZ},
    listener::Spare,
    status::{Code, Problem},
    transport::rest::ALIVE,
};

/// The retry delay reported to callers.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Forwards requests to a service once there is one. Clones share it.
#[derive(Debug)]
pub(super) struct Starting<S>(Arc<OnceLock<S>>);

impl<S> Starting<S> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Sets the service. A second call has no effect.
    pub(super) fn started(&self, service: S) {
        let _ = self.0.set(service);
    }
}

impl<S> Clone for Starting<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Service<Request<Body>> for Starting<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Oneshot<S, Request<Body>>, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.extensions().get::<Spare>().is_some() {
            let endpoint = Endpoint::of(&request);
            if endpoint.counted != Counted::Never {
                return Either::Right(ready(Ok(no_place(endpoint))));
            }
        }
        match self.0.get() {
            Some(service) => Either::Left(service.clone().oneshot(request)),
            None => Either::Right(ready(Ok(not_yet(&request)))),
        }
    }
}

fn no_place(endpoint: Endpoint) -> Response {
    let problem = Problem::new(
        Code::Overloaded,
        "the agent has its maximum number of connections (EA_MAX_CONNECTIONS, or its limit of open files): connect \
         again later, or to another agent",
    );
    problem.render(endpoint.protocol)
}

fn not_yet(request: &Request<Body>) -> Response {
    if request.uri().path() == LIVEZ {
        return ALIVE.into_response();
    }
    let mut problem = Problem::new(Code::Unavailable, "the agent is starting: try again");
    problem.retry_after = Some(TRY_AGAIN);
    problem.render(Endpoint::of(request).protocol)
}
