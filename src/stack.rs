//! The layer order, outermost first.

use std::{convert::Infallible, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderValue, Request};
use tower::{Service, ServiceBuilder};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

use crate::{
    layers::{
        body_limit::BodyLimitLayer, catch_panic::CatchPanicLayer, deadline::DeadlineLayer,
        measure::MeasureLayer, respond::RespondLayer,
    },
    telemetry::metrics::Metrics,
    transport::status::Problem,
};

/// Puts every layer around the mux.
pub fn stack<S>(
    mux: S,
    request_timeout: Duration,
    metrics: Metrics,
) -> impl Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static
where
    S: Service<Request<Body>, Response = Response, Error = Problem, Future: Send>
        + Clone
        + Send
        + 'static,
{
    ServiceBuilder::new()
        // Outermost: a panic anywhere below costs one request, not its connection.
        .layer(CatchPanicLayer)
        // Before all that logs or answers, so that every answer carries the id.
        .layer(SetRequestIdLayer::x_request_id(RandomId))
        .layer(PropagateRequestIdLayer::x_request_id())
        // Outside of what refuses, so that refusals are measured, too.
        .layer(MeasureLayer::new(metrics))
        // Whatever is refused below is told in the caller's protocol.
        .layer(RespondLayer)
        // Before the body is read: a slow body uses the caller's time.
        .layer(DeadlineLayer::new(request_timeout))
        // Innermost: whoever reads a body below reads a bounded one.
        .layer(BodyLimitLayer)
        .service(mux)
}

/// Names requests that came without an id: 128 random bits in hex.
#[derive(Debug, Clone, Copy)]
struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = format!("{:032x}", fastrand::u128(..));
        HeaderValue::try_from(id).ok().map(RequestId::new)
    }
}
