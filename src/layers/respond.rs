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

#[cfg(test)]
mod tests {
    use std::future::ready;

    use http::header;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::transport::status::Code;

    /// What a caller gets when the inner service gives this problem, or an answer.
    async fn answered(content_type: &str, problem: Option<Problem>) -> Response {
        let inner = service_fn(move |_: Request<Body>| {
            ready(problem.clone().map_or_else(|| Ok(Response::default()), Err))
        });
        let request = Request::post("/election/e")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::empty())
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
            let told = refused.headers().get("grpc-status");
            assert_eq!(told.and_then(|told| told.to_str().ok()), grpc_status);
            let fine = answered(content_type, None).await;
            assert_eq!((fine.status().as_u16(), fine.headers().len()), (200, 0));
        }
    }
}
