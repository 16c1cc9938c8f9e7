//! Turns a panic into an answer, so that it costs one request and not the connection's others.
//!
//! Refusal: Internal (INTERNAL, 500). The panic's text goes to the log alone.

use std::{
    any::Any,
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use futures_util::future::{CatchUnwind, FutureExt as _};
use http::Request;
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tower_http::request_id::RequestId;

use crate::transport::{Protocol, status::Problem};

/// Applies [`CatchPanic`].
#[derive(Debug, Clone, Copy)]
pub struct CatchPanicLayer;

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic { inner }
    }
}

/// Answers for a service that panics.
#[derive(Debug, Clone)]
pub struct CatchPanic<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for CatchPanic<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answered<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let protocol = Protocol::of(request.headers());
        let request_id = request.extensions().get::<RequestId>().cloned();
        let called = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        let (future, panic) = match called {
            Ok(future) => (Some(AssertUnwindSafe(future).catch_unwind()), None),
            Err(panic) => (None, Some(panic)),
        };
        Answered {
            future,
            panic,
            protocol,
            request_id,
        }
    }
}

pin_project! {
    /// The answer, or one for a panic.
    pub struct Answered<F> {
        #[pin]
        future: Option<CatchUnwind<AssertUnwindSafe<F>>>,
        panic: Option<Box<dyn Any + Send>>,
        protocol: Protocol,
        request_id: Option<RequestId>,
    }
}

impl<F> Future for Answered<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let panic = match (this.future.as_pin_mut(), this.panic.take()) {
            (Some(future), _) => match ready!(future.poll(cx)) {
                Ok(answer) => return Poll::Ready(answer),
                Err(panic) => panic,
            },
            (None, Some(panic)) => panic,
            (None, None) => Box::new("polled after completion"),
        };
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no text");
        let request_id = this
            .request_id
            .as_ref()
            .and_then(|id| id.header_value().to_str().ok());
        tracing::error!(
            panic = text,
            request_id,
            "a request panicked; this is a bug"
        );
        Poll::Ready(Ok(Problem::bug().render(*this.protocol)))
    }
}

#[cfg(test)]
mod tests {
    use http::header;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_in_the_callers_protocol() {
        let panics = service_fn(|request: Request<Body>| {
            assert!(request.uri().path() == "/later", "at once");
            async { panic!("later") }
        });
        for path in ["/later", "/now"] {
            for (content_type, status, header) in [
                ("application/json", 500, None),
                ("application/grpc", 200, Some("13")),
            ] {
                let request = Request::post(path)
                    .header(header::CONTENT_TYPE, content_type)
                    .body(Body::empty())
                    .expect("a request");
                let Ok(answer) = CatchPanicLayer.layer(panics).oneshot(request).await;
                assert_eq!(answer.status(), status);
                let grpc_status = answer.headers().get("grpc-status");
                assert_eq!(grpc_status.and_then(|code| code.to_str().ok()), header);
            }
        }
    }
}
