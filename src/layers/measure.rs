//! Measures requests: the number in progress, their duration and their status.

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
    endpoint::{Action, Endpoint},
    status::Code,
    telemetry::{
        metrics::{InFlight, Metrics, ResponseStatus},
        trace,
    },
};

/// Log target of one line per request, at the level debug.
const REQUESTS: &str = "election_agent::requests";

/// Applies [`Measure`].
#[derive(Debug, Clone)]
pub struct MeasureLayer {
    metrics: Metrics,
}

impl MeasureLayer {
    /// Creates a layer that records into these metrics.
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

/// Measures the requests of a service.
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
        // A request that has not been classified is refused by a layer below.
        let endpoint = Endpoint::among(request.extensions());
        let action = endpoint.map_or(Action::Other, |endpoint| endpoint.action);
        Measured {
            started: Instant::now(),
            in_flight: self.metrics.begin(action),
            future: self.inner.call(request),
        }
    }
}

pin_project! {
    /// A future of the reply, which records its duration and status. A cancelled request only leaves the number in
    /// progress.
    pub struct Measured<F> {
        started: Instant,
        in_flight: InFlight,
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
        let answer = ResponseStatus {
            status: grpc_status(&response),
            code: Code::of(&response),
        };
        let took = this.started.elapsed();
        tracing::debug!(
            target: REQUESTS,
            action = this.in_flight.action().name(),
            status = ?answer.status,
            took_ms = took.as_secs_f64() * 1e3,
            "answered"
        );
        let trace_id = trace::current_trace_id();
        this.in_flight.answered(answer, took, trace_id.as_deref());
        Poll::Ready(Ok(response))
    }
}

/// Returns the reply's gRPC status for any protocol. A gRPC stream sends its status after the headers; one that has
/// begun counts as successful.
pub(super) fn grpc_status(response: &Response) -> tonic::Code {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;
    use crate::{endpoint::classified, telemetry::metrics::Format};

    #[tokio::test(start_paused = true)]
    async fn a_request_is_under_way_until_it_is_answered_and_then_measured() {
        let metrics = Metrics::new(&[1.0, 3.0]);
        let (service, mut handle) = mock::pair::<Request<Body>, Response>();
        let service = service.map_err(|error| -> Infallible { panic!("{error}") });
        let request = Request::post("/election/e")
            .body(Body::empty())
            .map(classified)
            .expect("a request");
        handle.allow(1);
        let layer = MeasureLayer::new(metrics.clone());
        let call = tokio::spawn(layer.layer(service).oneshot(request));
        let (_, answer) = handle.next_request().await.expect("passed on");
        let has = |line: &str| {
            metrics
                .text(Format::Text)
                .lines()
                .any(|other| other == line)
        };
        assert!(has(
            "election_agent_requests_in_flight{action=\"campaign\"} 1"
        ));
        advance(Duration::from_secs(2)).await;
        let mut refused = Response::new(Body::empty());
        *refused.status_mut() = StatusCode::CONFLICT;
        refused.extensions_mut().insert(Code::Conflict);
        answer.send_response(refused);
        let Ok(_) = call.await.expect("no panic");
        for line in [
            "election_agent_requests_in_flight{action=\"campaign\"} 0",
            "election_agent_request_duration_seconds_bucket{le=\"1.0\",action=\"campaign\",status=\"already_exists\"} 0",
            "election_agent_request_duration_seconds_bucket{le=\"3.0\",action=\"campaign\",status=\"already_exists\"} 1",
        ] {
            assert!(
                has(line),
                "{line} is not in:\n{}",
                metrics.text(Format::Text)
            );
        }
    }
}
