//! Measures requests: how many are under way, how long they took and what they were answered.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use http::{Request, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{
    telemetry::metrics::{InFlight, Metrics},
    transport::{action, status::Code},
};

/// Applies [`Measure`].
#[derive(Debug, Clone)]
pub struct MeasureLayer {
    metrics: Metrics,
}

impl MeasureLayer {
    /// Measures into these metrics.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for MeasureLayer {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Measure<S> {
        Measure {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// Measures a service's requests.
#[derive(Debug, Clone)]
pub struct Measure<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> Service<Request<Body>> for Measure<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Measured<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let action = action(request.method(), request.uri().path());
        Measured {
            started: Instant::now(),
            action,
            in_flight: self.metrics.begin(action),
            metrics: self.metrics.clone(),
            future: self.inner.call(request),
        }
    }
}

pin_project! {
    /// The answer, measured when it comes; a request whose caller goes away is only no longer under way.
    pub struct Measured<F> {
        started: Instant,
        action: &'static str,
        in_flight: InFlight,
        metrics: Metrics,
        #[pin]
        future: F,
    }
}

impl<F> Future for Measured<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.future.poll(cx));
        let status = grpc_status(&response);
        this.metrics
            .end(this.action, status, this.started.elapsed());
        Poll::Ready(Ok(response))
    }
}

/// What the answer comes to as a gRPC status, whatever its protocol. The status of a gRPC stream comes
/// after its headers; it counts as begun well.
fn grpc_status(response: &Response) -> tonic::Code {
    if let Some(status) = response.headers().get("grpc-status") {
        return tonic::Code::from_bytes(status.as_bytes());
    }
    if let Some(code) = response.extensions().get::<Code>() {
        return code.grpc();
    }
    if response.status() < StatusCode::BAD_REQUEST {
        tonic::Code::Ok
    } else {
        tonic::Code::Unknown
    }
}
