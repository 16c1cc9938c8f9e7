//! Layers that let a request pass or refuse it, and do nothing else.

use std::task::{Context, Poll};

use axum::body::Body;
use futures_util::future::{Either, Ready, ready};
use http::Request;
use tower::{Layer, Service};

use crate::status::Problem;

/// Applies [`Check`].
#[derive(Debug, Clone, Copy)]
pub struct CheckLayer<C>(C);

/// Creates a layer that passes on the requests that `check` accepts, and refuses others with its problem.
#[must_use]
pub fn check<C>(check: C) -> CheckLayer<C>
where
    C: Fn(&mut Request<Body>) -> Result<(), Problem> + Clone,
{
    CheckLayer(check)
}

impl<C: Clone, S> Layer<S> for CheckLayer<C> {
    type Service = Check<C, S>;

    fn layer(&self, inner: S) -> Check<C, S> {
        Check {
            inner,
            check: self.0.clone(),
        }
    }
}

/// Refuses requests that fail a check.
#[derive(Debug, Clone)]
pub struct Check<C, S> {
    inner: S,
    check: C,
}

impl<C, S> Service<Request<Body>> for Check<C, S>
where
    C: Fn(&mut Request<Body>) -> Result<(), Problem>,
    S: Service<Request<Body>, Error = Problem>,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<S::Future, Ready<Result<S::Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match (self.check)(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(problem) => Either::Right(ready(Err(problem))),
        }
    }
}
