//! Converts errors and panics into replies. An error of a layer or of the mux becomes a reply in the caller's protocol:
//! a trailers-only status for gRPC and gRPC-Web, problem+json for REST. A panic fails one request and leaves the
//! connection's other requests running.
//!
//! Refusal: Internal (INTERNAL, 500) for a panic, whose text is only logged, and for a request that has not been
//! classified.

use std::{
    any::Any,
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{self, Context, Poll},
};

use axum::{body::Body, response::Response};
use futures_util::future::{CatchUnwind, Either, FutureExt as _, Ready, ready};
use http::Request;
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tower_http::request_id::RequestId;

use crate::{endpoint::Protocol, status::Problem, transport::request::endpoint};

/// Applies [`Respond`].
#[derive(Debug, Clone, Copy)]
pub struct RespondLayer;

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond { inner }
    }
}

/// Replies when the inner service fails or panics.
#[derive(Debug, Clone)]
pub struct Respond<S> {
    inner: S,
}

/// A reply or a panic's payload.
type Caught = Result<Result<Response, Problem>, Box<dyn Any + Send>>;

impl<S> Service<Request<Body>> for Respond<S>
where
    S: Service<Request<Body>, Response = Response, Error = Problem>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answered<Either<CatchUnwind<AssertUnwindSafe<S::Future>>, Ready<Caught>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A layer below refuses when it is called, because only then can the caller receive the refusal.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let endpoint = endpoint(request.extensions());
        let protocol = endpoint
            .as_ref()
            .map_or(Protocol::Rest, |endpoint| endpoint.protocol);
        let request_id = request.extensions().get::<RequestId>().cloned();
        let called = endpoint.map(|_| catch_unwind(AssertUnwindSafe(|| self.inner.call(request))));
        let future = match called {
            Ok(Ok(future)) => Either::Left(AssertUnwindSafe(future).catch_unwind()),
            Ok(Err(panic)) => Either::Right(ready(Err(panic))),
            Err(problem) => Either::Right(ready(Ok(Err(problem)))),
        };
        Answered {
            future,
            protocol,
            request_id,
        }
    }
}

pin_project! {
    /// A future of the reply, which converts errors and panics to the caller's protocol.
    pub struct Answered<F> {
        #[pin]
        future: F,
        protocol: Protocol,
        request_id: Option<RequestId>,
    }
}

impl<F: Future<Output = Caught>> Future for Answered<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let caught = task::ready!(this.future.poll(cx));
        let answer =
            caught.unwrap_or_else(|panic| Err(panicked(panic.as_ref(), this.request_id.as_ref())));
        Poll::Ready(Ok(
            answer.unwrap_or_else(|problem| problem.render(*this.protocol))
        ))
    }
}

fn panicked(panic: &(dyn Any + Send), request_id: Option<&RequestId>) -> Problem {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    let request_id = request_id.and_then(|id| id.header_value().to_str().ok());
    tracing::error!(
        panic = text,
        request_id,
        "a request panicked; this is a bug"
    );
    Problem::bug()
}

#[cfg(test)]
mod tests {
    use http::header;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::{endpoint::classified, status::Code};

    /// Returns the reply to a caller when the inner service returns this problem, or a reply.
    async fn answered(content_type: &str, problem: Option<Problem>) -> Response {
        let inner = service_fn(move |_: Request<Body>| {
            ready(problem.clone().map_or_else(|| Ok(Response::default()), Err))
        });
        let request = Request::post("/election/e")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::empty())
            .map(classified)
            .expect("a request");
        let Ok(response) = RespondLayer.layer(inner).oneshot(request).await;
        response
    }

    #[tokio::test]
    async fn an_error_is_told_in_the_callers_protocol_and_an_answer_passes_as_it_is() {
        for (content_type, status, grpc_status) in [
            ("application/json", 409, None),
            ("application/grpc", 200, Some("6")),
            ("application/grpc-web+proto", 200, Some("6")),
        ] {
            let refused = answered(content_type, Some(Problem::new(Code::Conflict, "held"))).await;
            assert_eq!(refused.status(), status, "{content_type}");
            let status = refused.headers().get("grpc-status");
            assert_eq!(status.and_then(|status| status.to_str().ok()), grpc_status);
            let fine = answered(content_type, None).await;
            assert_eq!((fine.status().as_u16(), fine.headers().len()), (200, 0));
        }
    }

    #[tokio::test]
    async fn a_panic_is_answered_in_the_callers_protocol() {
        let panics = service_fn(|request: Request<Body>| {
            assert!(request.uri().path() == "/later", "at once");
            async {
                if true {
                    panic!("later")
                }
                Err::<Response, _>(Problem::bug())
            }
        });
        for path in ["/later", "/now"] {
            for (content_type, status, header) in [
                ("application/json", 500, None),
                ("application/grpc", 200, Some("13")),
            ] {
                let request = Request::post(path)
                    .header(header::CONTENT_TYPE, content_type)
                    .body(Body::empty())
                    .map(classified)
                    .expect("a request");
                let Ok(answer) = RespondLayer.layer(panics).oneshot(request).await;
                assert_eq!(answer.status(), status);
                let grpc_status = answer.headers().get("grpc-status");
                assert_eq!(grpc_status.and_then(|code| code.to_str().ok()), header);
            }
        }
    }

    #[tokio::test]
    async fn a_request_that_has_not_been_classified_is_refused() {
        let answers = service_fn(|_: Request<Body>| ready(Ok::<_, Problem>(Response::default())));
        let request = Request::new(Body::empty());
        let Ok(answer) = RespondLayer.layer(answers).oneshot(request).await;
        assert_eq!(answer.status(), 500);
    }
}
