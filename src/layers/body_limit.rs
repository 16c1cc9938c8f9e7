//! Refuses bodies over 64 KiB.
//!
//! REST and gRPC-Web bodies are short, so they are read whole here, and what is over the limit is
//! refused before anything below sees it. The rest of a body that is not absurdly long is read and
//! thrown away first: over HTTP/1.1 the caller would otherwise find its connection reset instead of the
//! answer. A gRPC body is a stream of messages of any total length; tonic's decoder holds each message
//! to the limit.
//!
//! Refusal: PayloadTooLarge (RESOURCE_EXHAUSTED, 413); InvalidArgument for a body that breaks off.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, Either, FutureExt as _};
use http::Request;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use tower::{Layer, Service, ServiceExt as _};

use crate::transport::{
    Protocol,
    status::{Code, Problem},
};

/// The largest body of a REST request and the largest message of a gRPC call, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// The largest body of a gRPC-Web request: a message of [`MAX_BODY`], its frame, and base64.
const MAX_GRPC_WEB_BODY: usize = 2 * MAX_BODY;
/// How much of a body is read in order to be thrown away, and for how long.
const MAX_DISCARDED: usize = 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// What a body over the limit is answered.
pub(crate) fn too_large() -> Problem {
    Problem::new(
        Code::PayloadTooLarge,
        format!("the request is over {MAX_BODY} bytes: send less"),
    )
}

/// Applies [`BodyLimit`].
#[derive(Debug, Clone, Copy)]
pub struct BodyLimitLayer;

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> BodyLimit<S> {
        BodyLimit { inner }
    }
}

/// Refuses bodies over [`MAX_BODY`].
#[derive(Debug, Clone)]
pub struct BodyLimit<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for BodyLimit<S>
where
    S: Service<Request<Body>, Error = Problem, Response: 'static, Future: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<S::Future, BoxFuture<'static, Result<S::Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = match Protocol::of(request.headers()) {
            Protocol::Rest => MAX_BODY,
            Protocol::GrpcWeb(_) => MAX_GRPC_WEB_BODY,
            Protocol::Grpc => return Either::Left(self.inner.call(request)),
        };
        if request.body().is_end_stream() {
            return Either::Left(self.inner.call(request));
        }
        let inner = self.inner.clone();
        let read_first = async move {
            let (parts, body) = request.into_parts();
            let body = read(body, limit).await?;
            inner.oneshot(Request::from_parts(parts, body.into())).await
        };
        Either::Right(read_first.boxed())
    }
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut kept = BytesMut::new();
    if body.size_hint().lower() <= limit as u64 {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Problem::new(
                    Code::InvalidArgument,
                    format!("the body breaks off: {error}"),
                )
            })?;
            if let Some(data) = frame.data_ref() {
                kept.extend_from_slice(data);
            }
            if kept.len() > limit {
                break;
            }
        }
        if kept.len() <= limit {
            return Ok(kept.freeze());
        }
    }
    // However that ends, the answer is the same.
    let _ = timeout(DISCARD_TIME, discard(body, MAX_DISCARDED)).await;
    Err(too_large())
}

async fn discard(mut body: Body, most: usize) {
    let mut seen = 0;
    while seen < most
        && let Some(Ok(frame)) = body.frame().await
    {
        seen += frame.data_ref().map_or(0, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use http::header;
    use tower_test::mock::{self, Handle};

    use super::*;

    type Inner = Handle<Request<Body>, ()>;

    fn limited() -> (
        impl Service<Request<Body>, Response = (), Error = Problem, Future: Send>,
        Inner,
    ) {
        let (inner, mut handle) = mock::pair::<Request<Body>, ()>();
        handle.allow(1);
        let as_problem = |error| Problem::new(Code::Internal, format!("{error}"));
        (BodyLimitLayer.layer(inner.map_err(as_problem)), handle)
    }

    fn request(content_type: &str, body: usize) -> Request<Body> {
        Request::post("/")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(vec![b'x'; body]))
            .expect("a request")
    }

    #[tokio::test]
    async fn a_body_at_the_limit_is_passed_on_whole() {
        for (content_type, size) in [
            ("application/json", 0),
            ("application/json", MAX_BODY),
            ("application/grpc-web-text", MAX_GRPC_WEB_BODY),
            ("application/grpc", 10 * MAX_BODY),
        ] {
            let (service, mut inner) = limited();
            let call = tokio::spawn(service.oneshot(request(content_type, size)).boxed());
            let (passed, answer) = inner.next_request().await.expect("passed on");
            let body = passed.into_body().collect().await.expect("readable");
            assert_eq!(body.to_bytes().len(), size, "{content_type}");
            answer.send_response(());
            assert_eq!(call.await.expect("no panic"), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_never_passed_on() {
        for (content_type, size) in [
            ("application/json", MAX_BODY + 1),
            ("application/json", 10 * MAX_DISCARDED),
            ("application/grpc-web+proto", MAX_GRPC_WEB_BODY + 1),
        ] {
            let (service, mut inner) = limited();
            let refused = service.oneshot(request(content_type, size)).await;
            assert_eq!(
                refused.map_err(|problem| problem.code),
                Err(Code::PayloadTooLarge)
            );
            assert!(
                inner.next_request().await.is_none(),
                "{content_type} {size}"
            );
        }
    }
}
