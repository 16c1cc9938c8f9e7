//! Turns the error of a layer or of the mux into an answer in the caller's protocol: a trailers-only
//! status for gRPC and gRPC-Web, problem+json for REST.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use http::Request;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::transport::{Protocol, status::Problem};

/// Applies [`Respond`].
#[derive(Debug, Clone, Copy)]
pub struct RespondLayer;

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond { inner }
    }
}

/// Answers where the inner service gives an error.
#[derive(Debug, Clone)]
pub struct Respond<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Respond<S>
where
    S: Service<Request<Body>, Response = Response, Error = Problem>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Rendered<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A layer below refuses when it is called, where the refusal can be told to the caller.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Rendered {
            protocol: Protocol::of(request.headers()),
            future: self.inner.call(request),
        }
    }
}

pin_project! {
    /// The answer, errors rendered.
    pub struct Rendered<F> {
        protocol: Protocol,
        #[pin]
        future: F,
    }
}

impl<F> Future for Rendered<F>
where
    F: Future<Output = Result<Response, Problem>>,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.future
            .poll(cx)
            .map(|answer| Ok(answer.unwrap_or_else(|problem| problem.render(*this.protocol))))
    }
}
